"""Exceptions that the caller can fix."""

from __future__ import annotations

__all__ = ["CannotWriteError", "InputError", "UnsupportedModelError"]


class InputError(ValueError):
    """An argument, file or setting is invalid; the message says which and how to fix it.

    Everything that a user can get wrong (a ratio, a path, a storage URL, an unsupported model)
    raises this error before anything is written. The command line prints the message alone and
    exits with code 2; every other exception is a bug and keeps its traceback.
    """


class CannotWriteError(InputError):
    """A file, folder or artifact store cannot be written: full disk, no permission, no network.

    The content is not to blame, so a trial that ends with this error is requeued, and the process
    in which it happened stops.
    """


class UnsupportedModelError(InputError):
    """The model has a module whose heads or neurons this package cannot remove exactly."""
