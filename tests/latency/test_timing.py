from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace

import pytest
import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.latency import cache
from vit_ratio_opt.latency import timing as module
from vit_ratio_opt.latency.cache import cached_latency
from vit_ratio_opt.latency.timing import (
    LatencyTable,
    conditions,
    latency_curves,
    measure_latency,
    random_blocks,
    sharing,
    time_models,
)
from vit_ratio_opt.models.surgery import shape_of
from vit_ratio_opt.pruning.calibration import calibrate
from vit_ratio_opt.pruning.importance import taylor_importance
from vit_ratio_opt.pruning.prune import prune, prune_units
from vit_ratio_opt.pruning.sizes import predict_sizes
from vit_ratio_opt.space.costs import Latency
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.shape import BlockShape
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.space.units import StructuralUnits


def seconds_of(model) -> float:
    """A device on which time is a sum over the sizes of blocks."""
    return 1e-3 + sum(
        1e-6 * b.num_heads * b.head_dim + 3e-6 * b.num_heads + 2e-6 * b.hidden_dim
        for b in shape_of(model).blocks
    )


@pytest.fixture
def exact_device(monkeypatch):
    """Counts its runs."""
    runs = []

    def take(model, images, count):
        runs.append(len(images))
        return [seconds_of(model)] * count

    monkeypatch.setattr(module, "_runs", take)
    return runs


def test_on_a_device_where_time_adds_up_the_table_is_exact(tiny_vit, exact_device):
    table = measure_latency(tiny_vit)
    assert table.error == pytest.approx(0, abs=1e-9)
    shape, draw = shape_of(tiny_vit), random.Random(7)
    for _ in range(20):
        blocks = random_blocks(shape, draw)
        wanted = 1e9 * seconds_of(sharing(tiny_vit, blocks))
        assert table.latency(blocks) == pytest.approx(wanted)
    assert table.latency(shape.blocks) == pytest.approx(1e9 * seconds_of(tiny_vit))


def test_a_model_that_was_pruned_before_has_a_table_too(make_vit, exact_device):
    start = sharing(make_vit(), [BlockShape(2, 4, 24), BlockShape(3, 8, 40)])
    table = measure_latency(start)
    assert table.latency(shape_of(start).blocks) == pytest.approx(1e9 * seconds_of(start))


def test_sizes_are_multiples_of_what_they_are_rounded_to(tiny_vit, exact_device):
    table = measure_latency(tiny_vit, round_to=4)
    assert table.ranks == (4, 8)
    assert all(size % 4 == 0 for size in table.hidden)
    assert all(b.head_dim % 4 == 0 for b in random_blocks(shape_of(tiny_vit), random.Random(0),
                                                          round_to=4))  # fmt: skip


def test_large_sizes_are_timed_in_few_places():
    assert module._grid(1, 64, 8) == (1, *range(8, 65, 8))
    assert module._grid(8, 1536, 8) == (8, *range(256, 1537, 256))
    assert module._grid(1, 1, 6) == (1,)
    assert module._grid(8, 60, 8, 8) == (8, 16, 24, 32, 40, 48, 56, 60)


def test_models_that_are_timed_need_no_memory_of_their_own(tiny_vit):
    smaller = sharing(tiny_vit, [BlockShape(2, 3, 20)] * 2)
    assert shape_of(smaller).blocks == (BlockShape(2, 3, 20),) * 2
    owned = {p.untyped_storage().data_ptr() for p in tiny_vit.parameters()}
    assert {p.untyped_storage().data_ptr() for p in smaller.parameters()} <= owned
    assert torch.isfinite(smaller(torch.randn(2, 3, 32, 32))).all()


def test_real_models_are_timed_in_turns(tiny_vit, monkeypatch):
    monkeypatch.setattr(module, "_TURNS", 1)
    monkeypatch.setattr(module, "_TURN_SECONDS", 0.0)
    taken = time_models([tiny_vit, sharing(tiny_vit, [BlockShape(1, 1, 8)] * 2)], batch=2)
    assert len(taken) == 2
    assert all(0 < seconds < 60 for seconds in taken)
    with pytest.raises(InputError, match="at least 1"):
        time_models([tiny_vit], batch=0)


def test_what_slows_a_machine_down_changes_no_ratio(make_vit, monkeypatch):
    models, speeds = [make_vit(), make_vit()], itertools.cycle([1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 1.0])
    own = dict(zip(models, (2.0, 0.5), strict=True))
    monkeypatch.setattr(module, "_LEAST_RUNS", 1)
    monkeypatch.setattr(module, "_runs", lambda model, *rest: [own[model] * next(speeds)])
    assert time_models(models) == [2.0, 0.5]


def test_a_table_survives_json(tiny_vit, exact_device):
    table = measure_latency(tiny_vit, batch=3)
    assert LatencyTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    assert set(exact_device) == {3}


