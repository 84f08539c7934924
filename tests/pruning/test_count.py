from collections.abc import Callable

import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.count import count_macs
from vit_ratio_opt.pruning.importance import magnitude_importance
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.space.costs import PARAMS
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.structural import StructuralSpace

MakeViT = Callable[..., VisionTransformer]
PAIR = RatioPair(0.3, 0.6)
IMAGE = torch.zeros(1, 3, 32, 32)


def traced_macs(model: VisionTransformer, image: torch.Tensor) -> int:
    return sum(macs for name, macs in count_macs(model, image).items() if name != "layer_norm")


def assert_closed_form_is_exact(model: VisionTransformer, image: torch.Tensor) -> None:
    shape = shape_of(model)
    assert shape.macs == traced_macs(model, image)
    assert shape.params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "deit_small_patch16_224",
        "deit_base_distilled_patch16_224",
        "vit_base_patch16_clip_224",
        "vit_small_patch14_dinov2",
        "deit3_small_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "vit_medium_patch16_reg4_gap_256",
    ],
)
def test_closed_form_equals_fvcore_dense_and_pruned(name: str) -> None:
    size = 256 if name.endswith("256") else 224
    model = timm.create_model(name, img_size=size, depth=4, weight_init="skip").eval()
    image = torch.zeros(1, 3, size, size)
    assert_closed_form_is_exact(model, image)
    dense = StructuralSpace(shape_of(model), "head")
    params = StructuralSpace(dense.shape, "head", cost=PARAMS)
    pruned = prune(model, PAIR, magnitude_importance(model))
    assert_closed_form_is_exact(pruned, image)
    assert shape_of(pruned).macs == dense.pruned_macs(PAIR)
    assert shape_of(pruned).params == params.pruned_cost(PAIR)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "deit_tiny_distilled_patch16_224"},
        {"qkv_bias": False},
        {"proj_bias": False},
        {"num_classes": 0},
        {"global_pool": ""},
        {"class_token": False, "reg_tokens": 2, "global_pool": "avg"},
        {"pre_norm": True, "init_values": 0.1},
    ],
    ids=str,
)
def test_closed_form_equals_fvcore_on_variants(make_vit: MakeViT, changes: dict) -> None:
    model = make_vit(**changes)
    assert_closed_form_is_exact(model, IMAGE)
    assert_closed_form_is_exact(prune(model, PAIR, magnitude_importance(model)), IMAGE)


def test_macs_of_the_cifar_model_are_the_published_number(make_vit: MakeViT) -> None:
    model = make_vit(patch_size=4, embed_dim=64, depth=4, num_heads=8, num_classes=10)
    assert shape_of(model).macs == traced_macs(model, IMAGE) == 10_880_128


def test_fused_attention_is_counted_where_plain_fvcore_leaves_it_out(
    tiny_vit: VisionTransformer,
) -> None:
    attention = 2 * 2 * 17 * 17 * 32  # blocks x (Q K^T and A V)
    counts = count_macs(tiny_vit, IMAGE)
    plain = FlopCountAnalysis(tiny_vit, IMAGE).unsupported_ops_warnings(False).total()
    assert counts["scaled_dot_product_attention"] == attention
    assert sum(counts.values()) - plain == attention


@pytest.mark.parametrize("training", [False, True])
def test_counting_leaves_the_mode_of_every_module(
    tiny_vit: VisionTransformer, training: bool
) -> None:
    tiny_vit.train(training)
    tiny_vit.blocks[0].eval()  # a frozen block
    before = [module.training for module in tiny_vit.modules()]
    count_macs(tiny_vit, IMAGE)
    assert [module.training for module in tiny_vit.modules()] == before
