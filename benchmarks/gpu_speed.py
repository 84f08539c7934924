"""The stages of ``gpu.py`` that need no data set: ``speed`` and ``loop``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from itertools import product
from typing import Any

import timm
from gpu_dense import MODEL, Training
from gpu_pruned import Task
from loop import measure_loops
from prune_time import measure_trials
from speed import BATCHES, EFFORT, Contender, Mode, contenders, measure_speed

from vit_ratio_opt.latency.timing import TimingEffort
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.device import best_device, precision_of

__all__ = ["loop", "speed"]

DEIT = "deit_small_patch16_224"
VIT_B = "vit_base_patch16_224"
MODELS = (DEIT, VIT_B)
SHARES = (0.75, 0.5, 0.25)
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}


def speed(*, rehearse: bool, compiles: bool) -> Iterator[Task]:
    """Yield the races of each model against what is left of it, by batch size and mode.

    Args:
        rehearse: Whether a tiny model runs, at one batch size.
        compiles: Whether models are compiled too.
    """

    @cache
    def models(name: str) -> list[Contender]:
        return contenders(_model(name), macs_ratios=SHARES)

    def measure(name: str, batch: int, mode: Mode) -> dict[str, Any]:
        effort = TimingEffort(turns=1, least_turns=1) if rehearse else EFFORT
        return {"rows": measure_speed(models(name), batch=batch, mode=mode, effort=effort)}

    is_cuda = best_device().type == "cuda"
    names, batches = (("tiny",), BATCHES[:1]) if rehearse else (MODELS, BATCHES)
    for name, batch in product(names, batches):
        modes: list[Mode] = ["eager"]
        modes += ["compiled"] * compiles
        if batch == 1 and is_cuda:  # elsewhere the kernels take longer than their launch
            modes += ["graph"]
            modes += ["compiled graph"] * compiles
        for mode in modes:
            key = {"model": name, "batch": batch, "mode": mode}
            yield key, partial(measure, name, batch, mode)


def loop(*, rehearse: bool) -> Iterator[Task]:
    """Yield the races of the built-in training loop against a bare one, then prune times.

    Args:
        rehearse: Whether a tiny model runs.
    """
    if rehearse:
        sizes, steps, turns = {"tiny": 8}, 1, 1
    else:
        sizes, steps, turns = {"d256": 512, DEIT: 256, VIT_B: 128}, 20, 7
    precision = precision_of(best_device())

    def race(name: str) -> dict[str, Any]:
        batch = sizes[name]
        return measure_loops(
            _model(name), batch=batch, steps=steps, turns=turns, precision=precision, fused=True
        )

    def prune(name: str) -> dict[str, Any]:
        measured = measure_trials(_model(name), 16 if rehearse else 512, precision)
        return {"precision": precision, "pruning": measured}

    for name in sizes:
        yield {"model": name, "measured": "images a second"}, partial(race, name)
    for name in sizes:
        yield {"model": name, "measured": "seconds of pruning"}, partial(prune, name)


def _model(name: str) -> ViT:
    """Return an untrained model: timm's, a tiny one, or the one of stage dense."""
    if name == "d256":
        small = {"img_size": 32, "patch_size": 4, "num_classes": 10, **Training().model}
        model: ViT = timm.create_model(MODEL, class_token=False, global_pool="avg", **small)
    else:
        model = timm.create_model(DEIT, **TINY) if name == "tiny" else timm.create_model(name)
    return model.eval().to(best_device())
