"""One trial after the other in a process, whichever threads and studies they belong to.

A training sets the random state of the process, and an objective caches what trials share. So with
``n_jobs`` above 1 a trial waits for the ones before it, until their results are in the study: the
search then tries what it would try with one job.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import optuna
from optuna.trial import BaseTrial

__all__ = ["own_turn"]

# Optuna stores a result at once; who asks and tells by hand may never do.
_PATIENCE_SECONDS, _LOOK_SECONDS = 10.0, 0.002

_changed = threading.Condition()
_waiting: list[int] = []  # numbers of trials: the sampler serves the oldest first, too
_at_work: int | None = None  # a thread
_last: tuple[optuna.Trial, int] | None = None  # with its thread


@contextlib.contextmanager
def own_turn(trial: BaseTrial) -> Iterator[None]:
    """Wait until no other trial is at work in this process, and keep others waiting."""
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
