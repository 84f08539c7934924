"""The policy: a model and two ratios give a smaller model."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import torch

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.architecture import fingerprint_of
from vit_ratio_opt.models.blocks import ViT, branches
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.models.surgery import ALL_HEADS, keep_units
from vit_ratio_opt.models.weights import check_weights
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
from vit_ratio_opt.pruning.factorize import factorize_attention, rank_losses
from vit_ratio_opt.pruning.importance import Importance, check_importance
from vit_ratio_opt.pruning.options import Allocation
from vit_ratio_opt.space.geometry import (
    MIN_MHSA_UNITS,
    BlockTokens,
    MhsaUnit,
    RatioPair,
    ViTShape,
    as_pair,
    least_neurons,
)

__all__ = [
    "expected_losses",
    "prune",
    "prune_blocks",
    "prune_ranks",
    "prune_to_macs",
    "prune_units",
    "sizes_left",
]


def prune(
    model: ViT,
    pair: RatioPair | tuple[float, float],
    guide: Importance | Calibration,
    *,
    allocation: Allocation = "global",
    round_to: int = 1,
) -> ViT:
    """A smaller copy of ``model``; ``model`` itself is not changed.

    Args:
        model: A supported timm ViT.
        pair: ``(mhsa_ratio, ffn_ratio)``, the fractions of the attention and of all hidden neurons
            to remove. Counts are rounded up, so the MACs never exceed what the ratios ask for.
        guide: A :class:`Calibration` of this model gives its heads a lower rank, see
            :mod:`vit_ratio_opt.pruning.factorize`; the ratio then counts in ranks, one dimension
            of every head of a block, or in whole heads where these cannot be factorised, as their
            queries and keys have norms. An :class:`Importance` removes whole heads, those with the
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
        InputError: A ratio, the guide, ``allocation`` or ``round_to`` do not fit, or a weight is
            not finite.
    """
    model = check_supported(model)
    if not isinstance(guide, (Importance, Calibration)):
        raise InputError(
            f"`guide` must be a Calibration or an Importance, but is a {type(guide).__name__}: "
            "`calibrate(model, images)` gives one."
        )
    unit: MhsaUnit = "head" if isinstance(guide, Importance) else "rank"
    shape = replace(shape_of(model), mhsa_unit=unit, round_to=round_to)
    units, neurons = shape.removed(as_pair(pair))
    if isinstance(guide, Importance):
        if shape.all_heads and units:
            raise UnsupportedModelError(ALL_HEADS)
        return prune_units(model, units, neurons, guide, allocation=allocation, round_to=round_to)
    dims = units * shape.mhsa_unit_dims
    return prune_ranks(model, dims, neurons, guide, allocation=allocation, round_to=round_to)


def prune_ranks(
    model: ViT,
    dims: int,
    neurons: int,
    calibration: Calibration,
    *,
    allocation: Allocation = "global",
    round_to: int = 1,
) -> ViT:
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
    model = check_supported(model)
    shape = replace(shape_of(model), round_to=round_to)
    blocks = shape.blocks
    _check_allocation(allocation)
    _check_calibration(model, calibration)
    sizes = [block.num_heads * block.head_dim for block in blocks]
    least_dims = [shape.least_dims(block) for block in blocks]
    kept = _even_steps(shape) if allocation == "uniform" else least_dims
    _check_removed("dims", dims, sizes, kept)
    hidden, least = [block.hidden_dim for block in blocks], least_neurons(round_to)
    _check_removed("neurons", neurons, hidden, [least] * len(blocks))
    (chosen,), (counts,) = _spread_ranks(
        shape, [dims], [neurons], calibration, allocation=allocation
    )
    return prune_blocks(model, chosen, counts, calibration)


def sizes_left(
    shape: ViTShape,
    units: Sequence[int],
    neurons: Sequence[int],
    guide: Importance | Calibration,
    *,
    allocation: Allocation = "global",
) -> tuple[list[list[tuple[int, int]]], list[list[int]]]:
    """The sizes of blocks that :func:`prune` would leave, without pruning anything.

    Args:
        shape: Of the dense model, with its unit and what sizes are rounded to.
        units: Heads, or ranks, to remove: several choices of how many.
        neurons: Hidden neurons to remove, likewise.
        guide: See :func:`prune`.
        allocation: See there.

    Returns:
        For each of ``units``, by block, heads and their rank; for each of ``neurons``, by block,
        hidden neurons.
    """
    blocks = shape.blocks
    if isinstance(guide, Importance):
        least, step = least_neurons(shape.round_to), shape.round_to
        heads = [
            _spread_scores(guide.heads, count, MIN_MHSA_UNITS, 1, allocation) for count in units
        ]
        gone = [_spread_scores(guide.neurons, n, least, step, allocation) for n in neurons]
        left = [
            [(b.num_heads - count, b.head_dim) for b, count in zip(blocks, counts, strict=True)]
            for counts in heads
        ]
    else:
        dims = [count * shape.mhsa_unit_dims for count in units]
        left, gone = _spread_ranks(shape, dims, neurons, guide, allocation=allocation)
    return left, [
        [b.hidden_dim - count for b, count in zip(blocks, counts, strict=True)] for counts in gone
    ]


def _spread_ranks(
    shape: ViTShape,
    dims: Sequence[int],
    neurons: Sequence[int],
    calibration: Calibration,
    *,
    allocation: Allocation,
) -> tuple[list[list[tuple[int, int]]], list[list[int]]]:
    """By block, heads and rank that stay for each of ``dims`` to go; neurons that go."""
    round_to = shape.round_to
    least, hidden = least_neurons(round_to), [block.hidden_dim for block in shape.blocks]
    tables = [rank_losses(block.factors)[0] for block in calibration.blocks]
    if allocation == "uniform":
        return (
            [_uniform_ranks(shape, tables, count) for count in dims],
            [
                even_counts(hidden, count, [least] * len(hidden), [round_to] * len(hidden))
                for count in neurons
            ],
        )
    losses = [block.neuron_losses for block in calibration.blocks]
    if allocation == "energy":
        wholes = [block.factors.value_losses.sum() for block in calibration.blocks]
        tables = [_shares(table, whole) for table, whole in zip(tables, wholes, strict=True)]
        losses = [_shares(loss, loss.sum()) for loss in losses]
    return (
        heads_by_dims(tables, [shape.attention_dims - count for count in dims], round_to),
        [cheapest_prefixes(losses, count, least, round_to) for count in neurons],
    )


def _even_steps(shape: ViTShape) -> list[int]:
    """By block, the dimensions that go together where all heads keep the same rank, or whole."""
    if shape.whole_heads:
        return [block.head_dim for block in shape.blocks]
    return [math.lcm(block.num_heads, shape.round_to) for block in shape.blocks]


def _uniform_ranks(
    shape: ViTShape, tables: Sequence[torch.Tensor], dims: int
) -> list[tuple[int, int]]:
    sizes = [block.num_heads * block.head_dim for block in shape.blocks]
    steps = _even_steps(shape)
    chosen, spare = [], 0
    gone = even_counts(sizes, dims, steps, steps)
    for table, size, share in zip(tables, sizes, gone, strict=True):
        left = min(size, size - share + spare)
        heads, rank = cheapest_heads([table], left, shape.round_to)[0]
        chosen.append((heads, rank))
        # What no number of heads and rank comes to, the next block may keep.
        spare += size - share - heads * rank
    return chosen


def prune_to_macs(
    model: ViT,
    attention_macs: int,
    ffn_macs: int,
    tokens: Sequence[BlockTokens],
    calibration: Calibration,
    *,
    round_to: int = 1,
) -> ViT:
    """As :func:`prune_ranks`, down to so many MACs where blocks work on different tokens.

    There a head or a neuron costs more in one block than in another: what goes is what loses least
    for the MACs that it saves.

    Args:
        model: Dense or pruned, without a cascade; so is the result.
        attention_macs: At most so many in all blocks' attention.
        ffn_macs: At most so many in all blocks' FFN.
        tokens: For every block, what it will work on.
        calibration: Of this model.
        round_to: See :func:`prune`.

    Raises:
        InputError: The MACs are less than all blocks need at their least sizes, or the calibration
            is of another model.
    """
    model = check_supported(model)
    shape = shape_of(model)
    _check_calibration(model, calibration)
    costs = [shape.unit_macs(counts) for counts in tokens]
    heads, head_losses, head_costs = [], [], []
    kept, kept_losses, kept_costs = [], [], []
    least = least_neurons(round_to)
    for known, (dim_macs, neuron_macs) in zip(calibration.blocks, costs, strict=True):
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
    for name, limit, options in (
        ("attention_macs", attention_macs, head_costs),
        ("ffn_macs", ffn_macs, kept_costs),
    ):
        smallest = sum(int(cost.min()) for cost in options)
        if limit < smallest:
            raise InputError(
                f"`{name}` must be at least {smallest:,}, what all blocks need at their least "
                f"sizes, but got {limit:,}."
            )
    chosen = cheapest_choices(head_losses, head_costs, attention_macs)
    counts = cheapest_choices(kept_losses, kept_costs, ffn_macs)
    return prune_blocks(
        model,
        [choices[choice] for choices, choice in zip(heads, chosen, strict=True)],
        [options[0] - options[choice] for options, choice in zip(kept, counts, strict=True)],
        calibration,
    )


def prune_blocks(
    model: ViT,
    heads: Sequence[tuple[int, int]],
    neurons: Sequence[int],
    calibration: Calibration,
) -> ViT:
    """As :func:`prune_ranks`, with the sizes of every block given.

    Args:
        model: Dense or pruned.
        heads: By block, how many heads stay and of what rank.
        neurons: By block, how many hidden neurons go.
        calibration: Of this model.
    """
    model = check_supported(model)
    check_weights(model, finite="blocks.")  # what is cut
    pruned = keep_units(
        model,
        [range(block.num_heads) for block in shape_of(model).blocks],
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
            kept = order[rank - 1, :count].tolist()
            branch.replace(factorize_attention(attn, known.factors, kept, rank))
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
    model: ViT,
    heads: int,
    neurons: int,
    importance: Importance,
    *,
    allocation: Allocation = "global",
    round_to: int = 1,
) -> ViT:
    """As :func:`prune`, with the numbers of heads and neurons to remove from all blocks together.

    For a model that was pruned before, whose own units are not what the ratios count in. Whatever
    was removed from which block, the rest of a larger pair can be removed too, because each block
    gives its units down to the same minimum.
    """
    _check_allocation(allocation)
    model = check_supported(model)
    check_weights(model, finite="blocks.")  # what is cut
    blocks = shape_of(model).blocks
    sizes = [b.num_heads for b in blocks], [b.hidden_dim for b in blocks]
    least = MIN_MHSA_UNITS, least_neurons(round_to)
    check_importance(model, importance)
    scores = importance.heads, importance.neurons
    for index, (name, removed) in enumerate((("heads", heads), ("neurons", neurons))):
        _check_removed(name, removed, sizes[index], [least[index]] * len(blocks))
    keep = [
        [sorted(_ranked(score)[count:]) for score, count in zip(kind, counts, strict=True)]
        for kind, counts in (
            (scores[0], _spread_scores(scores[0], heads, least[0], 1, allocation)),
            (scores[1], _spread_scores(scores[1], neurons, least[1], round_to, allocation)),
        )
    ]
    return keep_units(model, *keep)


def _spread_scores(
    scores: Sequence[torch.Tensor], removed: int, least: int, step: int, allocation: Allocation
) -> list[int]:
    """Units that each block gives, those with the lowest scores."""
    if allocation == "uniform":
        sizes = [len(score) for score in scores]
        return even_counts(sizes, removed, [least] * len(sizes), [step] * len(sizes))
    lowest = [score.double().sort(stable=True).values for score in scores]
    if allocation == "energy":
        lowest = [_shares(score, score.sum()) for score in lowest]
    return cheapest_prefixes(lowest, removed, least, step)


def _check_calibration(model: ViT, calibration: object) -> None:
    if not isinstance(calibration, Calibration):
        raise InputError(
            f"`calibration` must be a Calibration, but is a {type(calibration).__name__}: "
            "`calibrate(model, images)` gives one."
        )
    fits = [
        (*block.factors.value_losses.shape, len(block.neuron_order))
        for block in calibration.blocks
    ]
    if fits != [(b.num_heads, b.head_dim, b.hidden_dim) for b in shape_of(model).blocks]:
        raise InputError("The calibration is not of this model: its blocks have other shapes.")
    if calibration.model is not None and not calibration.model.equal(fingerprint_of(model)):
        raise InputError(
            "The calibration is not of this model, which has other weights or another "
            "architecture: call `calibrate` with the model that is pruned."
        )


def _check_allocation(allocation: str) -> None:
    if allocation not in get_args(Allocation):
        raise InputError(
            f"`allocation` must be 'global', 'energy' or 'uniform', but got {allocation!r}."
        )


def _shares(losses: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    return losses / whole.clamp_min(1e-30)


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


def _ranked(score: torch.Tensor) -> list[int]:
    """Unit indices from the lowest to the highest score."""
    order: list[int] = torch.argsort(score, stable=True).tolist()
    return order
