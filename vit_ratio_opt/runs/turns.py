"""Run one trial at a time in a process, for all threads and studies.

A training sets the random state of the process, and an objective caches what trials share. So with
``n_jobs`` above 1 a trial waits until the results of the trials before it are in the study: the
search then tries the same pairs as with one job.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import optuna
from optuna.trial import BaseTrial

__all__ = ["take_turn"]

# Optuna stores a result at once; with ask and tell it may never be stored.
_PATIENCE_SECONDS, _LOOK_SECONDS = 10.0, 0.002

_changed = threading.Condition()
_waiting: list[int] = []  # trial numbers: the sampler also serves the oldest first
_at_work: int | None = None  # a thread
_last: tuple[optuna.Trial, int] | None = None  # the last trial and its thread


@contextlib.contextmanager
def take_turn(trial: BaseTrial) -> Iterator[None]:
    """Wait until no other trial runs in this process, and keep others waiting."""
    global _at_work, _last
    thread = threading.get_ident()
    if _at_work == thread:  # a study inside of a trial
        yield
        return
    with _changed:
        _waiting.append(trial.number)
        try:
            _changed.wait_for(lambda: _at_work is None and trial.number == min(_waiting))
            _at_work = thread
        finally:
            _waiting.remove(trial.number)
    try:
        if _last is not None and _last[1] != thread:
            _wait_for_result(*_last)
        yield
    finally:
        with _changed:
            _last = (trial, thread) if isinstance(trial, optuna.Trial) else None
            _at_work = None
            _changed.notify_all()


def _wait_for_result(trial: optuna.Trial, thread: int) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with contextlib.suppress(KeyError):  # the study was deleted
        while not trial.storage.get_trial(trial._trial_id).state.is_finished():
            is_alive = any(other.ident == thread for other in threading.enumerate())
            if not is_alive or time.monotonic() > deadline:
                return
            time.sleep(_LOOK_SECONDS)
