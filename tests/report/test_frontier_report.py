"""What one sees of a study of the frontier: rows, tables, sentences, figures."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
from frontiers import DENSE, frontier_study
from rich.console import Console

from vit_ratio_opt.cli.report import print_report
from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.report.cells import frontier_table
from vit_ratio_opt.report.explainer import Explainer
from vit_ratio_opt.report.figures.frontier import frontier_figure
from vit_ratio_opt.report.figures.gallery import figures_of
from vit_ratio_opt.report.figures.path import path_figure
from vit_ratio_opt.report.frontier import frontier_rows, pick_rows
from vit_ratio_opt.report.html import html_page
from vit_ratio_opt.report.markdown import markdown_page
from vit_ratio_opt.report.notes import study_note
from vit_ratio_opt.report.rows import build_report
from vit_ratio_opt.report.sentences import answer_sentences, summary
from vit_ratio_opt.report.terminal import front_table, trials_table
from vit_ratio_opt.report.trial_rows import trial_rows
from vit_ratio_opt.runs.lines import describe_start
from vit_ratio_opt.space.metric import Metric
from vit_ratio_opt.utils.text import csv_text


@pytest.fixture(scope="module")
def group():
    """A frontier of both ratios with more pairs than a table shows, one of one ratio, CP-ViT's."""
    study = frontier_study(trials=24)
    fixed = frontier_study(study._storage, "one", fixed=True)
    return study, fixed, frontier_study(study._storage, "cp", fixed=True, pruned="cascade")


def trace(figure, name):
    (found,) = [one for one in figure.data if one.name == name]
    return found


def test_rows_are_the_pairs_of_the_frontier_and_one_is_its_knee(group):
    answer, rows = answer_of(group[0]), frontier_rows(group[0])
    assert [row["trial"] for row in rows] == [one.trial.number for one in answer.front]
    assert [row["trial"] for row in rows if row["knee"]] == [answer.found.trial.number]
    for row in rows:
        assert row["accuracy_drop"] == pytest.approx(DENSE - row["val_accuracy"])
    costs = [row["cost_ratio"] for row in rows]
    assert costs == sorted(costs)


def test_a_study_with_a_budget_has_no_rows_of_a_frontier(make_study):
    study = make_study(planned=True)
    assert frontier_rows(study) == []
    assert frontier_table(study) is None
    assert "Frontier" not in markdown_page([study]) + study_note(study)


def test_a_long_table_has_both_ends_and_the_knee_and_says_how_many_are_left_out(group):
    rows = frontier_rows(group[0])
    shown = pick_rows(rows)
    assert len(rows) > 12 >= len(shown) >= 10
    assert (shown[0], shown[-1]) == (rows[0], rows[-1])
    assert sum(row["knee"] for row in shown) == 1
    assert len({row["trial"] for row in shown}) == len(shown)
    table = frontier_table(group[0])
    assert table.note.endswith(f"{len(rows) - len(shown)} more pairs are on the frontier.")
    assert table.cells[1][table.knee][-1] == "knee"
    assert frontier_table(group[1]).note.endswith("both ends.")


def test_the_table_is_in_the_terminal_the_page_markdown_and_the_note(group):
    found = frontier_table(group[0])
    knee = found.cells[1][found.knee]
    console = Console(width=80, file=io.StringIO(), markup=False)
    print_report(group, None, console)
    printed = console.file.getvalue()
    (line,) = [line for line in printed.splitlines() if "55." not in line and knee[3] in line
               and "knee" in line]  # fmt: skip
    assert line.split() == [cell for text in knee for cell in text.split()]
    assert max(map(len, printed.splitlines())) <= 80
    row = f"| {' | '.join(knee)} |"
    assert row in markdown_page([group[0]], trials=False)
    assert row in study_note(group[0], group[1:])
    page = html_page(group[:1])
    assert f"<td>{knee[3]}</td>" in page
    assert found.note in page


def test_rows_for_programs_have_the_levels_and_all_pairs(group):
    report = json.loads(json.dumps(build_report(group)))
    assert (report["budget"], report["tolerance"], report["frontier"]) == (None, None, 6)
    assert report["front"] == [row for study in group for row in frontier_rows(study)]
    (searched,) = [row for row in report["rows"] if row["name"] == "searched"]
    assert searched["trial"] == answer_of(group[0]).found.trial.number
    assert searched["probability"] is None
    rows = list(csv.DictReader(io.StringIO(csv_text(trial_rows(group[0])))))
    assert len(rows) == 24
    assert sum(row["best"] == "True" for row in rows) == 1


