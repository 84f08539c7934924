import math
import statistics

import numpy as np
import pytest

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.noise import Levels, Noise, Repeats
from vit_ratio_opt.search.plan import Pair, Plan, alternatives, as_noise, normal_cdf, run_plan
from vit_ratio_opt.search.tolerance import ToleranceSearch

STEPS = [step / 32 for step in range(29)]


def cost(first: float, second: float) -> float:
    return 1 - 0.55 * first - 0.4 * second


def plans() -> list[Plan]:
    return [
        BudgetSearch([(p / 32, 1 - p / 32) for p in range(33)], baseline=(0.5, 0.5)),
        ToleranceSearch([(step, STEPS) for step in STEPS], cost, 2.0),
    ]


def value(pair: Pair) -> float:
    return 2 - 9 * (pair[0] - 0.2) ** 2 - 4 * pair[1]


def test_following_a_plan_observes_what_it_proposes_to_its_end() -> None:
    for plan in plans():
        observed = run_plan(plan, value)
        assert plan.propose(observed).pair is None
        assert all(values == [value(pair)] for pair, values in observed.items())
        answer = plan.answer(observed)
        assert answer is not None
        assert answer.mean == answer.own == value(answer.pair)
        assert (answer.error, answer.trained) == (0, 1)


def test_a_plan_proposes_within_its_limits() -> None:
    for plan in plans():
        (least, least_second), (most, most_second) = plan.limits
        for first, second in run_plan(plan, value):
            assert least <= first <= most
            assert least_second <= second <= most_second


def test_nothing_observed_is_no_answer() -> None:
    for plan in plans():
        assert plan.answer({}) is None
        assert plan.answer({(0.5, 0.5): []}) is None
        assert plan.propose({(0.5, 0.5): []}) == plan.propose({})


def test_distribution_function_of_the_standard_normal() -> None:
    x = np.linspace(-9, 9, 1001)
    exact = [statistics.NormalDist().cdf(each) for each in x]
    assert normal_cdf(x) == pytest.approx(exact, abs=1.2e-5)
    assert ((normal_cdf(x) >= 0) & (normal_cdf(x) <= 1)).all()
    assert normal_cdf(np.array([-math.inf, math.inf])).tolist() == [0, 1]


def test_alternatives_are_all_levels_times_all_own_deviations() -> None:
    levels = Levels(np.array([0.1, 0.2]), np.array([math.inf, 1.0]), np.array([-1.0, -2.0]))
    repeats = Repeats(np.array([-1.0, 3.0]), np.zeros(2), np.array([1.0, 4.0]))
    found = alternatives(levels, repeats, 2.0, np.array([1.0, 1.0, 10.0]))
    assert found.log_weights.tolist() == [-1.0] * 3 + [-2.0] * 3
    single = np.array([[0.01, 0.01]] * 3 + [[0.04 * 5, 0.04 * 10]] * 3)
    assert found.noise == pytest.approx(single / [1, 4])
    assert found.own == pytest.approx(single * np.array([0, 0.25, 1] * 2)[:, None])
    assert found.next_noise == pytest.approx([1.0] * 3 + [0.04 * 5 * 100] * 3)
    without = alternatives(
        Levels(np.zeros(1), np.array([math.inf]), np.zeros(1)), repeats, 2.0, np.ones(3)
    )
    assert without.noise.tolist() == without.own.tolist() == [[0.0, 0.0]]


def test_a_number_is_a_known_noise() -> None:
    assert as_noise(0.3, 0) == Noise(0.3, is_known=True)
    estimated = Noise(0.3, is_known=False)
    assert as_noise(estimated, 0) is estimated
    with pytest.raises(InputError, match="`confirmations` must be at least 0, but got -1"):
        as_noise(0.3, -1)
    with pytest.raises(InputError, match="`noise` must be at least 0, but got -1"):
        as_noise(-1, 0)
