"""The policy: a model and two ratios give a smaller model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.geometry import MIN_MHSA_UNITS, MhsaUnit, RatioPair, least_neurons
from vit_ratio_opt.pruning.allocate import (
    cheapest_heads,
    cheapest_prefixes,
    even_counts,
    heads_losses,
    prefix_losses,
)
from vit_ratio_opt.pruning.calibration import Calibration
from vit_ratio_opt.pruning.factorize import factorize_attention, rank_losses
from vit_ratio_opt.pruning.importance import Importance
from vit_ratio_opt.pruning.surgery import keep_units, shape_of

__all__ = [
    "Allocation",
    "expected_losses",
    "prune",
    "prune_blocks",
    "prune_ranks",
    "prune_units",
]

Allocation = Literal["global", "energy", "uniform"]


def prune(
    model: VisionTransformer,
    pair: RatioPair | tuple[float, float],
    guide: Importance | Calibration,
    *,
    allocation: Allocation = "global",
    round_to: int = 1,
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
            together; ``"energy"`` the same, with losses or scores as shares of their sum in a
            block, so that all blocks count alike; ``"uniform"`` the same share of the units of
            every block, as far as whole units allow. Every block keeps at least one head or rank,
            and eight neurons, whichever is chosen.
        round_to: Ranks and neurons that are left in a block are multiples of this wherever some
            are removed: matrix products of such sizes are faster on most hardware. More may then
            be removed than the ratios ask for, by less than so many of each.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: A ratio, the guide, ``allocation`` or ``round_to`` do not fit.
    """
    unit: MhsaUnit = "head" if isinstance(guide, Importance) else "rank"
    shape = replace(shape_of(model), mhsa_unit=unit, round_to=round_to)
    units, neurons = shape.removed(RatioPair(*pair))
    if isinstance(guide, Importance):
        return prune_units(model, units, neurons, guide, allocation=allocation, round_to=round_to)
    dims = units * shape.mhsa_unit_dims
    return prune_ranks(model, dims, neurons, guide, allocation=allocation, round_to=round_to)


