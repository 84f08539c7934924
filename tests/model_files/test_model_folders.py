"""Folders of Hugging Face and timm: weights in one file or in shards, and preprocessing."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from vit_ratio_opt.data.preprocessing import Preprocessing, preprocess_of
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.folders import read_preprocessing
from vit_ratio_opt.model_files.load import load_again, load_dense, load_pruned
from vit_ratio_opt.model_files.save import save_dense, save_pruned
from vit_ratio_opt.models.create import source_of
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.pruning.importance import magnitude_importance
from vit_ratio_opt.pruning.prune import prune

CONFIG = {
    "image_size": 32, "patch_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4,
    "hidden_size": 32, "intermediate_size": 64, "num_labels": 4,
}  # fmt: skip
PREPROCESSOR = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


@pytest.fixture
def model():
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(transformers.ViTConfig(**CONFIG)).eval()


@pytest.fixture
def folder(tmp_path, model):
    model.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def write(path, content):
    path.write_text(json.dumps(content))


def in_shards(folder, stem="model", suffix="safetensors"):
    """The folder with its weights in two files and an index, as `save_pretrained` shards them."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {f"{stem}-0000{i + 1}-of-00002.{suffix}": names[i::2] for i in range(2)}
    for file, keys in shards.items():
        save = save_file if suffix == "safetensors" else torch.save
        save({key: state[key] for key in keys}, folder / file)
    index = {
        "metadata": {},
        "weight_map": {k: file for file, keys in shards.items() for k in keys},
    }
    write(folder / f"{stem}.{suffix}.index.json", index)
    return folder / f"{stem}.{suffix}.index.json", index


@pytest.mark.parametrize(("stem", "suffix"), [("model", "safetensors"), ("pytorch_model", "bin")])
def test_shards_are_one_model(folder, stem, suffix):
    whole = weights_hash(load_dense(folder))
    in_shards(folder, stem, suffix)
    loaded = load_dense(folder)
    assert weights_hash(loaded) == whole
    assert weights_hash(load_again(source_of(loaded))) == whole


def test_shards_that_transformers_writes_are_one_model(tmp_path, model, folder):
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert weights_hash(load_dense(tmp_path / "shards")) == weights_hash(load_dense(folder))


def test_a_pickled_state_dict_in_a_folder_is_the_model(folder):
    whole = weights_hash(load_dense(folder))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert weights_hash(load_dense(folder)) == whole


@pytest.mark.parametrize("name", ["../out.safetensors", "/etc/passwd", "a/b", "..", "", "C:x"])
def test_no_index_leads_out_of_its_folder(folder, name):
    path, index = in_shards(folder)
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    write(path, index)
    with pytest.raises(InputError, match="must be a plain name"):
        load_dense(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "shard"])
def test_no_link_leads_out_of_a_folder(folder, tmp_path, file):
    if file == "shard":
        _, index = in_shards(folder)
        file = next(iter(index["weight_map"].values()))
    shutil.move(folder / file, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", folder / file)
    with pytest.raises(InputError, match=r"leads out of the folder|no readable config\.json"):
        load_dense(folder)


def test_links_of_hugging_faces_cache_are_followed(folder, tmp_path):
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(folder.iterdir()):
        path.rename(blobs / f"{number}")
        os.symlink(f"../../blobs/{number}", snapshot / path.name)
    assert load_dense(snapshot)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p, i: write(p, {}), "weight_map"),
        (lambda p, i: write(p, {"weight_map": {"x": 3}}), "weight_map"),
        (lambda p, i: p.write_text("{"), "JSON"),
        (lambda p, i: (p.parent / next(iter(i["weight_map"].values()))).unlink(), "no checkpoint"),
        (lambda p, i: write(p, {"weight_map": dict(list(i["weight_map"].items())[2:])}), "other"),
        (lambda p, i: write(p, {"weight_map": {**i["weight_map"], "x": "y"}}), "no checkpoint"),
    ],
)
def test_damaged_shards_are_refused_in_one_sentence(folder, damage, message):
    damage(*in_shards(folder))
    with pytest.raises(InputError, match=message):
        load_dense(folder)


