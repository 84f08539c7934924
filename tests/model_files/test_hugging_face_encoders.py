"""Hugging Face's encoders become timm models and come back, dense and pruned."""

from __future__ import annotations

import json

import onnx
import pytest
import torch
from torch import nn

from vit_ratio_opt.data.preprocessing import preprocess_of
from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.model_files.export import export_model
from vit_ratio_opt.model_files.load import load_again, load_dense, load_pruned
from vit_ratio_opt.model_files.save import save_dense, save_pruned
from vit_ratio_opt.models.convert import to_timm
from vit_ratio_opt.models.create import create_model, source_of
from vit_ratio_opt.models.hugging_face import ENCODERS
from vit_ratio_opt.models.hugging_face_outputs import HuggingFaceOutputs
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.models.to_hugging_face import to_huggingface
from vit_ratio_opt.pruning.calibration import calibrate
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.pruning.reconstruct import repair

CONFIG = {
    "image_size": 32, "patch_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4,
    "hidden_size": 32,
}  # fmt: skip
# Settings of a class that lead to other modules or tensors.
VARIANTS = [
    *((kind, {}) for kind in ENCODERS),
    ("ViTModel", {"qkv_bias": False, "image_size": [32, 16]}),
    ("Dinov2Model", {"use_swiglu_ffn": True, "num_channels": 1}),
    ("Dinov2WithRegistersModel", {"use_swiglu_ffn": True, "hidden_act": "relu"}),
    ("DINOv3ViTModel", {"use_gated_mlp": True, "hidden_act": "silu", "rope_theta": 10.0}),
    ("DINOv3ViTModel", {"key_bias": True, "num_register_tokens": 0}),
    ("CLIPVisionModel", {"hidden_act": "gelu", "layer_norm_eps": 1e-2}),
    ("SiglipVisionModel", {"vision_use_head": False}),
]


