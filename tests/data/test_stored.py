"""The images of a study, loaded again as they were."""

from __future__ import annotations

import json

import numpy as np
import optuna
import pytest
import torch
from PIL import Image
from support import make_search

from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.data.image_folder import load_image_folder
from vit_ratio_opt.data.load import load_again, load_images
from vit_ratio_opt.data.options import LoadOptions
from vit_ratio_opt.data.stored import study_images
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_pruned
from vit_ratio_opt.training.recipe import Recipe


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in "ab":
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for index in range(10):
                pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / label / f"{index}.png")
    return tmp_path / "images"


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: load_digits(seed=2, val_fraction=0.3),
        lambda folder: load_image_folder(folder, image_size=6, validation="test", seed=4),
        lambda folder: load_images(
            folder, options=LoadOptions(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
        ),
    ],
)
def test_images_are_loaded_again_as_they_were(folder, load):
    data = load(folder)
    again = load_again(json.loads(json.dumps(data.source)))
    assert again.fingerprint == data.fingerprint
    assert (again.mean, again.std, again.validation) == (data.mean, data.std, data.validation)
    assert again.image_shape == data.image_shape


@pytest.mark.parametrize(
    ("source", "root", "message"),
    [
        ({}, None, "come from one of"),
        ({"loader": "os.system"}, None, "not from 'os.system'"),
        ({"loader": "digits"}, "x", "leave --data out"),
        ({"loader": "digits", "new": 1}, None, "cannot be loaded from its stored source"),
    ],
)
def test_other_sources_of_images_are_refused(source, root, message):
    with pytest.raises(InputError, match=message):
        load_again(source, root=root)


# The images of a pruned model's study


def test_a_pruned_model_finds_the_test_images_of_its_study(dense, tmp_path):
    data = load_digits(seed=5, val_fraction=0.3)
    search = make_search(
        dense, data, budget=0.6, recipe=Recipe(epochs=0),
        calibration_images=64, checkpoints=tmp_path / "models",
    )  # fmt: skip
    search.objective(optuna.trial.FixedTrial({"mhsa_ratio": 0.5, "ffn_ratio": 0.5}))
    _, manifest = load_pruned(tmp_path / "models" / "trial-0000.safetensors", dense)
    assert torch.equal(study_images(manifest).test.indices, data.test.indices)


@pytest.mark.parametrize("validation", ["train", "test"])
@pytest.mark.parametrize("version", ["earlier", "now"])
def test_the_splits_of_a_folder_come_back_wherever_it_is(folder, tmp_path, validation, version):
    options = {"image_size": 8, "validation": validation, "seed": 3}
    data = load_image_folder(folder, **options, options=LoadOptions(mean=(0.1, 0.2, 0.3)))
    manifest = {
        "classes": list(data.classes), "mean": list(data.mean), "std": list(data.std),
        "dataset": data.name, "validation": data.fingerprint, "seed": 3,
    }  # fmt: skip
    if version == "now":
        manifest["images"] = {**data.source, "root": None}
    moved = folder.rename(tmp_path / "moved")
    again = study_images(json.loads(json.dumps(manifest)), moved, image_size=8)
    assert torch.equal(again.test.indices, data.test.indices)
    assert (again.mean, again.validation) == (data.mean, validation)
    with pytest.raises(InputError, match="Accuracy is measured, not assumed: give --data"):
        study_images(manifest)
    for changed, sentence in (
        ({"validation": "abc"}, r"another validation split \(\w+\) than .* had \(abc\)"),
        ({"classes": ["b", "a"]}, "The classes of moved are not those"),
        ({"images": ["odd"]}, "damaged manifest"),
        ({"images": {"loader": "pickle"}}, "not from 'pickle'"),
    ):
        with pytest.raises(InputError, match=sentence):
            study_images({**manifest, **changed}, moved, image_size=8)


def test_without_a_study_all_test_images_are_the_test_split(folder):
    assert len(study_images({}, folder, image_size=8).test) == 20
