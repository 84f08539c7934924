"""Read the trials of a study: which were trained, their pairs, costs and accuracies."""

from __future__ import annotations

import math

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.labels import CHANGE
from vit_ratio_opt.records.study import DenseRecord, record_of
from vit_ratio_opt.records.trial import attribute
from vit_ratio_opt.search.plan import Pair
from vit_ratio_opt.space.pairs import RatioPair

__all__ = [
    "accuracy_of",
    "block_rows",
    "cost_ratio_of",
    "cost_word",
    "finished_trials",
    "has_pair",
    "has_tolerance",
    "is_ratio",
    "pair_of",
    "reports_of",
    "tested_accuracy",
]


def finished_trials(study: Study) -> list[FrozenTrial]:
    """Return the trials that were trained: complete, over the tolerance, or stopped early.

    A trial that Optuna's pruner stopped counts once it has reported an epoch. A damaged trial, of
    which the pair or its cost is unknown, does not count.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    constraint = record_of(study).constraint
    return [
        trial
        for trial in trials
        if (
            trial.state == TrialState.COMPLETE
            or reports_of(trial)
            or attribute(trial, "accuracy_drop") is not None
            or constraint in trial.constraints
        )
        and has_pair(trial)
        and _cost_ratio(trial) is not None
    ]


def reports_of(trial: FrozenTrial) -> dict[int, float]:
    """Return the value that was reported after each epoch: with a tolerance, the loss."""
    if trial.intermediate_values:
        return trial.intermediate_values
    kept = attribute(trial, "reports") or {}
    return {int(epoch): value for epoch, value in kept.items() if epoch.isdecimal()}


def has_pair(trial: FrozenTrial) -> bool:
    """Return whether a trial has the two ratios of a pair."""
    return all(is_ratio(trial.params.get(name)) for name in RatioPair._fields)


def is_ratio(value: object) -> bool:
    """Return whether a value is a number in [0, 1]."""
    return isinstance(value, (int, float)) and 0 <= value <= 1


def pair_of(trial: FrozenTrial) -> Pair:
    """Return the MHSA ratio and the FFN ratio of a trial."""
    return trial.params["mhsa_ratio"], trial.params["ffn_ratio"]


def cost_ratio_of(trial: FrozenTrial) -> float:
    """Return the cost of a trial's model as a share of the dense model's cost.

    Raises:
        InputError: The trial has no cost.
    """
    ratio = _cost_ratio(trial)
    if ratio is None:
        raise InputError(f"Trial {trial.number} has no cost: `macs_ratio` is missing or damaged.")
    return ratio


def _cost_ratio(trial: FrozenTrial) -> float | None:
    ratio: float | None = attribute(trial, "cost_ratio")
    macs_ratio: float | None = attribute(trial, "macs_ratio")
    return macs_ratio if ratio is None else ratio


def has_tolerance(study: Study) -> bool:
    """Return whether the study minimises the cost within a tolerance.

    Of a study that does not store its limit, the direction decides.
    """
    record = record_of(study)
    return record.has_tolerance or (
        record.limit is None and study.directions == [StudyDirection.MINIMIZE]
    )


def cost_word(study: Study) -> str:
    """Return the word for what the study limits or minimises, such as ``FLOPs``."""
    return record_of(study).cost.word


def accuracy_of(trial: FrozenTrial, study: Study) -> float | None:
    """Return the last validation accuracy of a trial in per cent, or None before the first one.

    This is the final accuracy of a trial that was trained to its end, and the accuracy after the
    last reported epoch otherwise. In a study with another metric it is the value of that metric.
    """
    accuracy = attribute(trial, "accuracy")
    if accuracy is not None:
        return float(accuracy)
    if not has_tolerance(study):
        if trial.state == TrialState.COMPLETE and not reports_of(trial):
            return trial.values[0] if trial.values else None
        return _last_report(trial)
    record, drop = record_of(study), _last_report(trial)
    metric = record.metric
    if drop is None and record.limit is not None and record.constraint in trial.constraints:
        drop = trial.constraints[record.constraint] + (record.limit.tolerance or 0.0)
    dense = 0.0 if metric == CHANGE else record.dense.val_accuracy
    return None if dense is None or drop is None else metric.after_loss(dense, drop)


def _last_report(trial: FrozenTrial) -> float | None:
    """Return the value after the last reported epoch: with a tolerance, the loss."""
    reports = reports_of(trial)
    if not reports:
        return None
    reported = reports[max(reports)]
    return reported if math.isfinite(reported) else None


def tested_accuracy(study: Study, trial: FrozenTrial | None) -> float | None:
    """Return the test accuracy of a trial's model in per cent, or None before it was tested.

    Args:
        study: The study.
        trial: One of its trials; None for the dense model.
    """
    tested = record_of(study).tested
    accuracy: float | None
    if trial is None:
        accuracy = tested.get("dense")
    elif trial.number == tested.get("trial"):  # version 0.1.0 stored no other
        accuracy = tested.get("accuracy")
    else:
        accuracy = (tested.get("accuracies") or {}).get(str(trial.number))
    return accuracy


def block_rows(dense: DenseRecord, trial: FrozenTrial) -> list[dict[str, int]]:
    """Return a row for each block with its sizes after and before pruning.

    There are no rows for a trial whose model has not been pruned yet.

    Args:
        dense: Sizes of the dense model.
        trial: The trial, of which the attributes ``blocks`` and, after a cascade, ``tokens`` are
            read.
    """
    blocks, before = attribute(trial, "blocks") or (), dense.blocks or ()
    tokens = attribute(trial, "tokens") or ()
    rows: list[dict[str, int]] = []
    for index, (now, was) in enumerate(zip(blocks, before, strict=False)):
        row = {"block": index}
        for name, value, whole in zip(("heads", "head_dim", "neurons"), now, was, strict=True):
            row |= {name: value, f"dense_{name}": whole}
        if index < len(tokens) and dense.tokens:
            queries, _, ffn = tokens[index]
            row |= {"mhsa_tokens": queries, "ffn_tokens": ffn, "dense_tokens": dense.tokens}
        rows.append(row)
    return rows
