"""Accuracy against cost: trials, frontier, answer and limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.records.answer import Answer, answer_of
from vit_ratio_opt.records.candidates import Candidate
from vit_ratio_opt.records.labels import MACS, CostRecord
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.records.trial import attribute
from vit_ratio_opt.records.trials import accuracy_of, cost_ratio_of, finished_trials
from vit_ratio_opt.report.figures.style import (
    INK,
    MOST_POINTS,
    as_label,
    colour_of,
    finish_figure,
    thin_trials,
)
from vit_ratio_opt.space.metric import Metric

__all__ = ["accuracy_figure", "shared_cost"]

_CostOf = Callable[[FrozenTrial], float]
_MARKERS = (
    ("", "circle", TrialState.COMPLETE),
    (": over the limit or stopped", "x-thin-open", TrialState.PRUNED),
)


def accuracy_figure(studies: Sequence[Study]) -> go.Figure:
    """Return the accuracy against the cost, for the trials and the answer of each study.

    Trials are at their own values. The answer and the fixed ratio are at the expected accuracy of
    their pairs, with its standard error.

    Args:
        studies: Studies of one dense model; where they differ in the cost, FLOPs are drawn.
    """
    studies = [snapshot(study) for study in studies]
    figure = go.Figure()
    cost, cost_of = shared_cost(studies)
    metric = record_of(studies[0]).metric
    for index, study in enumerate(studies):
        _add_trials(figure, study, cost_of, colour_of(index))
        answer = answer_of(study)
        if answer is not None:
            _add_answer(figure, answer, cost_of, colour_of(index))
    _add_dense_and_limits(figure, studies, cost)
    return finish_figure(
        figure,
        f"{metric.title} against {cost.word} (star: answer, square: fixed ratio, dotted: limit)",
        x=f"{cost.word}, share of the dense model's",
        y=metric.axis,
    )


def shared_cost(studies: Sequence[Study]) -> tuple[CostRecord, Callable[[FrozenTrial], float]]:
    """Return the cost of studies, FLOPs where they differ in it, and a trial's share of it."""
    costs = {record_of(study).cost for study in studies}
    cost = costs.pop() if len(costs) == 1 else MACS

    def cost_of(trial: FrozenTrial) -> float:
        share = attribute(trial, "macs_ratio" if cost.name == "macs" else "cost_ratio")
        return cost_ratio_of(trial) if share is None else float(share)

    return cost, cost_of


def _add_trials(figure: go.Figure, study: Study, cost_of: _CostOf, colour: str) -> None:
    """Add the trials at their own values, and the frontier."""
    unit = f" {record_of(study).metric.unit}".rstrip()
    name = as_label(study.study_name)
    trials = [t for t in finished_trials(study) if accuracy_of(t, study) is not None]
    frontier = _frontier(study, trials, cost_of)
    drawn = thin_trials(trials, frontier)
    for label, symbol, wanted in _MARKERS:
        chosen = [trial for trial in drawn if trial.state == wanted]
        if not chosen:
            continue
        figure.add_scatter(
            x=[cost_of(trial) for trial in chosen],
            y=[accuracy_of(trial, study) for trial in chosen],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 8, "opacity": 0.7},
            name=f"{name}{label}",
            customdata=[trial.number for trial in chosen],
            hovertemplate=f"trial %{{customdata}}<br>%{{y:.2f}}{unit} at %{{x:.4f}}"
            "<extra></extra>",
        )
    figure.add_scatter(
        x=[cost_of(trial) for trial in frontier],
        y=[accuracy_of(trial, study) for trial in frontier],
        mode="lines",
        line={"color": colour, "shape": "hv", "width": 1},
        showlegend=False,
        hoverinfo="skip",
    )


def _add_answer(figure: go.Figure, answer: Answer, cost_of: _CostOf, colour: str) -> None:
    """Add the fixed ratio's pair and the answer's, or the dense model as the answer."""
    for found, symbol, name in (
        (answer.baseline, "square-open", "fixed ratio"),
        (answer.found, "star", "answer"),
    ):
        if found is not None:
            marker = {"color": colour, "symbol": symbol, "size": 15}
            _add_expected(figure, found, cost_of(found.trial), marker, name, answer.metric)
    if answer.found is None and answer.dense_accuracy is not None:
        figure.add_scatter(
            x=[1.0],
            y=[answer.dense_accuracy],
            mode="markers",
            marker={"color": colour, "symbol": "star", "size": 15},
            showlegend=False,
            hovertemplate="answer: the dense model<extra></extra>",
        )


def _add_expected(
    figure: go.Figure,
    found: Candidate,
    cost: float,
    marker: dict[str, object],
    name: str,
    metric: Metric,
) -> None:
    """Add the expected accuracy of a pair, with its standard error."""
    shown = metric.text(found.accuracy, error=found.error)
    figure.add_scatter(
        x=[cost],
        y=[found.accuracy],
        error_y={"type": "data", "array": [found.error], "thickness": 1.5, "width": 5},
        mode="markers",
        marker=marker,
        showlegend=False,
        customdata=[found.trial.number],
        hovertemplate=f"{name}, trial %{{customdata}}<br>{shown} expected at %{{x:.4f}}"
        "<extra></extra>",
    )


def _add_dense_and_limits(figure: go.Figure, studies: Sequence[Study], cost: CostRecord) -> None:
    """Add the dense model, and the limits of studies of the drawn cost."""
    answers = [answer for study in studies if (answer := answer_of(study)) is not None]
    known = [record_of(studies[0]).dense.val_accuracy, *(one.dense_accuracy for one in answers)]
    dense = next((accuracy for accuracy in known if accuracy is not None), None)
    if dense is not None:
        figure.add_scatter(
            x=[1.0],
            y=[dense],
            mode="markers",
            marker={"color": INK, "symbol": "diamond", "size": 10},
            name="dense",
        )
    records = [record_of(study) for study in studies]
    limits = {one.limit for one in records if one.limit is not None and one.cost == cost}
    for limit in sorted(limits, key=str):
        if limit.budget is not None:
            figure.add_vline(limit.budget, line_dash="dot", line_color=INK, line_width=1)
        elif dense is not None and limit.tolerance is not None:
            least = records[0].metric.after_loss(dense, limit.tolerance)
            figure.add_hline(least, line_dash="dot", line_color=INK, line_width=1)


def _frontier(study: Study, trials: Sequence[FrozenTrial], cost_of: _CostOf) -> list[FrozenTrial]:
    """Return the trials that no other one beats at no more cost, by rising cost."""
    sign = 1.0 if record_of(study).metric.larger_is_better else -1.0

    def value(trial: FrozenTrial) -> float:
        accuracy = accuracy_of(trial, study)
        return -np.inf if accuracy is None else sign * accuracy

    frontier: list[FrozenTrial] = []
    highest = -np.inf
    for trial in sorted(trials, key=lambda trial: (cost_of(trial), -value(trial))):
        if value(trial) > highest:
            highest = value(trial)
            frontier.append(trial)
    return frontier[-MOST_POINTS:]
