"""Say in one line why something failed, and distinguish failures of the storage from all others.

Exceptions of Optuna, SQLAlchemy and gRPC are known by the names of their classes, so that nothing
has to be installed or imported for it.
"""

from __future__ import annotations

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.redact import redact

__all__ = ["is_storage_error", "reason", "storage_error"]

_INTERNAL = ("optuna.exceptions", "StorageInternalError")
_OF_STORAGES = {_INTERNAL, ("sqlalchemy.exc", "DBAPIError")}


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, redacted; the name of its class without one.

    Of a storage's failure, the message is that of the driver or of gRPC.
    """
    cause = storage_error(error) or error
    if _INTERNAL in _classes(cause):
        cause = cause.__cause__ or cause
    details = getattr(cause, "details", None)  # gRPC's
    text = details() if callable(details) else str(getattr(cause, "orig", None) or cause)
    line = ((text or "").strip().splitlines() or [type(cause).__name__])[0]
    return redact(line)


def is_storage_error(error: BaseException) -> bool:
    """Return whether the storage itself failed, so that a later call may succeed."""
    return storage_error(error) is not None


def storage_error(error: BaseException) -> BaseException | None:
    """Return the storage's own exception behind an error; None where the storage did not fail.

    Optuna stumbles over such an exception, so it may be the error's context.
    """
    cause: BaseException | None = None if isinstance(error, InputError) else error
    while cause is not None:
        classes = _classes(cause)
        if classes & _OF_STORAGES:
            return cause
        if any(module.partition(".")[0] == "grpc" for module, _ in classes):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def _classes(error: BaseException) -> set[tuple[str, str]]:
    """Return module and name of an error's class and of the classes that it derives from."""
    return {(base.__module__, base.__qualname__) for base in type(error).__mro__}
