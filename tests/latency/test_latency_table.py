"""Tests for the table from which latency is predicted."""

from __future__ import annotations

import json
import random

import pytest
import torch

from vit_ratio_opt.latency.table import (
    LatencyTable,
    measure_latency,
    random_blocks,
    size_grid,
    timing_conditions,
)
from vit_ratio_opt.latency.timing import share_weights
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.space.shape import BlockShape


def test_on_a_device_where_time_adds_up_the_table_is_exact(tiny_vit, exact_table, seconds_of):
    table = exact_table
    assert table.error == pytest.approx(0, abs=1e-9)
    shape, draw = shape_of(tiny_vit), random.Random(7)
    for _ in range(20):
        blocks = random_blocks(shape, draw)
        wanted = 1e9 * seconds_of(share_weights(tiny_vit, blocks))
        assert table.predict(blocks) == pytest.approx(wanted)
    assert table.predict(shape.blocks) == pytest.approx(1e9 * seconds_of(tiny_vit))


def test_a_model_that_was_pruned_before_has_a_table_too(make_vit, exact_device, seconds_of):
    start = share_weights(make_vit(), [BlockShape(2, 4, 24), BlockShape(3, 8, 40)])
    table = measure_latency(start)
    assert table.predict(shape_of(start).blocks) == pytest.approx(1e9 * seconds_of(start))


def test_sizes_are_multiples_of_what_they_are_rounded_to(tiny_vit, exact_device):
    table = measure_latency(tiny_vit, round_to=4)
    assert table.ranks == (4, 8)
    assert all(size % 4 == 0 for size in table.hidden)
    blocks = random_blocks(shape_of(tiny_vit), random.Random(0), round_to=4)
    assert all(block.head_dim % 4 == 0 for block in blocks)


def test_large_sizes_are_timed_in_few_places():
    assert size_grid(1, 64, 8) == (1, *range(8, 65, 8))
    assert size_grid(8, 1536, 8) == (8, *range(256, 1537, 256))
    assert size_grid(1, 1, 6) == (1,)
    assert size_grid(8, 60, 8, 8) == (8, 16, 24, 32, 40, 48, 56, 60)


def test_a_table_survives_json(tiny_vit, exact_device):
    table = measure_latency(tiny_vit, batch=3)
    assert LatencyTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    assert set(exact_device) == {3}


def test_conditions_do_not_depend_on_weights(tiny_vit, make_vit):
    other_weights = make_vit()
    with torch.no_grad():
        other_weights.head.weight.add_(1.0)
    assert timing_conditions(other_weights) == timing_conditions(tiny_vit)
    assert timing_conditions(tiny_vit, batch=2) != timing_conditions(tiny_vit)
    assert timing_conditions(make_vit(depth=3)) != timing_conditions(tiny_vit)
