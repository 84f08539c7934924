import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import timm
import torch
from timm.layers import Attention, GatedMlp, SwiGLU, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import nn

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.models.surgery import keep_units, shrink_to
from vit_ratio_opt.pruning.calibration import calibrate
from vit_ratio_opt.pruning.importance import Importance, magnitude_importance, taylor_importance
from vit_ratio_opt.pruning.prune import prune

MakeViT = Callable[..., VisionTransformer]
Units = Sequence[Sequence[int]]

HEADS: Units = [[1, 3], [0]]
NEURONS: Units = [range(0, 64, 3), range(8, 40)]
ALL_HEADS: Units = [range(4)] * 2
ALL_NEURONS: Units = [range(64)] * 2

DISTILLED = {"name": "deit_tiny_distilled_patch16_224"}
VARIANTS = [
    {},
    DISTILLED,
    {"qkv_bias": False},
    {"proj_bias": False},
    {"init_values": 1e-5, "pre_norm": True},
    {"reg_tokens": 4, "no_embed_class": True},
    {"class_token": False, "reg_tokens": 2, "global_pool": "avg"},
    {"class_token": False, "global_pool": "map"},
    {"qk_norm": True},
    {"mlp_layer": SwiGLU},
    {"mlp_layer": SwiGLUPacked, "mlp_ratio": 4.0, "proj_bias": False},
    {"block_fn": ResPostBlock},
    {"block_fn": ParallelThingsBlock, "depth": 1, "init_values": 0.1},
    {"block_fn": ParallelScalingBlock},
    {"block_fn": ParallelScalingBlock, "qkv_bias": False, "qk_norm": True, "init_values": 0.1},
    {"dynamic_img_size": True},
]


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_same_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in weights)


