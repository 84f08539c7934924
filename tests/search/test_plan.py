import itertools
import math
import random
from collections.abc import Callable, Sequence
from functools import cache

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search import BudgetSearch, Pair, Plan, ToleranceSearch


def budget_plan(size: int, start: int = 0, **settings: float) -> BudgetSearch:
    """Position p is the pair (p, 2 start - p), so that the curve crosses the diagonal at start."""
    return BudgetSearch([(p, 2 * start - p) for p in range(size)], **settings)


def next_position(
    plan: BudgetSearch, observed: dict[int, float], taken: Sequence[int] = ()
) -> int | None:
    pair = plan.propose(
        {plan.curve[p]: [value] for p, value in observed.items()}, [plan.curve[p] for p in taken]
    ).pair
    return None if pair is None else plan.curve.index(pair)


def search(values: Sequence[float], start: int) -> list[int]:
    """The positions tried until the plan has no more, in order."""
    plan = budget_plan(len(values), start)
    observed: dict[int, float] = {}
    while (position := next_position(plan, observed)) is not None:
        assert position not in observed
        observed[position] = values[position]
    return list(observed)


def bound(size: int) -> int:
    return math.floor(2 * math.log2(size) + 1)


def most_trials(size: int) -> int:
    """Trials until one position is left that can be the maximum, in the worst case.

    Every outcome of every comparison is tried, which is every strictly unimodal function there is.
    """

    @cache
    def still_to_do(left: int, best: int, right: int, left_end_is_better: bool) -> int:
        if right - left == 2:
            return 0
        ends = {left: 0.2 if left_end_is_better else 0.1, right: 0.15}
        observed = {best: 1.0, **{p: value for p, value in ends.items() if 0 <= p < size}}
        position = next_position(budget_plan(size, best), observed)
        assert position is not None
        assert left < position < right
        brackets = (
            [(left, position, best), (position, best, right)]
            if position < best
            else [(best, position, right), (left, best, position)]
        )
        return 1 + max(still_to_do(*b, flag) for b in brackets for flag in (False, True))

    return max(1 + still_to_do(-1, start, size, False) for start in range(size))


# Budget, without noise


@pytest.mark.parametrize("size", range(1, 61))
def test_maximum_is_certain_after_the_documented_number_of_trials(size: int) -> None:
    assert most_trials(size) <= bound(size)


@pytest.mark.parametrize("size", range(1, 10))
def test_maximum_is_found_for_every_unimodal_order_and_start(size: int) -> None:
    # Only the order of the values matters, so this is all there is at these sizes.
    for flanks in itertools.product((0, 1), repeat=size - 1):
        # From the lowest rank up, each value goes to one end of what is left.
        low, high, values = 0, size - 1, [0] * size
        for rank, at_the_end in enumerate(flanks):
            values[high if at_the_end else low] = rank
            low, high = (low, high - 1) if at_the_end else (low + 1, high)
        values[low] = size
        for start in range(size):
            tried = search(values, start)
            assert low in tried
            assert len(tried) <= bound(size)


@given(st.data())
def test_bracket_always_holds_the_maximum(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 60))
    peak = data.draw(st.integers(0, size - 1))
    ranks = data.draw(st.lists(st.floats(0, 1), min_size=size - 1, max_size=size - 1, unique=True))
    values = [*sorted(ranks[:peak]), 2, *sorted(ranks[peak:], reverse=True)]
    tried: list[int] = []
    for position in search(values, data.draw(st.integers(0, size - 1))):
        tried.append(position)
        best = max(tried, key=values.__getitem__)
        left = max((p for p in tried if p < best), default=-1)
        right = min((p for p in tried if p > best), default=size)
        assert left < peak < right


def test_search_begins_at_the_start_and_halves_the_wider_gap() -> None:
    plan = budget_plan(33, 8)
    assert next_position(plan, {}) == 8
    assert next_position(plan, {8: 0.7}) == 20
    assert next_position(plan, {8: 0.7, 20: 0.8}) == 26
    assert next_position(plan, {8: 0.7, 20: 0.8, 26: 0.6}) == 14


def test_equal_gaps_are_decided_by_the_better_far_end() -> None:
    plan = budget_plan(21, 10)
    assert next_position(plan, {4: 0.1, 10: 0.5, 16: 0.2}) == 13
    assert next_position(plan, {4: 0.2, 10: 0.5, 16: 0.1}) == 7


def test_search_ends_when_the_bracket_is_closed() -> None:
    proposal = budget_plan(10, 5).propose(
        {(p, 10 - p): [v] for p, v in {4: 1, 5: 3, 6: 2}.items()}
    )
    assert proposal == (None, "the best of the 10 pairs lies between its neighbours")


