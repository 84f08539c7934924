"""A study as one page that works without a network: HTML with figures, or Markdown."""

from __future__ import annotations

import base64
import gzip
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from optuna.study import Study
from plotly.offline import get_plotlyjs

from vit_ratio_opt.records.answer import answer_trial
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.trials import block_rows, limit_of
from vit_ratio_opt.report.figures import accuracy_figure, path_figure, widths_figure
from vit_ratio_opt.report.tables import (
    TRIAL_COLUMNS,
    build_report,
    group_studies,
    summary,
    timing_split,
    trial_rows,
    val_text,
)
from vit_ratio_opt.utils.redact import redact
from vit_ratio_opt.utils.text import escape_markdown, short

__all__ = [
    "code",
    "escape_markdown",
    "figures",
    "html_page",
    "markdown",
    "markdown_table",
    "results_cells",
    "resume_command",
]

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
_CURVES = ("rest", "mhsa", "ffn")
_TRIALS = tuple(name for name in TRIAL_COLUMNS if name not in _LEFT_OUT)


def html_page(studies: Sequence[Study], storage: str | None = None) -> str:
    """One self-contained page of studies, of one or of several dense models.

    It loads nothing, runs no script but its own two (its content security policy names their
    hashes), and what studies say is text in it, whatever that is.

    Args:
        studies: What it shows.
        storage: Its URL, for the command that goes on with a study; passwords are left out.
    """
    studies = [snapshot(study) for study in studies]
    groups = [
        {
            "title": f"{short(group[0].user_attrs['settings']['model'])} on "
            f"{short(group[0].user_attrs['settings']['dataset'])}",
            "summaries": [summary(study, group) for study in _searched_first(group)],
            "results": results_cells(group),
            "figures": [_embedded(figure) for figure in figures(group)],
            "studies": [_study_parts(study, storage) for study in _searched_first(group)],
        }
        for group in group_studies(studies)
    ]
    loader = _template("report.js")
    allowed = " ".join(f"'sha256-{_sha256(script)}'" for script in (loader, get_plotlyjs()))
    environment = _environment()
    return environment.get_template("report.html").render(
        groups=groups,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        scripts=allowed,
        loader=Markup(loader),  # its own file; everything else is escaped
        plotly=_packed_plotly(),
        style=Markup(_template("report.css")),
    )


def markdown(studies: Sequence[Study], *, trials: bool = True) -> str:
    """Sentences and tables, as GitHub reads them.

    Args:
        studies: Of one or of several dense models.
        trials: Whether the trials are listed, too.
    """
    parts = []
    for group in group_studies([snapshot(study) for study in studies]):
        settings, searched = group[0].user_attrs["settings"], _searched_first(group)
        parts.append(f"## {code(settings['model'])} on {code(settings['dataset'])}\n")
        for study in searched:
            looked_for, answer, *others = map(escape_markdown, summary(study, group))
            parts.append(" ".join([looked_for, f"**{answer}**", *others]) + "\n")
        parts.append(markdown_table(*results_cells(group)))
        for study in searched if trials else ():
            parts.append(f"### Trials of {code(study.study_name)}\n")
            parts.append(markdown_table(*_cells(trial_rows(study), _TRIALS)))
    return "\n".join(parts)


def figures(group: Sequence[Study]) -> list[go.Figure]:
    """All figures of studies of one dense model."""
    group = [snapshot(study) for study in group]
    searched = _searched_first(group)
    return [
        accuracy_figure(searched),
        *(path_figure(s) for s in searched if s.user_attrs["settings"]["strategy"] != "fixed"),
        widths_figure([study for study in searched if answer_trial(study) is not None]),
    ]


def resume_command(study: Study, storage: str | None) -> str:
    """What goes on with the study, on any machine that reaches its storage."""
    url = "URL" if storage is None else redact(storage)
    options = ["--storage", shlex.quote(url), "--study-name", _quoted(study.study_name)]
    return " ".join(["vit-ratio-opt", "worker", *options])


def _quoted(text: str) -> str:
    """Return a text for a shell; one that would act on a terminal by its codes."""
    if text.isprintable():
        return shlex.quote(text)
    codes = text.encode("unicode_escape", errors="replace").decode().replace("'", "\\'")
    return f"$'{codes}'"


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
    return _cells(rows, _RESULTS)


def _searched_first(group: Sequence[Study]) -> list[Study]:
    return sorted(group, key=lambda study: study.user_attrs["settings"]["strategy"] == "fixed")


def _study_parts(study: Study, storage: str | None) -> dict[str, Any]:
    attributes = study.user_attrs
    best, rows = answer_trial(study), trial_rows(study)
    blocks = [] if best is None else block_rows(attributes["dense"], best)
    latency = attributes.get("latency", {})
    settings = {
        **attributes["settings"],
        **{f"latency {name}": latency[name] for name in latency if name not in _CURVES},
        "device": attributes["device"],
        **attributes["versions"],
    }
    split = timing_split(study)
    if split:
        settings["time"] = ", ".join(
            f"{name} {100 * share:.1f} %" for name, share in split.items()
        )
    return {
        "name": short(study.study_name),
        "trials": _cells(rows, _TRIALS),
        "best": [index for index, row in enumerate(rows) if row["best"]],
        "blocks": _cells(blocks, tuple(blocks[0])) if blocks else None,
        "settings": [(name, _cell(value)) for name, value in settings.items()],
        "resume": resume_command(study, storage),
        "again": _again(study, storage, rows),
    }


def _again(study: Study, storage: str | None, rows: Sequence[Mapping[str, Any]]) -> str:
    """Python that repeats the study from its beginning."""
    url = "URL" if storage is None else redact(storage)
    done = sum(row["state"] in ("COMPLETE", "PRUNED") for row in rows)
    return (
        "from vit_ratio_opt import create_study, load_objective, run_study\n\n"
        f"objective = load_objective({study.study_name!r}, {url!r})\n"
        'study = create_study(objective, study_name="again", storage="sqlite:///again.db")\n'
        f"run_study(study, objective, n_trials={max(1, done)})\n"
    )


def _cells(
    rows: Sequence[dict[str, Any]], columns: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Headings and text; columns without any value are left out."""
    used = [name for name in columns if any(row.get(name) is not None for row in rows)]
    headings = [_HEADINGS.get(name, name.replace("_", " ")) for name in used]
    return headings, [[_cell(row.get(name), _DIGITS.get(name)) for name in used] for row in rows]


def _cell(value: Any, digits: int | None = None) -> str:
    if value is None:
        return "-"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,.{digits}f}" if digits is not None else f"{value:,}"
    return short(value, 200)


def _embedded(figure: go.Figure) -> dict[str, Any]:
    # In a script element only `<` could end it; everything else is JSON.
    text = str(figure.to_json()).replace("<", "\\u003c")
    return {"json": Markup(text), "height": figure.layout.height}


@cache
def _packed_plotly() -> str:
    """plotly.js, which is 4.8 MB, as 1.9 MB of text."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("vit_ratio_opt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template(name: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, name)
    return source
