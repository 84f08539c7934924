"""Read the attributes of studies and of their trials.

A study that :func:`~vit_ratio_opt.create_study` made has ``settings`` (what its results depend
on) and ``dense`` (size and accuracy of the dense model). Ratios and costs are shares of the dense
model's, accuracies are in per cent.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.geometry import COST_WORDS, Cost
from vit_ratio_opt.records.study import StudyRecord, is_ours
from vit_ratio_opt.search import Pair

__all__ = [
    "accuracy_of",
    "baseline_of",
    "block_rows",
    "cost_of",
    "cost_ratio_of",
    "finished_trials",
    "limit_of",
    "load_studies",
    "pair_of",
    "tested_accuracy",
]


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
            known = ", ".join(sorted(summaries)) or "none"
            raise InputError(f"The storage has no study {name!r}; it has: {known}.")
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

    A trial that Optuna's pruner stopped counts once it has reported an epoch.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE
        or trial.intermediate_values
        or "accuracy_drop" in trial.user_attrs
    ]


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


def cost_of(study: Study) -> Cost:
    """Return the cost that the study limits (with a budget) or minimises (with a tolerance)."""
    cost: Cost = study.user_attrs.get("settings", {}).get("cost", "macs")
    return cost


def limit_of(study: Study) -> str:
    """Return the study's limit in words, such as ``at most 60 % of the FLOPs``."""
    settings = study.user_attrs["settings"]
    if settings["tolerance"] is None:
        return f"at most {100 * settings['budget']:g} % of the {COST_WORDS[cost_of(study)]}"
    return f"at most {settings['tolerance']:g} points of accuracy lost"


def pair_of(trial: FrozenTrial) -> Pair:
    """Return the MHSA ratio and the FFN ratio of a trial."""
    return trial.params["mhsa_ratio"], trial.params["ffn_ratio"]


def cost_ratio_of(trial: FrozenTrial) -> float:
    """Return the cost of a trial's pair as a share of the dense model's cost."""
    return float(trial.user_attrs.get("cost_ratio", trial.user_attrs["macs_ratio"]))


def accuracy_of(trial: FrozenTrial, study: Study) -> float | None:
    """Return the last validation accuracy of a trial in per cent, or None before the first one.

    This is the final accuracy of a trial that was trained to its end, and the one after the last
    reported epoch otherwise.
    """
    if "accuracy" in trial.user_attrs:
        return float(trial.user_attrs["accuracy"])
    if not trial.intermediate_values:
        return None
    reported = trial.intermediate_values[max(trial.intermediate_values)]
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
    blocks, before = trial.user_attrs.get("blocks", []), dense.get("blocks", [])
    rows: list[dict[str, int]] = []
    for index, (now, was) in enumerate(zip(blocks, before, strict=False)):
        row = {"block": index}
        for name, value, whole in zip(("heads", "head_dim", "neurons"), now, was, strict=True):
            row |= {name: value, f"dense_{name}": whole}
        if "tokens" in trial.user_attrs:
            queries, _, ffn = trial.user_attrs["tokens"][index]
            row |= {"mhsa_tokens": queries, "ffn_tokens": ffn, "dense_tokens": dense["tokens"]}
        rows.append(row)
    return rows
