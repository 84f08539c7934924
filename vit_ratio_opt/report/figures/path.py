"""The path of a search in the plane of the two ratios, and how its interval shrinks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.records.trials import (
    accuracy_of,
    cost_ratio_of,
    finished_trials,
    has_tolerance,
    pair_of,
)
from vit_ratio_opt.report.figures.style import (
    COLOURS,
    INK,
    LOW,
    SHADE,
    as_label,
    finish_figure,
    pick_evenly,
    thin_trials,
)
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.plan import Pair
from vit_ratio_opt.space.pairs import RatioPair

__all__ = ["path_figure"]

_MOST_MOMENTS = 60  # at which the interval is drawn

_Interval = tuple[list[int], list[float], list[float]]


def path_figure(study: Study, *, height: int = 680) -> go.Figure:
    """Return the path of a search, and below it the interval that was still open, or the costs.

    The upper half shows the trials in their order over lines of equal cost. The lower half shows
    the open interval after each trial: within a budget the part of the budget curve that has the
    best pair, with a tolerance the costs between the largest model that lost too much and the
    smallest that did not. A frontier has no such interval, but the costs of the trials.

    Args:
        study: The study.
        height: Height in pixels; a low figure has no legend.
    """
    study = snapshot(study)
    figure = make_subplots(rows=2, cols=1, row_heights=[0.65, 0.35], vertical_spacing=100 / height)
    trials = finished_trials(study)
    drawn = thin_trials(trials, [])
    _add_equal_cost(figure, study)
    _add_curve(figure, study)
    _add_path(figure, study, drawn)
    _add_answer(figure, study)
    _add_interval(figure, study, trials, drawn)
    figure.update_yaxes(title_text="FFN ratio", row=1, col=1)
    figure.update_xaxes(title_text="trained trials", row=2, col=1)
    figure.update_layout(showlegend=height > LOW)
    title = "Pairs of the search" if record_of(study).has_frontier else "Path of the search"
    return finish_figure(figure, title, x="MHSA ratio", height=height)


def _add_equal_cost(figure: go.Figure, study: Study) -> None:
    """Add lines of equal cost, where the study stores the costs of its pairs."""
    record = record_of(study)
    if record.saved is None:
        return
    saved = record.saved
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
        name=f"equal {record.cost.word}",
        showlegend=True,
        row=1,
        col=1,
    )


def _add_curve(figure: go.Figure, study: Study) -> None:
    """Add the pairs that use up the budget, or those of the frontier; a tolerance has none."""
    record = record_of(study)
    curve = (record.plan or {}).get("curve")
    if record.has_frontier:
        answer = answer_of(study)
        curve = [] if answer is None else [one.pair for one in answer.front]
    if not curve:
        return
    drawn = pick_evenly(curve, _MOST_MOMENTS)
    figure.add_scatter(
        x=[mhsa_ratio for mhsa_ratio, _ in drawn],
        y=[ffn_ratio for _, ffn_ratio in drawn],
        mode="lines",
        line={"color": COLOURS[1], "width": 2},
        name="frontier" if record.has_frontier else as_label(record.limit_text),
        hoverinfo="skip",
    )


def _add_path(figure: go.Figure, study: Study, drawn: Sequence[FrozenTrial]) -> None:
    """Add the trials in their order, coloured by accuracy, with a rim by their state.

    Those of a frontier jump from cost to cost, so no line connects them.
    """
    metric, is_connected = record_of(study).metric, not record_of(study).has_frontier
    accuracies = [accuracy_of(trial, study) for trial in drawn]
    is_known = any(accuracy is not None for accuracy in accuracies)
    shown = f": %{{marker.color:.2f}} {metric.unit}".rstrip() if is_known else ""
    figure.add_scatter(
        x=[trial.params["mhsa_ratio"] for trial in drawn],
        y=[trial.params["ffn_ratio"] for trial in drawn],
        mode="lines+markers" if is_connected else "markers",
        line={"color": INK, "width": 1, "dash": "dot"},
        marker={
            "size": 10,
            "color": [math.nan if a is None else a for a in accuracies] if is_known else INK,
            "colorscale": "Cividis",
            "showscale": is_known,
            "colorbar": {"title": metric.heading, "thickness": 10, "len": 0.55, "y": 0.72},
            "line": {"width": 2, "color": [_colour(trial, INK) for trial in drawn]},
        },
        customdata=[trial.number for trial in drawn],
        hovertemplate=f"trial %{{customdata}}<br>MHSA %{{x:.3f}}, FFN %{{y:.3f}}{shown}"
        "<extra></extra>",
        name="trials in their order" if is_connected else "trials",
    )


def _add_answer(figure: go.Figure, study: Study) -> None:
    """Add marks at the pair of the fixed ratio and at the answer's."""
    answer = answer_of(study)
    if answer is None:
        return
    marks = []
    if answer.baseline is not None:
        square = {"symbol": "square-open", "size": 15, "color": INK}
        marks.append((answer.baseline.pair, square, "fixed ratio"))
    star = {"symbol": "star-open", "size": 20, "color": COLOURS[1]}
    marks.append(((0.0, 0.0) if answer.found is None else answer.found.pair, star, "answer"))
    for pair, marker, name in marks:
        figure.add_scatter(
            x=[pair[0]], y=[pair[1]], mode="markers", marker=marker, name=name, hoverinfo="skip"
        )


