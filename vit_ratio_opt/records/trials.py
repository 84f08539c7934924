"""Read the attributes of studies and of their trials.

A study that :func:`~vit_ratio_opt.create_study` made has ``settings`` (what its results depend
on) and ``dense`` (size and accuracy of the dense model). Ratios and costs are shares of the dense
model's, accuracies are in per cent.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.study import StudyRecord, is_ours
from vit_ratio_opt.records.typed import typed
from vit_ratio_opt.search.plan import Pair
from vit_ratio_opt.space.costs import cost_label
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.utils.text import short

__all__ = [
    "DAMAGED",
    "accuracy_of",
    "attribute",
    "baseline_of",
    "block_rows",
    "cost_of",
    "cost_ratio_of",
    "cost_word",
    "finished_trials",
    "limit_of",
    "load_studies",
    "has_pair",
    "is_ratio",
    "pair_of",
    "shown_attribute",
    "tested_accuracy",
]

DAMAGED = "damaged"
"""What tables show of an attribute that is of another type than this package writes."""

_Sizes = tuple[tuple[int, int, int], ...]
_ATTRIBUTES: dict[str, Any] = {
    "macs_ratio": float,
    "macs": int,
    "cost_ratio": float,
    "planned_cost_ratio": float,
    "params": int,
    "accuracy_pruned": float,
    "accuracy": float,
    "accuracy_drop": float,
    "parent_trial": Literal["dense"] | int,
    "epochs": int,
    "total_epochs": int,
    "seconds": float,
    "seed": int,
    "device": str,
    "checkpoint": str | None,
    "weights": str,
    "worker": str,
    "failure": str,
    "blocks": _Sizes,
    "tokens": _Sizes,
    "losses": tuple[float, ...],
    "timing": dict[str, float],
    "resumed_from": dict[str, int],
}

_MOST_NAMES = 20
_TOO_LARGE = 1e18  # for a number of ours; nor is NaN below it

_logger = logging.getLogger(f"optuna.{__name__}")


def load_studies(storage: BaseStorage, names: Sequence[str] = ()) -> list[Study]:
    """Load the named studies, or every study that this package created; searched ones come last.

    Of all studies, those that are damaged or unfinished are left out, with a warning each, unless
    no other is left.

    Args:
        storage: The storage of the studies.
        names: The names of the studies; empty for all.

    Raises:
        InputError: A named study does not exist, was not created by this package or is damaged,
            or the storage has no study created by this package.
    """
    # Not Optuna's summaries: these read every trial of every study.
    summaries = {s.study_name: s for s in storage.get_all_studies()}
    records: dict[str, StudyRecord] = {}
    for name in names:
        if name not in summaries:
            known = ", ".join(map(short, sorted(summaries)[:_MOST_NAMES])) or "none"
            known += ", …" if len(summaries) > _MOST_NAMES else ""
            raise InputError(f"The storage has no study {short(name)!r}; it has: {known}.")
        records[name] = StudyRecord.read(name, summaries[name].user_attrs)
    damaged: list[InputError] = []
    for name, summary in () if names else summaries.items():
        if is_ours(summary.user_attrs):
            try:
                records[name] = StudyRecord.read(name, summary.user_attrs)
            except InputError as error:
                damaged.append(error)
    if not records:
        raise (damaged or [InputError("The storage has no study made by vit_ratio_opt.")])[0]
    for reason in damaged:
        _logger.warning(f"{reason} It is left out.")
    ours = sorted(records.values(), key=lambda record: record.settings.strategy == "searched")
    return [optuna.load_study(study_name=record.name, storage=storage) for record in ours]


def finished_trials(study: Study) -> list[FrozenTrial]:
    """Return the trials that were trained: complete, over the tolerance, or stopped early.

    A trial that Optuna's pruner stopped counts once it has reported an epoch. A damaged one, of
    which neither the pair nor its cost is known, does not count.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [
        trial
        for trial in trials
        if (
            trial.state == TrialState.COMPLETE
            or trial.intermediate_values
            or "accuracy_drop" in trial.user_attrs
        )
        and has_pair(trial)
        and _cost_ratio(trial) is not None
    ]


def attribute(trial: FrozenTrial, name: str) -> Any:
    """Return a trial's attribute of ours; None where it is missing or of another type."""
    value = trial.user_attrs.get(name)
    if value is None:
        return None
    hint = _ATTRIBUTES[name]
    if hint in (int, float, str):  # in a table of thousands of trials, `typed` takes long
        is_right = type(value) is hint or (hint is float and type(value) is int)
        return value if is_right and (hint is str or abs(value) < _TOO_LARGE) else None
    try:
        return typed(name, value, hint)
    except InputError:
        return None


def shown_attribute(trial: FrozenTrial, name: str) -> Any:
    """Return a trial's attribute of ours for a table: None without, :data:`DAMAGED` if it is."""
    value = attribute(trial, name)
    is_damaged = value is None and trial.user_attrs.get(name) is not None
    return DAMAGED if is_damaged else value


def has_pair(trial: FrozenTrial) -> bool:
    """Whether a trial has the two ratios of a pair."""
    return all(is_ratio(trial.params.get(name)) for name in RatioPair._fields)


