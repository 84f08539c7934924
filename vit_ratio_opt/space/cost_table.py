"""Tables of the costs of pairs of structural pruning.

The cost of a pair is a sum of three integers: the constant cost, the cost of the attention by its
removed units, and the cost of the FFN by its removed neurons.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.units import StructuralUnits

__all__ = ["CostTable", "Knots", "monotone_envelope"]

Knots = tuple[tuple[int, int], ...]
"""Removed units, rising from 0, each with the cost that is left; linear between the knots."""


@dataclass(frozen=True)
class CostTable:
    """The cost of every pair of structural pruning, in whole units of any kind.

    Args:
        fixed: Cost that no pruning changes.
        mhsa: Cost of the attention of all blocks by the heads, or ranks, that are removed.
        ffn: Cost of the FFN of all blocks by the neurons that are removed.
    """

    fixed: int
    mhsa: Knots
    ffn: Knots

    @classmethod
    def linear(
        cls, units: StructuralUnits, *, dense: int, per_mhsa_unit: int, per_neuron: int
    ) -> CostTable:
        """Return the table of a cost that falls by the same amount with every removed unit.

        Args:
            units: Units of the dense model.
            dense: Cost of the dense model.
            per_mhsa_unit: Cost of one head, or one rank: see ``units.mhsa_unit``.
            per_neuron: Cost of one hidden neuron.
        """
        mhsa, ffn = units.removed(units.max_pair)
        saved = mhsa * per_mhsa_unit, ffn * per_neuron
        return cls(dense - sum(saved), _line(mhsa, saved[0]), _line(ffn, saved[1]))

    def check(self, units: StructuralUnits) -> None:
        """Refuse a table that does not fit the units of a model.

        Raises:
            InputError: Knots do not reach from 0 to all units that can be removed, or a cost
                rises.
        """
        most = units.removed(units.max_pair)
        for name, knots, last in (("mhsa", self.mhsa, most[0]), ("ffn", self.ffn, most[1])):
            removed, costs = [knot[0] for knot in knots], [knot[1] for knot in knots]
            if not removed or (removed[0], removed[-1]) != (0, last):
                raise InputError(
                    f"`{name}` must have knots from 0 to {last} units, not {removed}."
                )
            if sorted(set(removed)) != removed:
                raise InputError(
                    f"`{name}` must have knots from 0 to {last} units, not {removed}."
                )
            if sorted(costs, reverse=True) != costs:
                raise InputError(f"The costs in `{name}` must not rise, but are {costs}.")

    def by_units(self) -> tuple[list[int], list[int]]:
        """Return the costs of attention and FFN by removed units, from 0 to all."""
        return _interpolate(self.mhsa), _interpolate(self.ffn)


def monotone_envelope(costs: Sequence[int]) -> list[int]:
    """Return the smallest non-increasing sequence above ``costs``, clipped to ``costs[0]``.

    A model with more units removed may take longer, because of its sizes or by chance. A pair
    that is predicted to keep a budget should keep it, so such a cost counts for every model with
    fewer units removed too; but no cost exceeds the first one, of the dense model.
    """
    highest = list(itertools.accumulate(reversed(costs), max))[::-1]
    return [min(cost, costs[0]) for cost in highest]


def _line(units: int, saved: int) -> Knots:
    """Return knots from ``saved`` down to 0."""
    return ((0, saved), (units, 0)) if units else ((0, 0),)


def _interpolate(knots: Knots) -> list[int]:
    """Return the costs by removed units, from 0 to all, rounded up between the knots."""
    costs = [knots[0][1]]
    for (first, cost), (last, next_cost) in itertools.pairwise(knots):
        span, saved = last - first, cost - next_cost
        costs += [cost - saved * step // span for step in range(1, span + 1)]
    return costs
