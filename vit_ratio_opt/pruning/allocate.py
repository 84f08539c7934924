"""Allocate what a ratio removes across the blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from vit_ratio_opt.errors import InputError

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
    floors: Sequence[int] | None = None,
) -> list[int]:
    """Return the units to remove from each block, the same share of each as far as possible.

    Args:
        sizes: Number of units, by block.
        removed: Number of units to remove from all blocks together, at least.
        minimums: Number of units that a block keeps, by block.
        steps: Units left in a block that loses any are a multiple of this, by block.
        shares: Weights that the shares are in proportion to, by block; equal shares by default.
        floors: Number of units that a block loses in any case, by block; none by default.

    Raises:
        InputError: The blocks do not have that many units to remove in such steps.
    """
    whole = [size * share for size, share in zip(sizes, shares or [1] * len(sizes), strict=True)]
    counts = [0] * len(sizes) if floors is None else list(floors)
    while sum(counts) < removed:
        offers = {
            block: after
            for block, (size, minimum, step) in enumerate(zip(sizes, minimums, steps, strict=True))
            if size - (after := _next_cut(size, counts[block], step)) >= minimum
        }
        if not offers:
            raise InputError(
                f"{removed} units cannot be removed within the bounds of the blocks: widen them."
            )
        # The block with the smallest share so far is next; later blocks first on a tie, since all
        # others build on early blocks.
        block = min(offers, key=lambda b: (offers[b] / whole[b], -b))
        counts[block] = offers[block]
    return counts


def _next_cut(size: int, removed: int, step: int) -> int:
    """Return the next larger number to remove that leaves a multiple of ``step``."""
    return size - (size - removed - 1) // step * step


def cheapest_prefixes(
    losses: Sequence[torch.Tensor],
    removed: int,
    minimums: Sequence[int],
    step: int = 1,
    floors: Sequence[int] | None = None,
) -> list[int]:
    """Return the units to remove from each block, where a block loses its units in a given order.

    Args:
        losses: By block, the loss that each unit adds after those before it, ``(units,)``.
        removed: Number of units to remove from all blocks together, at least.
        minimums: Number of units that a block keeps, by block.
        step: Units left in a block that loses any are a multiple of this.
        floors: Number of units that a block loses in any case, by block; none by default.
    """
    counts = [0] * len(losses) if floors is None else list(floors)
    total = sum(counts)
    for block, after, _ in _offers(losses, minimums, step, counts):
        if total >= removed:
            break
        total += after - counts[block]
        counts[block] = after
    return counts


def prefix_losses(
    losses: Sequence[torch.Tensor],
    minimums: Sequence[int],
    step: int = 1,
    floors: Sequence[int] | None = None,
) -> np.ndarray:
    """Return the losses of :func:`cheapest_prefixes` by ``removed``, from 0 to the largest."""
    counts = [0] * len(losses) if floors is None else list(floors)
    total = sum(float(loss[:count].sum()) for loss, count in zip(losses, counts, strict=True))
    found = [total] * (1 + sum(counts))
    for _, _, prices in _offers(losses, minimums, step, counts):
        total += sum(prices)
        found += [total] * len(prices)
    return np.array(found)


def _offers(
    losses: Sequence[torch.Tensor], minimums: Sequence[int], step: int, removed: Sequence[int]
) -> list[tuple[int, int, list[float]]]:
    """Return block, units removed from it so far and the last ones' losses, cheapest first."""
    offers = []
    for block, loss in enumerate(losses):
        prices, size, highest, before = loss.tolist(), len(loss), -math.inf, removed[block]
        while size - (after := _next_cut(size, before, step)) >= minimums[block]:
            # Units that come after more expensive ones cost at least as much.
            highest = max(highest, sum(prices[before:after]) / (after - before))
            offers.append((highest, block, after, prices[before:after]))
            before = after
    return [(block, after, prices) for _, block, after, prices in sorted(offers)]


