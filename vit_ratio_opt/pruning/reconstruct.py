"""Least squares after pruning: what is left is refitted to give what the dense model gave.

``proj`` and ``fc2``, block by block, on the stream of the pruned model, so that a block also
corrects what the blocks before it got wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import LayerScale
from torch import nn

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT, stages
from vit_ratio_opt.models.device import evaluating
from vit_ratio_opt.models.family import Branch
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.models.weights import check_full_precision, check_weights
from vit_ratio_opt.pruning.batches import image_batches, image_means, tokens_at
from vit_ratio_opt.pruning.calibration import Calibration

__all__ = ["NormalEquations", "embed", "repair"]

# Ridges that the two halves of the images choose from, as shares of the mean squared input.
_RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_JUDGES = 32  # outputs that choose, so that the choice costs little more than factorising
# An error of the stream of this size, squared and relative, is rounding.
_ROUNDING = 1e-10


# Squares of the inputs, products with the targets, and the targets' sum of squares.
_Sums = tuple[torch.Tensor, torch.Tensor, float]


@dataclass
class NormalEquations:
    """Sums of a weighted least-squares problem ``weight @ x + bias = y``, in two halves.

    They take ``(inputs + 1)^2`` numbers, however many samples are added.
    """

    bias: bool
    halves: list[_Sums] = field(default_factory=list)
    added: int = 0

    def add(self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> None:
        """Add a batch: ``(B, N, inputs)``, ``(B, N, outputs)``, the tokens' weights ``(N,)``.

        Batches go to the two halves in turn, so that these differ in their images.
        """
        counts = weights > 0
        # With fewer samples than inputs, rounding to single precision would outweigh the ridge.
        x, y = (_double(values[:, counts]) for values in (inputs, targets))
        if self.bias:
            x = nn.functional.pad(x, (0, 1), value=1.0)
        roots = weights[counts].to(x).sqrt()[:, None]
        x, y = (x * roots).flatten(0, 1), (y * roots).flatten(0, 1)
        sums = (x.mT @ x).cpu(), (x.mT @ y).cpu(), float(y.square().sum())
        if self.added < 2:
            self.halves.append(sums)
        else:
            half = self.added % 2
            self.halves[half] = _together(self.halves[half], sums)
        self.added += 1

    def solve(self, start: torch.Tensor) -> tuple[torch.Tensor, float, float]:
        """The solution nearest to ``start``, both ``(inputs [+ 1], outputs)``.

        The ridge towards ``start`` is the one with which each half of the batches foretells the
        other best; one batch alone chooses nothing and takes the middle one. Whatever the ridge,
        the squared error on all batches is at most that of ``start``: a larger one would make
        ``start`` itself the better answer to the ridge problem.

        Returns:
            The solution, the squared error of ``start`` and that of the solution.
        """
        whole = self.halves[0]
        ridge = _RIDGES[len(_RIDGES) // 2]
        if len(self.halves) == 2:
            ridge = self._choose_ridge(start)
            whole = _together(*self.halves)
        solution = self._fit(whole, start, ridge)
        before, after = _error(whole, start), _error(whole, solution)
        # Rounding alone can make an exact fit worse.
        return (solution, before, after) if after <= before else (start, before, before)

    def _choose_ridge(self, start: torch.Tensor) -> float:
        judges = slice(None, None, max(1, start.shape[1] // _JUDGES))
        start = start[:, judges]
        first, second = ((a, b[:, judges], total) for a, b, total in self.halves)

        def foretold(ridge: float) -> float:
            return _error(second, self._fit(first, start, ridge)) + _error(
                first, self._fit(second, start, ridge)
            )

        return min(_RIDGES, key=foretold)

    @property
    def target_square(self) -> float:
        """Weighted sum of squares of all targets."""
        return sum(total for _, _, total in self.halves)

    def _fit(self, half: _Sums, start: torch.Tensor, ridge: float) -> torch.Tensor:
        squares, products, _ = half
        diagonal = squares.diagonal()
        inputs = diagonal[: len(diagonal) - self.bias]
        added = torch.full_like(diagonal, ridge * float(inputs.mean().clamp_min(1e-30)))
        if self.bias:
            added[-1] = 1e-12 * diagonal[-1]  # free, but for rounding
        factor = torch.linalg.cholesky(squares + torch.diag(added))
        return start + torch.cholesky_solve(products - squares @ start, factor)


def _double(values: torch.Tensor) -> torch.Tensor:
    return (values.cpu() if values.device.type == "mps" else values).double()


def _together(one: _Sums, other: _Sums) -> _Sums:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _error(half: _Sums, solution: torch.Tensor) -> float:
    squares, products, total = half
    return float((solution * (squares @ solution - 2 * products)).sum()) + total


def repair(
    pruned: ViT, images: Iterable[torch.Tensor], calibration: Calibration
) -> list[tuple[float, float]]:
    """Refit ``proj`` and ``fc2`` of ``pruned`` in place, so that its stream follows the dense one.

    What the dense model gave on the same images, at some tokens of each, is in ``calibration``, so
    this is one forward pass of the pruned model and a few systems of equations.

    Memory: the stream of the pruned model, ``images * tokens * width`` numbers, and the inputs of
    the layer in hand; the equations themselves do not grow with the images.

    Args:
        pruned: Made from the dense model, with as many blocks of the same width.
        images: The normalised batches ``(batch, channels, height, width)`` that ``calibration`` is
            made from, on the model's device.
        calibration: Of the dense model.

    Returns:
        By refitted layer, attention and FFN in turn, the weighted squared error before and after,
        as shares of the target's square. None is larger after than before. Layers that have
        nothing to correct but rounding errors are left as they are and have no entry.

    Raises:
        InputError: The model, the images and the calibration do not belong together, or the
            model's weights are not finite numbers in float32.
        UnsupportedModelError: The model cannot be pruned.
    """
    pruned = check_supported(pruned)
    check_full_precision(pruned)
    check_weights(pruned)
    if not isinstance(calibration, Calibration):
        raise InputError(
            f"`calibration` must be a Calibration, but is a {type(calibration).__name__}: "
            "`calibrate(dense, images)` gives one."
        )
    shape, images = shape_of(pruned), image_batches(pruned, images)
    count = sum(len(batch) for batch in images)
    blocks = calibration.blocks
    width = blocks[0].attention_target.shape[2]
    if (len(blocks), width) != (len(shape.blocks), shape.embed_dim):
        raise InputError(
            f"The calibration is of a model with {len(blocks)} blocks of width {width}, but "
            f"`pruned` has {len(shape.blocks)} of width {shape.embed_dim}."
        )
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
    device = images[0].device
    sizes = [len(batch) for batch in images]
    positions = torch.split(calibration.positions.to(device), sizes)
    errors = []
    with evaluating(pruned), torch.inference_mode():
        begun = [embed(pruned, batch) for batch in images]
        streams, told = [stream for stream, _ in begun], {"attention": begun[0][1]}
        for stage in stages(pruned):
            ends = [_End(branch, told.get(branch.kind, {})) for branch in stage]
            inputs = [[end.inputs(stream) for stream in streams] for end in ends]
            for number, branch in enumerate(stage):
                known = blocks[branch.index]
                target, weights = known.attention_target, known.attention_weights
                if branch.kind == "ffn":
                    target, weights = known.ffn_target, known.ffn_weights
                wanted = []
                for batch, (goal, where) in enumerate(
                    zip(torch.split(target.to(device), sizes), positions, strict=True)
                ):
                    lacking = goal - tokens_at(streams[batch], where)
                    for other, end in enumerate(ends):
                        if other != number:
                            lacking = lacking - end.add(tokens_at(inputs[other][batch], where))
                    wanted.append(lacking)
                sampled = [
                    tokens_at(x, where) for x, where in zip(inputs[number], positions, strict=True)
                ]
                scale = sum(_square(goal, weights.to(goal)) for goal in torch.split(target, sizes))
                refitted = ends[number].refit(sampled, wanted, weights.to(device), scale)
                if refitted is not None:
                    errors.append(refitted)
            for batch in range(len(streams)):
                for end, own in zip(ends, inputs, strict=True):
                    streams[batch] = streams[batch] + end.add(own[batch])
    return errors


class _Reached(Exception):
    """The first block is."""


def embed(model: ViT, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """What the first block is given: the stream ``(batch, tokens, width)``, and the rest by name.

    Whatever a model makes of its images before, the pass ends there. The rest is what the
    attention of every block is told besides, such as a rotary embedding.
    """
    given: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def stop(module: nn.Module, args: tuple[torch.Tensor], told: dict[str, Any]) -> None:
        given.append((args[0], told))
        raise _Reached

    hook = model.blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with contextlib.suppress(_Reached):
            model.forward_features(images)
    finally:
        hook.remove()
    return given[0]


class _End:
    """A residual branch from its last layer on; ``told`` is what its module is told besides."""

    def __init__(self, branch: Branch, told: dict[str, Any]) -> None:
        self._branch, self.layer, self._after = branch, branch.last, branch.after
        self._told = told

    def inputs(self, stream: torch.Tensor) -> torch.Tensor:
        """What the last layer is given."""
        module, name = self._branch.module, self._branch.last_name
        setattr(module, name, nn.Identity())
        try:
            inputs: torch.Tensor = module(self._branch.before(stream), **self._told)
        finally:
            setattr(module, name, self.layer)
        return inputs

    def add(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the branch adds to the stream."""
        added: torch.Tensor = self._after(self.layer(inputs))
        return added

    def refit(
        self,
        inputs: Sequence[torch.Tensor],
        wanted: Sequence[torch.Tensor],
        weights: torch.Tensor,
        scale: float,
    ) -> tuple[float, float] | None:
        """Make the branch add what is ``wanted``, as nearly as it can.

        Args:
            inputs: Of the last layer, at the sampled tokens, batch by batch.
            wanted: What the branch is to add to the stream there.
            weights: Of the tokens.
            scale: What an error is small against.

        Returns:
            The squared error before and after as a share of the target's square; None where there
            is nothing to correct, or nothing was found to be better.
        """
        after = self._after
        is_affine = isinstance(after, nn.LayerNorm) and None not in (after.weight, after.bias)
        if not is_affine and not isinstance(after, (nn.Identity, LayerScale)):
            return None  # such as an RMSNorm, for which there are no equations here
        equations = NormalEquations(self.layer.bias is not None)
        before = 0.0
        for x, lacking in zip(inputs, wanted, strict=True):
            equations.add(x, self._ungated(x, lacking), weights.to(x))
            before += _square(lacking - self.add(x), weights.to(x))
        if before <= _ROUNDING * scale:
            return None
        if not isinstance(self._after, nn.LayerNorm):
            return _refit(self.layer, equations)
        # Through a norm the equations are only nearly what is wanted.
        kept = {name: tensor.clone() for name, tensor in self.layer.state_dict().items()}
        refitted = _refit(self.layer, equations)
        pairs = zip(inputs, wanted, strict=True)
        if sum(_square(y - self.add(x), weights.to(x)) for x, y in pairs) > before:
            self.layer.load_state_dict(kept)
            return None
        return refitted

    def _ungated(self, inputs: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        """What the last layer has to give for the branch to add ``added``."""
        after: Any = self._after
        scale: torch.Tensor | None
        if isinstance(after, nn.LayerNorm):  # with the mean and spread that the layer gives now
            now = self.layer(inputs)
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
    start = linear.weight.detach().double().cpu().mT
    if linear.bias is not None:
        start = torch.cat([start, linear.bias.detach().double().cpu()[None]])
    solution, before, after = equations.solve(start)
    linear.weight.copy_(solution[: linear.in_features].mT)
    if linear.bias is not None:
        linear.bias.copy_(solution[-1])
    square = max(equations.target_square, 1e-30)
    return before / square, after / square
