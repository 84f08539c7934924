"""Tables of studies and trials for a terminal."""

from __future__ import annotations

from typing import Any

from optuna.study import Study
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.trials import (
    cost_of,
)
from vit_ratio_opt.report.cells import val_text
from vit_ratio_opt.report.rows import (
    trial_rows,
)
from vit_ratio_opt.space.costs import cost_label
from vit_ratio_opt.utils.text import plain, short

__all__ = ["results_table", "trials_table"]


def results_table(report: dict[str, Any]) -> Table:
    """Return the rows of :func:`build_report` for a terminal, narrow enough for 80 columns."""
    priced = any("cost_ratio" in row for row in report["rows"])
    shares = f"FLOPs and {cost_label(report['cost']).word}" if priced else "FLOPs"
    about = f"{short(report['model'])} on {short(report['dataset'])}"
    title = f"{about}, {shares} as a share of dense"
    names = ["", "trial", "MHSA", "FFN", "FLOPs", "params", "val %", "test %", "sec"]
    table = _table(title, *_with_cost(names, "cost", priced, at=5))
    for row in report["rows"]:
        cells = [
            row["name"],
            "dense" if row["trial"] is None and row["study"] is not None else _cell(row["trial"]),
            f"{row['mhsa_ratio']:.3f}",
            f"{row['ffn_ratio']:.3f}",
            _number(row["macs_ratio"], 4),
            "-" if row["params"] is None else f"{row['params']:,}",
            val_text(row),
            _number(row["test_accuracy"], 2),
            f"{row['seconds']:,.0f}",
        ]
        table.add_row(*_with_cost(cells, _number(row.get("cost_ratio"), 4), priced, at=5))
    return table


def trials_table(study: Study) -> Text:
    """Return a table with one line for each trial, in the order of the search."""
    study = snapshot(study)
    cost = cost_of(study)
    priced, word = cost != "macs", cost_label(cost).word
    names = ["trial", "state", "MHSA", "FFN", "FLOPs", "pruned %", "val %", "drop", "sec"]
    rows = trial_rows(study)
    table = [_with_cost(names, word, priced, at=5)]
    for row in rows:
        cells = [
            f"{row['trial']} *" if row["best"] else str(row["trial"]),
            row["state"],
            _number(row["mhsa_ratio"], 3),
            _number(row["ffn_ratio"], 3),
            _number(row["macs_ratio"], 4),
            _number(row["accuracy_pruned"], 2),
            _number(row["accuracy"], 2),
            _number(row["accuracy_drop"], 2),
            _number(row["seconds"], 1),
        ]
        table.append(_with_cost(cells, _number(row["cost_ratio"], 4), priced, at=5))
    # A table of rich takes minutes for some thousand trials.
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        " ".join(
            [cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]  # as numbers are
        )
        for cells in table
    ]
    text = Text(no_wrap=True, overflow="ellipsis", end="")
    text.append(f"study {short(study.study_name)!r} (*: the answer)\n", style="italic")
    text.append(f"{lines[0]}\n", style="bold")
    text.append(f"{'-' * len(lines[0])}\n")
    for line, row in zip(lines[1:], rows, strict=True):
        text.append(f"{line}\n", style="bold" if row["best"] else "")
    return text


def _table(title: str, *columns: str) -> Table:
    look: dict[str, Any] = {"box": SIMPLE, "padding": (0, 1, 0, 0), "show_edge": False}
    table = Table(title=Text(plain(title)), title_justify="left", **look)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _with_cost(cells: list[str], cost: str, priced: bool, at: int = 4) -> list[str]:
    """Cells of a row with that of the cost after the FLOPs, where it is another."""
    return [*cells[:at], cost, *cells[at:]] if priced else cells


def _cell(value: int | None) -> str:
    return "-" if value is None else str(value)


def _number(value: object, digits: int) -> str:
    """Return a number as text, a dash for none, and a word as it is."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else str(value)