def test_a_folder_without_a_config_names_the_files_that_may_be_meant(tmp_path):
    (tmp_path / "model_best.pth.tar").write_bytes(b"x")
    with pytest.raises(InputError, match=r"no readable config\.json.*model_best\.pth\.tar"):
        load_dense(tmp_path)


def test_a_folder_of_an_adapter_is_refused(folder):
    (folder / "model.safetensors").unlink()
    write(folder / "adapter_config.json", {})
    with pytest.raises(InputError, match="adapter"):
        load_dense(folder)


@pytest.mark.parametrize(
    ("stored", "interpolation", "crop"),
    [
        ({"size": 32, "resample": 3}, "bicubic", 1.0),
        (
            {"size": {"height": 32, "width": 32}, "resample": 2, "do_rescale": True},
            "bilinear",
            1.0,
        ),
        (
            {"size": {"shortest_edge": 40}, "crop_size": 32, "do_center_crop": True},
            "bilinear",
            0.8,
        ),
        ({"size": 64, "crop_size": {"height": 32, "width": 32}, "resample": 1}, "lanczos", 0.5),
        ({"size": {"shortest_edge": 32}, "crop_pct": 0.875, "resample": 0}, "nearest", 0.875),
        ({"rescale_factor": 0.00392156862745098}, "bilinear", 1.0),
    ],
)
def test_preprocessing_of_a_hugging_face_folder_belongs_to_its_model(
    folder, stored, interpolation, crop
):
    write(folder / "preprocessor_config.json", {**PREPROCESSOR, **stored})
    known = preprocess_of(load_dense(folder))
    assert known.mean == (0.1, 0.2, 0.3)
    assert known.std == (0.4, 0.5, 0.6)
    assert (known.image_size, known.interpolation) == ((32, 32), interpolation)
    assert known.crop == pytest.approx(crop)
    assert known.squash == ("shortest_edge" not in json.dumps(stored))
    assert not known.is_assumed


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"do_normalize": False}, "do_normalize False"),
        ({"do_rescale": False}, "do_rescale False"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor 0.0078"),
        ({"rescale_offset": True}, "rescale_offset True"),
        ({"resample": 9}, "resample 9"),
        ({"resample": "x"}, "resample 'x'"),
        ({"size": 224}, r"images of \(224, 224\) pixels, but the model takes \(32, 32\)"),
        ({"size": "x"}, "size .*numbers of pixels"),
        ({"image_mean": 3}, "image_mean"),
        ({"image_std": [0, 0, 0]}, "above 0"),
        ({"image_mean": [0.1], "image_std": [0.2]}, "1 channels"),
    ],
)
def test_preprocessing_that_cannot_be_done_is_refused_by_name(folder, stored, message):
    write(folder / "preprocessor_config.json", {**PREPROCESSOR, **stored})
    with pytest.raises(InputError, match=message) as error:
        load_dense(folder)
    assert "\n" not in str(error.value)


def test_preprocessing_is_kept_in_files_of_dense_and_pruned_models(folder, tmp_path, tiny_vit):
    write(folder / "preprocessor_config.json", {**PREPROCESSOR, "resample": 3})
    model = load_dense(folder)
    known = preprocess_of(model)
    save_dense(model, tmp_path / "dense.safetensors")
    assert preprocess_of(load_dense(tmp_path / "dense.safetensors")) == known
    pruned = prune(model, (0.5, 0.5), magnitude_importance(model))
    save_pruned(pruned, tmp_path / "pruned.safetensors", {})
    assert preprocess_of(load_pruned(tmp_path / "pruned.safetensors")[0]) == known
    assert preprocess_of(load_pruned(tmp_path / "pruned.safetensors", tiny_vit)[0]) == known
    own = Preprocessing((0.5,) * 3, (0.5,) * 3, (32, 32), "nearest", 0.9)
    save_dense(model, tmp_path / "dense.safetensors", preprocessing=own)
    assert preprocess_of(load_dense(tmp_path / "dense.safetensors")) == own


