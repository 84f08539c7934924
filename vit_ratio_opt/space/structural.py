"""The search space of structural pruning: removed units and cost of each pair."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.cost_table import CostTable
from vit_ratio_opt.space.costs import MACS, Cost
from vit_ratio_opt.space.pairs import PairSpace, RatioPair
from vit_ratio_opt.space.units import StructuralUnits

__all__ = ["StructuralSpace"]


@dataclass(frozen=True)
class StructuralSpace(StructuralUnits, PairSpace):
    """Search space of structural pruning.

    Args:
        shape: Shape of the dense model.
        unit: Unit of the MHSA ratio that is asked for, ``"rank"`` or ``"head"``; ``mhsa_unit`` is
            the one that the model allows.
        round_to: Ranks and hidden neurons that are left in a block are multiples of this number
            wherever some are removed.
        bounds: Bounds on what each block may lose; none by default.
        cost: Cost of the pairs.

    Raises:
        InputError: ``unit`` or ``round_to`` is no such value, ``bounds`` cannot be kept or leave
            nothing to prune, or ``cost`` cannot price the units of the model, because they differ
            from block to block.
    """

    cost: Cost = MACS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bounds and self.max_pair == (0.0, 0.0):
            raise InputError("`skip` and `bounds` leave nothing to prune: free a part.")
        self._prices.check(self)

    @cached_property
    def _prices(self) -> CostTable:
        return self.cost.price(self)

    @cached_property
    def _by_units(self) -> tuple[list[int], list[int]]:
        return self._prices.by_units()

    @property
    def macs(self) -> int:
        """Return the MACs of the dense model."""
        return self.shape.macs

    def pruned_macs(self, pair: RatioPair) -> int:
        """Return the MACs after removing ``pair``, whichever units go.

        Raises:
            InputError: A ratio is out of range, or units cost differently from block to block.
        """
        units, neurons = self.removed(pair)
        return self.macs - units * self.mhsa_unit_macs - neurons * self.shape.neuron_macs

    @cached_property
    def dense_cost(self) -> int:
        """Return the cost of the dense model."""
        return self._prices.fixed + self._by_units[0][0] + self._by_units[1][0]

    def pruned_cost(self, pair: RatioPair) -> int:
        """Return the cost after removing ``pair``; raises as ``removed`` does."""
        units, neurons = self.removed(pair)
        return self._prices.fixed + self._by_units[0][units] + self._by_units[1][neurons]
