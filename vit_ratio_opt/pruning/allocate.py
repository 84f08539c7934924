"""How what a ratio removes is spread over the blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

__all__ = [
    "cheapest_choices",
    "cheapest_heads",
    "cheapest_prefixes",
    "even_counts",
    "heads_by_dims",
    "heads_choices",
    "heads_losses",
    "prefix_losses",
]


def even_counts(
    sizes: Sequence[int],
    removed: int,
    minimums: Sequence[int],
    steps: Sequence[int],
    shares: Sequence[float] | None = None,
) -> list[int]:
    """Units that each block gives, the same share of each as far as whole units allow.

    Args:
        sizes: Units, by block.
        removed: At least so many from all blocks together.
        minimums: Units that a block keeps, by block.
        steps: What is left in a block that gives any is a multiple of this, by block.
        shares: What the blocks' shares are in proportion to, by block; all alike without it.
    """
    whole = [size * share for size, share in zip(sizes, shares or [1] * len(sizes), strict=True)]
    counts = [0] * len(sizes)
    while sum(counts) < removed:
        offers = {
            block: after
            for block, (size, minimum, step) in enumerate(zip(sizes, minimums, steps, strict=True))
            if size - (after := _next_cut(size, counts[block], step)) >= minimum
        }
        # The block that has given the smallest share so far gives next; later blocks first on a
        # tie, since early blocks are the ones that all the others build on.
        block = min(offers, key=lambda b: (offers[b] / whole[b], -b))
        counts[block] = offers[block]
    return counts


def _next_cut(size: int, removed: int, step: int) -> int:
    """The next larger number to remove that leaves a multiple of ``step``."""
    return size - (size - removed - 1) // step * step


def cheapest_prefixes(
    losses: Sequence[torch.Tensor], removed: int, minimum: int, step: int = 1
) -> list[int]:
    """Units that each block gives, where its units go in a given order at given losses.

    Args:
        losses: By block, what each unit costs when those before it are gone, ``(units,)``.
        removed: At least so many from all blocks together.
        minimum: Units that each block keeps.
        step: What is left in a block that gives any is a multiple of this.
    """
    counts, total = [0] * len(losses), 0
    for block, after, _ in _offers(losses, minimum, step):
        if total >= removed:
            break
        total += after - counts[block]
        counts[block] = after
    return counts


def prefix_losses(losses: Sequence[torch.Tensor], minimum: int, step: int = 1) -> np.ndarray:
    """What :func:`cheapest_prefixes` loses, by the units to remove, from none to all it can."""
    found, total = [0.0], 0.0
    for _, _, prices in _offers(losses, minimum, step):
        total += sum(prices)
        found += [total] * len(prices)
    return np.array(found)


def _offers(
    losses: Sequence[torch.Tensor], minimum: int, step: int
) -> list[tuple[int, int, list[float]]]:
    """Block, units that it has given after this offer, and their losses; the cheapest first."""
    offers = []
    for block, loss in enumerate(losses):
        prices, size, dearest, before = loss.tolist(), len(loss), -math.inf, 0
        while size - (after := _next_cut(size, before, step)) >= minimum:
            # Units that come after dearer ones can only be had for that price.
            dearest = max(dearest, sum(prices[before:after]) / (after - before))
            offers.append((dearest, block, after, prices[before:after]))
            before = after
    return [(block, after, prices) for _, block, after, prices in sorted(offers)]


def cheapest_heads(
    losses: Sequence[torch.Tensor], dims: int, round_to: int = 1
) -> list[tuple[int, int]]:
    """Heads and their rank in each block that lose least, with ``dims`` dimensions in all.

    Exact, by dynamic programming over the blocks, O(blocks * heads * rank * dims). Where no choice
    comes to exactly ``dims``, as may happen when blocks have lost heads before, the next smaller
    sum that one does come to.

    Args:
        losses: By block, ``(heads, rank)``: the loss with h heads of r dimensions at
            ``[h - 1, r - 1]``, infinite where it cannot be had.
        dims: Heads times rank, summed over the blocks; enough for the least of each.
        round_to: Ranks are multiples of this, or the full one.
    """
    return heads_by_dims(losses, [dims], round_to)[0]


def heads_by_dims(
    losses: Sequence[torch.Tensor], dims: Sequence[int], round_to: int = 1
) -> list[list[tuple[int, int]]]:
    """:func:`cheapest_heads` for several numbers of dimensions, at the price of the largest."""
    best, choices = _program(losses, max(dims), round_to)
    had = np.flatnonzero(np.isfinite(best))
    found = []
    for count in dims:
        left = int(had[np.searchsorted(had, count, side="right") - 1])
        chosen = []
        for options, taken in reversed(choices):
            heads, rank = options[taken[left]]
            chosen.append((heads, rank))
            left -= heads * rank
        found.append(chosen[::-1])
    return found


def cheapest_choices(
    losses: Sequence[np.ndarray], costs: Sequence[np.ndarray], limit: int
) -> list[int]:
    """One choice for each block so that all together cost at most ``limit`` and lose little.

    The multiple-choice knapsack problem by Lagrange relaxation (Sinha and Zoltners 1979): the best
    choices at one price for all blocks, and, with what is left over at that price, single blocks
    up to dearer choices. So the loss is the least one for the cost but for less than one step of
    one block.

    Args:
        losses: By block, what each choice loses.
        costs: By block, what each choice costs, in integers.
        limit: At least the sum of the blocks' least costs.
    """
    blocks = list(zip(losses, costs, strict=True))

    def at(price: float) -> list[int]:
        # Of equal ones the cheapest, so that a price can be high enough for every limit.
        return [int(np.lexsort((cost, loss + price * cost))[0]) for loss, cost in blocks]

    def cost_of(chosen: list[int]) -> int:
        return sum(int(cost[choice]) for choice, (_, cost) in zip(chosen, blocks, strict=True))

    chosen = at(0.0)
    if cost_of(chosen) <= limit:
        return chosen
    least = [int(np.lexsort((loss, cost))[0]) for loss, cost in blocks]
    low, high, chosen = 0.0, 1.0, least
    while cost_of(at(high)) > limit and math.isfinite(high):
        high *= 2
    for _ in range(60):
        price = (low + high) / 2
        offer = at(price)
        if cost_of(offer) <= limit:
            high, chosen = price, offer
        else:
            low = price
    spare = limit - cost_of(chosen)
    while True:
        steps = [
            ((loss[now] - loss[other]) / (cost[other] - cost[now]), block, int(other))
            for block, ((loss, cost), now) in enumerate(zip(blocks, chosen, strict=True))
            for other in np.flatnonzero((cost > cost[now]) & (cost <= cost[now] + spare))
            if loss[other] < loss[now]
        ]
        if not steps:
            return chosen
        _, block, other = max(steps)
        cost = blocks[block][1]
        spare -= int(cost[other] - cost[chosen[block]])
        chosen[block] = other


def heads_losses(losses: Sequence[torch.Tensor], round_to: int = 1) -> np.ndarray:
    """What :func:`cheapest_heads` loses, by its ``dims``, from none to all; infinite below one."""
    best, _ = _program(losses, sum(table.numel() for table in losses), round_to)
    # Where a sum cannot be had, the next smaller one that can.
    had = np.maximum.accumulate(np.where(np.isfinite(best), np.arange(len(best)), 0))
    found: np.ndarray = best[had]
    return found


def _program(
    losses: Sequence[torch.Tensor], dims: int, round_to: int
) -> tuple[np.ndarray, list[tuple[list[tuple[int, int]], np.ndarray]]]:
    """Least losses by the exact sum of dimensions, and by block its choices and those taken."""
    best = np.full(dims + 1, np.inf)
    best[0] = 0.0
    choices: list[tuple[list[tuple[int, int]], np.ndarray]] = []
    for table in losses:
        options = _options(table.numpy(), dims, round_to)
        after = np.full(dims + 1, np.inf)
        taken = np.zeros(dims + 1, dtype=np.int64)
        for index, ((heads, rank), loss) in enumerate(options):
            size = heads * rank
            total = best[: dims + 1 - size] + loss
            better = total < after[size:]
            after[size:][better] = total[better]
            taken[size:][better] = index
        choices.append(([option for option, _ in options], taken))
        best = after
    return best, choices


def heads_choices(
    table: torch.Tensor, round_to: int = 1
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Heads and ranks that a block may keep, and what each of these choices loses.

    Args:
        table: See :func:`cheapest_heads`.
        round_to: See there.
    """
    options = _options(table.numpy(), table.numel(), round_to)
    return [choice for choice, _ in options], np.array([loss for _, loss in options])


def _options(table: np.ndarray, dims: int, round_to: int) -> list[tuple[tuple[int, int], float]]:
    """For each product of heads and rank, the choice that loses least, ties to more heads."""
    best: dict[int, tuple[float, int, tuple[int, int]]] = {}
    for (h, r), loss in np.ndenumerate(table):
        if ((r + 1) % round_to and r + 1 < table.shape[1]) or not np.isfinite(loss):
            continue
        size = (h + 1) * (r + 1)
        offer = (float(loss), -h, (h + 1, r + 1))
        if size <= dims and (size not in best or offer < best[size]):
            best[size] = offer
    return [(choice, loss) for _, (loss, _, choice) in sorted(best.items())]
