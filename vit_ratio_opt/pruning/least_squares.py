"""Weighted ridge regression of a linear layer, with the ridge chosen by cross-validation."""

from __future__ import annotations

import functools
import math

import torch

from vit_ratio_opt.models.device import as_double
from vit_ratio_opt.pruning.options import CalibrationPrecision
from vit_ratio_opt.pruning.sums import RunningSum, gram, product

__all__ = ["NormalEquations"]

# Ridges that cross-validation chooses from, as shares of the mean squared input.
_RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_VALIDATED = 32  # outputs that choose, so that the choice costs little more than factorising

# Squares of the inputs, products with the targets, and the targets' sum of squares, in float64.
_Sums = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class NormalEquations:
    """Sums of a weighted least-squares problem ``weight @ x + bias = y``, in two halves.

    They take ``(inputs + 1)^2`` numbers, however many samples are added, and stay on the device of
    the samples if that computes in double precision.

    Args:
        bias: Whether the layer has a bias.
        precision: Precision of the inputs. Products of inputs in float32 are computed in double
            precision: with fewer samples than inputs, rounding would outweigh the ridge. Those of
            inputs in bfloat16, which are rounded more coarsely, are computed in float32. All are
            added in double precision.
    """

    def __init__(self, bias: bool, precision: CalibrationPrecision = "float32") -> None:
        self.bias = bias
        self.precision = precision
        self._halves: list[tuple[RunningSum, RunningSum, RunningSum]] = []
        self._added = 0

    def add(self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> None:
        """Add a batch.

        Batches go to the two halves in turn, so that the halves differ in their images.

        Args:
            inputs: ``(batch, tokens, inputs)``.
            targets: ``(batch, tokens, outputs)``.
            weights: Weight of each token, ``(tokens,)``.
        """
        counts = weights > 0
        x, y = inputs[:, counts], targets[:, counts]
        if self.precision == "bfloat16":
            x = x.bfloat16()
        else:
            x, y = as_double(x), as_double(y)
        # MPS converts while it copies, and has no float64: move first.
        roots = weights[counts].to(x.device).to(x.dtype).sqrt()[:, None]
        x, y = x * roots, (y * roots).to(x.dtype)
        if self.bias:
            x = torch.cat([x, roots.expand(len(x), -1, -1)], dim=2)
        x, y = x.flatten(0, 1), y.flatten(0, 1)
        square = (y.float() if y.dtype == torch.bfloat16 else y).square().sum()
        if self._added < 2:
            self._halves.append((RunningSum(), RunningSum(), RunningSum()))
        half = self._halves[self._added % 2]
        for total, value in zip(half, (gram(x), product(x, y), square), strict=True):
            total.add(value)
        self._added += 1

    def solve(self, start: torch.Tensor) -> tuple[torch.Tensor, float, float]:
        """Return the ridge solution nearest to ``start``.

        The ridge towards ``start`` is the one with which each half of the batches predicts the
        other best; a single batch takes the middle one. Whatever the ridge, the squared error on
        all batches is at most that of ``start``: a larger one would make ``start`` itself the
        better answer to the ridge problem.

        Args:
            start: ``(inputs [+ 1], outputs)``, the bias as the last row, in float64, on the device
                of the equations.

        Returns:
            The solution, the squared error of ``start`` and that of the solution.
        """
        halves = self.sums()
        whole, choice = halves[0], len(_RIDGES) // 2
        if len(halves) == 2:
            choice = self._choose_ridge(halves, start)
            whole = _sum(*halves)
        before = float(_error(whole, start))
        for ridge in _RIDGES[choice:]:
            solution = self._fit(whole, start, ridge)
            after = float(_error(whole, solution))
            if math.isfinite(after):  # else rounding outweighs the ridge
                break
        # Rounding alone can make an exact fit worse.
        return (solution, before, after) if after <= before else (start, before, before)

    def sums(self) -> list[_Sums]:
        """Return the sums of each half."""
        return [(a.total(), b.total(), c.total()) for a, b, c in self._halves]

    def _choose_ridge(self, halves: list[_Sums], start: torch.Tensor) -> int:
        """Return the index of the ridge."""
        outputs = slice(None, None, max(1, start.shape[1] // _VALIDATED))
        start = start[:, outputs]
        first, second = ((a, b[:, outputs], total) for a, b, total in halves)

        @functools.cache
        def error(choice: int) -> float:
            ridge = _RIDGES[choice]
            found = _error(second, self._fit(first, start, ridge))
            found = found + _error(first, self._fit(second, start, ridge))
            return float(found.nan_to_num(torch.inf))

        # Each ridge is two factorisations, so downhill from the better end. The error has one
        # minimum, but for few images, where it can have one at either end.
        last = len(_RIDGES) - 1
        choice, step = (0, 1) if error(0) < error(last) else (last, -1)
        while 0 <= choice + step <= last and error(choice + step) <= error(choice):
            choice += step
        return choice

    @property
    def target_square(self) -> float:
        """Return the weighted sum of squares of all targets."""
        return float(sum(total.total() for _, _, total in self._halves))

    def _fit(self, half: _Sums, start: torch.Tensor, ridge: float) -> torch.Tensor:
        """Return the solution of a ridge; NaN where rounding outweighs the ridge."""
        squares, products, _ = half
        diagonal = squares.diagonal()
        inputs = diagonal[: len(diagonal) - self.bias]
        added = (ridge * inputs.mean().clamp_min(1e-30)).expand(len(diagonal)).clone()
        if self.bias:
            added[-1] = 1e-12 * diagonal[-1]  # free, but for rounding
        system = squares.clone()
        system.diagonal().add_(added)
        factor, failed = torch.linalg.cholesky_ex(system)
        solution = start + torch.cholesky_solve(products - squares @ start, factor)
        return solution.where(failed == 0, torch.nan)


def _sum(one: _Sums, other: _Sums) -> _Sums:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _error(half: _Sums, solution: torch.Tensor) -> torch.Tensor:
    squares, products, total = half
    return (solution * (squares @ solution - 2 * products)).sum() + total
