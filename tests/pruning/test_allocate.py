import itertools

import pytest
import torch

from vit_ratio_opt.pruning.allocate import cheapest_heads, cheapest_prefixes, even_counts


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
    assert cheapest_prefixes(losses, 3, minimum=1) == [0, 3]
    assert cheapest_prefixes(losses, 5, minimum=1) == [2, 3]


def test_a_cheap_neuron_behind_a_dear_one_costs_both() -> None:
    losses = [torch.tensor([5.0, 0.1, 6.0]), torch.tensor([1.0, 2.0, 3.0])]
    assert cheapest_prefixes(losses, 2, minimum=0) == [0, 2]


def test_even_counts_take_the_same_share_of_every_block() -> None:
    assert even_counts([8, 16], 6, minimum=1) == [2, 4]
    assert even_counts([4, 4], 3, minimum=1) == [1, 2]
    assert even_counts([2, 10], 9, minimum=1) == [1, 8]
