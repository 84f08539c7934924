"""The device of a model, and the precision and mode in which it computes there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Literal, get_args

import torch
from packaging.version import Version
from torch import nn

from vit_ratio_opt.errors import InputError

__all__ = [
    "Precision",
    "as_double",
    "autocast",
    "best_device",
    "check_precision",
    "check_training_precision",
    "device_name",
    "evaluating",
    "free_memory",
    "has_float64",
    "is_out_of_memory",
    "model_device",
    "precision_of",
    "random_state",
    "random_state_kept",
    "resolve_device",
    "set_random_state",
    "synchronize",
]

Precision = Literal["float32", "bfloat16", "float16"]
"""Precision of matrix products; weights are always float32."""


def best_device() -> torch.device:
    """Return the accelerator of this machine that PyTorch finds, such as a GPU, else the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


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
    """Return the name of a device, such as ``"NVIDIA H100"``, or its type where it has no name."""
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return device.type if name is None else str(name(device))


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Give the memory that PyTorch keeps for later tensors back to the device."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def random_state(device: torch.device) -> torch.Tensor | None:
    """Return the state of the device's own random numbers; None for the CPU."""
    if device.type == "mps":  # takes no device before torch 2.8
        return torch.mps.get_rng_state()
    if device.type == "cpu":
        return None
    state: torch.Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Restore what :func:`random_state` returned for a device of the same type."""
    if device.type == "mps":
        torch.mps.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


@contextlib.contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Restore PyTorch's random state after the block, on the CPU and on ``device``."""
    before = random_state(device)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        if before is not None:
            set_random_state(before, device)


def has_float64(device: torch.device) -> bool:
    """Return whether the device computes in double precision; Apple's GPUs do not."""
    return device.type != "mps"


def as_double(values: torch.Tensor) -> torch.Tensor:
    """Return float64 values on the same device, or on the CPU where the device has none."""
    return (values if has_float64(values.device) else values.cpu()).double()


def model_device(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter."""
    return next(model.parameters()).device


def precision_of(device: torch.device) -> Precision:
    """Return the usual precision of a device: mixed on a GPU of NVIDIA, AMD or Intel, else full.

    A GPU that only emulates bfloat16 is faster in float16.
    """
    if device.type == "cuda":
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if has_it else "float16"
    return "bfloat16" if device.type == "xpu" else "float32"


def check_precision(precision: str | None) -> None:
    """Refuse an unknown precision; None is the usual one of the device.

    Raises:
        InputError: It is none of :data:`Precision`.
    """
    if precision is not None and precision not in get_args(Precision):
        raise InputError(
            f"`precision` must be one of {get_args(Precision)}, but got {precision!r}."
        )


def check_training_precision(precision: str | None, device: torch.device) -> None:
    """Refuse float16 where the gradients' scale needs float64, which Apple's GPUs do not have.

    Raises:
        InputError: PyTorch is older than 2.8, and the device is a GPU of Apple.
    """
    if precision == "float16" and device.type == "mps" and not _scales_on_mps():
        raise InputError(
            "Training in float16 on a GPU of Apple needs PyTorch 2.8 or newer, but this is "
            f"{torch.__version__}: give precision='float32' (--precision float32)."
        )


def _scales_on_mps() -> bool:
    return Version(torch.__version__) >= Version("2.8")


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
