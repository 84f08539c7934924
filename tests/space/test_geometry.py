import itertools
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from vit_ratio_opt.space.geometry import (
    MIN_MHSA_UNITS,
    MIN_NEURONS,
    BlockShape,
    MhsaUnit,
    RatioPair,
    ViTShape,
    budget_curve,
    fixed_ratio_pair,
    removed_units,
    smallest_cost_ratio,
)

from vit_ratio_opt.errors import InputError

# The two-block, 32-pixel ViT of conftest.py.
TINY = ViTShape(
    patches=16,
    prefix_tokens=1,
    patch_dim=3 * 8 * 8,
    embed_dim=32,
    num_classes=4,
    blocks=(BlockShape(num_heads=4, head_dim=8, hidden_dim=64),) * 2,
    fixed_params=7332,
)


@st.composite
def shapes(draw: st.DrawFn, max_heads: int = 8, max_hidden: int = 64) -> ViTShape:
    unit: MhsaUnit = draw(st.sampled_from(["head", "rank"]))
    # Units cost the same in every block when heads have one size, or blocks one number of heads.
    heads, head_dim = st.integers(1, max_heads), st.integers(1, 16)
    if unit == "head":
        head_dim = st.just(draw(head_dim))
    else:
        heads = st.just(draw(heads))
    block = st.builds(BlockShape, heads, head_dim, st.integers(1, max_hidden))
    return ViTShape(
        patches=draw(st.integers(1, 200)),
        prefix_tokens=draw(st.integers(0, 5)),
        patch_dim=draw(st.integers(1, 50)),
        embed_dim=draw(st.integers(1, 100)),
        num_classes=draw(st.integers(0, 20)),
        blocks=tuple(draw(st.lists(block, min_size=1, max_size=4))),
        fixed_params=draw(st.integers(0, 1000)),
        classifiers=draw(st.integers(1, 2)),
        qkv_bias=draw(st.booleans()),
        fc1_bias=draw(st.booleans()),
        mhsa_unit=unit,
    )


@st.composite
def shapes_and_budgets(
    draw: st.DrawFn, max_heads: int = 8, max_hidden: int = 64
) -> tuple[ViTShape, float]:
    shape = draw(shapes(max_heads, max_hidden))
    smallest = smallest_cost_ratio(shape)
    return shape, draw(st.floats(smallest, 1))


def macs_ratio(shape: ViTShape, pair: RatioPair) -> float:
    return shape.pruned_macs(pair) / shape.macs


def number_after(phrase: str, error: pytest.ExceptionInfo[InputError]) -> float:
    match = re.search(rf"{phrase} ([0-9.]+[0-9])", str(error.value))
    assert match, f"no number after {phrase!r} in {error.value}"
    return float(match[1])


# Counts


def test_macs_match_hand_count() -> None:
    embedding = 16 * 192 * 32
    qkv, qk_and_av, proj = 17 * 32 * 96, 2 * 17 * 17 * 32, 17 * 32 * 32
    fc1 = fc2 = 17 * 32 * 64
    classifier = 32 * 4
    assert TINY.macs == embedding + 2 * (qkv + qk_and_av + proj + fc1 + fc2) + classifier == 413952


def test_params_match_hand_count() -> None:
    embedding = 192 * 32 + 32 + 32 + 17 * 32  # patches, class token, positions
    norms = 2 * (32 + 32)
    attention = 32 * 96 + 96 + 32 * 32 + 32
    mlp = 32 * 64 + 64 + 64 * 32 + 32
    assert TINY.params == embedding + 2 * (norms + attention + mlp) + 64 + 32 * 4 + 4 == 24036


