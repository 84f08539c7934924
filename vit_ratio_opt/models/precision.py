"""Choose the precision of a model on a CPU by timing it.

Whether bfloat16 is faster on a CPU depends on the processor, the model and the direction: with AMX
it more than doubles the speed of DeiT-S, and training a small model takes twice as long.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.device import (
    Precision,
    autocast,
    check_precision,
    evaluating,
    model_device,
    precision_of,
)
from vit_ratio_opt.models.shape import shape_of

__all__ = ["Precisions", "TimedPrecision", "faster_precision"]

# Smaller models are trained in minutes in any precision.
_LEAST_MACS = 50_000_000
_LEAST_SPEEDUP = 1.25
_LEAST_IMAGES, _LEAST_TOKENS = 8, 1536  # of a batch
_ROUNDS, _MAX_SECONDS = 3, 20.0


@dataclass(frozen=True, kw_only=True)
class Precisions:
    """The precision in which a model is trained, and that in which it is evaluated.

    Args:
        training: Precision of training.
        evaluation: Precision of evaluation.

    Raises:
        InputError: A precision is unknown.
    """

    training: Precision
    evaluation: Precision

    def __post_init__(self) -> None:
        check_precision(self.training)
        check_precision(self.evaluation)

    @classmethod
    def of(cls, given: Precisions | Precision | None, device: torch.device) -> Precisions:
        """Return both precisions; one that is given for both, or the usual one of the device."""
        if isinstance(given, Precisions):
            return given
        one = precision_of(device) if given is None else given
        return cls(training=one, evaluation=one)


@dataclass(frozen=True)
class TimedPrecision:
    """The precision of a model on its device, and why.

    Args:
        precision: The faster precision.
        speedup: How many times as fast as in float32 the model is in bfloat16; None where it was
            not timed.
    """

    precision: Precision
    speedup: float | None = None


def faster_precision(
    model: ViT, image_shape: tuple[int, ...], *, training: bool
) -> TimedPrecision:
    """Return the precision in which a model is faster on its device.

    A CPU that computes in bfloat16 is timed with a model of 50 million MACs or more, for some
    seconds; bfloat16 has to be 1.25 times as fast. Otherwise it is the usual precision of the
    device, see :func:`~vit_ratio_opt.models.device.precision_of`. Weights, gradients, modes and
    random state stay as they were.

    Args:
        model: Model whose precision is chosen.
        image_shape: Shape of its images, ``(channels, height, width)``.
        training: Whether forward and backward passes are timed, or forward passes alone.
    """
    device = model_device(model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    shape = shape_of(model)
    is_timed = device.type == "cpu" and _computes_bfloat16() and shape.macs >= _LEAST_MACS
    if not is_timed or (training and not weights):
        return TimedPrecision(precision_of(device))
    count = max(_LEAST_IMAGES, math.ceil(_LEAST_TOKENS / shape.tokens))
    # What one thread computed is known, whatever else the machine does.
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    images = torch.randn(count, *image_shape, generator=torch.Generator().manual_seed(0))

    def seconds(precision: Precision) -> float:
        started = now()
        with torch.inference_mode(not training), autocast(device, precision):
            outputs = model(images)
        if training:
            torch.autograd.grad(outputs.float().sum(), weights, allow_unused=True)
        return now() - started

    with evaluating(model), torch.enable_grad():
        speedup = _speedup(seconds)
    return TimedPrecision("bfloat16" if speedup >= _LEAST_SPEEDUP else "float32", speedup)


def _speedup(seconds: Callable[[Precision], float]) -> float:
    """Return the time in float32 by that in bfloat16; both take turns on a machine in use."""
    precisions: tuple[Precision, Precision] = ("float32", "bfloat16")
    started = time.monotonic()
    for precision in precisions:  # the first run prepares kernels
        seconds(precision)
    ratios: list[float] = []
    while len(ratios) < _ROUNDS:
        if ratios and time.monotonic() > started + _MAX_SECONDS:
            break
        full, half = map(seconds, precisions)
        ratios.append(full / half)
    return statistics.median(ratios)


def _computes_bfloat16() -> bool:
    """Return whether the CPU has instructions for bfloat16: AMX, AVX-512 or those of Arm."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is None:  # not in torch 2.7
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    names = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
    return any(capabilities().get(name, False) for name in names)
