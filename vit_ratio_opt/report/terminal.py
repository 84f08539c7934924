"""Tables of studies and trials for a terminal."""

from __future__ import annotations

import textwrap
from typing import Any

from optuna.study import Study
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from vit_ratio_opt.records.labels import metric_from_json
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.report.cells import frontier_table, metric_heading, val_text
from vit_ratio_opt.report.trial_rows import trial_rows
from vit_ratio_opt.utils.text import shorten, strip_escapes

__all__ = ["front_table", "results_table", "trials_table"]

_HEADING_WIDTH = 12
_LOOK: dict[str, Any] = {"box": SIMPLE, "padding": (0, 1, 0, 0), "show_edge": False}


def results_table(report: dict[str, Any]) -> Table:
    """Return the rows of ``build_report`` as a table that is narrow enough for 80 columns."""
    rows, metric = report["rows"], metric_from_json(report["metric"])
    has_cost = any("cost_ratio" in row for row in rows)
    shares = f"FLOPs and {report['cost_word']}" if has_cost else "FLOPs"
    about = report["model"] or f"study {', '.join(map(shorten, report['studies']))}"
    about += "" if report["dataset"] is None else f" on {shorten(report['dataset'])}"
    columns: dict[str, list[str]] = {
        "": [row["name"] for row in rows],
        "trial": [_trial(row) for row in rows],
        "MHSA": [_number(row["mhsa_ratio"], 3) for row in rows],
        "FFN": [_number(row["ffn_ratio"], 3) for row in rows],
        "FLOPs": [_number(row["macs_ratio"], 4) for row in rows],
        "cost": [_number(row.get("cost_ratio"), 4) for row in rows] if has_cost else [],
        "params": ["-" if row["params"] is None else f"{row['params']:,}" for row in rows],
        metric.heading: [val_text(row, metric) or "-" for row in rows],
        metric_heading("test_accuracy", metric): [
            "-" if row["test_accuracy"] is None else metric.number(row["test_accuracy"])
            for row in rows
        ],
        "sec": [f"{row['seconds']:,.0f}" for row in rows],
    }
    columns = {name: cells for name, cells in columns.items() if cells}
    heading = f"{strip_escapes(shorten(about, 120))}, {shares} as a share of dense"
    table = Table(title=Text(heading), title_justify="left", **_LOOK)
    for name in columns:
        table.add_column(_wrapped(name), justify="right" if name else "left", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def front_table(study: Study, *, is_whole: bool = False) -> Table | None:
    """Return the pairs of a study's frontier as a table for 80 columns; None without a pair.

    Args:
        study: The study.
        is_whole: Whether to show all pairs; by default at most twelve.
    """
    found = frontier_table(study, is_whole=is_whole)
    if found is None:
        return None
    headings, rows = found.cells
    table = Table(
        title=Text(f"frontier of study {shorten(study.study_name)!r}"),
        title_justify="left",
        caption=Text(found.note),
        caption_justify="left",
        **_LOOK | {"padding": 0},  # nine columns
    )
    for heading in headings:
        name = _wrapped(heading.removesuffix(" ratio"))
        table.add_column(name, justify="left" if heading == "note" else "right", no_wrap=True)
    for place, cells in enumerate(rows):
        table.add_row(*cells, style="bold" if place == found.knee else "")
    return table


def trials_table(study: Study) -> Text:
    """Return a table with one line for each trial, in the order of the search."""
    study = snapshot(study)
    record, rows = record_of(study), trial_rows(study)
    digits = 2 if record.metric.unit == "%" else 4
    optional: dict[str, tuple[str, int]] = {
        "MHSA": ("mhsa_ratio", 3),
        "FFN": ("ffn_ratio", 3),
        "FLOPs": ("macs_ratio", 4),
        record.cost.word: ("macs_ratio" if record.cost.name == "macs" else "cost_ratio", 4),
        **{
            metric_heading(name, record.metric): (name, digits)
            for name in ("accuracy_pruned", "accuracy", "accuracy_drop")
        },
        "sec": ("seconds", 1),
    }
    columns = {
        "trial": [f"{row['trial']} *" if row["best"] else str(row["trial"]) for row in rows],
        "state": [row["state"] for row in rows],
    }
    for heading, (name, places) in optional.items():
        if not rows or any(row[name] is not None for row in rows):
            columns[heading] = [_number(row[name], places) for row in rows]
    # A table of rich takes minutes for some thousand trials.
    headings = [_wrapped(name).split("\n") for name in columns]
    height = max(map(len, headings))
    aligned = [
        _aligned([""] * (height - len(heading)) + heading + cells, to_left=heading == ["trial"])
        for heading, cells in zip(headings, columns.values(), strict=True)
    ]
    lines = [" ".join(cells) for cells in zip(*aligned, strict=True)]
    above, lines = lines[:height], lines[height:]
    text = Text(no_wrap=True, overflow="ellipsis", end="")
    text.append(f"study {shorten(study.study_name)!r} (*: the answer)\n", style="italic")
    text.append("".join(f"{line}\n" for line in above), style="bold")
    text.append(f"{'-' * len(above[0])}\n")
    for line, row in zip(lines, rows, strict=True):
        text.append(f"{line}\n", style="bold" if row["best"] else "")
    return text


def _wrapped(heading: str) -> str:
    """Return a heading on several lines where it is long, as the name of a metric may be."""
    return "\n".join(textwrap.wrap(heading, _HEADING_WIDTH, break_long_words=False))


def _aligned(column: list[str], *, to_left: bool) -> list[str]:
    """Return the cells of a column in one width."""
    width = max(map(len, column))
    return [cell.ljust(width) if to_left else cell.rjust(width) for cell in column]


def _trial(row: dict[str, Any]) -> str:
    """Return the number of the trial in a row; an answer without trial is the dense model."""
    if row["trial"] is not None:
        return str(row["trial"])
    return "-" if row["study"] is None else "dense"


def _number(value: object, digits: int) -> str:
    """Return a number as text, a dash for None, and a word as it is."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else str(value)
