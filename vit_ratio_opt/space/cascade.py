"""What a pair of ratios means where tokens are left out: a cascade, alone or not.

Pure arithmetic, as in :mod:`vit_ratio_opt.space.geometry`, whose :class:`ViTShape` is the third
strategy: structural pruning alone. Which tokens of an image are left out is decided in
:mod:`vit_ratio_opt.pruning.cascade`; here is only how many, in which block.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.geometry import (
    BlockTokens,
    RatioPair,
    RatioSpace,
    ViTShape,
    check_pair,
    least_neurons,
    removed_units,
)

__all__ = ["CP_VIT", "LATE", "Cascade", "CascadeRule", "Combined", "Scores", "Strategy"]

Strategy = Literal["structural", "cascade", "both"]
"""What is pruned: weights, the tokens that pass through them, or both."""

Scores = Literal["max", "mean", "class"]
"""What a patch scores in a block: the largest or mean attention of all, or the class token's."""


@dataclass(frozen=True, kw_only=True)
class CascadeRule:
    """How tokens are left out. The defaults are our reading of CP-ViT (Song et al. 2022).

    Args:
        schedule: How the share of left-out patches rises from block to block. ``"rising"``: from
            none in the first block in proportion to the block's number. ``"late"``: with its
            square, after the last block has been left to the class token, where that is all that
            the classifier reads: what patches do there changes no output.
        by_range: Whether a block's share is also in proportion to how far its attention reaches,
            measured on calibration images.
        left_out: What a patch is left out of in the attention: ``"tokens"``, it is neither query
            nor key; ``"queries"``, it does not attend, but others still attend to it.
        scores: What makes a patch informative.
        heads: Whether the least informative heads go as well, the same share of them as of the
            patches, rounded down; the ones with the least attention, for all images alike.
    """

    schedule: Literal["rising", "late"] = "rising"
    by_range: bool = True
    left_out: Literal["tokens", "queries"] = "tokens"
    scores: Scores = "max"
    heads: bool = False

    def __post_init__(self) -> None:
        rules = {
            "schedule": ("rising", "late"),
            "left_out": ("tokens", "queries"),
            "scores": get_args(Scores),
        }
        for name, allowed in rules.items():
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"`{name}` must be one of {allowed}, but got {getattr(self, name)!r}."
                )


CP_VIT = CascadeRule()
"""The baseline: with one fixed ratio, CP-ViT."""

LATE = CascadeRule(schedule="late", by_range=False, left_out="queries")
"""What lost least where it was measured: late blocks, and queries only."""