def test_search_begins_where_it_is_told() -> None:
    curve = [(p, 8 - p) for p in range(9)]
    assert BudgetSearch(curve, start=(1, 7)).propose({}).pair == (1, 7)
    with pytest.raises(InputError, match="`start` must be a pair of the curve"):
        BudgetSearch(curve, start=(1, 6))


# Budget, with noise


def test_means_that_the_noise_may_have_ordered_are_both_searched() -> None:
    observed = {4: 0.1, 10: 0.5, 14: 0.49, 20: 0.1}
    assert next_position(budget_plan(21, 10, noise=0.0), observed) == 7
    assert next_position(budget_plan(21, 10, noise=0.1), observed) in (7, 17)
    contenders = {9: 0.1, 10: 0.5, 11: 0.49, 20: 0.1}
    assert next_position(budget_plan(21, 10, noise=0.0), contenders) is None
    assert next_position(budget_plan(21, 10, noise=0.1), contenders) == 15


def test_winner_is_confirmed_with_fresh_seeds_and_may_lose() -> None:
    plan = budget_plan(3, 1, noise=0.1, confirmations=1)
    first, second, third = plan.curve
    observed = {first: [0.1], second: [0.5], third: [0.45]}
    assert plan.propose(observed).pair == second
    assert plan.propose(observed, pending=[second]).pair is None
    observed[second].append(0.3)  # it was lucky: the mean is now below the third
    assert plan.winner(observed) == third
    assert plan.propose(observed).pair == third
    observed[third].append(0.45)
    assert plan.propose(observed) == (
        None,
        "the best of the 3 pairs lies between its neighbours, trained 2 times",
    )


def test_more_noise_never_leaves_the_neighbours_of_the_winner_untried() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        plan = budget_plan(29, 9, noise=0.3, confirmations=1)
        observed: dict[Pair, list[float]] = {}
        while (pair := plan.propose(observed).pair) is not None:
            value = 70 - 0.02 * (pair[0] - 12) ** 2 + rng.gauss(0, 0.3)
            observed.setdefault(pair, []).append(value)
        winner = plan.winner(observed)
        assert winner is not None
        place = plan.curve.index(winner)
        assert {plan.curve[p] for p in (place - 1, place, place + 1) if 0 <= p < 29} <= set(
            observed
        )
        assert len(observed[winner]) >= 2


# Budget, with anything


positions = st.integers(0, 29)


@given(
    size=st.integers(1, 30),
    observed=st.dictionaries(positions, st.floats(0, 1)),
    taken=st.sets(positions),
    start=positions,
)
def test_nothing_observed_or_taken_is_proposed(
    size: int, observed: dict[int, float], taken: set[int], start: int
) -> None:
    assume(start < size)
    plan = budget_plan(size, start)
    observed = {position: value for position, value in observed.items() if position < size}
    taken = {position for position in taken if position < size}
    free = set(range(size)) - set(observed) - taken
    for _ in range(len(free) + 1):
        proposed = next_position(plan, observed, sorted(taken))
        if proposed is None:
            return
        assert proposed in free
        free.remove(proposed)
        taken.add(proposed)  # as it is with idle workers that all ask at once
    pytest.fail("more proposals than positions")


@example(observed={3: 0.1, 7: 0.1}, taken=[], start=5)
@given(
    observed=st.dictionaries(positions, st.sampled_from([0.1, 0.2, 0.3]), min_size=2, max_size=8),
    taken=st.lists(positions, unique=True, max_size=4),
    start=positions,
)
def test_proposal_does_not_depend_on_the_order_of_what_was_observed(
    observed: dict[int, float], taken: list[int], start: int
) -> None:
    plan = budget_plan(30, start)
    turned = dict(reversed(observed.items()))
    assert next_position(plan, observed, taken) == next_position(plan, turned, taken[::-1])


def test_taken_positions_split_the_gaps() -> None:
    # Idle workers get different points that divide the bracket, not neighbours.
    observed, taken = {16: 0.5}, []
    for _ in range(6):
        taken.append(next_position(budget_plan(33, 16), observed, taken))
    assert sorted([*taken, *observed]) == [3, 7, 11, 16, 20, 24, 28]


def test_with_nothing_observed_workers_divide_the_curve() -> None:
    taken: list[int] = []
    for _ in range(7):
        taken.append(next_position(budget_plan(31, 15), {}, taken))
    assert taken[0] == 15
    assert sorted(taken) == [3, 7, 11, 15, 19, 23, 27]


def test_pairs_off_the_curve_are_ignored() -> None:
    plan = budget_plan(9, 4)
    assert plan.propose({(0.5, 0.5): [99.0]}).pair == plan.curve[4]
    assert plan.winner({(0.5, 0.5): [99.0]}) is None


# Tolerance

HEADS, NEURONS, DENSE_COST = 28, 60, 1.0
COLUMNS = [(h / 32, [n / 64 for n in range(NEURONS + 1)]) for h in range(HEADS + 1)]
PAIRS = [(first, second) for first, seconds in COLUMNS for second in seconds]


