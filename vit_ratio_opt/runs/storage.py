"""Open storages by URL, and decide how long a failing one is retried."""

from __future__ import annotations

import itertools
import logging
import random
import time
import warnings
from importlib.util import find_spec
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from sqlalchemy.engine import URL

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.runs.connections import RESTART_SECONDS, Connector, answer_seconds, has_given_up
from vit_ratio_opt.runs.database import RDBStorage
from vit_ratio_opt.runs.storage_url import check_storage_url
from vit_ratio_opt.utils.failures import reason, storage_error
from vit_ratio_opt.utils.redact import redact

__all__ = [
    "BEATS_IN_GRACE",
    "GRACE_SECONDS",
    "GRPC_PORT",
    "PROXY_SECONDS",
    "RESTART_SECONDS",
    "is_temporary",
    "is_unreachable",
    "open_storage",
]

GRACE_SECONDS = 600
"""Seconds that a running trial may go without a heartbeat. A suspended laptop must not lose its
trial at once, and a dead node must not block its pair for ever."""

BEATS_IN_GRACE = 20
"""Heartbeats that may get lost before a trial counts as stale."""

# Errors of a new database, and their texts when another process is creating it as well.
_OPENING_ERRORS = (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, AssertionError)
_MOST_OPENINGS = 10
_RACES = ("already exists", "duplicate", "unique constraint", "no such table", 'relation "')
# Failures in a row after which a database counts as full, read-only or locked.
_MOST_FAILURES = 5
GRPC_PORT = 13000
PROXY_SECONDS = 10
"""Seconds to wait for the first answer of a proxy."""
_EXTRAS = {"postgresql": "postgres", "mysql": "mysql", "mariadb": "mysql"}

_logger = logging.getLogger(f"optuna.{__name__}")


def open_storage(
    url: str | BaseStorage,
    *,
    must_exist: bool = False,
    grace: int = GRACE_SECONDS,
    connections: int = 2,
) -> BaseStorage:
    """Return an Optuna storage with heartbeats that waits for a database to restart.

    Args:
        url: SQLAlchemy URL or ``grpc://host:port``; a storage is returned as it is.
        must_exist: Whether a SQLite file has to exist already.
        grace: Seconds after which a trial without a heartbeat is stale; the same for all workers
            of a study.
        connections: Largest number of connections to a database server that are kept open; twice
            as many may be open at a time.

    Raises:
        InputError: The URL is invalid, see :func:`check_storage_url`, the driver is not installed,
            or the database or the proxy cannot be reached or used.
    """
    if not isinstance(url, str):
        return url
    parsed = check_storage_url(url, must_exist=must_exist)
    shown = redact(url)
    if parsed.drivername == "grpc":
        return _open_proxy(parsed, grace)
    try:
        storage = _open_database(parsed, grace, connections)
    except ImportError:
        extra = _EXTRAS.get(parsed.get_backend_name())
        hint = f": pip install 'vit_ratio_opt[{extra}]'" if extra else ""
        raise InputError(f"The driver for {shown} is not installed{hint}.") from None
    except (*_OPENING_ERRORS, OSError, RuntimeError) as error:
        why = reason(error)
        if parsed.password:  # a short one may have been left
            why = why.replace(str(parsed.password), "***")
        raise InputError(f"The storage {shown} cannot be used: {why}") from None
    return storage


def _open_database(url: URL, grace: int, connections: int) -> RDBStorage:
    """Open a database; retry if another process creates its tables at the same time."""
    # Optuna takes braces in URLs for templates.
    whole = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    settings: dict[str, Any] = {"connect_args": {"timeout": answer_seconds(grace)}}
    connector = None
    if url.get_backend_name() != "sqlite":
        connector = Connector(url, grace)
        # A connection that a restart has cut is noticed before it is used.
        settings = {"creator": connector, "pool_pre_ping": True}
        settings |= {"pool_size": connections, "max_overflow": connections}
    for attempt in itertools.count(1):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage = RDBStorage(
                    whole,
                    engine_kwargs=settings,
                    heartbeat_interval=max(1, grace // BEATS_IN_GRACE),
                    grace_period=grace,
                )
            if connector is not None:
                connector.is_patient = True
            return storage
        except _OPENING_ERRORS as error:
            text = f"{error} {error.__cause__}".lower()
            is_race = isinstance(error, AssertionError) or any(word in text for word in _RACES)
            if not is_race or attempt == _MOST_OPENINGS:
                raise
        time.sleep(random.uniform(0.05, 0.1) * attempt)
    raise AssertionError  # never reached


def _open_proxy(url: URL, grace: int) -> BaseStorage:
    if find_spec("grpc") is None:
        raise InputError("grpc:// needs gRPC: pip install 'vit_ratio_opt[grpc]'.")
    host, port = str(url.host), url.port or GRPC_PORT
    from vit_ratio_opt.runs.grpc_client import GrpcStorageProxy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = GrpcStorageProxy(host=host, port=port, grace=grace)
    try:
        storage.wait_server_ready(timeout=PROXY_SECONDS)
    except ConnectionError:
        raise InputError(
            f"Nothing answers at grpc://{host}:{port}: start `vit-ratio-opt serve` there."
        ) from None
    return storage


def is_unreachable(error: BaseException) -> bool:
    """Return whether the proxy is down; a database is waited for when connecting."""
    return _grpc_status(error) == "UNAVAILABLE"


def _grpc_status(error: BaseException) -> str | None:
    code = getattr(storage_error(error), "code", None)
    return getattr(code(), "name", None) if callable(code) else None


def is_temporary(
    error: BaseException, storage: BaseStorage, failures: int, seconds: float
) -> bool:
    """Return whether to retry a storage that has failed.

    Each new connection has already waited for a database that does not answer; the caller has to
    wait for a proxy.

    Args:
        error: Exception that the storage raised last.
        storage: The storage.
        failures: Number of its failures in a row.
        seconds: Seconds since the first of these failures.
    """
    if is_unreachable(error):
        return seconds <= RESTART_SECONDS
    if _grpc_status(error) == "DEADLINE_EXCEEDED":
        return seconds <= getattr(storage, "silence_seconds", RESTART_SECONDS)
    cause = storage_error(error)
    if isinstance(cause, StorageInternalError):
        cause = cause.__cause__
    gave_up = has_given_up(getattr(cause, "orig", None))
    return not gave_up and failures <= _MOST_FAILURES and seconds <= RESTART_SECONDS