def cheapest_heads(
    losses: Sequence[torch.Tensor], dims: int, round_to: int = 1
) -> list[tuple[int, int]]:
    """Return the heads and rank of each block that lose least, with ``dims`` dimensions in all.

    Exact, by dynamic programming over the blocks, O(blocks * heads * rank * dims). Where no choice
    has exactly ``dims`` dimensions, which happens when blocks have lost heads before, the next
    smaller possible sum is used.

    Args:
        losses: By block, ``(heads, rank)``: the loss with h heads of r dimensions at
            ``[h - 1, r - 1]``, infinite where this is impossible.
        dims: Heads times rank to keep, summed over the blocks; at least the minimum of each.
        round_to: Ranks are multiples of this, or the full one.
    """
    return heads_by_dims(losses, [dims], round_to)[0]


def heads_by_dims(
    losses: Sequence[torch.Tensor], dims: Sequence[int], round_to: int = 1
) -> list[list[tuple[int, int]]]:
    """Return :func:`cheapest_heads` for several ``dims``, in the time of the largest.

    Raises:
        InputError: No choice has as few dimensions as that.
    """
    best, choices = _program(losses, max(dims), round_to)
    possible = np.flatnonzero(np.isfinite(best))
    if not len(possible) or min(dims) < possible[0]:
        raise InputError(
            f"No heads and ranks within the bounds of the blocks come to {min(dims)} dimensions "
            "or fewer."
        )
    found = []
    for count in dims:
        left = int(possible[np.searchsorted(possible, count, side="right") - 1])
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
    """Return one choice for each block, so that all together cost at most ``limit``.

    The multiple-choice knapsack problem by Lagrange relaxation (Sinha and Zoltners 1979): the best
    choices at one price for all blocks; the rest of the limit then pays for more expensive choices
    in single blocks. The loss exceeds the minimum by less than one step of one block.

    Args:
        losses: By block, the loss of each choice.
        costs: By block, the cost of each choice, in integers.
        limit: Largest total cost, at least the sum of the blocks' smallest costs.
    """
    blocks = list(zip(losses, costs, strict=True))

    def choose(price: float) -> list[int]:
        # The cheapest of equal ones, so that a price can be high enough for every limit.
        return [int(np.lexsort((cost, loss + price * cost))[0]) for loss, cost in blocks]

    def cost_of(chosen: list[int]) -> int:
        return sum(int(cost[choice]) for choice, (_, cost) in zip(chosen, blocks, strict=True))

    chosen = choose(0.0)
    if cost_of(chosen) <= limit:
        return chosen
    least = [int(np.lexsort((loss, cost))[0]) for loss, cost in blocks]
    low, high, chosen = 0.0, 1.0, least
    while cost_of(choose(high)) > limit and math.isfinite(high):
        high *= 2
    for _ in range(60):
        price = (low + high) / 2
        offer = choose(price)
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
    """Return the losses of :func:`cheapest_heads` by ``dims``, from 0 to all; infinite at 0."""
    best, _ = _program(losses, sum(table.numel() for table in losses), round_to)
    # An impossible sum has the loss of the next smaller possible one.
    possible = np.maximum.accumulate(np.where(np.isfinite(best), np.arange(len(best)), 0))
    found: np.ndarray = best[possible]
    return found


def _program(
    losses: Sequence[torch.Tensor], dims: int, round_to: int
) -> tuple[np.ndarray, list[tuple[list[tuple[int, int]], np.ndarray]]]:
    """Return the smallest losses by exact sum of dimensions, and by block options and choices."""
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
    """Return the heads and ranks that a block may keep, and the loss of each choice.

    Args:
        table: Loss with h heads of r dimensions at ``[h - 1, r - 1]``.
        round_to: Ranks are multiples of this, or the full one.
    """
    options = _options(table.numpy(), table.numel(), round_to)
    return [choice for choice, _ in options], np.array([loss for _, loss in options])


def _options(table: np.ndarray, dims: int, round_to: int) -> list[tuple[tuple[int, int], float]]:
    """Return the best choice for each product of heads and rank; ties prefer more heads."""
    best: dict[int, tuple[float, int, tuple[int, int]]] = {}
    for (h, r), loss in np.ndenumerate(table):
        if ((r + 1) % round_to and r + 1 < table.shape[1]) or not np.isfinite(loss):
            continue
        size = (h + 1) * (r + 1)
        offer = (float(loss), -h, (h + 1, r + 1))
        if size <= dims and (size not in best or offer < best[size]):
            best[size] = offer
    return [(choice, loss) for _, (loss, _, choice) in sorted(best.items())]
