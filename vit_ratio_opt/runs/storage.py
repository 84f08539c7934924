"""Storages by URL: SQLite, PostgreSQL, MySQL, or Optuna's gRPC proxy in front of one of them."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import random
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from sqlalchemy.engine import URL

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.runs.connections import RESTART_SECONDS, Connector, answer_seconds, has_given_up
from vit_ratio_opt.runs.database import RDBStorage
from vit_ratio_opt.utils.failures import reason, storage_error
from vit_ratio_opt.utils.redact import redact, remember_secret

__all__ = [
    "BEATS_IN_GRACE",
    "DEFAULT_STORAGE",
    "GRACE_SECONDS",
    "GRPC_PORT",
    "PROXY_SECONDS",
    "RESTART_SECONDS",
    "check_storage_url",
    "database_files",
    "is_temporary",
    "is_unreachable",
    "open_storage",
]

DEFAULT_STORAGE = "sqlite:///vit_ratio_opt.db"

GRACE_SECONDS = 600
"""How long a running trial may give no sign of life. A suspended laptop must not lose its trial
at once, a dead node must not block its pair for ever."""

BEATS_IN_GRACE = 20
"""Signs of life that may get lost before a trial is taken for dead."""

# Of a new database, and what is said when another process is creating it at the same moment.
_OPENING_ERRORS = (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, AssertionError)
_MOST_OPENINGS = 10
_RACES = ("already exists", "duplicate", "unique constraint", "no such table", 'relation "')
# In a row: a database that fails again and again is full, read-only or locked.
_MOST_FAILURES = 5
GRPC_PORT = 13000
PROXY_SECONDS = 10
"""Seconds that a proxy has for its first answer."""
# Drivers that `pip install vit_ratio_opt[postgres]` and `[mysql]` bring, where the URL names none.
_DRIVERS = {"postgresql": ("psycopg", "psycopg2"), "mysql": ("pymysql", "MySQLdb")}
_EXTRAS = {"postgresql": "postgres", "mysql": "mysql", "mariadb": "mysql"}

_logger = logging.getLogger(f"optuna.{__name__}")


def check_storage_url(url: str, *, must_exist: bool = False) -> URL:
    """Refuse a storage URL that cannot work, without connecting or writing.

    Args:
        url: A SQLAlchemy URL, such as ``sqlite:///study.db``, or ``grpc://host:port``.
        must_exist: Refuse a SQLite file that does not exist yet.

    Returns:
        The URL, with the driver that is to be used.

    Raises:
        InputError: The URL is malformed, names an unknown database, or a SQLite file that is not
            there or cannot be written. Passwords are not repeated.
    """
    try:
        parsed = sqlalchemy.engine.make_url(url)
        _remember_secrets(parsed)
        if parsed.drivername == "grpc":
            if not parsed.host or parsed.database:
                raise InputError(
                    f"{redact(url)!r} must name a host and a port, such as grpc://host:13000."
                )
            return parsed
        parsed = _with_driver(parsed)
        parsed.get_dialect()
    except sqlalchemy.exc.NoSuchModuleError:
        raise InputError(f"The storage URL {redact(url)!r} names an unknown database.") from None
    except InputError:
        raise
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise InputError(
            f"{redact(url)!r} is no storage URL; expected one such as {DEFAULT_STORAGE}, "
            "postgresql://user@host/database or grpc://host:13000."
        ) from None
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in (None, "", ":memory:"):  # and each thread would see its own
            raise InputError(
                f"{redact(url)} is in memory and ends with the process: name a file, such as "
                f"{DEFAULT_STORAGE}. From Python, `optuna.storages.InMemoryStorage()` works."
            )
        file = Path(str(parsed.database))
        if file.is_dir():
            raise InputError(f"{url} names a folder: name a file in it, such as study.db.")
        if must_exist and not file.exists():
            raise InputError(f"There is no database {file}.")
        if must_exist and not _has_studies(file):
            raise InputError(f"There are no studies in {file}: Optuna has not used this file.")
        if not file.parent.is_dir():
            raise InputError(f"{redact(url)} cannot be made: there is no folder {file.parent}.")
        if not must_exist and not os.access(file if file.exists() else file.parent, os.W_OK):
            raise InputError(f"{redact(url)} cannot be written: no permission.")
    return parsed


def _has_studies(file: Path) -> bool:
    """Whether a SQLite file has Optuna's tables, which opening it would make; True if damaged."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)
        ) as database:
            found = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'studies'")
            return found.fetchone() is not None
    except (sqlite3.Error, ValueError):  # what opening it says is clearer
        return True


def database_files(url: str) -> list[Path]:
    """Return the files, there or not, that SQLite keeps for a URL; none for any other text."""
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return []
    if parsed.get_backend_name() != "sqlite":
        return []
    return [Path(f"{parsed.database}{end}") for end in ("", "-journal", "-wal", "-shm")]


def _with_driver(url: URL) -> URL:
    """Psycopg 3 and PyMySQL where no driver is named, unless only the usual ones are there."""
    for backend, (ours, default) in _DRIVERS.items():
        if url.drivername == backend and (find_spec(ours) or not find_spec(default)):
            return url.set(drivername=f"{backend}+{ours}")
    if url.drivername == "mariadb":
        return _with_driver(url.set(drivername="mysql"))
    return url


def open_storage(
    url: str | BaseStorage,
    *,
    must_exist: bool = False,
    grace: int = GRACE_SECONDS,
    connections: int = 2,
) -> BaseStorage:
    """An Optuna storage with heartbeats, and patience with a database that is restarted.

    Args:
        url: See :func:`check_storage_url`; a storage is given back as it is.
        must_exist: Refuse a SQLite file that does not exist instead of making it.
        grace: Seconds after which a trial without a sign of life is taken for dead; the same for
            all workers of a study.
        connections: To a database server, kept open at the most; twice as many in need.

    Raises:
        InputError: See :func:`check_storage_url`; or the driver is not installed, or the database
            or the proxy cannot be reached or used.
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
    """Open a database, and again where another process creates its tables at the same time."""
    # Braces: Optuna fills URLs in as templates.
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
    """Whether there is no proxy at the moment; a database is waited for when connecting."""
    return _grpc_status(error) == "UNAVAILABLE"


def _grpc_status(error: BaseException) -> str | None:
    code = getattr(storage_error(error), "code", None)
    return getattr(code(), "name", None) if callable(code) else None


def is_temporary(
    error: BaseException, storage: BaseStorage, failures: int, seconds: float
) -> bool:
    """Whether a storage that has failed is worth another try.

    A database that does not answer was waited for already, by each connection that was opened; a
    proxy has to be waited for by its caller.

    Args:
        error: What the storage raised last.
        storage: The storage.
        failures: How often it has failed in a row.
        seconds: For how long.
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


def _remember_secrets(url: URL) -> None:
    """Have :func:`redact` know what a driver's messages may repeat."""
    values = [value for key, value in _entries(url.query) if key not in ("host", "port")]
    for value in [*values, *([str(url.password)] if url.password else [])]:
        remember_secret(value)


def _entries(query: Mapping[str, str | tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    for key, value in query.items():
        for one in (value,) if isinstance(value, str) else value:
            yield key, one
