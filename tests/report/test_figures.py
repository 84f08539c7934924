import io

import numpy as np
import pytest
from optuna.trial import TrialState
from PIL import Image

from vit_ratio_opt.records.answer import answer_of, answer_trial
from vit_ratio_opt.report.figures.accuracy import accuracy_figure
from vit_ratio_opt.report.figures.path import path_figure
from vit_ratio_opt.report.figures.training_curve import training_curve
from vit_ratio_opt.report.figures.widths import widths_figure


def points(figure, **wanted):
    """Of all traces with these properties, the x and y of their points."""
    found = [t for t in figure.data if all(t[key] == value for key, value in wanted.items())]
    return [(x, y) for trace in found for x, y in zip(trace.x, trace.y, strict=True)]


def interval(figure):
    """The two lines with the shade between them."""
    lines = [trace for trace in figure.data if trace.type == "scatter"]
    (upper,) = [index for index, trace in enumerate(lines) if trace.fill == "tonexty"]
    return lines[upper - 1], lines[upper]


def test_every_trial_is_in_the_figure_of_accuracies_and_the_best_has_a_star(make_study):
    study = make_study(budget=None)
    figure = accuracy_figure([study])
    drawn = points(figure, mode="markers")
    for trial in study.trials:
        assert (trial.user_attrs["macs_ratio"], trial.user_attrs["accuracy"]) in drawn
    (star,) = [trace for trace in figure.data if trace.marker.symbol == "star"]
    found = answer_of(study).found
    assert list(star.x) == [found.trial.user_attrs["macs_ratio"]]
    assert list(star.y) == [found.accuracy]
    assert list(star.error_y.array) == [found.error]
    crosses = [t for t in figure.data if t.marker.symbol == "x-thin-open"]
    over = [t for t in study.trials if t.state == TrialState.PRUNED]
    assert [len(trace.x) for trace in crosses] == [len(over)]


def test_the_fixed_ratio_is_marked_in_both_figures(make_study):
    study = make_study(planned=True)
    baseline = answer_of(study).baseline
    (mark,) = [t for t in accuracy_figure([study]).data if t.marker.symbol == "square-open"]
    assert (list(mark.y), list(mark.error_y.array)) == ([baseline.accuracy], [baseline.error])
    (mark,) = [
        t
        for t in path_figure(study).data
        if t.type == "scatter" and t.marker.symbol == "square-open"
    ]
    assert (list(mark.x), list(mark.y)) == ([baseline.pair[0]], [baseline.pair[1]])


def test_no_trial_lies_above_the_frontier(make_study):
    study = make_study(trials=40)
    (frontier,) = [t for t in accuracy_figure([study]).data if t.mode == "lines"]
    assert list(frontier.x) == sorted(frontier.x)
    assert list(frontier.y) == sorted(frontier.y)
    for trial in study.trials:
        reached = [y for x, y in zip(frontier.x, frontier.y, strict=True)
                   if x <= trial.user_attrs["macs_ratio"]]  # fmt: skip
        assert max(reached) >= trial.user_attrs["accuracy"]


def test_the_figures_do_not_grow_with_the_number_of_trials(make_study):
    sizes = []
    for trials in (400, 1200):
        study = make_study(budget=None, trials=trials)
        figures = accuracy_figure([study]), path_figure(study), widths_figure([study])
        sizes.append(sum(len(figure.to_json()) for figure in figures))
    assert sizes[1] < 1.2 * sizes[0]
    assert sizes[1] < 300_000


def test_lines_of_equal_flops_are_those_of_the_model(make_study):
    study = make_study()
    (contour,) = [trace for trace in path_figure(study).data if trace.type == "contour"]
    curve = study.user_attrs["plan"]["curve"]
    for mhsa_ratio, ffn_ratio in curve[:: len(curve) // 4]:
        column = [np.interp(mhsa_ratio, contour.x, row) for row in contour.z]
        assert np.interp(ffn_ratio, contour.y, column) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("planned", [False, True])
def test_the_interval_of_a_budget_holds_the_answer_and_shrinks(make_study, planned):
    study = make_study(trials=12, planned=planned)
    low, high = interval(path_figure(study))
    curve = study.user_attrs["plan"]["curve"]
    assert (low.y[0], high.y[0]) == (curve[0][0], curve[-1][0])
    assert low.y[-1] <= answer_trial(study).params["mhsa_ratio"] <= high.y[-1]
    assert high.y[-1] - low.y[-1] < high.y[0] - low.y[0]


def test_the_interval_of_a_tolerance_ends_between_what_failed_and_what_was_kept(make_study):
    study = make_study(budget=None, trials=12)
    low, high = interval(path_figure(study))
    kept = [t.user_attrs["macs_ratio"] for t in study.trials if t.state == TrialState.COMPLETE]
    failed = [t.user_attrs["macs_ratio"] for t in study.trials if t.state == TrialState.PRUNED]
    assert high.y[-1] == min(kept)
    assert low.y[-1] == max(f for f in failed if f < min(kept))


def test_bars_are_what_is_left_of_each_block(make_study):
    study = make_study()
    attention, neurons = widths_figure([study]).data
    assert list(attention.y) == [50, 25, 37.5]
    assert list(neurons.y) == [50, 25, 12.5]
    assert neurons.text[2] == "8 of 64 neurons"


def test_the_figures_of_an_empty_study_are_empty(make_study):
    study = make_study(trials=0)
    assert points(accuracy_figure([study]), mode="markers") == [(1.0, 80.0)]
    assert path_figure(study).to_json()
    assert not widths_figure([study]).data


def test_a_study_of_an_earlier_version_lacks_the_lines_only(make_study):
    study = make_study()
    study.set_user_attr("saved", None)
    assert not [trace for trace in path_figure(study).data if trace.type == "contour"]


def test_names_are_no_markup_in_a_figure(make_study):
    figure = accuracy_figure([make_study(name="<b>x</b>&amp;")])
    assert figure.data[0].name == "&lt;b&gt;x&lt;/b&gt;&amp;amp;"


@pytest.mark.parametrize("drops", [False, True])
def test_a_training_curve_is_a_png(make_study, drops):
    trial = make_study(budget=None if drops else 0.5).trials[0]
    with Image.open(io.BytesIO(training_curve(trial, 80.0, drops=drops))) as image:
        assert image.size == (500, 300)
        assert len(image.convert("RGB").getcolors(1 << 16)) > 10
