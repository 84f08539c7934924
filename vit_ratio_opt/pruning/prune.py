"""Prune a model by a pair of ratios, or by numbers of units."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.architecture import fingerprint_of
from vit_ratio_opt.models.blocks import ViT, branches
from vit_ratio_opt.models.shape import read_shape
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.models.surgery import ALL_HEADS, keep_units
from vit_ratio_opt.models.weights import check_weights
from vit_ratio_opt.pruning.bounds import resolve_bounds
from vit_ratio_opt.pruning.calibration import Calibration
from vit_ratio_opt.pruning.factorize import factorize_attention, rank_losses
from vit_ratio_opt.pruning.importance import Importance, check_importance
from vit_ratio_opt.pruning.options import Allocation, check_allocation
from vit_ratio_opt.pruning.sizes import (
    allocate_ranks,
    allocate_scores,
    even_minimums,
    sizes_within_macs,
)
from vit_ratio_opt.space.bounds import BlockBounds
from vit_ratio_opt.space.pairs import RatioPair, as_pair, check_pair
from vit_ratio_opt.space.shape import BlockTokens
from vit_ratio_opt.space.units import MhsaUnit, StructuralUnits

__all__ = [
    "check_calibration",
    "prune",
    "prune_blocks",
    "prune_ranks",
    "prune_to_macs",
    "prune_units",
]


def prune(
    model: ViT,
    pair: RatioPair | tuple[float, float],
    scores: Importance | Calibration,
    *,
    allocation: Allocation = "global",
    round_to: int = 1,
    skip: Sequence[str] = (),
    bounds: Mapping[str, Sequence[float]] | None = None,
) -> ViT:
    """Return a smaller copy of ``model``; ``model`` itself is not changed.

    Args:
        model: A supported timm ViT.
        pair: ``(mhsa_ratio, ffn_ratio)``, the fractions of the attention and of all hidden neurons
            to remove. Counts are rounded up, so the MACs never exceed what the ratios ask for.
        scores: Scores that choose the units to remove. A :class:`Calibration` of this model gives
            its heads a lower rank, see :mod:`vit_ratio_opt.pruning.factorize`; the MHSA ratio then
            counts ranks, one dimension of every head of a block, or whole heads where queries and
            keys have norms and cannot be factorised. An :class:`Importance` removes whole heads,
            those with the lowest scores.
        allocation: How the ratios are allocated across blocks. ``"global"`` removes the units with
            the smallest losses or scores in all blocks together; ``"energy"`` does so with losses
            or scores as shares of their sum in a block, so that all blocks have equal weight;
            ``"uniform"`` removes the same share of every block, as far as whole units allow. Every
            block keeps at least one head or rank, and eight neurons.
        round_to: Ranks and neurons that are left in a block are multiples of this wherever some
            are removed: matrix products of such sizes are faster on most hardware. Up to
            ``round_to - 1`` more ranks and neurons than the ratios ask for are then removed.
        skip: Blocks, attentions and FFNs that lose nothing, by their names in the model, such as
            ``"blocks.0"`` or ``"blocks.11.attn"``. A ratio still counts the units of all blocks.
        bounds: Smallest and largest share of the units that a block, an attention or an FFN loses,
            by its name.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: A ratio, the scores, ``allocation``, ``round_to``, ``skip`` or ``bounds`` do
            not fit, or a weight is not finite.
    """
    model = check_supported(model)
    if not isinstance(scores, (Importance, Calibration)):
        raise InputError(
            f"`scores` must be a Calibration or an Importance, but is a {type(scores).__name__}: "
            "`calibrate(model, images)` gives one."
        )
    unit: MhsaUnit = "head" if isinstance(scores, Importance) else "rank"
    by_block = resolve_bounds(model, skip, bounds)
    dense = StructuralUnits(read_shape(model), unit, round_to, bounds=by_block)
    pair = as_pair(pair)
    check_pair(dense, pair)
    units, neurons = dense.removed(pair)
    how: dict[str, Any] = {"allocation": allocation, "round_to": round_to, "bounds": by_block}
    if isinstance(scores, Importance):
        if dense.shape.all_heads and units:
            raise UnsupportedModelError(ALL_HEADS)
        return prune_units(model, units, neurons, scores, **how)
    return prune_ranks(model, units * dense.mhsa_unit_dims, neurons, scores, **how)


def prune_ranks(
    model: ViT,
    dims: int,
    neurons: int,
    calibration: Calibration,
    *,
    allocation: Allocation = "global",
    round_to: int = 1,
    bounds: tuple[BlockBounds, ...] = (),
) -> ViT:
    """Return a copy of ``model`` with head dimensions and neurons removed by a calibration.

    All heads that stay in a block have the same rank; a head is removed whole where its dimensions
    lose less than those of others.

    Args:
        model: Dense or pruned model.
        dims: Number of head dimensions to remove from all blocks together.
        neurons: Number of hidden neurons to remove from all blocks together.
        calibration: Calibration of this model.
        allocation: How the numbers are allocated across blocks, see :func:`prune`.
        round_to: Ranks and neurons left in a block are multiples of this.
        bounds: Bounds on what each block loses of what it has; none by default.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: A number, the calibration or ``allocation`` do not fit.
    """
    model = check_supported(model)
    units = StructuralUnits(read_shape(model), "rank", round_to, bounds=bounds)
    blocks = units.shape.blocks
    check_allocation(allocation)
    check_calibration(model, calibration)
    sizes = [block.num_heads * block.head_dim for block in blocks]
    minimums = [kept.least for kept in units.kept_dims]
    if allocation == "uniform":
        minimums = even_minimums(units)
    _check_removed("dims", dims, sizes, minimums)
    _check_removed("neurons", neurons, *_ffn_sizes(units))
    (chosen,), (counts,) = allocate_ranks(
        units, [dims], [neurons], calibration, allocation=allocation
    )
    return prune_blocks(model, chosen, counts, calibration)


def prune_units(
    model: ViT,
    heads: int,
    neurons: int,
    importance: Importance,
    *,
    allocation: Allocation = "global",
    round_to: int = 1,
    bounds: tuple[BlockBounds, ...] = (),
) -> ViT:
    """Return a copy of ``model`` without the heads and neurons with the lowest scores.

    For a model that was pruned before, whose own units are not those that the ratios count.
    Whatever was removed before, the rest of a larger pair can be removed too, because every block
    has the same minimum.

    Args:
        model: Dense or pruned model.
        heads: Number of heads to remove from all blocks together.
        neurons: Number of hidden neurons to remove from all blocks together.
        importance: Scores of this model's heads and neurons.
        allocation: How the numbers are allocated across blocks, see :func:`prune`.
        round_to: Neurons left in a block are multiples of this.
        bounds: Bounds on what each block loses of what it has; none by default.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: A number, the scores or ``allocation`` do not fit, or a weight is not finite.
    """
    check_allocation(allocation)
    model = check_supported(model)
    check_weights(model, finite="blocks.")
    units = StructuralUnits(read_shape(model), "head", round_to, bounds=bounds)
    check_importance(model, importance)
    sizes = [block.num_heads for block in units.shape.blocks]
    minimums = [size - lost.most for size, lost in zip(sizes, units.mhsa_ranges, strict=True)]
    _check_removed("heads", heads, sizes, minimums)
    _check_removed("neurons", neurons, *_ffn_sizes(units))
    keep = [
        [
            sorted(_rank_units(score)[count:])
            for score, count in zip(
                scores, allocate_scores(scores, removed, ranges, step, allocation), strict=True
            )
        ]
        for scores, removed, ranges, step in (
            (importance.heads, heads, units.mhsa_ranges, 1),
            (importance.neurons, neurons, units.ffn_ranges, round_to),
        )
    ]
    return keep_units(model, *keep)


def prune_to_macs(
    model: ViT,
    attention_macs: int,
    ffn_macs: int,
    tokens: Sequence[BlockTokens],
    calibration: Calibration,
    *,
    round_to: int = 1,
) -> ViT:
    """Return a copy of ``model`` pruned to a number of MACs, for blocks with different tokens.

    A head or a neuron then costs more in one block than in another: the units that lose least for
    the MACs that they save are removed.

    Args:
        model: Dense or pruned model without a cascade; so is the result.
        attention_macs: Largest number of MACs in all blocks' attention.
        ffn_macs: Largest number of MACs in all blocks' FFN.
        tokens: Number of queries, keys and tokens in the FFN that each block will work on.
        calibration: Calibration of this model.
        round_to: Ranks and neurons left in a block are multiples of this.

    Raises:
        InputError: The MACs are less than all blocks need at their smallest sizes, or the
            calibration is of another model.
    """
    model = check_supported(model)
    shape = read_shape(model)
    check_calibration(model, calibration)
    heads, neurons = sizes_within_macs(
        calibration,
        [shape.unit_macs(counts) for counts in tokens],
        attention_macs,
        ffn_macs,
        round_to=round_to,
    )
    return prune_blocks(model, heads, neurons, calibration)


def prune_blocks(
    model: ViT,
    heads: Sequence[tuple[int, int]],
    neurons: Sequence[int],
    calibration: Calibration,
) -> ViT:
    """Return a copy of ``model`` with given sizes of every block.

    Args:
        model: Dense or pruned model.
        heads: Number of heads that stay and their rank, by block.
        neurons: Number of hidden neurons to remove, by block.
        calibration: Calibration of this model.
    """
    model = check_supported(model)
    check_weights(model, finite="blocks.")
    pruned = keep_units(
        model,
        [range(block.num_heads) for block in read_shape(model).blocks],
        [
            sorted(block.neuron_order[count:].tolist())
            for block, count in zip(calibration.blocks, neurons, strict=True)
        ],
    )
    attentions = [attention for attention, _ in branches(pruned)]
    for branch, known, (count, rank) in zip(attentions, calibration.blocks, heads, strict=True):
        attn = branch.module
        if (count, rank) != (attn.num_heads, attn.head_dim):
            _, order = rank_losses(known.factors)
            kept = sorted(order[rank - 1, :count].tolist())
            branch.replace(factorize_attention(attn, known.factors, kept, rank))
    return pruned


def check_calibration(model: ViT, calibration: object) -> None:
    """Refuse what is no calibration of a model.

    Raises:
        InputError: It is none, or that of another model.
    """
    if not isinstance(calibration, Calibration):
        raise InputError(
            f"`calibration` must be a Calibration, but is a {type(calibration).__name__}: "
            "`calibrate(model, images)` gives one."
        )
    fits = [
        (*block.factors.value_losses.shape, len(block.neuron_order))
        for block in calibration.blocks
    ]
    if fits != [(b.num_heads, b.head_dim, b.hidden_dim) for b in read_shape(model).blocks]:
        raise InputError("The calibration is not of this model: its blocks have other shapes.")
    if calibration.model is not None and not calibration.model.equal(fingerprint_of(model)):
        raise InputError(
            "The calibration is not of this model, which has other weights or another "
            "architecture: call `calibrate` with the model that is pruned."
        )


def _ffn_sizes(units: StructuralUnits) -> tuple[list[int], list[int]]:
    """Return by block the hidden neurons, and how many of them it keeps at least."""
    sizes = [block.hidden_dim for block in units.shape.blocks]
    return sizes, [size - lost.most for size, lost in zip(sizes, units.ffn_ranges, strict=True)]


def _check_removed(name: str, removed: int, sizes: list[int], minimums: list[int]) -> None:
    try:
        operator.index(removed)
    except TypeError:
        raise InputError(f"`{name}` must be a whole number, but got {removed!r:.80}.") from None
    spare = sum(max(0, size - least) for size, least in zip(sizes, minimums, strict=True))
    if not 0 <= removed <= spare:
        raise InputError(
            f"`{name}` must be in [0, {spare}] so that every block keeps its minimum, but got "
            f"{removed!r}."
        )


def _rank_units(score: torch.Tensor) -> list[int]:
    """Return unit indices from the lowest to the highest score."""
    order: list[int] = torch.argsort(score, stable=True).tolist()
    return order
