"""Heartbeats of a running trial, recorded as long as its thread makes progress."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator

import optuna
from optuna.storages import BaseStorage

from vit_ratio_opt._compat import rdb_of
from vit_ratio_opt.runs.database import RDBStorage
from vit_ratio_opt.runs.storage import BEATS_IN_GRACE

__all__ = ["BEAT", "record_heartbeats"]

BEAT = "vit_ratio_opt:beat"
"""System attribute of a trial behind a proxy: a counter that its worker increases."""

# Behind a proxy, where Optuna's own heartbeats are not available.
_PROXIED_BEAT_SECONDS = 30.0
# A waiting thread uses less of a CPU; psycopg checks ten times a second whether to go on waiting.
_LEAST_CPU = 0.002
_LEAST_STALL_SECONDS = 5.0

_logger = logging.getLogger(f"optuna.{__name__}")


@contextlib.contextmanager
def record_heartbeats(
    trial_id: int,
    storage: BaseStorage,
    *,
    every: float | None = None,
    stall_seconds: float | None = None,
) -> Iterator[None]:
    """Record in a background thread that the trial's process is alive.

    Optuna does so in ``study.optimize`` alone, not behind its proxy, and stops for good once a
    single write has failed. Behind a proxy a counter is written into the trial instead, which a
    :class:`~vit_ratio_opt.runs.reaping.Reaper` beside the database turns into heartbeats.

    No heartbeat is recorded while the calling thread hangs in a call that never ends, so that
    another worker gets the pair.

    Args:
        trial_id: Id of the running trial.
        storage: Storage of its study.
        every: Seconds between heartbeats; the storage's own interval, or 30 s, by default.
        stall_seconds: Seconds for which the calling thread may use no CPU; half the grace period,
            and at least 5 s, by default.
    """
    recorder = _recorder(trial_id, storage)
    database = rdb_of(storage)
    interval = every or (
        _PROXIED_BEAT_SECONDS if database is None else database.heartbeat_interval
    )
    if recorder is None or interval is None:
        yield
        return
    if stall_seconds is None:
        stall_seconds = max(interval * BEATS_IN_GRACE / 2, _LEAST_STALL_SECONDS)
    ended, makes_progress = threading.Event(), _Progress(stall_seconds)

    def beat() -> None:
        while True:
            try:
                if makes_progress():
                    record()
            except Exception as error:  # the next one may get through
                _logger.debug(f"A heartbeat was lost: {error}")
            if ended.wait(interval):
                storage.remove_session()  # SQLAlchemy keeps one for each thread
                return

    thread = threading.Thread(target=beat, daemon=True, name=f"heartbeats of {trial_id}")
    with recorder as record:
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _recorder(
    trial_id: int, storage: BaseStorage
) -> contextlib.AbstractContextManager[Callable[[], object]] | None:
    """Return a context of a function that records a heartbeat; None where none can be stored."""
    database = rdb_of(storage)
    if isinstance(database, RDBStorage):
        return database.heartbeats(trial_id)
    if database is not None:
        return contextlib.nullcontext(functools.partial(database.record_heartbeat, trial_id))
    if isinstance(storage, optuna.storages.GrpcStorageProxy):
        count = itertools.count()
        return contextlib.nullcontext(
            lambda: storage.set_trial_system_attr(trial_id, BEAT, next(count))
        )
    return None


class _Progress:
    """Tells whether the thread that creates this object computes: a hanging one uses no CPU.

    Args:
        seconds: How long the thread may use no CPU. Where the system does not tell the CPU time of
            a thread, there is no limit.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._clock = None
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._since, self._used = time.monotonic(), self._cpu_seconds()

    def __call__(self) -> bool:
        """Return whether the thread has computed lately."""
        now, used = time.monotonic(), self._cpu_seconds()
        stalled = now - self._since
        if self._clock is None or used - self._used > _LEAST_CPU * stalled:
            self._since, self._used = now, used
            return True
        return stalled < self._seconds

    def _cpu_seconds(self) -> float:
        return 0.0 if self._clock is None else time.clock_gettime(self._clock)