def test_the_first_sentence_is_how_far_the_frontier_reaches_and_its_knee(group):
    aim, sentence, *_ = summary(group[0], group)
    answer = answer_of(group[0])
    assert ", along the frontier of accuracy and FLOPs;" in aim
    first, last = (100 * answer.front[end].cost_ratio for end in (0, -1))
    assert sentence.startswith(
        f"The frontier has {len(answer.front)} pairs from {first:.1f} % to {last:.1f} % of the "
        f"FLOPs. Its knee, the answer, is trial {answer.found.trial.number}, MHSA ratio "
    )


def test_a_frontier_of_no_and_of_one_pair_says_so():
    (sentence,) = answer_sentences(frontier_study(trials=1))
    assert sentence.startswith("The frontier has one pair so far: trial 0, MHSA ratio ")
    (sentence,) = answer_sentences(frontier_study(trials=0))
    assert sentence == "There is no answer yet: no trial was trained."


def test_the_knee_is_compared_with_the_fixed_ratio_at_its_own_cost(group):
    study, fixed, _ = group
    found = answer_of(study).found
    _, accuracy, error = answer_of(fixed).expect(found.cost_ratio)
    gain = round(found.accuracy, 2) - round(accuracy, 2)
    assert gain > 0
    assert summary(study, group)[2] == (
        f"Against the frontier of one fixed ratio (study one, {accuracy:.2f} ± {error:.2f} % "
        f"expected at this cost) that is +{gain:.2f} ± {math.hypot(found.error, error):.2f} "
        "points."
    )


@pytest.mark.parametrize("others", ["none", "a budget", "cascade", "empty"])
def test_without_a_frontier_of_the_fixed_ratio_nothing_is_compared(group, make_study, others):
    found = {
        "none": [],
        "a budget": [make_study(name="b", fixed=True, planned=True, trials=1)],
        "cascade": [group[2]],
        "empty": [frontier_study(name="empty", fixed=True, trials=0)],
    }[others]
    sentences = summary(group[0], [group[0], *found])
    assert not any("fixed ratio" in sentence for sentence in sentences)


def test_a_metric_that_is_minimised_has_its_losses_above_zero():
    study = frontier_study(metric=Metric("mean absolute error", "mm", False))
    drops = [row["accuracy_drop"] for row in frontier_rows(study)]
    assert drops == sorted(drops, reverse=True)
    assert drops[0] > 0
    table = frontier_table(study)
    assert table.cells[0][4] == "rise"
    assert "below the line" in table.note


def test_the_figure_has_the_frontier_with_its_band_and_every_trial(group):
    study = group[0]
    figure, answer = frontier_figure(group), answer_of(study)
    line = trace(figure, "frontier")
    assert list(line.x) == [one.trial.user_attrs["macs_ratio"] for one in answer.front]
    assert list(line.y) == [one.accuracy for one in answer.front]
    low, high = [one for one in figure.data if one.legendgroup == "band"][:2]
    assert list(low.x) == [one.cost_ratio for one in answer.points]
    assert list(low.y) == [one.accuracy - one.error for one in answer.points]
    assert list(high.y) == [one.accuracy + one.error for one in answer.points]
    trials = next(one for one in figure.data if one.customdata is not None)
    assert sorted(trials.customdata) == [trial.number for trial in study.trials]
    knees = [one for one in figure.data if one.legendgroup == "knee"]
    assert list(knees[0].x) == [answer.found.cost_ratio]
    assert [one.showlegend for one in knees] == [True, False, False]
    dense = trace(figure, "dense")
    assert (list(dense.x), list(dense.y)) == ([1.0], [DENSE])
    assert trace(figure, "one: one fixed ratio").line.dash == "dash"
    assert trace(figure, "cp: CP-ViT").line.dash == "dash"


def test_the_lower_half_has_both_ratios_on_the_axis_of_the_frontier(group):
    figure, front = frontier_figure(group), answer_of(group[0]).front
    for axis, name in enumerate(("MHSA ratio", "FFN ratio")):
        line = trace(figure, name)
        assert list(line.x) == list(trace(figure, "frontier").x)
        assert list(line.y) == [one.pair[axis] for one in front]
        assert line.xaxis == "x2"
    assert figure.layout.xaxis.matches == "x2"
    fixed = trace(figure, "one ratio for both")
    assert list(fixed.y) == [one.pair[0] for one in answer_of(group[1]).front]


