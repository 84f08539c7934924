import itertools
import json
import math
import pickle
import random
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.curve import Curve, believe
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.search.plan import Pair

ESTIMATED = Noise(0.3, is_known=False)


def budget_plan(size: int, start: int = 0, **settings: object) -> BudgetSearch:
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


# Without noise


@pytest.mark.parametrize("size", [*range(1, 31), 32, 33, 47, 48, 60])
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


# With anything


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


def test_pairs_over_the_budget_are_ignored() -> None:
    plan = budget_plan(9, 4)
    assert plan.propose({(0.5, 0.5): [99.0]}).pair == plan.curve[4]
    assert plan.answer({(0.5, 0.5): [99.0]}) is None
    observed = {plan.curve[4]: [0.5], (0.5, 0.5): [99.0]}
    for noise in (0.0, 0.1, ESTIMATED):
        answer = budget_plan(9, 4, noise=noise).answer(observed)
        assert answer is not None
        assert answer.pair == plan.curve[4]
        assert answer.own == 0.5
        assert list(plan.estimates(observed)) == [plan.curve[4]]


# The baseline


@pytest.mark.parametrize("noise", [0.0, 0.1, ESTIMATED])
@pytest.mark.parametrize("baseline", [(4, 4), (2, 6), (4.5, 4.5)])
def test_first_proposal_is_the_baseline(baseline: Pair, noise: float | Noise) -> None:
    plan = budget_plan(9, 4, baseline=baseline, noise=noise)
    proposal = plan.propose({})
    assert proposal.pair == baseline
    assert "fixed ratio" in proposal.why
    after = plan.propose({baseline: [0.5]}).pair
    assert after != baseline
    if baseline != (4, 4):
        assert after == (4, 4)
    # Other workers begin with the start; a blocked baseline does not hold the search up.
    second = plan.propose({}, pending=[baseline]).pair
    assert second not in (None, baseline)
    assert plan.propose({}, blocked=[baseline]).pair == second
    assert plan.propose({plan.curve[8]: [0.5]}).pair == baseline


def test_baseline_has_to_be_within_the_budget() -> None:
    with pytest.raises(InputError, match="`baseline` must be within the budget"):
        budget_plan(9, 4, baseline=(3.5, 3.5))


@pytest.mark.parametrize("size", [1, 2, 3, 9, 28, 60])
def test_a_baseline_costs_one_trial_more_at_the_most(size: int) -> None:
    start = size // 2
    for peak, offset, worse in itertools.product(range(size), (0, 0.5), (0.0, 0.5, 3.0)):
        baseline = (start + offset, start + offset)
        plan = budget_plan(size, start, baseline=baseline)
        values = {pair: -abs(place - peak) * 1.0 for place, pair in enumerate(plan.curve)}
        # Beside the curve it prunes more than the next pair, and is no better.
        values.setdefault(baseline, values[plan.curve[min(start + 1, size - 1)]] - worse)
        observed: dict[Pair, list[float]] = {}
        while (pair := plan.propose(observed).pair) is not None:
            assert pair not in observed
            observed[pair] = [values[pair]]
        assert plan.curve[peak] in observed
        assert len(observed) <= bound(size) + 1
        answer = plan.answer(observed)
        assert answer is not None
        assert answer.mean == answer.own == max(values[pair] for pair in observed)
        assert answer.error == 0


@pytest.mark.parametrize("noise", [0.0, 0.1, ESTIMATED])
def test_all_values_equal_is_the_baseline_s_win(noise: float | Noise) -> None:
    plan = budget_plan(9, 4, baseline=(4.5, 4.5), noise=noise, confirmations=1)
    observed: dict[Pair, list[float]] = {}
    for _ in range(60):
        pair = plan.propose(observed).pair
        if pair is None:
            break
        observed.setdefault(pair, []).append(70.0)
    else:
        pytest.fail("the search does not end")
    answer = plan.answer(observed)
    assert answer is not None
    assert answer.mean == pytest.approx(70.0)
    fixed = plan.estimates(observed)[4.5, 4.5]
    assert answer.pair == fixed.pair or answer.mean > fixed.mean