def _add_interval(
    figure: go.Figure, study: Study, trials: Sequence[FrozenTrial], drawn: Sequence[FrozenTrial]
) -> None:
    """Add the open interval after each trial, and the trials, to the lower half."""
    record = record_of(study)
    if has_tolerance(study) or record.has_frontier:
        unit = f"{record.cost.word} of dense"
        values = [cost_ratio_of(trial) for trial in drawn]
        moments, low, high = ([], [], []) if record.has_frontier else _open_costs(trials)
    else:
        unit = "MHSA ratio"
        values = [trial.params["mhsa_ratio"] for trial in drawn]
        moments, low, high = _open_ratios(study, trials)
    for bound, fill in ((low, None), (high, "tonexty")) if moments else ():
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
        marker={"color": [_colour(trial, COLOURS[0]) for trial in drawn]},
        customdata=[trial.number for trial in drawn],
        hovertemplate="trial %{customdata}<br>%{y:.4f}<extra></extra>",
        showlegend=False,
        row=2,
        col=1,
    )
    figure.update_yaxes(title_text=unit, row=2, col=1)


def _open_ratios(study: Study, trials: Sequence[FrozenTrial]) -> _Interval:
    """Return numbers of trials, and after each the MHSA ratios on either side of the best pair."""
    record = record_of(study)
    if (record.plan or {}).get("curve") is None:
        return [], [], []
    assert record.plan is not None
    search = BudgetSearch.from_json(record.plan)
    sign = 1.0 if record.metric.larger_is_better else -1.0
    moments = _moments(len(trials))
    low, high = [], []
    for moment in moments:
        observed: dict[Pair, list[float]] = {}
        for trial in trials[:moment]:
            value = accuracy_of(trial, study)
            if value is not None:
                observed.setdefault(pair_of(trial), []).append(sign * value)
        (first, _), (last, _) = search.bracket(observed)
        low.append(first)
        high.append(last)
    return moments, low, high


def _open_costs(trials: Sequence[FrozenTrial]) -> _Interval:
    """Return numbers of trials, and after each the cost shares on either side of the answer.

    Nothing is open above the cheapest trial that kept the tolerance. The most expensive one below
    it that lost more proves nothing about other pairs of its cost, but shows where the limit is.
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
    """Return numbers of trials from 0 to ``count``, not all of them where they are many."""
    if count < _MOST_MOMENTS:
        return list(range(count + 1))
    return [0, *sorted({round(m) for m in np.geomspace(1, count, _MOST_MOMENTS)})]


def _colour(trial: FrozenTrial, complete: str) -> str:
    return complete if trial.state == TrialState.COMPLETE else COLOURS[1]
