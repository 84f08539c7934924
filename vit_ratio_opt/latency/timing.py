"""Time models against each other on a device that other work disturbs.

Each model is timed between two runs of the same reference model, and its latency is the median of
the ratio to it: what else the machine does, and how fast its clock is, changes from minute to
minute and slows both. (Tried and worse on a busy machine: each model's shortest run, on its own or
against the reference's shortest run beside it.)
"""

from __future__ import annotations

import contextlib
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.device import Precision, autocast, evaluating, model_device, synchronize
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.models.surgery import shrink_to
from vit_ratio_opt.space.shape import BlockShape

__all__ = ["TimingEffort", "image_shape", "share_weights", "time_models", "time_runs"]


@dataclass(frozen=True, kw_only=True)
class TimingEffort:
    """How often models are timed.

    Args:
        turns: Turns of every model.
        least_turns: Turns that are taken even if they last longer than ``max_seconds``.
        max_seconds: Seconds after which no further turn begins.
        turn_seconds: Least duration of a turn, whose first run finds cold caches.
        least_runs: Least number of runs in a turn.
    """

    turns: int = 10
    least_turns: int = 7
    max_seconds: float = 60.0
    turn_seconds: float = 0.02
    least_runs: int = 2


def time_models(
    models: Sequence[torch.nn.Module],
    *,
    batch: int = 1,
    precision: Precision | None = None,
    effort: TimingEffort = TimingEffort(),
) -> list[float]:
    """Return the seconds that each model takes for a batch; all take turns with the first.

    Args:
        models: ViTs for images of one shape, on one device. Their modes are left as they were.
        batch: Images in a batch.
        precision: Precision in which models are timed; the usual one of the device by default.
        effort: How often models are timed.

    Raises:
        InputError: ``batch`` is below 1.
    """
    if batch < 1:
        raise InputError(f"The batch of a latency must be at least 1, but got {batch!r}.")
    models = [check_supported(model) for model in models]
    images = torch.randn(batch, *image_shape(models[0]), device=model_device(models[0]))

    def fastest(model: torch.nn.Module, runs: int) -> float:
        with torch.inference_mode(), autocast(images.device, precision):
            return min(time_runs(model, images, runs))

    order, shuffle = list(range(1, len(models))), random.Random(0).shuffle
    ratios: list[list[float]] = [[] for _ in models]
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        once = [fastest(model, effort.least_runs) for model in models]
        runs = [max(effort.least_runs, math.ceil(effort.turn_seconds / each)) for each in once]

        def turn(index: int) -> float:
            return fastest(models[index], runs[index])

        reference = [once[0], turn(0)]
        started = time.monotonic()
        for turns in range(effort.turns):
            if turns >= effort.least_turns and time.monotonic() > started + effort.max_seconds:
                break
            shuffle(order)
            for index in order:
                taken = turn(index)
                reference.append(turn(0))
                ratios[index].append(taken / statistics.fmean(reference[-2:]))
    best = min(reference)
    return [best, *(best * statistics.median(ratios[index]) for index in range(1, len(models)))]


def time_runs(model: torch.nn.Module, images: torch.Tensor, runs: int) -> list[float]:
    """Return the seconds of each forward pass of ``images``."""
    device, seconds = images.device, []
    for _ in range(runs):
        started = time.perf_counter()
        model(images)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds


def share_weights(model: ViT, blocks: Sequence[BlockShape]) -> ViT:
    """Return a model with ``blocks`` in the memory of ``model``'s weights, for timing only."""
    smaller = shrink_to(model, blocks)
    memory = dict(model.named_parameters())
    for name, parameter in smaller.named_parameters():
        values = memory[name].detach().flatten()[: parameter.numel()]
        parameter.data = values.view(parameter.shape)
    return smaller


def image_shape(model: torch.nn.Module) -> tuple[int, ...]:
    """Return the shape of one image, ``(channels, height, width)``."""
    patches: Any = model.patch_embed
    return patches.proj.in_channels, *patches.img_size
