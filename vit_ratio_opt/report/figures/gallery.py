"""All figures of a group of studies."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from optuna.study import Study

from vit_ratio_opt.records.answer import answer_trial
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.report.cells import searched_first
from vit_ratio_opt.report.figures.accuracy import accuracy_figure
from vit_ratio_opt.report.figures.frontier import frontier_figure
from vit_ratio_opt.report.figures.path import path_figure
from vit_ratio_opt.report.figures.widths import widths_figure

__all__ = ["figures_of"]


def figures_of(group: Sequence[Study]) -> list[go.Figure]:
    """Return all figures of studies of one dense model."""
    searched = searched_first([snapshot(study) for study in group])
    fronts = [study for study in searched if record_of(study).has_frontier]
    others = [study for study in searched if not record_of(study).has_frontier]
    figures = [
        *([frontier_figure(fronts)] if fronts else []),
        *([accuracy_figure(others)] if others else []),
        *(path_figure(study) for study in searched if not record_of(study).is_fixed),
        widths_figure([study for study in searched if answer_trial(study) is not None]),
    ]
    return [figure for figure in figures if figure.data]
