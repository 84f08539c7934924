"""Spaces of small shapes and searches over them, for tests that train nothing."""

from collections.abc import Callable

from vit_ratio_opt.search.plan import Pair, Plan
from vit_ratio_opt.space.shape import BlockShape, ViTShape
from vit_ratio_opt.space.structural import StructuralSpace


def whole_head_space(*, hidden_dim: int, blocks: int) -> StructuralSpace:
    """Return the space of a ViT of width 64 with eight heads, which are removed as a whole."""
    shape = ViTShape(
        patches=64,
        prefix_tokens=1,
        patch_dim=48,
        embed_dim=64,
        num_classes=10,
        blocks=(BlockShape(num_heads=8, head_dim=8, hidden_dim=hidden_dim),) * blocks,
        fixed_params=0,
    )
    return StructuralSpace(shape, unit="head")


def try_pairs(plan: Plan, trials: int, value: Callable[[Pair], float]) -> dict[Pair, list[float]]:
    """Return the values of the pairs that a plan proposes in some trials."""
    observed: dict[Pair, list[float]] = {}
    for _ in range(trials):
        pair = plan.propose(observed).pair
        assert pair is not None
        observed.setdefault(pair, []).append(value(pair))
    return observed