@pytest.fixture(scope="module")
def make():
    """Builds tiny models of a class, with no weight where a constructor puts it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        transformers = pytest.importorskip("transformers")
        transformers.utils.logging.disable_progress_bar()

        def build(kind, *, options=None, **changes):
            sizes = {"mlp_ratio": 2} if kind.startswith("Dinov2") else {"intermediate_size": 64}
            if kind == "DINOv3ViTModel":
                sizes["num_register_tokens"] = 2
            config = getattr(transformers, kind.replace("Model", "Config"))
            config = config(**CONFIG | sizes | changes)
            model = getattr(transformers, kind)(config, **options or {})
            torch.manual_seed(0)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
            return model.eval()

        yield build


@pytest.fixture(scope="module")
def pruned(make):
    """By class: the model, and its timm model pruned and repaired, blocks of different sizes."""
    found = {}
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for kind in ENCODERS:
        model = make(kind)
        dense = to_timm(model)
        known = calibrate(dense, [images])
        smaller = prune(dense, (0.3, 0.45), known)
        repair(smaller, [images], known)
        found[kind] = (model, smaller)
    return found


def images_of(model):
    size = model.config.image_size
    sides = size if isinstance(size, list) else [size, size]
    shape = (3, model.config.num_channels, *sides)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def assert_same(got, expected, atol=1e-5):
    torch.testing.assert_close(
        got.last_hidden_state, expected.last_hidden_state, rtol=0, atol=atol
    )
    assert (got.pooler_output is None) == (expected.pooler_output is None)
    if expected.pooler_output is not None:
        torch.testing.assert_close(got.pooler_output, expected.pooler_output, rtol=0, atol=atol)


@pytest.mark.parametrize(("kind", "changes"), VARIANTS)
def test_an_encoder_becomes_a_timm_model_and_comes_back(make, kind, changes):
    model = make(kind, **changes)
    converted = to_timm(model)
    images = images_of(model)
    expected = model(images)
    tokens = expected.last_hidden_state
    if kind == "CLIPVisionModel":
        inner = getattr(model, "vision_model", model)  # before transformers 5
        tokens = inner.post_layernorm(tokens)
    torch.testing.assert_close(converted.forward_features(images), tokens, rtol=0, atol=1e-5)
    given = expected.pooler_output if getattr(converted, "attn_pool", None) else tokens
    torch.testing.assert_close(converted(images), given, rtol=0, atol=1e-5)
    assert shape_of(converted).num_classes == 0
    back = to_huggingface(converted, model)
    assert type(back) is type(model)
    assert_same(back(images), expected)
    assert {key: x.shape for key, x in back.state_dict().items()} == {
        key: x.shape for key, x in model.state_dict().items()
    }
    if "Registers" not in kind:  # the position of the class token is part of the token
        assert weights_hash(back) == weights_hash(model)


def test_a_vit_without_a_pooler_gives_none(make):
    model = make("ViTModel", options={"add_pooling_layer": False, "use_mask_token": True})
    back = to_huggingface(to_timm(model), model)
    assert back(images_of(model)).pooler_output is None
    assert weights_hash(back) == weights_hash(model)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_pruned_encoder_gives_the_outputs_of_its_class(pruned, kind):
    model, smaller = pruned[kind]
    assert shape_of(smaller).macs < 0.8 * shape_of(to_timm(model)).macs
    back = to_huggingface(smaller, model)
    assert type(back) is HuggingFaceOutputs
    images = images_of(model)
    got, expected = back(images), model(images)
    assert type(got) is type(expected)
    tokens = smaller.forward_features(images)
    if kind == "CLIPVisionModel":
        torch.testing.assert_close(smaller.norm(got.last_hidden_state), tokens)
    else:
        assert torch.equal(got.last_hidden_state, tokens)
    pool = {
        "ViTModel": lambda: model.pooler(tokens),
        "SiglipVisionModel": lambda: smaller(images),
    }.get(kind, lambda: tokens[:, 0])
    assert torch.equal(got.pooler_output, pool())


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_pruned_encoder_comes_back_from_its_file_bit_for_bit(pruned, kind, tmp_path):
    model, smaller = pruned[kind]
    save_pruned(smaller, tmp_path / "pruned.safetensors", {})
    loaded, _ = load_pruned(tmp_path / "pruned.safetensors")
    images = images_of(model)
    assert torch.equal(loaded(images), smaller(images))
    got, expected = (to_huggingface(one, model)(images) for one in (loaded, smaller))
    assert_same(got, expected, atol=0)


# The other two consist of what these have: timm's ViT, its scales and register tokens.
@pytest.mark.parametrize(
    "kind", ["Dinov2WithRegistersModel", "DINOv3ViTModel", "CLIPVisionModel", "SiglipVisionModel"]
)
def test_a_pruned_encoder_is_exported_to_onnx(make, kind, tmp_path):
    model = make(kind, num_hidden_layers=1)
    dense = to_timm(model)
    smaller = prune(dense, (0.5, 0.5), calibrate(dense, [images_of(model)]))
    path = tmp_path / "pruned.onnx"
    assert export_model(smaller, path) < 1e-4
    assert [output.name for output in onnx.load(path).graph.output] == ["features"]


@pytest.mark.parametrize(
    ("kind", "changes", "pair"),
    [
        ("ViTModel", {}, (0.5, 0.25)),
        ("Dinov2Model", {}, (0.5, 0.5)),
        ("Dinov2Model", {"use_swiglu_ffn": True, "mlp_ratio": 3}, (0.5, 0.25)),
        ("Dinov2WithRegistersModel", {}, (0.5, 0.5)),
        ("DINOv3ViTModel", {}, (0, 0.25)),
        ("DINOv3ViTModel", {"use_gated_mlp": True, "hidden_act": "silu"}, (0, 0.25)),
        ("CLIPVisionModel", {}, (0, 0.25)),
        ("SiglipVisionModel", {"vision_use_head": False}, (0, 0.25)),
    ],
)
def test_a_class_that_can_hold_the_sizes_is_given_back_with_a_smaller_config(
    make, tmp_path, kind, changes, pair
):
    model = make(kind, **changes)
    dense, images = to_timm(model), images_of(model)
    smaller = prune(dense, pair, calibrate(dense, [images]), allocation="uniform")
    back = to_huggingface(smaller, model)
    if kind.startswith(("ViT", "Dinov2")) and type(back) is HuggingFaceOutputs:
        pytest.skip("this version of transformers computes the size of heads from the width")
    assert type(back) is type(model)
    assert back.num_parameters() < model.num_parameters()
    assert_same(back(images), HuggingFaceOutputs(smaller, model)(images))
    back.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert weights_hash(loaded) == weights_hash(back)
    assert_same(loaded(images), back(images), atol=0)
    if pair[0]:
        with pytest.raises(InputError, match=r"head_dim 4.*load_pruned"):
            load_dense(tmp_path)
    else:  # a smaller FFN is one of timm's too
        assert torch.equal(load_dense(tmp_path)(images), smaller(images))


@pytest.mark.parametrize(
    ("kind", "pair", "allocation"),
    [
        ("Dinov2Model", (0, 0.25), "uniform"),  # its config has whole multiples of the width
        ("DINOv3ViTModel", (0.5, 0), "uniform"),
        ("CLIPVisionModel", (0.5, 0), "uniform"),
        ("SiglipVisionModel", (0, 0.5), "uniform"),  # its pooling has the same intermediate_size
        ("ViTModel", (0.3, 0.4), "global"),
    ],
)
def test_a_class_that_cannot_hold_the_sizes_is_a_module_with_its_outputs(
    make, kind, pair, allocation
):
    model = make(kind)
    dense, images = to_timm(model), images_of(model)
    smaller = prune(dense, pair, calibrate(dense, [images]), allocation=allocation)
    back = to_huggingface(smaller, model)
    assert type(back) is HuggingFaceOutputs
    assert back(images).last_hidden_state.shape == model(images).last_hidden_state.shape


@pytest.mark.parametrize("kind", ENCODERS)
def test_positions_are_interpolated_for_another_image_size_as_the_class_does(make, kind, tmp_path):
    model = make(kind)
    images = torch.randn(2, 3, 48, 48)
    options = {}
    if kind in ("ViTModel", "CLIPVisionModel", "SiglipVisionModel"):
        options["interpolate_pos_encoding"] = True
    converted = to_timm(model, image_size=48)
    assert_same(HuggingFaceOutputs(converted, model)(images), model(images, **options))
    back = to_huggingface(converted, model)
    assert back.config.image_size == 48
    assert_same(back(images), model(images, **options))
    model.save_pretrained(tmp_path)
    assert torch.equal(load_dense(tmp_path, img_size=48)(images), converted(images))


@pytest.mark.parametrize(("kind", "changes"), VARIANTS)
def test_a_folder_of_an_encoder_is_the_model(make, tmp_path, kind, changes):
    model = make(kind, **changes)
    model.save_pretrained(tmp_path)
    loaded, converted = load_dense(tmp_path), to_timm(model)
    assert weights_hash(loaded) == weights_hash(converted)
    assert torch.equal(loaded(images_of(model)), converted(images_of(model)))
    assert weights_hash(load_again(source_of(loaded))) == weights_hash(loaded)


def test_a_folder_whose_images_are_smaller_says_how_to_load_it(make, tmp_path):
    """DINOv2 has positions for 518 pixels, and its folder crops images to 224."""
    make("Dinov2Model").save_pretrained(tmp_path)
    stored = {"image_mean": [0.5] * 3, "image_std": [0.2] * 3, "size": {"shortest_edge": 18}}
    stored |= {"crop_size": {"height": 16, "width": 16}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"load it with `img_size=\(16, 16\)`"):
        load_dense(tmp_path)
    loaded = load_dense(tmp_path, img_size=16)
    assert preprocess_of(loaded).image_size == (16, 16)
    assert loaded(torch.randn(1, 3, 16, 16)).shape == (1, 5, 32)


def test_a_classifier_can_be_put_on_an_encoder(make, tmp_path):
    model = make("Dinov2Model")
    converted = to_timm(model)
    converted.reset_classifier(5, "token")
    save_dense(converted, tmp_path / "dense.safetensors")
    images = images_of(model)
    assert torch.equal(load_dense(tmp_path / "dense.safetensors")(images), converted(images))
    back = to_huggingface(converted, model)
    assert_same(back(images), model(images))  # without it


def test_training_may_move_the_keys_bias_of_dinov3(make):
    model = make("DINOv3ViTModel")
    converted = to_timm(model)
    with torch.no_grad():
        converted.blocks[1].attn.qkv.bias[32:64] = 1.0
    back, images = to_huggingface(converted, model), images_of(model)
    assert back.config.key_bias
    assert torch.equal(back(images).last_hidden_state, converted(images))


@pytest.mark.parametrize(
    ("model", "like", "message"),
    [
        ("ViTModel", "Dinov2Model", "different parts, such as timm's `blocks.0.ls1.gamma`"),
        ("Dinov2Model", "DINOv3ViTModel", "different parts"),
        ("ViTModel", ("ViTModel", {"num_hidden_layers": 3}), "different parts.*`blocks.2"),
        ("ViTModel", ("ViTModel", {"hidden_size": 48}), "has shape .* in `like`"),
        (
            "ViTModel",
            ("ViTModel", {"hidden_act": "relu"}),
            "does not give .* such as the activation",
        ),
    ],
)
def test_another_model_than_the_converted_one_is_refused(make, model, like, message):
    kind, changes = (like, {}) if isinstance(like, str) else like
    with pytest.raises(InputError, match=message):
        to_huggingface(to_timm(make(model)), make(kind, **changes))


def test_other_classes_are_refused(make):
    with pytest.raises(UnsupportedModelError, match="`like` must be a Hugging Face model"):
        to_huggingface(to_timm(make("ViTModel")), nn.Linear(2, 2))
    cait = create_model("cait_xxs24_224", depth=1, embed_dim=32, num_heads=4, num_classes=0)
    with pytest.raises(UnsupportedModelError, match="class Cait is none of ViTModel"):
        to_huggingface(cait, make("ViTModel"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("CLIPModel", "load its images' part, a CLIPVisionModel"),
        ("SiglipModel", "load its images' part, a SiglipVisionModel"),
        ("Siglip2VisionModel", "SigLIP 2 of one size is a SiglipVisionModel"),
    ],
)
def test_a_class_beside_an_encoder_says_which_one_to_load(kind, message):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, kind.replace("Model", "Config"))
    with torch.device("meta"), pytest.raises(UnsupportedModelError, match=message):
        to_timm(getattr(transformers, kind)(config()))


def test_an_activation_that_timms_class_has_not_is_refused(make):
    with pytest.raises(InputError, match="hidden_act 'relu', which must be one of gelu"):
        to_timm(make("DINOv3ViTModel", hidden_act="relu"))
