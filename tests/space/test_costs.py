from __future__ import annotations

import json
from dataclasses import replace

import optuna
import pytest

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.costs import CostSpace, check_cost, falling, latency_space, params_space
from vit_ratio_opt.space.geometry import (
    BlockShape,
    RatioPair,
    ViTShape,
    budget_curve,
    check_budget,
    cost_saved,
    fixed_ratio_pair,
    smallest_cost_ratio,
)

SHAPE = ViTShape(
    patches=16, prefix_tokens=1, patch_dim=48, embed_dim=32, num_classes=10,
    blocks=(BlockShape(4, 8, 64),) * 3, fixed_params=1_000, mhsa_unit="rank",
)  # fmt: skip
# 24 ranks of which 21 can go, 192 neurons of which 168 can.
LATENCY = {
    "rest": 1_000,
    "mhsa": [[0, 900], [10, 500], [21, 100]],
    "ffn": [[0, 2_000], [100, 1_500], [168, 400]],
}


@pytest.mark.parametrize(
    "shape", [SHAPE, replace(SHAPE, mhsa_unit="head"), replace(SHAPE, round_to=4)]
)
def test_parameters_of_every_pair_are_exact(shape):
    space = params_space(shape)
    for mhsa_ratio in shape.mhsa_ratios:
        for ffn_ratio in shape.ffn_ratios[::7]:
            pair = RatioPair(mhsa_ratio, ffn_ratio)
            assert space.pruned_cost(pair) == shape.pruned_params(pair)
            assert space.pruned_macs(pair) == shape.pruned_macs(pair)


def test_removing_nothing_costs_all():
    for space in (params_space(SHAPE), latency_space(SHAPE, LATENCY)):
        assert space.cost_ratio(0.0, 0.0) == 1.0
    assert latency_space(SHAPE, LATENCY).dense_cost == 3_900


def test_latency_lies_on_lines_between_the_knots():
    space = latency_space(SHAPE, LATENCY)
    pair = RatioPair(5 / 24, 134 / 192)
    assert space.removed(pair) == (5, 134)
    assert space.pruned_cost(pair) == 1_000 + 700 + 950
    assert smallest_cost_ratio(space) == 1_500 / 3_900


def test_costs_never_rise_along_either_ratio():
    space = latency_space(SHAPE, LATENCY)
    for ratios, pairs in (
        (space.mhsa_ratios, lambda r: RatioPair(r, 0.0)),
        (space.ffn_ratios, lambda r: RatioPair(0.0, r)),
    ):
        costs = [space.pruned_cost(pairs(ratio)) for ratio in ratios]
        assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("space", [params_space(SHAPE), latency_space(SHAPE, LATENCY)])
def test_pairs_on_the_curve_meet_the_budget_and_waste_nothing(space):
    for budget in (0.45, 0.6, 0.83):
        curve = budget_curve(space, budget)
        for pair in curve:
            assert space.cost_ratio(*pair) <= budget
            index = space.ffn_ratios.index(pair.ffn_ratio)
            if index:
                assert space.cost_ratio(pair.mhsa_ratio, space.ffn_ratios[index - 1]) > budget
        assert space.cost_ratio(*fixed_ratio_pair(space, budget)) <= budget


def test_another_cost_gives_another_curve():
    by_cost = {budget_curve(s, 0.6) for s in (SHAPE, params_space(SHAPE))}
    assert len(by_cost) == 2


def test_costs_that_rise_count_for_what_removes_less():
    assert falling([10, 6, 8, 3, 4, 1]) == [10, 8, 8, 4, 4, 1]
    assert falling([10, 12, 9]) == [10, 10, 9]
    assert falling([5]) == [5]


def test_lines_of_equal_cost_are_those_of_the_cost():
    saved = cost_saved(latency_space(SHAPE, LATENCY))
    assert saved["mhsa_ratio"][-1] == [round(21 / 24, 6), round(800 / 3_900, 6)]


@pytest.mark.parametrize(
    ("mhsa", "match"),
    [
        (((0, 9), (20, 1)), "from 0 to 21"),
        (((1, 9), (21, 1)), "from 0 to 21"),
        ((), "from 0 to 21"),
        (((0, 9), (10, 3), (21, 4)), "must not rise"),
    ],
)
def test_a_curve_of_another_shape_is_refused(mhsa, match):
    with pytest.raises(InputError, match=match):
        CostSpace(SHAPE, "latency", 1, mhsa, ((0, 9), (168, 1)))


