"""Check the URLs of storages: SQLite, PostgreSQL, MySQL, or Optuna's gRPC proxy."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import sqlalchemy
from sqlalchemy.engine import URL

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.redact import redact, remember_secret

__all__ = ["DEFAULT_STORAGE", "check_storage_url", "database_files"]

DEFAULT_STORAGE = "sqlite:///vit_ratio_opt.db"

# The drivers of `pip install vit_ratio_opt[postgres]` and `[mysql]`, and SQLAlchemy's defaults.
_DRIVERS = {"postgresql": ("psycopg", "psycopg2"), "mysql": ("pymysql", "MySQLdb")}


def check_storage_url(url: str, *, must_exist: bool = False) -> URL:
    """Refuse a storage URL that cannot work, without connecting or writing.

    Args:
        url: SQLAlchemy URL, such as ``sqlite:///study.db``, or ``grpc://host:port``.
        must_exist: Whether a SQLite file has to exist already.

    Returns:
        The parsed URL with its driver.

    Raises:
        InputError: The URL is malformed, or names an unknown database or a SQLite file that is
            missing or cannot be written. The message shows no password.
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
        parsed = _add_driver(parsed)
        parsed.get_dialect()
    except sqlalchemy.exc.NoSuchModuleError:
        raise InputError(
            f"The storage URL {redact(url)!r} names an unknown database: it must begin with "
            "sqlite, postgresql, mysql or grpc and ://."
        ) from None
    except InputError:
        raise
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise InputError(
            f"{redact(url)!r} is no storage URL; expected one such as {DEFAULT_STORAGE}, "
            "postgresql://user@host/database or grpc://host:13000."
        ) from None
    if parsed.get_backend_name() == "sqlite":
        _check_file(parsed, redact(url), must_exist)
    return parsed


def _check_file(url: URL, shown: str, must_exist: bool) -> None:
    """Refuse a SQLite file that cannot be used."""
    if url.database in (None, "", ":memory:"):  # each thread would have its own
        raise InputError(
            f"{shown} is in memory and ends with the process: name a file, such as "
            f"{DEFAULT_STORAGE}. From Python, `optuna.storages.InMemoryStorage()` works."
        )
    file = Path(str(url.database))
    if file.is_dir():
        raise InputError(f"{shown} names a folder: name a file in it, such as study.db.")
    if must_exist and not file.exists():
        raise InputError(f"There is no database {file}.")
    if must_exist and not _has_studies(file):
        raise InputError(f"There are no studies in {file}: Optuna has not used this file.")
    if not file.parent.is_dir():
        raise InputError(f"{shown} cannot be created: there is no folder {file.parent}.")
    if not must_exist and not os.access(file if file.exists() else file.parent, os.W_OK):
        raise InputError(f"{shown} cannot be written: no permission.")


def _has_studies(file: Path) -> bool:
    """Return whether a SQLite file has Optuna's tables, without creating them; True if damaged."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)
        ) as database:
            found = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'studies'")
            return found.fetchone() is not None
    except (sqlite3.Error, ValueError):  # opening it gives a clearer message
        return True


def database_files(url: str) -> list[Path]:
    """Return the files that SQLite may keep for a URL; none for other databases."""
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return []
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return []
    return [Path(f"{parsed.database}{end}") for end in ("", "-journal", "-wal", "-shm")]


def _add_driver(url: URL) -> URL:
    """Add psycopg 3 or PyMySQL to a URL without a driver, unless only the usual ones exist."""
    for backend, (ours, default) in _DRIVERS.items():
        if url.drivername == backend and (find_spec(ours) or not find_spec(default)):
            return url.set(drivername=f"{backend}+{ours}")
    if url.drivername == "mariadb":
        return _add_driver(url.set(drivername="mysql"))
    return url


def _remember_secrets(url: URL) -> None:
    """Remember the secrets of a URL, so that :func:`redact` finds them in messages."""
    values = [value for key, value in _entries(url.query) if key not in ("host", "port")]
    for value in [*values, *([str(url.password)] if url.password else [])]:
        remember_secret(value)


def _entries(query: Mapping[str, str | tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    for key, value in query.items():
        for one in (value,) if isinstance(value, str) else value:
            yield key, one
