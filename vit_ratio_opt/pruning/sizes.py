"""Sizes of blocks: how scores and losses turn numbers of units into sizes, without pruning."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.pruning.allocate import (
    cheapest_choices,
    cheapest_heads,
    cheapest_prefixes,
    even_counts,
    heads_by_dims,
    heads_choices,
    heads_losses,
    prefix_losses,
)
from vit_ratio_opt.pruning.calibration import Calibration
from vit_ratio_opt.pruning.factorize import rank_losses
from vit_ratio_opt.pruning.importance import Importance
from vit_ratio_opt.pruning.options import Allocation
from vit_ratio_opt.space.bounds import UnitRange
from vit_ratio_opt.space.units import StructuralUnits, least_neurons

__all__ = [
    "allocate_ranks",
    "allocate_scores",
    "even_minimums",
    "expected_losses",
    "predict_sizes",
    "sizes_within_macs",
]


def predict_sizes(
    dense: StructuralUnits,
    units: Sequence[int],
    neurons: Sequence[int],
    scores: Importance | Calibration,
    *,
    allocation: Allocation = "global",
) -> tuple[list[list[tuple[int, int]]], list[list[int]]]:
    """Return the sizes of blocks that :func:`~vit_ratio_opt.prune` leaves, without pruning.

    Args:
        dense: Units of the dense model.
        units: Several numbers of heads, or ranks, to remove from all blocks together.
        neurons: Several numbers of hidden neurons to remove from all blocks together.
        scores: Calibration or importance that chooses the units, see :func:`~vit_ratio_opt.prune`.
        allocation: How the numbers are allocated across blocks.

    Returns:
        For each of ``units``, by block, heads and their rank; for each of ``neurons``, by block,
        hidden neurons.
    """
    blocks = dense.shape.blocks
    if isinstance(scores, Importance):
        step = dense.round_to
        heads = [
            allocate_scores(scores.heads, count, dense.mhsa_ranges, 1, allocation)
            for count in units
        ]
        gone = [
            allocate_scores(scores.neurons, n, dense.ffn_ranges, step, allocation) for n in neurons
        ]
        left = [
            [(b.num_heads - count, b.head_dim) for b, count in zip(blocks, counts, strict=True)]
            for counts in heads
        ]
    else:
        dims = [count * dense.mhsa_unit_dims for count in units]
        left, gone = allocate_ranks(dense, dims, neurons, scores, allocation=allocation)
    return left, [
        [b.hidden_dim - count for b, count in zip(blocks, counts, strict=True)] for counts in gone
    ]


def expected_losses(
    dense: StructuralUnits, calibration: Calibration
) -> tuple[np.ndarray, np.ndarray]:
    """Return the losses that pruning ranks causes before any repair, without pruning.

    Losses are in nats, see :mod:`vit_ratio_opt.pruning.calibration`: to second order and with
    independent errors, so they are for comparing pairs.

    Args:
        dense: Units of the model, which lose ranks.
        calibration: Calibration of the model.

    Returns:
        Losses by the number of dimensions removed, and by the number of neurons removed; the loss
        of a pair is their sum.
    """
    losses = [block.neuron_losses for block in calibration.blocks]
    return (
        heads_losses(_rank_losses(dense, calibration), dense.round_to)[::-1],
        prefix_losses(
            losses,
            _minimums(losses, dense.ffn_ranges),
            dense.round_to,
            floors=_floors(dense.ffn_ranges),
        ),
    )


def allocate_ranks(
    dense: StructuralUnits,
    dims: Sequence[int],
    neurons: Sequence[int],
    calibration: Calibration,
    *,
    allocation: Allocation,
) -> tuple[list[list[tuple[int, int]]], list[list[int]]]:
    """Return what a calibration keeps of heads and removes of neurons, by block.

    Args:
        dense: Units of the model.
        dims: Several numbers of head dimensions to remove from all blocks together.
        neurons: Several numbers of hidden neurons to remove from all blocks together.
        calibration: Calibration of the model.
        allocation: How the numbers are allocated across blocks.

    Returns:
        For each of ``dims``, by block, the heads and rank that stay; for each of ``neurons``, by
        block, the number of neurons to remove.
    """
    round_to, shape = dense.round_to, dense.shape
    tables = _rank_losses(dense, calibration)
    losses = [block.neuron_losses for block in calibration.blocks]
    gone = [
        allocate_scores(losses, count, dense.ffn_ranges, round_to, allocation, is_sorted=True)
        for count in neurons
    ]
    if allocation == "uniform":
        return [_uniform_ranks(dense, tables, count) for count in dims], gone
    if allocation == "energy":
        wholes = [block.factors.value_losses.sum() for block in calibration.blocks]
        tables = [_shares(table, whole) for table, whole in zip(tables, wholes, strict=True)]
    kept = [shape.attention_dims - count for count in dims]
    return heads_by_dims(tables, kept, round_to), gone


def _rank_losses(dense: StructuralUnits, calibration: Calibration) -> list[torch.Tensor]:
    """Return by block the losses of heads and ranks, infinite outside of the block's bounds."""
    tables = [rank_losses(block.factors)[0] for block in calibration.blocks]
    if not dense.bounds:
        return tables
    return [
        table.masked_fill((dims < kept.least) | (dims > kept.most), math.inf)
        for table, kept in zip(tables, dense.kept_dims, strict=True)
        for dims in (
            torch.outer(torch.arange(1, 1 + len(table)), torch.arange(1, 1 + len(table[0]))),
        )
    ]


