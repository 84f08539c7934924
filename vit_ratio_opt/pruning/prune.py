"""The policy: a model and two ratios give a smaller model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.geometry import MIN_HEADS, MIN_NEURONS, RatioPair
from vit_ratio_opt.pruning.importance import Importance
from vit_ratio_opt.pruning.surgery import keep_units, shape_of

__all__ = ["Allocation", "prune", "prune_units"]

Allocation = Literal["global", "uniform"]


def prune(
    model: VisionTransformer,
    pair: RatioPair | tuple[float, float],
    importance: Importance,
    *,
    allocation: Allocation = "global",
) -> VisionTransformer:
    """A smaller copy of ``model``; ``model`` itself is not changed.

    Args:
        model: A supported timm ViT.
        pair: ``(mhsa_ratio, ffn_ratio)``, the fractions of all heads and of all hidden neurons to
            remove. Counts are rounded up, so the MACs never exceed what the ratios ask for.
        importance: Scores of this model's heads and neurons.
        allocation: ``"global"`` removes the lowest scores of all blocks, ``"uniform"`` the lowest
            of each block, the same share in every block as far as whole units allow. Every block
            keeps at least one head and eight neurons either way.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: A ratio, the scores or ``allocation`` do not fit.
    """
    heads, neurons = shape_of(model).removed(RatioPair(*pair))
    return prune_units(model, heads, neurons, importance, allocation=allocation)


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
    if allocation not in ("global", "uniform"):
        raise InputError(f"`allocation` must be 'global' or 'uniform', but got {allocation!r}.")
    shape = shape_of(model)
    for name, removed, sizes, minimum in (
        ("heads", heads, [block.num_heads for block in shape.blocks], MIN_HEADS),
        ("neurons", neurons, [block.hidden_dim for block in shape.blocks], MIN_NEURONS),
    ):
        spare = sum(max(0, size - minimum) for size in sizes)
        if not 0 <= removed <= spare:
            raise InputError(
                f"`{name}` must be in [0, {spare}] so that every block keeps its minimum, but got "
                f"{removed!r}."
            )
    _check_scores("heads", importance.heads, [block.num_heads for block in shape.blocks])
    _check_scores("neurons", importance.neurons, [block.hidden_dim for block in shape.blocks])
    choose = _keep_highest if allocation == "global" else _keep_highest_per_block
    return keep_units(
        model,
        choose(importance.heads, heads, MIN_HEADS),
        choose(importance.neurons, neurons, MIN_NEURONS),
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
    sizes = [len(score) for score in scores]
    counts = [0] * len(sizes)
    for _ in range(removed):
        open_blocks = [b for b, size in enumerate(sizes) if size - counts[b] > minimum]
        # The block that has given the smallest share so far gives next; later blocks first on a
        # tie, since early blocks are the ones that all the others build on.
        block = min(open_blocks, key=lambda b: ((counts[b] + 1) / sizes[b], -b))
        counts[block] += 1
    return [sorted(_ranked(score)[count:]) for score, count in zip(scores, counts, strict=True)]


def _ranked(score: torch.Tensor) -> list[int]:
    """Unit indices from the lowest to the highest score."""
    order: list[int] = torch.argsort(score, stable=True).tolist()
    return order