def prune_ranks(
    model: VisionTransformer,
    dims: int,
    neurons: int,
    calibration: Calibration,
    *,
    allocation: Allocation = "global",
    round_to: int = 1,
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
        round_to: See :func:`prune`.
    """
    shape = shape_of(model)
    blocks = shape.blocks
    _check_allocation(allocation)
    sizes = [block.num_heads * block.head_dim for block in blocks]
    steps = [math.lcm(block.num_heads, round_to) for block in blocks]
    smallest = [min(block.head_dim, round_to) for block in blocks]  # one head
    _check_removed("dims", dims, sizes, steps if allocation == "uniform" else smallest)
    hidden, least = [block.hidden_dim for block in blocks], least_neurons(round_to)
    _check_removed("neurons", neurons, hidden, [least] * len(blocks))
    fits = [
        (*block.factors.value_losses.shape, len(block.neuron_order))
        for block in calibration.blocks
    ]
    if fits != [(block.num_heads, block.head_dim, block.hidden_dim) for block in blocks]:
        raise InputError("The calibration is not of this model: its blocks have other shapes.")
    tables = [rank_losses(block.factors)[0] for block in calibration.blocks]
    if allocation == "uniform":
        gone, chosen, spare = even_counts(sizes, dims, steps, steps), [], 0
        for table, size, share in zip(tables, sizes, gone, strict=True):
            heads, rank = cheapest_heads([table], min(size, size - share + spare), round_to)[0]
            chosen.append((heads, rank))
            # What no number of heads and rank comes to, the next block may keep.
            spare += size - share - heads * rank
        counts = even_counts(hidden, neurons, [least] * len(blocks), [round_to] * len(blocks))
    else:
        losses = [block.neuron_losses for block in calibration.blocks]
        if allocation == "energy":
            wholes = [block.factors.value_losses.sum() for block in calibration.blocks]
            tables = [_shares(table, whole) for table, whole in zip(tables, wholes, strict=True)]
            losses = [_shares(loss, loss.sum()) for loss in losses]
        chosen = cheapest_heads(tables, shape.attention_dims - dims, round_to)
        counts = cheapest_prefixes(losses, neurons, least, round_to)
    return prune_blocks(model, chosen, counts, calibration)


def prune_blocks(
    model: VisionTransformer,
    heads: Sequence[tuple[int, int]],
    neurons: Sequence[int],
    calibration: Calibration,
) -> VisionTransformer:
    """As :func:`prune_ranks`, with the sizes of every block given.

    Args:
        model: Dense or pruned.
        heads: By block, how many heads stay and of what rank.
        neurons: By block, how many hidden neurons go.
        calibration: Of this model.
    """
    pruned = keep_units(
        model,
        [range(block.num_heads) for block in shape_of(model).blocks],
        [
            sorted(block.neuron_order[count:].tolist())
            for block, count in zip(calibration.blocks, neurons, strict=True)
        ],
    )
    for block, known, (count, rank) in zip(pruned.blocks, calibration.blocks, heads, strict=True):
        if (count, rank) != (block.attn.num_heads, block.attn.head_dim):
            _, order = rank_losses(known.factors)
            kept = order[rank - 1, :count].tolist()
            block.attn = factorize_attention(block.attn, known.factors, kept, rank)
    return pruned


def expected_losses(
    calibration: Calibration, *, round_to: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """What :func:`prune_ranks` is expected to cost before any repair, without pruning anything.

    In nats, see :mod:`vit_ratio_opt.pruning.calibration`. To second order and as if errors did not
    meet, so it is for comparing pairs.

    Args:
        calibration: As there.
        round_to: As there.

    Returns:
        Losses by the dimensions removed, and by the neurons removed; those of a pair add up.
    """
    tables = [rank_losses(block.factors)[0] for block in calibration.blocks]
    losses = [block.neuron_losses for block in calibration.blocks]
    return (
        heads_losses(tables, round_to)[::-1],
        prefix_losses(losses, least_neurons(round_to), round_to),
    )


def prune_units(
    model: VisionTransformer,
    heads: int,
    neurons: int,
    importance: Importance,
    *,
    allocation: Allocation = "global",
    round_to: int = 1,
) -> VisionTransformer:
    """As :func:`prune`, with the numbers of heads and neurons to remove from all blocks together.

    For a model that was pruned before, whose own units are not what the ratios count in. Whatever
    was removed from which block, the rest of a larger pair can be removed too, because each block
    gives its units down to the same minimum.
    """
    _check_allocation(allocation)
    blocks = shape_of(model).blocks
    keep = []
    for name, scores, sizes, removed, least, step in (
        ("heads", importance.heads, [b.num_heads for b in blocks], heads, MIN_MHSA_UNITS, 1),
        (
            "neurons",
            importance.neurons,
            [b.hidden_dim for b in blocks],
            neurons,
            least_neurons(round_to),
            round_to,
        ),
    ):
        _check_removed(name, removed, sizes, [least] * len(sizes))
        _check_scores(name, scores, sizes)
        if allocation == "uniform":
            counts = even_counts(sizes, removed, [least] * len(sizes), [step] * len(sizes))
        else:
            lowest = [score.double().sort(stable=True).values for score in scores]
            if allocation == "energy":
                lowest = [_shares(score, score.sum()) for score in lowest]
            counts = cheapest_prefixes(lowest, removed, least, step)
        keep.append(
            [sorted(_ranked(score)[count:]) for score, count in zip(scores, counts, strict=True)]
        )
    return keep_units(model, *keep)


def _check_allocation(allocation: str) -> None:
    if allocation not in get_args(Allocation):
        raise InputError(
            f"`allocation` must be 'global', 'energy' or 'uniform', but got {allocation!r}."
        )


def _shares(losses: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    return losses / whole.clamp_min(1e-30)


def _check_removed(name: str, removed: int, sizes: list[int], minimums: list[int]) -> None:
    spare = sum(max(0, size - least) for size, least in zip(sizes, minimums, strict=True))
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


def _ranked(score: torch.Tensor) -> list[int]:
    """Unit indices from the lowest to the highest score."""
    order: list[int] = torch.argsort(score, stable=True).tolist()
    return order
