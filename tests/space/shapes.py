"""Shapes of small ViTs and strategies that draw them, for the tests of this folder."""

from __future__ import annotations

from hypothesis import strategies as st

from vit_ratio_opt.space.curve import smallest_cost_ratio
from vit_ratio_opt.space.shape import BlockShape, ViTShape
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.space.units import MhsaUnit

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

# 24 ranks of which 21 can go, 192 neurons of which 168 can.
SMALL = ViTShape(
    patches=16, prefix_tokens=1, patch_dim=48, embed_dim=32, num_classes=10,
    blocks=(BlockShape(4, 8, 64),) * 3, fixed_params=1_000,
)  # fmt: skip
# Its latency as a study stores it.
LATENCY = {
    "rest": 1_000,
    "mhsa": [[0, 900], [10, 500], [21, 100]],
    "ffn": [[0, 2_000], [100, 1_500], [168, 400]],
}


@st.composite
def spaces(draw: st.DrawFn, max_heads: int = 8, max_hidden: int = 64) -> StructuralSpace:
    unit: MhsaUnit = draw(st.sampled_from(["head", "rank"]))
    # Units cost the same in every block when heads have one size, or blocks one number of heads.
    heads, head_dim = st.integers(1, max_heads), st.integers(1, 16)
    if unit == "head":
        head_dim = st.just(draw(head_dim))
    else:
        heads = st.just(draw(heads))
    block = st.builds(BlockShape, heads, head_dim, st.integers(1, max_hidden))
    shape = ViTShape(
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
    )
    return StructuralSpace(shape, unit)


@st.composite
def spaces_and_budgets(
    draw: st.DrawFn, max_heads: int = 8, max_hidden: int = 64
) -> tuple[StructuralSpace, float]:
    space = draw(spaces(max_heads, max_hidden))
    return space, draw(st.floats(smallest_cost_ratio(space), 1))
