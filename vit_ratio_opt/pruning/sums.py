"""Sums over many batches that stay on the device of the batches and lose no digits there."""

from __future__ import annotations

import torch

from vit_ratio_opt.models.device import has_float64

__all__ = ["RunningSum", "gram"]

# Products of fewer columns gain nothing from symmetry.
_LEAST_SYMMETRIC = 768


class RunningSum:
    """Sum of tensors of one shape, in double precision.

    A device without float64 keeps two float32 numbers for each sum, the second of them for what
    the first one rounds off (Knuth's two-sum).
    """

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None
        self._rest: torch.Tensor | None = None

    def add(self, value: torch.Tensor) -> None:
        """Add a tensor; it is read only."""
        if has_float64(value.device):
            self._sum = value.double().clone() if self._sum is None else self._sum.add_(value)
        elif self._sum is None or self._rest is None:
            self._sum, self._rest = value.float().clone(), torch.zeros_like(value)
        else:
            before, value = self._sum, value.float()
            self._sum = before + value
            added = self._sum - before
            self._rest += (before - (self._sum - added)) + (value - added)

    def total(self) -> torch.Tensor:
        """Return the sum in float64: on its device, or on the CPU where the device has none.

        Raises:
            ValueError: Nothing was added.
        """
        if self._sum is None:
            raise ValueError("nothing was added")
        if self._rest is None:
            return self._sum
        return self._sum.cpu().double() + self._rest.cpu().double()


def gram(rows: torch.Tensor) -> torch.Tensor:
    """Return ``rows.T @ rows`` of ``(n, M)``, of which only one triangle is computed if large."""
    size = rows.shape[1]
    if size < _LEAST_SYMMETRIC:
        return rows.mT @ rows
    half = size // 2
    first, second = rows[:, :half], rows[:, half:]
    product = rows.new_empty(size, size)
    product[:half, :half] = gram(first)
    product[half:, half:] = gram(second)
    product[:half, half:] = across = first.mT @ second
    product[half:, :half] = across.mT
    return product
