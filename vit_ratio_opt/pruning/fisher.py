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
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from vit_ratio_opt.data.task import Task
from vit_ratio_opt.models.blocks import ViT, branches
from vit_ratio_opt.models.classifier import gives_classes
from vit_ratio_opt.models.device import as_double, model_device
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.batches import CHUNK, check_outputs, chunks
from vit_ratio_opt.pruning.options import CalibrationPrecision
from vit_ratio_opt.pruning.passes import halving, in_precision
from vit_ratio_opt.pruning.sums import RunningSum, gram

__all__ = ["BranchCost", "branch_costs"]

# Images with gradients, the most expensive part: two numbers a token and one matrix a branch are
# computed from them.
_GRADIENT_IMAGES = 256
# What a pass with gradients may keep for the backward pass, about.
_GRADIENT_BYTES = 2 * 2**30
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
    precision: CalibrationPrecision = "float32",
) -> list[BranchCost]:
    """Return the cost of errors in every branch, attention and FFN in turn.

    Args:
        model: Dense or pruned model, in evaluation mode.
        images: Normalised batches, on the model's device.
        seed: Random seed of the labels or of the noise.
        sampled: Number of sampled tokens of each image.
        task: Task of the outputs.
        precision: Precision of the passes.

    Returns:
        The costs, on the model's device if that computes in double precision, else on the CPU.
    """
    compute = partial(_branch_costs, model, images, seed, sampled, task, precision)
    return halving(compute, _images_at_once(model), model_device(model))


def _images_at_once(model: ViT) -> int:
    """Return how many images' gradients fit into memory at once."""
    shape = shape_of(model)
    widths = [
        4 * (shape.embed_dim + b.num_heads * b.head_dim) + 2 * b.hidden_dim for b in shape.blocks
    ]
    return min(CHUNK, max(1, _GRADIENT_BYTES // (4 * shape.tokens * sum(widths))))


def _branch_costs(
    model: ViT,
    images: Sequence[torch.Tensor],
    seed: int,
    sampled: int,
    task: Task,
    precision: CalibrationPrecision,
    at_once: int,
) -> list[BranchCost]:
    generator = torch.Generator().manual_seed(seed)
    if task == "multi-label":
        loss_of = _several_labels_loss(generator)
    elif task == "single-label" and gives_classes(model):
        loss_of = _label_loss(generator)
    else:
        variance = _channel_variance(model, images, precision, at_once)
        loss_of = _feature_loss(variance, generator)
    outputs: list[torch.Tensor] = []

    def keep(module: nn.Module, args: object, output: torch.Tensor) -> None:
        outputs.append(output)

    layers = [branch.last for pair in branches(model) for branch in pair]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    squares, tokens = [RunningSum() for _ in layers], [RunningSum() for _ in layers]
    seen = 0
    try:
        with torch.enable_grad():
            for number, part in enumerate(chunks(images, at_once)):
                chunk = part[: _GRADIENT_IMAGES - seen].detach().requires_grad_()
                if not len(chunk):
                    break
                outputs.clear()
                with in_precision(chunk.device, precision):
                    given = model(chunk).float()
                check_outputs(given, number)
                gradients = torch.autograd.grad(loss_of(given), outputs)
                for square, token, gradient in zip(squares, tokens, gradients, strict=True):
                    square.add(gram(gradient.flatten(0, 1)))
                    token.add(gradient.float().square().sum(dim=(0, 2)))
                seen += len(chunk)
    finally:
        for hook in hooks:
            hook.remove()
    prefix = shape_of(model).prefix_tokens
    return [
        _branch_cost(square.total(), token.total() / seen, prefix, seen, sampled)
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
def _channel_variance(
    model: ViT, images: Sequence[torch.Tensor], precision: CalibrationPrecision, at_once: int
) -> torch.Tensor:
    """Return the variance of each channel of the features over images and tokens."""
    seen, count = 0, 0
    totals, squares = RunningSum(), RunningSum()
    for number, part in enumerate(chunks(images, at_once)):
        chunk = part[: _GRADIENT_IMAGES - seen]
        if not len(chunk):
            break
        with in_precision(chunk.device, precision):
            features = model(chunk)
        check_outputs(features, number)
        rows = as_double(features.flatten(0, -2))
        totals.add(rows.sum(dim=0))
        squares.add(rows.square().sum(dim=0))
        seen, count = seen + len(chunk), count + len(rows)
    square = squares.total()
    variance = square / count - (totals.total() / count).square()
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
        weights = tokens.new_full((sampled,), 1 / sampled)
        return BranchCost(torch.zeros_like(square), weights)
    weights = tokens[:sampled] / total
    weights[prefix:] *= (len(tokens) - prefix) / (sampled - prefix)
    width = len(square)
    metric = square / square.trace()
    # Few gradients estimate directions poorly: the fewer, the more the metric shrinks to identity.
    doubt = width / (images * _effective_samples(tokens))
    metric = (metric + doubt / width * torch.eye(width).to(metric)) / (1 + doubt)
    values, vectors = torch.linalg.eigh(metric * total / 2)
    return BranchCost(values.clamp_min(0).sqrt()[:, None] * vectors.mT, weights)


def _effective_samples(weights: torch.Tensor) -> float:
    """Return the number of equally weighted samples that are worth as much (Kish 1965)."""
    return float(weights.sum().square() / weights.square().sum())