def test_probability_is_that_of_being_better_than_the_baseline() -> None:
    plan = budget_plan(21, 10, baseline=(10, 10), noise=0.1)
    estimates = plan.estimates({(10, 10): [0.5], (4, 16): [0.1], (14, 6): [0.9]})
    assert estimates[10, 10].probability == 0.5
    assert estimates[4, 16].probability < 0.1
    assert estimates[14, 6].probability > 0.9
    exact = budget_plan(21, 10, baseline=(10, 10)).estimates({(10, 10): [0.5], (4, 16): [0.1]})
    assert exact[4, 16].probability == 0.0


# With noise


def noisy(seed: int, noise: float | Noise = ESTIMATED, trials: int = 10, **settings: object):
    """A search of a parabola, the first ``trials`` of it, with noise of 0.3."""
    rng = random.Random(seed)
    plan = budget_plan(29, 9, noise=noise, confirmations=1, **settings)
    observed: dict[Pair, list[float]] = {}
    for trial in range(trials):
        pair = plan.propose(observed, confirm=trials - trial <= trials // 8).pair
        if pair is None:
            break
        observed.setdefault(pair, []).append(parabola(pair) + rng.gauss(0, 0.3))
    return plan, observed


def parabola(pair: Pair) -> float:
    return 70 - 0.02 * (pair[0] - 12) ** 2


@settings(deadline=None, max_examples=30)
@given(
    observed=st.dictionaries(
        st.integers(0, 28), st.lists(st.floats(0, 1), min_size=1, max_size=3), max_size=8
    ),
    baseline=st.sampled_from([None, (9, 9), (9.5, 9.5), (20, 5)]),
    noise=st.sampled_from([0.0, 0.1, ESTIMATED]),
)
def test_answer_is_never_believed_below_the_baseline(
    observed: dict[int, list[float]], baseline: Pair | None, noise: float | Noise
) -> None:
    plan = budget_plan(29, 9, noise=noise, baseline=baseline)
    values = {plan.curve[p]: each for p, each in observed.items()}
    if baseline is not None:
        values.setdefault(baseline, [0.7])
    answer, estimates = plan.answer(values), plan.estimates(values)
    assert (answer is None) == (not values)
    for pair, estimate in estimates.items():
        assert 0 <= estimate.probability <= 1
        assert estimate.error >= 0
        assert estimate.trained == len(values[pair])
        assert estimate.own == pytest.approx(np.mean(values[pair]))
    if answer is not None:
        assert answer == estimates[answer.pair]
        if baseline is not None:
            assert answer.mean >= estimates[baseline].mean


def test_of_pairs_that_cannot_be_told_apart_the_one_trained_more_often_is_the_answer() -> None:
    for seed in range(20):
        plan, observed = noisy(seed)
        believed = believe(Curve(plan.curve, plan.baseline), observed, plan.noise, plan.dense)
        chosen = believed.pairs.index(plan.answer(observed).pair)
        best = int(np.argmax(believed.mean))
        for index in range(len(believed.pairs)):
            difference, error = believed.difference(best, index)
            if difference < 0.25 * error or index == best:
                assert believed.counts[chosen] >= believed.counts[index]
        difference, error = believed.difference(best, chosen)
        assert chosen == best or difference < 0.25 * error


def test_a_tie_goes_to_the_pair_trained_more_often() -> None:
    plan = budget_plan(21, 10, noise=1.0)
    once, twice = plan.curve[9], plan.curve[11]
    assert plan.answer({once: [0.52], twice: [0.5]}).pair == once  # the higher own mean
    assert plan.answer({once: [0.52], twice: [0.4, 0.6]}).pair == twice
    # Without noise it would be a difference.
    assert budget_plan(21, 10).answer({once: [0.52], twice: [0.4, 0.6]}).pair == once


@pytest.mark.parametrize("noise", [0.1, ESTIMATED, 0.0])
def test_confirm_trains_an_answer_that_was_trained_once(noise: float | Noise) -> None:
    plan = budget_plan(21, 10, noise=noise, baseline=(10, 10))
    observed = {(10, 10): [0.1], (14, 6): [5.0], (6, 14): [0.1]}
    assert plan.propose(observed).pair != (14, 6)
    proposal = plan.propose(observed, confirm=True)
    assert proposal == ((14, 6), "confirms the answer, which was trained once")
    for off in ({"pending": [(14, 6)]}, {"blocked": [(14, 6)]}):
        assert plan.propose(observed, confirm=True, **off).pair not in (None, (14, 6))
    twice = observed | {(14, 6): [5.0, 5.0]}
    assert plan.propose(twice, confirm=True) == plan.propose(twice)
    assert plan.propose({}, confirm=True) == plan.propose({})  # the baseline first


def test_an_answer_that_was_lucky_loses_when_it_is_trained_again() -> None:
    plan = budget_plan(3, 1, noise=0.1, confirmations=1)
    first, second, third = plan.curve
    observed = {first: [0.1], second: [0.5], third: [0.45]}
    assert plan.answer(observed).pair == second
    observed[second].append(-0.1)  # it was lucky: the mean is now below the third
    assert plan.answer(observed).pair == third
    assert plan.propose(observed).pair == third
    assert plan.propose(observed, pending=[second, third]).pair is None


def test_candidates_are_on_both_sides_of_what_the_noise_may_have_ordered() -> None:
    observed = {4: 0.1, 10: 0.5, 14: 0.49, 20: 0.1}
    assert next_position(budget_plan(21, 10), observed) == 7
    assert budget_plan(21, 10).bracket({(p, 20 - p): [v] for p, v in observed.items()}) == (
        (4, 16),
        (14, 6),
    )
    assert budget_plan(21, 10, noise=0.1).bracket(
        {(p, 20 - p): [v] for p, v in observed.items()}
    ) == ((4, 16), (20, 0))
    contenders = {9: 0.1, 10: 0.5, 11: 0.49, 20: 0.1}
    assert next_position(budget_plan(21, 10), contenders) is None
    assert next_position(budget_plan(21, 10, noise=0.1), contenders) is not None


@pytest.mark.parametrize("noise", [0.3, ESTIMATED])
def test_a_search_ends_with_an_answer_that_was_trained_again(noise: float | Noise) -> None:
    for seed in range(6):
        plan, observed = noisy(seed, noise, trials=200, baseline=(9.5, 9.5))
        assert sum(map(len, observed.values())) < 100
        answer = plan.answer(observed)
        assert answer is not None
        assert answer.trained >= 2
        assert max(map(len, observed.values())) <= 3


def test_reported_mean_is_shrunk_and_its_interval_holds_the_truth() -> None:
    bias, own_bias, covered, regret, seeds = 0.0, 0.0, 0, 0.0, 60
    for seed in range(seeds):
        plan, observed = noisy(seed)
        answer = plan.answer(observed)
        truth = parabola(answer.pair)
        bias += (answer.mean - truth) / seeds
        own_bias += (answer.own - truth) / seeds
        covered += abs(answer.mean - truth) <= 1.645 * answer.error
        regret += (70 - truth) / seeds
    assert abs(bias) < 0.1
    assert own_bias > 0.1 > abs(bias)
    assert covered >= 0.8 * seeds
    assert regret < 0.3


# Whatever was observed


def test_a_neighbour_far_from_the_best_counts_among_thousands_of_pairs() -> None:
    # The belief looks at the 48 nearest pairs, which are all on one side of the best here.
    observed = {p: p / 1000 for p in range(900)} | {1000: 0.0}
    plan = budget_plan(2000, 1000)
    assert plan.bracket({plan.curve[p]: [v] for p, v in observed.items()}) == (
        plan.curve[898],
        plan.curve[1000],
    )
    for noise in (0.0, 0.1, ESTIMATED):
        position = next_position(budget_plan(2000, 1000, noise=noise), observed)
        assert position is None or position not in observed or noise


@pytest.mark.parametrize("noise", [0.0, 0.1, ESTIMATED])
def test_thousands_of_observations(noise: float | Noise) -> None:
    rng = random.Random(0)
    plan = budget_plan(500, 100, noise=noise, baseline=(100.5, 120))
    observed = {
        pair: [rng.gauss(0, 0.3) - abs(pair[0] - 300) / 50 for _ in range(rng.randint(1, 20))]
        for pair in rng.sample(plan.curve, 400)
    }
    observed |= {(p + 0.5, 300.0): [-9.0] for p in range(1, 499)}
    assert plan.propose(observed).pair == (100.5, 120)
    observed[100.5, 120] = [-4.0]
    answer = plan.answer(observed)
    assert answer is not None
    assert abs(answer.pair[0] - 300) < 50
    assert (100.5, 120) in plan.estimates(observed)
    # The start was tried, even though it is too far from the best to count.
    observed.setdefault((100, 100), [-4.0])
    assert plan.propose(observed).pair != (100, 100)


def test_of_thousands_of_gaps_the_widest_are_looked_at() -> None:
    plan = budget_plan(4000, 2000, noise=1e6)
    observed = {plan.curve[p]: [0.1] for p in range(0, 4000, 4)}
    for p in range(2001, 2012):
        observed.pop(plan.curve[p], None)
    pair = plan.propose(observed, pending=plan.curve[1:2000:4]).pair
    assert pair is not None
    assert pair not in observed


@pytest.mark.parametrize("noise", [0.0, 0.1, ESTIMATED])
@pytest.mark.parametrize("baseline", [None, (0.5, 0.25), (0.75, 0.75)])
def test_a_curve_of_one_pair(baseline: Pair | None, noise: float | Noise) -> None:
    plan = BudgetSearch([(0.5, 0.25)], noise=noise, confirmations=1, baseline=baseline)
    observed: dict[Pair, list[float]] = {}
    for _ in range(9):
        pair = plan.propose(observed).pair
        if pair is None:
            break
        observed.setdefault(pair, []).append(1.0)
    else:
        pytest.fail("the search does not end")
    assert set(observed) == {(0.5, 0.25)} | ({baseline} if baseline else set())
    assert plan.answer(observed) is not None
    assert plan.propose({}, pending=[(0.5, 0.25), (0.75, 0.75)]).pair is None


@pytest.mark.parametrize("noise", [0.0, 0.1, ESTIMATED])
def test_a_pair_within_the_budget_beside_the_curve_is_believed_and_not_searched(
    noise: float | Noise,
) -> None:
    plan = budget_plan(9, 4, noise=noise)
    beside = {(4.5, 4.5): [1.0]}
    assert plan.answer(beside).pair == (4.5, 4.5)
    assert plan.propose(beside).pair == (4, 4)
    assert plan.propose(beside, pending=[(4, 4)]).pair is not None
    assert plan.propose(beside, pending=plan.curve).pair is None or noise
    assert plan.bracket(beside) == (plan.curve[0], plan.curve[-1])


@pytest.mark.parametrize("noise", [0.0, 0.1, ESTIMATED])
def test_nothing_is_proposed_while_everything_runs(noise: float | Noise) -> None:
    plan = budget_plan(9, 4, noise=noise, baseline=(4.5, 4.5), confirmations=1)
    everything = [*plan.curve, (4.5, 4.5)]
    for confirm in (False, True):
        assert plan.propose({}, everything, confirm=confirm).pair is None
        observed = {plan.curve[3]: [0.4], plan.curve[4]: [0.5]}
        assert plan.propose(observed, everything, confirm=confirm).pair is None
        assert plan.propose(observed, (), everything, confirm=confirm).pair is None


@pytest.mark.parametrize("noise", [0.1, ESTIMATED])
@pytest.mark.parametrize("workers", [2, 7])
def test_noisy_workers_never_share_a_pair_and_come_to_an_end(
    noise: float | Noise, workers: int
) -> None:
    rng = random.Random(workers)
    plan = budget_plan(29, 9, noise=noise, confirmations=1, baseline=(9.5, 9.5))
    observed: dict[Pair, list[float]] = {}
    pending: list[Pair] = []
    for _ in range(200):
        pair = plan.propose(observed, pending).pair
        if pair is not None:
            assert pair not in pending
            pending.append(pair)
        elif not pending:
            return
        if pair is None or len(pending) == workers:
            done = pending.pop(rng.randrange(len(pending)))
            observed.setdefault(done, []).append(parabola(done) + rng.gauss(0, 0.3))
    pytest.fail("the search does not end")


@settings(deadline=None, max_examples=20)
@given(
    observed=st.dictionaries(
        st.integers(0, 28),
        st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1, max_size=3),
        max_size=8,
    ),
    confirm=st.booleans(),
    dice=st.randoms(use_true_random=False),
)
def test_noisy_answer_and_proposal_do_not_depend_on_the_order(
    observed: dict[int, list[float]], confirm: bool, dice: random.Random
) -> None:
    plan = budget_plan(29, 9, noise=ESTIMATED, baseline=(9.5, 9.5), dense=0.4)
    items = [(plan.curve[p], values) for p, values in observed.items()] + [((9.5, 9.5), [0.2])]
    values = dict(items)
    dice.shuffle(items)
    turned = {pair: tuple(dice.sample(each, len(each))) for pair, each in items}
    assert plan.answer(turned) == plan.answer(values)
    assert plan.propose(turned, confirm=confirm) == plan.propose(values, confirm=confirm)