def _uniform_ranks(
    dense: StructuralUnits, tables: Sequence[torch.Tensor], dims: int
) -> list[tuple[int, int]]:
    sizes = [block.num_heads * block.head_dim for block in dense.shape.blocks]
    chosen, spare = [], 0
    floors = [size - kept.most for size, kept in zip(sizes, dense.kept_dims, strict=True)]
    try:
        gone = even_counts(sizes, dims, even_minimums(dense), _even_steps(dense), floors=floors)
    except InputError:  # steps of equal ranks end above a ceiling that other heads and ranks meet
        return heads_by_dims(tables, [sum(sizes) - dims], dense.round_to)[0]
    for table, size, share in zip(tables, sizes, gone, strict=True):
        left = min(size, size - share + spare)
        heads, rank = cheapest_heads([table], left, dense.round_to)[0]
        chosen.append((heads, rank))
        # Dimensions that no number of heads and rank comes to stay in the next block.
        spare += size - share - heads * rank
    return chosen


def _even_steps(dense: StructuralUnits) -> list[int]:
    """Return the dimensions removed together, by block, so that heads keep equal ranks."""
    blocks = dense.shape.blocks
    if dense.shape.whole_heads:
        return [block.head_dim for block in blocks]
    return [math.lcm(block.num_heads, dense.round_to) for block in blocks]


def even_minimums(dense: StructuralUnits) -> list[int]:
    """Return the fewest dimensions that each block keeps where shares are equal."""
    kept = zip(_even_steps(dense), dense.kept_dims, strict=True)
    return [max(step, range_.least) for step, range_ in kept]


def allocate_scores(
    scores: Sequence[torch.Tensor],
    removed: int,
    ranges: Sequence[UnitRange],
    step: int,
    allocation: Allocation,
    *,
    is_sorted: bool = False,
) -> list[int]:
    """Return the number of units to remove from each block, those with the lowest scores.

    Args:
        scores: Scores of the units, by block.
        removed: Number of units to remove from all blocks together.
        ranges: Fewest and most units that a block loses, by block.
        step: Units left in a block that loses any are a multiple of this.
        allocation: How the number is allocated across blocks.
        is_sorted: Whether the scores are in the order of the removal already.
    """
    minimums, floors = _minimums(scores, ranges), _floors(ranges)
    if allocation == "uniform":
        sizes, steps = [len(score) for score in scores], [step] * len(scores)
        return even_counts(sizes, removed, minimums, steps, floors=floors)
    lowest = list(scores)
    if not is_sorted:
        lowest = [score.double().sort(stable=True).values for score in scores]
    if allocation == "energy":
        lowest = [_shares(score, score.sum()) for score in lowest]
    return cheapest_prefixes(lowest, removed, minimums, step, floors=floors)


def _minimums(scores: Sequence[torch.Tensor], ranges: Sequence[UnitRange]) -> list[int]:
    return [len(score) - lost.most for score, lost in zip(scores, ranges, strict=True)]


def _floors(ranges: Sequence[UnitRange]) -> list[int]:
    return [lost.least for lost in ranges]


def sizes_within_macs(
    calibration: Calibration,
    unit_macs: Sequence[tuple[int, int]],
    attention_macs: int,
    ffn_macs: int,
    *,
    round_to: int = 1,
) -> tuple[list[tuple[int, int]], list[int]]:
    """Return the heads and rank that each block keeps, and the neurons that it loses.

    Args:
        calibration: Calibration of the model.
        unit_macs: MACs of one head dimension and of one neuron, by block.
        attention_macs: Largest number of MACs in all blocks' attention.
        ffn_macs: Largest number of MACs in all blocks' FFN.
        round_to: Ranks and neurons left in a block are multiples of this.

    Raises:
        InputError: The MACs are less than all blocks need at their smallest sizes.
    """
    heads, head_losses, head_costs = [], [], []
    kept, kept_losses, kept_costs = [], [], []
    least = least_neurons(round_to)
    for known, (dim_macs, neuron_macs) in zip(calibration.blocks, unit_macs, strict=True):
        choices, losses = heads_choices(rank_losses(known.factors)[0], round_to)
        heads.append(choices)
        head_losses.append(losses)
        head_costs.append(np.array([count * rank * dim_macs for count, rank in choices]))
        size = len(known.neuron_losses)
        counts = [size, *range((size - 1) // round_to * round_to, min(size, least) - 1, -round_to)]
        gone = np.concatenate([[0.0], known.neuron_losses.double().cumsum(0).numpy()])
        kept.append(counts)
        kept_losses.append(gone[[size - count for count in counts]])
        kept_costs.append(np.array(counts) * neuron_macs)
    _check_limit("attention_macs", attention_macs, head_costs)
    _check_limit("ffn_macs", ffn_macs, kept_costs)
    chosen = cheapest_choices(head_losses, head_costs, attention_macs)
    counts = cheapest_choices(kept_losses, kept_costs, ffn_macs)
    return (
        [choices[choice] for choices, choice in zip(heads, chosen, strict=True)],
        [options[0] - options[choice] for options, choice in zip(kept, counts, strict=True)],
    )


def _check_limit(name: str, limit: int, costs: Sequence[np.ndarray]) -> None:
    smallest = sum(int(cost.min()) for cost in costs)
    if limit < smallest:
        raise InputError(
            f"`{name}` must be at least {smallest:,}, what all blocks need at their smallest "
            f"sizes, but got {limit:,}."
        )


def _shares(losses: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    return losses / whole.clamp_min(1e-30)
