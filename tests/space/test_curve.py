from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from shapes import LATENCY, SMALL, TINY, spaces, spaces_and_budgets

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.costs import MACS, PARAMS, Latency
from vit_ratio_opt.space.curve import (
    budget_curve,
    check_budget,
    cost_saved,
    curve_and_baseline,
    fixed_ratio_pair,
    pair_columns,
    smallest_cost_ratio,
)
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.structural import StructuralSpace

HEADS = StructuralSpace(TINY, "head")

Case = tuple[StructuralSpace, float]


def macs_ratio(space: StructuralSpace, pair: RatioPair) -> float:
    return space.pruned_macs(pair) / space.macs


def number_after(phrase: str, error: pytest.ExceptionInfo[InputError]) -> float:
    match = re.search(rf"{phrase} ([0-9.]+[0-9])", str(error.value))
    assert match, f"no number after {phrase!r} in {error.value}"
    return float(match[1])


@given(case=spaces_and_budgets())
@settings(max_examples=150, deadline=None)
def test_curve_uses_up_the_budget_and_never_exceeds_it(
    case: Case,
) -> None:
    space, budget = case
    curve = budget_curve(space, budget)
    for pair in curve:
        assert macs_ratio(space, pair) <= budget
        heads, neurons = space.removed(pair)
        assert pair == (heads / space.mhsa_units, neurons / space.neurons)
        if neurons:
            one_back = RatioPair(pair.mhsa_ratio, (neurons - 1) / space.neurons)
            assert macs_ratio(space, one_back) > budget
    for before, after in itertools.pairwise(curve):
        assert before.mhsa_ratio < after.mhsa_ratio
        assert before.ffn_ratio > after.ffn_ratio


@given(case=spaces_and_budgets(max_heads=4, max_hidden=16))
@settings(max_examples=60, deadline=None)
def test_curve_is_the_brute_force_front(case: Case) -> None:
    space, budget = case
    most_heads, most_neurons = space.removed(space.max_pair)
    feasible = [
        (heads, neurons)
        for heads in range(most_heads + 1)
        for neurons in range(most_neurons + 1)
        if macs_ratio(space, RatioPair(heads / space.mhsa_units, neurons / space.neurons))
        <= budget
    ]
    curve = [space.removed(pair) for pair in budget_curve(space, budget)]
    assert set(curve) <= set(feasible)
    for heads, neurons in feasible:
        assert any(h <= heads and n <= neurons for h, n in curve)
        if any((h, n) != (heads, neurons) and h <= heads and n <= neurons for h, n in feasible):
            assert (heads, neurons) not in curve  # it prunes something without need


@given(space=spaces())
@settings(max_examples=50, deadline=None)
def test_budget_one_prunes_nothing(space: StructuralSpace) -> None:
    assert budget_curve(space, 1) == (RatioPair(0, 0),)
    assert fixed_ratio_pair(space, 1) == RatioPair(0, 0)


@given(space=spaces())
@settings(max_examples=50, deadline=None)
def test_smallest_budget_gives_only_the_largest_pair(space: StructuralSpace) -> None:
    assert budget_curve(space, smallest_cost_ratio(space)) == (space.max_pair,)


@given(case=spaces_and_budgets())
@settings(max_examples=100, deadline=None)
def test_budget_is_exact_to_the_last_bit(case: Case) -> None:
    space, budget = case
    for pair in budget_curve(space, budget):
        exactly = macs_ratio(space, pair)
        assert pair in budget_curve(space, exactly)
        if exactly > smallest_cost_ratio(space):
            assert pair not in budget_curve(space, math.nextafter(exactly, 0))


@given(space=spaces(), share=st.floats(0.001, 0.999))
@settings(max_examples=50, deadline=None)
def test_budget_below_smallest_names_one_that_works(space: StructuralSpace, share: float) -> None:
    with pytest.raises(InputError) as error:
        budget_curve(space, smallest_cost_ratio(space) * share)
    assert budget_curve(space, number_after("must be at least", error))


@pytest.mark.parametrize("budget", [0, -1, 1.5, float("nan"), float("inf")])
@pytest.mark.parametrize("function", [budget_curve, fixed_ratio_pair])
def test_budget_that_is_no_fraction_is_refused(function, budget: float) -> None:
    with pytest.raises(InputError, match=r"in \(0, 1\]"):
        function(HEADS, budget)


