"""Bounds on what single blocks lose: parts that stay whole, floors and ceilings of ratios."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vit_ratio_opt.space.pairs import SLACK

__all__ = ["FREE", "BlockBounds", "Bounds", "UnitRange", "counts_within"]

Bounds = tuple[float, float]
"""Smallest and largest share of the units of a module that are removed, each in [0, 1]."""

FREE: Bounds = (0.0, 1.0)
"""Bounds of a module that may lose everything but the minimum of its block."""


class BlockBounds(NamedTuple):
    """Bounds of the attention and of the FFN of one block of the dense model."""

    mhsa: Bounds = FREE
    ffn: Bounds = FREE


class UnitRange(NamedTuple):
    """Fewest and most units of a block: those that it keeps, or those that it loses."""

    least: int
    most: int


def counts_within(counts: Iterable[int], size: int, bounds: Bounds) -> UnitRange | None:
    """Return the fewest and the most of some removed units within bounds; None if none is.

    Args:
        counts: Numbers of units that can be removed from a module.
        size: Number of units of the module.
        bounds: Smallest and largest share of the units that may be removed.
    """
    low, high = (share * size for share in bounds)
    inside = [count for count in counts if low - SLACK * size <= count <= high + SLACK * size]
    return UnitRange(min(inside), max(inside)) if inside else None
