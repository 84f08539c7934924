"""Run a study."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.trials import cost_word, finished_trials
from vit_ratio_opt.report.sentences import answer_sentences
from vit_ratio_opt.runs.creation import check_study, create_study, screened_best
from vit_ratio_opt.runs.optimize import keep_optimizing
from vit_ratio_opt.runs.reaping import fail_dead_trials, fail_stale_trials, requeue_own_trials
from vit_ratio_opt.runs.signals import SearchStopped, StopRequest, stop_on_signals
from vit_ratio_opt.runs.storage import is_temporary
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.training.progress import SearchProgress
from vit_ratio_opt.utils.failures import is_storage_error, reason

if TYPE_CHECKING:
    from vit_ratio_opt.runs.objective import PruningObjective

__all__ = ["check_study", "create_study", "run_study"]

# Between two looks at what other workers do.
_WAIT_SECONDS = 2.0


def run_study(
    study: Study,
    objective: PruningObjective,
    *,
    n_trials: int | None,
    wait: bool = False,
    say: Callable[[str], None] = print,
    callbacks: Sequence[Callable[[Study, FrozenTrial], None]] = (),
    explain: bool = True,
) -> None:
    """Run until the study has ``n_trials`` trained trials, those of earlier runs included.

    Any number of processes, on any machines that reach the storage, may do so at once. Trials that
    a killed process of this machine left running are failed first, so that their pairs are tried
    again. A trial that fails is one that failed: its ``failure`` attribute says why.

    On SIGTERM or Ctrl-C the trial's training is put by, its pair handed back, and the search ends;
    whoever gets the pair next goes on where it stopped. The second one ends at once.

    Args:
        study: From :func:`create_study`.
        objective: The same objective.
        n_trials: Trained trials in all, at least 1; None until nothing is left to learn.
        wait: Whether to wait for the trials of others when there is nothing to begin: should they
            die, this process goes on.
        say: Called with each line of text: one for each trial, and at the end the study's answer.
        callbacks: Called after each trial of this process, as those of ``study.optimize``.
        explain: Whether notes and figures for optuna-dashboard are kept in the study, see
            :class:`~vit_ratio_opt.report.dashboard.Explainer`.

    Raises:
        InputError: ``n_trials`` is below 1, the study is not the objective's, or a checkpoint or
            an artifact cannot be written: the trial's pair will be tried again then.
        SearchStopped: By a signal.
    """
    if n_trials is not None and n_trials < 1:
        raise InputError(f"The number of trials must be at least 1, but got {n_trials!r}.")
    objective.prepare(study)
    explainer = None
    if explain:
        from vit_ratio_opt.report.explainer import Explainer

        explainer = Explainer(n_trials)
        callbacks = [explainer, *callbacks]
    if isinstance(study.sampler, PlanSampler):
        study.sampler.n_trials = n_trials
    shown = objective.progress
    enabled = None if shown is None else bool(shown)
    with stop_on_signals() as asked_to_stop, SearchProgress(n_trials, enabled=enabled) as bars:
        objective.stop, objective.progress = asked_to_stop, bars

        def count(study: Study, trial: FrozenTrial) -> None:
            bars.show_trained(len(finished_trials(study)))

        try:
            bars.show_trained(len(finished_trials(study)))
            _introduce(study, n_trials, say)
            _run(study, objective, n_trials, wait, say, asked_to_stop, [count, *callbacks])
        except KeyboardInterrupt:
            if not asked_to_stop():
                raise
        finally:
            objective.stop, objective.progress = None, shown
            objective.discard_spent_states()
        if explainer is not None:
            explainer.refresh(study)
    if asked_to_stop():
        say("stopped, with nothing lost: run the same again to go on from here")
        raise SearchStopped(asked_to_stop.signal)
    if answer_of(study) is not None:
        for sentence in answer_sentences(study):
            say(sentence)


def _introduce(study: Study, n_trials: int | None, say: Callable[[str], None]) -> None:
    """Say where the search begins, or that it is resumed."""
    done = len(finished_trials(study))
    if done:
        aim = "" if n_trials is None else f" of {n_trials}"
        say(f"resuming {study.study_name!r}: {done}{aim} trials are done, none repeated")
    if study.get_trials(deepcopy=False):
        return
    plan = study.user_attrs.get("plan", {})
    if plan.get("baseline") is not None:
        say(f"begins with the fixed ratio {plan['baseline'][0]:.3f}, the baseline of this study")
    best = screened_best(study.user_attrs)
    if best is not None:
        ratios = "mhsa_ratio {:.3f}, ffn_ratio {:.3f}".format(*best)
        looked_at = len(study.user_attrs["screened"])
        begins = "begins" if plan.get("baseline") is None else "continues"
        say(f"{begins} with {ratios}: the best of {looked_at} pairs before any training")
    path = study.user_attrs.get("path", [])
    if path:
        word = cost_word(study)
        say(f"begins along {len(path)} pairs, the likeliest of their {word} before any training")


def _run(
    study: Study,
    objective: PruningObjective,
    n_trials: int | None,
    wait: bool,
    say: Callable[[str], None],
    asked_to_stop: StopRequest,
    callbacks: Sequence[Callable[[Study, FrozenTrial], None]],
) -> None:
    wanted = math.inf if n_trials is None else n_trials
    # Attempts are bounded, so a pair over the budget in the queue cannot make this endless.
    attempts = sys.maxsize if n_trials is None else 4 * n_trials

    def room() -> float:
        """How many trials more may begin."""
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return wanted - len(finished_trials(study)) - len(running)

    def nothing_left() -> str | None:
        sampler = study.sampler
        return sampler.nothing_left(study) if isinstance(sampler, PlanSampler) else None

    failures, since = 0, 0.0  # of the storage in a row

    def report(study: Study, trial: FrozenTrial) -> None:
        nonlocal failures
        failures = 0
        say(_describe(study, trial, n_trials))
        if room() <= 0 or asked_to_stop():
            study.stop()

    def round_of_trials() -> bool:
        """Trials as long as there are any to begin; whether to look again after a while."""
        nonlocal attempts
        for number in fail_dead_trials(study):
            say(f"trial {number} was left behind by a killed process; its pair is tried again")
        if wait:
            fail_stale_trials(study)
        if len(finished_trials(study)) >= wanted:
            return False
        why = nothing_left()
        if why is None and room() > 0:
            attempts -= keep_optimizing(
                study, objective, n_trials=attempts, callbacks=[report, *callbacks], say=say
            )
            return True
        others = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if wait and others:
            asked_to_stop.wait(_WAIT_SECONDS)
            return True
        if why is not None:
            say(f"nothing is left to learn: {why}")
        if others:
            say(f"{len(others)} trial(s) of other workers are still running")
        return False

    while attempts > 0 and not asked_to_stop():
        try:
            if not round_of_trials():
                return
            failures = 0
        except Exception as error:
            if not is_storage_error(error):
                _refuse_deleted(study)
                raise
            since = since if failures else time.monotonic()
            failures += 1
            if asked_to_stop():  # its trial falls to the heartbeat
                return
            if not is_temporary(error, study._storage, failures, time.monotonic() - since):
                raise
            say(f"the storage failed ({reason(error)}); trying again")
            asked_to_stop.wait(_WAIT_SECONDS)
            requeue_own_trials(study)


def _refuse_deleted(study: Study) -> None:
    """Say why nothing can be written any more.

    Raises:
        InputError: The study was deleted.
    """
    try:
        study._storage.get_study_user_attrs(study._study_id)
    except KeyError:
        raise InputError(
            f"Study {study.study_name!r} was deleted while this worker was at work on it."
        ) from None


def _describe(study: Study, trial: FrozenTrial, n_trials: int | None) -> str:
    attributes, done = trial.user_attrs, len(finished_trials(study))
    ratios = "  ".join(f"{name} {value:.3f}" for name, value in trial.params.items())
    text = f"trial {trial.number:3d}  {ratios}"
    share = attributes.get("macs_ratio")  # unknown before the pair is
    text += "  FLOPs -" if share is None else f"  FLOPs {share:.3f}"
    if "cost_ratio" in attributes:
        word = cost_word(study)
        text += f"  {word} {attributes['cost_ratio']:.3f}"
    if "accuracy_drop" not in attributes:
        why = f": {attributes['failure']}" if "failure" in attributes else ""
        return f"{text}  {trial.state.name.lower()}{why}"
    limit = "" if trial.state == TrialState.COMPLETE else ", over the tolerance"
    aim = "" if n_trials is None else f" of {n_trials}"
    return (
        f"{text}  accuracy {attributes['accuracy_pruned']:.2f} -> {attributes['accuracy']:.2f} % "
        f"({0.0 - round(attributes['accuracy_drop'], 2):+.2f}{limit})  "
        f"{attributes['seconds']:.1f} s  ({done}{aim})"
    )
