"""A family of one's own: a file like the first forty lines, and nothing of the package changes."""

import copy

import pytest
import torch
from timm.layers import Attention, Mlp, PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.model_files.load import load_pruned
from vit_ratio_opt.model_files.save import save_pruned
from vit_ratio_opt.models.families import FAMILIES
from vit_ratio_opt.models.family import AttentionKind, Branch, Family
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.surgery import keep_units
from vit_ratio_opt.pruning.calibration import calibrate
from vit_ratio_opt.pruning.count import count_macs
from vit_ratio_opt.pruning.importance import magnitude_importance, taylor_importance
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.pruning.reconstruct import repair
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.structural import StructuralSpace


class CosineAttention(Attention):
    """Swin v2's attention (Liu 2022): cosines of queries and keys, and a temperature per head."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads=num_heads, qkv_bias=True)
        self.temperature = nn.Parameter(torch.rand(num_heads, 1, 1) * 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        cosines = nn.functional.normalize(q, dim=-1) @ nn.functional.normalize(k, dim=-1).mT
        heads = (cosines * self.temperature).softmax(dim=-1) @ v
        return self.proj(heads.transpose(1, 2).flatten(2))


class CosineBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, **_: object) -> None:
        super().__init__()
        self.mix, self.mix_norm = CosineAttention(dim, num_heads), nn.LayerNorm(dim)
        self.dense, self.dense_norm = Mlp(dim, int(dim * mlp_ratio)), nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mix_norm(self.mix(x))  # after the module, as in Swin v2
        return x + self.dense(self.dense_norm(x))


class CosineViT(VisionTransformer):
    pass


FAMILY = Family(
    attentions={CosineAttention: AttentionKind(whole_heads=True, per_head={"temperature": 0})},
    blocks={
        CosineBlock: lambda block: [
            [Branch("attention", block, "mix", after=block.mix_norm)],
            [Branch("ffn", block, "dense", before=block.dense_norm)],
        ]
    },
)
FAMILIES[CosineViT] = FAMILY


# What the package does with it


class SmallViT(nn.Module):
    """A class that shares nothing with timm's models but the attributes that all families have."""

    num_prefix_tokens, global_pool = 0, "avg"

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 32
        self.patch_embed = PatchEmbed(32, 8, 3, 32)
        self.blocks = nn.ModuleList(CosineBlock(32, 4, 2.0) for _ in range(2))
        self.head = nn.Linear(32, 4)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(images)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.forward_features(images).mean(dim=1))


FAMILIES[SmallViT] = FAMILY

MAKE = {
    "subclass of timm's": lambda: CosineViT(
        32, 8, num_classes=4, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, block_fn=CosineBlock
    ),
    "class of its own": SmallViT,
}


@pytest.fixture(params=MAKE.values(), ids=MAKE)
def model(request) -> nn.Module:
    torch.manual_seed(0)
    model = request.param()
    with torch.no_grad():  # biases and class tokens start at (nearly) zero
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def guides(model, images, labels):
    return {
        "calibration": calibrate(model, [images]),
        "taylor": taylor_importance(model, [(images, labels)]),
        "magnitude": magnitude_importance(model),
    }


@pytest.mark.parametrize("guide", ["calibration", "taylor", "magnitude"])
@torch.no_grad()
def test_zero_ratio_keeps_the_outputs_of_an_own_family(model, images, guides, guide):
    same = prune(model, (0, 0), guides[guide])
    assert same is not model
    torch.testing.assert_close(same(images), model(images), atol=1e-5, rtol=0)


@torch.no_grad()
def test_pruned_units_of_an_own_family_equal_masked_ones(model, images, masked_outputs):
    heads, neurons = [[1, 3], [0]], [range(0, 64, 3), range(8, 40)]
    expected = masked_outputs(model, images, heads, neurons)
    assert not torch.allclose(expected, model(images), atol=1e-2)
    pruned = keep_units(model, heads, neurons)
    torch.testing.assert_close(pruned(images), expected, atol=1e-5, rtol=1e-5)
    temperature = model.blocks[0].mix.temperature
    assert torch.equal(pruned.blocks[0].mix.temperature, temperature[[1, 3]])


@pytest.mark.parametrize("guide", ["calibration", "taylor"])
def test_the_macs_and_parameters_of_an_own_family_are_counted(model, images, guides, guide):
    dense = StructuralSpace(shape_of(model), "rank" if guide == "calibration" else "head")
    for ratios in ((0, 0), (0.5, 0.5), (0.75, 0.2)):
        pruned = prune(model, ratios, guides[guide])
        shape, traced = shape_of(pruned), count_macs(pruned, images[:1])
        assert shape.params == sum(parameter.numel() for parameter in pruned.parameters())
        assert shape.macs == sum(n for operator, n in traced.items() if operator != "layer_norm")
        assert shape.macs == dense.pruned_macs(RatioPair(*ratios))
        assert {block.head_dim for block in shape.blocks} == {8}  # whole heads only


@torch.no_grad()
def test_an_own_family_is_repaired(model, images, guides):
    pruned = prune(model, (0.5, 0.5), guides["calibration"])
    before = (pruned(images) - model(images)).square().mean()
    errors = repair(pruned, [images], guides["calibration"])
    assert len(errors) >= 2
    assert all(after <= start for start, after in errors)
    assert (pruned(images) - model(images)).square().mean() < before


@torch.no_grad()
def test_a_pruned_model_of_an_own_family_comes_back_with_its_dense_model(
    model, images, guides, tmp_path
):
    pruned = prune(model, (0.5, 0.5), guides["calibration"])
    save_pruned(pruned, tmp_path / "pruned.safetensors", {})
    loaded, _ = load_pruned(tmp_path / "pruned.safetensors", copy.deepcopy(model))
    assert torch.equal(loaded(images), pruned(images))
    with pytest.raises(InputError, match="does not name the dense model"):
        load_pruned(tmp_path / "pruned.safetensors")


def test_a_subclass_of_an_own_family_is_refused(model, monkeypatch):
    class Other(type(model)):
        pass

    model.__class__ = Other
    with pytest.raises(UnsupportedModelError, match="class Other cannot be pruned"):
        shape_of(model)
    monkeypatch.setitem(FAMILIES, Other, FAMILY)
    shape_of(model)
    model.blocks[1] = model.blocks[1].dense
    with pytest.raises(UnsupportedModelError, match=r"`blocks\.1` has block class Mlp"):
        shape_of(model)


def test_a_matrix_that_an_own_family_does_not_describe_is_refused(model):
    model.blocks[0].mix.extra = nn.Linear(4, 4)
    with pytest.raises(UnsupportedModelError, match=r"`blocks\.0\.mix\.extra\.weight` is a matr"):
        shape_of(model)
