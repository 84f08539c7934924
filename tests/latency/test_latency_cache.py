"""Tests for the cache of latency tables."""

import platform
from pathlib import Path

import pytest
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.latency import cache
from vit_ratio_opt.latency.cache import cached_latency
from vit_ratio_opt.latency.timing import LatencyTable

TABLE = {
    "heads": (1,), "ranks": (1,), "hidden": (1,), "attention": ((0.0,),), "ffn": (0.0,),
    "rest": 1.0, "conditions": {}, "error": 0.01,
}  # fmt: skip


def test_a_latency_of_another_processor_or_table_is_measured_again(
    tiny_vit: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines may share a home."""
    calls: list[int] = []

    def counted(*args: object, **options: object) -> LatencyTable:
        calls.append(1)
        return LatencyTable(**TABLE)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "measure_latency", counted)
    for _ in range(2):
        cached_latency(tiny_vit, tmp_path)
    assert len(calls) == 1
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(platform, "processor", lambda: "another")
    cached_latency(tiny_vit, tmp_path)
    assert len(calls) == 2
    (other,) = set(tmp_path.iterdir()) - {path}
    for content in (path.read_text(), "[]", "null", "{", "\xff"):
        other.write_text(content, encoding="latin-1")
        calls.clear()
        for _ in range(2):
            cached_latency(tiny_vit, tmp_path)
        assert len(calls) == 1
