"""Statistics of a model's attention for CP-ViT: how far it reaches and which heads matter.

Heads have cumulative scores as patches have, see :mod:`vit_ratio_opt.pruning.cascade`. Their
weights cannot be gathered image by image without copying them, so heads are chosen once for all
images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT, branches
from vit_ratio_opt.models.device import evaluating
from vit_ratio_opt.models.shape import check_all_tokens, shape_of
from vit_ratio_opt.models.surgery import keep_units
from vit_ratio_opt.models.weights import check_full_precision as check_precision
from vit_ratio_opt.models.weights import check_weights
from vit_ratio_opt.pruning.attention import attention_probabilities, split_heads
from vit_ratio_opt.pruning.batches import check_images

__all__ = ["AttentionSurvey", "keep_heads", "survey_attention"]


class AttentionSurvey(NamedTuple):
    """Statistics of the attention of a model on some images, by block."""

    ranges: tuple[float, ...]
    """Mean distance between a patch and the patches that it attends to, as a share of the distance
    with uniform attention (the mean attention distance of Dosovitskiy et al. 2021)."""
    heads: tuple[torch.Tensor, ...]
    """Cumulative scores of the heads, ``(heads,)``: the largest attention that each patch gets
    through a head, averaged over patches and images, and added up over the blocks so far. Heads of
    different blocks share nothing but their index; CP-ViT adds them up nevertheless."""


@torch.no_grad()
def survey_attention(model: ViT, batches: Iterable[torch.Tensor]) -> AttentionSurvey:
    """Return statistics of the attention of a model on some images.

    Args:
        model: Supported model without a cascade; it is not changed.
        batches: Normalised images ``(batch, channels, height, width)``, on the model's device.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: The model has a cascade, or there are no images.
    """
    model = check_all_tokens(model)
    check_precision(model)
    check_weights(model)
    shape, prefix = shape_of(model), model.num_prefix_tokens
    distances = _patch_distances(model)
    ranges = torch.zeros(len(shape.blocks), dtype=torch.float64)
    heads = [torch.zeros(block.num_heads, dtype=torch.float64) for block in shape.blocks]
    images = 0

    def add(index: int) -> Callable[[Attention, tuple[torch.Tensor, ...]], None]:
        def hook(attn: Attention, inputs: tuple[torch.Tensor, ...]) -> None:
            q, k, _ = split_heads(attn, inputs[0], inputs[0])
            attention = attention_probabilities(attn, q, k)[..., prefix:]
            heads[index].add_(attention.amax(2).mean(2).cpu().double().sum(0))
            between = attention[:, :, prefix:]
            share = between / between.sum(3, keepdim=True)
            ranges[index] += (share * distances.to(share)).sum(3).mean((1, 2)).cpu().double().sum()

        return hook

    with evaluating(model):
        hooks = [
            attention.module.register_forward_pre_hook(add(index))
            for index, (attention, _) in enumerate(branches(model))
        ]
        try:
            for number, batch in enumerate(batches):
                check_images(model, batch, number)
                images += len(batch)
                model(batch)
        finally:
            for handle in hooks:
                handle.remove()
    if not images:
        raise InputError("The survey of the attention needs at least one image.")
    uniform = distances.mean().item()
    # Rounded, so that two machines that differ in the last bits choose the same cascade.
    return AttentionSurvey(
        tuple(round(value / images / uniform, 2) for value in ranges.tolist()),
        tuple(_add_up([own / images for own in heads])),
    )


def _patch_distances(model: ViT) -> torch.Tensor:
    """Return the distances between patches in units of a patch, ``(patches, patches)``."""
    rows, columns = model.patch_embed.grid_size
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    return torch.cdist(places, places)


def _add_up(scores: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the sums of the scores of all blocks up to each; blocks may have fewer heads."""
    total = torch.zeros(0, dtype=torch.float64)
    for own in scores:
        total = F.pad(total, (0, max(0, len(own) - len(total))))[: len(own)] + own
        yield total


def keep_heads(model: ViT, counts: Sequence[int], survey: AttentionSurvey) -> ViT:
    """Return a copy of a model that keeps the heads with the highest scores.

    Args:
        model: Model of the survey.
        counts: Number of heads to keep, by block.
        survey: Statistics of the model's attention.
    """
    return keep_units(
        model,
        [
            sorted(scores.sort(stable=True, descending=True).indices[:count].tolist())
            for scores, count in zip(survey.heads, counts, strict=True)
        ],
        [range(block.hidden_dim) for block in shape_of(model).blocks],
    )
