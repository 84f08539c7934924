from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from shapes import LATENCY, SMALL

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.cost_table import CostTable
from vit_ratio_opt.space.costs import (
    MACS,
    PARAMS,
    Cost,
    CostName,
    Latency,
    cost_label,
    cost_named,
)
from vit_ratio_opt.space.curve import budget_curve, check_budget, fixed_ratio_pair
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.shape import ViTShape
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.space.units import StructuralUnits


@pytest.mark.parametrize(("unit", "round_to"), [("rank", 1), ("head", 1), ("rank", 4)])
def test_parameters_of_every_pair_are_exact(unit, round_to) -> None:
    params = StructuralSpace(SMALL, unit, round_to, PARAMS)
    macs = StructuralSpace(SMALL, unit, round_to, MACS)
    for mhsa_ratio in macs.mhsa_ratios:
        for ffn_ratio in macs.ffn_ratios[::7]:
            pair = RatioPair(mhsa_ratio, ffn_ratio)
            units, neurons = macs.removed(pair)
            gone = units * macs.mhsa_unit_params + neurons * SMALL.neuron_params
            assert params.pruned_cost(pair) == SMALL.params - gone
            assert params.pruned_macs(pair) == macs.pruned_macs(pair) == macs.pruned_cost(pair)


def test_latency_lies_on_lines_between_the_knots() -> None:
    space = StructuralSpace(SMALL, cost=Latency(curves=LATENCY))
    pair = RatioPair(5 / 24, 134 / 192)
    assert space.removed(pair) == (5, 134)
    assert space.pruned_cost(pair) == 1_000 + 700 + 950
    assert space.cost_ratio(*space.max_pair) == 1_500 / 3_900


def test_latency_has_no_price_before_it_is_measured() -> None:
    with pytest.raises(InputError, match="not known before it is measured"):
        StructuralSpace(SMALL, cost=Latency(batch=4))


def test_only_costs_in_closed_form_count_a_model() -> None:
    assert MACS.count(SMALL) == SMALL.macs
    assert PARAMS.count(SMALL) == SMALL.params
    assert Latency(curves=LATENCY).count(SMALL) is None


# Names


def test_every_built_in_cost_is_found_by_its_name() -> None:
    for name in get_args(CostName):
        assert cost_named(name).name == cost_label(name).name == name
    assert cost_named("macs") is MACS
    assert cost_named("params") is PARAMS
    assert cost_named("latency", latency_batch=4) == Latency(4)
    assert [cost_label(name).word for name in get_args(CostName)] == [
        "FLOPs", "parameters", "latency",
    ]  # fmt: skip
    assert [cost_label(name).constraint for name in get_args(CostName)] == [
        "flops", "params", "latency",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"name": "energy"}, "must be one of"),
        ({"name": "latency", "latency_batch": 0}, "at least 1"),
        ({"name": "macs", "latency_batch": 0}, "at least 1"),
        ({"name": "params", "latency_batch": 2}, "is for the cost 'latency'"),
        ({"name": "macs", "latency_engine": "compiled"}, "`latency_engine` is for the cost"),
        ({"name": "latency", "latency_engine": "tflite"}, "must be one of .*but got 'tflite'"),
        ({"name": "latency", "latency_engine": True}, "`latency_engine` must be one of"),
    ],
)
def test_names_of_no_cost_are_refused(options, match) -> None:
    with pytest.raises(InputError, match=match):
        cost_named(**options)


@pytest.mark.parametrize(
    ("cost", "options", "match"),
    [
        (PARAMS, {"strategy": "cascade"}, "removes no parameter"),
        (Latency(), {"strategy": "both"}, "not predicted"),
        (Latency(), {"iterative": True}, "does not go with `iterative`"),
    ],
)
def test_a_search_that_a_cost_does_not_go_with_is_refused(cost, options, match) -> None:
    with pytest.raises(InputError, match=match):
        cost.check(**options)


def test_every_cost_goes_with_structural_pruning_and_macs_with_all() -> None:
    for cost in (MACS, PARAMS, Latency()):
        cost.check()
    for strategy in ("structural", "cascade", "both"):
        MACS.check(strategy=strategy, iterative=True)
    PARAMS.check(iterative=True)


# A cost of the user's own


class ActivationMemory(Cost):
    """Bytes of the activations that the backward pass of one image needs, in 16 bits."""

    name, word, constraint = "activations", "bytes of activations", "activation_bytes"

    def price(self, units: StructuralUnits) -> CostTable:
        per_dim, per_neuron = 4 * 2 * units.shape.tokens, 2 * 2 * units.shape.tokens
        fixed = 2 * units.shape.tokens * units.shape.embed_dim
        return CostTable.linear(
            units,
            dense=fixed + units.shape.attention_dims * per_dim + units.neurons * per_neuron,
            per_mhsa_unit=units.mhsa_unit_dims * per_dim,
            per_neuron=per_neuron,
        )


@pytest.mark.parametrize(("unit", "round_to"), [("rank", 1), ("head", 1), ("rank", 4)])
def test_a_new_cost_has_an_exact_curve(unit, round_to) -> None:
    space = StructuralSpace(SMALL, unit, round_to, ActivationMemory())
    dense = 2 * 17 * 32 + 96 * 4 * 2 * 17 + 192 * 2 * 2 * 17
    assert space.dense_cost == dense
    curve = budget_curve(space, 0.6)
    assert curve != budget_curve(replace(space, cost=MACS), 0.6)
    for pair in (*curve, fixed_ratio_pair(space, 0.6)):
        units, neurons = space.removed(pair)
        left = dense - units * space.mhsa_unit_dims * 4 * 2 * 17 - neurons * 2 * 2 * 17
        assert space.pruned_cost(pair) == left
        assert space.cost_ratio(*pair) == left / dense <= 0.6
    for pair in curve[:-1]:
        index = space.ffn_ratios.index(pair.ffn_ratio)
        assert space.cost_ratio(pair.mhsa_ratio, space.ffn_ratios[index - 1]) > 0.6


def test_messages_name_a_new_cost() -> None:
    space = StructuralSpace(SMALL, cost=ActivationMemory())
    with pytest.raises(InputError, match="share of the dense model's bytes of activations"):
        check_budget(space, 0.01)
    with pytest.raises(InputError, match="a fraction of the dense model's bytes of activations"):
        check_budget(space, 2.0)
    for strategy in ("cascade", "both"):
        with pytest.raises(InputError, match="`cost='activations'` needs the strategy 'struct"):
            space.cost.check(strategy=strategy)
    space.cost.check(iterative=True)


def test_readers_without_the_object_call_a_new_cost_by_its_name() -> None:
    label = cost_label("activations")
    assert (label.name, label.word, label.constraint) == ("activations",) * 3


def test_a_cost_needs_no_base_class_but_its_four_names() -> None:
    class Heads:
        name, word, constraint = "heads", "heads", "heads"

        def price(self, units: StructuralUnits) -> CostTable:
            return CostTable.linear(units, dense=units.shape.heads, per_mhsa_unit=1, per_neuron=0)

        def count(self, shape: ViTShape) -> int:
            return shape.heads

        def check(self, *, strategy: str = "structural", iterative: bool = False) -> None:
            pass

    cost: Cost = Heads()
    space = StructuralSpace(SMALL, "head", cost=cost)
    assert budget_curve(space, 0.5) == (RatioPair(0.5, 0.0),)
