import itertools
import math
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vit_ratio_opt.search import next_position


def search(values: Sequence[float], start: int) -> list[int]:
    """The positions tried until the plan has no more, in order."""
    observed: dict[int, float] = {}
    while (position := next_position(len(values), observed, start=start)) is not None:
        assert position in range(len(values))
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
        position = next_position(size, observed, start=best)
        assert left < position < right
        brackets = (
            [(left, position, best), (position, best, right)]
            if position < best
            else [(best, position, right), (left, best, position)]
        )
        return 1 + max(still_to_do(*b, flag) for b in brackets for flag in (False, True))

    return max(1 + still_to_do(-1, start, size, False) for start in range(size))


# Without noise


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
            assert low in search(values, start)[: bound(size)]


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
    assert next_position(33, {}, start=8) == 8
    assert next_position(33, {8: 0.7}, start=8) == 20
    assert next_position(33, {8: 0.7, 20: 0.8}, start=8) == 26
    assert next_position(33, {8: 0.7, 20: 0.8, 26: 0.6}, start=8) == 14


def test_equal_gaps_are_decided_by_the_better_far_end() -> None:
    assert next_position(21, {4: 0.1, 10: 0.5, 16: 0.2}, start=10) == 13
    assert next_position(21, {4: 0.2, 10: 0.5, 16: 0.1}, start=10) == 7


def test_trials_after_the_bracket_closed_go_next_to_the_best() -> None:
    observed = {4: 0.1, 5: 0.9, 6: 0.2, 0: 0.0, 9: 0.0}
    assert next_position(10, observed, start=5) in (3, 7)


# With anything


positions = st.integers(0, 29)


@given(
    size=st.integers(1, 30),
    observed=st.dictionaries(positions, st.floats(0, 1)),
    taken=st.sets(positions),
    start=positions,
)
def test_nothing_observed_or_taken_is_proposed_and_all_else_is_in_the_end(
    size: int, observed: dict[int, float], taken: set[int], start: int
) -> None:
    observed = {position: value for position, value in observed.items() if position < size}
    taken = {position for position in taken if position < size}
    assume(start < size)
    free = set(range(size)) - set(observed) - taken
    for _ in range(len(free)):
        proposed = next_position(size, observed, taken=taken, start=start)
        assert proposed in free
        free.remove(proposed)
        taken.add(proposed)  # as it is with idle workers that all ask at once
    assert next_position(size, observed, taken=taken, start=start) is None


@example(observed={3: 0.1, 7: 0.1}, taken=[], start=5)
@given(
    observed=st.dictionaries(positions, st.sampled_from([0.1, 0.2, 0.3]), min_size=2, max_size=8),
    taken=st.lists(positions, unique=True, max_size=4),
    start=positions,
)
def test_proposal_does_not_depend_on_the_order_of_what_was_observed(
    observed: dict[int, float], taken: list[int], start: int
) -> None:
    turned = dict(reversed(observed.items()))
    assert next_position(30, observed, taken=taken, start=start) == next_position(
        30, turned, taken=taken[::-1], start=start
    )


def test_taken_positions_split_the_gaps() -> None:
    # Idle workers get different points that divide the bracket, not neighbours.
    observed, taken = {16: 0.5}, set()
    for _ in range(6):
        taken.add(next_position(33, observed, taken=taken, start=16))
    assert sorted({*taken, *observed}) == [3, 7, 11, 16, 20, 24, 28]


def test_with_nothing_observed_workers_spread_from_the_start() -> None:
    assert next_position(9, {}, taken=[4], start=4) == 3
    assert next_position(9, {}, taken=[3, 4], start=4) == 5
