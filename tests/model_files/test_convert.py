from __future__ import annotations

import copy
import json

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import VisionTransformer as TorchvisionViT

from vit_ratio_opt.composer import Search
from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.model_files.load import load_again, load_dense
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models import convert
from vit_ratio_opt.models.convert import to_timm
from vit_ratio_opt.models.create import create_model, source_of
from vit_ratio_opt.models.hugging_face import ACTIVATIONS
from vit_ratio_opt.models.infer_sizes import infer_sizes
from vit_ratio_opt.models.renames import rename_tensors
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.state_dicts import check_fits, weights_hash
from vit_ratio_opt.models.surgery import keep_units
from vit_ratio_opt.pruning.calibration import calibrate
from vit_ratio_opt.pruning.options import CalibrationOptions
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.pruning.reconstruct import repair
from vit_ratio_opt.restore import load_search
from vit_ratio_opt.runs.options import Places, SearchOptions
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.training.recipe import Recipe

KINDS = [
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
]
CONFIG = {
    "image_size": 32, "patch_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4,
    "hidden_size": 32, "intermediate_size": 64, "num_labels": 4,
}  # fmt: skip


def shaken(model):
    """With no weight left where a constructor puts it: zero heads agree with anything."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def torchvision_vit(**changes):
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 32}
    return shaken(TorchvisionViT(**{**sizes, "mlp_dim": 64, "num_classes": 4, **changes}))


@pytest.fixture(scope="module")
def hugging_face():
    """Builds tiny models of a class; nothing is fetched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        transformers = pytest.importorskip("transformers")
        transformers.utils.logging.disable_progress_bar()

        def make(kind, **changes):
            config = getattr(transformers, f"{kind.split('For')[0]}Config")(**CONFIG | changes)
            return shaken(getattr(transformers, kind)(config))

        yield make


@pytest.fixture
def folder(hugging_face, tmp_path):
    hugging_face(KINDS[0]).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_size": 40, "hidden_dim": 48, "mlp_dim": 50, "num_layers": 3, "num_classes": 7},
        {"norm_layer": nn.LayerNorm},
    ],
)
def test_torchvision_models_keep_their_logits(changes):
    model = torchvision_vit(**changes)
    converted = to_timm(model)
    images = torch.randn(3, 3, model.image_size, model.image_size)
    torch.testing.assert_close(converted(images), model(images), rtol=0, atol=1e-5)
    assert type(converted) is VisionTransformer
    assert {m.eps for m in converted.modules() if isinstance(m, nn.LayerNorm)} == {
        model.encoder.ln.eps
    }
    assert not converted.training


@pytest.mark.parametrize(
    "heads",
    [
        lambda: nn.Linear(32, 5),
        lambda: nn.Sequential(nn.Linear(32, 5)),
        lambda: nn.Sequential(nn.Dropout(), nn.Linear(32, 5)),
    ],
)
def test_torchvision_models_may_have_another_head(images, heads):
    model = torchvision_vit()
    model.heads = heads()
    model.train()
    converted = to_timm(model)
    assert model.training  # as it was
    torch.testing.assert_close(converted(images), model.eval()(images), rtol=0, atol=1e-5)
    assert shape_of(converted).num_classes == 5


@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"])
def test_torchvisions_five_models_fit_timms(name):
    with torch.device("meta"):  # sizes without weights
        model = getattr(torchvision.models, name)()
        state = rename_tensors(name, model.state_dict())
        heads, width = convert.TORCHVISION[f"torchvision/{name}"]
        sizes = infer_sizes(name, state, {})
        timm_model = create_model("vit_base_patch16_224", num_heads=heads, **sizes)
        check_fits(timm_model, state, name)
    assert (heads, width) == (model.encoder.layers[0].num_heads, model.hidden_dim)
    assert (sizes["img_size"], sizes["patch_size"]) == (model.image_size, model.patch_size)


@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_models_keep_their_logits(hugging_face, images, kind):
    model = hugging_face(kind)
    converted = to_timm(model)
    torch.testing.assert_close(converted(images), model(images).logits, rtol=0, atol=1e-5)
    assert (type(converted) is VisionTransformerDistilled) == kind.endswith("WithTeacher")
    before = weights_hash(converted)
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert weights_hash(converted) == before  # it shares nothing


