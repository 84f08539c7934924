"""The stages of ``gpu.py`` that need no data set: ``speed`` and ``loop``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from itertools import product
from typing import Any

import timm
from gpu_pruned import Task
from speed import BATCHES, EFFORT, Contender, Mode, contenders, measure_speed

from vit_ratio_opt.latency.timing import TimingEffort
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.device import best_device

__all__ = ["loop", "speed"]

DEIT = "deit_small_patch16_224"
MODELS = (DEIT, "vit_base_patch16_224")
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
    yield from ()


def _model(name: str) -> ViT:
    model: ViT = timm.create_model(DEIT, **TINY) if name == "tiny" else timm.create_model(name)
    return model.eval().to(best_device())
