from __future__ import annotations

import json

import pytest
from shapes import SMALL

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.cost_table import CostTable, monotone_envelope
from vit_ratio_opt.space.costs import Latency
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.space.units import StructuralUnits


@pytest.mark.parametrize(
    ("mhsa", "match"),
    [
        (((0, 9), (20, 1)), "from 0 to 21"),
        (((1, 9), (21, 1)), "from 0 to 21"),
        (((0, 9), (12, 5), (10, 4), (21, 1)), "from 0 to 21"),
        ((), "from 0 to 21"),
        (((0, 9), (10, 3), (21, 4)), "must not rise"),
    ],
)
def test_a_curve_of_another_shape_is_refused(mhsa, match) -> None:
    curves = {"rest": 1, "mhsa": mhsa, "ffn": ((0, 9), (168, 1))}
    with pytest.raises(InputError, match=match):
        StructuralSpace(SMALL, cost=Latency(curves=curves))


def test_costs_that_rise_count_for_what_removes_less() -> None:
    assert monotone_envelope([10, 6, 8, 3, 4, 1]) == [10, 8, 8, 4, 4, 1]
    assert monotone_envelope([10, 12, 9]) == [10, 10, 9]
    assert monotone_envelope([5]) == [5]


def test_knots_fit_into_an_attribute_of_mysql() -> None:
    knots = [[units, 10**9 - units] for units in range(129)]
    assert len(json.dumps({"rest": 10**9, "mhsa": knots, "ffn": knots})) < 2**16


def test_a_linear_table_saves_the_same_with_every_unit() -> None:
    table = CostTable.linear(
        StructuralUnits(SMALL), dense=10_000, per_mhsa_unit=100, per_neuron=10
    )
    mhsa, ffn = table.by_units()
    assert table.fixed + mhsa[0] + ffn[0] == 10_000
    assert mhsa == [100 * (21 - removed) for removed in range(22)]
    assert ffn == [10 * (168 - removed) for removed in range(169)]


def test_costs_between_knots_are_rounded_up() -> None:
    assert CostTable(0, ((0, 10), (3, 0)), ((0, 5),)).by_units() == ([10, 7, 4, 0], [5])
