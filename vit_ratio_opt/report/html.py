"""Studies as one HTML page that works without a network."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Sequence
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
from vit_ratio_opt.records.trials import (
    block_rows,
)
from vit_ratio_opt.report.cells import TRIALS, cell, cells, results_cells, searched_first
from vit_ratio_opt.report.commands import (
    repeat_code,
    resume_command,
)
from vit_ratio_opt.report.figures.gallery import figures
from vit_ratio_opt.report.rows import (
    group_studies,
    timing_split,
    trial_rows,
)
from vit_ratio_opt.report.sentences import summary
from vit_ratio_opt.utils.text import short

__all__ = ["html_page"]

_CURVES = ("rest", "mhsa", "ffn")


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
            "summaries": [summary(study, group) for study in searched_first(group)],
            "results": results_cells(group),
            "figures": [_embedded(figure) for figure in figures(group)],
            "studies": [_study_parts(study, storage) for study in searched_first(group)],
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
        "trials": cells(rows, TRIALS),
        "best": [index for index, row in enumerate(rows) if row["best"]],
        "blocks": cells(blocks, tuple(blocks[0])) if blocks else None,
        "settings": [(name, cell(value)) for name, value in settings.items()],
        "resume": resume_command(study, storage),
        "again": repeat_code(study, storage, rows),
    }


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
