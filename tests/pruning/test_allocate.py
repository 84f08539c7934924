import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ratio_opt.pruning.allocate import (
    cheapest_choices,
    cheapest_heads,
    cheapest_prefixes,
    even_counts,
    heads_losses,
    prefix_losses,
)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dims", [3, 7, 12, 20, 36])
def test_heads_and_ranks_are_the_cheapest_of_all_that_come_to_the_sum(
    seed: int, dims: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    losses = [torch.rand(3, 4, generator=generator) for _ in range(3)]
    chosen = cheapest_heads(losses, dims)
    choices = list(itertools.product(range(1, 4), range(1, 5)))
    sums: dict[int, float] = {}
    for blocks in itertools.product(choices, repeat=3):
        size = sum(h * r for h, r in blocks)
        loss = sum(float(t[h - 1, r - 1]) for t, (h, r) in zip(losses, blocks, strict=True))
        sums[size] = min(sums.get(size, loss), loss)
    reached = sum(h * r for h, r in chosen)
    assert reached == max(size for size in sums if size <= dims)
    found = sum(float(t[h - 1, r - 1]) for t, (h, r) in zip(losses, chosen, strict=True))
    assert found == pytest.approx(sums[reached])


def test_neurons_go_where_they_cost_least_but_not_below_the_minimum() -> None:
    losses = [torch.tensor([1.0, 2, 3, 4]), torch.tensor([0.1, 0.1, 0.1, 0.1])]
    assert cheapest_prefixes(losses, 3, minimums=[1, 1]) == [0, 3]
    assert cheapest_prefixes(losses, 5, minimums=[1, 1]) == [2, 3]


def test_a_cheap_neuron_behind_a_dear_one_costs_both() -> None:
    losses = [torch.tensor([5.0, 0.1, 6.0]), torch.tensor([1.0, 2.0, 3.0])]
    assert cheapest_prefixes(losses, 2, minimums=[0, 0]) == [0, 2]


def test_even_counts_take_the_same_share_of_every_block() -> None:
    ones = [1, 1]
    assert even_counts([8, 16], 6, ones, ones) == [2, 4]
    assert even_counts([4, 4], 3, ones, ones) == [1, 2]
    assert even_counts([2, 10], 9, ones, ones) == [1, 8]
    assert even_counts([8, 8], 8, ones, ones, shares=[3, 1]) == [6, 2]


def test_what_is_left_of_a_block_that_gives_is_a_multiple_of_the_step() -> None:
    assert even_counts([20, 20], 5, [8, 8], [8, 8]) == [4, 4]
    assert even_counts([20, 20], 9, [8, 8], [8, 8]) == [4, 12]
    losses = [torch.tensor([1.0, 9, 9, 9, 9, 9]), torch.tensor([2.0, 2, 2, 2, 2, 2])]
    assert cheapest_prefixes(losses, 1, minimums=[2, 2], step=2) == [0, 2]
    assert cheapest_prefixes(losses, 3, minimums=[2, 2], step=2) == [0, 4]
    assert cheapest_prefixes(losses, 5, minimums=[2, 2], step=2) == [2, 4]
    table = torch.arange(12.0, 0, -1).reshape(3, 4)
    for dims in (2, 6, 8, 12):
        ((heads, rank),) = cheapest_heads([table], dims, round_to=2)
        assert rank % 2 == 0
        assert heads * rank == dims
    ((heads, rank),) = cheapest_heads([table], 11, round_to=3)
    assert (heads, rank) == (3, 3)
    assert cheapest_heads([table], 12, round_to=3) == [(3, 4)]  # the full rank stays


@pytest.mark.parametrize("step", [1, 2, 4])
def test_losses_by_count_are_those_of_the_choice_for_each(step: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tables = [torch.rand(3, 4, generator=generator).double() for _ in range(2)]
    by_dims = heads_losses(tables, step)
    least = 2 * min(step, 4)
    for dims in range(least, 25):
        chosen = cheapest_heads(tables, dims, step)
        loss = sum(float(t[h - 1, r - 1]) for t, (h, r) in zip(tables, chosen, strict=True))
        assert by_dims[dims] == pytest.approx(loss)
    assert np.isinf(by_dims[:least]).all()
    losses = [torch.rand(10, generator=generator).double() for _ in range(3)]
    by_count = prefix_losses(losses, [4] * 3, step)
    for removed in range(len(by_count)):
        counts = cheapest_prefixes(losses, removed, [4] * 3, step)
        loss = sum(float(o[:count].sum()) for o, count in zip(losses, counts, strict=True))
        assert by_count[removed] == pytest.approx(loss)
    assert len(by_count) == 1 + 3 * 6


@st.composite
def knapsacks(draw):
    blocks = draw(st.integers(1, 4))
    losses, costs = [], []
    for _ in range(blocks):
        n = draw(st.integers(1, 5))
        losses.append(np.array(draw(st.lists(st.floats(0, 10), min_size=n, max_size=n))))
        costs.append(np.array(draw(st.lists(st.integers(1, 30), min_size=n, max_size=n))))
    least, most = (sum(int(f(cost)) for cost in costs) for f in (np.min, np.max))
    return losses, costs, draw(st.integers(least, most))


@given(knapsacks())
@settings(max_examples=150, deadline=None)
def test_choices_keep_the_limit_and_lose_at_most_a_step_more_than_the_best(knapsack):
    losses, costs, limit = knapsack
    chosen = cheapest_choices(losses, costs, limit)
    assert sum(cost[i] for cost, i in zip(costs, chosen, strict=True)) <= limit
    lost = sum(loss[i] for loss, i in zip(losses, chosen, strict=True))
    best = min(
        sum(loss[i] for loss, i in zip(losses, every, strict=True))
        for every in itertools.product(*(range(len(cost)) for cost in costs))
        if sum(cost[i] for cost, i in zip(costs, every, strict=True)) <= limit
    )
    assert best <= lost + 1e-9
    assert lost <= best + max(np.ptp(loss) for loss in losses) + 1e-9


def test_with_room_for_all_nothing_is_lost():
    losses, costs = [np.array([0.0, 1.0, 5.0])] * 2, [np.array([9, 4, 1])] * 2
    assert cheapest_choices(losses, costs, 18) == [0, 0]
    assert cheapest_choices(losses, costs, 2) == [2, 2]
    assert sorted(cheapest_choices(losses, costs, 13)) == [0, 1]  # what is left over is used
