"""The path of a search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.trials import (
    accuracy_of,
    cost_ratio_of,
    cost_word,
    finished_trials,
    limit_of,
    pair_of,
)
from vit_ratio_opt.report.figures.style import (
    COLOURS,
    INK,
    LOW,
    SHADE,
    as_label,
    finished,
    spread_out,
    thinned,
)
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.plan import Pair
from vit_ratio_opt.space.pairs import RatioPair

__all__ = ["path_figure"]

_MOST_MOMENTS = 60  # at which the search's interval is drawn


def path_figure(study: Study, *, height: int = 680) -> go.Figure:
    """The path of the search in the plane of the two ratios, and how its interval shrinks.

    Above, the trials in their order over lines of equal cost. Below, what was still open after
    each: within a budget the part of its curve that the best pair has to lie in, with a tolerance
    the cost between the largest model that lost too much and the smallest that did not.

    Args:
        study: Its search.
        height: In pixels; a low figure has no room for a legend.
    """
    figure = make_subplots(rows=2, cols=1, row_heights=[0.65, 0.35], vertical_spacing=100 / height)
    _add_equal_cost(figure, study)
    trials = finished_trials(study)
    curve = study.user_attrs.get("plan", {}).get("curve")  # a tolerance has none
    if curve is not None:
        drawn_curve = spread_out(curve, _MOST_MOMENTS)
        figure.add_scatter(
            x=[mhsa_ratio for mhsa_ratio, _ in drawn_curve],
            y=[ffn_ratio for _, ffn_ratio in drawn_curve],
            mode="lines",
            line={"color": COLOURS[1], "width": 2},
            name=as_label(limit_of(study)),
            hoverinfo="skip",
        )
    drawn = thinned(trials, [])
    figure.add_scatter(
        x=[trial.params["mhsa_ratio"] for trial in drawn],
        y=[trial.params["ffn_ratio"] for trial in drawn],
        mode="lines+markers",
        line={"color": INK, "width": 1, "dash": "dot"},
        marker={
            "size": 10,
            "color": [accuracy_of(trial, study) for trial in drawn],
            "colorscale": "Cividis",
            "showscale": bool(drawn),
            "colorbar": {"title": "val %", "thickness": 10, "len": 0.55, "y": 0.72},
            "line": {
                "width": 2,
                "color": [
                    INK if trial.state == TrialState.COMPLETE else COLOURS[1] for trial in drawn
                ],
            },
        },
        customdata=[trial.number for trial in drawn],
        hovertemplate="trial %{customdata}<br>MHSA %{x:.3f}, FFN %{y:.3f}: %{marker.color:.2f} %"
        "<extra></extra>",
        name="trials in their order",
    )
    answer = answer_of(study)
    if answer is not None and answer.baseline is not None:
        figure.add_scatter(
            x=[answer.baseline.pair[0]],
            y=[answer.baseline.pair[1]],
            mode="markers",
            marker={"symbol": "square-open", "size": 15, "color": INK},
            name="fixed ratio",
            hoverinfo="skip",
        )
    if answer is not None:
        pair = (0.0, 0.0) if answer.found is None else answer.found.pair
        figure.add_scatter(
            x=[pair[0]],
            y=[pair[1]],
            mode="markers",
            marker={"symbol": "star-open", "size": 20, "color": COLOURS[1]},
            name="answer",
            hoverinfo="skip",
        )
    if study.user_attrs["settings"]["tolerance"] is None:
        unit = "MHSA ratio"
        values = [trial.params["mhsa_ratio"] for trial in drawn]
        moments, low, high = _brackets(study, trials)
    else:
        unit = f"{cost_word(study)} of dense"
        values = [cost_ratio_of(trial) for trial in drawn]
        moments, low, high = _doubts(trials)
    for bound, fill in ((low, None), (high, "tonexty")):
        figure.add_scatter(
            x=moments,
            y=bound,
            mode="lines",
            line={"width": 1, "shape": "hv", "color": COLOURS[0]},
            fill=fill,
            fillcolor=SHADE,
            showlegend=fill is not None,
            name="still open",
            hoverinfo="skip",
            row=2,
            col=1,
        )
    positions = {trial.number: index + 1 for index, trial in enumerate(trials)}
    figure.add_scatter(
        x=[positions[trial.number] for trial in drawn],
        y=values,
        mode="markers",
        marker={
            "color": [COLOURS[0] if t.state == TrialState.COMPLETE else COLOURS[1] for t in drawn]
        },
        customdata=[trial.number for trial in drawn],
        hovertemplate="trial %{customdata}<br>%{y:.4f}<extra></extra>",
        showlegend=False,
        row=2,
        col=1,
    )
    figure.update_yaxes(title_text="FFN ratio", row=1, col=1)
    figure.update_xaxes(title_text="trained trials", row=2, col=1)
    figure.update_yaxes(title_text=unit, row=2, col=1)
    figure.update_layout(showlegend=height > LOW)
    return finished(figure, "Path of the search", x="MHSA ratio", height=height)


def _add_equal_cost(figure: go.Figure, study: Study) -> None:
    """Lines of equal cost; studies of earlier versions do not say what they need."""
    saved = study.user_attrs.get("saved")
    if saved is None:
        return
    (mhsa, less_mhsa), (ffn, less_ffn) = (
        zip(*saved[name], strict=True) for name in RatioPair._fields
    )
    figure.add_contour(
        x=mhsa,
        y=ffn,
        z=(1 - np.add.outer(less_ffn, less_mhsa)).round(4).tolist(),
        contours={"coloring": "none", "showlabels": True, "start": 0.1, "end": 0.9, "size": 0.1},
        line={"color": INK, "width": 0.5},
        showscale=False,
        hoverinfo="skip",
        name=f"equal {cost_word(study)}",
        showlegend=True,
        row=1,
        col=1,
    )


def _brackets(
    study: Study, trials: Sequence[FrozenTrial]
) -> tuple[list[int], list[float], list[float]]:
    """After how many trials, between which MHSA ratios the best pair was still looked for."""
    plan = study.user_attrs.get("plan")
    if plan is None:
        return [], [], []
    search = BudgetSearch.from_json(plan)
    moments = _moments(len(trials))
    low, high = [], []
    for moment in moments:
        observed: dict[Pair, list[float]] = {}
        for trial in trials[:moment]:
            value = accuracy_of(trial, study)
            if value is not None:
                observed.setdefault(pair_of(trial), []).append(value)
        (first, _), (last, _) = search.bracket(observed)
        low.append(first)
        high.append(last)
    return moments, low, high


def _doubts(trials: Sequence[FrozenTrial]) -> tuple[list[int], list[float], list[float]]:
    """After how many trials, between which shares of the cost the answer was still to be found.

    Above the cheapest trial that kept the tolerance nothing is open; the dearest one below it that
    lost more is no proof against other pairs of its cost, but says where the limit is.
    """
    moments = _moments(len(trials))
    low, high = [], []
    for moment in moments:
        kept, failed = [1.0], [0.0]
        for trial in trials[:moment]:
            side = kept if trial.state == TrialState.COMPLETE else failed
            side.append(cost_ratio_of(trial))
        high.append(min(kept))
        below = (cost_ratio for cost_ratio in failed if cost_ratio < high[-1])
        low.append(max(below, default=0.0))
    return moments, low, high


def _moments(count: int) -> list[int]:
    """0 to ``count``, not all of them where they are many."""
    if count < _MOST_MOMENTS:
        return list(range(count + 1))
    return [0, *sorted({round(m) for m in np.geomspace(1, count, _MOST_MOMENTS)})]
