"""Tests for the sizes that a device is measured to compute fast."""

from __future__ import annotations

import pytest

from vit_ratio_opt.latency import cache, timing
from vit_ratio_opt.latency.cache import cached_step
from vit_ratio_opt.latency.steps import fastest_step
from vit_ratio_opt.models.shape import shape_of


@pytest.fixture(scope="module")
def wide(make_vit):
    return make_vit(embed_dim=128, num_heads=2, mlp_ratio=2.0)  # heads of 64


@pytest.fixture
def device(monkeypatch):
    """Return a function that makes this a device which computes in tiles of some size."""

    def make(tile):
        def take(model, images, runs):
            blocks = shape_of(model).blocks
            tiles = sum(-(-b.head_dim // tile) + -(-b.hidden_dim // tile) for b in blocks)
            odd = sum(b.head_dim % tile > 0 for b in blocks)  # the last tile is slow
            return [float(tiles + odd)] * runs

        monkeypatch.setattr(timing, "time_runs", take)

    return make


@pytest.mark.parametrize("tile", [1, 8, 16, 32])
def test_the_step_is_the_tile_of_the_device(wide, device, tile):
    device(tile)
    assert fastest_step(wide) == tile
    assert fastest_step(wide, least=8) == max(8, tile)


def test_a_model_with_small_heads_is_not_timed(tiny_vit, device, monkeypatch):
    monkeypatch.setattr("vit_ratio_opt.latency.steps.time_models", None)
    assert fastest_step(tiny_vit, least=4) == 4


def test_a_step_is_measured_once(wide, device, tmp_path, monkeypatch):
    device(16)
    assert cached_step(wide, tmp_path, least=1) == 16
    monkeypatch.setattr(cache, "fastest_step", None)
    assert cached_step(wide, tmp_path, least=1) == 16
