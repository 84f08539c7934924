"""How what a ratio removes is spread over the blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["cheapest_heads", "cheapest_prefixes", "even_counts"]


def even_counts(sizes: Sequence[int], removed: int, minimum: int) -> list[int]:
    """Units that each block gives, the same share of each as far as whole units allow."""
    counts = [0] * len(sizes)
    for _ in range(removed):
        open_blocks = [b for b, size in enumerate(sizes) if size - counts[b] > minimum]
        # The block that has given the smallest share so far gives next; later blocks first on a
        # tie, since early blocks are the ones that all the others build on.
        block = min(open_blocks, key=lambda b: ((counts[b] + 1) / sizes[b], -b))
        counts[block] += 1
    return counts


def cheapest_prefixes(losses: Sequence[torch.Tensor], removed: int, minimum: int) -> list[int]:
    """Units that each block gives, where its units go in a given order at given losses.

    Args:
        losses: By block, what each unit costs when those before it are gone, ``(units,)``.
        removed: From all blocks together.
        minimum: Units that each block keeps.
    """
    # A unit that comes after a dearer one can only be had for that price.
    prices = [loss.cummax(dim=0).values.tolist()[: len(loss) - minimum] for loss in losses]
    offers = sorted((p, b, i) for b, offered in enumerate(prices) for i, p in enumerate(offered))
    counts = [0] * len(losses)
    for _, block, _ in offers[:removed]:
        counts[block] += 1
    return counts


def cheapest_heads(losses: Sequence[torch.Tensor], dims: int) -> list[tuple[int, int]]:
    """Heads and their rank in each block that lose least, with ``dims`` dimensions in all.

    Exact, by dynamic programming over the blocks, O(blocks * heads * rank * dims). Where no choice
    comes to exactly ``dims``, as may happen when blocks have lost heads before, the next smaller
    sum that one does come to.

    Args:
        losses: By block, ``(heads, rank)``: the loss with h heads of r dimensions at
            ``[h - 1, r - 1]``.
        dims: Heads times rank, summed over the blocks; at least one a block.
    """
    best = np.full(dims + 1, np.inf)
    best[0] = 0.0
    choices: list[tuple[list[tuple[int, int]], np.ndarray]] = []
    for table in losses:
        options = _options(table.numpy(), dims)
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
    left = int(np.flatnonzero(np.isfinite(best))[-1])
    chosen = []
    for options, taken in reversed(choices):
        heads, rank = options[taken[left]]
        chosen.append((heads, rank))
        left -= heads * rank
    return chosen[::-1]


def _options(table: np.ndarray, dims: int) -> list[tuple[tuple[int, int], float]]:
    """For each product of heads and rank, the choice that loses least, ties to more heads."""
    best: dict[int, tuple[float, int, tuple[int, int]]] = {}
    for (h, r), loss in np.ndenumerate(table):
        size = (h + 1) * (r + 1)
        offer = (float(loss), -h, (h + 1, r + 1))
        if size <= dims and (size not in best or offer < best[size]):
            best[size] = offer
    return [(choice, loss) for _, (loss, _, choice) in sorted(best.items())]
