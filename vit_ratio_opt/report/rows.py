"""Rows of studies, as dictionaries that all tables show.

The rows of :func:`build_report` are:

- ``dense``: the dense model.
- ``fixed``: the fixed ratio's pair in a search within a budget, or the answer of a study of
  one fixed ratio. A study whose pair and settings are those of a search is not listed again.
- ``searched``: the answer of a search. Where it is the dense model, ``trial`` is None,
  ``trained`` is 0 and the ratios are 0.

A row is ``{name, study, strategy, mhsa_ratio, ffn_ratio, macs, macs_ratio, params, trial,
val_accuracy, val_error, own_accuracy, trained, probability, test_accuracy, trials, seconds}``.
Accuracies are in per cent:

- ``val_accuracy`` and ``val_error``: posterior mean of the pair's validation accuracy, and its
  standard error in percentage points; ``own_accuracy``: mean of the pair's own trainings.
- ``trial``: the number of the trial whose model is taken; ``trained``: trainings of the pair.
- ``probability``: within a budget, that the pair is better than the fixed ratio's of the same
  study, else None; with a tolerance, that it keeps the tolerance; None on a frontier, whose
  answer is its knee.
- ``test_accuracy``: of the model of ``trial``, None until it was tested.
- ``trials`` and ``seconds``: of all trials of the study; in the row of a fixed ratio that a
  search has trained, of its own trainings only.

For another cost than MACs there is also ``cost_ratio``; for latency ``latency_ms``, predicted,
and once it was tested ``measured_ms``, ``dense_ms`` and ``measured_on``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.answer import Answer, answer_of
from vit_ratio_opt.records.candidates import Candidate
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.records.trial import attribute
from vit_ratio_opt.records.trials import finished_trials, tested_accuracy
from vit_ratio_opt.report.frontier import frontier_rows
from vit_ratio_opt.utils.text import shorten

__all__ = [
    "answer_row",
    "build_report",
    "dense_ms",
    "group_studies",
]

# Settings that the studies of one table have in common.
_SHARED = ("weights", "dataset", "validation", "trainer")
# Settings in which a study of the fixed ratio may differ from a search that trains the same model.
_OF_THE_SEARCH = ("schema_version", "strategy", "noise", "confirmations", "confidence")


def group_studies(studies: Sequence[Study]) -> list[list[Study]]:
    """Return studies in groups of the same dense model and images, one for each table.

    A study of a custom objective stores no settings to compare: it is a group of its own.
    """
    groups: defaultdict[tuple[str, ...], list[Study]] = defaultdict(list)
    for study in studies:
        settings = record_of(study).optional_settings
        key: tuple[str, ...] = (study.study_name,)
        if settings is not None:
            key = ("", *(repr(getattr(settings, name)) for name in _SHARED))
        groups[key].append(study)
    return list(groups.values())


def build_report(studies: Sequence[Study]) -> dict[str, Any]:
    """Return ``{studies, model, dataset, seed, epochs, device, versions, rows}`` of one model.

    The report also has ``budget``, ``tolerance`` and ``frontier``, all but one of which are None,
    ``cost`` and its word, and ``metric``; and ``front``, the pairs of all frontiers, see
    :func:`~vit_ratio_opt.report.frontier.frontier_rows`. A value that the studies do not store is
    None. The module describes the rows.

    Raises:
        InputError: The studies are of different dense models or data.
    """
    studies = [snapshot(study) for study in studies]
    _check_comparable(studies)
    first = record_of(studies[0])
    settings = first.optional_settings
    answers = {study.study_name: answer_of(study) for study in studies}
    rows = [_dense_row(studies, answers)]
    searches = [(study, answers[study.study_name]) for study in studies]
    for study, answer in searches:
        if answer is None or _is_listed_elsewhere(study, answer, searches):
            continue
        if answer.baseline is not None:
            rows.append(_baseline_row(study, answer.baseline))
        rows.append(answer_row(study, answer))
    recipe = None if settings is None else settings.recipe
    report = {
        "studies": [study.study_name for study in studies],
        "model": first.model,
        "dataset": first.dataset,
        "seed": None if settings is None else settings.seed,
        "epochs": None if recipe is None else recipe.get("epochs"),
        "device": first.device,
        "versions": first.versions,
        "budget": None if first.limit is None else first.limit.budget,
        "tolerance": None if first.limit is None else first.limit.tolerance,
        "frontier": None if first.limit is None else first.limit.frontier,
        "cost": first.cost.name,
        "cost_word": first.cost.word,
        "metric": first.metric.to_json(),
        "rows": rows,
        "front": [row for study in studies for row in frontier_rows(study)],
    }
    # Where validation took half of the test split: the dense model on both halves together.
    for study in studies:
        whole = record_of(study).dense_full_test_accuracy
        if whole is not None:
            report["dense_full_test_accuracy"] = whole
    return report


def _check_comparable(studies: Sequence[Study]) -> None:
    for name in _SHARED:
        values = {repr(getattr(record_of(s).optional_settings, name, None)) for s in studies}
        if len(values) > 1:
            raise InputError(
                f"Studies in one report must be of one model and data set, but differ in {name}: "
                f"{', '.join(map(shorten, sorted(values)))}. Name the studies."
            )


def _is_listed_elsewhere(
    study: Study, answer: Answer, searches: Sequence[tuple[Study, Answer | None]]
) -> bool:
    """Return whether a search has trained the same fixed ratio with the same settings."""

    def shared(study: Study) -> dict[str, Any]:
        settings = record_of(study).settings.to_json()
        return {key: value for key, value in settings.items() if key not in _OF_THE_SEARCH}

    if not record_of(study).is_fixed or answer.found is None:
        return False
    return any(
        other is not None
        and other.baseline is not None
        and other.baseline.pair == answer.found.pair
        and shared(search) == shared(study)
        for search, other in searches
    )


def _dense_row(studies: Sequence[Study], answers: Mapping[str, Answer | None]) -> dict[str, Any]:
    """Return the row of the dense model."""
    tested = (tested_accuracy(study, None) for study in studies)
    known = (answer.dense_accuracy for answer in answers.values() if answer is not None)
    row: dict[str, Any] = {
        "name": "dense",
        "study": None,
        "strategy": "none",
        **_dense_figures(studies[0], next(known, None)),
        "test_accuracy": next((value for value in tested if value is not None), None),
        "trials": 0,
        "seconds": 0.0,
    }
    if any(record_of(study).cost.name != "macs" for study in studies):
        row["cost_ratio"] = 1.0
    return row


def _dense_figures(study: Study, accuracy: float | None = None) -> dict[str, Any]:
    dense = record_of(study).dense
    accuracy = accuracy if dense.val_accuracy is None else dense.val_accuracy
    return {
        "mhsa_ratio": 0.0,
        "ffn_ratio": 0.0,
        "macs": dense.macs,
        "macs_ratio": 1.0,
        "params": dense.params,
        "trial": None,
        "val_accuracy": accuracy,
        "val_error": 0.0,
        "own_accuracy": accuracy,
        "trained": 0,
        "probability": None,
    }


def _figures(found: Candidate, probability: float | None) -> dict[str, Any]:
    return {
        "mhsa_ratio": found.pair[0],
        "ffn_ratio": found.pair[1],
        **{name: attribute(found.trial, name) for name in ("macs", "macs_ratio", "params")},
        "trial": found.trial.number,
        "val_accuracy": found.accuracy,
        "val_error": found.error,
        "own_accuracy": found.own_accuracy,
        "trained": found.trained,
        "probability": probability,
    }


def answer_row(study: Study, answer: Answer) -> dict[str, Any]:
    """Return the row of a study's answer, see :func:`build_report`."""
    record, found, finished = record_of(study), answer.found, finished_trials(study)
    if found is None:
        figures, trial = _dense_figures(study, answer.dense_accuracy), None
    else:
        is_compared = answer.confidence is not None or (
            answer.baseline is not None and not answer.is_baseline
        )
        figures, trial = _figures(found, found.probability if is_compared else None), found.trial
    tested, measured = record.tested, {}
    # A search that was resumed has another answer, whose latency is not measured yet.
    if tested.get("pruned_ms") is not None and trial and tested.get("trial") == trial.number:
        measured = {"measured_ms": tested["pruned_ms"], "dense_ms": tested["dense_ms"]}
        measured["measured_on"] = tested["device"]
    return {
        "name": "fixed" if record.is_fixed else "searched",
        "study": study.study_name,
        "strategy": record.pruned,
        **figures,
        "test_accuracy": tested_accuracy(study, trial),
        "trials": len(finished),
        "seconds": _seconds(finished),
        **_cost(study, 1.0 if found is None else found.cost_ratio),
        **measured,
    }


