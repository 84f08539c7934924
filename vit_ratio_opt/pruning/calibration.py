"""Measure a model on a few training images, once for all pairs of ratios.

Losses are estimates of one quantity, so blocks and modules can be compared: the Kullback-Leibler
divergence of the pruned model's class probabilities from the dense model's, in nats, to second
order, see :mod:`vit_ratio_opt.pruning.fisher`; with several labels the sum over the classes. For a
model without a classifier it is half the mean squared error of the features that it gives, in
units of each channel's variance: of the pooled features where the model pools, of all tokens where
``global_pool`` is ``""``. The outputs of a regression are such features.

Sums and targets are over a sample of each image's tokens. Tokens of one image are nearly alike for
a layer, images are not: on the CIFAR-10 models 4 of 64 patches were as good as all.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch

from vit_ratio_opt.data.task import Task, check_task
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.architecture import fingerprint_of
from vit_ratio_opt.models.blocks import ViT, keeps_heads, keeps_ranks
from vit_ratio_opt.models.classifier import gives_classes
from vit_ratio_opt.models.device import as_double, evaluating
from vit_ratio_opt.models.shape import check_all_tokens, shape_of
from vit_ratio_opt.models.weights import check_full_precision, check_weights
from vit_ratio_opt.pruning.batches import CHUNK, chunks, image_batches, image_means
from vit_ratio_opt.pruning.eliminate import elimination_order
from vit_ratio_opt.pruning.factorize import HeadFactors, head_factors
from vit_ratio_opt.pruning.fisher import BranchCost, branch_costs
from vit_ratio_opt.pruning.moments import Allocate, BlockMoments, block_moments
from vit_ratio_opt.pruning.options import CalibrationPrecision, check_calibration_precision
from vit_ratio_opt.pruning.passes import halving, in_precision
from vit_ratio_opt.pruning.targets import empty_on_disk
from vit_ratio_opt.space.shape import ViTShape

__all__ = ["BlockCalibration", "Calibration", "calibrate"]

# Patches sampled of each image: at least 8, and enough that the widest layer has 8 samples for
# each of its inputs.
_LEAST_PATCHES, _TOKENS_PER_INPUT = 8, 8
_HALF = torch.bfloat16  # type of the targets of passes in bfloat16


@dataclass(frozen=True)
class BlockCalibration:
    """Calibration of one block.

    Args:
        factors: Factors of the heads.
        neuron_order: Indices of the hidden neurons in the order of their removal, ``(M,)``.
        neuron_losses: Loss that each neuron adds in that order, in nats, ``(M,)``.
        attention_weights: Weight of each sampled token in the reconstruction of the attention,
            ``(sampled,)``: the mean squared gradient after the attention at the tokens that it
            represents, as a share of all tokens.
        ffn_weights: Weight of each sampled token in the reconstruction of the FFN, ``(sampled,)``.
        attention_target: Residual stream after the attention at the sampled tokens,
            ``(images, sampled, D)``, in the model's precision.
        ffn_target: Residual stream after the FFN at the sampled tokens, ``(images, sampled, D)``.
    """

    factors: HeadFactors
    neuron_order: torch.Tensor
    neuron_losses: torch.Tensor
    attention_weights: torch.Tensor
    ffn_weights: torch.Tensor
    attention_target: torch.Tensor
    ffn_target: torch.Tensor


@dataclass(frozen=True)
class Calibration:
    """Calibration of a model, on the CPU.

    Args:
        blocks: Calibration of each block, from the input to the output.
        positions: Indices of the sampled tokens of each image, ``(images, sampled)``: all prefix
            tokens, then some of the patches.
        model: Fingerprint of the calibrated model, ``(16,)`` bytes; None if not known.
        means: Mean of each image, ``(images,)``, by which other images are noticed; None if not
            known.
    """

    blocks: tuple[BlockCalibration, ...]
    positions: torch.Tensor
    model: torch.Tensor | None = None
    means: torch.Tensor | None = None

    @property
    def precision(self) -> CalibrationPrecision:
        """Return the precision of the passes."""
        return "bfloat16" if self.blocks[0].ffn_target.dtype == _HALF else "float32"

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name, for a safetensors file."""
        tensors = {"positions": self.positions}
        known = {"model": self.model, "means": self.means}
        tensors |= {name: tensor for name, tensor in known.items() if tensor is not None}
        for index, block in enumerate(self.blocks):
            own = {name: tensor for name, tensor in vars(block).items() if name != "factors"}
            for name, tensor in {**own, **vars(block.factors)}.items():
                tensors[f"{index}.{name}"] = tensor.contiguous()
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> Calibration:
        """Return the calibration whose :meth:`to_tensors` gave ``tensors``.

        Raises:
            KeyError: A tensor is missing.
            ValueError: A name is none of a calibration.
        """
        indices = [int(name.split(".")[0]) for name in tensors if "." in name]

        def read(kind: type, index: int) -> dict[str, torch.Tensor]:
            names = [field.name for field in fields(kind) if field.name != "factors"]
            return {name: tensors[f"{index}.{name}"] for name in names}

        blocks = [
            BlockCalibration(
                HeadFactors(**read(HeadFactors, index)), **read(BlockCalibration, index)
            )
            for index in range(1 + max(indices))
        ]
        known = {name: tensors.get(name) for name in ("model", "means")}
        return cls(tuple(blocks), tensors["positions"], **known)


