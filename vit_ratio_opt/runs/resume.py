"""Resume the training of an earlier, interrupted trial of the same pair and seed."""

from __future__ import annotations

import math
from typing import Any

from optuna.trial import BaseTrial, FrozenTrial, Trial, TrialState

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.trial import attribute, write_trial
from vit_ratio_opt.records.trials import reports_of
from vit_ratio_opt.space.metric import Metric
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.training.context import TrainingDiverged

__all__ = [
    "check_resumed",
    "copy_progress",
    "last_epoch",
    "next_seed",
    "pair_of",
    "report_epoch",
    "spent_trials",
]

# What an interrupted trial has recorded before its training.
_KNOWN = ("params", "blocks", "tokens", "parent_trial", "total_epochs", "chosen")


def copy_progress(trial: BaseTrial, earlier: FrozenTrial, metric: Metric) -> None:
    """Record in ``trial`` what an interrupted trial had recorded when its state was saved.

    A second call changes nothing.
    """
    if "resumed_from" in trial.user_attrs:
        return
    epoch = earlier.user_attrs["training_state"]["epoch"]
    known: dict[str, Any] = {
        name: earlier.user_attrs[name] for name in _KNOWN if name in earlier.user_attrs
    }
    pruned = attribute(earlier, "accuracy_pruned")
    if pruned is not None:
        known["accuracy_pruned"] = pruned
    write_trial(
        trial,
        metric=metric,
        **known,
        losses=earlier.user_attrs["losses"][:epoch],  # later epochs are trained again
        resumed_from={"trial": earlier.number, "epoch": epoch},
    )
    for step, value in reports_of(earlier).items():
        if step <= epoch:
            report_epoch(trial, step, value)


def check_resumed(trial: BaseTrial) -> None:
    """Refuse the result of a training that was given a saved state and has not loaded it.

    Its model has the sizes of the pruned one, but no weights of its own.

    Raises:
        InputError: The trainer has not called ``context.on_resume``.
    """
    if "resumed_from" not in trial.user_attrs:
        raise InputError(
            "the trainer did not load the saved state that `context.state` names. If the path "
            "exists, a trainer has to load it and call `context.on_resume()`."
        )


def last_epoch(trial: BaseTrial) -> int:
    """Return the last epoch that was reported; 0 without one."""
    if not isinstance(trial, Trial):
        return 0
    return max(reports_of(trial.storage.get_trial(trial._trial_id)), default=0)


def report_epoch(trial: BaseTrial, epoch: int, value: float) -> None:
    """Record the metric after an epoch; with a tolerance, the loss.

    Optuna refuses reports in a study of several objectives.
    """
    if isinstance(trial, Trial) and len(trial.study.directions) > 1:
        known = attribute(trial, "reports") or {}
        write_trial(trial, reports={**known, str(epoch): value})
    else:
        trial.report(value, epoch)


def next_seed(
    seed: int, pair: RatioPair, trials: list[FrozenTrial], finished: list[FrozenTrial]
) -> int:
    """Return the seed of the next training of a pair.

    Pairs differ in nothing but the pair: each is first trained with ``seed``, and with the next
    one after each training that finished or diverged.
    """
    trained = [trial for trial in finished if pair_of(trial) == pair]
    diverged = [trial for trial in trials if _has_diverged(trial) and pair_of(trial) == pair]
    return seed + len(trained) + len(diverged)


def spent_trials(
    seed: int, trials: list[FrozenTrial], finished: list[FrozenTrial]
) -> list[FrozenTrial]:
    """Return the ended trials from whose states no training will resume.

    These are all but the failed ones whose pair's next training has their seed.
    """

    def may_resume(trial: FrozenTrial) -> bool:
        following = next_seed(seed, pair_of(trial), trials, finished)
        return trial.state == TrialState.FAIL and trial.user_attrs.get("seed") == following

    ended = [trial for trial in trials if trial.state.is_finished()]
    return [t for t in ended if "training_state" in t.user_attrs and not may_resume(t)]


def pair_of(trial: FrozenTrial) -> RatioPair:
    """Return the pair of a trial, with NaN for a ratio that it does not have."""
    return RatioPair(*(trial.params.get(name, math.nan) for name in RatioPair._fields))


def _has_diverged(trial: FrozenTrial) -> bool:
    return str(trial.user_attrs.get("failure", "")).startswith(TrainingDiverged.__name__)