def test_a_frontier_replaces_the_figure_of_accuracies_of_its_studies(group, make_study):
    def titles(studies):
        return [figure.layout.title.text for figure in figures_of(studies)]

    figures = [
        "Frontier of accuracy and FLOPs",
        "Pairs of the search",
        "Blocks of the answer's model",
    ]
    assert titles([group[1], group[0]]) == figures
    budget = make_study(planned=True)
    mixed = titles([group[0], budget])
    assert mixed[0] == figures[0]
    assert mixed[1].startswith("Accuracy against FLOPs")
    assert titles([frontier_study(name="empty", trials=0)])[0] == figures[0]


def test_the_path_of_a_frontier_has_its_pairs_and_the_cost_of_each_trial_below(group):
    figure = path_figure(group[0])
    line = trace(figure, "frontier")
    front = answer_of(group[0]).front
    assert list(zip(line.x, line.y, strict=True)) == [one.pair for one in front]
    (costs,) = [one for one in figure.data if one.xaxis == "x2"]
    assert list(costs.y) == [trial.values[1] for trial in group[0].trials]
    assert figure.layout.yaxis2.title.text == "FLOPs of dense"


def test_the_dashboard_gets_the_figure_of_the_frontier(group):
    study = group[0]
    Explainer()(study, study.trials[0])
    attributes = study._storage.get_study_system_attrs(study._study_id)
    (text,) = [value for key, value in attributes.items() if key.endswith("plot_data:frontier:0")]
    traces = json.loads(text)["data"]
    names = [one.get("name") for one in traces]
    listed = [one["name"] for one in traces if one.get("showlegend")]
    assert listed == ["one ratio for both", "MHSA ratio", "FFN ratio"]
    assert "one: one fixed ratio" in names
    assert not any("accuracy-against" in key for key in attributes)


def test_a_frontier_that_is_much_deeper_does_not_press_the_first_one_flat(group):
    assert frontier_figure(group).layout.yaxis.range is None
    study, trials = group[0], frontier_study(name="low", fixed=True).trials
    for trial in trials:
        trial.values = [trial.values[0] - 60, trial.values[1]]
        trial.user_attrs["accuracy"] -= 60
    deep = frontier_study(name="deep", fixed=True, trials=0)
    deep.add_trials(trials)
    least, most = frontier_figure([study, deep]).layout.yaxis.range
    front = answer_of(study).front
    assert least < front[0].accuracy - front[0].error
    assert most > DENSE
    assert front[0].accuracy - least < 1.5 * (most - front[0].accuracy)


def test_a_frontier_begins_with_the_likeliest_pairs_of_its_levels():
    study = frontier_study(trials=0)
    study.set_user_attr("path", [[0.1, 0.1], [0.5, 0.5]])
    levels = len(study.user_attrs["plan"]["levels"])
    assert list(describe_start(study, None)) == [
        f"begins with {levels} pairs, the likeliest of their FLOPs before any training"
    ]
    known = [[0.0, 0.0], [0.9, 0.5]]
    forecast = {"mhsa": known, "ffn": known, "worst": DENSE}
    plan = {**study.user_attrs["plan"], "forecast": forecast}
    study.set_user_attr("plan", plan)
    assert list(describe_start(study, None)) == [
        "begins with one pair, the likeliest of its FLOPs before any training"
    ]
    study.set_user_attr("plan", {**plan, "forecast": None})
    assert f"begins with {levels} pairs" in next(iter(describe_start(study, None)))
    study.set_user_attr("plan", {**plan, "marks": plan["marks"][:levels]})  # budgets
    assert f"begins with {levels} pairs" in next(iter(describe_start(study, None)))


def test_a_table_with_a_long_name_of_the_metric_fits_80_columns():
    metric = Metric("mean absolute error of the boxes", "millimetres", False)
    study = frontier_study(metric=metric)
    console = Console(width=80, file=io.StringIO())
    console.print(front_table(study, is_whole=True))
    console.print(trials_table(study))
    text = console.file.getvalue()
    assert "…" not in text
    assert "knee" in text
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
