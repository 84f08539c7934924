"""Reconstruction: refit the remaining weights to reproduce the outputs of the dense model.

``proj`` and ``fc2`` are refitted by least squares, block by block, on the stream of the pruned
model, so that a block also corrects the errors of the blocks before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from timm.layers import LayerScale
from torch import nn

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT, branches, stages
from vit_ratio_opt.models.copies import frozen_parts
from vit_ratio_opt.models.device import as_double, evaluating
from vit_ratio_opt.models.family import Branch
from vit_ratio_opt.models.shape import read_shape
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.models.weights import check_full_precision as check_precision
from vit_ratio_opt.models.weights import check_weights
from vit_ratio_opt.pruning.batches import image_batches, image_means, tokens_at
from vit_ratio_opt.pruning.calibration import BlockCalibration, Calibration
from vit_ratio_opt.pruning.least_squares import NormalEquations
from vit_ratio_opt.pruning.options import CalibrationPrecision
from vit_ratio_opt.pruning.passes import halving, in_precision

__all__ = [
    "Tail",
    "checked",
    "embed",
    "embed_batches",
    "missing_output",
    "repair",
    "target_of",
]

# An error of the stream of this size, squared and relative, is rounding: of sums in float32, of
# targets in bfloat16.
_ROUNDING = {"float32": 1e-10, "bfloat16": 2.0**-18}


def repair(
    pruned: ViT,
    images: Iterable[torch.Tensor],
    calibration: Calibration,
) -> list[tuple[float, float]]:
    """Refit ``proj`` and ``fc2`` of ``pruned`` in place, so that its stream follows the dense one.

    The calibration holds what the dense model gave on the same images, at some tokens of each, so
    this is one forward pass of the pruned model, in the precision of the calibration, and a few
    systems of equations, in double precision. Frozen layers of an attention or FFN that lost
    nothing stay as they are, unless the whole model is frozen.

    Memory: the stream of the pruned model, ``images * tokens * width`` numbers, and the inputs of
    one layer; the equations do not grow with the images.

    Args:
        pruned: Model pruned from the dense model, with as many blocks of the same width.
        images: Normalised batches ``(batch, channels, height, width)`` of the calibration, on the
            model's device.
        calibration: Calibration of the dense model.

    Returns:
        By refitted layer, attention and FFN in turn, the weighted squared error before and after,
        as shares of the target's square. No error rises. Layers with rounding errors only are left
        as they are and have no entry.

    Raises:
        InputError: The model, the images and the calibration do not belong together, or the
            model's weights are not finite numbers in float32.
        UnsupportedModelError: The model cannot be pruned.
    """
    pruned, images = checked(pruned, images, calibration)
    device, sizes = images[0].device, [len(batch) for batch in images]
    precision = calibration.precision
    positions = torch.split(calibration.positions.to(device), sizes)
    errors, fixed = [], _frozen_and_whole(pruned, calibration)
    with evaluating(pruned), torch.inference_mode(), in_precision(device, "float32"):
        streams, options = embed_batches(pruned, images, precision)
        for stage in stages(pruned):
            tails = [Tail(branch, options.get(branch.kind, {}), precision) for branch in stage]
            inputs = [[tail.inputs(stream) for stream in streams] for tail in tails]
            now, *sampled = (
                [tokens_at(*batch) for batch in zip(values, positions, strict=True)]
                for values in (streams, *inputs)
            )
            for number, branch in enumerate(stage):
                if branch.name in fixed:
                    continue
                target, weights = target_of(calibration.blocks[branch.index], branch.kind, device)
                goals = torch.split(target, sizes)
                wanted = missing_output(goals, now, tails, sampled, number)
                scale = sum(_square(goal, weights) for goal in goals)
                refitted = tails[number].refit(sampled[number], wanted, weights, scale)
                if refitted is not None:
                    errors.append(refitted)
            for batch in range(len(streams)):
                for tail, own in zip(tails, inputs, strict=True):
                    streams[batch] += tail.add(own[batch])
    return errors


def checked(
    pruned: ViT, images: Iterable[torch.Tensor], calibration: Calibration
) -> tuple[ViT, list[torch.Tensor]]:
    """Return a model and batches that can be repaired."""
    pruned = check_supported(pruned)
    check_precision(pruned)
    check_weights(pruned)
    batches = image_batches(pruned, images)
    _check_match(pruned, batches, calibration)
    return pruned, batches


def _check_match(pruned: ViT, images: Sequence[torch.Tensor], calibration: object) -> None:
    """Refuse a model, images and a calibration that do not belong together."""
    if not isinstance(calibration, Calibration):
        raise InputError(
            f"`calibration` must be a Calibration, but is a {type(calibration).__name__}: "
            "`calibrate(dense, images)` gives one."
        )
    shape, blocks = read_shape(pruned), calibration.blocks
    width = blocks[0].attention_target.shape[2]
    if (len(blocks), width) != (len(shape.blocks), shape.embed_dim):
        raise InputError(
            f"The calibration is of a model with {len(blocks)} blocks of width {width}, but "
            f"`pruned` has {len(shape.blocks)} of width {shape.embed_dim}."
        )
    count = sum(len(batch) for batch in images)
    if count != len(calibration.positions):
        raise InputError(
            f"The repair needs the {len(calibration.positions)} images of the calibration, but "
            f"got {count}."
        )
    means = calibration.means  # devices round them differently
    if means is not None and not torch.allclose(image_means(images), means, atol=1e-3):
        raise InputError(
            "The repair needs the images of the calibration in their order, but got others."
        )


def _frozen_and_whole(pruned: ViT, calibration: Calibration) -> set[str]:
    """Return the branches that are neither trained nor were cut, by their names."""
    if not frozen_parts(pruned):
        return set()
    found = set()
    for pair, shape, known in zip(
        branches(pruned), read_shape(pruned).blocks, calibration.blocks, strict=True
    ):
        sizes = [(shape.num_heads, shape.head_dim), (shape.hidden_dim,)]
        dense = [tuple(known.factors.value_losses.shape), (len(known.neuron_order),)]
        for branch, size, dense_size in zip(pair, sizes, dense, strict=True):
            if size == dense_size and not branch.last.weight.requires_grad:
                found.add(branch.name)
    return found


def target_of(
    block: BlockCalibration, kind: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the dense stream after a branch at the sampled tokens, and their weights."""
    found = block.attention_target, block.attention_weights
    if kind == "ffn":
        found = block.ffn_target, block.ffn_weights
    target, weights = found
    return target.to(device).float(), weights.float().to(device)


