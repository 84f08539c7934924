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
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.records.trials import block_rows, finished_trials
from vit_ratio_opt.report.cells import (
    cell,
    class_cells,
    frontier_table,
    results_cells,
    row_cells,
    searched_first,
    trial_cells,
)
from vit_ratio_opt.report.commands import repeat_code, resume_command
from vit_ratio_opt.report.figures.gallery import figures_of
from vit_ratio_opt.report.rows import group_studies
from vit_ratio_opt.report.sentences import summary, title
from vit_ratio_opt.report.trial_rows import timing_split
from vit_ratio_opt.utils.text import shorten

__all__ = ["html_page"]

_CURVES = ("rest", "mhsa", "ffn")


def html_page(studies: Sequence[Study], storage: str | None = None) -> str:
    """Return one self-contained page of studies, in HTML.

    The page loads nothing and runs no script but its own two, whose hashes its content security
    policy names. All texts of a study are text in it, never markup.

    Args:
        studies: Studies of one or several dense models.
        storage: URL of their storage, for the command that resumes a study; it is shown without
            passwords.
    """
    studies = [snapshot(study) for study in studies]
    groups = [
        {
            "title": title(group[0]),
            "metric": record_of(group[0]).metric,
            "summaries": [summary(study, group) for study in searched_first(group)],
            "results": results_cells(group),
            "figures": [_embedded(figure) for figure in figures_of(group)],
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
    """Return the sections of one study."""
    record, best, trials = record_of(study), answer_trial(study), trial_cells(study)
    blocks = [] if best is None else block_rows(record.dense, best)
    numbers = [trial.number for trial in study.get_trials(deepcopy=False)]
    return {
        "name": shorten(study.study_name),
        "front": frontier_table(study),
        "trials": trials,
        "best": [] if best is None else [numbers.index(best.number)],
        "blocks": row_cells(blocks, tuple(blocks[0])) if blocks else None,
        "classes": class_cells(study),
        "settings": _settings(study),
        "config": record.config,
        "resume": resume_command(study, storage),
        "again": repeat_code(study, storage, n_trials=max(1, len(finished_trials(study)))),
    }


def _settings(study: Study) -> list[tuple[str, str]]:
    """Return names and values of everything on which the results depend."""
    record = record_of(study)
    latency, settings = record.latency or {}, record.optional_settings
    values: dict[str, Any] = {} if settings is None else settings.to_json()
    values |= {f"bfloat16 speedup in {name}": n for name, n in record.bfloat16_speedup.items()}
    values |= {f"latency {name}": latency[name] for name in latency if name not in _CURVES}
    values |= {} if record.device is None else {"device": record.device}
    values |= record.versions
    split = timing_split(study)
    if split:
        values["time"] = ", ".join(f"{name} {100 * share:.1f} %" for name, share in split.items())
    return [(name, cell(value)) for name, value in values.items()]


def _embedded(figure: go.Figure) -> dict[str, Any]:
    # In a script element only `<` could end it; everything else is JSON.
    text = str(figure.to_json()).replace("<", "\\u003c")
    return {"json": Markup(text), "height": figure.layout.height}


@cache
def _packed_plotly() -> str:
    """Return plotly.js compressed: 1.9 MB of text instead of 4.8 MB."""
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
