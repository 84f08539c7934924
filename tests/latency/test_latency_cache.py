"""Tests for the cache of latency tables."""

import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.latency import cache
from vit_ratio_opt.latency.cache import cached_latency
from vit_ratio_opt.latency.table import LatencyTable

TABLE = {
    "heads": (1,), "ranks": (1,), "hidden": (1,), "attention": ((0.0,),), "ffn": (0.0,),
    "rest": 1.0, "conditions": {}, "error": 0.01,
}  # fmt: skip


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that a table was measured."""
    calls: list[int] = []

    def count(*args: object, **options: object) -> LatencyTable:
        calls.append(1)
        return LatencyTable(**TABLE)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "measure_latency", count)
    return calls


def test_a_table_is_measured_once_for_the_same_conditions(
    tiny_vit: VisionTransformer,
    make_vit: Callable[..., VisionTransformer],
    tmp_path: Path,
    measured: list[int],
) -> None:
    first = cached_latency(tiny_vit, tmp_path)
    other_weights = make_vit()
    with torch.no_grad():
        other_weights.head.weight.add_(1.0)
    assert cached_latency(other_weights, tmp_path) == first
    assert len(measured) == 1
    for number, how in enumerate(({"batch": 2}, {"round_to": 8}, {"precision": "bfloat16"}), 2):
        cached_latency(tiny_vit, tmp_path, **how)  # type: ignore[arg-type]
        assert len(measured) == number


def test_a_latency_of_another_processor_or_table_is_measured_again(
    tiny_vit: VisionTransformer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    measured: list[int],
) -> None:
    """Machines may share a home."""
    first = cached_latency(tiny_vit, tmp_path)
    assert cached_latency(tiny_vit, tmp_path) == first
    assert len(measured) == 1
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(platform, "processor", lambda: "another")
    cached_latency(tiny_vit, tmp_path)
    assert len(measured) == 2
    (other,) = set(tmp_path.iterdir()) - {path}
    for content in (path.read_text(), '{"heads": [1]}', "[]", "null", "{", "\xff"):
        other.write_text(content, encoding="latin-1")
        measured.clear()
        for _ in range(2):
            assert cached_latency(tiny_vit, tmp_path) == first
        assert len(measured) == 1


def test_a_folder_that_is_a_file_costs_the_measurement_only(
    tiny_vit: VisionTransformer, tmp_path: Path, measured: list[int]
) -> None:
    first = cached_latency(tiny_vit, tmp_path)
    (path,) = tmp_path.iterdir()
    assert cached_latency(tiny_vit, path) == first  # measured, not kept
    assert len(measured) == 2


def test_a_table_that_predicts_poorly_is_warned_about_and_not_kept(
    tiny_vit: VisionTransformer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    poor = LatencyTable(**(TABLE | {"error": 0.16}))  # type: ignore[arg-type]
    monkeypatch.setattr(cache, "measure_latency", lambda *args, **options: poor)
    with caplog.at_level("WARNING", "optuna"):
        assert cached_latency(tiny_vit, tmp_path) == poor
    assert "median error of 16 %" in caplog.text
    assert not list(tmp_path.iterdir())