def _baseline_row(study: Study, baseline: Candidate) -> dict[str, Any]:
    """Return the row of the fixed ratio's pair that a search has trained."""
    return {
        "name": "fixed",
        "study": study.study_name,
        "strategy": record_of(study).pruned,
        **_figures(baseline, None),
        "test_accuracy": tested_accuracy(study, baseline.trial),
        "trials": baseline.trained,
        "seconds": _seconds(baseline.trials),
        **_cost(study, baseline.cost_ratio),
    }


def _cost(study: Study, cost_ratio: float) -> dict[str, Any]:
    record = record_of(study)
    cost: dict[str, Any] = {} if record.cost.name == "macs" else {"cost_ratio": cost_ratio}
    if record.latency is not None:
        cost["latency_ms"] = round(cost_ratio * dense_ms(record.latency), 4)
    return cost


def dense_ms(latency: Mapping[str, Any]) -> float:
    """Return the predicted latency of the dense model in milliseconds."""
    nanoseconds = latency["rest"] + latency["mhsa"][0][1] + latency["ffn"][0][1]
    return float(nanoseconds / 1e6)


def _seconds(trials: Sequence[FrozenTrial]) -> float:
    total = 0.0
    for trial in trials:
        seconds, duration = attribute(trial, "seconds"), trial.duration
        if seconds is None and duration is not None:  # of a custom objective
            seconds = duration.total_seconds()
        total += seconds or 0.0
    return round(total, 1)
