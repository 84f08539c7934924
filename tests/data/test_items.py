from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from torchvision.datasets import ImageFolder

from vit_ratio_opt.data.datasets import load_datasets
from vit_ratio_opt.data.options import LoadOptions
from vit_ratio_opt.errors import InputError

NORMALISED = LoadOptions(mean=(0.5,) * 3, std=(0.5,) * 3)
OPTIONS = {"name": "c", "classes": ["a", "b"], "options": NORMALISED}


@pytest.fixture(autouse=True)
def _heard(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    caplog.set_level(logging.WARNING)


def image(seed: int = 0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, channels), dtype=np.uint8)


def items(labels, *, seed: int = 0, make=lambda image, label: (image, label)):
    return [make(image(seed + index), label) for index, label in enumerate(labels)]


def load(train, test, **options):
    """Two data sets, with options of the loader by name."""
    own = {name: options.pop(name) for name in list(options) if hasattr(NORMALISED, name)}
    arguments = {**OPTIONS, "options": replace(NORMALISED, **own), **options}
    return load_datasets({"train": train, "test": test}, **arguments)


class Items(Dataset):
    """A data set with a list of labels, which may be wrong."""

    def __init__(self, labels, targets=None, **attributes):
        self.items = items(labels)
        self.__dict__.update(attributes)
        if targets is not None:
            self.targets = targets

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


PAIR = [0, 1] * 10


@pytest.mark.parametrize(
    "make",
    [
        lambda image, label: (image, label),
        lambda image, label: [image, label],
        lambda image, label: {"image": image, "label": label},
        lambda image, label: {"img": image, "fine_label": label, "id": 3},
        lambda image, label: {"pixel_values": image, "labels": label},
        lambda image, label: (image, np.int64(label)),
        lambda image, label: (image, np.array([label])),
        lambda image, label: (image, torch.tensor(label)),
        lambda image, label: (image, bool(label)),
    ],
)
@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_items_and_labels_of_any_usual_kind_are_read(make, memory_limit):
    train, test = items(PAIR, make=make), items(PAIR, seed=99, make=make)
    data = load(train, test, memory_limit=memory_limit)
    images, labels = next(data.test.batches(20))
    assert labels.tolist() == PAIR
    assert (images[3].permute(1, 2, 0).numpy() == image(102)).all()


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ((image(), 0, "extra"), "it is a tuple of 3, but must be a pair"),
        ((image(),), "tuple of 1"),
        (image(), "it is a ndarray, but must be a pair"),
        ({"picture": image(), "label": 0}, r"keys \['picture', 'label'\] but must have one of"),
        ({"image": image(), "caption": "x"}, "for the label"),
        ({"image": image(), "img": image(), "label": 0}, "for the image"),
        ((image(), 1.0), "its label is 1.0, but must be a whole number"),
        ((image(), "a"), "its label is 'a'"),
        ((image(), None), "its label is None"),
        ((image(), torch.tensor([0, 1])), r"its label is tensor\(\[0, 1\]\)"),
        ((image(), np.array([0.0, 1.0])), "its label is array"),
        ((image(), torch.tensor(0.0)), "its label is tensor"),
        ((image(channels=1), 0), "it has 1 channel.* the first image has 3"),
        ((Image.new("L", (8, 8)), 0), "it has 1 channel"),
        ((Image.new("RGBA", (8, 8)), [1]), "its label is"),
    ],
)
@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_an_item_that_is_no_image_with_a_class_is_refused_with_its_index(
    item, sentence, memory_limit
):
    bad = [*items(PAIR)[:7], item, *items(PAIR)]
    with pytest.raises(InputError, match=rf"c, test images, item 7: .*{sentence}"):
        load(items(PAIR), bad, memory_limit=memory_limit)


@pytest.mark.parametrize(
    ("labels", "item", "label", "hint"),
    [
        ([1, 2] * 10, 1, 2, r".* Subtract 1\.$"),
        ([0, -1] * 10, 1, -1, ", one for each"),
        ([0, 1, 255] * 10, 2, 255, r", one for each of the 2 classes\.$"),
        ([0, 2**70] * 10, 1, 2**70, ""),
    ],
)
@pytest.mark.parametrize("memory_limit", [2**30, 0])
@pytest.mark.parametrize("part", ["training", "test"])
def test_labels_out_of_range_are_refused_when_the_data_are_loaded(
    labels, item, label, hint, memory_limit, part
):
    bad, good = items(labels), items(PAIR)
    pair = (bad, good) if part == "training" else (good, bad)
    sentence = f"c, {part} images, item {item}: its label is {label}, but must be 0 to 1{hint}"
    with pytest.raises(InputError, match=sentence):
        load(*pair, memory_limit=memory_limit)


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (["a"], "must be 0 to 0"),
        (["a", "b", "c"], r"has 3 names, but no image belongs to \['c'\]"),
        (["a", "a"], "different names"),
        ([], "different names"),
        ("ab", "different names"),
    ],
)
def test_class_names_that_do_not_fit_the_labels_are_refused(classes, sentence):
    with pytest.raises(InputError, match=sentence):
        load(items(PAIR), items(PAIR), classes=classes)


