import math

import numpy as np
import pytest
from spaces import whole_head_space

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.limits import Budget, Tolerance, plan_of
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.space.curve import budget_curve, fixed_ratio_pair
from vit_ratio_opt.space.metric import Metric
from vit_ratio_opt.space.pairs import RatioPair

SPACE = whole_head_space(hidden_dim=128, blocks=4)


@pytest.mark.parametrize("share", [0, -0.1, 1.01, math.nan, math.inf, "0.6", None, True])
def test_a_budget_is_a_fraction(share) -> None:
    with pytest.raises(InputError, match=r"budget must be in \(0, 1\].* but got"):
        Budget(share)


@pytest.mark.parametrize("share", [1, 1.0, 0.6, np.float32(0.5)])
def test_any_number_may_be_a_budget(share) -> None:
    assert Budget(share).to_json() == {"budget": float(share)}


@pytest.mark.parametrize("points", [0, -1.0, math.inf, math.nan, "1"])
def test_a_tolerance_is_some_points(points) -> None:
    with pytest.raises(InputError, match="tolerance must be above 0 and finite, but got"):
        Tolerance(points)


def test_a_tolerance_in_per_cent_is_below_100() -> None:
    with pytest.raises(InputError, match="must be above 0 and below 100 points, but got 100"):
        Tolerance(100).plan(SPACE)
    in_grams = Tolerance(250).plan(SPACE, metric=Metric("error", "g", False), dense=900.0)
    assert (in_grams.constraint, in_grams.noise.point) == ("error_rise", 9.0)


@pytest.mark.parametrize("confidence", [0.5, 1, 0.2, math.nan, "high"])
def test_a_confidence_is_better_than_chance_and_not_certain(confidence) -> None:
    with pytest.raises(InputError, match=r"above 0.5 and below 1.* such as 0\.8"):
        Tolerance(1.0, confidence)


def test_a_budget_searches_its_curve_from_the_fixed_ratio_on() -> None:
    plan = Budget(0.65).plan(SPACE, noise=0.3, confirmations=2, dense=90.0)
    fixed = fixed_ratio_pair(SPACE, 0.65)
    assert len(plan.curve) == len(budget_curve(SPACE, 0.65))
    assert plan.propose({}).pair == plan.baseline == fixed
    assert (plan.noise, plan.confirmations, plan.dense) == (Noise(0.3), 2, 90.0)


def test_a_budget_without_a_known_noise_takes_values_as_exact() -> None:
    assert Budget(0.65).plan(SPACE).noise == Noise(0.0)


def test_a_start_is_the_pair_of_the_curve_that_removes_the_same_units() -> None:
    budget = Budget(0.64)  # the fixed ratio takes the place of a pair of its curve
    fixed = budget.plan(SPACE).baseline
    same = next(
        p
        for p in budget_curve(SPACE, 0.64)
        if SPACE.removed(p) == SPACE.removed(RatioPair(*fixed))
    )
    assert same != fixed
    assert budget.plan(SPACE, start=same).to_json()["start"] == list(fixed)


def test_a_start_follows_the_fixed_ratio() -> None:
    last = Budget(0.65).plan(SPACE).curve[-1]
    plan = Budget(0.65).plan(SPACE, start=last)
    assert plan.propose({plan.baseline: [1.0]}).pair == last


def test_one_fixed_ratio_within_a_budget_is_one_pair() -> None:
    plan = Budget(0.65).plan(SPACE, fixed_ratio=True)
    assert plan.curve == (fixed_ratio_pair(SPACE, 0.65),)
    assert plan.baseline is None


def test_a_budget_that_no_pair_keeps_is_refused_with_the_smallest() -> None:
    with pytest.raises(InputError, match=r"budget must be at least 0\.\d+"):
        Budget(0.01).plan(SPACE)


def test_a_tolerance_searches_all_pairs_with_its_confidence() -> None:
    plan = Tolerance(2.0, 0.9).plan(SPACE, noise=0.3)
    assert (plan.tolerance, plan.confidence, plan.noise) == (2.0, 0.9, Noise(0.3))
    assert sum(len(seconds) for _, seconds in plan.columns) == len(SPACE.mhsa_ratios) * len(
        SPACE.ffn_ratios
    )
    assert plan.cost(*plan.limits[0]) == 1


def test_a_tolerance_without_a_known_noise_guesses_a_quarter_of_it() -> None:
    assert Tolerance(2.0).plan(SPACE).noise == Noise(0.5, is_known=False)


def test_one_fixed_ratio_with_a_tolerance_has_pairs_of_equal_ratios() -> None:
    plan = Tolerance(2.0).plan(SPACE, fixed_ratio=True)
    assert all(seconds == (first,) for first, seconds in plan.columns)


def test_a_path_is_where_a_tolerance_begins() -> None:
    path = [(0.0, 0.0), (SPACE.mhsa_ratios[1], SPACE.ffn_ratios[3])]
    assert Tolerance(2.0).plan(SPACE, path=path).path == tuple(path)


def test_limits_may_be_given_options_of_each_other() -> None:
    options = {"dense": 90.0, "start": None, "path": (), "fixed_ratio": False}
    for limit in (Budget(0.65), Tolerance(1.0)):
        assert limit.plan(SPACE, noise=0.1, confirmations=1, **options).confirmations == 1


def test_a_plan_is_its_own_limit_and_anything_else_is_refused() -> None:
    plan = Budget(0.65).plan(SPACE)
    assert plan_of(plan, SPACE, noise=3.0) is plan
    with pytest.raises(InputError, match=r"must be a Budget, Tolerance, .* but got 0\.6"):
        plan_of(0.6, SPACE)
