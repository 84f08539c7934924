"""Build a model whose levels are slices of one another, from one calibration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT, branches
from vit_ratio_opt.models.copies import copy_model
from vit_ratio_opt.models.elastic import ElasticLevel, ElasticViT
from vit_ratio_opt.models.shape import check_all_tokens, shape_of
from vit_ratio_opt.models.surgery import keep_neurons
from vit_ratio_opt.models.weights import check_weights
from vit_ratio_opt.pruning.allocate import heads_by_dims
from vit_ratio_opt.pruning.calibration import Calibration
from vit_ratio_opt.pruning.elastic_repair import repair_levels
from vit_ratio_opt.pruning.factorize import factorize_attention, nested_losses
from vit_ratio_opt.pruning.prune import check_calibration
from vit_ratio_opt.pruning.sizes import allocate_scores
from vit_ratio_opt.space.bounds import UnitRange
from vit_ratio_opt.space.pairs import RatioPair, as_pair, check_pair
from vit_ratio_opt.space.shape import BlockShape
from vit_ratio_opt.space.units import StructuralUnits

__all__ = ["build_elastic"]


def build_elastic(
    dense: ViT,
    pairs: Iterable[RatioPair | Sequence[float]],
    calibration: Calibration,
    images: Iterable[torch.Tensor] | None = None,
    *,
    round_to: int = 1,
) -> ElasticViT:
    """Return one model with a level for each pair, whose levels share their weights.

    In every block of the result the heads are factorised and stand in the order of their
    importance, as do the dimensions of each head and the hidden neurons. So every level keeps the
    first of them. Sizes are allocated to the blocks from the largest level down, each within the
    sizes of the level before: nowhere is a smaller level larger, and none exceeds the MACs of its
    pair.

    Args:
        dense: The dense model; it is not changed.
        pairs: Ratios of the dense model, ``(mhsa_ratio, ffn_ratio)``, in any order, such that each
            next larger one prunes neither module less.
        calibration: Calibration of ``dense``.
        images: The images of the calibration, in batches: the last layers of attention and FFN
            are then refitted so that all levels together follow the dense model. Without them
            each level is as the cut leaves it.
        round_to: Ranks and neurons left in a block are multiples of this.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: The pairs are not nested, a ratio is out of range, the images or the
            calibration do not belong to the model, or it has weights that are not finite.
    """
    dense = check_all_tokens(dense)
    check_weights(dense, finite="blocks.")
    check_calibration(dense, calibration)
    units = StructuralUnits(shape_of(dense), "rank", round_to)
    nested = _nested(units, pairs)
    levels = [
        ElasticLevel(pair, blocks, replace(units.shape, blocks=blocks).macs / units.shape.macs)
        for pair, blocks in zip(nested, _sizes(units, nested, calibration), strict=True)
    ]
    model = ElasticViT(_ordered(dense, levels[0].blocks, calibration), levels)
    _center(model, dense, calibration)
    if images is not None:
        repair_levels(model, images, calibration)
    return model


def _nested(
    units: StructuralUnits, pairs: Iterable[RatioPair | Sequence[float]]
) -> list[RatioPair]:
    """Return the pairs from the smallest ratios to the largest ones."""
    if not isinstance(pairs, Iterable):
        raise InputError(f"`pairs` must be pairs of ratios, but got {pairs!r:.80}.")
    given = [as_pair(pair) for pair in pairs]
    if not given:
        raise InputError("`pairs` must have at least one pair of ratios.")
    for pair in given:
        check_pair(units, pair)
    rising = sorted(set(given), key=lambda pair: (sum(pair), pair))
    for small, large in pairwise(rising):
        if large.mhsa_ratio < small.mhsa_ratio or large.ffn_ratio < small.ffn_ratio:
            raise InputError(
                f"The pair {tuple(large)} is not nested in {tuple(small)}, as it prunes one "
                "module less: leave one of both out."
            )
    return rising


def _sizes(
    units: StructuralUnits, pairs: Sequence[RatioPair], calibration: Calibration
) -> list[tuple[BlockShape, ...]]:
    """Return the sizes of the blocks by pair, each within those of the pair before."""
    blocks = units.shape.blocks
    tables = [nested_losses(block.factors)[0] for block in calibration.blocks]
    losses = [block.neuron_losses for block in calibration.blocks]
    gone, found = [0] * len(blocks), []
    for pair in pairs:
        removed, neurons = units.removed(pair)
        dims = units.shape.attention_dims - removed * units.mhsa_unit_dims
        (heads,) = heads_by_dims(tables, [dims], units.round_to)
        for table, (count, rank) in zip(tables, heads, strict=True):
            table[count:] = torch.inf
            table[:, rank:] = torch.inf
        ranges = [UnitRange(n, lost.most) for n, lost in zip(gone, units.ffn_ranges, strict=True)]
        gone = allocate_scores(losses, neurons, ranges, units.round_to, "global", is_sorted=True)
        found.append(
            tuple(
                BlockShape(count, rank, block.hidden_dim - lost)
                for block, (count, rank), lost in zip(blocks, heads, gone, strict=True)
            )
        )
    return found


def _ordered(dense: ViT, sizes: Sequence[BlockShape], calibration: Calibration) -> ViT:
    """Return the largest level: factorised heads and neurons, the most important first."""
    model = copy_model(dense)
    for (attention, ffn), known, size in zip(
        branches(model), calibration.blocks, sizes, strict=True
    ):
        order = nested_losses(known.factors)[1][: size.num_heads].tolist()
        attention.replace(
            factorize_attention(attention.module, known.factors, order, size.head_dim)
        )
        keep_neurons(ffn.module, known.neuron_order.flip(0)[: size.hidden_dim].tolist())
    return model.eval()


def _center(model: ElasticViT, dense: ViT, calibration: Calibration) -> None:
    """Let the bias of each level's projection take the mean of the dimensions that it lacks."""
    blocks = list(zip(branches(dense), calibration.blocks, strict=True))
    for index, level in enumerate(model.levels[1:], start=1):
        for ((attention, _), known), size in zip(blocks, level.blocks, strict=True):
            attn = attention.module
            if attn.proj.bias is None:
                continue
            order = nested_losses(known.factors)[1][: size.num_heads].tolist()
            cut = factorize_attention(attn, known.factors, order, size.head_dim)
            with torch.no_grad():
                model.vector(index, f"{attention.name}.proj.bias").copy_(cut.proj.bias)
