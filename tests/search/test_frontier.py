"""Tests of the search of the whole frontier."""

import itertools
import math

import numpy as np
import pytest
from spaces import try_pairs, whole_head_space

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.forecast import Forecast
from vit_ratio_opt.search.frontier import FrontierSearch
from vit_ratio_opt.search.limits import Frontier
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.search.plan import run_plan
from vit_ratio_opt.space.curve import smallest_cost_ratio
from vit_ratio_opt.space.metric import Metric

SPACE = whole_head_space(hidden_dim=128, blocks=4)
DENSE = 80.0


def accuracy(pair):
    first, second = pair
    return DENSE - 12 * first**2 - 30 * second**4 - 8 * first * second


def make(noise=0.0, **options):
    return Frontier(levels=6).plan(SPACE, noise=noise, dense=DENSE, **options)


def area(pairs):
    """Return the mean over costs of the least loss within each, of exact values."""
    marks = np.linspace(smallest_cost_ratio(SPACE), 1, 200)
    points = [(SPACE.cost_ratio(*pair), DENSE - accuracy(pair)) for pair in pairs]
    least = [min((loss for cost, loss in points if cost <= m), default=DENSE) for m in marks]
    return float(np.mean(least))


def run(plan, trials, value=accuracy):
    return try_pairs(plan, trials, value)


def test_levels_come_first_from_the_largest_cost_to_the_smallest():
    plan = make()
    costs = [SPACE.cost_ratio(*pair) for pair in run(plan, len(plan.levels))]
    assert costs == sorted(costs, reverse=True)
    assert len(costs) == 3
    budgets = Frontier(budgets=(0.3, 0.8, 0.5)).plan(SPACE, dense=DENSE)
    found = [SPACE.cost_ratio(*pair) for pair in run(budgets, 3)]
    assert [round(cost, 1) for cost in found] == [0.8, 0.5, 0.3]
    assert all(cost <= budget for cost, budget in zip(found, (0.8, 0.5, 0.3), strict=True))


def test_levels_begin_next_to_the_path():
    path = [(0.5, 0.05), (0.7, 0.3), (0.8, 0.6)]
    plan = make(path=path)
    apart = [min(abs(a - c) + abs(b - d) for c, d in path) for a, b in plan.levels]
    without = [min(abs(a - c) + abs(b - d) for c, d in path) for a, b in make().levels]
    assert max(apart) < 0.3 < max(without)


def test_sixteen_trials_come_nearer_to_the_frontier_than_all_pairs_of_one_ratio():
    fixed = Frontier(levels=6).plan(SPACE, dense=DENSE, fixed_ratio=True)
    best = area(make().pairs)
    searched = area(run(make(), 16))
    assert searched < area(fixed.pairs)
    assert searched - best < 1.5  # points of accuracy, over all costs


def test_a_search_without_noise_tries_no_pair_twice_and_ends():
    observed = run_plan(Frontier(budgets=(0.7, 0.4)).plan(SPACE, dense=DENSE), accuracy)
    assert {len(values) for values in observed.values()} == {1}
    assert 4 < len(observed) < 40


def test_the_plan_is_the_same_for_every_order_of_the_trials():
    plan, generator = make(Noise(0.5, is_known=False)), np.random.default_rng(0)
    observed = run(plan, 9, lambda pair: accuracy(pair) + generator.normal() / 2)
    proposed = plan.propose(observed)
    turned = dict(reversed(observed.items()))
    assert make(Noise(0.5, is_known=False)).propose(turned).pair == proposed.pair


def test_workers_get_different_pairs_at_other_costs():
    plan = make()
    observed, pending = run(plan, 6), []
    for _ in range(4):
        pending.append(plan.propose(observed, pending).pair)
    assert len({*pending, *observed}) == 10
    costs = sorted(SPACE.cost_ratio(*pair) for pair in pending)
    assert min(b - a for a, b in itertools.pairwise(costs)) > 0.005


def test_workers_that_begin_at_once_get_pairs_spread_over_all_costs():
    plan, pending = make(), []
    for _ in range(16):
        pending.append(plan.propose({}, pending).pair)
    assert len(set(pending)) == 16
    costs = sorted([1.0, *(SPACE.cost_ratio(*pair) for pair in pending)])
    assert max(b - a for a, b in itertools.pairwise(costs)) < 0.15


def test_a_blocked_pair_is_not_tried_and_one_that_is_out_of_range_is_ignored():
    plan = make()
    blocked = {*plan.levels[:2]}
    assert plan.propose({}, blocked=blocked).pair == plan.levels[2]
    assert plan.propose({}, plan.pairs).pair is None
    observed = run(plan, 5)
    far = plan.propose({**observed, (2.0, 0.1): [50.0]}, pending=[(0.1, 3.0)])
    assert far.pair == plan.propose(observed).pair


def test_noise_has_pairs_trained_again_and_exact_values_do_not():
    generator = np.random.default_rng(1)
    noisy = run(make(Noise(2.0)), 30, lambda pair: accuracy(pair) + 2 * generator.normal())
    assert max(map(len, noisy.values())) > 1
    assert max(map(len, run(make(), 30).values())) == 1


