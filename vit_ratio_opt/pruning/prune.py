"""The policy: a model and two ratios give a smaller model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.geometry import MIN_MHSA_UNITS, MIN_NEURONS, BlockShape, MhsaUnit, RatioPair
from vit_ratio_opt.pruning.allocate import cheapest_heads, cheapest_prefixes, even_counts
from vit_ratio_opt.pruning.calibration import Calibration
from vit_ratio_opt.pruning.factorize import factorize_attention, rank_losses
from vit_ratio_opt.pruning.importance import Importance
from vit_ratio_opt.pruning.surgery import keep_units, shape_of

__all__ = ["Allocation", "expected_loss", "prune", "prune_ranks", "prune_units"]

Allocation = Literal["global", "uniform"]


def prune(
    model: VisionTransformer,
    pair: RatioPair | tuple[float, float],
    guide: Importance | Calibration,
    *,
    allocation: Allocation = "global",
) -> VisionTransformer:
    """A smaller copy of ``model``; ``model`` itself is not changed.

    Args:
        model: A supported timm ViT.
        pair: ``(mhsa_ratio, ffn_ratio)``, the fractions of the attention and of all hidden neurons
            to remove. Counts are rounded up, so the MACs never exceed what the ratios ask for.
        guide: A :class:`Calibration` of this model gives its heads a lower rank, see
            :mod:`vit_ratio_opt.pruning.factorize`; the ratio then counts in ranks, one dimension
            of every head of a block. An :class:`Importance` removes whole heads, those with the
            lowest scores.
        allocation: ``"global"`` removes what loses least, or has the lowest scores, in all blocks
            together; ``"uniform"`` the same share in every block, as far as whole units allow.
            Every block keeps at least one head or rank, and eight neurons, either way.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: A ratio, the guide or ``allocation`` do not fit.
    """
    unit: MhsaUnit = "head" if isinstance(guide, Importance) else "rank"
    shape = replace(shape_of(model), mhsa_unit=unit)
    units, neurons = shape.removed(RatioPair(*pair))
    if isinstance(guide, Importance):
        return prune_units(model, units, neurons, guide, allocation=allocation)
    return prune_ranks(model, units * shape.mhsa_unit_dims, neurons, guide, allocation=allocation)


def prune_ranks(
    model: VisionTransformer,
    dims: int,
    neurons: int,
    calibration: Calibration,
    *,
    allocation: Allocation = "global",
) -> VisionTransformer:
    """As :func:`prune` with a calibration, with the numbers to remove from all blocks together.

    In a block all heads that stay have the same rank; those whose rank would be of less use than
    their dimensions are to others go whole.

    Args:
        model: Dense or pruned.
        dims: Dimensions of heads to remove.
        neurons: Hidden neurons to remove.
        calibration: Of this model.
        allocation: See :func:`prune`.
    """
    shape = shape_of(model)
    blocks = shape.blocks
    _check_allocation(allocation)
    _check_removed("dims", dims, [block.num_heads * block.head_dim for block in blocks], 1)
    _check_removed("neurons", neurons, [block.hidden_dim for block in blocks], MIN_NEURONS)
    fits = [
        (*block.factors.value_losses.shape, len(block.neuron_order))
        for block in calibration.blocks
    ]
    if fits != [(block.num_heads, block.head_dim, block.hidden_dim) for block in blocks]:
        raise InputError("The calibration is not of this model: its blocks have other shapes.")
    left = shape.attention_dims - dims
    ranked = [rank_losses(block.factors) for block in calibration.blocks]
    if allocation == "global":
        chosen, counts = _cheapest(calibration, [table for table, _ in ranked], left, neurons)
    else:
        ranks = _even_ranks(blocks, left)
        chosen = [(block.num_heads, rank) for block, rank in zip(blocks, ranks, strict=True)]
        counts = even_counts([block.hidden_dim for block in blocks], neurons, MIN_NEURONS)
    pruned = keep_units(
        model,
        [range(block.num_heads) for block in blocks],
        [
            sorted(block.neuron_order[count:].tolist())
            for block, count in zip(calibration.blocks, counts, strict=True)
        ],
    )
    for block, known, (_, order), (heads, rank) in zip(
        pruned.blocks, calibration.blocks, ranked, chosen, strict=True
    ):
        if (heads, rank) != (block.attn.num_heads, block.attn.head_dim):
            kept = order[rank - 1, :heads].tolist()
            block.attn = factorize_attention(block.attn, known.factors, kept, rank)
    return pruned


def expected_loss(dims: int, neurons: int, calibration: Calibration) -> float:
    """What :func:`prune_ranks` is expected to cost before any repair, without pruning anything.

    In nats, see :mod:`vit_ratio_opt.pruning.calibration`. To second order and as if errors did not
    meet, so it is for comparing pairs; it takes milliseconds.

    Args:
        dims: As there.
        neurons: As there.
        calibration: As there.
    """
    tables = [rank_losses(block.factors)[0] for block in calibration.blocks]
    left = sum(table.numel() for table in tables) - dims
    chosen, counts = _cheapest(calibration, tables, left, neurons)
    loss = sum(float(t[h - 1, r - 1]) for t, (h, r) in zip(tables, chosen, strict=True))
    return loss + sum(
        float(block.neuron_losses[:count].sum())
        for block, count in zip(calibration.blocks, counts, strict=True)
    )


def _cheapest(
    calibration: Calibration, tables: Sequence[torch.Tensor], dims_left: int, neurons: int
) -> tuple[list[tuple[int, int]], list[int]]:
    """By block, heads and rank that stay, and neurons that go."""
    losses = [block.neuron_losses for block in calibration.blocks]
    return cheapest_heads(tables, dims_left), cheapest_prefixes(losses, neurons, MIN_NEURONS)


def _even_ranks(blocks: Sequence[BlockShape], dims: int) -> list[int]:
    """The rank of each block with all its heads: the same share of each, ``dims`` at the most."""
    ranks = [block.head_dim for block in blocks]
    while sum(r * b.num_heads for r, b in zip(ranks, blocks, strict=True)) > dims:
        gives = [index for index, rank in enumerate(ranks) if rank > 1]
        # As in even_counts.
        index = min(
            gives, key=lambda i: ((blocks[i].head_dim - ranks[i] + 1) / blocks[i].head_dim, -i)
        )
        ranks[index] -= 1
    return ranks


def prune_units(
    model: VisionTransformer,
    heads: int,
    neurons: int,
    importance: Importance,
    *,
    allocation: Allocation = "global",
) -> VisionTransformer:
    """As :func:`prune`, with the numbers of heads and neurons to remove from all blocks together.

    For a model that was pruned before, whose own units are not what the ratios count in. Whatever
    was removed from which block, the rest of a larger pair can be removed too, because each block
    gives its units down to the same minimum.
    """
    _check_allocation(allocation)
    shape = shape_of(model)
    _check_removed("heads", heads, [block.num_heads for block in shape.blocks], MIN_MHSA_UNITS)
    _check_removed("neurons", neurons, [block.hidden_dim for block in shape.blocks], MIN_NEURONS)
    _check_scores("heads", importance.heads, [block.num_heads for block in shape.blocks])
    _check_scores("neurons", importance.neurons, [block.hidden_dim for block in shape.blocks])
    choose = _keep_highest if allocation == "global" else _keep_highest_per_block
    return keep_units(
        model,
        choose(importance.heads, heads, MIN_MHSA_UNITS),
        choose(importance.neurons, neurons, MIN_NEURONS),
    )


def _check_allocation(allocation: str) -> None:
    if allocation not in ("global", "uniform"):
        raise InputError(f"`allocation` must be 'global' or 'uniform', but got {allocation!r}.")


def _check_removed(name: str, removed: int, sizes: list[int], minimum: int) -> None:
    spare = sum(max(0, size - minimum) for size in sizes)
    if not 0 <= removed <= spare:
        raise InputError(
            f"`{name}` must be in [0, {spare}] so that every block keeps its minimum, but got "
            f"{removed!r}."
        )


def _check_scores(name: str, scores: Sequence[torch.Tensor], sizes: list[int]) -> None:
    got = [tuple(score.shape) for score in scores]
    if got != [(size,) for size in sizes]:
        raise InputError(f"Importance of {name} must have shapes {sizes} by block, but has {got}.")
    if not all(torch.isfinite(score).all() for score in scores):
        raise InputError(f"Importance of {name} must be finite, but has NaN or infinite scores.")


def _keep_highest(scores: Sequence[torch.Tensor], removed: int, minimum: int) -> list[list[int]]:
    """Indices that stay when the ``removed`` lowest of all blocks go, ``minimum`` kept a block."""
    protected = [set(_ranked(score)[-minimum:]) for score in scores]
    candidates = [
        (value, block, unit)
        for block, score in enumerate(scores)
        for unit, value in enumerate(score.tolist())
        if unit not in protected[block]
    ]
    # Ties go by block and index, so the same scores always give the same model.
    gone = {(block, unit) for _, block, unit in sorted(candidates)[:removed]}
    return [
        [unit for unit in range(len(score)) if (block, unit) not in gone]
        for block, score in enumerate(scores)
    ]


def _keep_highest_per_block(
    scores: Sequence[torch.Tensor], removed: int, minimum: int
) -> list[list[int]]:
    """As :func:`_keep_highest`, with the removed units spread evenly over the blocks."""
    counts = even_counts([len(score) for score in scores], removed, minimum)
    return [sorted(_ranked(score)[count:]) for score, count in zip(scores, counts, strict=True)]


def _ranked(score: torch.Tensor) -> list[int]:
    """Unit indices from the lowest to the highest score."""
    order: list[int] = torch.argsort(score, stable=True).tolist()
    return order
