"""The pairs of structural pruning and a token cascade together."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.costs import MACS
from vit_ratio_opt.space.pairs import PairSpace, RatioPair, check_pair, removed_units
from vit_ratio_opt.space.shape import BlockTokens, ViTShape
from vit_ratio_opt.space.tokens import TokenSpace
from vit_ratio_opt.space.units import StructuralUnits, describe_least, least_neurons

__all__ = ["Combined"]

_PER_CENT: Sequence[float] = tuple(units / 100 for units in range(100))
"""The ratios that a trial can suggest."""


@dataclass(frozen=True)
class Combined(PairSpace):
    """The pairs of structural pruning and a cascade together: shares of the MACs of each module.

    Each ratio is divided between the two. Tokens that change no output are left out first. Of the
    remaining saving, in logarithms, the cascade brings the share ``by_cascade``. Structural
    pruning removes the rest, from the blocks where a MAC costs the least loss. The MACs here are
    an upper limit: a model comes out smaller by less than one unit a block.

    Args:
        cascade: Space of the cascade of the dense model.
        by_cascade: Share of the saving that leaving out tokens has to bring, in [0, 1].
        round_to: Ranks and hidden neurons that are left in a block are multiples of this number
            wherever some are removed.

    Raises:
        InputError: ``by_cascade`` is outside [0, 1], or the cascade's rule removes heads.
    """

    cascade: TokenSpace
    by_cascade: float = 0.05
    round_to: int = 1
    cost = MACS

    def __post_init__(self) -> None:
        if not 0 <= self.by_cascade <= 1:
            raise InputError(f"`by_cascade` must be in [0, 1], but got {self.by_cascade!r}.")
        if self.cascade.rule.heads:
            raise InputError(
                "`heads` is for a cascade alone: here structural pruning removes the heads."
            )
        _ = self._units  # refuses `round_to`

    @property
    def dense(self) -> ViTShape:
        """Return the shape of the dense model."""
        return self.cascade.dense

    @cached_property
    def _units(self) -> StructuralUnits:
        return StructuralUnits(self.dense, "rank", self.round_to)

    @property
    def macs(self) -> int:
        """Return the MACs of the dense model."""
        return self.dense.macs

    @property
    def minimum(self) -> str:
        """Return the minimum that every block keeps, in words."""
        blocks, neurons = self.dense.blocks, least_neurons(self.round_to)
        rank = describe_least(self.round_to, [block.head_dim for block in blocks], "rank")
        ffn = describe_least(neurons, [block.hidden_dim for block in blocks], "neuron")
        return f"1 head, {rank}, {ffn} and 1 patch"

    @cached_property
    def mhsa_ratios(self) -> tuple[float, ...]:
        """Return whole per cents, up to the largest that leaves every block its minimum."""
        return self._realisable(0)

    @cached_property
    def ffn_ratios(self) -> tuple[float, ...]:
        """Return whole per cents, up to the largest that leaves every block its minimum."""
        return self._realisable(1)

    def _realisable(self, module: int) -> tuple[float, ...]:
        """Return the ratios that leave a module enough MACs for every block's minimum."""
        return tuple(
            itertools.takewhile(
                lambda ratio: self._least_macs(ratio)[module] <= self._macs_left(ratio)[module],
                _PER_CENT,
            )
        )

    def removed(self, pair: RatioPair) -> tuple[int, int]:
        """Return the two ratios in whole per cents.

        Raises:
            InputError: A ratio is negative or above the largest one.
        """
        check_pair(self, pair)
        return removed_units(pair.mhsa_ratio, 100), removed_units(pair.ffn_ratio, 100)

    def tokens(self, pair: RatioPair) -> tuple[BlockTokens, ...]:
        """Return the tokens that each block works on; raises as :meth:`removed` does."""
        mhsa, ffn = (_PER_CENT[units] for units in self.removed(pair))
        return self.cascade.tokens(RatioPair(self._cascade_ratio(mhsa), self._cascade_ratio(ffn)))

    def module_macs(self, pair: RatioPair) -> tuple[int, int]:
        """Return the most MACs of attention and FFN; raises as :meth:`removed` does."""
        mhsa, ffn = (_PER_CENT[units] for units in self.removed(pair))
        return self._macs_left(mhsa)[0], self._macs_left(ffn)[1]

    def pruned_macs(self, pair: RatioPair) -> int:
        """Return the most MACs after pruning by ``pair``; raises as :meth:`removed` does."""
        return self.dense.fixed_macs + sum(self.module_macs(pair))

    def _macs_left(self, ratio: float) -> tuple[int, int]:
        """Return the MACs of attention and FFN that ``ratio`` leaves."""
        dense = self.dense
        attention, ffn = dense.attention_dims * dense.dim_macs, dense.neurons * dense.neuron_macs
        return attention - math.ceil(ratio * attention), ffn - math.ceil(ratio * ffn)

    def _cascade_ratio(self, ratio: float) -> float:
        """Return the ratio of the cascade that takes its part of ``ratio``."""
        ratios = self.cascade.mhsa_ratios
        free = min(ratio, self.cascade.free_ratio)
        asked = 1 - (1 - free) * ((1 - ratio) / (1 - free)) ** self.by_cascade
        # Rounded down, so that no token with an effect is left out while ratios are free.
        return ratios[bisect.bisect_right(ratios, asked + 1e-9) - 1]

    def _least_macs(self, ratio: float) -> tuple[int, int]:
        """Return the MACs of attention and FFN with every block at its minimum."""
        share = self._cascade_ratio(ratio)
        tokens = self.cascade.tokens(RatioPair(share, share))
        attention = ffn = 0
        least = least_neurons(self.round_to)
        for block, counts in zip(self.dense.blocks, tokens, strict=True):
            dim_macs, neuron_macs = self.dense.unit_macs(counts)
            attention += self._units.least_dims(block) * dim_macs
            ffn += min(block.hidden_dim, least) * neuron_macs
        return attention, ffn