# The fixed ratio


@given(case=spaces_and_budgets())
@settings(max_examples=150, deadline=None)
def test_fixed_ratio_is_the_smallest_within_the_budget(
    case: Case,
) -> None:
    space, budget = case
    try:
        ratio, same = pair = fixed_ratio_pair(space, budget)
    except InputError:
        largest = min(space.max_pair)
        assert macs_ratio(space, RatioPair(largest, largest)) > budget
        return
    assert ratio == same
    assert macs_ratio(space, pair) <= budget
    steps = [i / units for units in (space.mhsa_units, space.neurons) for i in range(units)]
    smaller = max((step for step in steps if step < ratio), default=None)
    if smaller is not None:
        assert macs_ratio(space, RatioPair(smaller, smaller)) > budget


@given(case=spaces_and_budgets())
@settings(max_examples=100, deadline=None)
def test_curve_dominates_the_fixed_ratio(case: Case) -> None:
    space, budget = case
    try:
        heads, neurons = space.removed(fixed_ratio_pair(space, budget))
    except InputError:
        assume(False)
    on_curve = dict(space.removed(pair) for pair in budget_curve(space, budget))
    assert on_curve[heads] <= neurons


def test_budget_that_one_ratio_cannot_meet_names_the_one_it_can() -> None:
    budget = smallest_cost_ratio(HEADS)
    with pytest.raises(InputError, match=r"ratio 0\.7500") as error:
        fixed_ratio_pair(HEADS, budget)
    assert fixed_ratio_pair(HEADS, number_after("reaches at best", error)) == (0.75, 0.75)


# Other costs


@pytest.mark.parametrize("cost", [PARAMS, Latency(curves=LATENCY)])
def test_pairs_on_the_curve_meet_the_budget_and_waste_nothing(cost) -> None:
    space = StructuralSpace(SMALL, cost=cost)
    for budget in (0.45, 0.6, 0.83):
        curve = budget_curve(space, budget)
        for pair in curve:
            assert space.cost_ratio(*pair) <= budget
            index = space.ffn_ratios.index(pair.ffn_ratio)
            if index:
                assert space.cost_ratio(pair.mhsa_ratio, space.ffn_ratios[index - 1]) > budget
        assert space.cost_ratio(*fixed_ratio_pair(space, budget)) <= budget


def test_another_cost_gives_another_curve() -> None:
    by_cost = {budget_curve(StructuralSpace(SMALL, cost=cost), 0.6) for cost in (MACS, PARAMS)}
    assert len(by_cost) == 2


def test_lines_of_equal_cost_are_those_of_the_cost() -> None:
    saved = cost_saved(StructuralSpace(SMALL, cost=Latency(curves=LATENCY)))
    assert saved["mhsa_ratio"][-1] == [round(21 / 24, 6), round(800 / 3_900, 6)]


def test_refusals_name_the_cost() -> None:
    with pytest.raises(InputError, match="the dense model's latency"):
        check_budget(StructuralSpace(SMALL, cost=Latency(curves=LATENCY)), 0.1)
    with pytest.raises(InputError, match="the dense model's parameters"):
        check_budget(StructuralSpace(SMALL, cost=PARAMS), 2.0)


# All pairs


def test_columns_have_every_pair_or_the_fixed_ratios() -> None:
    columns = pair_columns(HEADS)
    assert [first for first, _ in columns] == list(HEADS.mhsa_ratios)
    assert all(seconds == HEADS.ffn_ratios for _, seconds in columns)
    fixed = pair_columns(HEADS, fixed_ratio=True)
    assert all(seconds == (first,) for first, seconds in fixed)
    assert fixed[-1][0] == min(HEADS.max_pair)


def test_the_baseline_takes_the_place_of_its_twin_on_the_curve() -> None:
    curve, fixed = curve_and_baseline(HEADS, 0.65)
    assert fixed == fixed_ratio_pair(HEADS, 0.65)
    removed = [HEADS.removed(pair) for pair in curve]
    assert removed == [HEADS.removed(pair) for pair in budget_curve(HEADS, 0.65)]
    assert all(pair == fixed for pair in curve if HEADS.removed(pair) == HEADS.removed(fixed))
    assert curve_and_baseline(HEADS, smallest_cost_ratio(HEADS))[1] is None
