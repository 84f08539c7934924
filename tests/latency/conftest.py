"""A device on which time adds up over the sizes of blocks, and a table that is measured on it."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.latency import timing
from vit_ratio_opt.latency.table import LatencyTable, measure_latency
from vit_ratio_opt.models.shape import shape_of


@pytest.fixture(scope="session")
def seconds_of() -> Callable[[VisionTransformer], float]:
    """The time of a model is a sum over the sizes of its blocks."""
    known: WeakKeyDictionary[VisionTransformer, float] = WeakKeyDictionary()

    def seconds(model: VisionTransformer) -> float:
        if model not in known:  # a model is timed many times
            known[model] = 1e-3 + sum(
                1e-6 * b.num_heads * b.head_dim + 3e-6 * b.num_heads + 2e-6 * b.hidden_dim
                for b in shape_of(model).blocks
            )
        return known[model]

    return seconds


@pytest.fixture
def exact_device(
    monkeypatch: pytest.MonkeyPatch, seconds_of: Callable[[VisionTransformer], float]
) -> list[int]:
    """Images of every turn on this device."""
    turns: list[int] = []

    def take(model: VisionTransformer, images: torch.Tensor, runs: int) -> list[float]:
        turns.append(len(images))
        return [seconds_of(model)] * runs

    monkeypatch.setattr(timing, "time_runs", take)
    return turns


@pytest.fixture(scope="session")
def exact_table(
    make_vit: Callable[..., VisionTransformer],
    seconds_of: Callable[[VisionTransformer], float],
) -> LatencyTable:
    """The table of ``tiny_vit`` on this device, measured once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "time_runs", lambda model, _, runs: [seconds_of(model)] * runs)
        return measure_latency(make_vit())
