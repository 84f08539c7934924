"""Run the trials of a study until enough are trained or nothing is left to learn."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.trials import finished_trials
from vit_ratio_opt.runs.lines import describe_device, describe_start, describe_trial
from vit_ratio_opt.runs.objective import PruningObjective
from vit_ratio_opt.runs.optimize import keep_optimizing
from vit_ratio_opt.runs.reaping import fail_dead_trials, fail_stale_trials, requeue_own_trials
from vit_ratio_opt.runs.resume import spent_trials
from vit_ratio_opt.runs.signals import SearchStopped, StopRequest, stop_on_signals
from vit_ratio_opt.runs.storage import is_temporary
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.training.progress import SearchProgress
from vit_ratio_opt.utils.failures import is_storage_error, reason

__all__ = ["Callback", "run_study"]

Callback = Callable[[Study, FrozenTrial], None]
"""Called after each trial of this process, as a callback of ``study.optimize``."""

# Seconds between two reads of the trials of other workers.
_WAIT_SECONDS = 2.0


def run_study(
    study: Study,
    objective: PruningObjective,
    *,
    n_trials: int | None,
    wait: bool = False,
    say: Callable[[str], None] = print,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Run until the study has ``n_trials`` trained trials, those of earlier runs included.

    Any number of processes, on any machines that reach the storage, may do so at the same time.
    Trials that a killed process of this machine left running are failed first, so that their pairs
    are requeued. The attribute ``failure`` of a failed trial has the reason.

    On SIGTERM or Ctrl-C the training state is saved after the current step, the pair is requeued,
    and the search ends; the next worker of the pair resumes the training. The second signal ends
    the process at once.

    Args:
        study: A study with the sampler of the search.
        objective: The objective of the same search.
        n_trials: Trained trials in all, at least 1; None until nothing is left to learn.
        wait: Whether to wait for the trials of other workers when no trial can begin, and to retry
            the pairs of workers that die.
        say: Called with each line of text: one for each trial.
        callbacks: Called after each trial of this process.

    Raises:
        InputError: ``n_trials`` is below 1, the study is another search's, or a model cannot be
            kept: its pair is requeued.
        SearchStopped: A signal ended the search.
    """
    if n_trials is not None and n_trials < 1:
        raise InputError(f"The number of trials must be at least 1, but got {n_trials!r}.")
    objective.check(study)
    shown = None if objective.progress is None else bool(objective.progress)
    with (
        stop_on_signals() as asked_to_stop,
        SearchProgress(n_trials, enabled=shown) as bars,
        _steer_trainings(objective, asked_to_stop, bars),
        _steer_sampler(study.sampler, n_trials),
    ):
        bars.show_trained(len(finished_trials(study)))
        for line in (*describe_device(objective.trainer), *describe_start(study, n_trials)):
            say(line)
        loop = _Loop(study, objective, n_trials, wait=wait, say=say, should_stop=asked_to_stop)
        loop.run([lambda study, _: bars.show_trained(len(finished_trials(study))), *callbacks])
        # Also those that a worker left behind that was killed between two trials.
        trials = study.get_trials(deepcopy=False)
        spent = spent_trials(objective.seed, trials, finished_trials(study))
        objective.journal.spend_states(*spent)
    if asked_to_stop():
        say("Stopped; progress saved. Run the same command to resume.")
        raise SearchStopped(asked_to_stop.signal)


@contextlib.contextmanager
def _steer_sampler(sampler: BaseSampler, n_trials: int | None) -> Iterator[None]:
    """Tell the sampler the number of trials, and leave it to the loop to say that it has ended."""
    if not isinstance(sampler, PlanSampler):
        yield
        return
    sampler.n_trials, sampler.logs_end = n_trials, False
    try:
        yield
    finally:
        sampler.logs_end = True


