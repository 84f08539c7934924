"""What all figures share."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import plotly.graph_objects as go
from optuna.study import Study
from optuna.trial import FrozenTrial

from vit_ratio_opt.utils.text import short

__all__ = [
    "CLEAR",
    "COLOURS",
    "GRID",
    "INK",
    "LOW",
    "MOST_POINTS",
    "SHADE",
    "as_label",
    "colours",
    "finished",
    "spread_out",
    "thinned",
]

# Okabe and Ito's, which the colour-blind tell apart; the greys are legible on white and on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
INK, GRID, CLEAR = "#808080", "rgba(128,128,128,0.25)", "rgba(0,0,0,0)"
SHADE = "rgba(0,114,178,0.15)"
LOW = 500  # pixels
MOST_POINTS = 200  # of one trace
_T = TypeVar("_T")


def thinned(trials: Sequence[FrozenTrial], needed: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """At most some hundred of the trials, evenly over the search, those needed among them."""
    kept = {trial.number for trial in [*needed, *spread_out(trials, MOST_POINTS)]}
    return [trial for trial in trials if trial.number in kept]


def spread_out(values: Sequence[_T], most: int) -> list[_T]:
    """At most so many of the values, evenly, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i)] for i in np.linspace(0, len(values) - 1, most)]


def colours(studies: Sequence[Study]) -> list[str]:
    """Return a colour for each study."""
    return [COLOURS[index % len(COLOURS)] for index in range(len(studies))]


def as_label(name: object) -> str:
    """Plotly takes some tags in text as markup; a user's name is none."""
    return html.escape(short(name, 40), quote=False)


def finished(
    figure: go.Figure, title: str, *, x: str = "", y: str = "", height: int = 440
) -> go.Figure:
    """The look that all figures share, legible on light and on dark pages."""
    top, bottom = 45, 60 if figure.layout.showlegend is False else 110
    figure.update_layout(
        template="none",
        title={"text": title, "x": 0, "xanchor": "left", "font_size": 16},
        font={"color": INK, "family": "system-ui, sans-serif"},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        legend={"orientation": "h", "y": -65 / (height - top - bottom), "yanchor": "top"},
        margin={"l": 55, "r": 15, "t": top, "b": bottom},
        height=height,
    )
    figure.update_xaxes(gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID)
    figure.update_yaxes(gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID)
    if x:
        figure.layout.xaxis.title.text = x
    if y:
        figure.layout.yaxis.title.text = y
    return figure
