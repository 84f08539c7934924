from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.curve import budget_curve, fixed_ratio_pair, smallest_cost_ratio
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.shape import BlockShape, BlockTokens, ViTShape
from vit_ratio_opt.space.tokens import CP_VIT, LATE, CascadeRule, TokenSpace

SHAPE = ViTShape(
    patches=16,
    prefix_tokens=1,
    patch_dim=3 * 8 * 8,
    embed_dim=32,
    num_classes=4,
    blocks=(BlockShape(num_heads=4, head_dim=8, hidden_dim=64),) * 4,
    fixed_params=7332,
)


@st.composite
def cascades(draw: st.DrawFn) -> TokenSpace:
    depth = draw(st.integers(2, 6))
    rule = CascadeRule(
        schedule=draw(st.sampled_from(["rising", "late"])),
        by_range=draw(st.booleans()),
        left_out=draw(st.sampled_from(["tokens", "queries"])),
        heads=draw(st.booleans()),
    )
    block = BlockShape(draw(st.integers(1, 6)), draw(st.integers(1, 8)), draw(st.integers(1, 40)))
    shape = replace(
        SHAPE,
        patches=draw(st.integers(2, 40)),
        prefix_tokens=draw(st.integers(0, 3)),
        embed_dim=draw(st.integers(1, 50)),
        blocks=(block,) * depth,
    )
    ranges = tuple(draw(st.floats(0.1, 1.2)) for _ in range(depth))
    return TokenSpace(shape, rule, ranges, class_only=draw(st.booleans()))


def ratio_of(space: TokenSpace, data: st.DataObject) -> RatioPair:
    return RatioPair(
        data.draw(st.sampled_from(space.mhsa_ratios)), data.draw(st.sampled_from(space.ffn_ratios))
    )


@given(space=cascades(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_macs_of_a_pair_are_those_of_its_shape(space: TokenSpace, data: st.DataObject) -> None:
    pair = ratio_of(space, data)
    assert space.pruned_macs(pair) == space.shape(pair).macs
    assert space.pruned_macs(RatioPair(0.0, 0.0)) == space.dense.macs


@given(space=cascades())
@settings(max_examples=60, deadline=None)
def test_a_larger_ratio_leaves_out_no_less_in_any_block(space: TokenSpace) -> None:
    shape, previous = space.dense, None
    for units, ratio in enumerate(space.ffn_ratios):
        tokens = space.tokens(RatioPair(ratio, ratio))
        assert sum(shape.tokens - counts.ffn for counts in tokens) == units * len(shape.blocks)
        assert all(min(counts) > shape.prefix_tokens for counts in tokens)
        assert tokens[0] == BlockTokens(*(shape.tokens,) * 3)  # it has nothing to choose by
        if previous is not None:
            assert all(
                now <= before
                for new, old in zip(tokens, previous, strict=True)
                for now, before in zip(new, old, strict=True)
            )
        previous = tokens


@given(space=cascades(), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_the_curve_of_a_budget_is_exact(space: TokenSpace, share: float) -> None:
    smallest = smallest_cost_ratio(space)
    budget = smallest + share * (1 - smallest)
    for pair in budget_curve(space, budget):
        assert space.macs_ratio(*pair) <= budget
        more = [ratio for ratio in space.ffn_ratios if ratio < pair.ffn_ratio]
        assert not more or space.macs_ratio(pair.mhsa_ratio, more[-1]) > budget
    fixed = fixed_ratio_pair(space, budget)
    assert fixed.mhsa_ratio == fixed.ffn_ratio
    assert space.macs_ratio(*fixed) <= budget


def test_the_share_left_out_rises_from_block_to_block() -> None:
    space = TokenSpace(SHAPE, replace(CP_VIT, by_range=False))
    left = [17 - counts.ffn for counts in space.tokens(RatioPair(0.375, 0.375))]
    assert left == [0, 4, 8, 12]


def test_a_block_whose_attention_reaches_further_leaves_out_more() -> None:
    space = TokenSpace(SHAPE, CP_VIT, ranges=(1.0, 1.0, 0.2, 1.0))
    left = [17 - counts.queries for counts in space.tokens(RatioPair(0.25, 0.25))]
    assert left[2] < left[1] < left[3]


def test_the_late_schedule_begins_with_what_is_free() -> None:
    space = TokenSpace(SHAPE, LATE, class_only=True)
    free = space.free_ratio
    assert free == 3 / 16  # 12 of the last block's 15
    tokens = space.tokens(RatioPair(free, free))
    assert [counts.ffn for counts in tokens] == [17, 17, 17, 5]
    assert all(counts.keys == 17 for counts in tokens)
    assert TokenSpace(SHAPE, LATE, class_only=False).free_ratio == 0


def test_heads_go_with_the_share_of_their_block() -> None:
    rule = CascadeRule(by_range=False, heads=True)
    pair = RatioPair(0.375, 0.0)
    assert TokenSpace(SHAPE, rule).heads(pair) == (4, 3, 2, 1)
    assert TokenSpace(SHAPE, replace(rule, heads=False)).heads(pair) == (4, 4, 4, 4)


@pytest.mark.parametrize("pair", [(-0.1, 0), (0, 0.95), (0.71, 0)])
def test_a_ratio_out_of_range_is_refused_with_the_range(pair) -> None:
    with pytest.raises(InputError, match=r"in \[0, 0\.\d+\] so that .* 1 patch"):
        TokenSpace(SHAPE, LATE).tokens(RatioPair(*pair))


def test_what_cannot_have_a_cascade_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 blocks and 2 patches"):
        TokenSpace(replace(SHAPE, patches=1), LATE)
    with pytest.raises(InputError, match="a cascade already"):
        TokenSpace(replace(SHAPE, block_tokens=(BlockTokens(9, 9, 9),) * 4), LATE)
    with pytest.raises(InputError, match="`ranges` must have 4 values"):
        TokenSpace(SHAPE, CP_VIT)
    with pytest.raises(InputError, match="`schedule` must be one of"):
        CascadeRule(schedule="falling")
