"""Time models against each other on a device that other work disturbs.

Each model is timed between two runs of the same reference model, and its latency is the median of
the ratio to it: what else the machine does, and how fast its clock is, changes from minute to
minute and slows both. (Tried and worse on a busy machine: each model's shortest run, on its own or
against the reference's shortest run beside it.)
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.latency.deployed import (
    Run,
    cast_weights,
    clock_runs,
    deployed,
    is_graph,
    time_runs,
)
from vit_ratio_opt.latency.sessions import find_provider, open_session
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.device import Precision
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.models.surgery import shrink_to
from vit_ratio_opt.space.costs import Engine
from vit_ratio_opt.space.shape import BlockShape

__all__ = [
    "TimingEffort",
    "image_shape",
    "race",
    "random_images",
    "share_weights",
    "time_models",
    "timed_precision",
]

_MOST_SESSIONS = 8  # beside that of the reference


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
    engine: Engine = "eager",
    effort: TimingEffort = TimingEffort(),
) -> list[float]:
    """Return the seconds that each model takes for a batch, run as it would be deployed.

    See :mod:`vit_ratio_opt.latency.deployed` and :mod:`vit_ratio_opt.latency.sessions`. All models
    take turns with the first.

    Args:
        models: ViTs for images of one shape, on one device. Their modes are left as they were.
        batch: Images in a batch.
        precision: Precision of weights and activations; the usual one of the device by default.
        engine: What runs the models. ONNX Runtime runs them in float32.
        effort: How often models are timed.

    Raises:
        InputError: ``batch`` is below 1, a model cannot be captured as a CUDA graph, or ONNX
            Runtime cannot run one on its device.
    """
    if batch < 1:
        raise InputError(f"The batch of a latency must be at least 1, but got {batch!r}.")
    precision = timed_precision(precision, engine)
    models = [cast_weights(check_supported(model), precision) for model in models]
    images = random_images(models[0], batch)
    if engine == "onnxruntime":
        return _race_sessions(models, images, effort)
    graph = is_graph(images.device, batch)
    with deployed(models, images, is_compiled=engine == "compiled", is_graph=graph) as runs:
        return race([partial(_fastest, run, images) for run in runs], effort)


def timed_precision(precision: Precision | None, engine: Engine) -> Precision | None:
    """Return the precision of the weights that are timed: exported files are in float32."""
    return "float32" if engine == "onnxruntime" else precision


def _race_sessions(
    models: Sequence[torch.nn.Module], images: torch.Tensor, effort: TimingEffort
) -> list[float]:
    """Return the seconds of each model in ONNX Runtime.

    A session holds its own copy of the weights, so a few models at once take turns with the first,
    and are closed before the next few.
    """
    provider = find_provider(images.device)

    def contender(model: torch.nn.Module) -> Callable[[int], float]:
        run = open_session(model, images, provider)
        return lambda runs: min(clock_runs(run, images, runs))

    first, *others = models
    reference, best, ratios = contender(first), math.inf, [1.0]
    for start in range(0, max(1, len(others)), _MOST_SESSIONS):
        few = others[start : start + _MOST_SESSIONS]
        whole, *taken = race([reference, *map(contender, few)], effort)
        best, ratios = min(best, whole), ratios + [seconds / whole for seconds in taken]
    return [best * ratio for ratio in ratios]


def random_images(model: torch.nn.Module, batch: int) -> torch.Tensor:
    """Return a batch of random images of the shape, device and precision of a model's weights."""
    weight = next(model.parameters())
    return torch.randn(batch, *image_shape(model), device=weight.device, dtype=weight.dtype)


def _fastest(run: Run, images: torch.Tensor, runs: int) -> float:
    return min(time_runs(run, images, runs))


def race(
    contenders: Sequence[Callable[[int], float]], effort: TimingEffort = TimingEffort()
) -> list[float]:
    """Return the seconds that each contender takes, in turns with the first.

    Args:
        contenders: Functions that take a number of runs and return the seconds of the fastest.
        effort: How often each of them is called.
    """
    order, shuffle = list(range(1, len(contenders))), random.Random(0).shuffle
    ratios: list[list[float]] = [[] for _ in contenders]
    once = [fastest(effort.least_runs) for fastest in contenders]
    runs = [max(effort.least_runs, math.ceil(effort.turn_seconds / each)) for each in once]

    def turn(index: int) -> float:
        return contenders[index](runs[index])

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
    return [
        best,
        *(best * statistics.median(ratios[index]) for index in range(1, len(contenders))),
    ]


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