def test_refusals_name_the_cost():
    with pytest.raises(InputError, match="the dense model's latency"):
        check_budget(latency_space(SHAPE, LATENCY), 0.1)
    with pytest.raises(InputError, match="the dense model's parameters"):
        check_budget(params_space(SHAPE), 2.0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"cost": "energy"}, "must be one of"),
        ({"cost": "params", "strategy": "cascade"}, "removes no parameter"),
        ({"cost": "latency", "strategy": "both"}, "not foretold"),
        ({"cost": "latency", "iterative": True}, "does not go with `iterative`"),
        ({"cost": "latency", "latency_batch": 0}, "at least 1"),
        ({"cost": "params", "latency_batch": 2}, "is for the cost 'latency'"),
    ],
)
def test_what_does_not_go_together_is_refused(options, match):
    with pytest.raises(InputError, match=match):
        check_cost(**options)


def test_knots_fit_into_an_attribute_of_mysql():
    knots = [[units, 10**9 - units] for units in range(129)]
    assert len(json.dumps({"rest": 10**9, "mhsa": knots, "ffn": knots})) < 2**16


@pytest.mark.parametrize("budget", [0.6, None])
def test_reports_say_what_the_limit_is_a_share_of(make_study, budget):
    from vit_ratio_opt.records.answer import answer_trial
    from vit_ratio_opt.report.figures.accuracy import accuracy_figure
    from vit_ratio_opt.report.figures.path import path_figure
    from vit_ratio_opt.report.html import html_page
    from vit_ratio_opt.report.markdown import markdown_page
    from vit_ratio_opt.report.rows import build_report
    from vit_ratio_opt.report.sentences import summary

    study = make_study(name="l", budget=budget, cost="latency", latency_batch=4)
    known = {"device": "cpu", "threads": 2, "batch": 4, "error": 0.034, **LATENCY}
    study.set_user_attr("latency", known)
    for trial in study.get_trials(deepcopy=False):
        # Those in memory; a storage would not let finished trials change.
        trial.user_attrs["cost_ratio"] = 0.9 * trial.user_attrs["macs_ratio"]
    best = answer_trial(study)
    study.set_user_attr(
        "tested",
        {"trial": best.number, "accuracy": 79.0, "dense": 80.0, "dense_ms": 4.0,
         "pruned_ms": 2.5, "device": "cpu"},
    )  # fmt: skip
    text = " ".join(summary(study))
    if budget is not None:
        assert "at most 60 % of the latency" in text
    assert "0.00 ms for a batch of 4 on cpu with 2 thread(s)" in text
    assert "median error is 3.4 %" in text
    assert f"It has {100 * best.user_attrs['cost_ratio']:.1f} % of the latency" in text
    assert "Its latency is predicted to be 0.00 ms" in text
    assert "takes 2.50 ms and the dense model 4.00 ms, 62.5 %" in text
    dense, row = build_report([study])["rows"]
    assert dense["cost_ratio"] == 1.0
    assert row["cost_ratio"] == best.user_attrs["cost_ratio"]
    assert row["measured_ms"] == 2.5
    assert "latency" in accuracy_figure([study]).layout.title.text
    assert "equal latency" in [trace.name for trace in path_figure(study).data]
    for page in (markdown_page([study]), html_page([study])):
        assert "measured ms" in page


def test_studies_of_different_costs_are_drawn_over_flops(make_study):
    from vit_ratio_opt.report.figures.accuracy import accuracy_figure

    storage = optuna.storages.InMemoryStorage()
    studies = [make_study(storage, "a"), make_study(storage, "b", cost="params")]
    assert "FLOPs" in accuracy_figure(studies).layout.title.text


def test_a_fixed_ratio_of_another_cost_is_no_baseline(make_study):
    from vit_ratio_opt.records.trials import baseline_of

    storage = optuna.storages.InMemoryStorage()
    searched = make_study(storage, "searched", cost="params")
    of_macs = make_study(storage, "f", fixed=True)
    of_params = make_study(storage, "p", fixed=True, cost="params")
    assert baseline_of(searched, [of_macs]) is None
    assert baseline_of(searched, [of_macs, of_params]) is of_params