def test_a_table_is_measured_once_for_the_same_conditions(tiny_vit, make_vit, exact_device,
                                                          tmp_path):  # fmt: skip
    first = cached_latency(tiny_vit, tmp_path)
    measured = len(exact_device)
    other_weights = make_vit()
    with torch.no_grad():
        other_weights.head.weight.add_(1.0)
    assert cached_latency(other_weights, tmp_path) == first
    assert len(exact_device) == measured
    cached_latency(tiny_vit, tmp_path, batch=2)
    assert len(exact_device) > measured
    assert conditions(make_vit(depth=3)) != conditions(tiny_vit)


def test_a_damaged_table_is_measured_again(tiny_vit, exact_device, tmp_path, caplog):
    first = cached_latency(tiny_vit, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text('{"heads": [1]}')
    assert cached_latency(tiny_vit, tmp_path) == first
    assert cached_latency(tiny_vit, path) == first  # no folder: measured, not kept


@pytest.mark.parametrize("allocation", ["global", "energy", "uniform"])
@pytest.mark.parametrize("round_to", [1, 4])
def test_sizes_are_those_that_pruning_leaves(tiny_vit, images, allocation, round_to):
    calibration = calibrate(tiny_vit, [images])
    dense = StructuralUnits(shape_of(tiny_vit), round_to=round_to)
    pairs = [(0.0, 0.0), (0.25, 0.5), (0.5, 0.75)]
    units, neurons = zip(*(dense.removed(RatioPair(*pair)) for pair in pairs), strict=True)
    heads, hidden = predict_sizes(dense, units, neurons, calibration, allocation=allocation)
    for pair, sizes, counts in zip(pairs, heads, hidden, strict=True):
        pruned = prune(tiny_vit, pair, calibration, allocation=allocation, round_to=round_to)
        left = shape_of(pruned).blocks
        assert [(b.num_heads, b.head_dim) for b in left] == sizes
        assert [b.hidden_dim for b in left] == counts


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_sizes_of_whole_heads_are_those_that_pruning_leaves(tiny_vit, images, labels, allocation):
    scores = taylor_importance(tiny_vit, [(images, labels)])
    dense = StructuralUnits(shape_of(tiny_vit), "head")
    heads, hidden = predict_sizes(dense, [0, 3], [5, 60], scores, allocation=allocation)
    for index, (units, neurons) in enumerate(((0, 5), (3, 60))):
        left = shape_of(
            prune_units(tiny_vit, units, neurons, scores, allocation=allocation)
        ).blocks
        assert [(b.num_heads, b.head_dim) for b in left] == heads[index]
        assert [b.hidden_dim for b in left] == hidden[index]


def test_curves_foretell_the_models_of_the_pairs(tiny_vit, images, exact_device):
    calibration = calibrate(tiny_vit, [images])
    dense = StructuralUnits(shape_of(tiny_vit))
    table = measure_latency(tiny_vit)
    known = json.loads(json.dumps(latency_curves(table, tiny_vit, dense, calibration)))
    space = StructuralSpace(dense.shape, cost=Latency(curves=known))
    assert known["batch"] == 1
    for pair in ((0.0, 0.0), (0.5, 0.25), (0.75, 0.5)):
        blocks = shape_of(prune(tiny_vit, pair, calibration)).blocks
        # Not below: a larger pair that takes longer counts for this one, too.
        assert space.pruned_cost(RatioPair(*pair)) >= table.latency(blocks) - 2
    assert space.dense_cost == pytest.approx(table.latency(dense.shape.blocks), abs=2)


def test_a_table_that_foretells_poorly_is_warned_about_and_not_kept(
    tiny_vit, exact_device, tmp_path, monkeypatch, caplog
):
    poor = replace(measure_latency(tiny_vit), error=0.16)
    monkeypatch.setattr(cache, "measure_latency", lambda *a, **options: poor)
    with caplog.at_level("WARNING", "optuna"):
        assert cached_latency(tiny_vit, tmp_path) == poor
    assert "median error of 16 %" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("budget", [None, 0.85])
def test_all_pairs_are_foretold_to_save_what_the_worst_of_a_few_saves(
    tiny_vit, images, exact_device, monkeypatch, budget
):
    calibration = calibrate(tiny_vit, [images])
    dense = StructuralUnits(shape_of(tiny_vit))
    table = measure_latency(tiny_vit)
    exact = latency_curves(table, tiny_vit, dense, calibration, budget=budget)
    whole = seconds_of(tiny_vit)

    def take(model, images, count):  # nothing saves more than 0.8 of what it should
        return [whole - 0.8 * (whole - seconds_of(model))] * count

    monkeypatch.setattr(module, "_runs", take)
    worse = latency_curves(table, tiny_vit, dense, calibration, budget=budget)
    assert (exact["kept"], worse["kept"]) == pytest.approx((1.0, 0.8), abs=0.02)
    spaces = [StructuralSpace(dense.shape, cost=Latency(curves=known)) for known in (exact, worse)]
    assert spaces[0].dense_cost == spaces[1].dense_cost
    for pair in (RatioPair(0.5, 0.25), RatioPair(0.75, 0.5)):
        saved, surely = (space.dense_cost - space.pruned_cost(pair) for space in spaces)
        assert surely / saved == pytest.approx(worse["kept"] / exact["kept"], abs=0.01)
