"""Tests for criteria of one's own: one function that scores heads and neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.surgery import keep_units
from vit_ratio_opt.pruning.importance import (
    Importance,
    magnitude_importance,
    score_units,
    taylor_importance,
)
from vit_ratio_opt.pruning.options import Structural
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.pruning.pruner import ModelPruner


def mean_activation(model: nn.Module, batches: Sequence[Any]) -> Importance:
    """Score heads and neurons by how large their outputs are on average."""
    sums: dict[nn.Module, torch.Tensor] = {}

    def add(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        size = args[0].detach().abs().mean(dim=(0, 1)).double().cpu()
        sums[layer] = sums[layer] + size if layer in sums else size

    blocks: Any = model.blocks
    layers = [layer for block in blocks for layer in (block.attn.proj, block.mlp.fc2)]
    hooks = [layer.register_forward_pre_hook(add) for layer in layers]
    with torch.inference_mode():
        for images, _ in batches:
            model(images)
    for hook in hooks:
        hook.remove()
    return Importance(
        heads=tuple(sums[b.attn.proj].view(b.attn.num_heads, -1).mean(dim=1) for b in blocks),
        neurons=tuple(sums[b.mlp.fc2] for b in blocks),
    )


def test_a_criterion_of_ones_own_decides_what_is_removed(
    tiny_vit: VisionTransformer, images: torch.Tensor, labels: torch.Tensor
) -> None:
    options = Structural(unit="head", allocation="uniform", criterion=mean_activation)
    assert options.criterion_name == "mean_activation"
    scores = score_units(tiny_vit, [(images, labels)], options.criterion)
    assert (
        scores.heads[0].tolist()
        != taylor_importance(tiny_vit, [(images, labels)]).heads[0].tolist()
    )
    pruned = prune(tiny_vit, (0.5, 0.75), scores, allocation=options.allocation)
    best = [
        [sorted(score.topk(count).indices.tolist()) for score in kind]
        for kind, count in ((scores.heads, 2), (scores.neurons, 16))
    ]
    expected = keep_units(tiny_vit, *best).state_dict()
    assert shape_of(pruned).heads == 4
    assert all(torch.equal(tensor, expected[name]) for name, tensor in pruned.state_dict().items())


def test_a_pruner_takes_a_criterion_and_a_study_stores_its_name(
    tiny_vit: VisionTransformer, images: torch.Tensor, labels: torch.Tensor
) -> None:
    batches = [(images, labels)]
    options = Structural(unit="head", repair=False, criterion=mean_activation)
    pruner = ModelPruner(tiny_vit, batches, pruning=options)
    assert pruner.identity()["criterion"] == "mean_activation"
    expected = prune(tiny_vit, (0.5, 0.5), mean_activation(tiny_vit, batches)).state_dict()
    pruned = pruner.prune((0.5, 0.5)).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in pruned.items())
    other = prune(tiny_vit, (0.5, 0.5), taylor_importance(tiny_vit, batches)).state_dict()
    assert not all(
        torch.equal(t, other[n]) for n, t in pruned.items() if t.shape == other[n].shape
    )


def test_taylor_scores_are_the_default_criterion(
    tiny_vit: VisionTransformer, images: torch.Tensor, labels: torch.Tensor
) -> None:
    batches = [(images, labels)]
    for criterion, own in (
        (None, taylor_importance(tiny_vit, batches)),
        (magnitude_importance, magnitude_importance(tiny_vit)),
    ):
        found = score_units(tiny_vit, batches, criterion)
        for ours, theirs in zip(found.heads + found.neurons, own.heads + own.neurons, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (None, "must return an Importance, but .* returned a NoneType"),
        (Importance((torch.ones(4),) * 2, (torch.ones(64),)), "Importance of neurons must have"),
        (Importance((torch.ones(4),) * 2, (torch.full((64,), torch.nan),) * 2), "must be finite"),
    ],
)
def test_scores_that_do_not_fit_the_model_are_refused(
    tiny_vit: VisionTransformer, scores: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        score_units(tiny_vit, [], lambda model, batches: scores)