def test_a_class_without_test_images_is_said(caplog):
    load(items(PAIR), items([0] * 20))
    assert "no test image belongs to 1 of the 2 classes, such as 'b'" in caplog.text


@pytest.mark.parametrize("classes", [2, {"a", "b"}, iter("ab")])
def test_classes_that_are_no_list_are_refused(classes):
    with pytest.raises(InputError, match="must be a list of different names"):
        load(items(PAIR), items(PAIR), classes=classes)


def test_a_class_with_one_image_cannot_be_split():
    with pytest.raises(InputError, match=r"cannot be split by class.* Give more images of each"):
        load(items([0] * 19 + [1]), items(PAIR))


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_a_list_of_labels_that_is_not_the_items_is_refused(memory_limit):
    options = {"memory_limit": memory_limit}
    load(Items(PAIR, PAIR), items(PAIR), **options)
    with pytest.raises(InputError, match=r"item 0: its label is 0, but `dataset.targets` says 1"):
        load(Items(PAIR, PAIR[::-1]), items(PAIR), **options)
    load(Items(PAIR, torch.tensor(PAIR)), items(PAIR), **options)
    load(Items(PAIR, ["cat", "dog"] * 10), items(PAIR), **options)


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_a_transform_of_labels_counts(tmp_path, memory_limit):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(10):
            Image.fromarray(image(index)).save(tmp_path / name / f"{index}.png")
    swapped = ImageFolder(str(tmp_path), target_transform=lambda label: 1 - label)
    data = load(swapped, swapped, memory_limit=memory_limit)
    assert data.test.labels.tolist() == [1] * 10 + [0] * 10
    part = Subset(ImageFolder(str(tmp_path)), [0, 1, 15, 16])
    data = load(items(PAIR), part, memory_limit=memory_limit)
    assert data.test.labels.tolist() == [0, 0, 1, 1]


def test_another_order_of_the_classes_is_refused():
    here, there = Items(PAIR, classes=["a", "b"]), Items(PAIR, classes=["b", "a"])
    load(here, here)
    for pair in ((there, items(PAIR)), (here, there), (Subset(there, range(20)), here)):
        with pytest.raises(InputError, match=r"another order.*label 0 is '[ab]' or '[ab]'"):
            load(*pair)


def test_a_stream_of_items_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(items(PAIR))

    for pair in (
        (Stream(), items(PAIR)),
        (items(PAIR), Stream()),
        (DataLoader(items(PAIR)), items(PAIR)),
    ):
        with pytest.raises(InputError, match="must be a map-style data set"):
            load(*pair)


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_items_that_cannot_be_read_are_named_or_left_out(tmp_path, memory_limit, caplog):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(10):
            Image.fromarray(image(index)).save(tmp_path / name / f"{index}.png")
    for path in (tmp_path / "a" / "0.png", tmp_path / "b" / "9.png"):
        path.write_bytes(path.read_bytes()[:80])
    files = ImageFolder(str(tmp_path))
    options = {"memory_limit": memory_limit, "validation": "test"}
    with pytest.raises(InputError, match=r"2 of 40 .*item 0 \(.*a/0\.png\).*b/9\.png"):
        load(files, items(PAIR, seed=50), **options)
    data = load(files, items(PAIR, seed=50), **options, skip_damaged=True)
    assert data.train.labels.tolist() == [0] * 9 + [1] * 9
    assert "2 of 40 images are left out" in caplog.text


def test_validation_images_may_be_a_data_set_of_their_own():
    splits = {"train": items(PAIR), "test": items(PAIR, seed=50)}
    data = load_datasets({**splits, "val": items([0, 1] * 3, seed=90)}, **OPTIONS)
    assert [len(part) for part in (data.train, data.val, data.test)] == [20, 6, 20]
    assert data.validation == "val"
    with pytest.raises(InputError, match="c, validation images, item 1: its label is 'x'"):
        load_datasets({**splits, "val": items([0, "x"])}, **OPTIONS)


@pytest.mark.parametrize("names", [("train",), ("train", "val"), ("train", "test", "extra")])
def test_splits_of_other_names_are_refused(names):
    with pytest.raises(InputError, match="must have 'train', 'test' and perhaps 'val', but has"):
        load_datasets({name: items(PAIR) for name in names}, **OPTIONS)


def test_options_for_files_are_refused_for_data_sets():
    with pytest.raises(InputError, match="`exif_rotation` is for image files"):
        load(items(PAIR), items(PAIR), exif_rotation=True)
