"""Tests for the latency of all pairs of a study."""

from __future__ import annotations

import json

import pytest

from vit_ratio_opt.latency import timing
from vit_ratio_opt.latency.curves import predict_latency
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.bounds import resolve_bounds
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.space.costs import Latency
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.space.units import StructuralUnits


def test_curves_predict_the_models_of_the_pairs(tiny_vit, calibration, exact_device, exact_table):
    dense = StructuralUnits(shape_of(tiny_vit))
    table = exact_table
    known = json.loads(json.dumps(predict_latency(table, tiny_vit, dense, calibration)))
    space = StructuralSpace(dense.shape, cost=Latency(curves=known))
    assert known["batch"] == 1
    for pair in ((0.0, 0.0), (0.5, 0.25), (0.75, 0.5)):
        blocks = shape_of(prune(tiny_vit, pair, calibration)).blocks
        # Not below: a larger pair that takes longer counts for this one, too.
        assert space.pruned_cost(RatioPair(*pair)) >= table.predict(blocks) - 2
    assert space.dense_cost == pytest.approx(table.predict(dense.shape.blocks), abs=2)


def test_curves_begin_at_the_dense_model_below_the_floors_of_blocks(
    tiny_vit, calibration, exact_device, exact_table
):
    bounds = {"blocks.0": (0.25, 0.5)}
    dense = StructuralUnits(shape_of(tiny_vit), bounds=resolve_bounds(tiny_vit, (), bounds))
    known = predict_latency(exact_table, tiny_vit, dense, calibration)
    assert [[knot[0] for knot in known[name][:2]] for name in ("mhsa", "ffn")] == [[0, 2], [0, 16]]
    space = StructuralSpace(dense.shape, bounds=dense.bounds, cost=Latency(curves=known))
    assert space.dense_cost == pytest.approx(exact_table.predict(dense.shape.blocks), abs=2)
    pair = RatioPair(0.5, 0.25)
    blocks = shape_of(prune(tiny_vit, pair, calibration, bounds=bounds)).blocks
    assert space.pruned_cost(pair) >= exact_table.predict(blocks) - 2


@pytest.mark.parametrize("budget", [None, 0.85])
def test_all_pairs_are_predicted_to_save_what_the_worst_of_a_few_saves(
    tiny_vit, calibration, exact_device, exact_table, seconds_of, monkeypatch, budget
):
    dense = StructuralUnits(shape_of(tiny_vit))
    table = exact_table
    exact = predict_latency(table, tiny_vit, dense, calibration, budget=budget)
    whole = seconds_of(tiny_vit)

    def take(model, images, count):  # nothing saves more than 0.8 of what it should
        return [whole - 0.8 * (whole - seconds_of(model))] * count

    monkeypatch.setattr(timing, "time_runs", take)
    worse = predict_latency(table, tiny_vit, dense, calibration, budget=budget)
    assert (exact["kept"], worse["kept"]) == pytest.approx((1.0, 0.8), abs=0.02)
    spaces = [StructuralSpace(dense.shape, cost=Latency(curves=known)) for known in (exact, worse)]
    assert spaces[0].dense_cost == spaces[1].dense_cost
    for pair in (RatioPair(0.5, 0.25), RatioPair(0.75, 0.5)):
        saved, surely = (space.dense_cost - space.pruned_cost(pair) for space in spaces)
        assert surely / saved == pytest.approx(worse["kept"] / exact["kept"], abs=0.01)
