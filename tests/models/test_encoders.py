"""timm's models without a classifier go the whole way that classifiers go."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense, load_pruned
from vit_ratio_opt.model_files.save import save_dense, save_pruned
from vit_ratio_opt.models.blocks import ViT, branches
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.calibration import calibrate
from vit_ratio_opt.pruning.count import count_macs
from vit_ratio_opt.pruning.fisher import branch_costs
from vit_ratio_opt.pruning.importance import magnitude_importance, taylor_importance
from vit_ratio_opt.pruning.options import Both, CalibrationOptions, Pruning, Structural, Tokens
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.pruning.pruner import ModelPruner
from vit_ratio_opt.pruning.reconstruct import repair
from vit_ratio_opt.space.pairs import RatioPair

# Each class of models, each pooling that it has.
ENCODERS = [
    ("vit_tiny_patch16_224", "token"),
    ("vit_tiny_patch16_224", "avg"),
    ("vit_tiny_patch16_224", ""),
    ("vit_small_patch14_reg4_dinov2", ""),
    ("vit_giant_patch14_dinov2", "token"),
    ("vit_base_patch16_siglip_224", "map"),
    ("vit_base_patch16_clip_224", ""),
    ("vit_small_patch16_dinov3", ""),
    ("vit_small_patch16_dinov3", "avg"),
    ("beit_base_patch16_224", "avg"),
    ("cait_xxs24_224", ""),
    ("deit_tiny_distilled_patch16_224", "token"),
]
IDS = [f"{name}-{pool or 'tokens'}" for name, pool in ENCODERS]
encoders = pytest.mark.parametrize(("name", "pool"), ENCODERS, ids=IDS)


@cache
def encoder(name: str = "vit_tiny_patch16_224", pool: str = "") -> ViT:
    torch.manual_seed(0)
    size = 56 if "patch14" in name else 64
    model = create_model(
        name, img_size=size, embed_dim=32, depth=2, num_heads=4, num_classes=0, global_pool=pool
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images_for(model: ViT, count: int = 32) -> torch.Tensor:
    size = (count, 3, *model.patch_embed.img_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(1))


@encoders
def test_an_encoder_is_counted_calibrated_pruned_repaired_and_saved(
    name: str, pool: str, tmp_path: Path
) -> None:
    dense = encoder(name, pool)
    images = [images_for(dense)]
    shape = shape_of(dense)
    assert shape.num_classes == 0
    known = calibrate(dense, images)
    pruned = prune(dense, (0.4, 0.6), known)
    before = features_error(pruned, dense, images[0])
    repair(pruned, images, known)
    assert features_error(pruned, dense, images[0]) < before
    assert pruned(images[0]).shape == dense(images[0]).shape
    traced = count_macs(pruned, images[0][:1])
    macs = sum(count for operator, count in traced.items() if "norm" not in operator)
    assert shape_of(pruned).macs == macs < shape.macs
    save_dense(dense, tmp_path / "dense.safetensors")
    save_pruned(pruned, tmp_path / "pruned.safetensors", {})
    for model, loaded in (
        (dense, load_dense(tmp_path / "dense.safetensors")),
        (pruned, load_pruned(tmp_path / "pruned.safetensors")[0]),
    ):
        assert torch.equal(loaded(images[0]), model(images[0]))


@torch.no_grad()
def features_error(pruned: ViT, dense: ViT, images: torch.Tensor) -> float:
    got, wanted = pruned.forward_features(images), dense.forward_features(images)
    return float((got - wanted).square().mean())


@pytest.mark.parametrize("pool", ["token", "avg", ""])
def test_the_loss_of_features_is_half_their_mean_squared_error_in_units_of_variance(
    pool: str,
) -> None:
    """Noise in a branch's output costs what calibration expects of it."""
    model, size = encoder(pool=pool), 0.02
    images = images_for(model, 64)
    costs = branch_costs(model, [images], 0, 17)
    with torch.no_grad():
        wanted = model(images)
        variance = wanted.flatten(0, -2).var(dim=0, correction=0)
        generator = torch.Generator().manual_seed(0)
        for index, branch in enumerate(b for pair in branches(model) for b in pair):

            def add_noise(module: object, args: object, out: torch.Tensor) -> torch.Tensor:
                return out + size * torch.randn(out.shape, generator=generator)

            handle = branch.last.register_forward_hook(add_noise)
            error = torch.stack([(model(images) - wanted).square() for _ in range(4)])
            handle.remove()
            measured = float((error / variance).mean()) / 2
            expected = size**2 * float(costs[index].root.square().sum())
            assert expected == pytest.approx(measured, rel=0.15)