@dataclass(frozen=True)
class Cascade(RatioSpace):
    """The pairs of a cascade.

    ``mhsa_ratio`` of the patches is left out of the attention, ``ffn_ratio`` of them skips the
    FFN, on average over the blocks.

    One unit is one patch in every block; the units
    are dealt to the blocks one by one, always to the one that is furthest behind its weight
    (Sainte-Lague), so that every block's share only rises with the ratio. Every block keeps one
    patch in each module, and the prefix tokens.

    Args:
        dense: The model.
        rule: See there.
        ranges: By block, how far the attention reaches; needed with ``rule.by_range``.
        class_only: Whether the classifier reads prefix tokens only.
    """

    dense: ViTShape
    rule: CascadeRule = CP_VIT
    ranges: tuple[float, ...] = ()
    class_only: bool = False

    def __post_init__(self) -> None:
        depth = len(self.dense.blocks)
        if self.dense.patches < 2 or depth < 2:
            raise InputError(
                "A cascade needs a model of at least 2 blocks and 2 patches, but got "
                f"{depth} and {self.dense.patches}."
            )
        if self.dense.block_tokens:
            raise InputError("The model has a cascade already: start from the one without.")
        if self.rule.by_range and len(self.ranges) != depth:
            raise InputError(f"`ranges` must have {depth} values, but has {len(self.ranges)}.")

    @property
    def macs(self) -> int:
        """MACs of the dense model."""
        return self.dense.macs

    @property
    def minimum(self) -> str:
        """What every block keeps at least, in words."""
        return "1 patch in the attention and in the FFN"

    @cached_property
    def mhsa_ratios(self) -> tuple[float, ...]:
        """0, 1, 2, ... patches in each block on average, as shares of all."""
        return tuple(units / self.dense.patches for units in range(len(self._left_out)))

    @property
    def ffn_ratios(self) -> tuple[float, ...]:
        """The same: attention and FFN leave out the same numbers at the same ratio."""
        return self.mhsa_ratios

    @property
    def free_ratio(self) -> float:
        """The ratio up to which leaving out patches changes no output."""
        if self.rule.schedule == "rising" or not self.class_only:
            return 0.0
        depth = len(self.dense.blocks)
        return (self.dense.patches - 1) // depth / self.dense.patches

    def removed(self, pair: RatioPair) -> tuple[int, int]:
        """Patches that a block leaves out of its attention and of its FFN, on average.

        Raises:
            InputError: A ratio is negative or above the largest one.
        """
        check_pair(self, pair)
        patches = self.dense.patches
        return removed_units(pair.mhsa_ratio, patches), removed_units(pair.ffn_ratio, patches)

    def tokens(self, pair: RatioPair) -> tuple[BlockTokens, ...]:
        """The tokens that each block works on; raises as :meth:`removed` does."""
        total = self.dense.tokens
        attention, ffn = (self._left_out[units] for units in self.removed(pair))
        return tuple(
            BlockTokens(
                total - out,
                total if self.rule.left_out == "queries" else total - out,
                total - skipped,
            )
            for out, skipped in zip(attention, ffn, strict=True)
        )

    def heads(self, pair: RatioPair) -> tuple[int, ...]:
        """Heads that each block keeps; raises as :meth:`removed` does."""
        kept = [block.num_heads for block in self.dense.blocks]
        if self.rule.heads:
            out, patches = self._left_out[self.removed(pair)[0]], self.dense.patches
            kept = [heads - heads * n // patches for heads, n in zip(kept, out, strict=True)]
        return tuple(kept)

    def shape(self, pair: RatioPair) -> ViTShape:
        """The pruned model's; raises as :meth:`removed` does."""
        blocks = tuple(
            replace(block, num_heads=heads)
            for block, heads in zip(self.dense.blocks, self.heads(pair), strict=True)
        )
        return replace(self.dense, blocks=blocks, block_tokens=self.tokens(pair))

    def pruned_macs(self, pair: RatioPair) -> int:
        """MACs that are left; raises as :meth:`removed` does."""
        mhsa, ffn = self.removed(pair)
        return self.macs - self._saved[0][mhsa] - self._saved[1][ffn]

    @cached_property
    def _saved(self) -> tuple[list[int], list[int]]:
        """MACs that attention and FFN are rid of, by units; neither depends on the other."""
        ratios = self.mhsa_ratios
        return (
            [self.macs - self.shape(RatioPair(ratio, 0.0)).macs for ratio in ratios],
            [self.macs - self.shape(RatioPair(0.0, ratio)).macs for ratio in ratios],
        )

    @cached_property
    def _left_out(self) -> tuple[tuple[int, ...], ...]:
        """By units, the patches that each block leaves out."""
        depth, most = len(self.dense.blocks), self.dense.patches - 1
        late = self.rule.schedule == "late"
        weights = [float(index**2 if late else index) for index in range(depth)]
        if self.rule.by_range:
            weights = [w * range_ for w, range_ in zip(weights, self.ranges, strict=True)]
        counts, dealt = [0] * depth, [(0,) * depth]
        queue = [(-2.0 * weight, index) for index, weight in enumerate(weights) if weight > 0]
        if late and self.class_only:
            queue = [(-math.inf, depth - 1), *(turn for turn in queue if turn[1] < depth - 1)]
        heapq.heapify(queue)
        while True:
            for _ in range(depth):
                if not queue:
                    return tuple(dealt)
                turn, index = heapq.heappop(queue)
                counts[index] += 1
                if counts[index] < most:
                    if turn > -math.inf:
                        turn = -weights[index] / (counts[index] + 0.5)
                    heapq.heappush(queue, (turn, index))
            dealt.append(tuple(counts))


@dataclass(frozen=True)
class Combined(RatioSpace):
    """The pairs of surgery and cascade together: shares of the MACs of attention and FFN.

    Each ratio is divided between the two: what the
    cascade saves for free goes first, and of the rest, in logarithms, a share of ``by_cascade``;
    surgery removes what is then still too much, from the blocks where a MAC costs least. So the
    MACs here are what a model may have at most: it comes out smaller by less than a unit a block.

    Args:
        cascade: Of the same dense model.
        by_cascade: Share of the saving that leaving out tokens has to bring, in [0, 1].
    """

    cascade: Cascade
    by_cascade: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.by_cascade <= 1:
            raise InputError(f"`by_cascade` must be in [0, 1], but got {self.by_cascade!r}.")
        if self.cascade.rule.heads:
            raise InputError("`heads` is for a cascade alone: surgery sees to the heads.")

    @property
    def dense(self) -> ViTShape:
        """The dense model's shape."""
        return self.cascade.dense

    @property
    def macs(self) -> int:
        """MACs of the dense model."""
        return self.dense.macs

    @property
    def minimum(self) -> str:
        """What every block keeps at least, in words."""
        neurons = least_neurons(self.dense.round_to)
        return f"1 head, {self.dense.round_to} rank(s), {neurons} neurons and 1 patch"

    @cached_property
    def mhsa_ratios(self) -> tuple[float, ...]:
        """Whole per cents, as far as they can be had."""
        return self._realisable(0)

    @cached_property
    def ffn_ratios(self) -> tuple[float, ...]:
        """Whole per cents, as far as they can be had."""
        return self._realisable(1)

    def _realisable(self, module: int) -> tuple[float, ...]:
        """The ratios that leave a module enough for the least of every block."""
        return tuple(
            itertools.takewhile(
                lambda ratio: self._least(ratio)[module] <= self._left(ratio)[module], _PER_CENT
            )
        )

    def removed(self, pair: RatioPair) -> tuple[int, int]:
        """The two ratios in whole per cents.

        Raises:
            InputError: A ratio is negative or above the largest one.
        """
        check_pair(self, pair)
        return removed_units(pair.mhsa_ratio, 100), removed_units(pair.ffn_ratio, 100)

    def tokens(self, pair: RatioPair) -> tuple[BlockTokens, ...]:
        """The tokens that each block works on; raises as :meth:`removed` does."""
        mhsa, ffn = (_PER_CENT[units] for units in self.removed(pair))
        return self.cascade.tokens(RatioPair(self._by_cascade(mhsa), self._by_cascade(ffn)))

    def module_macs(self, pair: RatioPair) -> tuple[int, int]:
        """MACs that attention and FFN may have; raises as :meth:`removed` does."""
        mhsa, ffn = (_PER_CENT[units] for units in self.removed(pair))
        return self._left(mhsa)[0], self._left(ffn)[1]

    def pruned_macs(self, pair: RatioPair) -> int:
        """MACs that may be left; raises as :meth:`removed` does."""
        return self.dense.fixed_macs + sum(self.module_macs(pair))

    def _left(self, ratio: float) -> tuple[int, int]:
        """MACs of attention and FFN that are not in ``ratio``."""
        dense = self.dense
        attention, ffn = dense.attention_dims * dense.dim_macs, dense.neurons * dense.neuron_macs
        return attention - math.ceil(ratio * attention), ffn - math.ceil(ratio * ffn)

    def _by_cascade(self, ratio: float) -> float:
        """The cascade's own ratio."""
        ratios = self.cascade.mhsa_ratios
        free = min(ratio, self.cascade.free_ratio)
        asked = 1 - (1 - free) * ((1 - ratio) / (1 - free)) ** self.by_cascade
        # Rounded down: what is free must not become more.
        return ratios[bisect.bisect_right(ratios, asked + 1e-9) - 1]

    def _least(self, ratio: float) -> tuple[int, int]:
        """MACs of attention and FFN with as little as possible of each block."""
        share = self._by_cascade(ratio)
        tokens = self.cascade.tokens(RatioPair(share, share))
        attention = ffn = 0
        least = least_neurons(self.dense.round_to)
        for block, counts in zip(self.dense.blocks, tokens, strict=True):
            dim_macs, neuron_macs = self.dense.unit_macs(counts)
            attention += self.dense.least_dims(block) * dim_macs
            ffn += min(block.hidden_dim, least) * neuron_macs
        return attention, ffn


_PER_CENT: Sequence[float] = tuple(units / 100 for units in range(100))