@given(shape=shapes(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_pruned_counts_hold_whichever_units_go(shape: ViTShape, data: st.DataObject) -> None:
    name = "num_heads" if shape.mhsa_unit == "head" else "head_dim"

    def less(block: BlockShape) -> BlockShape:
        units = data.draw(st.integers(1, getattr(block, name)))
        fewest = min(MIN_NEURONS, block.hidden_dim)
        hidden_dim = data.draw(st.integers(fewest, block.hidden_dim))
        return replace(block, **{name: units, "hidden_dim": hidden_dim})

    smaller = replace(shape, blocks=tuple(less(block) for block in shape.blocks))
    pair = RatioPair(
        1 - smaller.mhsa_units / shape.mhsa_units, 1 - smaller.neurons / shape.neurons
    )
    assert shape.pruned_macs(pair) == smaller.macs
    assert shape.pruned_params(pair) == smaller.params


@given(units=st.integers(1, 100_000), data=st.data())
def test_ratio_made_from_a_count_gives_the_count_back(units: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, units))
    assert removed_units(count / units, units) == count
    assert removed_units(1 - (units - count) / units, units) == count


def test_removed_units_round_up() -> None:
    assert [removed_units(ratio, 8) for ratio in (0, 0.01, 0.125, 0.126, 0.99)] == [0, 1, 1, 2, 8]


@pytest.mark.parametrize("hidden_dim", [1, MIN_NEURONS, MIN_NEURONS + 1, 64])
def test_max_pair_leaves_every_block_its_minimum(hidden_dim: int) -> None:
    shape = replace(TINY, blocks=(BlockShape(4, 8, hidden_dim), BlockShape(1, 8, 64)))
    heads, neurons = shape.removed(shape.max_pair)
    assert shape.heads - heads == 2 * MIN_MHSA_UNITS
    assert shape.neurons - neurons == min(MIN_NEURONS, hidden_dim) + MIN_NEURONS


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
        TINY.removed(RatioPair(*pair))


def test_rank_ratio_is_refused_where_blocks_differ_in_heads() -> None:
    mixed = replace(TINY, blocks=(BlockShape(4, 8, 64), BlockShape(3, 8, 64)), mhsa_unit="rank")
    with pytest.raises(InputError, match=r"num_heads .* \[3, 4\]"):
        mixed.pruned_macs(RatioPair(0.25, 0.25))


def test_head_ratio_is_refused_where_heads_differ_in_size() -> None:
    mixed = replace(TINY, blocks=(BlockShape(4, 8, 64), BlockShape(4, 6, 64)))
    for predict in (mixed.pruned_macs, mixed.pruned_params):
        with pytest.raises(InputError, match=r"\[6, 8\]"):
            predict(RatioPair(0.25, 0.25))


# The budget's curve


@given(case=shapes_and_budgets())
@settings(max_examples=150, deadline=None)
def test_curve_uses_up_the_budget_and_never_exceeds_it(case: tuple[ViTShape, float]) -> None:
    shape, budget = case
    curve = budget_curve(shape, budget)
    for pair in curve:
        assert macs_ratio(shape, pair) <= budget
        heads, neurons = shape.removed(pair)
        assert pair == (heads / shape.mhsa_units, neurons / shape.neurons)
        if neurons:
            one_back = RatioPair(pair.mhsa_ratio, (neurons - 1) / shape.neurons)
            assert macs_ratio(shape, one_back) > budget
    for before, after in itertools.pairwise(curve):
        assert before.mhsa_ratio < after.mhsa_ratio
        assert before.ffn_ratio > after.ffn_ratio


@given(case=shapes_and_budgets(max_heads=4, max_hidden=16))
@settings(max_examples=60, deadline=None)
def test_curve_is_the_brute_force_front(case: tuple[ViTShape, float]) -> None:
    shape, budget = case
    most_heads, most_neurons = shape.removed(shape.max_pair)
    feasible = [
        (heads, neurons)
        for heads in range(most_heads + 1)
        for neurons in range(most_neurons + 1)
        if macs_ratio(shape, RatioPair(heads / shape.mhsa_units, neurons / shape.neurons))
        <= budget
    ]
    curve = [shape.removed(pair) for pair in budget_curve(shape, budget)]
    assert set(curve) <= set(feasible)
    for heads, neurons in feasible:
        assert any(h <= heads and n <= neurons for h, n in curve)
        if any((h, n) != (heads, neurons) and h <= heads and n <= neurons for h, n in feasible):
            assert (heads, neurons) not in curve  # it prunes something without need


@given(shape=shapes())
@settings(max_examples=50, deadline=None)
def test_budget_one_prunes_nothing(shape: ViTShape) -> None:
    assert budget_curve(shape, 1) == (RatioPair(0, 0),)
    assert fixed_ratio_pair(shape, 1) == RatioPair(0, 0)


@given(shape=shapes())
@settings(max_examples=50, deadline=None)
def test_smallest_budget_gives_only_the_largest_pair(shape: ViTShape) -> None:
    assert budget_curve(shape, smallest_cost_ratio(shape)) == (shape.max_pair,)


@given(case=shapes_and_budgets())
@settings(max_examples=100, deadline=None)
def test_budget_is_exact_to_the_last_bit(case: tuple[ViTShape, float]) -> None:
    shape, budget = case
    for pair in budget_curve(shape, budget):
        exactly = macs_ratio(shape, pair)
        assert pair in budget_curve(shape, exactly)
        if exactly > smallest_cost_ratio(shape):
            assert pair not in budget_curve(shape, math.nextafter(exactly, 0))


@given(shape=shapes(), share=st.floats(0.001, 0.999))
@settings(max_examples=50, deadline=None)
def test_budget_below_smallest_names_one_that_works(shape: ViTShape, share: float) -> None:
    with pytest.raises(InputError) as error:
        budget_curve(shape, smallest_cost_ratio(shape) * share)
    assert budget_curve(shape, number_after("must be at least", error))


@pytest.mark.parametrize("budget", [0, -1, 1.5, float("nan"), float("inf")])
@pytest.mark.parametrize("function", [budget_curve, fixed_ratio_pair])
def test_budget_that_is_no_fraction_is_refused(function, budget: float) -> None:
    with pytest.raises(InputError, match=r"in \(0, 1\]"):
        function(TINY, budget)


# The fixed ratio


@given(case=shapes_and_budgets())
@settings(max_examples=150, deadline=None)
def test_fixed_ratio_is_the_smallest_within_the_budget(case: tuple[ViTShape, float]) -> None:
    shape, budget = case
    try:
        ratio, same = pair = fixed_ratio_pair(shape, budget)
    except InputError:
        largest = min(shape.max_pair)
        assert macs_ratio(shape, RatioPair(largest, largest)) > budget
        return
    assert ratio == same
    assert macs_ratio(shape, pair) <= budget
    steps = [i / units for units in (shape.mhsa_units, shape.neurons) for i in range(units)]
    smaller = max((step for step in steps if step < ratio), default=None)
    if smaller is not None:
        assert macs_ratio(shape, RatioPair(smaller, smaller)) > budget


@given(case=shapes_and_budgets())
@settings(max_examples=100, deadline=None)
def test_curve_dominates_the_fixed_ratio(case: tuple[ViTShape, float]) -> None:
    shape, budget = case
    try:
        heads, neurons = shape.removed(fixed_ratio_pair(shape, budget))
    except InputError:
        assume(False)
    on_curve = dict(shape.removed(pair) for pair in budget_curve(shape, budget))
    assert on_curve[heads] <= neurons


def test_budget_that_one_ratio_cannot_meet_names_the_one_it_can() -> None:
    budget = smallest_cost_ratio(TINY)
    with pytest.raises(InputError, match=r"ratio 0\.7500") as error:
        fixed_ratio_pair(TINY, budget)
    assert fixed_ratio_pair(TINY, number_after("reaches at best", error)) == (0.75, 0.75)


@pytest.mark.parametrize(
    "module",
    ["vit_ratio_opt.space.geometry", "vit_ratio_opt.search", "vit_ratio_opt.records.answer"],
)
def test_import_does_not_need_torch(module: str) -> None:
    code = f"import {module}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
