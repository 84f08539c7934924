"""Colours, labels and layout that all figures share. A figure has a bounded number of points."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from vit_ratio_opt.utils.text import shorten

__all__ = [
    "COLOURS",
    "INK",
    "LOW",
    "MOST_POINTS",
    "SHADE",
    "as_label",
    "colour_of",
    "finish_figure",
    "pick_evenly",
    "shade_of",
    "thin_trials",
]

# Okabe and Ito's, which the colour-blind tell apart; the greys are legible on white and on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
INK, SHADE = "#808080", "rgba(0,114,178,0.15)"
MOST_POINTS = 200  # of one trace
LOW = 500  # pixels of height, below which a figure has little room for a legend
_GRID, _CLEAR = "rgba(128,128,128,0.25)", "rgba(0,0,0,0)"

_T = TypeVar("_T")


def thin_trials(trials: Sequence[FrozenTrial], needed: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return at most some hundred of the trials, evenly over the search, with those needed."""
    kept = {trial.number for trial in [*needed, *pick_evenly(trials, MOST_POINTS)]}
    return [trial for trial in trials if trial.number in kept]


def pick_evenly(values: Sequence[_T], most: int) -> list[_T]:
    """Return at most ``most`` of the values, evenly, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(i)] for i in np.linspace(0, len(values) - 1, most)]


def colour_of(index: int) -> str:
    """Return the colour of the n-th study."""
    return COLOURS[index % len(COLOURS)]


def shade_of(colour: str) -> str:
    """Return a colour such as ``#0072B2`` as the shade of an area."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.25)"


def as_label(name: object) -> str:
    """Return a user's text as a label: plotly would take some tags in it as markup."""
    return html.escape(shorten(name, 40), quote=False)


def finish_figure(
    figure: go.Figure, title: str, *, x: str = "", y: str = "", height: int = 440
) -> go.Figure:
    """Return the figure with the look that all figures share, legible on light and dark pages.

    Args:
        figure: The figure, which is changed.
        title: Its title.
        x: Title of the first horizontal axis.
        y: Title of the first vertical axis.
        height: Height in pixels.
    """
    top, bottom = 45, 60 if figure.layout.showlegend is False else 110
    figure.update_layout(
        template="none",
        title={"text": title, "x": 0, "xanchor": "left", "font_size": 16},
        font={"color": INK, "family": "system-ui, sans-serif"},
        paper_bgcolor=_CLEAR,
        plot_bgcolor=_CLEAR,
        legend={"orientation": "h", "y": -65 / (height - top - bottom), "yanchor": "top"},
        margin={"l": 55, "r": 15, "t": top, "b": bottom},
        height=height,
    )
    figure.update_xaxes(gridcolor=_GRID, zerolinecolor=_GRID, linecolor=_GRID)
    figure.update_yaxes(gridcolor=_GRID, zerolinecolor=_GRID, linecolor=_GRID)
    if x:
        figure.layout.xaxis.title.text = x
    if y:
        figure.layout.yaxis.title.text = y
    return figure