def missing_output(
    goals: Sequence[torch.Tensor],
    streams: Sequence[torch.Tensor],
    tails: Sequence[Tail],
    inputs: Sequence[Sequence[torch.Tensor]],
    number: int,
) -> list[torch.Tensor]:
    """Return the output that a parallel branch has to add for the streams to reach the goals.

    Args:
        goals: Streams that are wanted after the branches, by batch.
        streams: Streams before the branches, by batch.
        tails: The parallel branches.
        inputs: Inputs of their last layers, by branch and batch.
        number: Index of the branch.
    """
    missing = []
    for batch, (goal, stream) in enumerate(zip(goals, streams, strict=True)):
        added = goal - stream
        for other, tail in enumerate(tails):
            if other != number:
                added = added - tail.add(inputs[other][batch])
        missing.append(added)
    return missing


def embed_batches(
    model: ViT, images: Sequence[torch.Tensor], precision: CalibrationPrecision
) -> tuple[list[torch.Tensor], dict[str, dict[str, Any]]]:
    """Return the input of the first block by batch, and the other arguments of each kind."""
    with in_precision(images[0].device, precision):
        starts = [embed(model, batch) for batch in images]
    return [stream.float() for stream, _ in starts], {"attention": starts[0][1]}


class _StopForward(Exception):
    """The forward pass has reached the first block."""


