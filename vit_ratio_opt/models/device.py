"""The device of a model, and the precision and mode in which it computes there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Literal, get_args

import torch
from torch import nn

from vit_ratio_opt.errors import InputError

__all__ = [
    "Precision",
    "autocast",
    "best_device",
    "check_precision",
    "device_name",
    "evaluating",
    "model_device",
    "is_out_of_memory",
    "precision_of",
    "resolve_device",
]

Precision = Literal["float32", "bfloat16", "float16"]
"""Precision of matrix products; weights are always float32."""


def best_device() -> torch.device:
    """Return a CUDA GPU, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_device(device: torch.device | str | None) -> torch.device:
    """Return a device of this machine; :func:`best_device` for None.

    Raises:
        InputError: This machine has no such device.
    """
    if device is None:
        return best_device()
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
        return resolved
    except (RuntimeError, AssertionError, TypeError) as error:
        text = " ".join(str(error).split())
        raise InputError(
            f"`device` must be one of this machine, such as 'cuda:0' or 'cpu', but got "
            f"{str(device)!r}: {text:.200}"
        ) from None


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, such as ``"NVIDIA H100"``, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def model_device(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter."""
    return next(model.parameters()).device


def precision_of(device: torch.device) -> Precision:
    """Return the usual precision of a device: mixed on a CUDA GPU, full elsewhere."""
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"


def check_precision(precision: str | None) -> None:
    """Refuse an unknown precision; None is the usual one of the device.

    Raises:
        InputError: It is none of :data:`Precision`.
    """
    if precision is not None and precision not in get_args(Precision):
        raise InputError(
            f"`precision` must be one of {get_args(Precision)}, but got {precision!r}."
        )


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
    """Set evaluation mode inside the block and restore each module's mode afterwards.

    Code that ``model.compile()`` made is not run inside the block: it may ignore hooks.
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
    """Return whether a smaller batch may help. Only CUDA's error has a type of its own."""
    text = str(error)
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in text or "can't allocate memory" in text)
    )
