"""Sums over many batches that stay on the device of the batches and lose no digits there."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

from vit_ratio_opt.models.device import has_float64

__all__ = ["RunningSum", "gram", "product"]

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


def product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return ``first.T @ second`` of ``(n, M)`` and ``(n, K)``; those in bfloat16 in float32."""
    if first.dtype != torch.bfloat16:
        return first.mT @ second
    with _bfloat16_units(first.device):
        return first.float().mT @ second.float()


def gram(rows: torch.Tensor) -> torch.Tensor:
    """Return ``rows.T @ rows`` of ``(n, M)``, of which only one triangle is computed if large.

    Products of rows in bfloat16 are in float32.
    """
    if rows.dtype != torch.bfloat16:
        return _gram(rows)
    with _bfloat16_units(rows.device):
        return _gram(rows.float())


def _gram(rows: torch.Tensor) -> torch.Tensor:
    size = rows.shape[1]
    if size < _LEAST_SYMMETRIC:
        return rows.mT @ rows
    half = size // 2
    first, second = rows[:, :half], rows[:, half:]
    whole = rows.new_empty(size, size)
    whole[:half, :half] = _gram(first)
    whole[half:, half:] = _gram(second)
    whole[:half, half:] = across = first.mT @ second
    whole[half:, :half] = across.mT
    return whole


@contextlib.contextmanager
def _bfloat16_units(device: torch.device) -> Iterator[None]:
    """Let a CPU multiply float32 in its units for bfloat16, whose sums are float32.

    PyTorch has no product of bfloat16 with a float32 result on a CPU. The setting holds for the
    whole process, so only the main thread changes it: other threads multiply in float32, with
    sums that are rounded elsewhere.
    """
    matmul = getattr(torch.backends.mkldnn, "matmul", None)  # not before torch 2.9
    is_main = threading.current_thread() is threading.main_thread()
    if device.type != "cpu" or matmul is None or not is_main:
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