def embed(model: ViT, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the input of the first block, ``(batch, tokens, width)``, and its other arguments.

    The other arguments are what the attention of every block takes besides the stream, such as a
    rotary embedding. The forward pass ends there.
    """
    given: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def stop(module: nn.Module, args: tuple[torch.Tensor], options: dict[str, Any]) -> None:
        given.append((args[0], options))
        raise _StopForward

    hook = model.blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with contextlib.suppress(_StopForward):
            model.forward_features(images)
    finally:
        hook.remove()
    return given[0]


class Tail:
    """The last layer of a residual branch and what follows it.

    Args:
        branch: The branch.
        options: Arguments that the branch's module takes besides the stream.
        precision: Precision of the passes.
    """

    def __init__(
        self, branch: Branch, options: dict[str, Any], precision: CalibrationPrecision
    ) -> None:
        self._branch, self.layer, self._after = branch, branch.last, branch.after
        self._options, self._precision = options, precision

    @property
    def is_linear(self) -> bool:
        """Return whether what the branch adds is linear in the output of its last layer."""
        return isinstance(self._after, (nn.Identity, LayerScale))

    def inputs(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the input of the last layer."""
        module, name = self._branch.module, self._branch.last_name
        setattr(module, name, nn.Identity())
        try:
            return self._in_parts(self._up_to_last, stream)
        finally:
            setattr(module, name, self.layer)

    def add(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what the branch adds to the stream, given the inputs of its last layer."""
        return self._in_parts(lambda rows: self._after(self.layer(rows)), inputs)

    def _up_to_last(self, stream: torch.Tensor) -> torch.Tensor:
        inputs: torch.Tensor = self._branch.module(self._branch.before(stream), **self._options)
        return inputs

    def _in_parts(
        self, layers: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor
    ) -> torch.Tensor:
        """Return the output of layers for a batch, in parts where memory is short."""

        def compute(size: int) -> torch.Tensor:
            with in_precision(rows.device, self._precision):
                if size == len(rows):
                    return layers(rows)
                return torch.cat([layers(part) for part in torch.split(rows, size)])

        return halving(compute, len(rows), rows.device)

    def refit(
        self,
        inputs: Sequence[torch.Tensor],
        wanted: Sequence[torch.Tensor],
        weights: torch.Tensor,
        scale: float,
    ) -> tuple[float, float] | None:
        """Refit the last layer, so that the branch adds ``wanted`` as nearly as possible.

        Args:
            inputs: Inputs of the last layer at the sampled tokens, by batch.
            wanted: What the branch has to add to the stream there, by batch.
            weights: Weight of each sampled token.
            scale: Squared size of the stream, to tell errors from rounding.

        Returns:
            The squared error before and after as a share of the target's square; None where there
            is nothing to correct, or no layer is better.
        """
        after = self._after
        is_affine = isinstance(after, nn.LayerNorm) and None not in (after.weight, after.bias)
        if not is_affine and not self.is_linear:
            return None  # such as an RMSNorm, for which there are no equations here
        equations = NormalEquations(self.layer.bias is not None, self._precision)
        before = 0.0
        for x, added in zip(inputs, wanted, strict=True):
            equations.add(x, self.undo_scale(x, added), weights)
            before += _square(added - self.add(x), weights)
        if before <= _ROUNDING[self._precision] * scale:
            return None
        if not isinstance(self._after, nn.LayerNorm):
            return _refit(self.layer, equations)
        # The equations linearise the norm, so the result may be worse.
        kept = {name: tensor.clone() for name, tensor in self.layer.state_dict().items()}
        refitted = _refit(self.layer, equations)
        pairs = zip(inputs, wanted, strict=True)
        if sum(_square(y - self.add(x), weights) for x, y in pairs) > before:
            self.layer.load_state_dict(kept)
            return None
        return refitted

    def undo_scale(self, inputs: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        """Return the output of the last layer with which the branch adds ``added``."""
        after: Any = self._after
        scale: torch.Tensor | None
        if isinstance(after, nn.LayerNorm):  # with the mean and spread that the layer gives now
            now = self.layer(inputs.float())
            scale = after.weight / (now.var(dim=2, keepdim=True, correction=0) + after.eps).sqrt()
            mean: torch.Tensor = now.mean(dim=2, keepdim=True)
            return _quotient(added - after.bias, scale) + mean
        scale = getattr(after, "gamma", None)  # of timm's LayerScale
        return added if scale is None else _quotient(added, scale)


def _quotient(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, 0.0, values / scale)


def _square(tokens: torch.Tensor, weights: torch.Tensor) -> float:
    return float((tokens.square().sum(dim=(0, 2)) * weights).sum())


def _refit(linear: nn.Linear, equations: NormalEquations) -> tuple[float, float]:
    """Solve the equations for a layer in place; return the relative error before and after."""
    start = as_double(linear.weight.detach()).mT
    if linear.bias is not None:
        start = torch.cat([start, as_double(linear.bias.detach())[None]])
    solution, before, after = equations.solve(start)
    linear.weight.copy_(solution[: linear.in_features].mT)
    if linear.bias is not None:
        linear.bias.copy_(solution[-1])
    square = max(equations.target_square, 1e-30)
    return before / square, after / square
