"""The pairs of a token cascade: blocks that leave out more and more tokens.

This module counts the tokens that each block leaves out; :mod:`vit_ratio_opt.pruning.cascade`
chooses them for each image.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.costs import MACS
from vit_ratio_opt.space.pairs import PairSpace, RatioPair, check_pair, removed_units
from vit_ratio_opt.space.shape import BlockTokens, ViTShape

__all__ = ["CP_VIT", "LATE", "CascadeRule", "Scores", "Strategy", "TokenSpace"]

Strategy = Literal["structural", "cascade", "both"]
"""What is pruned: weights, the tokens that pass through them, or both."""

Scores = Literal["max", "mean", "class"]
"""Score of a patch in a block: largest or mean attention of all tokens, or the class token's."""


@dataclass(frozen=True, kw_only=True)
class CascadeRule:
    """Rule by which tokens are left out. The defaults follow CP-ViT (Song et al. 2022).

    Args:
        schedule: Increase of the share of left-out patches from block to block. ``"rising"``: from
            none in the first block, in proportion to the block's index. ``"late"``: in proportion
            to the square of the index; where the classifier reads only the class token, the
            patches of the last block are left out first, because they change no output.
        by_range: Whether a block's share is also in proportion to how far its attention reaches,
            measured on calibration images.
        left_out: Part of the attention from which a left-out patch is excluded. ``"tokens"``: it
            is neither query nor key. ``"queries"``: it does not attend, but others attend to it.
        scores: Score by which patches are informative.
        heads: Whether the least informative heads are removed as well: the same share of them as
            of the patches, rounded down; those with the least attention, for all images alike.

    Raises:
        InputError: A value is not one of those allowed.
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
"""The rule that lost least accuracy in our measurements: late blocks, and queries only."""


@dataclass(frozen=True)
class TokenSpace(PairSpace):
    """The pairs of a token cascade.

    ``mhsa_ratio`` of the patches is left out of the attention and ``ffn_ratio`` of them skips the
    FFN, on average over the blocks.

    One unit is one patch in every block. The units are allocated to the blocks one by one, always
    to the block that is furthest behind its weight (Sainte-Lague method), so that every block's
    share only rises with the ratio. Every block keeps one patch in each module, and the prefix
    tokens.

    Args:
        dense: Shape of the dense model.
        rule: Rule by which tokens are left out.
        ranges: Attention range of each block; needed with ``rule.by_range``.
        class_only: Whether the classifier reads prefix tokens only.

    Raises:
        InputError: The model is too small or has a cascade already, or ``ranges`` do not fit it.
    """

    cost = MACS

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
            raise InputError("The model has a cascade already: start from the model without one.")
        if self.rule.by_range and len(self.ranges) != depth:
            raise InputError(f"`ranges` must have {depth} values, but has {len(self.ranges)}.")

    @property
    def macs(self) -> int:
        """Return the MACs of the dense model."""
        return self.dense.macs

    @property
    def minimum(self) -> str:
        """Return the minimum that every block keeps, in words."""
        return "1 patch in the attention and in the FFN"

    @cached_property
    def mhsa_ratios(self) -> tuple[float, ...]:
        """Return 0, 1, 2, ... patches in each block on average, as shares of all."""
        return tuple(units / self.dense.patches for units in range(len(self._patches_left_out)))

    @property
    def ffn_ratios(self) -> tuple[float, ...]:
        """Return the MHSA ratios, since attention and FFN have the same numbers of patches."""
        return self.mhsa_ratios

    @property
    def free_ratio(self) -> float:
        """Return the ratio up to which leaving out patches changes no output."""
        if self.rule.schedule == "rising" or not self.class_only:
            return 0.0
        depth = len(self.dense.blocks)
        return (self.dense.patches - 1) // depth / self.dense.patches

    def removed(self, pair: RatioPair) -> tuple[int, int]:
        """Return the patches that a block leaves out of its attention and of its FFN, on average.

        Raises:
            InputError: A ratio is negative or above the largest one.
        """
        check_pair(self, pair)
        patches = self.dense.patches
        return removed_units(pair.mhsa_ratio, patches), removed_units(pair.ffn_ratio, patches)

    def tokens(self, pair: RatioPair) -> tuple[BlockTokens, ...]:
        """Return the tokens that each block works on; raises as :meth:`removed` does."""
        total = self.dense.tokens
        attention, ffn = (self._patches_left_out[units] for units in self.removed(pair))
        return tuple(
            BlockTokens(
                total - out,
                total if self.rule.left_out == "queries" else total - out,
                total - skipped,
            )
            for out, skipped in zip(attention, ffn, strict=True)
        )

    def heads(self, pair: RatioPair) -> tuple[int, ...]:
        """Return the heads that each block keeps; raises as :meth:`removed` does."""
        kept = [block.num_heads for block in self.dense.blocks]
        if self.rule.heads:
            out, patches = self._patches_left_out[self.removed(pair)[0]], self.dense.patches
            kept = [heads - heads * n // patches for heads, n in zip(kept, out, strict=True)]
        return tuple(kept)

    def shape(self, pair: RatioPair) -> ViTShape:
        """Return the shape of the pruned model; raises as :meth:`removed` does."""
        blocks = tuple(
            replace(block, num_heads=heads)
            for block, heads in zip(self.dense.blocks, self.heads(pair), strict=True)
        )
        return replace(self.dense, blocks=blocks, block_tokens=self.tokens(pair))

    def pruned_macs(self, pair: RatioPair) -> int:
        """Return the MACs after pruning by ``pair``; raises as :meth:`removed` does."""
        mhsa, ffn = self.removed(pair)
        return self.macs - self._saved_macs[0][mhsa] - self._saved_macs[1][ffn]

    @cached_property
    def _saved_macs(self) -> tuple[list[int], list[int]]:
        """Return the MACs that attention and FFN save, by units; neither depends on the other."""
        ratios = self.mhsa_ratios
        return (
            [self.macs - self.shape(RatioPair(ratio, 0.0)).macs for ratio in ratios],
            [self.macs - self.shape(RatioPair(0.0, ratio)).macs for ratio in ratios],
        )

    @cached_property
    def _patches_left_out(self) -> tuple[tuple[int, ...], ...]:
        """Return by units, the patches that each block leaves out."""
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