def calibrate(
    model: ViT,
    images: Iterable[torch.Tensor],
    *,
    seed: int = 0,
    task: Task = "single-label",
    precision: CalibrationPrecision = "float32",
    scratch: Path | None = None,
) -> Calibration:
    """Measure a model on images: one pass with gradients, one without.

    Args:
        model: Model in float32. Its mode, gradients and frozen weights are left as they were;
            frozen weights make no difference.
        images: Normalised batches ``(batch, channels, height, width)``, on the model's device.
            Gradients are computed for the first 256 images.
        seed: Random seed of the labels, drawn from the model's own predictions, or of the noise on
            its features; and of the sampled tokens.
        task: Meaning of the outputs: logits of one class (``"single-label"``), logits of several
            classes (``"multi-label"``), or values (``"regression"`` and ``"features"``). A model
            without a classifier gives features with ``"single-label"`` too.
        precision: Precision of the passes: ``"bfloat16"`` is faster where the device has units for
            it. Sums and factors are in float32 or better. Repairs use the same precision.
        scratch: Folder for a temporary file in which the targets of repairs lie; by default they
            lie in memory.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: The task or the precision is unknown, ``images`` is empty or does not fit the
            model, or the model leaves out tokens or has weights that are not finite numbers in
            float32.
    """
    check_task(task)
    check_calibration_precision(precision)
    model = check_all_tokens(model)
    check_full_precision(model)
    check_weights(model)
    gives_classes(model)  # refuses a classifier that does not fit
    images = image_batches(model, images)
    if not images:
        raise InputError(
            "Calibration needs at least one batch of images, but got none: a generator gives its "
            "batches only once."
        )
    device = images[0].device
    positions = _sample(model, sum(len(batch) for batch in images), seed)
    with evaluating(model), in_precision(device, "float32"):
        costs = branch_costs(model, images, seed, positions.shape[1], task, precision)
        allocate = partial(_allocate, dtype=_target_type(precision), scratch=scratch)
        on_device = allocate
        if device.type != "cpu":  # moved to the CPU at once afterwards
            on_device = partial(torch.empty, dtype=_target_type(precision), device=device)
        gather = partial(_gather, model, images, costs, positions.to(device), on_device, precision)
        moments = halving(gather, CHUNK, device)
        blocks = []
        while moments:  # each takes its sums along
            blocks.append(_calibrate_block(moments.pop(0), allocate))
    return Calibration(tuple(blocks), positions, fingerprint_of(model), image_means(images))


def _gather(
    model: ViT,
    images: Sequence[torch.Tensor],
    costs: Sequence[BranchCost],
    positions: torch.Tensor,
    allocate: Allocate,
    precision: CalibrationPrecision,
    at_once: int,
) -> list[BlockMoments]:
    """Return the moments of each block, from one pass without gradients."""
    moments = block_moments(model, costs, positions, allocate)
    hooks = [hook for block in moments for hook in block.hooks()]
    try:
        with torch.inference_mode(), in_precision(positions.device, precision):
            for chunk in chunks(images, at_once):
                model.forward_features(chunk)
    finally:
        for hook in hooks:
            hook.remove()
    return moments


def _allocate(size: tuple[int, ...], dtype: torch.dtype, scratch: Path | None) -> torch.Tensor:
    """Return an empty tensor on the CPU, in a temporary file where there is a folder for it."""
    if scratch is not None:
        with contextlib.suppress(OSError):  # the file of the cache is not written either
            return empty_on_disk(size, dtype, scratch)
    return torch.empty(size, dtype=dtype)


def _calibrate_block(block: BlockMoments, allocate: Allocate) -> BlockCalibration:
    attn, fc2 = block.attn, block.fc2
    attention, ffn = block.attention_cost, block.ffn_cost
    order, losses = elimination_order(
        block.neuron_covariance(),
        ffn.root @ as_double(fc2.weight.detach()),
        samples=block.images * ffn.effective_tokens,
    )
    factors = head_factors(
        block.head_moments(),
        attention.root @ as_double(attn.proj.weight.detach()),
        attn.scale,
        truncate=not keeps_ranks(attn),
        remove=not keeps_heads(attn),
    )
    return BlockCalibration(
        HeadFactors(**{name: tensor.cpu() for name, tensor in vars(factors).items()}),
        neuron_order=order.cpu(),
        neuron_losses=losses.cpu(),
        attention_weights=attention.weights.cpu(),
        ffn_weights=ffn.weights.cpu(),
        attention_target=_on_cpu(block.attention_target, allocate),
        ffn_target=_on_cpu(block.ffn_target, allocate),
    )


def _on_cpu(target: torch.Tensor, allocate: Allocate) -> torch.Tensor:
    return target if target.device.type == "cpu" else allocate(target.shape).copy_(target)


def targets_size(model: ViT, images: int, precision: CalibrationPrecision) -> int:
    """Return the size of the targets of all blocks in bytes."""
    shape = shape_of(model)
    sampled = shape.prefix_tokens + min(_sampled_patches(shape, images), shape.patches)
    numbers = 2 * len(shape.blocks) * images * sampled * shape.embed_dim
    return numbers * _target_type(precision).itemsize


def _target_type(precision: CalibrationPrecision) -> torch.dtype:
    return torch.float32 if precision == "float32" else _HALF


def _sampled_patches(shape: ViTShape, images: int) -> int:
    widest = max(max(b.hidden_dim, b.num_heads * b.head_dim) for b in shape.blocks)
    return max(_LEAST_PATCHES, math.ceil(_TOKENS_PER_INPUT * widest / max(1, images)))


def _sample(model: ViT, images: int, seed: int) -> torch.Tensor:
    """Return the positions of the sampled tokens, ``(images, sampled)``."""
    shape = shape_of(model)
    patches = _sampled_patches(shape, images)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(images, shape.patches, generator=generator).argsort(dim=1)
    prefix = torch.arange(shape.prefix_tokens).expand(images, -1)
    return torch.cat([prefix, shape.prefix_tokens + order[:, :patches]], dim=1)