@pytest.mark.parametrize(
    "changes",
    [
        *({"hidden_act": act} for act in ACTIVATIONS),
        {"qkv_bias": False},
        {"image_size": [32, 16], "num_channels": 1},
        {"patch_size": [8, 16]},
        {"layer_norm_eps": 1e-2},
    ],
)
def test_what_hugging_faces_config_says_is_kept(hugging_face, changes):
    model = hugging_face(KINDS[0], **changes)
    converted = to_timm(model)
    size = changes.get("image_size", [32, 32])
    images = torch.randn(2, changes.get("num_channels", 3), *size)
    torch.testing.assert_close(converted(images), model(images).logits, rtol=0, atol=1e-5)


def test_the_epsilon_of_norms_survives_a_file(tmp_path, hugging_face, images):
    converted = to_timm(hugging_face(KINDS[0], layer_norm_eps=0.5))
    save_dense(converted, tmp_path / "dense.safetensors")
    loaded = load_dense(tmp_path / "dense.safetensors")
    assert loaded.norm.eps == 0.5
    assert torch.equal(loaded(images), converted(images))


@pytest.mark.parametrize("norm_eps", ["x", None, 0, -1e-6, float("nan"), [1]])
def test_an_epsilon_that_is_none_is_refused(norm_eps):
    with pytest.raises(InputError, match="`norm_eps` must be a number"):
        create_model("vit_tiny_patch16_224", norm_eps=norm_eps)


def test_only_a_model_of_this_package_is_saved_without_its_name(tmp_path, tiny_vit):
    with pytest.raises(InputError, match=r"give its `?name"):
        save_dense(tiny_vit, tmp_path / "dense.safetensors")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("SwinForImageClassification", "class SwinForImageClassification"),
        ("BeitForImageClassification", "class BeitForImageClassification"),
        ("ViTForMaskedImageModeling", "class ViTForMaskedImageModeling"),
        ("Dinov2ForImageClassification", "mean of all patches side by side"),
        ("Dinov2WithRegistersForImageClassification", "mean of all patches side by side"),
    ],
)
def test_other_hugging_face_models_are_refused_by_name(hugging_face, kind, message):
    import transformers

    changes = {"embed_dim": 8, "depths": [1], "num_heads": [2]} if "Swin" in kind else CONFIG
    config = getattr(transformers, f"{kind.split('For')[0].removesuffix('Model')}Config")
    with pytest.raises(UnsupportedModelError, match=message):
        to_timm(getattr(transformers, kind)(config(**changes)))


class Mine(TorchvisionViT):
    def forward(self, x):
        return super().forward(x).exp()


def gelu_before_the_head():
    model = torchvision_vit()
    model.heads = nn.Sequential(nn.GELU(), nn.Linear(32, 4))
    return model


def two_layers_before_the_logits():
    model = torchvision_vit()
    model.heads = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    return model


def other_activation():
    model = torchvision_vit()
    model.encoder.layers[1].mlp[1] = nn.ReLU()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 2), "class Linear"),
        (lambda: torchvision.models.swin_t(), "class SwinTransformer"),
        (lambda: create_model("vit_tiny_patch16_224"), r"timm's models need not be"),
        (
            lambda: Mine(
                image_size=32, patch_size=8, num_layers=1, num_heads=4, hidden_dim=32, mlp_dim=64
            ),
            "class Mine",
        ),
        (lambda: torchvision_vit(representation_size=16), "fit the model.*pre_logits"),
        (lambda: torchvision_vit().half(), "float32"),
        (gelu_before_the_head, "other logits"),
        (two_layers_before_the_logits, "other logits"),
        (other_activation, "other logits"),
    ],
)
def test_what_would_be_a_guess_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        to_timm(make())


