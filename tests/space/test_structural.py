from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import LATENCY, SMALL, TINY, spaces

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.costs import MACS, PARAMS, Latency
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.shape import BlockShape
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.space.units import MIN_MHSA_UNITS, MIN_NEURONS, StructuralUnits


@given(space=spaces(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_pruned_counts_hold_whichever_units_go(
    space: StructuralSpace, data: st.DataObject
) -> None:
    name = "num_heads" if space.unit == "head" else "head_dim"

    def less(block: BlockShape) -> BlockShape:
        units = data.draw(st.integers(1, getattr(block, name)))
        fewest = min(MIN_NEURONS, block.hidden_dim)
        hidden_dim = data.draw(st.integers(fewest, block.hidden_dim))
        return replace(block, **{name: units, "hidden_dim": hidden_dim})

    smaller = replace(space.shape, blocks=tuple(less(block) for block in space.shape.blocks))
    left = StructuralUnits(smaller, space.unit)
    pair = RatioPair(1 - left.mhsa_units / space.mhsa_units, 1 - left.neurons / space.neurons)
    assert space.pruned_macs(pair) == space.pruned_cost(pair) == smaller.macs
    assert replace(space, cost=PARAMS).pruned_cost(pair) == smaller.params


@pytest.mark.parametrize("hidden_dim", [1, MIN_NEURONS, MIN_NEURONS + 1, 64])
def test_max_pair_leaves_every_block_its_minimum(hidden_dim: int) -> None:
    blocks = (BlockShape(4, 8, hidden_dim), BlockShape(1, 8, 64))
    space = StructuralSpace(replace(TINY, blocks=blocks), "head")
    heads, neurons = space.removed(space.max_pair)
    assert space.shape.heads - heads == 2 * MIN_MHSA_UNITS
    assert space.neurons - neurons == min(MIN_NEURONS, hidden_dim) + MIN_NEURONS


def test_rank_ratio_is_refused_where_blocks_differ_in_heads() -> None:
    mixed = replace(TINY, blocks=(BlockShape(4, 8, 64), BlockShape(3, 8, 64)))
    with pytest.raises(InputError, match=r"num_heads .* \[3, 4\]"):
        StructuralSpace(mixed, "rank")


@pytest.mark.parametrize("cost", [MACS, PARAMS])
def test_head_ratio_is_refused_where_heads_differ_in_size(cost) -> None:
    mixed = replace(TINY, blocks=(BlockShape(4, 8, 64), BlockShape(4, 6, 64)))
    with pytest.raises(InputError, match=r"\[6, 8\]"):
        StructuralSpace(mixed, "head", cost=cost)


@pytest.mark.parametrize("wish", ["head", "rank"])
def test_a_model_decides_on_its_unit_where_it_allows_one_only(wish) -> None:
    assert StructuralUnits(TINY, wish).mhsa_unit == wish
    assert StructuralUnits(replace(TINY, whole_heads=True), wish).mhsa_unit == "head"
    assert StructuralUnits(replace(TINY, all_heads=True), wish).mhsa_unit == "rank"


def test_rounded_sizes_go_in_steps() -> None:
    assert StructuralUnits(TINY, round_to=8).steps == (2, 8)  # two ranks of four heads are eight
    assert StructuralUnits(TINY, "head", round_to=8).steps == (1, 8)
    assert StructuralUnits(replace(TINY, all_heads=True), round_to=8).steps == (8, 8)
    units = StructuralUnits(TINY, round_to=8)
    assert units.removed(RatioPair(0.01, 0.01)) == (2, 8)
    assert units.minimum == "2 ranks and 8 neurons"
    assert StructuralUnits(TINY).minimum == "1 rank and 8 neurons"
    assert StructuralUnits(TINY, round_to=999).minimum == "all ranks and all neurons"
    assert StructuralUnits(TINY, "head", round_to=16).minimum == "1 head and 16 neurons"


def test_the_least_that_a_block_keeps_depends_on_the_model() -> None:
    block = TINY.blocks[0]
    assert StructuralUnits(TINY, round_to=4).least_dims(block) == 4
    assert StructuralUnits(replace(TINY, whole_heads=True)).least_dims(block) == 8
    assert StructuralUnits(replace(TINY, all_heads=True), round_to=4).least_dims(block) == 16


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"round_to": 0}, "`round_to` must be at least 1, but got 0"),
        ({"round_to": 1.5}, "`round_to` must be at least 1"),
        ({"unit": "token"}, "`unit` must be 'head' or 'rank', but got 'token'"),
    ],
)
def test_units_that_do_not_exist_are_refused(options, match) -> None:
    with pytest.raises(InputError, match=match):
        StructuralSpace(TINY, **options)


def test_removing_nothing_costs_all() -> None:
    for cost in (MACS, PARAMS, Latency(curves=LATENCY)):
        assert StructuralSpace(SMALL, cost=cost).cost_ratio(0.0, 0.0) == 1.0
    assert StructuralSpace(SMALL, cost=Latency(curves=LATENCY)).dense_cost == 3_900


def test_costs_never_rise_along_either_ratio() -> None:
    space = StructuralSpace(SMALL, cost=Latency(curves=LATENCY))
    for ratios, pairs in (
        (space.mhsa_ratios, lambda r: RatioPair(r, 0.0)),
        (space.ffn_ratios, lambda r: RatioPair(0.0, r)),
    ):
        costs = [space.pruned_cost(pairs(ratio)) for ratio in ratios]
        assert costs == sorted(costs, reverse=True)
