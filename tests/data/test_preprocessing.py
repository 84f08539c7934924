from __future__ import annotations

import copy
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import make_search
from typer.testing import CliRunner

from vit_ratio_opt.cli import main as cli
from vit_ratio_opt.data.cifar10 import load_cifar10
from vit_ratio_opt.data.csv_images import load_csv_images
from vit_ratio_opt.data.datasets import load_datasets
from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.data.image_folder import load_image_folder
from vit_ratio_opt.data.load import load_again, load_images
from vit_ratio_opt.data.options import LoadOptions
from vit_ratio_opt.data.preprocessing import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    Preprocessing,
    preprocess_of,
    preprocess_or_assume,
    remember_preprocessing,
)
from vit_ratio_opt.data.stored import study_images
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_pruned
from vit_ratio_opt.model_files.save import save_dense, save_pruned
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.pruning.importance import taylor_importance
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.training.checks import warn_near_chance
from vit_ratio_opt.training.recipe import Recipe

MODEL = "vit_tiny_patch16_224"
ARGUMENTS = {
    "img_size": 8, "patch_size": 2, "num_classes": 2, "depth": 2, "embed_dim": 32, "num_heads": 4
}  # fmt: skip
OWN = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (8, 8), "bicubic", 0.9, "the test")


@pytest.fixture(autouse=True)
def _heard(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    caplog.set_level(logging.WARNING)


@pytest.fixture
def folder(tmp_path) -> Path:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for index in range(20):
                pixels = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
                path = tmp_path / "images" / split / name / f"{index}.png"
                Image.fromarray(pixels).save(path)
    return tmp_path / "images"


def model_of(preprocessing: Preprocessing | None = OWN, **arguments):
    torch.manual_seed(0)
    model = create_model(MODEL, **{**ARGUMENTS, **arguments})
    if preprocessing is not None:
        remember_preprocessing(model, preprocessing)
    return model


# What it may be


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"std": (0.0, 0.1, 0.1)}, "`std` above 0"),
        ({"std": (-0.1, 0.1, 0.1)}, "`std` above 0"),
        ({"mean": (-0.1, 0.1, 0.1)}, "`mean` must be at least 0"),
        ({"std": (float("nan"), 0.1, 0.1)}, "finite"),
        ({"mean": (float("inf"), 0.1, 0.1)}, "finite"),
        ({"mean": (123.675, 116.28, 103.53)}, "in \\[0, 1\\].*123.675.*divide by 255"),
        ({"std": (58.395, 57.12, 57.375)}, "divide by 255"),
        ({"mean": (0.1,)}, "one finite number for each channel"),
        ({"image_size": (10**23, 10**23)}, "from 1 to 8192 pixels"),
        ({"image_size": (0, 8)}, "from 1 to 8192 pixels"),
        ({"squash": 1}, "`squash` must be true or false"),
    ],
)
def test_values_that_no_model_was_trained_with_are_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        replace(OWN, **changes)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5,), (0,)), ((73.0,), (90.0,)), ((float("nan"),), (1.0,)), ((0.5,), (-1,)), ("x", (1,))],
)
def test_a_data_set_is_normalised_by_values_in_range(mean, std):
    with pytest.raises(InputError, match=r"`mean` and `std`|`std` above 0"):
        replace(load_digits(), mean=mean, std=std)