def cost(first: float, second: float) -> float:
    return DENSE_COST - 0.55 * first - 0.4 * second


def loss(first: float, second: float, steep: tuple[float, float] = (3.0, 4.0)) -> float:
    return math.expm1(steep[0] * first) + 0.4 * math.expm1(steep[1] * second)


def tolerance_plan(tolerance: float = 2.0, **settings: object) -> ToleranceSearch:
    return ToleranceSearch(COLUMNS, cost, tolerance, **settings)


def run(plan: Plan, margin: Callable[[Pair], float], trials: int = 200) -> dict[Pair, list[float]]:
    observed: dict[Pair, list[float]] = {}
    for _ in range(trials):
        pair = plan.propose(observed).pair
        if pair is None:
            return observed
        observed.setdefault(pair, []).append(margin(pair))
    pytest.fail("the search does not end")


@settings(deadline=None, max_examples=25)
@example(tolerance=2.96875, steep=(1.90625, 3.0))  # open only between the thinned candidates
@given(
    tolerance=st.floats(0.3, 10),
    steep=st.tuples(st.floats(0.5, 5), st.floats(0.5, 5)),
)
def test_without_noise_the_cheapest_pair_within_the_tolerance_is_found(
    tolerance: float, steep: tuple[float, float]
) -> None:
    def margin(pair: Pair) -> float:
        return tolerance - loss(*pair, steep)

    plan = tolerance_plan(tolerance, resolution=0.0)
    observed = run(plan, margin)
    cheapest = min(cost(*pair) for pair in PAIRS if margin(pair) >= 0)
    winner = plan.winner(observed)
    assert (DENSE_COST if winner is None else cost(*winner)) == pytest.approx(cheapest)
    assert all(len(values) == 1 for values in observed.values())


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.0, 4.0])
def test_ten_trials_come_within_a_hundredth_of_the_cheapest_pair(tolerance: float) -> None:
    def margin(pair: Pair) -> float:
        return tolerance - loss(*pair)

    plan, observed = tolerance_plan(tolerance), {}
    for _ in range(10):
        pair = plan.propose(observed).pair
        if pair is not None:
            observed[pair] = [margin(pair)]
    cheapest = min(cost(*pair) for pair in PAIRS if margin(pair) >= 0)
    assert cost(*plan.winner(observed)) <= cheapest + 0.01


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.0, 4.0])
def test_a_search_goes_along_its_path_before_it_leaves_it(tolerance: float) -> None:
    path = [PAIRS[index] for index in range(len(PAIRS)) if PAIRS[index][0] == 2 * PAIRS[index][1]]
    assert len(path) > 5
    plan, observed, left = tolerance_plan(tolerance, path=path), {}, 0
    for trial in range(12):
        pair = plan.propose(observed).pair
        if pair is None:
            break
        if pair in path:
            assert not left, "back on the path"
        else:
            left = left or trial
        observed[pair] = [tolerance - loss(*pair)]
    assert 0 < left <= 6
    cheapest = min(cost(*pair) for pair in PAIRS if tolerance - loss(*pair) >= 0)
    assert cost(*plan.winner(observed)) <= cheapest + 0.01


def test_a_pair_that_prunes_more_than_one_that_failed_is_never_tried() -> None:
    failed: list[Pair] = []

    def margin(pair: Pair) -> float:
        assert not any(pair[0] >= f[0] and pair[1] >= f[1] for f in failed)
        value = 1.0 - loss(*pair)
        if value < 0:
            failed.append(pair)
        return value

    run(tolerance_plan(1.0), margin)
    assert failed


def test_a_pair_that_costs_more_than_the_winner_is_never_tried() -> None:
    cheapest = [math.inf]

    def margin(pair: Pair) -> float:
        assert cost(*pair) < cheapest[0]
        value = 1.0 - loss(*pair)
        if value >= 0:
            cheapest[0] = cost(*pair)
        return value

    run(tolerance_plan(1.0), margin)


def test_idle_workers_get_different_pairs() -> None:
    plan, pending = tolerance_plan(), []
    for _ in range(64):
        pair = plan.propose({(0.25, 0.25): [0.1]}, pending).pair
        assert pair is not None
        assert pair not in pending
        pending.append(pair)


def test_lucky_winner_is_trained_again_before_anything_else() -> None:
    plan = tolerance_plan(2.0, noise=0.3, confirmations=1)
    around = {(0.5, 0.25): [-1.5], (0.375, 0.25): [-0.6], (0.4375, 0.1875): [-0.8]}
    observed = {**around, (0.40625, 0.25): [0.05]}
    proposal = plan.propose(observed)
    assert proposal.pair == (0.40625, 0.25)
    assert "fresh seed" in proposal.why
    assert plan.propose(observed, pending=[(0.40625, 0.25)]).pair != (0.40625, 0.25)
    observed[0.40625, 0.25].append(-0.9)
    assert plan.winner(observed) is None


