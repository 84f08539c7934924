"""Passes of images through a model: their precision, and their size where memory is short."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

from vit_ratio_opt.models.device import free_memory, is_out_of_memory
from vit_ratio_opt.pruning.options import CalibrationPrecision

__all__ = ["halving", "in_precision"]

T = TypeVar("T")

_logger = logging.getLogger(f"optuna.{__name__}")


def halving(compute: Callable[[int], T], size: int, device: torch.device) -> T:
    """Return ``compute(size)``, with half of the size again and again while memory is short.

    Args:
        compute: Function of the number of images that pass through a model at once. It begins
            anew in each call.
        size: The largest number of images.
        device: Device of the model.
    """
    while True:
        try:
            return compute(size)
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        # Out of the handler: its traceback would keep the tensors of the pass.
        size //= 2
        free_memory(device)
        _logger.warning(f"The memory of {device} is short: {size} images at once from here on.")


def in_precision(
    device: torch.device, precision: CalibrationPrecision
) -> AbstractContextManager[object]:
    """Compute in ``precision``, whatever the caller's own autocast is.

    No weight is kept in bfloat16 between two passes: reconstruction changes weights in place.
    """
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    mixed = precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed, cache_enabled=False)
