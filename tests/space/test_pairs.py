from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import TINY

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.pairs import (
    RatioPair,
    as_pair,
    longest_chain,
    pick_evenly,
    removed_units,
)
from vit_ratio_opt.space.structural import StructuralSpace


@given(units=st.integers(1, 100_000), data=st.data())
def test_ratio_made_from_a_count_gives_the_count_back(units: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, units))
    assert removed_units(count / units, units) == count
    assert removed_units(1 - (units - count) / units, units) == count


def test_removed_units_round_up() -> None:
    assert [removed_units(ratio, 8) for ratio in (0, 0.01, 0.125, 0.126, 0.99)] == [0, 1, 1, 2, 8]
    assert [removed_units(ratio, 8, step=4) for ratio in (0, 0.01, 0.5, 0.51)] == [0, 4, 4, 8]


@pytest.mark.parametrize(
    ("pair", "name", "largest"),
    [
        ((0.76, 0), "mhsa_ratio", "0.75"),
        ((0, 0.88), "ffn_ratio", "0.875"),
        ((-0.1, 0), "mhsa_ratio", "0.75"),
        ((0, float("nan")), "ffn_ratio", "0.875"),
    ],
)
def test_ratio_out_of_range_names_the_largest(
    pair: tuple[float, float], name: str, largest: str
) -> None:
    with pytest.raises(InputError, match=rf"`{name}` must be in \[0, {re.escape(largest)}\]"):
        StructuralSpace(TINY, "head").removed(RatioPair(*pair))


@pytest.mark.parametrize("ratio", [True, "0.5", None])
def test_a_ratio_that_is_no_number_is_refused(ratio: object) -> None:
    with pytest.raises(InputError, match="`mhsa_ratio` must be a number"):
        StructuralSpace(TINY, "head").removed(RatioPair(ratio, 0.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("pair", [(0.5,), (0.1, 0.2, 0.3), "ab", 0.5])
def test_what_is_no_pair_is_refused(pair) -> None:
    with pytest.raises(InputError, match="`pair` must be"):
        as_pair(pair)


def test_the_longest_chain_leaves_out_what_prunes_one_module_less() -> None:
    pairs = [(0.1, 0.2), (0.0, 0.0), (0.3, 0.1), (0.2, 0.5), (0.4, 0.4), (0.6, 0.6), (0.2, 0.5)]
    chain = longest_chain(RatioPair(*pair) for pair in pairs)
    assert chain == [(0.0, 0.0), (0.1, 0.2), (0.2, 0.5), (0.6, 0.6)]
    assert longest_chain([]) == []


def test_evenly_spaced_ratios_have_both_ends() -> None:
    ratios = [i / 100 for i in range(101)]
    assert pick_evenly(ratios, 3) == [0.0, 0.5, 1.0]
    assert pick_evenly(ratios[:2], 33) == [0.0, 0.01]
    assert pick_evenly([0.0], 33) == [0.0]


@pytest.mark.parametrize(
    "module",
    ["space.both", "space.structural", "space.curve", "search", "records.answer"],
)
def test_import_does_not_need_torch(module: str) -> None:
    code = f"import vit_ratio_opt.{module}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
