"""Run trials with Optuna's loop, and continue after trials that were lost or failed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from optuna.exceptions import TrialPruned, UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from vit_ratio_opt._compat import is_refused_tell, optimize_logger
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.failures import is_storage_error

__all__ = ["keep_optimizing"]

Objective = Callable[[Trial], float | Sequence[float]]
"""A function to optimise: its value, or its values, of a trial."""

# Failures in a row that no pair explains.
_MOST_FAILURES = 3


def keep_optimizing(
    study: Study,
    objective: Objective,
    *,
    n_trials: int,
    callbacks: Sequence[Callable[[Study, FrozenTrial], None]] = (),
    say: Callable[[str], None] = print,
) -> int:
    """Run trials as ``study.optimize`` does, and continue after a lost or failed trial.

    - Lost: another worker has failed the trial. It does so when this worker could not write its
      heartbeat in time (a suspended laptop, a database out of reach). Optuna raises when such a
      trial ends.
    - Failed: the objective raised, the trial ends FAIL, and the next one begins. After three
      failures in a row, or at once after an InputError, the last exception is raised.

    Args:
        study: The study.
        objective: The function to optimise.
        n_trials: Largest number of trials to begin, lost ones included.
        callbacks: Functions called after each trial that was not lost.
        say: Function called with one line of text for each lost trial.

    Returns:
        Number of trials begun.
    """
    guarded = _Guarded(objective)
    logger = optimize_logger()
    logger.addFilter(guarded.should_log)
    try:
        while guarded.begun < n_trials:
            try:
                study.optimize(
                    guarded,
                    n_trials=n_trials - guarded.begun,
                    callbacks=callbacks,
                    catch=(Exception,),
                )
                break
            except Exception as error:
                if not _trial_was_finished(error):
                    raise
                say(
                    "another worker considered this one dead and failed its trial: the result is "
                    "dropped; continuing"
                )
    finally:
        logger.removeFilter(guarded.should_log)
    if guarded.failures == _MOST_FAILURES and guarded.last is not None:
        raise guarded.last
    return guarded.begun


class _Guarded:
    """An objective whose trials and failures are counted, and which stops after too many.

    Attributes:
        begun: Number of trials begun.
        failures: Number of trials that failed in a row.
        last: Exception of the last failure.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.begun = 0
        self.failures = 0
        self.last: Exception | None = None
        self._is_quiet = False

    def __call__(self, trial: Trial) -> float | Sequence[float]:
        self.begun, self._is_quiet = self.begun + 1, False
        try:
            value = self._objective(trial)
        except TrialPruned:
            self.failures = 0
            raise
        except KeyboardInterrupt:
            self._is_quiet = True
            raise
        except Exception as error:
            is_lost = isinstance(error, UpdateFinishedTrialError)
            self._is_quiet = is_lost or is_storage_error(error)
            if is_lost:
                raise
            needs_the_user = isinstance(error, InputError)
            self.failures = _MOST_FAILURES if needs_the_user else self.failures + 1
            self.last = error
            if self.failures == _MOST_FAILURES:
                trial.study.stop()
            raise
        self.failures = 0
        return value

    def should_log(self, record: logging.LogRecord) -> bool:
        """Keep Optuna from a warning with a traceback for a trial that was stopped or lost."""
        return not self._is_quiet


def _trial_was_finished(error: BaseException) -> bool:
    """Return whether Optuna raised because another worker had finished the trial."""
    return isinstance(error, UpdateFinishedTrialError) or is_refused_tell(error)
