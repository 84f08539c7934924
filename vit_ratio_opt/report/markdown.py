"""Studies as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.study import Study

from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.report.cells import TRIALS, cells, results_cells, searched_first
from vit_ratio_opt.report.rows import (
    group_studies,
    trial_rows,
)
from vit_ratio_opt.report.sentences import summary
from vit_ratio_opt.utils.text import escape_markdown, short

__all__ = ["code", "code_block", "markdown_page", "markdown_table"]


def markdown_page(studies: Sequence[Study], *, trials: bool = True) -> str:
    """Sentences and tables, as GitHub reads them.

    Args:
        studies: Of one or of several dense models.
        trials: Whether the trials are listed, too.
    """
    parts = []
    for group in group_studies([snapshot(study) for study in studies]):
        settings, searched = group[0].user_attrs["settings"], searched_first(group)
        parts.append(f"## {code(settings['model'])} on {code(settings['dataset'])}\n")
        for study in searched:
            looked_for, answer, *others = map(escape_markdown, summary(study, group))
            parts.append(" ".join([looked_for, f"**{answer}**", *others]) + "\n")
        parts.append(markdown_table(*results_cells(group)))
        for study in searched if trials else ():
            parts.append(f"### Trials of {code(study.study_name)}\n")
            parts.append(markdown_table(*cells(trial_rows(study), TRIALS)))
    return "\n".join(parts)


def code(text: object) -> str:
    """A user's text as Markdown code, in which nothing has a meaning."""
    line = short(text).replace("|", "\\|")
    fence = "`"
    while fence in line:
        fence += "`"
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}"


def markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    """A table as GitHub and the dashboard read it; cells are text."""
    lines = [
        headings,
        ["---"] * len(headings),
        *([escape_markdown(cell) for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def code_block(text: str) -> str:
    """A block that the text cannot leave."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{short(text, 1000)}\n{fence}"
