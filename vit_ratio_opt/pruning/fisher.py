"""Fisher information: the loss that an error in the output of a branch causes.

An error e in what a branch adds to the residual stream costs ``e' F e / 2`` nats, where F is the
mean of ``g g'`` over the gradients g of the log-likelihood of outputs drawn from the model itself.

Of a classifier these are labels: one class of each image, or with several labels the presence of
each class. Of other models they are the outputs, such as features, pooled or of all tokens, with
noise of each channel's own variance over images and tokens. An error of the outputs then costs
half its mean square over channels and tokens, in units of the channels' variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from vit_ratio_opt.data.task import Task
from vit_ratio_opt.models.blocks import ViT, branches
from vit_ratio_opt.models.classifier import gives_classes
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.batches import check_outputs, chunks

__all__ = ["BranchCost", "branch_costs"]

# Images with gradients, the most expensive part: two numbers a token and one matrix a branch are
# computed from them.
_GRADIENT_IMAGES = 256
# Smallest variance of a channel of features, as a share of the median channel's: a channel that
# hardly varies tells images hardly apart, however small its errors would have to be.
_LEAST_VARIANCE = 1e-2

_Loss = Callable[[torch.Tensor], torch.Tensor]
"""Return the sum over images of the negative log-likelihood of outputs drawn from the model."""


@dataclass(frozen=True)
class BranchCost:
    """Loss caused by an error in what a branch adds to the residual stream.

    Args:
        root: ``(D, D)``; the loss is the squared length of ``root @ error``, weighted by token.
        weights: Weight of each sampled token, ``(sampled,)``.
    """

    root: torch.Tensor
    weights: torch.Tensor

    @property
    def effective_tokens(self) -> float:
        """Return the effective number of tokens: equally weighted ones of the same worth."""
        return _effective_samples(self.weights)


def branch_costs(
    model: ViT,
    images: Sequence[torch.Tensor],
    seed: int,
    sampled: int,
    task: Task = "single-label",
) -> list[BranchCost]:
    """Return the cost of errors in every branch, attention and FFN in turn.

    Args:
        model: Dense or pruned model, in evaluation mode.
        images: Normalised batches, on the model's device.
        seed: Random seed of the labels or of the noise.
        sampled: Number of sampled tokens of each image.
        task: Task of the outputs.
    """
    generator = torch.Generator().manual_seed(seed)
    if task == "multi-label":
        loss_of = _several_labels_loss(generator)
    elif task == "single-label" and gives_classes(model):
        loss_of = _label_loss(generator)
    else:
        loss_of = _feature_loss(_channel_variance(model, images), generator)
    outputs: list[torch.Tensor] = []

    def keep(module: nn.Module, args: object, output: torch.Tensor) -> None:
        outputs.append(output)

    layers = [branch.last for pair in branches(model) for branch in pair]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    squares = [torch.zeros(0)] * len(layers)
    tokens = [torch.zeros(0)] * len(layers)
    seen = 0
    try:
        with torch.enable_grad():
            for number, part in enumerate(chunks(images)):
                chunk = part[: _GRADIENT_IMAGES - seen].detach().requires_grad_()
                if not len(chunk):
                    break
                outputs.clear()
                given = model(chunk)
                check_outputs(given, number)
                loss = loss_of(given)
                for index, gradient in enumerate(torch.autograd.grad(loss, outputs)):
                    flat = gradient.flatten(0, 1)
                    square = (flat.mT @ flat).cpu().double()
                    token = gradient.square().sum(dim=(0, 2)).cpu().double()
                    squares[index] = squares[index] + square if seen else square
                    tokens[index] = tokens[index] + token if seen else token
                seen += len(chunk)
    finally:
        for hook in hooks:
            hook.remove()
    prefix = shape_of(model).prefix_tokens
    return [
        _branch_cost(square, token / seen, prefix, seen, sampled)
        for square, token in zip(squares, tokens, strict=True)
    ]


def _label_loss(generator: torch.Generator) -> _Loss:
    def loss(logits: torch.Tensor) -> torch.Tensor:
        drawn = logits.detach().float().softmax(dim=1).cpu()
        labels = torch.multinomial(drawn, 1, generator=generator)[:, 0].to(logits.device)
        return F.cross_entropy(logits, labels, reduction="sum")

    return loss


def _several_labels_loss(generator: torch.Generator) -> _Loss:
    def loss(logits: torch.Tensor) -> torch.Tensor:
        drawn = torch.bernoulli(logits.detach().float().sigmoid().cpu(), generator=generator)
        labels = drawn.to(logits)
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")

    return loss


def _feature_loss(variance: torch.Tensor, generator: torch.Generator) -> _Loss:
    """Return the loss of features ``(batch, ..., channels)`` with normally distributed noise.

    Args:
        variance: Variance of each channel, ``(channels,)``.
        generator: Source of the noise.
    """

    def loss(features: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(features.shape, generator=generator).to(features)
        scale = (variance.to(features) * features[0].numel()).rsqrt()
        return (features * noise * scale).sum()

    return loss


@torch.no_grad()
def _channel_variance(model: ViT, images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the variance of each channel of the features over images and tokens."""
    seen, count = 0, 0
    total = square = torch.zeros(1, dtype=torch.float64)
    for number, part in enumerate(chunks(images)):
        chunk = part[: _GRADIENT_IMAGES - seen]
        if not len(chunk):
            break
        features = model(chunk)
        check_outputs(features, number)
        rows = features.flatten(0, -2).cpu().double()
        total, square = total + rows.sum(dim=0), square + rows.square().sum(dim=0)
        seen, count = seen + len(chunk), count + len(rows)
    variance = square / count - (total / count).square()
    least = _LEAST_VARIANCE * float(variance.median())
    if least <= 0:  # such as those of a single image
        least = max(float(square.mean() / count), torch.finfo(torch.float32).tiny)
    return variance.clamp_min(least)


def _branch_cost(
    square: torch.Tensor, tokens: torch.Tensor, prefix: int, images: int, sampled: int
) -> BranchCost:
    # One patch's weight is noise, that of all patches is not.
    tokens[prefix:] = tokens[prefix:].mean()
    total = float(tokens.sum())
    if total == 0:  # a branch that changes nothing
        weights = torch.full((sampled,), 1 / sampled, dtype=tokens.dtype)
        return BranchCost(torch.zeros_like(square), weights)
    weights = tokens[:sampled] / total
    weights[prefix:] *= (len(tokens) - prefix) / (sampled - prefix)
    width = len(square)
    metric = square / square.trace()
    # Few gradients estimate directions poorly: the fewer, the more the metric shrinks to identity.
    doubt = width / (images * _effective_samples(tokens))
    metric = (metric + doubt / width * torch.eye(width, dtype=metric.dtype)) / (1 + doubt)
    values, vectors = torch.linalg.eigh(metric * total / 2)
    return BranchCost(values.clamp_min(0).sqrt()[:, None] * vectors.mT, weights)


def _effective_samples(weights: torch.Tensor) -> float:
    """Return the number of equally weighted samples that are worth as much (Kish 1965)."""
    return float(weights.sum().square() / weights.square().sum())