def test_a_data_set_is_normalised_by_a_value_for_each_channel():
    data = replace(load_digits(), mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(InputError, match="must have 1 values, one a channel"):
        make_search(model_of(in_chans=1, num_classes=10), data, budget=0.6)


# Whose it is


def test_images_are_loaded_as_the_model_was_trained(folder, caplog):
    data = load_images(folder, preprocess=OWN)
    assert not caplog.records
    assert replace(data.preprocess, origin="the test") == OWN
    assert data.preprocessing == {"interpolation": "bicubic", "crop": 0.9}
    again = load_again(json.loads(json.dumps(data.source)))
    assert again.source == data.source
    assert again.fingerprint == data.fingerprint
    assert again.preprocess == data.preprocess
    assert (
        load_images(folder, preprocess=replace(OWN, squash=True)).fingerprint != again.fingerprint
    )


def test_what_is_given_replaces_what_the_model_says(folder):
    data = load_image_folder(
        folder, preprocess=OWN, image_size=6, options=LoadOptions(mean=np.array([0.3, 0.3, 0.3]))
    )
    assert (data.mean, data.std) == ((0.3, 0.3, 0.3), OWN.std)
    assert data.image_shape == (3, 6, 6)
    with pytest.raises(InputError, match="from 1 to 8192"):
        load_image_folder(folder, image_size=10**23)


def test_images_that_are_not_square_stay_so(folder):
    data = load_image_folder(folder, preprocess=replace(OWN, image_size=(6, 8)))
    assert data.image_shape == (3, 6, 8)
    assert data.source["image_size"] == [6, 8]
    assert load_again(data.source).fingerprint == data.fingerprint


@pytest.mark.parametrize("load", [load_image_folder, load_images])
def test_an_assumed_normalisation_is_said(folder, load, caplog):
    data = load(folder, image_size=8)
    assert (data.mean, data.std) == (CIFAR10_MEAN, CIFAR10_STD)
    assert "the normalisation that the model was trained with is unknown" in caplog.text
    assert "mean (0.4914, 0.4822, 0.4465) and std (0.2023, 0.1994, 0.201)" in caplog.text
    assert "give `preprocess`, or `mean` and `std` (--mean and --std)" in caplog.text
    caplog.clear()
    assert load_again(data.source).mean == CIFAR10_MEAN
    load(folder, image_size=8, options=LoadOptions(mean=(0.5,) * 3, std=(0.5,) * 3))
    load(folder, preprocess=OWN)
    assert not caplog.records
    load(folder, preprocess=replace(OWN, is_assumed=True))
    assert "mean (0.1, 0.2, 0.3)" in caplog.text


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_assumed_normalisation_of_any_data_set_is_said(channels, caplog):
    random = np.random.default_rng(0)
    items = [
        (random.integers(0, 256, (8, 8, channels), dtype=np.uint8), label) for label in (0, 1) * 20
    ]
    data = load_datasets({"train": items[:20], "test": items[20:]}, name="d", classes=["a", "b"])
    assert data.mean == (CIFAR10_MEAN if channels == 3 else (0.5,) * channels)
    assert "are assumed" in caplog.text


def test_a_preprocessing_of_other_channels_is_refused(folder):
    grey = Preprocessing((0.5,), (0.5,), (8, 8))
    with pytest.raises(InputError, match="must have 3 values, one a channel"):
        load_images(folder, preprocess=grey)


def test_tables_and_cifar10_take_the_models_normalisation(tmp_path, folder, monkeypatch):
    class Stored:
        classes = ("a", "b")

        def __init__(self, root, train, download):
            self.data = np.zeros((24, 32, 32, 3), np.uint8)
            self.targets = [0, 1] * 12

    monkeypatch.setattr("vit_ratio_opt.data.cifar10.CIFAR10", Stored)
    data = load_cifar10(tmp_path, preprocess=OWN, options=LoadOptions(val_fraction=0.25))
    assert (data.mean, data.std) == (OWN.mean, OWN.std)
    assert load_again(data.source).mean == OWN.mean
    plain = {"loader": "cifar10", "root": str(tmp_path), "val_fraction": 0.25}
    assert load_again(plain).mean == CIFAR10_MEAN
    (tmp_path / "images" / "images").mkdir()
    rows = ["filename,label"]
    for name in ("cat", "dog"):
        for index in range(20):
            (folder / "images" / f"{name}{index}.png").symlink_to(
                folder / "train" / name / f"{index}.png"
            )
            rows.append(f"{name}{index}.png,{name}")
    (folder / "train.csv").write_text("\n".join(rows))
    data = load_csv_images(folder, preprocess=OWN)
    assert data.preprocess.crop == OWN.crop
    assert load_again(data.source).fingerprint == data.fingerprint


def test_a_model_of_unknown_training_gives_its_size():
    assumed = preprocess_or_assume(model_of(None))
    assert assumed.is_assumed
    assert (assumed.mean, assumed.image_size) == (CIFAR10_MEAN, (8, 8))
    assert preprocess_or_assume(model_of()) is OWN
    assert preprocess_or_assume(model_of(None, in_chans=1)).mean == (0.5,)


def test_pruned_copies_keep_the_preprocessing(tmp_path):
    model = model_of()
    images = torch.randn(4, 3, 8, 8)
    importance = taylor_importance(model, [(images, torch.tensor([0, 1, 0, 1]))])
    for pruned in (copy.deepcopy(model), prune(model, (0.5, 0.5), importance)):
        assert preprocess_of(pruned) == OWN
    save_pruned(pruned, tmp_path / "p.safetensors", {})
    assert preprocess_of(load_pruned(tmp_path / "p.safetensors", model)[0]) == OWN


# What is said of images that the model does not know


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, r"mean \(0.5, 0.5, 0.5\) .*, not mean \(0.1, 0.2, 0.3\)"),
        ({"std": (0.5, 0.5, 0.5)}, r"std \(0.5, 0.5, 0.5\), not"),
        ({"interpolation": "bilinear"}, "bilinear interpolation, not bicubic"),
        ({"crop": 1.0}, "cut to the centre, not cut to the centre at crop 0.9"),
        ({"squash": True}, "squashed to size at crop 0.9, not cut"),
    ],
)
def test_images_of_another_preprocessing_are_said(folder, change, clause, caplog):
    data = load_images(folder, preprocess=replace(OWN, **change))
    make_search(model_of(), data, budget=0.6)
    assert re.search(clause, caplog.text)
    assert "(according to the test)" in caplog.text


