from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.calibration import Calibration, calibrate
from vit_ratio_opt.pruning.factorize import factorize_attention, rank_losses
from vit_ratio_opt.pruning.prune import prune


def at_rank(model: VisionTransformer, images: torch.Tensor, rank: int) -> VisionTransformer:
    """Every block factorised, also where nothing is left out; with all its heads."""
    calibration = calibrate(model, [images])
    smaller = prune(model, (0, 0), calibration)
    for block, known in zip(smaller.blocks, calibration.blocks, strict=True):
        heads = list(range(block.attn.num_heads))
        block.attn = factorize_attention(block.attn, known.factors, heads, rank)
    return smaller


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"qkv_bias": False}),
        ("vit_tiny_patch16_224", {"proj_bias": False}),
        ("vit_tiny_patch16_224", {"init_values": 0.1, "reg_tokens": 2}),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
        ("deit_tiny_distilled_patch16_224", {}),
    ],
    ids=str,
)
def test_full_rank_gives_the_dense_outputs(
    make_vit: Callable[..., VisionTransformer],
    images: torch.Tensor,
    name: str,
    changes: dict[str, object],
    fused: bool,
) -> None:
    model = make_vit(name, **changes)
    for block in model.blocks:
        block.attn.fused_attn = fused
    with torch.no_grad():
        torch.testing.assert_close(
            at_rank(model, images, 8)(images), model(images), atol=1e-4, rtol=1e-4
        )


def test_a_head_that_uses_two_dimensions_loses_nothing_at_rank_two(
    tiny_vit: VisionTransformer, images: torch.Tensor
) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for block in tiny_vit.blocks:
            qkv = block.attn.qkv.weight.unflatten(0, (3, 4, 8))
            qkv.copy_(torch.rand(3, 4, 8, 2, generator=generator) @ qkv[:, :, :2] * 0.5)
            bias = block.attn.qkv.bias.unflatten(0, (3, 4, 8))
            bias.zero_()
        rank_two = at_rank(tiny_vit, images, 2)
        assert {block.head_dim for block in shape_of(rank_two).blocks} == {2}
        torch.testing.assert_close(rank_two(images), tiny_vit(images), atol=1e-4, rtol=1e-4)
        assert (at_rank(tiny_vit, images, 1)(images) - tiny_vit(images)).abs().max() > 1e-3


def test_a_lower_rank_is_the_best_that_data_weighting_gives(
    tiny_vit: VisionTransformer, images: torch.Tensor, calibration: Calibration
) -> None:
    """Against the same number of dimensions chosen at random, and against plain slicing."""
    dense = tiny_vit(images)

    def error(model: VisionTransformer) -> float:
        return float((model(images) - dense).square().mean())

    with torch.no_grad():
        best = error(at_rank(tiny_vit, images, 4))
        sliced = prune(tiny_vit, (0, 0), calibration)
        for block in sliced.blocks:
            for part in block.attn.qkv.weight.unflatten(0, (3, 4, 8)):
                part[:, 4:] = 0
        assert best < 0.5 * error(sliced)


def test_losses_fall_with_every_head_and_every_rank_down_to_nothing(
    tiny_vit: VisionTransformer, images: torch.Tensor
) -> None:
    for block in calibrate(tiny_vit, [images]).blocks:
        losses, order = rank_losses(block.factors)
        assert losses.shape == (4, 8)
        assert order.sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * 8
        assert (losses.diff(dim=1) <= 1e-12).all()
        assert losses[-1, -1] <= 1e-9 * losses[0, 0]
        assert losses[3, 0] > losses[3, 4] > 0


def test_a_head_without_use_goes_whole_and_first(
    tiny_vit: VisionTransformer, images: torch.Tensor
) -> None:
    attn = tiny_vit.blocks[1].attn
    with torch.no_grad():
        attn.proj.weight.unflatten(1, (4, 8))[:, 2] = 0
    calibration = calibrate(tiny_vit, [images])
    # One head of eight dimensions is two of the sixteen ranks.
    smaller = prune(tiny_vit, (2 / 16, 0), calibration)
    assert [(b.num_heads, b.head_dim) for b in shape_of(smaller).blocks] == [(4, 8), (3, 8)]
    with torch.no_grad():
        torch.testing.assert_close(smaller(images), tiny_vit(images), atol=1e-4, rtol=1e-4)
