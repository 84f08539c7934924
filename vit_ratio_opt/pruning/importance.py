"""Criteria that score each head and each hidden neuron.

A criterion is any function ``(model, batches) -> Importance``, see :data:`Criterion`; pruning with
the unit ``"head"`` removes the heads and neurons with the lowest scores.
:func:`taylor_importance` and :func:`magnitude_importance` are the built-in ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT, branches, input_layers
from vit_ratio_opt.models.classifier import classes_of
from vit_ratio_opt.models.device import evaluating
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.models.weights import check_full_precision, check_weights
from vit_ratio_opt.pruning.batches import (
    check_images,
    check_labels,
    check_outputs,
    check_sequence,
)

__all__ = [
    "Criterion",
    "Importance",
    "check_importance",
    "magnitude_importance",
    "score_units",
    "taylor_importance",
]


@dataclass(frozen=True)
class Importance:
    """Scores of heads and neurons on the CPU, higher for more important units.

    Scores of one kind are compared across blocks, so a criterion has to bring all blocks to one
    scale.

    Args:
        heads: By block, the scores of its heads, ``(num_heads,)``.
        neurons: By block, the scores of its hidden neurons, ``(hidden_dim,)``.
    """

    heads: tuple[torch.Tensor, ...]
    neurons: tuple[torch.Tensor, ...]


Criterion: TypeAlias = Callable[[ViT, Sequence[Any]], Importance]
"""Score heads and neurons of a model on batches of normalised images and labels."""


def score_units(
    model: ViT, batches: Sequence[Any], criterion: Criterion | None = None
) -> Importance:
    """Return the scores of a criterion, checked against the model.

    Args:
        model: Dense or pruned model.
        batches: Batches of normalised images and labels, on the model's device.
        criterion: Function ``(model, batches) -> Importance``; :func:`taylor_importance` by
            default.

    Raises:
        InputError: The criterion returned no Importance, or scores that do not fit the model.
    """
    importance = (criterion or taylor_importance)(model, batches)
    if not isinstance(importance, Importance):
        raise InputError(
            f"A criterion must return an Importance, but {criterion!r:.80} returned a "
            f"{type(importance).__name__}."
        )
    check_importance(model, importance)
    return importance


def check_importance(model: ViT, importance: Importance) -> None:
    """Refuse scores that do not fit the blocks of a model.

    Raises:
        InputError: Their number or shapes differ, or one is not finite.
    """
    blocks = shape_of(model).blocks
    sizes = {
        "heads": [block.num_heads for block in blocks],
        "neurons": [block.hidden_dim for block in blocks],
    }
    for name, wanted in sizes.items():
        scores = getattr(importance, name)
        got = [tuple(score.shape) for score in scores]
        if got != [(size,) for size in wanted]:
            raise InputError(
                f"Importance of {name} must have shapes {wanted} by block, but has {got}."
            )
        if not all(torch.isfinite(score).all() for score in scores):
            raise InputError(
                f"Importance of {name} must be finite, but has NaN or infinite scores."
            )


def taylor_importance(
    model: ViT, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> Importance:
    """Return a first-order estimate of how the loss changes when a unit's output becomes zero.

    For one image the change is ``|sum of activation * gradient|`` over the unit's dimensions and
    all tokens; the score is its mean over the images. For neurons this is Molchanov 2017, eq. 8;
    for heads it equals the head-mask gradient of Michel 2019, eq. 2.

    Args:
        model: Model in float32. Its mode, gradients and frozen weights are left as they were;
            frozen weights make no difference.
        batches: Normalised images ``(batch, channels, height, width)`` and labels ``(batch,)``, on
            the model's device.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: ``batches`` is empty or does not fit the model, or its weights are not finite
            numbers in float32.
    """
    model = check_supported(model)
    check_full_precision(model)
    check_weights(model)
    classes = classes_of(model)
    check_sequence("batches", batches)
    attentions = [attention.module for attention, _ in branches(model)]
    layers = [attn.proj for attn in attentions] + [ffn.module.fc2 for _, ffn in branches(model)]
    units = [attn.num_heads for attn in attentions]
    units += [layer.in_features for layer in layers[len(units) :]]
    sums: list[torch.Tensor] = []
    images_seen = 0
    with evaluating(model), torch.enable_grad(), _inputs_of(layers) as inputs:
        for number, batch in enumerate(batches):
            images, labels = _check_pair(model, batch, classes, number)
            # Through the images, so that a model with frozen weights has gradients too.
            logits = model(images.detach().requires_grad_())
            check_outputs(logits, number)
            # A sum, not a mean: then each image's gradient is its own.
            loss = F.cross_entropy(logits, labels, reduction="sum")
            activations = [inputs[layer] for layer in layers]
            gradients = torch.autograd.grad(loss, activations)
            changes = map(_unit_changes, activations, gradients, units)
            totals = [change.abs().sum(dim=0).cpu().double() for change in changes]
            sums = [old + new for old, new in zip(sums, totals, strict=True)] if sums else totals
            images_seen += len(images)
    if images_seen == 0:
        raise InputError(
            "Taylor importance needs at least one batch of images, but got none: a generator "
            "gives its batches only once."
        )
    scores = tuple(total / images_seen for total in sums)
    return Importance(heads=scores[: len(attentions)], neurons=scores[len(attentions) :])


@contextlib.contextmanager
def _inputs_of(
    layers: Sequence[torch.nn.Module],
) -> Iterator[dict[torch.nn.Module, torch.Tensor]]:
    """Yield a dictionary that holds the input of each layer after every forward pass."""
    inputs: dict[torch.nn.Module, torch.Tensor] = {}

    def keep(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        inputs[module] = args[0]

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def _unit_changes(activation: torch.Tensor, gradient: torch.Tensor, units: int) -> torch.Tensor:
    """Return what zeroing each unit changes in the loss of each image, ``(batch, units)``."""
    change = (activation.detach() * gradient).sum(dim=1)  # over tokens
    return torch.unflatten(change, 1, (units, -1)).sum(dim=2)


def _check_pair(
    model: ViT, batch: Any, classes: int, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and labels of a batch that fits the model."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InputError(
            f"Batch {number} must be a pair of images and labels, but is a {type(batch).__name__}."
        )
    images, labels = batch
    check_images(model, images, number)
    check_labels(labels, images, classes, number)
    return images, labels


def magnitude_importance(model: ViT, batches: Iterable[Any] = (), *, p: int = 2) -> Importance:
    """Return the L1 or L2 norm of all weights of each unit (Li 2017).

    A head's weights are its rows of qkv and columns of the projection, a neuron's its row of fc1
    and column of fc2, biases included. Norms grow with a layer's scale, so each block's scores are
    divided by their mean to make them comparable across blocks.

    Args:
        model: Dense or pruned model.
        batches: Accepted for other criteria; norms need no images.
        p: 1 for the L1 norm, 2 for the L2 norm.

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
    """Return the sum of ``|w|^p`` over each output's row and bias, ``(out_features,)``."""
    total = linear.weight.abs().pow(p).sum(dim=1)
    return total if linear.bias is None else total + linear.bias.abs().pow(p)


def _relative_to_mean(total: torch.Tensor, p: int) -> torch.Tensor:
    norm = total.cpu().double().pow(1 / p)
    return norm / norm.mean().clamp_min(torch.finfo(norm.dtype).tiny)
