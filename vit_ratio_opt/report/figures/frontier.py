"""The frontier of metric and cost, and which module pays along it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import plotly.graph_objects as go
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

from vit_ratio_opt.records.answer import Answer, answer_of
from vit_ratio_opt.records.candidates import Candidate, Expected
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.study import StudyRecord, record_of
from vit_ratio_opt.records.trials import accuracy_of, finished_trials
from vit_ratio_opt.report.figures.accuracy import shared_cost
from vit_ratio_opt.report.figures.style import (
    COLOURS,
    INK,
    LOW,
    as_label,
    colour_of,
    finish_figure,
    pick_evenly,
    shade_of,
    thin_trials,
)
from vit_ratio_opt.space.metric import Metric

__all__ = ["frontier_figure"]

_MOST_PAIRS = 60  # of a frontier that are drawn
_MODULES = (("MHSA ratio", COLOURS[3]), ("FFN ratio", COLOURS[4]))

_CostOf = Callable[[Candidate], float]


def frontier_figure(studies: Sequence[Study], *, height: int = 640) -> go.Figure:
    """Return the frontiers of studies, and below them the two ratios along the first one.

    The upper half shows the metric that is expected of the pairs on the frontier, a band of one
    standard error on either side, also between the pairs, and all trials at their own values. The
    lower half shows how much of either module the pairs remove.

    Args:
        studies: Studies of one dense model that search the frontier, those of both ratios first;
            where they differ in the cost, FLOPs are drawn.
        height: Height in pixels; the legend of a low figure has only the ratios.
    """
    studies = [snapshot(study) for study in studies]
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.62, 0.38], vertical_spacing=30 / height
    )
    cost, trial_cost = shared_cost(studies)
    answers = [answer_of(study) for study in studies]

    def cost_of(pair: Candidate) -> float:
        return trial_cost(pair.trial)

    for index, (study, answer) in enumerate(zip(studies, answers, strict=True)):
        _add_trials(figure, study, trial_cost, colour_of(index))
        if answer is not None:
            _add_front(figure, record_of(study), answer, cost_of, colour_of(index))
    record = record_of(studies[0])
    known = [record.dense.val_accuracy, *(one.dense_accuracy for one in answers if one)]
    dense = next((accuracy for accuracy in known if accuracy is not None), None)
    if dense is not None:
        marker = {"color": INK, "symbol": "diamond", "size": 10}
        figure.add_scatter(x=[1.0], y=[dense], mode="markers", marker=marker, name="dense")
    figure.update_yaxes(range=_range(figure, record.metric, answers[0]), row=1, col=1)
    _add_ratios(figure, studies, answers, cost_of)
    is_low, metric = height <= LOW, record.metric
    removed = "removed" if is_low else "share removed"
    figure.update_yaxes(title_text=removed, range=[-0.04, 1.04], row=2, col=1)
    figure.update_xaxes(title_text=f"{cost.word}, share of the dense model's", row=2, col=1)
    if is_low:
        figure.for_each_trace(lambda one: one.update(showlegend=one.yaxis == "y2", legendgroup=""))
    title, y = f"Frontier of {metric.name} and {cost.word}", metric.axis
    return finish_figure(figure, title, y=metric.heading if is_low else y, height=height)


def _add_trials(
    figure: go.Figure, study: Study, cost_of: Callable[[FrozenTrial], float], colour: str
) -> None:
    """Add all trained trials at their own values, as faint points."""
    trials = [t for t in finished_trials(study) if accuracy_of(t, study) is not None]
    drawn = thin_trials(trials, [])
    unit = f" {record_of(study).metric.unit}".rstrip()
    figure.add_scatter(
        x=[cost_of(trial) for trial in drawn],
        y=[accuracy_of(trial, study) for trial in drawn],
        mode="markers",
        marker={
            "color": colour,
            "symbol": ["circle" if t.state == TrialState.COMPLETE else "x-thin" for t in drawn],
            "size": 6,
            "opacity": 0.35,
        },
        showlegend=False,
        customdata=[trial.number for trial in drawn],
        hovertemplate=f"trial %{{customdata}}<br>%{{y:.2f}}{unit} at %{{x:.4f}}<extra></extra>",
        row=1,
        col=1,
    )


def _add_front(
    figure: go.Figure, record: StudyRecord, answer: Answer, cost_of: _CostOf, colour: str
) -> None:
    """Add the line and the band of one frontier, and its knee."""
    front = _drawn(answer, cost_of)
    costs, name = [cost_of(pair) for pair in front], _name(record)
    band = _band(answer, front, cost_of)
    for sign, fill in ((-1, None), (1, "tonexty")):
        figure.add_scatter(
            x=[point.cost_ratio for point in band],
            y=[point.accuracy + sign * point.error for point in band],
            mode="lines",
            line={"width": 0, "color": colour},
            fill=fill,
            fillcolor=shade_of(colour),
            name="± 1 standard error",
            legendgroup="band",
            legendrank=1001,
            showlegend=fill is not None and not _is_listed(figure, "band"),
            hoverinfo="skip",
            row=1,
            col=1,
        )
    figure.add_scatter(
        x=costs,
        y=[pair.accuracy for pair in front],
        mode="lines+markers",
        line={"color": colour, "width": 2, "dash": _dash(record)},
        marker={"color": colour, "size": 6},
        name=name,
        text=[_hover(pair, record) for pair in front],
        hovertemplate="%{text} at %{x:.4f}<extra></extra>",
        row=1,
        col=1,
    )
    if answer.found is not None:
        figure.add_scatter(
            x=[cost_of(answer.found)],
            y=[answer.found.accuracy],
            mode="markers",
            marker={"color": colour, "symbol": "star", "size": 15},
            name="answer, the knee",
            legendgroup="knee",
            showlegend=not _is_listed(figure, "knee"),
            text=[_hover(answer.found, record)],
            hovertemplate="knee, %{text} at %{x:.4f}<extra></extra>",
            row=1,
            col=1,
        )


def _band(answer: Answer, front: Sequence[Candidate], cost_of: _CostOf) -> Sequence[Expected]:
    """Return what is expected along a frontier; at its drawn pairs alone where FLOPs are shown."""
    if all(cost_of(pair) == pair.cost_ratio for pair in front):
        return answer.points
    return [Expected(cost_of(pair), pair.accuracy, pair.error) for pair in front]


def _add_ratios(
    figure: go.Figure,
    studies: Sequence[Study],
    answers: Sequence[Answer | None],
    cost_of: _CostOf,
) -> None:
    """Add the two ratios along the first frontier that has two, and the first fixed ratio."""
    searched, fixed = (
        next(
            (
                (index, record_of(study), answer)
                for index, (study, answer) in enumerate(zip(studies, answers, strict=True))
                if answer is not None and record_of(study).is_fixed == is_fixed
            ),
            None,
        )
        for is_fixed in (False, True)
    )
    if fixed is not None:
        index, record, answer = fixed
        line = {"color": colour_of(index), "width": 2, "dash": _dash(record)}
        _add_ratio(figure, _drawn(answer, cost_of), 0, cost_of, line, "one ratio for both")
    if searched is not None:
        index, record, answer = searched
        is_only = sum(not record_of(study).is_fixed for study in studies) == 1
        for axis, (module, colour) in enumerate(_MODULES):
            name = module if is_only else f"{module}, {_name(record)}"
            line = {"color": colour, "width": 2}
            _add_ratio(figure, _drawn(answer, cost_of), axis, cost_of, line, name)


def _add_ratio(
    figure: go.Figure,
    front: Sequence[Candidate],
    axis: int,
    cost_of: _CostOf,
    line: dict[str, object],
    name: str,
) -> None:
    """Add one of the ratios along a frontier to the lower half."""
    figure.add_scatter(
        x=[cost_of(pair) for pair in front],
        y=[pair.pair[axis] for pair in front],
        mode="lines+markers",
        line=line,
        marker={"color": line["color"], "size": 6},
        name=name,
        showlegend="dash" not in line,
        customdata=[pair.trial.number for pair in front],
        hovertemplate="%{y:.3f}, trial %{customdata}, at %{x:.4f}",
        row=2,
        col=1,
    )


def _drawn(answer: Answer, cost_of: _CostOf) -> list[Candidate]:
    """Return the pairs of a frontier that are drawn, of rising cost."""
    return pick_evenly(sorted(answer.front, key=cost_of), _MOST_PAIRS)


def _range(figure: go.Figure, metric: Metric, answer: Answer | None) -> tuple[float, float] | None:
    """Return the range of the upper half; None where it shows everything.

    What lies much deeper than the first frontier would press it flat, and is cut off.
    """
    if answer is None or not answer.front:
        return None
    sign = metric.sign
    values = [sign * value for trace in figure.data for value in trace.y]
    bottom, top = min(sign * one.accuracy - one.error for one in answer.front), max(values)
    least, margin = bottom - (top - bottom), 0.05 * (top - bottom)
    return None if min(values) >= least else (sign * (least - margin), sign * (top + margin))


def _is_listed(figure: go.Figure, group: str) -> bool:
    """Return whether the legend has an entry of a group."""
    return any(trace.legendgroup == group and trace.showlegend for trace in figure.data)


def _dash(record: StudyRecord) -> str:
    return "dash" if record.is_fixed else "solid"


def _name(record: StudyRecord) -> str:
    """Return the name of a frontier in the legend."""
    name = as_label(record.name)
    if not record.is_fixed:
        return name
    return f"{name}: {'CP-ViT' if record.pruned == 'cascade' else 'one fixed ratio'}"


def _hover(pair: Candidate, record: StudyRecord) -> str:
    shown = record.metric.text(pair.accuracy, error=pair.error)
    ratios = f"MHSA {pair.pair[0]:.3f}, FFN {pair.pair[1]:.3f}"
    return f"trial {pair.trial.number}: {ratios}<br>{shown} expected"