# Exactness


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize(
    ("heads", "neurons"),
    [(HEADS, ALL_NEURONS), (ALL_HEADS, NEURONS), (HEADS, NEURONS)],
    ids=["heads", "neurons", "both"],
)
@torch.no_grad()
def test_pruned_equals_masked(
    make_vit: MakeViT,
    images: torch.Tensor,
    changes: dict,
    heads: Units,
    neurons: Units,
    masked_outputs: Callable,
) -> None:
    model = make_vit(**changes)
    expected = masked_outputs(model, images, heads, neurons)
    assert not torch.allclose(expected, model(images), atol=1e-2)  # the masks do something
    outputs = keep_units(model, heads, neurons)(images)
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pruned_equals_masked_in_distilled_training(
    make_vit: MakeViT, images: torch.Tensor, masked_outputs: Callable
) -> None:
    model = make_vit(**DISTILLED)
    model.set_distilled_training(True)
    model.train()  # no dropout in it, and two outputs instead of their mean
    expected = masked_outputs(model, images, HEADS, NEURONS)
    outputs = keep_units(model, HEADS, NEURONS)(images)
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pruned_equals_masked_in_double_precision(
    make_vit: MakeViT, images: torch.Tensor, masked_outputs: Callable
) -> None:
    model, images = make_vit().double(), images.double()
    pruned = keep_units(model, HEADS, NEURONS)
    expected = masked_outputs(model, images, HEADS, NEURONS)
    torch.testing.assert_close(pruned(images), expected, atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_pruned_equals_masked_without_fused_attention(
    tiny_vit: VisionTransformer, images: torch.Tensor, masked_outputs: Callable
) -> None:
    for block in tiny_vit.blocks:
        block.attn.fused_attn = False
    expected = masked_outputs(tiny_vit, images, HEADS, NEURONS)
    outputs = keep_units(tiny_vit, HEADS, NEURONS)(images)
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@torch.no_grad()
def test_zero_ratio_is_identity(make_vit: MakeViT, images: torch.Tensor, changes: dict) -> None:
    model = make_vit(**changes)
    same = prune(model, (0, 0), magnitude_importance(model))
    assert same is not model
    assert_same_weights(same, snapshot(model))
    assert torch.equal(same(images), model(images))


def test_pruning_twice_equals_pruning_once(tiny_vit: VisionTransformer) -> None:
    once = keep_units(tiny_vit, [[3], [0]], [[0, 9], [10, 12]])
    twice = keep_units(keep_units(tiny_vit, HEADS, NEURONS), [[1], [0]], [[0, 3], [2, 4]])
    assert_same_weights(twice, snapshot(once))


# What comes back


@pytest.mark.parametrize("changes", [{}, DISTILLED], ids=str)
def test_result_is_a_plain_smaller_timm_model(make_vit: MakeViT, changes: dict) -> None:
    model = make_vit(**changes)
    pruned = keep_units(model, HEADS, NEURONS)
    assert type(pruned) is (VisionTransformerDistilled if changes else VisionTransformer)
    assert [type(module) for module in pruned.modules()] == [type(m) for m in model.modules()]
    state, attn, mlp = pruned.state_dict(), pruned.blocks[0].attn, pruned.blocks[0].mlp
    assert state["blocks.0.attn.qkv.weight"].shape == (3 * 2 * 8, 32)
    assert state["blocks.0.attn.qkv.bias"].shape == (3 * 2 * 8,)
    assert state["blocks.0.attn.proj.weight"].shape == (32, 2 * 8)
    assert state["blocks.0.mlp.fc1.weight"].shape == (22, 32)
    assert state["blocks.0.mlp.fc2.weight"].shape == (32, 22)
    assert (attn.qkv.out_features, attn.proj.in_features) == (48, 16)
    assert (mlp.fc1.out_features, mlp.fc2.in_features) == (22, 22)
    # No view keeps the dense weights alive.
    assert all(p.untyped_storage().nbytes() == p.numel() * 4 for p in pruned.parameters())


def test_original_is_untouched(tiny_vit: VisionTransformer, images: torch.Tensor) -> None:
    before, shape = snapshot(tiny_vit), shape_of(tiny_vit)
    pruned = keep_units(tiny_vit, HEADS, NEURONS)
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.zero_()
    assert_same_weights(tiny_vit, before)
    assert shape_of(tiny_vit) == shape


def test_pruned_model_trains(tiny_vit: VisionTransformer, images: torch.Tensor) -> None:
    pruned = keep_units(tiny_vit, HEADS, NEURONS).train()
    pruned(images).square().sum().backward()
    for name, parameter in pruned.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.shape == parameter.shape, name
        assert parameter.grad.abs().sum() > 0, name


def test_frozen_weights_stay_frozen(tiny_vit: VisionTransformer) -> None:
    tiny_vit.blocks[0].requires_grad_(False)
    pruned = keep_units(tiny_vit, HEADS, NEURONS)
    frozen = {name for name, p in pruned.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in pruned.named_parameters() if name.startswith("blocks.0")}


@torch.no_grad()
def test_deepcopy_of_pruned_gives_the_same_outputs(
    tiny_vit: VisionTransformer, images: torch.Tensor
) -> None:
    pruned = keep_units(tiny_vit, HEADS, NEURONS)
    assert torch.equal(copy.deepcopy(pruned)(images), pruned(images))


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@torch.no_grad()
def test_shrink_and_load_round_trip(
    make_vit: MakeViT, images: torch.Tensor, changes: dict
) -> None:
    model = make_vit(**changes)
    pruned = keep_units(model, HEADS, NEURONS)
    for parameter in model.parameters():
        parameter.zero_()
    loaded = shrink_to(model, shape_of(pruned).blocks)
    loaded.load_state_dict(pruned.state_dict())
    assert torch.equal(loaded(images), pruned(images))


# Refusals


@pytest.mark.parametrize(
    "change", [{"num_heads": 5}, {"hidden_dim": 65}, {"head_dim": 9}, {"num_heads": 0}], ids=str
)
def test_shrinking_to_what_does_not_fit_is_refused(
    tiny_vit: VisionTransformer, change: dict
) -> None:
    first, second = shape_of(tiny_vit).blocks
    with pytest.raises(InputError, match="Block 1 is"):
        shrink_to(tiny_vit, [first, replace(second, **change)])
    with pytest.raises(InputError, match="2 blocks, but 1 shapes"):
        shrink_to(tiny_vit, [first])


@pytest.mark.parametrize(
    ("heads", "neurons", "message"),
    [
        ([[0]], NEURONS, "`heads` must list 2 blocks, but lists 1"),
        ([[0], []], NEURONS, r"`heads\[1\]` must be different indices in \[0, 4\)"),
        ([[0], [4]], NEURONS, r"`heads\[1\]`"),
        ([[-1], [0]], NEURONS, r"`heads\[0\]`"),
        (HEADS, [[0, 0], [0]], r"`neurons\[0\]` must be different indices in \[0, 64\)"),
        (HEADS, [[0]] * 3, "`neurons` must list 2 blocks, but lists 3"),
    ],
)
def test_units_that_do_not_fit_are_refused(
    tiny_vit: VisionTransformer, heads: Units, neurons: Units, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        keep_units(tiny_vit, heads, neurons)


def gated(make_vit: MakeViT) -> VisionTransformer:
    model = make_vit()
    model.blocks[1].attn = Attention(32, num_heads=4, gated=True)
    return model


def with_subclassed_linear(make_vit: MakeViT) -> VisionTransformer:
    class OwnLinear(nn.Linear):
        pass

    model = make_vit()
    model.blocks[1].mlp.fc2 = OwnLinear(64, 32)
    return model


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda make: make(scale_attn_norm=True), "attn.norm` has a norm over heads"),
        (lambda make: make(scale_mlp_norm=True), "mlp.norm` has a norm over neurons"),
        (gated, "blocks.1.attn.gate"),
        (with_subclassed_linear, "blocks.1.mlp.fc2` has layer class OwnLinear"),
        (lambda make: make(attn_layer="diff"), "DiffAttention"),
        (lambda make: make(mlp_layer=GatedMlp), "GatedMlp"),
        (lambda make: make(block_fn=DiffParallelScalingBlock), "DiffParallelScalingBlock"),
        (lambda make: make(global_pool="prr"), "AttentionPoolPrr"),
    ],
)
def test_unsupported_module_is_refused_by_name(
    make_vit: MakeViT, images: torch.Tensor, labels: torch.Tensor, build: Callable, name: str
) -> None:
    model = build(make_vit)
    before = snapshot(model)
    scores = Importance((torch.ones(4),) * 2, (torch.ones(64),) * 2)
    for use in (
        check_supported,
        shape_of,
        magnitude_importance,
        lambda m: keep_units(m, HEADS, NEURONS),
        lambda m: prune(m, (0.5, 0.5), scores),
        lambda m: taylor_importance(m, [(images, labels)]),
    ):
        with pytest.raises(UnsupportedModelError) as error:
            use(model)
        assert name in str(error.value)
        assert "VisionTransformerDistilled" in str(error.value)  # what works instead
    assert_same_weights(model, before)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "changes", "class_name"),
    [
        (
            "swin_tiny_patch4_window7_224",
            {"embed_dim": 24, "depths": (1, 1, 1, 1)},
            "SwinTransformer",
        ),
        ("xcit_nano_12_p16_224", {"depth": 1}, "Xcit"),
        ("resnet18", {}, "ResNet"),
    ],
)
def test_unsupported_architecture_is_refused_by_name(
    name: str, changes: dict, class_name: str
) -> None:
    model = timm.create_model(name, **changes)
    with pytest.raises(UnsupportedModelError, match=rf"class {class_name} cannot be pruned"):
        check_supported(model)


