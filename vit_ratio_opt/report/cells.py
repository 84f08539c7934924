"""Cells of tables, as text for Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from optuna.study import Study

from vit_ratio_opt.records.answer import answer_trial
from vit_ratio_opt.records.per_class import class_accuracies
from vit_ratio_opt.records.study import StudyRecord, record_of
from vit_ratio_opt.report.frontier import frontier_rows, pick_rows
from vit_ratio_opt.report.rows import build_report
from vit_ratio_opt.report.trial_rows import TRIAL_COLUMNS, trial_rows
from vit_ratio_opt.space.metric import ACCURACY, Metric
from vit_ratio_opt.utils.text import shorten

__all__ = [
    "Cells",
    "cell",
    "FrontierTable",
    "class_cells",
    "frontier_table",
    "metric_heading",
    "results_cells",
    "row_cells",
    "searched_first",
    "trial_cells",
    "val_text",
]

Cells = tuple[list[str], list[list[str]]]
"""The headings of a table, and the cells of each row."""

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
    "val_accuracy",
    "test_accuracy",
    "trial",
    "own_accuracy",
    "trained",
    "params",
    "trials",
    "seconds",
)
# Headings that differ from the name of the column.
_HEADINGS = {
    "name": "method",
    "mhsa_ratio": "MHSA ratio",
    "ffn_ratio": "FFN ratio",
    "macs_ratio": "FLOPs",
    "cost_ratio": "cost",
    "latency_ms": "predicted ms",
    "measured_ms": "measured ms",
    "parent_trial": "parent",
    "params": "parameters",
}
# Columns of the metric of the study, with the word before its unit or name.
_OF_THE_METRIC = {
    "val_accuracy": "",
    "own_accuracy": "own",
    "accuracy": "",
    "test_accuracy": "test",
    "accuracy_pruned": "pruned",
    "accuracy_drop": "drop",
}
_DIGITS = {
    "mhsa_ratio": 3,
    "ffn_ratio": 3,
    "macs_ratio": 4,
    "cost_ratio": 4,
    "latency_ms": 2,
    "measured_ms": 2,
    "seconds": 1,
}
_FRONTIER = (
    *("cost_ratio", "mhsa_ratio", "ffn_ratio", "val_accuracy", "accuracy_drop", "own_accuracy"),
    *("trained", "trial", "note"),
)
# Columns that a page leaves out: it says the same above the table, or only programs need it.
_LEFT_OUT = ("study", "best", "macs", "device", "checkpoint")
_TRIALS = tuple(name for name in TRIAL_COLUMNS if name not in _LEFT_OUT)


def results_cells(group: Sequence[Study]) -> Cells:
    """Return headings and cells of the rows of studies of one dense model."""
    records = {study.study_name: record_of(study) for study in group}
    metric, rows = next(iter(records.values())).metric, []
    for row in build_report(group)["rows"]:
        limit = None if row["study"] is None else _limit(records[row["study"]])
        shown = {**row, "limit": limit, "val_accuracy": val_text(row, metric)}
        if row["trial"] is None:  # the dense model was not trained here
            shown |= {"own_accuracy": None, "trained": None}
            shown["trial"] = None if row["study"] is None else "the dense model"
        rows.append(shown)
    return row_cells(rows, _RESULTS, metric)


def _limit(record: StudyRecord) -> str:
    return "frontier" if record.has_frontier else record.limit_text


def trial_cells(study: Study) -> Cells:
    """Return headings and cells of the trials of a study."""
    return row_cells(trial_rows(study), _TRIALS, record_of(study).metric)


def class_cells(study: Study) -> Cells | None:
    """Return headings and cells of the classes, most loss first; None before they were counted."""
    rows = [
        [
            row.name,
            cell(row.images),
            cell(row.dense, 1),
            cell(row.pruned, 1),
            f"{row.drop:.1f} ± {row.error:.1f}",
            "fell" if row.has_fallen else "",
        ]
        for row in class_accuracies(study, answer_trial(study))
    ]
    headings = [
        "class",
        "validation images",
        "dense accuracy %",
        "pruned accuracy %",
        "drop",
        "note",
    ]
    return (headings, rows) if rows else None


class FrontierTable(NamedTuple):
    """Table of the pairs of a frontier.

    Args:
        cells: Headings and cells of the pairs.
        knee: Place of the knee among them.
        note: Sentences below the table: what the knee is, and how many more pairs there are.
    """

    cells: Cells
    knee: int
    note: str


def frontier_table(study: Study, *, is_whole: bool = False) -> FrontierTable | None:
    """Return the table of the pairs of a study's frontier; None without a pair.

    Args:
        study: The study.
        is_whole: Whether to show all pairs; by default at most twelve.
    """
    rows, record = frontier_rows(study), record_of(study)
    if not rows:
        return None
    shown = [
        {
            **row,
            "val_accuracy": val_text(row, record.metric),
            "note": "knee" if row["knee"] else "",
        }
        for row in (rows if is_whole else pick_rows(rows))
    ]
    headings, cells = row_cells(shown, _FRONTIER, record.metric)
    headings[0] = record.cost.word
    more = len(rows) - len(shown)
    side = "above" if record.metric.larger_is_better else "below"
    note = f"The knee is the pair that is the furthest {side} the line between both ends."
    if more:
        note += f" {more} more pair{' is' if more == 1 else 's are'} on the frontier."
    knee = [row["knee"] for row in shown].index(True)
    return FrontierTable((headings, cells), knee, note)


def val_text(row: Mapping[str, Any], metric: Metric) -> str | None:
    """Return the metric of a row, with its standard error where that is known."""
    if row["val_accuracy"] is None:
        return None
    if row["trial"] is None:
        return metric.number(row["val_accuracy"])
    return metric.number(row["val_accuracy"], error=row["val_error"])


def row_cells(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], metric: Metric = ACCURACY
) -> Cells:
    """Return headings and cells of rows; columns without any value are left out."""
    used = [name for name in columns if any(row.get(name) is not None for row in rows)]
    headings = []
    for name in used:
        heading = _HEADINGS.get(name, name.replace("_", " "))
        headings.append(metric_heading(name, metric) if name in _OF_THE_METRIC else heading)
    digits = {**_DIGITS, **dict.fromkeys(_OF_THE_METRIC, 2 if metric.unit == "%" else 4)}
    return headings, [[cell(row.get(name), digits.get(name)) for name in used] for row in rows]


def metric_heading(column: str, metric: Metric) -> str:
    """Return the heading of a column of accuracies, or of another metric.

    Args:
        column: Name of the column, such as ``"test_accuracy"``.
        metric: Metric of the study.
    """
    word = _OF_THE_METRIC[column]
    if column == "accuracy_drop":
        return word if metric.larger_is_better else "rise"
    if column in ("test_accuracy", "accuracy_pruned"):
        return f"{word} {metric.short}"
    return f"{word} {metric.heading}".lstrip()


def cell(value: Any, digits: int | None = None) -> str:
    """Return a value as text: a dash for None.

    Args:
        value: The value.
        digits: Digits after the point of a number; all by default.
    """
    if value is None:
        return "-"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # No minus before a zero.
        return f"{round(value, digits) + 0.0:,.{digits}f}" if digits is not None else f"{value:,}"
    return shorten(value, 200)


def searched_first(group: Sequence[Study]) -> list[Study]:
    """Return studies with those of one fixed ratio last."""
    return sorted(group, key=lambda study: record_of(study).is_fixed)