def test_a_failure_within_the_noise_excludes_nothing() -> None:
    observed = {(0.25, 0.25): [-0.2]}
    assert tolerance_plan(noise=0.3)._failed(observed[0.25, 0.25]) is False
    assert tolerance_plan(noise=0.05)._failed(observed[0.25, 0.25]) is True


def test_search_ends_at_once_when_nothing_is_within_the_tolerance() -> None:
    plan = ToleranceSearch([(0.5, [0.5])], cost, 1.0)
    assert plan.propose({(0.5, 0.5): [-3.0]}) == (
        None,
        "no pair can be expected to keep the accuracy within the tolerance",
    )


@pytest.mark.parametrize("value", [-40.0, 0.0, 2.0, 300.0])
def test_constant_margins_come_to_an_end(value: float) -> None:
    plan = tolerance_plan(2.0, noise=0.3, confirmations=1)
    observed = run(plan, lambda pair: value)
    if value >= 0:
        assert plan.winner(observed) == (HEADS / 32, NEURONS / 64)
    else:
        assert plan.winner(observed) is None


def test_margins_that_are_not_monotone_come_to_an_end() -> None:
    rng = random.Random(0)
    run(tolerance_plan(2.0, noise=0.3, confirmations=1), lambda pair: rng.uniform(-3, 2))


def test_fixed_ratio_is_a_bisection_of_the_diagonal() -> None:
    steps = [i / 512 for i in range(448)]
    plan = ToleranceSearch([(step, [step]) for step in steps], cost, 2.0, resolution=0.0)
    observed = run(plan, lambda pair: 2.0 - loss(*pair))
    best = max(step for step in steps if loss(step, step) <= 2.0)
    assert plan.winner(observed) == (best, best)
    assert len(observed) <= math.log2(len(steps)) + 2


def test_thousands_of_observations_do_not_slow_the_belief_down() -> None:
    rng = random.Random(0)
    observed = {
        (rng.random() * 0.8, rng.random() * 0.8): [rng.uniform(-9, 2)] for _ in range(5000)
    }
    plan = tolerance_plan()
    belief = plan._belief(plan._rank(observed))
    assert len(belief._points) == 50


@pytest.mark.parametrize("kind", [list, tuple])
def test_what_was_ranked_before_does_not_matter(kind: type) -> None:
    rng = random.Random(0)
    plan, observed = tolerance_plan(noise=0.5), {}
    for step in range(400):
        pair, margin = rng.choice(PAIRS[::40]), rng.uniform(-3, 2)
        if step % 100 == 99:
            del observed[pair := rng.choice(list(observed))]  # as in another study
        elif kind is list:
            observed.setdefault(pair, []).append(margin)
        else:
            observed[pair] = (*observed.get(pair, ()), margin)
        if rng.random() < 0.7:
            assert plan._rank(observed) == tolerance_plan(noise=0.5)._rank(observed)


@pytest.mark.parametrize("axis", [0, 1])
def test_along_a_fixed_ratio_the_other_is_bisected(axis: int) -> None:
    plan = tolerance_plan(2.0, resolution=0.0).along(axis, 0.25)
    observed = run(plan, lambda pair: 2.0 - loss(*pair))
    assert {pair[axis] for pair in observed} == {0.25}
    line = [pair for pair in PAIRS if pair[axis] == 0.25 and loss(*pair) <= 2.0]
    assert plan.winner(observed) == min(line, key=lambda pair: cost(*pair))


# Refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BudgetSearch([(0.1, 0.2)], noise=-1), "`noise` must be at least 0, but got -1"),
        (lambda: BudgetSearch([(0.1, 0.2)], confirmations=-1), "`confirmations` must be"),
        (lambda: tolerance_plan(0.0), "`tolerance` must be above 0, but got 0.0"),
        (lambda: tolerance_plan(float("nan")), "`tolerance` must be above 0"),
        (lambda: tolerance_plan(1.0, noise=float("inf")), "`noise` must be"),
        (lambda: ToleranceSearch([], cost, 1.0), "at least one pair"),
        (lambda: ToleranceSearch([(0.1, [])], cost, 1.0), "at least one pair"),
        (lambda: ToleranceSearch([(0.1, [0.2])], cost, 1.0, path=[(0.1, 0.3)]), "`path` must be"),
        (lambda: ToleranceSearch([(0.1, [0.2]), (0.1, [0.2])], cost, 1.0), "must rise"),
        (lambda: ToleranceSearch([(0.1, [0.2, 0.1])], cost, 1.0), "must rise"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make: Callable[[], Plan], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