@pytest.mark.parametrize("stored", ["{", "[1]", "{}", '{"mean": 1, "std": 2, "image_size": 3}'])
def test_damaged_preprocessing_in_a_file_is_refused(tmp_path, tiny_vit, stored):
    metadata = {"timm_name": "vit_tiny_patch16_224", "preprocessing": stored}
    metadata["timm_kwargs"] = json.dumps(
        {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
        | {"mlp_ratio": 2.0, "num_classes": 4}
    )
    save_file(tiny_vit.state_dict(), tmp_path / "x.safetensors", metadata)
    with pytest.raises(InputError, match=r"preprocessing|must be a sequence"):
        load_dense(tmp_path / "x.safetensors")


@pytest.fixture
def hub(tmp_path):
    """What timm pushes to its hub."""
    torch.manual_seed(0)
    model = timm.create_model(
        "deit3_small_patch16_224", num_classes=4, img_size=64, depth=2, drop_path_rate=0.1
    ).eval()
    from timm.models import _hub

    arguments = {"img_size": 64, "depth": 2, "drop_path_rate": 0.1}
    _hub.save_for_hf(model, tmp_path / "hub", model_args=arguments, safe_serialization=True)
    return tmp_path / "hub", model


def test_a_folder_of_timms_hub_is_the_model(hub):
    path, model = hub
    loaded = load_dense(path)
    noise = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(noise), model(noise))
    assert weights_hash(load_again(source_of(loaded))) == weights_hash(loaded)
    known = preprocess_of(loaded)
    assert (known.mean, known.interpolation) == ((0.485, 0.456, 0.406), "bicubic")
    assert known.image_size == (64, 64)
    assert not known.is_assumed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "hf-hub:a/b"}, "no timm model"),
        ({"architecture": "resnet18"}, "ResNet"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "not accepted.*checkpoint_path"),
        ({"model_args": {"pretrained_cfg": {"url": "http://x"}}}, "not accepted"),
        ({"model_args": {"act_layer": "x" * 1000}}, "act_layer .*not accepted"),
        ({"model_args": {"img_size": [[1]]}}, "img_size .*not accepted"),
        ({"model_args": [1]}, "not accepted"),
        ({"num_classes": 5}, "num_classes=4 by its tensors, but num_classes=5"),
        ({"num_classes": 10**12}, "num_classes .*not accepted"),
        ({"pretrained_cfg": {"mean": 1, "std": 2}}, "`mean` must be"),
        ({"pretrained_cfg": {"mean": [1], "std": [1], "interpolation": "x"}}, "interpolation|^$"),
    ],
)
def test_a_config_of_timm_passes_the_allow_list(hub, changes, message):
    config = json.loads((hub[0] / "config.json").read_text())
    write(hub[0] / "config.json", {**config, **changes})
    if message.endswith("^$"):  # for another number of channels: nothing is known
        assert preprocess_of(load_dense(hub[0])) is None
        return
    with pytest.raises(InputError, match=message) as error:
        load_dense(hub[0])
    assert len(str(error.value)) < 700


def test_normalisation_of_a_hugging_face_folder_is_used(tmp_path):
    config = tmp_path / "preprocessor_config.json"
    assert read_preprocessing(tmp_path, (8, 8)) is None
    (tmp_path / "a.file").touch()
    assert read_preprocessing(tmp_path / "a.file", (8, 8)) is None
    config.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    known = read_preprocessing(tmp_path, (8, 8))
    assert (known.mean, known.std) == ((0.5,) * 3, (0.25,) * 3)
    for damaged in ("[]", "{", '{"image_mean": 3, "image_std": "x"}', os.devnull):
        config.write_text(damaged)
        with pytest.raises(InputError, match="image_mean"):
            read_preprocessing(tmp_path, (8, 8))