def test_a_converted_model_is_pruned_exactly(images):
    converted = to_timm(torchvision_vit())
    kept = keep_units(converted, [[0, 2], [1]], [list(range(0, 64, 2)), list(range(10))])
    masked = copy.deepcopy(converted)
    with torch.no_grad():
        for block, heads, neurons in zip(
            masked.blocks, [[0, 2], [1]], [range(0, 64, 2), range(10)], strict=True
        ):
            gone = torch.tensor([n for n in range(64) if n not in neurons])
            block.mlp.fc2.weight[:, gone] = 0
            for head in {0, 1, 2, 3} - set(heads):
                block.attn.proj.weight[:, head * 8 : (head + 1) * 8] = 0
    torch.testing.assert_close(kept(images), masked(images), rtol=0, atol=1e-5)


def pruned_and_repaired(dense, images):
    calibration = calibrate(dense, [images])
    pruned = prune(dense, (0.5, 0.5), calibration)
    repair(pruned, [images], calibration)
    assert shape_of(pruned).macs < 0.7 * shape_of(dense).macs
    return pruned


def test_pruned_converted_models_come_back_from_their_files_alone(
    images, hugging_face, assert_comes_back
):
    theirs = {"torchvision": torchvision_vit(), **{kind: hugging_face(kind) for kind in KINDS}}
    pruned = {name: pruned_and_repaired(to_timm(model), images) for name, model in theirs.items()}
    assert_comes_back(pruned, dict.fromkeys(pruned, images))


@pytest.mark.parametrize("names", ["of the file", "of the model"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hugging_face_folder_is_the_model(tmp_path, hugging_face, images, kind, names):
    model = hugging_face(kind)
    model.save_pretrained(tmp_path)
    if names == "of the model":
        save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = load_dense(tmp_path)
    assert weights_hash(loaded) == weights_hash(to_timm(model))
    assert torch.equal(loaded(images), to_timm(model)(images))
    assert weights_hash(load_again(source_of(loaded))) == weights_hash(loaded)


@pytest.mark.parametrize("kind", KINDS)
def test_the_classifier_of_a_folder_is_left_out_where_none_is_wanted(
    tmp_path, hugging_face, images, kind
):
    model = hugging_face(kind)
    model.save_pretrained(tmp_path)
    encoder, whole = load_dense(tmp_path, num_classes=0), to_timm(model)
    assert shape_of(encoder).num_classes == 0
    assert torch.equal(encoder.forward_features(images), whole.forward_features(images))


def test_unused_weights_in_a_folder_do_no_harm(folder):
    before = weights_hash(load_dense(folder))
    state = load_file(folder / "model.safetensors")
    state |= {
        "vit.pooler.dense.weight": torch.ones(32, 32),
        "vit.embeddings.mask_token": torch.ones(1),
    }
    save_file(state, folder / "model.safetensors")
    assert weights_hash(load_dense(folder)) == before


def test_workers_find_a_hugging_face_folder(hugging_face, digits, tmp_path, url):
    changes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10}
    hugging_face(KINDS[0], **changes).save_pretrained(tmp_path / "vit")
    search = Search(
        load_dense(tmp_path / "vit"), digits, Budget(0.6), training=Recipe(epochs=0),
        options=SearchOptions(screen=False, calibration=CalibrationOptions(images=64)),
    )  # fmt: skip
    search.create_study("s", storage=url)
    assert load_search("s", url).settings == search.settings
    (tmp_path / "vit").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="There is no checkpoint"):
        load_search("s", url)
    assert load_search("s", url, Places(checkpoint=tmp_path / "elsewhere"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": None}, "class None"),
        ({"architectures": [["ViTModel"]]}, "class .'ViTModel'"),
        ({"architectures": ["Dinov2ForImageClassification"]}, "mean of all patches"),
        ({"architectures": ["x" * 10_000]}, "class x{80}. What"),
        ({"num_attention_heads": "4"}, "num_attention_heads '4', which must be"),
        ({"num_attention_heads": None}, "num_attention_heads None"),
        ({"num_attention_heads": True}, "num_attention_heads True"),
        ({"num_attention_heads": 10**30}, "arguments do not fit"),
        ({"num_attention_heads": 5}, "arguments do not fit"),
        ({"image_size": "32"}, "image_size '32'"),
        ({"image_size": 10**12}, "positions for 16 patches"),
        ({"image_size": -32}, "image_size -32, which must be one or two numbers from 1 on"),
        ({"image_size": [32, 32, 32]}, "positions for 16 patches"),
        ({"image_size": []}, "positions for 16 patches|must be one or two"),
        ({"image_size": 40}, "positions for 16 patches"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"hidden_act": "gelu_10"}, "hidden_act 'gelu_10'"),
        ({"layer_norm_eps": "1e-6"}, "layer_norm_eps"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
    ],
)
def test_a_hostile_config_is_refused_in_one_sentence(folder, changes, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(InputError, match=message) as error:
        load_dense(folder)
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)


