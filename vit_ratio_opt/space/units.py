"""The units that structural pruning removes: heads or ranks of the attention, neurons of the FFN.

A *rank* is one dimension of every head of a block: what is removed where heads are factorised
instead of removed whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.bounds import FREE, BlockBounds, Bounds, UnitRange, counts_within
from vit_ratio_opt.space.pairs import RatioPair, check_pair, removed_units
from vit_ratio_opt.space.shape import BlockShape, ViTShape
from vit_ratio_opt.utils.checks import check_count

__all__ = [
    "MIN_MHSA_UNITS",
    "MIN_NEURONS",
    "MhsaUnit",
    "StructuralUnits",
    "describe_least",
    "least_neurons",
]

MhsaUnit = Literal["head", "rank"]
"""What ``mhsa_ratio`` counts: whole heads, or one dimension of every head of a block."""

MIN_MHSA_UNITS = 1
"""Heads, or ranks, that every block keeps."""

MIN_NEURONS = 8
"""Hidden neurons that every block keeps (all of them where a block has fewer)."""


def least_neurons(round_to: int) -> int:
    """Return the hidden neurons that every block keeps (all of them where a block has fewer)."""
    return math.ceil(MIN_NEURONS / round_to) * round_to


@dataclass(frozen=True)
class StructuralUnits:
    """The units of a dense model that structural pruning can remove.

    Args:
        shape: Shape of the dense model.
        unit: Unit of the MHSA ratio that is asked for; :attr:`mhsa_unit` is the one that the
            model allows.
        round_to: Ranks and hidden neurons that are left in a block are multiples of this number
            wherever some are removed.
        bounds: Bounds on what each block may lose; none by default. A ratio still counts the units
            of all blocks.

    Raises:
        InputError: ``unit`` or ``round_to`` is no such value, or ``bounds`` cannot be kept.
    """

    shape: ViTShape
    unit: MhsaUnit = "rank"
    round_to: int = 1
    bounds: tuple[BlockBounds, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if self.unit not in get_args(MhsaUnit):
            raise InputError(f"`unit` must be 'head' or 'rank', but got {self.unit!r:.80}.")
        check_count("round_to", self.round_to)
        if self.bounds:
            self._check_bounds()

    def _check_bounds(self) -> None:
        depth = len(self.shape.blocks)
        if len(self.bounds) != depth:
            raise InputError(f"`bounds` must have {depth} entries, but has {len(self.bounds)}.")
        if not self.mhsa_ratios or not self.ffn_ratios:
            raise InputError(
                f"The floors in `bounds` leave no ratio in steps of {self.round_to}: lower one."
            )

    @property
    def mhsa_unit(self) -> MhsaUnit:
        """Return the unit of the MHSA ratio.

        It is a head in models that only lose whole heads, and a rank in models that keep all of
        their heads, whatever :attr:`unit` is.
        """
        if self.shape.all_heads:
            return "rank"
        return "head" if self.shape.whole_heads else self.unit

    @cached_property
    def mhsa_units(self) -> int:
        """Return the heads, or ranks, in all blocks."""
        return sum(self._mhsa_units_by_block)

    @property
    def _mhsa_units_by_block(self) -> list[int]:
        if self.mhsa_unit == "head":
            return [block.num_heads for block in self.shape.blocks]
        return [block.head_dim for block in self.shape.blocks]

    @property
    def neurons(self) -> int:
        """Return the hidden neurons in all blocks."""
        return self.shape.neurons

    @cached_property
    def steps(self) -> tuple[int, int]:
        """Return the heads, or ranks, and the neurons that ``round_to`` removes together.

        Ranks are removed in the smallest steps that come to a whole number of heads of
        ``round_to`` dimensions, which is also what every block keeps at least. Not every sum of
        such heads exists, so a model may come out smaller than its ratios ask for, by less than
        ``round_to`` ranks.
        """
        if self.mhsa_unit == "head":
            return MIN_MHSA_UNITS, self.round_to
        if self.shape.all_heads:
            return self.round_to, self.round_to
        shared = math.gcd(self.round_to, *(block.num_heads for block in self.shape.blocks))
        return self.round_to // shared, self.round_to

    @cached_property
    def mhsa_ranges(self) -> tuple[UnitRange, ...]:
        """Return the fewest and the most heads, or ranks, that each block loses.

        Raises:
            InputError: No size of a block is within its bounds.
        """
        ranges = []
        for index, size in enumerate(self._mhsa_units_by_block):
            counts: Sequence[int] = range(max(0, size - self.steps[0]) + 1)
            if self._bounds(index).mhsa != FREE:
                block = self.shape.blocks[index]
                counts = [count for count in counts if self._can_lose(block, count)]
            ranges.append(self._range(index, "mhsa", counts, size))
        return tuple(ranges)

    @cached_property
    def ffn_ranges(self) -> tuple[UnitRange, ...]:
        """Return the fewest and the most hidden neurons that each block loses.

        Raises:
            InputError: No size of a block is within its bounds.
        """
        least, step = least_neurons(self.round_to), self.steps[1]
        ranges = []
        for index, block in enumerate(self.shape.blocks):
            size = block.hidden_dim
            counts = [0, *(size - kept for kept in range(least, size, step))]
            ranges.append(self._range(index, "ffn", counts, size))
        return tuple(ranges)

    def _bounds(self, index: int) -> BlockBounds:
        return self.bounds[index] if self.bounds else BlockBounds()

    def _range(
        self, index: int, module: Literal["mhsa", "ffn"], counts: Iterable[int], size: int
    ) -> UnitRange:
        bounds: Bounds = getattr(self._bounds(index), module)
        found = counts_within(counts, size, bounds)
        if found is None:
            name = "attention" if module == "mhsa" else "FFN"
            raise InputError(
                f"The {name} of block {index} must lose {bounds[0]:g} to {bounds[1]:g} of its "
                f"{size} units, which no possible size does (`round_to` is {self.round_to}): "
                "widen its bounds."
            )
        return found

    def _can_lose(self, block: BlockShape, count: int) -> bool:
        """Return whether some heads of one rank come to what is left without ``count`` units."""
        if self.mhsa_unit == "head" or count == 0:
            return True
        dims = block.num_heads * (block.head_dim - count)
        fewest = block.num_heads if self.shape.all_heads else 1
        return any(
            dims % heads == 0
            and (rank := dims // heads) <= block.head_dim
            and (rank % self.round_to == 0 or rank == block.head_dim)
            for heads in range(fewest, block.num_heads + 1)
        )

    @cached_property
    def kept_dims(self) -> tuple[UnitRange, ...]:
        """Return the fewest and the most head dimensions that each block keeps."""
        kept = []
        for index, (block, lost) in enumerate(
            zip(self.shape.blocks, self.mhsa_ranges, strict=True)
        ):
            units = block.num_heads if self.mhsa_unit == "head" else block.head_dim
            whole = block.num_heads * block.head_dim
            fewest, most = (whole - n * (whole // units) for n in (lost.most, lost.least))
            if self._bounds(index).mhsa[1] >= FREE[1]:
                fewest = self.least_dims(block)
            kept.append(UnitRange(fewest, most))
        return tuple(kept)

    @cached_property
    def mhsa_ratios(self) -> tuple[float, ...]:
        """Return every ratio that removes another number of heads, or ranks, rising.

        The first one is 0 where no block has a floor.
        """
        return _ratios(self.mhsa_ranges, self.mhsa_units, self.steps[0])

    @cached_property
    def ffn_ratios(self) -> tuple[float, ...]:
        """Return every ratio that removes another number of neurons, rising.

        The first one is 0 where no block has a floor.
        """
        return _ratios(self.ffn_ranges, self.neurons, self.steps[1])

    @property
    def min_pair(self) -> RatioPair:
        """Return the smallest ratios: 0, or the sum of the floors."""
        return RatioPair(self.mhsa_ratios[0], self.ffn_ratios[0])

    @property
    def max_pair(self) -> RatioPair:
        """Return the largest ratios that leave every block its minimum."""
        return RatioPair(self.mhsa_ratios[-1], self.ffn_ratios[-1])

    def removed(self, pair: RatioPair) -> tuple[int, int]:
        """Return the whole heads, or ranks, and the neurons that ``pair`` removes.

        Ratios below the floors are counted too, so that the dense model has a cost.

        Raises:
            InputError: A ratio is outside [0, largest ratio that leaves every block its minimum].
        """
        check_pair(self, pair, smallest=RatioPair(0.0, 0.0))
        mhsa_step, ffn_step = self.steps
        return (
            removed_units(pair.mhsa_ratio, self.mhsa_units, mhsa_step),
            removed_units(pair.ffn_ratio, self.neurons, ffn_step),
        )

    @cached_property
    def mhsa_unit_dims(self) -> int:
        """Return the head dimensions in one head, or one rank.

        Raises:
            InputError: They differ from block to block, so that a ratio does not fix the MACs.
        """
        name = "head_dim" if self.mhsa_unit == "head" else "num_heads"
        sizes = {getattr(block, name) for block in self.shape.blocks}
        if len(sizes) != 1:
            raise InputError(
                f"All blocks must have the same {name} for an MHSA ratio to fix the MACs, but "
                f"they have {sorted(sizes)}. Start from the dense model."
            )
        size: int = sizes.pop()
        return size

    @property
    def mhsa_unit_macs(self) -> int:
        """Return the MACs of one head, or one rank; raises as :attr:`mhsa_unit_dims` does."""
        return self.mhsa_unit_dims * self.shape.dim_macs

    @property
    def mhsa_unit_params(self) -> int:
        """Return the parameters of one head, or one rank; raises as :attr:`mhsa_unit_dims` does.

        Removing ranks may save more than this where heads have parameters of their own, because
        some heads are removed whole.
        """
        params = self.mhsa_unit_dims * self.shape.dim_params
        return params + (self.shape.head_params if self.mhsa_unit == "head" else 0)

    def least_dims(self, block: BlockShape) -> int:
        """Return the fewest head dimensions that ``block`` keeps: one head of the lowest rank."""
        if self.shape.whole_heads:
            return block.head_dim
        rank = min(block.head_dim, self.round_to)
        return rank * block.num_heads if self.shape.all_heads else rank

    @property
    def minimum(self) -> str:
        """Return the minimum that every block keeps, in words."""
        hidden = [block.hidden_dim for block in self.shape.blocks]
        mhsa = describe_least(self.steps[0], self._mhsa_units_by_block, self.mhsa_unit)
        least = f"{mhsa} and {describe_least(least_neurons(self.round_to), hidden, 'neuron')}"
        return f"{least}, or more by its bounds," if self.bounds else least


def describe_least(least: int, sizes: Sequence[int], unit: str) -> str:
    """Return the units that every block keeps, in words: all of them where no block has more.

    Args:
        least: Number of units that every block keeps, if it has them.
        sizes: Units of each block of the dense model.
        unit: Name of one unit.
    """
    if least >= max(sizes):
        return f"all {unit}s"
    return f"{least} {unit}" if least == 1 else f"{least} {unit}s"


def _ratios(ranges: Iterable[UnitRange], units: int, step: int) -> tuple[float, ...]:
    """Return the ratios that remove multiples of ``step`` within the ranges of all blocks."""
    least, most = (sum(counts) for counts in zip(*ranges, strict=True))
    return tuple(count / units for count in range(-(-least // step) * step, most + 1, step))
