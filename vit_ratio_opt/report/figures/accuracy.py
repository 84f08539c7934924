"""Accuracy against cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.records.answer import Candidate, answer_of
from vit_ratio_opt.records.trials import (
    accuracy_of,
    attribute,
    cost_of,
    cost_ratio_of,
    finished_trials,
)
from vit_ratio_opt.report.figures.style import (
    INK,
    MOST_POINTS,
    as_label,
    colours,
    finished,
    thinned,
)
from vit_ratio_opt.space.costs import cost_label

__all__ = ["accuracy_figure"]


def accuracy_figure(studies: Sequence[Study]) -> go.Figure:
    """Return validation accuracy against cost: trials, frontier, answer and limit of each study.

    Trials are at their own values; the answer and the fixed ratio are at the accuracy that is
    expected of their pairs, with its standard error.

    Args:
        studies: Of one dense model; where they differ in the cost, FLOPs are drawn.
    """
    figure = go.Figure()
    costs = {cost_of(study) for study in studies}
    drawn_cost = costs.pop() if len(costs) == 1 else "macs"
    word = cost_label(drawn_cost).word

    def cost(trial: FrozenTrial) -> float:
        share = attribute(trial, "macs_ratio" if drawn_cost == "macs" else "cost_ratio")
        return cost_ratio_of(trial) if share is None else float(share)

    dense = studies[0].user_attrs["dense"]
    for colour, study in zip(colours(studies), studies, strict=True):
        name = as_label(study.study_name)
        trials = [t for t in finished_trials(study) if accuracy_of(t, study) is not None]
        frontier = _frontier(study, trials, cost)
        drawn = thinned(trials, frontier)
        for label, symbol, wanted in (
            ("", "circle", TrialState.COMPLETE),
            (": over the limit or stopped", "x-thin-open", TrialState.PRUNED),
        ):
            chosen = [trial for trial in drawn if trial.state == wanted]
            if not chosen:
                continue
            figure.add_scatter(
                x=[cost(trial) for trial in chosen],
                y=[accuracy_of(trial, study) for trial in chosen],
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 8, "opacity": 0.7},
                name=f"{name}{label}",
                customdata=[trial.number for trial in chosen],
                hovertemplate="trial %{customdata}<br>%{y:.2f} % at %{x:.4f}<extra></extra>",
            )
        figure.add_scatter(
            x=[cost(trial) for trial in frontier],
            y=[accuracy_of(trial, study) for trial in frontier],
            mode="lines",
            line={"color": colour, "shape": "hv", "width": 1},
            showlegend=False,
            hoverinfo="skip",
        )
        answer = answer_of(study)
        if answer is None:
            continue
        if answer.baseline is not None:
            _add_expected(
                figure, answer.baseline, cost(answer.baseline.trial), colour, "square-open",
                "fixed ratio",
            )  # fmt: skip
        if answer.found is not None:
            _add_expected(figure, answer.found, cost(answer.found.trial), colour, "star", "answer")
        else:
            figure.add_scatter(
                x=[1.0],
                y=[answer.dense_accuracy],
                mode="markers",
                marker={"color": colour, "symbol": "star", "size": 15},
                showlegend=False,
                hovertemplate="answer: the dense model<extra></extra>",
            )
    figure.add_scatter(
        x=[1.0],
        y=[dense["val_accuracy"]],
        mode="markers",
        marker={"color": INK, "symbol": "diamond", "size": 10},
        name="dense",
    )
    settings = [study.user_attrs["settings"] for study in studies if cost_of(study) == drawn_cost]
    limits = {(one["budget"], one["tolerance"]) for one in settings}
    for budget, tolerance in sorted(limits, key=str):
        if tolerance is None:
            figure.add_vline(budget, line_dash="dot", line_color=INK, line_width=1)
        else:
            least = dense["val_accuracy"] - tolerance
            figure.add_hline(least, line_dash="dot", line_color=INK, line_width=1)
    return finished(
        figure,
        f"Accuracy against {word} (star: answer, square: fixed ratio, dotted: limit)",
        x=f"{word}, share of the dense model's",
        y="validation accuracy, %",
    )


def _add_expected(
    figure: go.Figure, found: Candidate, cost: float, colour: str, symbol: str, name: str
) -> None:
    """Add the accuracy that is expected of a pair, with its standard error."""
    figure.add_scatter(
        x=[cost],
        y=[found.accuracy],
        error_y={"type": "data", "array": [found.error], "thickness": 1.5, "width": 5},
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 15},
        showlegend=False,
        customdata=[found.trial.number],
        hovertemplate=f"{name}, trial %{{customdata}}<br>%{{y:.2f}} ± {found.error:.2f} % "
        "expected at %{x:.4f}<extra></extra>",
    )


def _frontier(
    study: Study, trials: Sequence[FrozenTrial], cost: Callable[[FrozenTrial], float]
) -> list[FrozenTrial]:
    """Trials that no other one beats in accuracy at no more cost, by rising cost."""
    frontier: list[FrozenTrial] = []
    highest = -np.inf
    for trial in sorted(trials, key=lambda t: (cost(t), -_value(t, study))):
        if _value(trial, study) > highest:
            highest = _value(trial, study)
            frontier.append(trial)
    return frontier[-MOST_POINTS:]


def _value(trial: FrozenTrial, study: Study) -> float:
    accuracy = accuracy_of(trial, study)
    return -np.inf if accuracy is None else accuracy
