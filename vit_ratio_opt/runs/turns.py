"""One trial after the other in a process, whichever threads and studies they belong to.

A training sets the random state of the process, and an objective caches what trials share. So with
``n_jobs`` above 1 a trial waits for the one before it, until that one's result is in the study:
the search then tries what it would try with one job.
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

_turn = threading.RLock()
_last: tuple[optuna.Trial, int] | None = None


@contextlib.contextmanager
def own_turn(trial: BaseTrial) -> Iterator[None]:
    """Wait until no other trial is at work in this process, and keep others waiting."""
    global _last
    with _turn:
        if _last is not None and _last[1] != threading.get_ident():
            _wait_for_result(*_last)
        try:
            yield
        finally:
            _last = None
            if isinstance(trial, optuna.Trial):
                _last = (trial, threading.get_ident())


def _wait_for_result(trial: optuna.Trial, thread: int) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with contextlib.suppress(KeyError):  # the study was deleted
        while not trial.storage.get_trial(trial._trial_id).state.is_finished():
            is_alive = any(other.ident == thread for other in threading.enumerate())
            if not is_alive or time.monotonic() > deadline:
                return
            time.sleep(_LOOK_SECONDS)
