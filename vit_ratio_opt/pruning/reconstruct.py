"""Least squares after pruning: what is left is refitted to give what the dense model gave.

Two uses of the same equations:

- :func:`repair` refits ``proj`` and ``fc2``, block by block, on the stream of the pruned model, so
  that a block also corrects what the blocks before it got wrong.
- :func:`elimination_order` removes hidden neurons in the order in which that hurts least when the
  others are refitted after every removal (optimal brain surgeon, Hassibi 1993, for whole columns
  as in ZipLM, Kurtic 2023). MoDeGPT's choice by ridge leverage scores (Lin 2024) considers the
  activations alone; this considers what fc2 does with them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.pruning.surgery import evaluating, shape_of

__all__ = ["NormalEquations", "elimination_order", "embed", "repair"]

# Ridges that the two halves of the images choose from, as shares of the mean squared input.
_RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_JUDGES = 32  # outputs that choose, so that the choice costs little more than factorising
_STEPS = 64  # in which the neurons of a block are eliminated, at least


def elimination_order(
    covariance: torch.Tensor, weight: torch.Tensor, samples: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The order in which inputs of a linear layer are best removed, with the rest refitted.

    Args:
        covariance: Of the inputs, ``(M, M)``; not centred where the layer has no bias.
        weight: ``(E, M)``, in any E coordinates in which squared length is the loss.
        samples: That the covariance is made from. The ridge is the mean variance times
            ``M / samples``, which is what the covariance of so few samples may be wrong by.

    Returns:
        Indices ``(M,)``, first to go first, and what each adds to the loss, ``(M,)``, when those
        before it are gone. Large layers lose several at once, in some 64 steps.
    """
    size = len(covariance)
    covariance, weight = covariance.double(), weight.double()
    ridge = covariance.diagonal().mean().clamp_min(1e-30) * max(size / samples, 1e-8)
    inverse = torch.linalg.inv(covariance + ridge * torch.eye(size, dtype=torch.float64))
    left = torch.arange(size)
    order, losses = [], []
    while len(left):
        scores = weight.square().sum(dim=0) / inverse.diagonal()
        count = min(max(1, size // _STEPS), len(left))
        lowest = scores.topk(count, largest=False)
        order.append(left[lowest.indices])
        losses.append(lowest.values)
        gone = lowest.indices
        stays = torch.ones(len(left), dtype=torch.bool)
        stays[gone] = False
        stay = stays.nonzero()[:, 0]
        rows = inverse[gone]
        share = torch.linalg.solve(rows[:, gone], rows[:, stay])
        weight = weight[:, stay] - weight[:, gone] @ share
        # index_select twice is several times faster than indexing with a grid.
        inverse = inverse.index_select(0, stay).index_select(1, stay)
        inverse.addmm_(rows[:, stay].mT, share, alpha=-1)
        left = left[stay]
    return torch.cat(order), torch.cat(losses)


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
        roots = weights[counts].sqrt()[:, None]
        x, y = inputs[:, counts], targets[:, counts]
        if self.bias:
            x = nn.functional.pad(x, (0, 1), value=1.0)
        x, y = (x * roots).flatten(0, 1), (y * roots).flatten(0, 1)
        sums = (
            (x.mT @ x).double().cpu(),
            (x.mT @ y).double().cpu(),
            float(y.double().square().sum()),
        )
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


def _together(one: _Sums, other: _Sums) -> _Sums:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _error(half: _Sums, solution: torch.Tensor) -> float:
    squares, products, total = half
    return float((solution * (squares @ solution - 2 * products)).sum()) + total


def repair(
    pruned: VisionTransformer,
    dense: VisionTransformer,
    images: Iterable[torch.Tensor],
    token_weights: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> list[tuple[float, float]]:
    """Refit ``proj`` and ``fc2`` of ``pruned`` in place, so that its stream follows the dense one.

    Memory: the streams of both models, ``2 * images * tokens * width`` numbers, and the inputs of
    the layer in hand; the equations themselves do not grow with the images.

    Args:
        pruned: Made from ``dense``, with as many blocks of the same width; in evaluation mode.
        dense: On the same device.
        images: Normalised batches ``(batch, channels, height, width)``, on that device.
        token_weights: By block, what an error at each token counts for, ``(tokens,)``, after the
            attention and after the FFN. Tokens of weight 0 are left out, such as all patches of
            the last block when the class token alone is classified.

    Returns:
        By refitted layer, attention and FFN in turn, the weighted squared error before and after,
        as shares of the target's square. None is larger after than before.

    Raises:
        InputError: The models do not belong together, or there are no images.
        UnsupportedModelError: One of them cannot be pruned.
    """
    shapes = shape_of(pruned), shape_of(dense)
    if len({(shape.tokens, shape.embed_dim, len(shape.blocks)) for shape in shapes}) != 1:
        raise InputError(
            "`pruned` must have the blocks, tokens and width of `dense`, but has not."
        )
    errors = []
    with evaluating(pruned), evaluating(dense), torch.inference_mode():
        streams = [(embed(dense, batch), embed(pruned, batch)) for batch in images]
        if not streams:
            raise InputError("The repair needs at least one batch of images, but got none.")
        differ = any(not torch.equal(*pair) for pair in streams)
        for dense_block, block, weights in zip(
            dense.blocks, pruned.blocks, token_weights, strict=True
        ):
            for names, weight in zip(_BRANCHES, weights, strict=True):
                theirs, ours = _Branch(dense_block, *names), _Branch(block, *names)
                differ = differ or not _same(theirs.module, ours.module)
                equations = NormalEquations(ours.layer.bias is not None)
                inputs = []
                for index, (target, stream) in enumerate(streams):
                    target = target + theirs.add(theirs.inputs(target))
                    inputs.append(ours.inputs(stream))
                    if differ:
                        equations.add(inputs[-1], ours.ungated(target - stream), weight)
                    streams[index] = target, stream
                if differ:
                    errors.append(_refit(ours.layer, equations))
                for index, (target, stream) in enumerate(streams):
                    streams[index] = target, stream + ours.add(inputs[index])
    return errors


def embed(model: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """What the first block is given, ``(batch, tokens, width)``."""
    x = model._pos_embed(model.patch_embed(images))
    tokens: torch.Tensor = model.norm_pre(model.patch_drop(x))
    return tokens


_BRANCHES = (("norm1", "attn", "proj", "ls1"), ("norm2", "mlp", "fc2", "ls2"))


class _Branch:
    """One of the two residual branches of a block, taken apart before its last layer."""

    def __init__(self, block: nn.Module, norm: str, module: str, layer: str, gate: str) -> None:
        self.norm, self.module = getattr(block, norm), getattr(block, module)
        self._name, self.gate = layer, getattr(block, gate)

    @property
    def layer(self) -> nn.Linear:
        layer: nn.Linear = getattr(self.module, self._name)
        return layer

    def inputs(self, stream: torch.Tensor) -> torch.Tensor:
        """What the last layer is given."""
        layer = self.layer
        setattr(self.module, self._name, nn.Identity())
        try:
            inputs: torch.Tensor = self.module(self.norm(stream))
        finally:
            setattr(self.module, self._name, layer)
        return inputs

    def add(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the branch adds to the stream."""
        added: torch.Tensor = self.gate(self.layer(inputs))
        return added

    def ungated(self, added: torch.Tensor) -> torch.Tensor:
        """What the last layer has to give for the branch to add ``added``."""
        scale = getattr(self.gate, "gamma", None)  # of timm's LayerScale
        return added if scale is None else torch.where(scale == 0, 0.0, added / scale)


def _same(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


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