def is_ratio(value: object) -> bool:
    """Whether a value is a number in [0, 1]."""
    return isinstance(value, (int, float)) and 0 <= value <= 1


def _cost_ratio(trial: FrozenTrial) -> float | None:
    ratio: float | None = attribute(trial, "cost_ratio")
    macs_ratio: float | None = attribute(trial, "macs_ratio")
    return macs_ratio if ratio is None else ratio


def baseline_of(study: Study, studies: Sequence[Study]) -> Study | None:
    """Return the fixed-ratio baseline of a searched study, or None.

    Args:
        study: The searched study.
        studies: The candidates. A baseline has the dense model, data and limit of ``study``; one
            with its recipe and seed too is preferred.
    """
    limit = ("budget", "tolerance", "cost", "latency_batch")

    def same(other: Study, *keys: str) -> bool:
        mine, its = study.user_attrs["settings"], other.user_attrs["settings"]
        return all(mine.get(key) == its.get(key) for key in keys)

    if study.user_attrs["settings"]["strategy"] == "fixed":
        return None
    found = [
        other
        for other in studies
        if other.user_attrs["settings"]["strategy"] == "fixed"
        and same(other, "weights", "dataset", "validation", "pruned", *limit)
    ]
    return max(found, key=lambda other: same(other, "recipe", "seed"), default=None)


def cost_of(study: Study) -> str:
    """Return the name of the cost that the study limits (budget) or minimises (tolerance)."""
    cost: str = study.user_attrs.get("settings", {}).get("cost", "macs")
    return cost


def cost_word(study: Study) -> str:
    """Return the cost of the study in words, such as ``FLOPs``."""
    return cost_label(cost_of(study)).word


def limit_of(study: Study) -> str:
    """Return the study's limit in words, such as ``at most 60 % of the FLOPs``."""
    settings = study.user_attrs["settings"]
    if settings["tolerance"] is None:
        return f"at most {100 * settings['budget']:g} % of the {cost_word(study)}"
    return f"at most {settings['tolerance']:g} points of accuracy lost"


def pair_of(trial: FrozenTrial) -> Pair:
    """Return the MHSA ratio and the FFN ratio of a trial."""
    return trial.params["mhsa_ratio"], trial.params["ffn_ratio"]


def cost_ratio_of(trial: FrozenTrial) -> float:
    """Return the cost of a trial's pair as a share of the dense model's cost."""
    ratio = _cost_ratio(trial)
    if ratio is None:
        raise InputError(f"Trial {trial.number} has no cost: `macs_ratio` is missing or damaged.")
    return float(ratio)


def accuracy_of(trial: FrozenTrial, study: Study) -> float | None:
    """Return the last validation accuracy of a trial in per cent, or None before the first one.

    This is the final accuracy of a trial that was trained to its end, and the one after the last
    reported epoch otherwise.
    """
    accuracy = attribute(trial, "accuracy")
    if accuracy is not None:
        return float(accuracy)
    if not trial.intermediate_values:
        return None
    reported = trial.intermediate_values[max(trial.intermediate_values)]
    if not math.isfinite(reported):
        return None
    if study.direction == StudyDirection.MAXIMIZE:
        return reported
    # With a tolerance, trials report the drop of accuracy.
    return float(study.user_attrs["dense"]["val_accuracy"]) - reported


def tested_accuracy(study: Study, trial: FrozenTrial | None) -> float | None:
    """Return the test accuracy of a trial's model in per cent, or None before it was tested.

    Args:
        study: The study, of which the attribute ``tested`` is read.
        trial: One of its trials; None for the dense model.
    """
    tested = study.user_attrs.get("tested", {})
    accuracy: float | None
    if trial is None:
        accuracy = tested.get("dense")
    elif trial.number == tested.get("trial"):  # version 0.1.0 kept no other
        accuracy = tested.get("accuracy")
    else:
        accuracy = (tested.get("accuracies") or {}).get(str(trial.number))
    return accuracy


def block_rows(dense: Mapping[str, Any], trial: FrozenTrial) -> list[dict[str, int]]:
    """Return a row for each block with its sizes after and before pruning.

    The rows are empty for a trial whose model has not been pruned yet.

    Args:
        dense: The study's ``dense`` attribute, of which ``blocks`` and ``tokens`` are read.
        trial: The trial, of which the attributes ``blocks`` and, after a cascade, ``tokens`` are
            read.
    """
    blocks, before = attribute(trial, "blocks") or (), dense.get("blocks") or []
    tokens = attribute(trial, "tokens") or ()
    rows: list[dict[str, int]] = []
    for index, (now, was) in enumerate(zip(blocks, before, strict=False)):
        row = {"block": index}
        for name, value, whole in zip(("heads", "head_dim", "neurons"), now, was, strict=True):
            row |= {name: value, f"dense_{name}": whole}
        if index < len(tokens) and dense.get("tokens"):
            queries, _, ffn = tokens[index]
            row |= {"mhsa_tokens": queries, "ffn_tokens": ffn, "dense_tokens": dense["tokens"]}
        rows.append(row)
    return rows
