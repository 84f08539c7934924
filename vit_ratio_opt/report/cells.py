"""Cells of tables, as text for Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import Study

from vit_ratio_opt.records.trials import (
    limit_of,
)
from vit_ratio_opt.report.rows import (
    TRIAL_COLUMNS,
    build_report,
)
from vit_ratio_opt.report.sentences import with_error
from vit_ratio_opt.utils.text import short

__all__ = ["TRIALS", "cell", "cells", "results_cells", "searched_first", "val_text"]

_RESULTS = (
    "name",
    "study",
    "limit",
    "mhsa_ratio",
    "ffn_ratio",
    "macs_ratio",
    "cost_ratio",
    "latency_ms",
    "measured_ms",
    "params",
    "trial",
    "val_accuracy",
    "own_accuracy",
    "trained",
    "test_accuracy",
    "trials",
    "seconds",
)
# Headings of tables; the other columns are called what they are called everywhere.
_HEADINGS = {
    "name": "method",
    "mhsa_ratio": "MHSA ratio",
    "ffn_ratio": "FFN ratio",
    "macs_ratio": "FLOPs",
    "cost_ratio": "cost",
    "latency_ms": "predicted ms",
    "measured_ms": "measured ms",
    "val_accuracy": "val %",
    "own_accuracy": "own val %",
    "test_accuracy": "test %",
    "accuracy_pruned": "pruned %",
    "accuracy": "val %",
    "accuracy_drop": "drop",
    "parent_trial": "parent",
    "params": "parameters",
}
_DIGITS = {
    "mhsa_ratio": 3,
    "ffn_ratio": 3,
    "macs_ratio": 4,
    "cost_ratio": 4,
    "latency_ms": 2,
    "measured_ms": 2,
    "own_accuracy": 2,
    "test_accuracy": 2,
    "accuracy_pruned": 2,
    "accuracy": 2,
    "accuracy_drop": 2,
    "seconds": 1,
}
# What a page does not say of each trial: it is said above the table, or for programs.
_LEFT_OUT = ("study", "best", "macs", "device", "checkpoint")
TRIALS = tuple(name for name in TRIAL_COLUMNS if name not in _LEFT_OUT)


def results_cells(group: Sequence[Study]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of the rows of studies of one dense model."""
    limits = {study.study_name: limit_of(study) for study in group}
    rows = []
    for row in build_report(group)["rows"]:
        shown = {**row, "limit": limits.get(row["study"]), "val_accuracy": val_text(row)}
        if row["trial"] is None:  # the dense model was not trained here
            shown |= {"own_accuracy": None, "trained": None}
            shown["trial"] = None if row["study"] is None else "the dense model"
        rows.append(shown)
    return cells(rows, _RESULTS)


def val_text(row: Mapping[str, Any]) -> str:
    """Return the validation accuracy of a row, with its error where it is of a pair."""
    if row["trial"] is None:
        return f"{row['val_accuracy']:.2f}"
    return with_error(row["val_accuracy"], row["val_error"])


def cells(
    rows: Sequence[dict[str, Any]], columns: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Headings and text; columns without any value are left out."""
    used = [name for name in columns if any(row.get(name) is not None for row in rows)]
    headings = [_HEADINGS.get(name, name.replace("_", " ")) for name in used]
    return headings, [[cell(row.get(name), _DIGITS.get(name)) for name in used] for row in rows]


def cell(value: Any, digits: int | None = None) -> str:
    """Return a value as text, with so many digits after the point if it is a number."""
    if value is None:
        return "-"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,.{digits}f}" if digits is not None else f"{value:,}"
    return short(value, 200)


def searched_first(group: Sequence[Study]) -> list[Study]:
    """Return studies with those of one fixed ratio last."""
    return sorted(group, key=lambda study: study.user_attrs["settings"]["strategy"] == "fixed")