@pytest.mark.parametrize(
    "name",
    [
        "beit_base_patch16_224",
        "cait_xxs24_224",
        "eva02_tiny_patch14_224",
        "vit_base_patch16_xp_224",
    ],
)
def test_what_create_model_puts_into_other_layers_is_refused_without_it(name: str) -> None:
    model = timm.create_model(name, depth=1, embed_dim=32, num_heads=4)
    with pytest.raises(UnsupportedModelError, match=r"make the model with `vit_ratio_opt.create"):
        check_supported(model)


def test_no_talking_head_goes_and_all_ranks_are_lowered_together() -> None:
    torch.manual_seed(0)
    model = create_model(
        "cait_xxs24_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4,
        num_classes=4,
    )  # fmt: skip
    images = torch.randn(16, 3, 32, 32)
    with pytest.raises(UnsupportedModelError, match="none can go"):
        keep_units(model, [[0, 1], [0, 1, 2, 3]], [range(128)] * 2)
    with pytest.raises(UnsupportedModelError, match="none can go"):
        prune(model, (0.5, 0.5), magnitude_importance(model))
    known = calibrate(model, [images])
    for allocation in ("global", "energy", "uniform"):
        pruned = shape_of(prune(model, (0.5, 0.5), known, allocation=allocation))
        assert all(block.num_heads == 4 for block in pruned.blocks)
        assert sum(block.head_dim for block in pruned.blocks) == 8
    rounded = shape_of(prune(model, (0.25, 0.5), known, round_to=4))
    assert sorted(block.head_dim for block in rounded.blocks) == [4, 8]
