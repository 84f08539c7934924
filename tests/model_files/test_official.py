"""Checkpoints in the names of DINOv2's and DINOv3's own code are read as timm's models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.create import create_model

SIZES = {"embed_dim": 32, "depth": 4, "num_heads": 4}


def shaken(name: str, size: int = 56) -> ViT:
    torch.manual_seed(0)
    model = create_model(name, num_classes=0, img_size=size, **SIZES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def dinov2_names(model: ViT, chunks: int) -> dict[str, torch.Tensor]:
    """The tensors as DINOv2's code names them: block 3 of two chunks is ``blocks.1.3``."""
    state = dict(model.state_dict())
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        position = torch.randn(1, 1, 32)
        state["cls_token"] = state["cls_token"] - position
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    state["mask_token"] = torch.randn(1, 32)
    named = {}
    for key, tensor in state.items():
        if model.blocks[0].mlp.fc1.out_features != model.blocks[0].mlp.fc2.in_features:
            key = key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        if chunks:
            key = re.sub(
                r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) * chunks // 4}.{m[1]}", key
            )
        named[key] = tensor
    return named


@pytest.mark.parametrize(
    ("name", "chunks"),
    [
        ("vit_small_patch14_dinov2", 2),
        ("vit_small_patch14_reg4_dinov2", 0),
        ("vit_giant_patch14_dinov2", 2),
    ],
)
def test_dinov2s_own_names_are_read(tmp_path: Path, name: str, chunks: int) -> None:
    model = shaken(name)
    state = dinov2_names(model, chunks)
    assert any(re.match(r"blocks\.1\.3\.", key) for key in state) == bool(chunks)
    torch.save(state, tmp_path / "dinov2.pth")
    loaded = load_dense(tmp_path / "dinov2.pth", name=name, num_heads=4)
    images = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=1e-5)


def test_the_teacher_of_dinov2s_training_is_read_without_its_heads(tmp_path: Path) -> None:
    name = "vit_small_patch14_dinov2"
    model = shaken(name)
    teacher = {f"backbone.{key}": tensor for key, tensor in dinov2_names(model, 2).items()}
    teacher["dino_head.mlp.0.weight"] = torch.ones(2, 2)
    torch.save({"teacher": teacher}, tmp_path / "training.pth")
    loaded = load_dense(tmp_path / "training.pth", name=name, num_heads=4)
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_huge_plus_patch16_dinov3"])
def test_dinov3s_own_names_are_read(tmp_path: Path, name: str) -> None:
    model = shaken(name.replace("_dinov3", "_dinov3_qkvb"), 64)
    parts = {"reg_token": "storage_tokens", ".fc1_g.": ".w1.", ".fc1_x.": ".w2."}
    if "huge" in name:
        parts[".fc2."] = ".w3."
    state = {"mask_token": torch.ones(1, 32), "rope_embed.periods": torch.ones(2)}
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            new = re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key)
            for old, part in parts.items():
                new = new.replace(old, part)
            state[new] = tensor.clone()
            if key.endswith("qkv.bias"):  # a mask sets the keys' bias to zero
                tensor[32:64] = 0
                state[f"{new}_mask"] = torch.full((96,), float("nan"))
    torch.save(state, tmp_path / "dinov3.pth")
    loaded = load_dense(tmp_path / "dinov3.pth", name=name, num_heads=4, img_size=64)
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    assert torch.equal(loaded(images), model(images))