def test_the_scale_of_a_channel_of_the_features_does_not_matter() -> None:
    first, second = encoder(pool="token"), encoder.__wrapped__(pool="token")
    with torch.no_grad():
        for parameter in second.norm.parameters():
            parameter.mul_(torch.logspace(-0.5, 0.5, 32))
    images = [images_for(first)]
    for one, other in zip(
        calibrate(first, images).blocks, calibrate(second, images).blocks, strict=True
    ):
        torch.testing.assert_close(one.neuron_losses, other.neuron_losses, rtol=1e-3, atol=0)


def test_only_what_the_model_gives_is_measured() -> None:
    """Where only the class token is given, the last FFN's other tokens weigh nothing."""
    images = [images_for(encoder())]
    weights = {
        pool: calibrate(encoder(pool=pool), images).blocks[-1].ffn_weights
        for pool in ("token", "avg", "")
    }
    assert weights["token"][0] == pytest.approx(1)
    assert weights["avg"][0] == pytest.approx(0)
    assert 0 < weights[""][0] < 0.9


def test_one_image_of_constant_features_is_enough() -> None:
    for pool in ("token", ""):
        model = encoder(pool=pool)
        known = calibrate(model, [images_for(model, 1)])
        assert all(block.neuron_losses.isfinite().all() for block in known.blocks)


def test_whole_heads_of_an_encoder_go_by_norms_and_not_by_labels() -> None:
    model = encoder(pool="token")
    images = images_for(model)
    assert prune(model, (0.5, 0.5), magnitude_importance(model))(images).shape == (32, 32)
    with pytest.raises(InputError, match="no classifier"):
        taylor_importance(model, [(images, torch.zeros(32, dtype=torch.int64))])


@pytest.mark.parametrize("pruning", [Structural(), Tokens(), Both()])
def test_every_strategy_prunes_an_encoder(pruning: Pruning, tmp_path: Path) -> None:
    dense = encoder()
    images = images_for(dense)
    options = CalibrationOptions(cache=tmp_path)
    pruner = ModelPruner(dense, [images], pruning=pruning, calibration=options)
    pruned = pruner.prune(RatioPair(0.3, 0.3))
    assert shape_of(pruned).macs < shape_of(dense).macs
    assert pruned(images).shape == dense(images).shape


def test_a_classifier_of_single_tokens_is_refused() -> None:
    model = encoder.__wrapped__()
    model.reset_classifier(5)
    with pytest.raises(InputError, match="no pooling"):
        calibrate(model, [images_for(model)])


def test_the_classifier_of_a_file_is_left_out_where_none_is_wanted(tmp_path: Path) -> None:
    model = encoder.__wrapped__(pool="token")
    model.reset_classifier(5)
    path = tmp_path / "dense.safetensors"
    save_dense(model, path)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    images = images_for(model, 2)
    expected = model.forward_head(model.forward_features(images), pre_logits=True)
    sizes = {"num_heads": 4, "name": "vit_tiny_patch16_224"}
    for loaded in (
        load_dense(path, num_classes=0),
        load_dense(tmp_path / "weights.pth", num_classes=0, **sizes),
    ):
        assert shape_of(loaded).num_classes == 0
        assert torch.equal(loaded(images), expected)


def test_a_file_without_a_classifier_says_how_to_load_it(tmp_path: Path) -> None:
    torch.save(encoder(pool="token").state_dict(), tmp_path / "weights.pth")
    sizes = {"num_heads": 4, "name": "vit_tiny_patch16_224"}
    with pytest.raises(InputError, match="num_classes=0"):
        load_dense(tmp_path / "weights.pth", **sizes)
    loaded = load_dense(tmp_path / "weights.pth", num_classes=0, **sizes)
    images = images_for(loaded, 2)
    assert torch.equal(loaded(images), encoder(pool="token")(images))
