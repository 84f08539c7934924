"""All figures of a group of studies."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from optuna.study import Study

from vit_ratio_opt.records.answer import answer_trial
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.report.cells import searched_first
from vit_ratio_opt.report.figures.accuracy import accuracy_figure
from vit_ratio_opt.report.figures.path import path_figure
from vit_ratio_opt.report.figures.widths import widths_figure

__all__ = ["figures"]


def figures(group: Sequence[Study]) -> list[go.Figure]:
    """All figures of studies of one dense model."""
    group = [snapshot(study) for study in group]
    searched = searched_first(group)
    return [
        accuracy_figure(searched),
        *(path_figure(s) for s in searched if s.user_attrs["settings"]["strategy"] != "fixed"),
        widths_figure([study for study in searched if answer_trial(study) is not None]),
    ]
