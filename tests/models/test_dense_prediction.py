"""A pruned encoder inside of a larger model: its intermediate features, and its place there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from timm.models._features import FeatureGetterNet
from torch import nn

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.larger import replace_encoder
from vit_ratio_opt.models.separate import separate
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.calibration import calibrate
from vit_ratio_opt.pruning.cascade import check_cascade, prune_tokens, remove_cascade
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.pruning.reconstruct import repair
from vit_ratio_opt.space.shape import BlockTokens

FAMILY: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", {}),
    ("vit_small_patch16_18x2_224", {}),
    ("vit_small_patch14_reg4_dinov2", {"reg_tokens": 4}),
    ("deit_tiny_distilled_patch16_224", {}),
    ("vit_small_patch16_dinov3", {}),
    ("eva02_tiny_patch14_224", {}),
    ("beit_base_patch16_224", {}),
    ("cait_xxs24_224", {}),
]
IDS = [name for name, _ in FAMILY]
FAMILIES = pytest.mark.parametrize(("name", "changes"), FAMILY, ids=IDS)


@FAMILIES
def test_intermediate_features_are_those_of_the_pruned_blocks(
    make_vit, images: torch.Tensor, name: str, changes: dict[str, Any]
) -> None:
    model = make_vit(name, **changes)
    known = calibrate(model, [images])
    same, pruned = prune(model, (0.0, 0.0), known), prune(model, (0.5, 0.5), known)
    repair(pruned, [images], known)
    streams: list[torch.Tensor] = []
    for block in pruned.blocks:
        block.register_forward_hook(lambda _, args, out: streams.append(out))
    features, maps = pruned.forward_intermediates(images, indices=[0, 1])
    prefix = pruned.num_prefix_tokens if name[:4] != "cait" else 0
    for stream, found in zip(streams, maps, strict=True):
        assert found.shape == (8, 32, 4, 4)
        torch.testing.assert_close(found.flatten(2).mT, stream[:, prefix:])
    assert pruned.forward_features(images).equal(features)
    for own, dense in zip(
        same.forward_intermediates(images, intermediates_only=True),
        model.forward_intermediates(images, intermediates_only=True),
        strict=True,
    ):
        assert own.equal(dense)
    if hasattr(pruned, "get_intermediate_layers"):
        last = pruned.get_intermediate_layers(images, n=1, reshape=True)
        torch.testing.assert_close(last[0], maps[-1])


@pytest.mark.parametrize(("name", "changes"), FAMILY[:-1], ids=IDS[:-1])
def test_an_encoder_of_features_only_is_pruned_as_it_is(
    make_vit, images: torch.Tensor, name: str, changes: dict[str, Any]
) -> None:
    getter = FeatureGetterNet(make_vit(name, **changes), out_indices=(0, 1)).eval()
    dense = getter.model
    known = calibrate(dense, [images])
    pruned = prune(dense, (0.5, 0.5), known)
    repair(pruned, [images], known)
    smaller = replace_encoder(getter, pruned)
    assert smaller.model is pruned
    assert getter.model is dense
    before, after = getter(images), smaller(images)
    assert [tuple(found.shape) for found in after] == [(8, 32, 4, 4)] * 2
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(after, before, strict=True))
    assert sum(p.numel() for p in smaller.parameters()) == shape_of(pruned).params


@FAMILIES
def test_features_only_takes_a_pruned_model(
    make_vit, images: torch.Tensor, name: str, changes: dict[str, Any]
) -> None:
    model = make_vit(name, **changes)
    pruned = prune(model, (0.5, 0.5), calibrate(model, [images]))
    expected = pruned.forward_intermediates(images, indices=[0], intermediates_only=True)
    getter = FeatureGetterNet(pruned, out_indices=(0,)).eval()
    assert len(getter.model.blocks) == 1
    torch.testing.assert_close(getter(images), expected)


def test_an_encoder_without_an_output_of_its_own_is_refused(make_vit) -> None:
    getter = FeatureGetterNet(make_vit("cait_xxs24_224"), out_indices=(0,))
    with pytest.raises(UnsupportedModelError, match="make the FeatureGetterNet of the pruned one"):
        shape_of(getter.model)


def test_timms_features_only_can_be_pruned(images: torch.Tensor) -> None:
    getter = timm.create_model(
        "vit_tiny_patch16_224", features_only=True, out_indices=(-2, -1), img_size=32,
        patch_size=8, embed_dim=32, depth=3, num_heads=4,
    )  # fmt: skip
    separate(getter.model)
    pruned = prune(getter.model, (0.5, 0.5), calibrate(getter.model, [images]))
    assert [f.shape for f in replace_encoder(getter, pruned)(images)] == [(8, 32, 4, 4)] * 2


# Blocks that leave out patches


@pytest.fixture
def cascade(tiny_vit) -> Any:
    return prune_tokens(tiny_vit, [BlockTokens(17, 17, 17), BlockTokens(9, 17, 9)])


def _checkpointed(model):
    """As a user does it after pruning, in training."""
    model = copy.deepcopy(model).train()
    model.set_grad_checkpointing()
    return model


def test_a_cascade_refuses_what_would_run_its_blocks_one_by_one(
    cascade, images: torch.Tensor
) -> None:
    for use in (
        lambda: cascade.forward_intermediates(images),
        lambda: cascade.get_intermediate_layers(images, reshape=True),
        lambda: cascade.forward_features(images, is_causal=True),
        lambda: FeatureGetterNet(copy.deepcopy(cascade), out_indices=(0,))(images),
        lambda: list(cascade.blocks),
        lambda: _checkpointed(cascade)(images),
    ):
        with pytest.raises(UnsupportedModelError, match="no intermediate features of all patches"):
            use()
    assert len(list(cascade.blocks.children())) == len(cascade.blocks) == 2
    assert cascade.blocks[1].attn is not None
    assert len(remove_cascade(cascade).forward_intermediates(images)[1]) == 2


def test_a_cascade_is_refused_where_blocks_are_checkpointed(tiny_vit) -> None:
    tiny_vit.set_grad_checkpointing()
    with pytest.raises(InputError, match="set_grad_checkpointing"):
        check_cascade(tiny_vit)


# The encoder's place


class Segmenter(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = nn.Conv2d(32, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.decoder(self.encoder.forward_intermediates(x)[1][-1])
        return maps


def test_a_larger_model_is_copied_around_the_pruned_encoder(
    tiny_vit, calibration, images: torch.Tensor
) -> None:
    large = Segmenter(tiny_vit).train()
    pruned = prune(tiny_vit, (0.5, 0.5), calibration)
    small = replace_encoder(large, pruned)
    assert small.encoder is pruned
    assert small.training
    assert pruned.training
    assert large.encoder is tiny_vit
    assert small.decoder is not large.decoder
    assert small.decoder.weight.equal(large.decoder.weight)
    assert small(images).shape == (8, 5, 4, 4)
    assert all(parameter.requires_grad for parameter in small.parameters())


def test_a_frozen_encoder_stays_frozen_in_a_larger_model(tiny_vit, calibration) -> None:
    tiny_vit.requires_grad_(False)
    pruned = prune(tiny_vit, (0.5, 0.5), calibration).requires_grad_(True)
    small = replace_encoder(Segmenter(tiny_vit), pruned)
    trained = {name for name, p in small.named_parameters() if p.requires_grad}
    assert trained == {"decoder.weight", "decoder.bias"}


def test_an_encoder_that_does_not_fit_is_refused(make_vit, tiny_vit, calibration, cascade) -> None:
    pruned = prune(tiny_vit, (0.5, 0.5), calibration)
    two = nn.ModuleList([tiny_vit, make_vit()])
    large, twice = Segmenter(tiny_vit), Segmenter(tiny_vit)
    twice.last = tiny_vit.blocks[-1]  # type: ignore[assignment]
    wider = Segmenter(make_vit(embed_dim=64))
    for model, given, name, message in (
        (large, cascade, None, "leaves out patches, which would be missing"),
        (tiny_vit, pruned, None, "an encoder itself"),
        (nn.Linear(2, 2), pruned, None, "but has none: put the pruned one"),
        (two, pruned, None, r"but has \['0', '1'\]: name one"),
        (large, pruned, "decoder", r"no encoder 'decoder' in the model: it has \['encoder'\]"),
        (twice, pruned, None, "`last` is a part of the encoder `encoder` under a second name"),
        (wider, pruned, None, "of the same architecture"),
    ):
        with pytest.raises(InputError, match=message):
            replace_encoder(model, given, name)
    assert replace_encoder(two, pruned, "1")[1] is pruned
