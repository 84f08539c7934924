"""A study as figures: plotly for pages, notebooks and the dashboard, PNG for a trial's curve.

Never imports torch. Every figure has a bounded size, whatever the number of trials.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import plotly.graph_objects as go
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

from vit_ratio_opt.records.answer import Candidate, answer_of, answer_trial
from vit_ratio_opt.records.trials import (
    accuracy_of,
    attribute,
    block_rows,
    cost_of,
    cost_ratio_of,
    cost_word,
    finished_trials,
    limit_of,
    pair_of,
)
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.plan import Pair
from vit_ratio_opt.space.costs import cost_label
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.utils.text import short

__all__ = ["accuracy_figure", "path_figure", "training_curve", "widths_figure"]

# Okabe and Ito's, which the colour-blind tell apart; the greys are legible on white and on black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
_INK, _GRID, _CLEAR = "#808080", "rgba(128,128,128,0.25)", "rgba(0,0,0,0)"
_SHADE = "rgba(0,114,178,0.15)"
_LOW = 500  # pixels
# Points of one trace, and moments at which the search's interval is drawn.
_MOST_POINTS, _MOST_MOMENTS = 200, 60

_T = TypeVar("_T")


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
    for colour, study in zip(_colours(studies), studies, strict=True):
        name = _text(study.study_name)
        trials = [t for t in finished_trials(study) if accuracy_of(t, study) is not None]
        frontier = _frontier(study, trials, cost)
        drawn = _thinned(trials, frontier)
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
        marker={"color": _INK, "symbol": "diamond", "size": 10},
        name="dense",
    )
    settings = [study.user_attrs["settings"] for study in studies if cost_of(study) == drawn_cost]
    limits = {(one["budget"], one["tolerance"]) for one in settings}
    for budget, tolerance in sorted(limits, key=str):
        if tolerance is None:
            figure.add_vline(budget, line_dash="dot", line_color=_INK, line_width=1)
        else:
            least = dense["val_accuracy"] - tolerance
            figure.add_hline(least, line_dash="dot", line_color=_INK, line_width=1)
    return _finished(
        figure,
        f"Accuracy against {word} (star: answer, square: fixed ratio, dotted: limit)",
        x=f"{word}, share of the dense model's",
        y="validation accuracy, %",
    )


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
        drawn_curve = _spread_out(curve, _MOST_MOMENTS)
        figure.add_scatter(
            x=[mhsa_ratio for mhsa_ratio, _ in drawn_curve],
            y=[ffn_ratio for _, ffn_ratio in drawn_curve],
            mode="lines",
            line={"color": _COLOURS[1], "width": 2},
            name=_text(limit_of(study)),
            hoverinfo="skip",
        )
    drawn = _thinned(trials, [])
    figure.add_scatter(
        x=[trial.params["mhsa_ratio"] for trial in drawn],
        y=[trial.params["ffn_ratio"] for trial in drawn],
        mode="lines+markers",
        line={"color": _INK, "width": 1, "dash": "dot"},
        marker={
            "size": 10,
            "color": [accuracy_of(trial, study) for trial in drawn],
            "colorscale": "Cividis",
            "showscale": bool(drawn),
            "colorbar": {"title": "val %", "thickness": 10, "len": 0.55, "y": 0.72},
            "line": {
                "width": 2,
                "color": [
                    _INK if trial.state == TrialState.COMPLETE else _COLOURS[1] for trial in drawn
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
            marker={"symbol": "square-open", "size": 15, "color": _INK},
            name="fixed ratio",
            hoverinfo="skip",
        )
    if answer is not None:
        pair = (0.0, 0.0) if answer.found is None else answer.found.pair
        figure.add_scatter(
            x=[pair[0]],
            y=[pair[1]],
            mode="markers",
            marker={"symbol": "star-open", "size": 20, "color": _COLOURS[1]},
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
            line={"width": 1, "shape": "hv", "color": _COLOURS[0]},
            fill=fill,
            fillcolor=_SHADE,
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
            "color": [
                _COLOURS[0] if t.state == TrialState.COMPLETE else _COLOURS[1] for t in drawn
            ]
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
    figure.update_layout(showlegend=height > _LOW)
    return _finished(figure, "Path of the search", x="MHSA ratio", height=height)


def widths_figure(studies: Sequence[Study]) -> go.Figure:
    """Return what is left of each block in the answer's model, in per cent of dense.

    Attention is heads times their dimensions; with a cascade, tokens count instead, as queries.
    """
    rows = max(1, len(studies))
    figure = make_subplots(
        rows=rows,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.3 / rows,
        subplot_titles=[_text(study.study_name) for study in studies] if rows > 1 else None,
    )
    for row, study in enumerate(studies, start=1):
        best = answer_trial(study)
        blocks = [] if best is None else block_rows(study.user_attrs["dense"], best)
        series: dict[str, tuple[list[float], list[str]]] = {}
        for b in blocks:
            attention = b["heads"] * b["head_dim"] / (b["dense_heads"] * b["dense_head_dim"])
            series.setdefault("attention dimensions", ([], []))[0].append(100 * attention)
            series["attention dimensions"][1].append(
                f"{b['heads']} heads of {b['head_dim']}, before {b['dense_heads']} of "
                f"{b['dense_head_dim']}"
            )
            series.setdefault("FFN neurons", ([], []))[0].append(
                100 * b["neurons"] / b["dense_neurons"]
            )
            series["FFN neurons"][1].append(f"{b['neurons']} of {b['dense_neurons']} neurons")
            for key, name in (("mhsa_tokens", "attention tokens"), ("ffn_tokens", "FFN tokens")):
                if key in b:
                    series.setdefault(name, ([], []))[0].append(100 * b[key] / b["dense_tokens"])
                    series[name][1].append(f"{b[key]} of {b['dense_tokens']} tokens")
        for colour, (name, (left, texts)) in zip(_COLOURS, series.items(), strict=False):
            figure.add_bar(
                x=[b["block"] for b in blocks],
                y=left,
                text=texts,
                textposition="none",
                hovertemplate="block %{x}: %{text} (%{y:.0f} %)<extra></extra>",
                marker_color=colour,
                name=name,
                legendgroup=name,
                showlegend=row == 1,
                row=row,
                col=1,
            )
    figure.update_yaxes(range=[0, 100], title_text="left, %")
    figure.update_xaxes(dtick=1)
    figure.update_xaxes(title_text="block", row=rows, col=1)
    return _finished(figure, "Blocks of the answer's model", height=200 + 180 * rows)


def training_curve(trial: FrozenTrial, dense_accuracy: float, *, drops: bool) -> bytes:
    """Accuracy and loss by epoch as a PNG, from before fine-tuning on.

    Args:
        trial: What it has reported so far is drawn.
        dense_accuracy: Of the dense model, in per cent.
        drops: Whether the trial reports points lost, as with a tolerance, or the accuracy.
    """
    from matplotlib.figure import Figure  # half a second, for those who draw no curve
    from matplotlib.ticker import MaxNLocator

    reported = sorted(trial.intermediate_values.items())
    pruned = attribute(trial, "accuracy_pruned")
    accuracies = [] if pruned is None else [(0, pruned)]
    accuracies += [(epoch, dense_accuracy - v if drops else v) for epoch, v in reported]
    losses = attribute(trial, "losses") or ()
    figure = Figure(figsize=(5, 3))
    # Wide margins: a layout engine would take twice the time of the rest to find them.
    axis = figure.subplots(gridspec_kw={"left": 0.19, "right": 0.83, "bottom": 0.16, "top": 0.91})
    axis.axhline(dense_accuracy, color="0.6", linestyle=":", label="dense")
    if accuracies:
        axis.plot(*zip(*accuracies, strict=True), marker="o", color=_COLOURS[0], label="accuracy")
    axis.set(xlabel="epoch", ylabel="validation accuracy, %")
    axis.set_title(f"trial {trial.number}", loc="left")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if losses:
        right = axis.twinx()
        right.plot(range(1, len(losses) + 1), losses, marker="s", color=_COLOURS[1])
        right.set_ylabel("training loss", color=_COLOURS[1])
    # Above the axes, where it can hide no point of either.
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize="small")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    return image.getvalue()


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
        line={"color": _INK, "width": 0.5},
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
    return frontier[-_MOST_POINTS:]


def _value(trial: FrozenTrial, study: Study) -> float:
    accuracy = accuracy_of(trial, study)
    return -np.inf if accuracy is None else accuracy


def _thinned(trials: Sequence[FrozenTrial], needed: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """At most some hundred of the trials, evenly over the search, those needed among them."""
    kept = {trial.number for trial in [*needed, *_spread_out(trials, _MOST_POINTS)]}
    return [trial for trial in trials if trial.number in kept]


def _spread_out(values: Sequence[_T], most: int) -> list[_T]:
    """At most so many of the values, evenly, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i)] for i in np.linspace(0, len(values) - 1, most)]


def _colours(studies: Sequence[Study]) -> list[str]:
    return [_COLOURS[index % len(_COLOURS)] for index in range(len(studies))]


def _text(name: object) -> str:
    """Plotly takes some tags in text as markup; a user's name is none."""
    return html.escape(short(name, 40), quote=False)


def _finished(
    figure: go.Figure, title: str, *, x: str = "", y: str = "", height: int = 440
) -> go.Figure:
    """The look that all figures share, legible on light and on dark pages."""
    top, bottom = 45, 60 if figure.layout.showlegend is False else 110
    figure.update_layout(
        template="none",
        title={"text": title, "x": 0, "xanchor": "left", "font_size": 16},
        font={"color": _INK, "family": "system-ui, sans-serif"},
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
