"""A pair of pruning ratios, and the protocol of the pairs that a strategy has.

A strategy is a way of pruning: structural pruning, leaving out tokens, or both. It decides what
the two ratios of a pair remove, and the remaining cost of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import NamedTuple, Protocol

from vit_ratio_opt.errors import InputError

__all__ = [
    "SLACK",
    "CostLabel",
    "PairRange",
    "PairSpace",
    "RatioPair",
    "as_pair",
    "check_pair",
    "longest_chain",
    "pick_evenly",
    "removed_units",
]

SLACK = 1e-9
"""Largest rounding error of a ratio: a ratio made by a division gives its count back."""


class RatioPair(NamedTuple):
    """Fractions of a model's attention and of its FFN that are removed, each in [0, 1)."""

    mhsa_ratio: float
    ffn_ratio: float


def as_pair(pair: Sequence[float]) -> RatioPair:
    """Return two ratios as a :class:`RatioPair`.

    Raises:
        InputError: ``pair`` is no tuple or list of two ratios.
    """
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(f"`pair` must be (mhsa_ratio, ffn_ratio), but got {pair!r:.80}.")
    return RatioPair(*pair)


class CostLabel(Protocol):
    """The names of a cost; :class:`vit_ratio_opt.space.costs.Cost` adds its price."""

    @property
    def name(self) -> str:
        """Return the name in settings and on the command line, such as ``"macs"``."""

    @property
    def word(self) -> str:
        """Return the name in sentences and figures, as in "60 % of the FLOPs"."""

    @property
    def constraint(self) -> str:
        """Return the name of the constraint that a budget of this cost sets in a trial."""


class PairRange(Protocol):
    """The smallest ratios, and the largest ones that leave every block its minimum."""

    @property
    def min_pair(self) -> RatioPair:
        """Return the smallest MHSA ratio and the smallest FFN ratio."""

    @property
    def max_pair(self) -> RatioPair:
        """Return the largest MHSA ratio and the largest FFN ratio."""

    @property
    def minimum(self) -> str:
        """Return the minimum that every block keeps, in words."""


class PairSpace(PairRange, Protocol):
    """Search space of a strategy: its pairs, their removed units and their costs.

    The cost of a space is MACs unless it overrides ``dense_cost`` and ``pruned_cost``.
    """

    @property
    def cost(self) -> CostLabel:
        """Return the cost that :attr:`dense_cost` and :meth:`pruned_cost` count."""

    @property
    def macs(self) -> int:
        """Return the MACs of the dense model."""

    @property
    def mhsa_ratios(self) -> tuple[float, ...]:
        """Return every MHSA ratio that removes another number of units, rising."""

    @property
    def ffn_ratios(self) -> tuple[float, ...]:
        """Return every FFN ratio that removes another number of units, rising."""

    @property
    def min_pair(self) -> RatioPair:
        """Return the smallest ratios: 0, unless single blocks have floors."""
        return RatioPair(self.mhsa_ratios[0], self.ffn_ratios[0])

    @property
    def max_pair(self) -> RatioPair:
        """Return the largest ratios that leave every block its minimum."""
        return RatioPair(self.mhsa_ratios[-1], self.ffn_ratios[-1])

    def removed(self, pair: RatioPair) -> tuple[int, int]:
        """Return the whole units that the two ratios remove.

        Raises:
            InputError: A ratio is not in the space.
        """

    def pruned_macs(self, pair: RatioPair) -> int:
        """Return the MACs after pruning by ``pair``; they never rise with a ratio."""

    def macs_ratio(self, mhsa_ratio: float, ffn_ratio: float) -> float:
        """Return the fraction of the MACs that a pair leaves; raises as :meth:`removed` does."""
        return self.pruned_macs(RatioPair(mhsa_ratio, ffn_ratio)) / self.macs

    @property
    def dense_cost(self) -> int:
        """Return the cost of the dense model."""
        return self.macs

    def pruned_cost(self, pair: RatioPair) -> int:
        """Return the cost after pruning by ``pair``; raises as :meth:`removed` does.

        It never rises with a ratio.
        """
        return self.pruned_macs(pair)

    def cost_ratio(self, mhsa_ratio: float, ffn_ratio: float) -> float:
        """Return the fraction of the cost that a pair leaves; raises as :meth:`removed` does."""
        return self.pruned_cost(RatioPair(mhsa_ratio, ffn_ratio)) / self.dense_cost


def removed_units(ratio: float, units: int, step: int = 1) -> int:
    """Return the whole units that ``ratio`` removes, in multiples of ``step``.

    The count is rounded up, so that the MACs never exceed those that the ratio asks for.
    """
    return math.ceil((ratio * units - SLACK * units) / step) * step


def check_pair(space: PairRange, pair: RatioPair, smallest: RatioPair | None = None) -> None:
    """Refuse ratios that are not in ``space``.

    Args:
        space: The space.
        pair: Ratios to check.
        smallest: Smallest ratios that are allowed; those of the space by default.

    Raises:
        InputError: A ratio is outside [smallest ratio, largest ratio that leaves every block its
            minimum].
    """
    limits = zip(smallest or space.min_pair, space.max_pair, strict=True)
    for name, ratio, (least, largest) in zip(RatioPair._fields, pair, limits, strict=True):
        value: object = ratio
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InputError(f"`{name}` must be a number, but got {value!r:.80}.")
        if not least - SLACK * (least > 0) <= ratio <= largest + SLACK:
            raise InputError(
                f"`{name}` must be in [{least:.6g}, {largest:.6g}] so that every block keeps at "
                f"least {space.minimum}, but got {ratio!r}."
            )


def pick_evenly(ratios: Sequence[float], points: int) -> list[float]:
    """Return at most ``points`` of the ratios, evenly spaced, with the first and the last."""
    steps = min(points, len(ratios)) - 1
    return [ratios[round(i * (len(ratios) - 1) / max(1, steps))] for i in range(steps + 1)]


def longest_chain(pairs: Iterable[RatioPair]) -> list[RatioPair]:
    """Return the most pairs in which each prunes neither module less than the one before.

    Args:
        pairs: Pairs in any order.
    """
    best: list[list[RatioPair]] = []
    for pair in sorted(set(pairs)):  # of rising MHSA ratio
        before = [chain for chain in best if chain[-1].ffn_ratio <= pair.ffn_ratio]
        best.append([*max(before, key=len, default=[]), pair])
    return max(best, key=len, default=[])
