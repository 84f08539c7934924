from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.both import Combined
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.shape import BlockShape, ViTShape
from vit_ratio_opt.space.tokens import LATE, CascadeRule, TokenSpace

SHAPE = ViTShape(
    patches=16,
    prefix_tokens=1,
    patch_dim=3 * 8 * 8,
    embed_dim=32,
    num_classes=4,
    blocks=(BlockShape(num_heads=4, head_dim=8, hidden_dim=64),) * 4,
    fixed_params=7332,
)


def ratio_of(space: Combined, data: st.DataObject) -> RatioPair:
    return RatioPair(
        data.draw(st.sampled_from(space.mhsa_ratios)), data.draw(st.sampled_from(space.ffn_ratios))
    )


@given(by_cascade=st.floats(0, 1), class_only=st.booleans(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_combined_ratios_are_shares_of_the_modules_macs(
    by_cascade: float, class_only: bool, data: st.DataObject
) -> None:
    space = Combined(TokenSpace(SHAPE, LATE, class_only=class_only), by_cascade)
    pair = ratio_of(space, data)
    attention = SHAPE.attention_dims * SHAPE.dim_macs * (1 - pair.mhsa_ratio)
    ffn = SHAPE.neurons * SHAPE.neuron_macs * (1 - pair.ffn_ratio)
    assert 0 <= attention + ffn + SHAPE.fixed_macs - space.pruned_macs(pair) <= 2


@given(by_cascade=st.floats(0, 1), data=st.data())
@settings(max_examples=40, deadline=None)
def test_tokens_of_combined_ratios_never_cost_more_than_these_leave(
    by_cascade: float, data: st.DataObject
) -> None:
    """So that a ratio that is small prunes no weights where tokens alone save enough."""
    space = Combined(TokenSpace(SHAPE, LATE, class_only=True), by_cascade)
    pair = ratio_of(space, data)
    tokens = replace(SHAPE, block_tokens=space.tokens(pair))
    if by_cascade == 1:
        return
    # Left-out FFN tokens save in proportion, so what the cascade takes is at most what is asked.
    ffn = sum(
        b.hidden_dim * SHAPE.unit_macs(t)[1]
        for b, t in zip(SHAPE.blocks, tokens.block_tokens, strict=True)
    )
    assert ffn >= space.module_macs(pair)[1] - 1


def test_combined_begins_with_what_is_free() -> None:
    space = Combined(TokenSpace(SHAPE, LATE, class_only=True))
    tokens = space.tokens(RatioPair(0.15, 0.15))
    assert [counts.ffn for counts in tokens[:3]] == [17, 17, 17]
    assert tokens[3].ffn < 17


def test_combined_refuses_heads_and_shares_out_of_range() -> None:
    with pytest.raises(InputError, match="structural pruning removes the heads"):
        Combined(TokenSpace(SHAPE, CascadeRule(by_range=False, heads=True)))
    with pytest.raises(InputError, match=r"in \[0, 1\], but got 1.5"):
        Combined(TokenSpace(SHAPE, LATE), 1.5)


def test_combined_refuses_sizes_that_are_no_multiples() -> None:
    with pytest.raises(InputError, match="`round_to` must be at least 1"):
        Combined(TokenSpace(SHAPE, LATE), round_to=0)
    assert Combined(TokenSpace(SHAPE, LATE), round_to=4).minimum == (
        "1 head, 4 ranks, 8 neurons and 1 patch"
    )