def test_sizes_of_a_config_ask_for_no_memory(folder):
    before = weights_hash(load_dense(folder))
    config = json.loads((folder / "config.json").read_text())
    huge = {"hidden_size": 10**9, "num_hidden_layers": 10**9, "intermediate_size": "x"}
    (folder / "config.json").write_text(json.dumps({**config, **huge}))
    assert weights_hash(load_dense(folder)) == before  # the tensors have the say


@pytest.mark.parametrize("text", ["", "[1]", "[" * 100_000, "\xff", None])
def test_a_folder_without_a_config_is_refused(folder, text):
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"no readable config\.json"):
        load_dense(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated", "truncated"),
        ("gone", "no model.safetensors"),
        ("layer", "tensors are missing"),
        ("key", "tensors are missing"),
        ("half", "different shapes"),
        ("scalar", "does not fit|different|missing"),
        ("headless", "`head.weight`"),
        ("wide", "does not fit|arguments do not fit"),
        ("empty", "patch_embed.proj.weight"),
        ("twice", "two tensors"),
    ],
)
def test_damaged_weights_are_refused_in_one_sentence(folder, damage, message):
    path = folder / "model.safetensors"
    state = load_file(path)
    query = "vit.encoder.layer.1.attention.attention.query.weight"
    if damage == "layer":
        state["vit.encoder.layer.999999999.output.dense.bias"] = torch.ones(32)
    elif damage == "key":
        del state[query.replace("query", "key")]
    elif damage == "half":
        state[query] = state[query][:16].clone()
    elif damage == "scalar":
        state[query] = torch.tensor(1.0)
    elif damage == "headless":
        del state["classifier.weight"]
    elif damage == "wide":  # a model of that width would take 16 TB
        state["vit.embeddings.patch_embeddings.projection.weight"] = torch.ones(1_000_000, 1, 8, 8)
    elif damage == "empty":
        state["vit.embeddings.patch_embeddings.projection.weight"] = torch.ones(10**9, 0, 8, 8)
    elif damage == "twice":
        state["head.weight"] = state["classifier.weight"].clone()
    save_file(state, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "gone":
        path.unlink()
    with pytest.raises(InputError, match=message):
        load_dense(folder)


def test_a_folder_needs_no_name(folder):
    with pytest.raises(InputError, match="leave 'vit_tiny_patch16_224' out"):
        load_dense(folder, name="vit_tiny_patch16_224")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_of_torchvisions_weights_is_the_model(tmp_path, suffix):
    model = torchvision_vit(
        image_size=64, patch_size=32, num_heads=12, hidden_dim=768, mlp_dim=64, num_layers=1
    )
    path = tmp_path / f"vit.{suffix}"
    save = torch.save if suffix == "pth" else save_file
    save(model.state_dict(), path)
    loaded = load_dense(path, name="torchvision/vit_b_32")
    assert torch.equal(loaded(torch.ones(1, 3, 64, 64)), to_timm(model)(torch.ones(1, 3, 64, 64)))
    assert weights_hash(load_again(source_of(loaded))) == weights_hash(loaded)
    with pytest.raises(InputError, match="which is 1024 wide"):
        load_dense(path, name="torchvision/vit_l_32")
    with pytest.raises(InputError, match="must be one of torchvision/vit_b_16"):
        load_dense(path, name="torchvision/vit_s_16")


def test_a_file_of_other_things_than_tensors_is_refused(tmp_path):
    torch.save({"class_token": 3}, tmp_path / "vit.pth")
    with pytest.raises(InputError, match="other things than tensors"):
        load_dense(tmp_path / "vit.pth", name="torchvision/vit_b_16")
