"""The pairs of a frontier, as rows that all tables show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.study import Study

from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.records.trial import attribute

__all__ = ["frontier_rows", "pick_rows"]

_MOST_ROWS = 12


def frontier_rows(study: Study) -> list[dict[str, Any]]:
    """Return the pairs of a study's frontier, of rising cost; empty with another limit.

    A row is ``{study, cost_ratio, macs_ratio, mhsa_ratio, ffn_ratio, val_accuracy, val_error,
    accuracy_drop, own_accuracy, trained, trial, knee}``. ``accuracy_drop`` is the loss against the
    dense model that is expected, or None where the dense model's metric is unknown; ``knee`` marks
    the answer. The others are those of :func:`~vit_ratio_opt.report.rows.build_report`.
    """
    answer = answer_of(study) if record_of(study).has_frontier else None
    if answer is None or answer.found is None:
        return []
    dense, metric = answer.dense_accuracy, answer.metric
    return [
        {
            "study": study.study_name,
            "cost_ratio": one.cost_ratio,
            "macs_ratio": attribute(one.trial, "macs_ratio"),
            "mhsa_ratio": one.pair[0],
            "ffn_ratio": one.pair[1],
            "val_accuracy": one.accuracy,
            "val_error": one.error,
            "accuracy_drop": None if dense is None else metric.loss(dense, one.accuracy),
            "own_accuracy": one.own_accuracy,
            "trained": one.trained,
            "trial": one.trial.number,
            "knee": one.pair == answer.found.pair,
        }
        for one in answer.front
    ]


def pick_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return at most twelve rows, spread evenly over the cost, with both ends and the knee."""
    if len(rows) <= _MOST_ROWS:
        return list(rows)
    costs = np.array([row["cost_ratio"] for row in rows])
    evenly = np.linspace(costs[0], costs[-1], _MOST_ROWS - 1)
    kept = {int(np.abs(costs - cost).argmin()) for cost in evenly}
    return [row for place, row in enumerate(rows) if place in kept or row["knee"]]