@pytest.mark.parametrize("noise", [0.0, 0.1, ESTIMATED])
@pytest.mark.parametrize("baseline", [None, (9.5, 9.5)])
def test_a_stored_search_is_the_same_search(noise: float | Noise, baseline: Pair | None) -> None:
    plan = BudgetSearch(
        [(p, 18 - p) for p in range(29)],
        start=(12, 6),
        noise=noise,
        confirmations=1,
        baseline=baseline,
        dense=71.0,
    )
    again = BudgetSearch.from_json(json.loads(json.dumps(plan.to_json())))
    copy = pickle.loads(pickle.dumps(plan))
    assert again.to_json() == plan.to_json()
    observed: dict[Pair, list[float]] = {}
    for trial in range(12):
        proposal = plan.propose(observed, confirm=trial > 9)
        assert again.propose(observed, confirm=trial > 9) == proposal
        assert copy.propose(observed, confirm=trial > 9) == proposal
        if proposal.pair is None:
            break
        observed.setdefault(proposal.pair, []).append(parabola(proposal.pair))
        assert again.answer(observed) == copy.answer(observed) == plan.answer(observed)
        assert again.estimates(observed) == plan.estimates(observed)


def test_a_search_stored_by_0_1_0_is_read() -> None:
    plan = BudgetSearch.from_json({"curve": [[0.1, 0.5], [0.2, 0.4]], "noise": 0.2})
    assert plan.curve == ((0.1, 0.5), (0.2, 0.4))
    assert plan.noise == Noise(0.2, is_known=False)
    assert plan.baseline is None


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": -1}, "`noise` must be at least 0, but got -1"),
        ({"confirmations": -1}, "`confirmations` must be"),
        ({"baseline": (0.05, 0.1)}, "`baseline` must be within the budget"),
        ({"start": (0.1, 0.3)}, "`start` must be a pair of the curve"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BudgetSearch([(0.1, 0.2)], **arguments)


def test_a_pair_that_was_only_ever_stopped_early_is_not_the_answer() -> None:
    observed = {(2.0, 8.0): (0.9,), (5.0, 5.0): (0.5,)}
    plan = BudgetSearch([(p, 10 - p) for p in range(11)])
    assert plan.answer(observed).pair == (2, 8)
    assert plan.answer(observed, complete={(5.0, 5.0)}).pair == (5, 5)
    assert plan.answer(observed, complete=set()) is None
