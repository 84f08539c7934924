"""Weighted ridge regression of a linear layer, with the ridge chosen by cross-validation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from vit_ratio_opt.models.device import as_double

__all__ = ["NormalEquations"]

# Ridges that cross-validation chooses from, as shares of the mean squared input.
_RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_VALIDATED = 32  # outputs that choose, so that the choice costs little more than factorising

# Squares of the inputs, products with the targets, and the targets' sum of squares.
_Sums = tuple[torch.Tensor, torch.Tensor, float]


@dataclass
class NormalEquations:
    """Sums of a weighted least-squares problem ``weight @ x + bias = y``, in two halves.

    They take ``(inputs + 1)^2`` numbers, however many samples are added.

    Args:
        bias: Whether the layer has a bias.
        halves: Sums of each half of the batches.
        added: Number of batches added.
    """

    bias: bool
    halves: list[_Sums] = field(default_factory=list)
    added: int = 0

    def add(self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> None:
        """Add a batch.

        Batches go to the two halves in turn, so that the halves differ in their images.

        Args:
            inputs: ``(batch, tokens, inputs)``.
            targets: ``(batch, tokens, outputs)``.
            weights: Weight of each token, ``(tokens,)``.
        """
        counts = weights > 0
        # With fewer samples than inputs, rounding to single precision would outweigh the ridge.
        x, y = (as_double(values[:, counts]) for values in (inputs, targets))
        if self.bias:
            x = nn.functional.pad(x, (0, 1), value=1.0)
        roots = weights[counts].to(x).sqrt()[:, None]
        x, y = (x * roots).flatten(0, 1), (y * roots).flatten(0, 1)
        sums = (x.mT @ x).cpu(), (x.mT @ y).cpu(), float(y.square().sum())
        if self.added < 2:
            self.halves.append(sums)
        else:
            half = self.added % 2
            self.halves[half] = _sum(self.halves[half], sums)
        self.added += 1

    def solve(self, start: torch.Tensor) -> tuple[torch.Tensor, float, float]:
        """Return the ridge solution nearest to ``start``.

        The ridge towards ``start`` is the one with which each half of the batches predicts the
        other best; a single batch takes the middle one. Whatever the ridge, the squared error on
        all batches is at most that of ``start``: a larger one would make ``start`` itself the
        better answer to the ridge problem.

        Args:
            start: ``(inputs [+ 1], outputs)``, the bias as the last row.

        Returns:
            The solution, the squared error of ``start`` and that of the solution.
        """
        whole = self.halves[0]
        ridge = _RIDGES[len(_RIDGES) // 2]
        if len(self.halves) == 2:
            ridge = self._choose_ridge(start)
            whole = _sum(*self.halves)
        solution = self._fit(whole, start, ridge)
        before, after = _error(whole, start), _error(whole, solution)
        # Rounding alone can make an exact fit worse.
        return (solution, before, after) if after <= before else (start, before, before)

    def _choose_ridge(self, start: torch.Tensor) -> float:
        outputs = slice(None, None, max(1, start.shape[1] // _VALIDATED))
        start = start[:, outputs]
        first, second = ((a, b[:, outputs], total) for a, b, total in self.halves)

        def validation_error(ridge: float) -> float:
            return _error(second, self._fit(first, start, ridge)) + _error(
                first, self._fit(second, start, ridge)
            )

        return min(_RIDGES, key=validation_error)

    @property
    def target_square(self) -> float:
        """Return the weighted sum of squares of all targets."""
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


def _sum(one: _Sums, other: _Sums) -> _Sums:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _error(half: _Sums, solution: torch.Tensor) -> float:
    squares, products, total = half
    return float((solution * (squares @ solution - 2 * products)).sum()) + total