@contextlib.contextmanager
def _steer_trainings(
    objective: PruningObjective, should_stop: StopRequest, bars: SearchProgress
) -> Iterator[None]:
    """Set the stop request and the progress bars of all trainings inside the block."""
    shown = objective.progress
    objective.should_stop, objective.progress = should_stop, bars
    try:
        yield
    except KeyboardInterrupt:
        if not should_stop():
            raise
    finally:
        objective.should_stop, objective.progress = None, shown
        objective.journal.discard_spent_states()


class _Loop:
    """Rounds of trials in this process, for :func:`run_study`."""

    def __init__(
        self,
        study: Study,
        objective: PruningObjective,
        n_trials: int | None,
        *,
        wait: bool,
        say: Callable[[str], None],
        should_stop: StopRequest,
    ) -> None:
        self._study, self._objective = study, objective
        self._n_trials, self._wait, self._say = n_trials, wait, say
        self._should_stop = should_stop
        self._callbacks: list[Callback] = []
        self._wanted = math.inf if n_trials is None else n_trials
        # Attempts are bounded, so a pair over the budget in the queue cannot make this endless.
        self._attempts = sys.maxsize if n_trials is None else 4 * n_trials
        self._failures, self._since = 0, 0.0  # of the storage in a row

    def run(self, callbacks: Sequence[Callback]) -> None:
        """Run rounds until nothing is left to do, also across failures of the storage."""
        self._callbacks = [self._report, *callbacks]
        while self._attempts > 0 and not self._should_stop():
            try:
                if not self._round():
                    return
                self._failures = 0
            except Exception as error:
                if not self._retry_after(error):
                    return

    def _round(self) -> bool:
        """Run trials while any can begin; return whether another round may follow."""
        study = self._study
        for number in fail_dead_trials(study):
            self._say(f"trial {number} of a killed process failed; its pair is requeued")
        if self._wait:
            fail_stale_trials(study)
        if len(finished_trials(study)) >= self._wanted:
            return False
        why = self._nothing_left()
        if why is None and self._trials_left() > 0:
            self._attempts -= keep_optimizing(
                study,
                self._objective,
                n_trials=self._attempts,
                callbacks=self._callbacks,
                say=self._say,
            )
            return True
        others = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if self._wait and others:
            self._should_stop.wait(_WAIT_SECONDS)
            return True
        if why is not None:
            self._say(f"nothing is left to learn: {why}")
        if others:
            self._say(f"{len(others)} trial(s) of other workers are still running")
        return False

    def _retry_after(self, error: Exception) -> bool:
        """Wait after a temporary failure of the storage; return whether to continue.

        Raises:
            Exception: ``error``, where it is no temporary failure of the storage.
            InputError: The study was deleted.
        """
        if not is_storage_error(error):
            _refuse_deleted(self._study)
            raise error
        self._since = self._since if self._failures else time.monotonic()
        self._failures += 1
        if self._should_stop():  # without heartbeats, another worker gets the pair
            return False
        lasted = time.monotonic() - self._since
        if not is_temporary(error, self._study._storage, self._failures, lasted):
            raise error
        self._say(f"the storage failed ({reason(error)}); trying again")
        self._should_stop.wait(_WAIT_SECONDS)
        requeue_own_trials(self._study)
        return True

    def _trials_left(self) -> float:
        """Return how many more trials may begin."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return self._wanted - len(finished_trials(self._study)) - len(running)

    def _nothing_left(self) -> str | None:
        sampler = self._study.sampler
        if not isinstance(sampler, PlanSampler):
            return None
        return sampler.nothing_left(self._study)

    def _report(self, study: Study, trial: FrozenTrial) -> None:
        self._failures = 0
        self._say(describe_trial(study, trial, self._n_trials))
        if self._trials_left() <= 0 or self._should_stop():
            study.stop()


def _refuse_deleted(study: Study) -> None:
    """Raise if the study was deleted.

    Raises:
        InputError: The study was deleted.
    """
    try:
        study._storage.get_study_user_attrs(study._study_id)
    except KeyError:
        raise InputError(
            f"Study {study.study_name!r} was deleted while this worker ran its trials."
        ) from None
