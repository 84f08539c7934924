"""Connect to a database server that may be restarting, or may have stopped answering.

TCP cannot distinguish a server that acknowledges packets but never answers from a busy one. So
every wait of a client has a limit, after which the connection is closed and the call fails.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator
from typing import Any

from sqlalchemy.engine import URL, Dialect

__all__ = [
    "RESTART_SECONDS",
    "Connector",
    "answer_seconds",
    "has_given_up",
    "silence_seconds",
    "stopping",
]

RESTART_SECONDS = 300
"""Seconds that a worker waits for a database or a proxy that is being restarted."""

stopping = threading.Event()
"""Set while this process has been asked to stop: it then waits for nothing."""

_FIRST_SECONDS = 10  # to connect
_SILENT_SECONDS = 1.5  # a server that is down refuses a connection at once
_LAST_SECONDS = 10  # for an answer, once the process has been asked to stop
_LEAST_SECONDS, _MOST_SECONDS = 5, 60  # for an answer
_GAVE_UP = "vit_ratio_opt_gave_up"

# The session of a suspended process must not hold its locks longer than it may be silent.
_POSTGRESQL = """
    SELECT set_config(name, '{seconds}s', false) FROM pg_settings
    WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout') AND setting = '0'
"""
_MYSQL = "SET SESSION wait_timeout = {seconds}, innodb_lock_wait_timeout = {seconds}"

_logger = logging.getLogger(f"optuna.{__name__}")


def answer_seconds(grace: float) -> int:
    """Return how long a storage may take to answer; a worker notices it well within its grace.

    Args:
        grace: Seconds after which a trial without a heartbeat is stale.
    """
    return int(min(max(grace / 4, _LEAST_SECONDS), _MOST_SECONDS))


def silence_seconds(grace: float) -> float:
    """Return how long to wait for a server that does not answer.

    Args:
        grace: Seconds after which a trial without a heartbeat is stale.
    """
    return min(RESTART_SECONDS, grace / 2)


def has_given_up(error: BaseException | None) -> bool:
    """Return whether a driver's error was raised after all waiting for the server."""
    return getattr(error, _GAVE_UP, False)


class Connector:
    """Opens connections to a database server, for SQLAlchemy's ``creator``.

    Timeouts and keepalives of the URL and of the server's roles have precedence.

    Args:
        url: URL with its driver.
        grace: Seconds after which a trial without a heartbeat is stale; determines the timeouts.
            A server that refuses connections, as during a restart, is waited for
            :data:`RESTART_SECONDS`.

    Raises:
        ImportError: The driver is not installed.
    """

    def __init__(self, url: URL, grace: float) -> None:
        dialect_class: Any = url.get_dialect()
        self._dialect: Dialect = dialect_class(dbapi=dialect_class.import_dbapi())
        self._backend = url.get_backend_name()
        self._seconds = answer_seconds(grace)
        self._silence_seconds = silence_seconds(grace)
        self._connect_driver = self._dialect.loaded_dbapi.connect
        if self._dialect.driver == "psycopg":
            self._connect_driver = _bounded_connection(self._seconds).connect
        self._arguments, given = self._dialect.create_connect_args(url)
        self._options = {**_options(self._dialect.driver, self._seconds), **given}
        self._down_since: float | None = None
        self.is_patient = False
        """Whether the database has answered before, so that it may come back."""

    def __call__(self) -> Any:
        """Open a connection; wait for a server that was there before."""
        pause = 0.1
        while True:
            began = time.monotonic()
            try:
                connection = self._connect()
            except self._dialect.loaded_dbapi.OperationalError as error:
                now = time.monotonic()
                self._down_since = self._down_since or began
                is_silent = now - began > _SILENT_SECONDS
                longest = self._silence_seconds if is_silent else RESTART_SECONDS
                if not self.is_patient or stopping.is_set():
                    raise
                if now + pause > self._down_since + longest:
                    setattr(error, _GAVE_UP, True)
                    raise
            else:
                self._down_since = None
                return connection
            _logger.warning("The database does not answer; trying again.")
            stopping.wait(pause)
            pause = min(2 * pause, 5.0)

    def _connect(self) -> Any:
        connection = self._connect_driver(*self._arguments, **self._options)
        if self._backend == "postgresql":
            connection.cursor().execute(_POSTGRESQL.format(seconds=self._seconds))
            connection.commit()
        return connection


def _options(driver: str, seconds: int) -> dict[str, Any]:
    """Return the options that limit every wait of a driver."""
    first = min(_FIRST_SECONDS, seconds)
    libpq: dict[str, Any] = {
        "connect_timeout": first,
        # Routers drop idle connections.
        "keepalives_idle": max(seconds // 2, 1),
        "keepalives_interval": max(seconds // 6, 1),
        "keepalives_count": 3,
        "tcp_user_timeout": 1000 * seconds,
    }
    mysql: dict[str, Any] = {
        "connect_timeout": first,
        "read_timeout": seconds,
        "write_timeout": seconds,
        "init_command": _MYSQL.format(seconds=seconds),
    }
    known = {"psycopg": libpq, "psycopg2": libpq, "pymysql": mysql, "mysqldb": mysql}
    return known.get(driver, {})


def _bounded_connection(seconds: float) -> Any:
    """Return a class of psycopg connections in which every wait has a limit."""
    import psycopg

    class Connection(psycopg.Connection):
        def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
            return super().wait(_wait_for_answer(self, gen), *arguments, **options)

    def _wait_for_answer(connection: psycopg.Connection, gen: Any) -> Generator[Any, Any, Any]:
        """Run a generator of psycopg's until the server is silent for too long."""
        heard = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                now = time.monotonic()
                heard = now if ready else heard
                longest = min(seconds, _LAST_SECONDS) if stopping.is_set() else seconds
                if now - heard > longest:
                    connection.pgconn.finish()
                    raise psycopg.OperationalError(f"no answer for {longest:g} seconds")
                wanted = gen.send(ready)
        except StopIteration as ended:
            return ended.value

    return Connection