def test_images_of_the_models_own_preprocessing_are_not_said(folder, caplog):
    data = load_images(folder, preprocess=OWN)
    make_search(model_of(), data, budget=0.6)
    same = load_images(folder, image_size=8, options=LoadOptions(mean=OWN.mean, std=OWN.std))
    make_search(model_of(None), same, budget=0.6)
    rounded = replace(OWN, mean=(0.1001, 0.2, 0.3))
    make_search(model_of(rounded), data, budget=0.6)
    assert not caplog.records


# A dense model at chance


def test_a_dense_model_at_chance_is_said(caplog):
    data = load_digits()
    search = make_search(
        model_of(None, in_chans=1, num_classes=10), data, budget=0.6, recipe=Recipe(epochs=0)
    )
    assert search.dense_accuracy < 20
    assert search.dense_accuracy
    assert caplog.text.count("is no better than guessing") == 1
    for hint in ("classes are in the model's order (0, 1, 2", "mean (0.287)", "right checkpoint"):
        assert hint in caplog.text


@pytest.mark.parametrize(
    ("right", "images", "shares", "is_said"),
    [
        (100, 1000, [0.1] * 10, True),
        (125, 1000, [0.1] * 10, True),
        (150, 1000, [0.1] * 10, False),
        (0, 1000, [0.1] * 10, True),
        (900, 1000, [0.9, 0.1], True),  # the most frequent class
        (940, 1000, [0.9, 0.1], False),
        (8, 10, [0.5, 0.5], True),  # few images tell little
        (20, 20, [0.5, 0.5], False),
        (20, 20, [1.0], True),
    ],
)
def test_chance_is_bounded_by_the_binomial_distribution(right, images, shares, is_said, caplog):
    data = load_digits()
    labels = torch.cat(
        [torch.full((round(share * images),), label) for label, share in enumerate(shares)]
    )
    val = replace(data.val, labels=labels, indices=torch.arange(images))
    data = replace(data, val=val, classes=tuple(map(str, range(len(shares)))))
    warn_near_chance(100 * right / images, data)
    assert ("no better than guessing" in caplog.text) == (is_said and len(shares) > 1)


# The command line


def command(*arguments: object) -> tuple[int, str]:
    """Exit code and all output of the command line, in this process."""
    result = CliRunner().invoke(cli.app, list(map(str, arguments)))
    if isinstance(result.exception, InputError):  # what `main` makes a sentence of
        return 2, result.output + f"Error: {result.exception}"
    return result.exit_code, result.output + str(result.exception or "")


def test_prune_loads_images_at_the_models_size_and_tells_what_it_assumes(folder, tmp_path, caplog):
    dense = tmp_path / "dense.safetensors"
    save_dense(model_of(None), dense, name=MODEL, arguments=ARGUMENTS)
    path = tmp_path / "pruned.safetensors"
    arguments = ["prune", "--checkpoint", dense, "--data", folder, "--output", path]
    code, output = command(*arguments, "--mhsa-ratio", 0.5, "--ffn-ratio", 0.5)
    assert code == 0, output
    assert "are assumed (CIFAR-10's" in caplog.text
    _, manifest = load_pruned(path)
    assert manifest["images"]["image_size"] == 8  # the model's, of images of 12 x 16
    assert study_images(manifest, folder).source["image_size"] == 8


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"--data": "typo"}, "Error: There is no folder typo."),
        ({"--mhsa-ratio": "1.5"}, "`mhsa_ratio` must be in [0, 1), but got 1.5"),
        ({"--ffn-ratio": "nan"}, "`ffn_ratio` must be in [0, 1), but got nan"),
        ({"--image-size": "1e23"}, "--image-size"),
        ({"--image-size": str(10**23)}, "--image-size"),
        ({"--seed": str(2**70)}, "--seed"),
    ],
)
def test_what_is_cheap_to_check_is_checked_first(folder, tmp_path, monkeypatch, changes, sentence):
    monkeypatch.chdir(tmp_path)
    options = {
        "--checkpoint": "none.safetensors", "--data": folder, "--mhsa-ratio": 0.5,
        "--ffn-ratio": 0.5, **changes,
    }  # fmt: skip
    code, output = command("prune", *(part for pair in options.items() for part in pair))
    assert code == 2
    assert sentence in " ".join(output.replace("│", " ").split())
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("name", ["search", "train"])
def test_a_mistyped_folder_of_images_is_one_sentence_and_nothing_is_made(name, tmp_path):
    root = Path(__file__).parents[2]
    arguments = [name, "--data", "typo"]
    arguments += ["new/m.safetensors"] if name == "train" else ["--checkpoint", "none"]
    done = subprocess.run(
        [sys.executable, "-m", "vit_ratio_opt", *arguments], cwd=tmp_path, check=False,
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "Error: There is no folder typo.\n")
    assert not list(tmp_path.iterdir())
