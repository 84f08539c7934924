"""The device that a model is on, and what and in which mode it computes there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import nn

__all__ = [
    "Precision",
    "autocast",
    "best_device",
    "evaluating",
    "model_device",
    "is_out_of_memory",
    "precision_of",
]

Precision = Literal["float32", "bfloat16", "float16"]
"""In which matrix products are computed; weights are always float32."""


def best_device() -> torch.device:
    """A CUDA GPU, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def model_device(model: nn.Module) -> torch.device:
    """The device of a model's first parameter."""
    return next(model.parameters()).device


def precision_of(device: torch.device) -> Precision:
    """Return the usual precision of a device: mixed on a CUDA GPU, full elsewhere."""
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"


def autocast(
    device: torch.device, precision: Precision | None = None
) -> AbstractContextManager[object]:
    """Compute in ``precision``; by default in the usual precision of ``device``."""
    precision = precision or precision_of(device)
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each module's mode is what it was.

    Nor is code run that ``model.compile()`` made, which may know nothing of hooks.
    """
    modes = [(module, module.training) for module in model.modules()]
    compiled = [(m, m._compiled_call_impl) for m, _ in modes if m._compiled_call_impl is not None]
    try:
        model.eval()
        for module, _ in compiled:
            module._compiled_call_impl = None
        yield
    finally:
        for module, training in modes:
            module.training = training
        for module, call in compiled:
            module._compiled_call_impl = call


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may help. Each device has its own error; only CUDA's has a type."""
    text = str(error)
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in text or "can't allocate memory" in text)
    )