def test_the_front_is_monotone_and_its_means_are_shrunk_with_errors():
    generator = np.random.default_rng(2)
    plan = make(Noise(1.0))
    observed = run(plan, 20, lambda pair: accuracy(pair) + generator.normal())
    front = plan.front(observed)
    costs = [SPACE.cost_ratio(*found.pair) for found in front]
    assert costs == sorted(costs)
    assert all(a.mean < b.mean for a, b in itertools.pairwise(front))
    assert all(0 < found.error < 1.2 for found in front)
    errors = [abs(found.mean - accuracy(found.pair)) for found in front]
    own = [abs(found.own - accuracy(found.pair)) for found in front]
    assert np.mean(errors) < np.mean(own)
    inside = [abs(f.mean - accuracy(f.pair)) < 2 * f.error for f in front]
    assert np.mean(inside) > 0.7


@pytest.mark.parametrize("noise", [Noise(0.3), 0.0])
def test_gains_over_the_dense_model_are_estimated_and_compared(noise):
    plan = make(noise)
    gains = {(0.2, 0.2): 9.0, (0.4, 0.4): 10.0, (0.6, 0.6): 5.0, (0.7, 0.7): -20.0}
    front = plan.front({pair: [DENSE + gain] * 2 for pair, gain in gains.items()})
    assert [found.pair for found in front] == [(0.7, 0.7), (0.6, 0.6), (0.4, 0.4)]
    assert [found.mean - DENSE for found in front] == pytest.approx([-20, 5, 10], abs=1.5)
    assert all(abs(found.mean - DENSE - gains[found.pair]) <= 3 * found.error for found in front)


def test_only_complete_pairs_are_on_the_front():
    observed = run(make(), 8)
    front = make().front(observed)
    complete = {pair for pair in observed if pair != front[-1].pair}
    assert front[-1].pair not in [f.pair for f in make().front(observed, complete=complete)]


def test_the_answer_is_the_knee():
    plan = make()
    losses = {(0.3, 0.3): 1.0, (0.5, 0.5): 2.0, (0.7, 0.7): 30.0}
    assert plan.answer({p: [DENSE - loss] for p, loss in losses.items()}).pair == (0.5, 0.5)
    assert plan.answer({}) is None


def test_smaller_values_are_searched_with_the_opposite_sign():
    loss = Metric("loss", larger_is_better=False)
    plan = Frontier(levels=6).plan(SPACE, dense=0.5, metric=loss)
    assert (plan.dense, plan.larger_is_better) == (-0.5, False)
    assert plan.rule.worst == pytest.approx(0.5)  # 100 points of one per cent each
    assert plan.fix_ratio(0, 0.3).larger_is_better is False


def test_a_fixed_ratio_is_that_of_all_pairs():
    plan = make().fix_ratio(1, 0.4)
    seconds = {second for _, second in plan.pairs}
    assert len(seconds) == 1
    assert abs(seconds.pop() - 0.4) < 0.05
    assert plan.propose({}).pair == plan.levels[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 1}, "from 2 to 100"),
        ({"levels": 101}, "from 2 to 100"),
        ({"levels": 2.5}, "whole number"),
        ({"budgets": ()}, "between 0 and 1"),
        ({"budgets": (0.5, 1.2)}, "between 0 and 1"),
        ({"budgets": 0.5}, "between 0 and 1"),
    ],
)
def test_a_frontier_out_of_range_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Frontier(**options)


def test_what_no_plan_can_be_made_from_is_refused():
    with pytest.raises(InputError, match="give its metric as `dense`"):
        Frontier().plan(SPACE)
    with pytest.raises(InputError, match="smallest realisable model"):
        Frontier(budgets=(0.5, 0.001)).plan(SPACE, dense=DENSE)
    for levels, marks, worst, message in (
        ([], [0.5], 1.0, "falling cost"),
        ([(0.5, 0.5), (0.1, 0.1)], [0.5], 1.0, "falling cost"),
        ([(0.5, 0.5)], [], 1.0, "marks"),
        ([(0.5, 0.5)], [0.5], math.inf, "worst"),
    ):
        with pytest.raises(InputError, match=message):
            FrontierSearch(levels, [], SPACE.cost_ratio, marks, dense=1.0, worst=worst)


@pytest.mark.parametrize(
    "forecast", [None, Forecast(((0.0, 0.0), (1.0, 2.0)), ((0.0, 0.0),), 0.03)]
)
def test_values_beyond_the_range_widen_it(forecast):
    """The loss of a model of which nothing is left was taken to be 0.03, but pairs lose 0.9."""
    metric = Metric("error", "", larger_is_better=False)
    plan = Frontier(levels=6).plan(SPACE, noise=Noise(0.005, False), dense=0.03, metric=metric)
    plan.use_forecast(forecast)
    assert plan.rule.worst == 0.03

    def error(pair):
        return -(0.03 + 0.9 * (1 - accuracy(pair) / DENSE))

    observed = run(plan, 12, error)
    assert len(observed) > 6
    for one in plan.front(observed):
        assert one.mean == pytest.approx(error(one.pair), abs=0.02)
        assert one.error < 0.02
