"""Studies as Markdown, for GitHub, notebooks and optuna-dashboard."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.study import Study

from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.report.cells import (
    Cells,
    class_cells,
    frontier_table,
    results_cells,
    searched_first,
    trial_cells,
)
from vit_ratio_opt.report.rows import group_studies
from vit_ratio_opt.report.sentences import summary
from vit_ratio_opt.utils.text import escape_markdown, shorten

__all__ = ["code", "code_block", "markdown_page", "markdown_table"]


def markdown_page(studies: Sequence[Study], *, trials: bool = True) -> str:
    """Return sentences and tables in Markdown.

    Args:
        studies: Studies of one or several dense models.
        trials: Whether the trials are listed, too.
    """
    parts = []
    for group in group_studies([snapshot(study) for study in studies]):
        searched = searched_first(group)
        parts.append(f"## {_title(group[0])}\n")
        for study in searched:
            aim, answer, *others = map(escape_markdown, summary(study, group))
            parts.append(" ".join([aim, f"**{answer}**", *others]) + "\n")
        parts.append(markdown_table(results_cells(group)))
        for study in searched:
            front = frontier_table(study)
            if front is not None:
                parts.append(f"### Frontier of {code(study.study_name)}\n")
                parts += [markdown_table(front.cells), f"{front.note}\n"]
        for study in searched if trials else ():
            parts.append(f"### Trials of {code(study.study_name)}\n")
            parts.append(markdown_table(trial_cells(study)))
            classes = class_cells(study)
            if classes is not None:
                parts.append(f"### Classes of {code(study.study_name)}\n")
                parts.append(markdown_table(classes))
    return "\n".join(parts)


def _title(study: Study) -> str:
    record = record_of(study)
    if record.model is None:
        return f"Study {code(record.name)}"
    return code(record.model) + ("" if record.dataset is None else f" on {code(record.dataset)}")


def code(text: object) -> str:
    """Return a user's text as Markdown code, in which no character has a meaning."""
    line = shorten(text).replace("|", "\\|")
    fence = "`"
    while fence in line:
        fence += "`"
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}"


def markdown_table(table: Cells) -> str:
    """Return a table in Markdown; cells are text, in which no character has a meaning."""
    headings, rows = table
    lines = [
        headings,
        ["---"] * len(headings),
        *([escape_markdown(cell) for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def code_block(text: str) -> str:
    """Return a block of code that the text cannot close."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{shorten(text, 1000)}\n{fence}"
