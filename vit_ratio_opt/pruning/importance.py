"""How much each head and each hidden neuron matters.

An importance is any function that returns :class:`Importance`; the policy in
:mod:`vit_ratio_opt.pruning.prune` removes the units with the lowest scores.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT, branches, input_layers
from vit_ratio_opt.models.classifier import classes_of
from vit_ratio_opt.models.device import evaluating
from vit_ratio_opt.models.supported import check_precision, check_supported, check_weights
from vit_ratio_opt.pruning.batches import (
    check_images,
    check_labels,
    check_logits,
    check_sequence,
)

__all__ = ["Importance", "magnitude_importance", "taylor_importance"]


@dataclass(frozen=True)
class Importance:
    """Scores, higher for what matters more, on the CPU.

    Args:
        heads: One tensor ``(num_heads,)`` a block.
        neurons: One tensor ``(hidden_dim,)`` a block.
    """

    heads: tuple[torch.Tensor, ...]
    neurons: tuple[torch.Tensor, ...]


def taylor_importance(
    model: ViT, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> Importance:
    """First-order estimate of how much the loss changes when a unit's output becomes zero.

    For one image the change is ``|sum of activation * gradient|`` over the unit's dimensions and
    all tokens; the score is its mean over the images. For neurons this is Molchanov 2017, eq. 8;
    for heads it equals the head-mask gradient of Michel 2019, eq. 2.

    Args:
        model: In float32. Its mode, gradients and frozen weights are left as they were; frozen or
            not makes no difference.
        batches: Normalised images ``(batch, channels, height, width)`` and labels ``(batch,)``, on
            the model's device.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: ``batches`` is empty or does not fit the model, or its weights are not finite
            numbers in float32.
    """
    model = check_supported(model)
    check_precision(model)
    check_weights(model)
    classes = classes_of(model)
    check_sequence("batches", batches)
    taps: dict[torch.nn.Module, torch.Tensor] = {}

    def tap(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        taps[module] = args[0]

    pairs = [(attention.module, ffn.module) for attention, ffn in branches(model)]
    projections = [attn.proj for attn, _ in pairs]
    outputs = [mlp.fc2 for _, mlp in pairs]
    sums = [torch.zeros(0)] * (len(projections) + len(outputs))
    images_seen = 0
    hooks = [layer.register_forward_pre_hook(tap) for layer in projections + outputs]
    try:
        with evaluating(model), torch.enable_grad():
            for index, batch in enumerate(batches):
                if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                    raise InputError(
                        f"Batch {index} must be a pair of images and labels, but is a "
                        f"{type(batch).__name__}."
                    )
                images, labels = batch
                check_images(model, images, index)
                check_labels(labels, images, classes, index)
                # Through the images, so that a model with frozen weights has gradients too.
                images = images.detach().requires_grad_()
                # A sum, not a mean: then each image's gradient is its own.
                logits = model(images)
                check_logits(logits, index)
                loss = F.cross_entropy(logits, labels, reduction="sum")
                activations = [taps[layer] for layer in projections + outputs]
                gradients = torch.autograd.grad(loss, activations)
                for index, (activation, gradient) in enumerate(
                    zip(activations, gradients, strict=True)
                ):
                    change = (activation.detach() * gradient).sum(dim=1)  # over tokens
                    if index < len(projections):
                        num_heads = pairs[index][0].num_heads
                        change = torch.unflatten(change, 1, (num_heads, -1)).sum(dim=2)
                    total = change.abs().sum(dim=0).double().cpu()
                    sums[index] = total if images_seen == 0 else sums[index] + total
                images_seen += len(images)
    finally:
        for hook in hooks:
            hook.remove()
    if images_seen == 0:
        raise InputError(
            "Taylor importance needs at least one batch of images, but got none: a generator "
            "gives its batches only once."
        )
    scores = tuple(total / images_seen for total in sums)
    return Importance(heads=scores[: len(projections)], neurons=scores[len(projections) :])


def magnitude_importance(model: ViT, *, p: int = 2) -> Importance:
    """The L1 or L2 norm of all weights that go with a unit (Li 2017).

    A head's weights are its rows of qkv and columns of the projection, a neuron's its row of fc1
    and column of fc2, biases included. Norms grow with a layer's scale, so each block's scores are
    divided by their mean to make them comparable across blocks.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: ``p`` is neither 1 nor 2.
    """
    if p not in (1, 2):
        raise InputError(f"`p` must be 1 (L1 norm) or 2 (L2 norm), but got {p!r}.")
    model = check_supported(model)
    check_weights(model, finite="blocks.")
    heads, neurons = [], []
    with torch.no_grad():
        for attention, ffn in branches(model):
            attn, mlp = attention.module, ffn.module
            qkv = torch.unflatten(_powers(attn.qkv, p), 0, (3, attn.num_heads, attn.head_dim))
            proj = attn.proj.weight.abs().pow(p).sum(dim=0)
            proj = torch.unflatten(proj, 0, (attn.num_heads, attn.head_dim))
            heads.append(qkv.sum(dim=(0, 2)) + proj.sum(dim=1))
            rows = [
                torch.unflatten(_powers(layer, p), 0, (parts, -1)).sum(dim=0)
                for layer, parts in input_layers(mlp)
            ]
            neurons.append(sum(rows) + mlp.fc2.weight.abs().pow(p).sum(dim=0))
    return Importance(
        heads=tuple(_relative_to_mean(total, p) for total in heads),
        neurons=tuple(_relative_to_mean(total, p) for total in neurons),
    )


def _powers(linear: torch.nn.Linear, p: int) -> torch.Tensor:
    """Sum of ``|w|^p`` of every output's row and bias, shape ``(out_features,)``."""
    total = linear.weight.abs().pow(p).sum(dim=1)
    return total if linear.bias is None else total + linear.bias.abs().pow(p)


def _relative_to_mean(total: torch.Tensor, p: int) -> torch.Tensor:
    norm = total.double().cpu().pow(1 / p)
    return norm / norm.mean().clamp_min(torch.finfo(norm.dtype).tiny)
