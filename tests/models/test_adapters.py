"""Adapters are merged on request, and refused with that advice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from vit_ratio_opt.errors import UnsupportedModelError
from vit_ratio_opt.models.adapters import merge_adapters
from vit_ratio_opt.models.convert import to_timm
from vit_ratio_opt.models.shape import shape_of


class LoRA(nn.Module):
    """Around a layer, as in most hand-written code."""

    def __init__(self, layer: nn.Linear, rank: int = 2, scale: float = 0.5) -> None:
        super().__init__()
        self.layer, self.scale, self.drop = layer, scale, nn.Dropout(0.5)
        self.lora_A = nn.Linear(layer.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.lora_B(self.lora_A(self.drop(x)))
        return self.layer(x) + self.scale * added


class LoRALinear(nn.Linear):
    """In a subclass with parameters, as in loralib."""

    def __init__(self, layer: nn.Linear, rank: int = 2) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.load_state_dict(layer.state_dict())
        self.lora_A = nn.Parameter(torch.randn(rank, layer.in_features))
        self.lora_B = nn.Parameter(torch.randn(layer.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.lora_A.mT @ self.lora_B.mT


class Bent(LoRA):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.lora_B(self.lora_A(x).relu())


class Counted(LoRA):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dim() == 4  # windows of patches, as in SAM
        return super().forward(x)


class PeftModel(nn.Module):
    """As peft's: it gives the model back on request."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model.requires_grad_(False)

    def merge_and_unload(self) -> nn.Module:
        return self.base_model


def adapt(model: nn.Module, kind: type, *names: str) -> nn.Module:
    for name in names:
        parent, _, own = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, own, kind(getattr(owner, own)))
    return model.eval()


PLACES = ("blocks.0.attn.qkv", "blocks.1.attn.proj", "blocks.1.mlp.fc1", "head")


@pytest.mark.parametrize("kind", [LoRA, LoRALinear])
def test_a_merged_model_computes_the_same_and_can_be_pruned(
    make_vit, images: torch.Tensor, kind: type
) -> None:
    plain = make_vit()
    model = adapt(copy.deepcopy(plain), kind, *PLACES).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    merged: Any = merge_adapters(model)
    assert shape_of(merged) == shape_of(plain)
    torch.testing.assert_close(merged(images), model(images))
    assert (merged(images) - plain(images)).abs().max() > 0.1
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    untouched = merged.blocks[0].mlp.fc1.weight
    assert untouched.equal(plain.blocks[0].mlp.fc1.weight)


def test_an_adapter_that_adds_nothing_leaves_the_weights_to_the_bit(make_vit) -> None:
    plain = make_vit()
    model = adapt(copy.deepcopy(plain), LoRA, *PLACES)
    for name in PLACES:
        nn.init.zeros_(model.get_submodule(name).lora_B.weight)
    merged = merge_adapters(model).state_dict()
    assert list(merged) == list(plain.state_dict())
    assert all(torch.equal(merged[key], value) for key, value in plain.state_dict().items())


def test_a_wrapper_gives_its_model_and_nothing_stays_frozen(make_vit) -> None:
    wrapped = PeftModel(make_vit())
    merged = merge_adapters(wrapped)
    assert merged is not wrapped.base_model
    assert all(parameter.requires_grad for parameter in merged.parameters())
    with pytest.raises(UnsupportedModelError, match=r"PeftModel has an adapter.*merge_adapters"):
        shape_of(wrapped)


def test_a_layer_without_bias_gets_none() -> None:
    merged = merge_adapters(LoRA(nn.Linear(4, 3, bias=False)))
    assert isinstance(merged, nn.Linear)
    assert merged.bias is None


@pytest.mark.parametrize("use", [shape_of, to_timm])
def test_a_model_with_adapters_is_refused_with_the_advice(make_vit, use) -> None:
    model = adapt(make_vit(), LoRA, "blocks.0.attn.qkv")
    with pytest.raises(
        UnsupportedModelError, match=r"`blocks.0.attn.qkv` has an adapter.*merge_adapters\(model\)"
    ):
        use(model)


@pytest.mark.parametrize("kind", [Bent, Counted])
def test_adapters_that_are_no_linear_layer_are_refused(make_vit, kind: type) -> None:
    model = adapt(make_vit(), kind, "blocks.0.mlp.fc2")
    with pytest.raises(UnsupportedModelError, match=r"`blocks.0.mlp.fc2` has an adapter .*remove"):
        merge_adapters(model)


def test_an_adapter_of_a_convolution_is_refused(make_vit) -> None:
    class Adapter(nn.Module):
        def __init__(self, base_layer: nn.Conv2d) -> None:
            super().__init__()
            self.base_layer = base_layer

    model = adapt(make_vit(), Adapter, "patch_embed.proj")
    with pytest.raises(UnsupportedModelError, match=r"\(Adapter\) of no linear layer"):
        merge_adapters(model)


@pytest.mark.parametrize("use_dora", [False, True])
def test_pefts_models_are_merged(make_vit, images: torch.Tensor, use_dora: bool) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, target_modules=["qkv", "fc1"], modules_to_save=["head"], use_dora=use_dora
    )
    model = peft.get_peft_model(make_vit(), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    merged: Any = merge_adapters(model)
    torch.testing.assert_close(merged(images), model(images), rtol=1e-4, atol=1e-4)
    injected = peft.inject_adapter_in_model(config, make_vit()).eval()
    torch.testing.assert_close(merge_adapters(injected)(images), injected(images))
    assert shape_of(merged) == shape_of(make_vit())
