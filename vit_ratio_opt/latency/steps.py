"""Find by timing the number of which sizes should be multiples on a device."""

from __future__ import annotations

from typing import Any

from vit_ratio_opt.latency.deployed import cast_weights
from vit_ratio_opt.latency.timing import share_weights, time_models, timed_precision
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.device import Precision
from vit_ratio_opt.models.shape import read_shape
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.pruning.rounding import STEPS, fitting_step
from vit_ratio_opt.space.costs import Engine
from vit_ratio_opt.space.shape import BlockShape, ViTShape

__all__ = ["fastest_step"]

_LEAST_LOSS = 1.02  # smaller differences are noise


def fastest_step(
    model: ViT,
    *,
    least: int = 1,
    precision: Precision | None = None,
    engine: Engine = "eager",
    **how: Any,
) -> int:
    """Return the smallest number of which sizes should be multiples.

    A model of about half of the ranks and neurons, in multiples of 32, is timed against models
    whose ranks and neurons are fewer by 1, 8 and 16. While a smaller model takes longer, its
    step is passed over for the next.

    Args:
        model: The dense model, on the device.
        least: Smallest number that is returned, of :data:`~vit_ratio_opt.pruning.rounding.STEPS`.
        precision: Precision of weights and activations; the usual one of the device by default.
        engine: What runs the models.
        how: Other arguments of :func:`vit_ratio_opt.latency.timing.time_models`.
    """
    model = cast_weights(check_supported(model), timed_precision(precision, engine))
    shape = read_shape(model)
    steps = [step for step in STEPS if step >= least and fitting_step(shape, step) == step]
    if len(steps) < 2:
        return fitting_step(shape, least)
    most = steps[-1]
    shapes = [_halved(shape, most, fewer) for fewer in (0, *steps[:-1])]
    models = [share_weights(model, blocks) for blocks in shapes]
    whole, *smaller = time_models(models, precision=precision, engine=engine, **how)
    for step, seconds in zip(steps[:-1], smaller, strict=True):
        if seconds <= _LEAST_LOSS * whole:
            return step
    return most


def _halved(shape: ViTShape, step: int, fewer: int) -> list[BlockShape]:
    """Return blocks of half the ranks and neurons, in multiples of ``step``, less ``fewer``."""

    def half(size: int) -> int:
        return max(step, size // 2 // step * step) - fewer

    return [
        BlockShape(
            block.num_heads,
            block.head_dim if shape.whole_heads else half(block.head_dim),
            half(block.hidden_dim),
        )
        for block in shape.blocks
    ]
