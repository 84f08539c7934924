"""Images for features: no source needs labels, and those that are there are kept."""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.model_selection import train_test_split
from torch.utils.data import TensorDataset
from torchvision.datasets import ImageFolder

from vit_ratio_opt.data.cifar10 import load_cifar10
from vit_ratio_opt.data.csv_images import load_csv_images
from vit_ratio_opt.data.datasets import load_datasets
from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.data.image_folder import load_image_folder
from vit_ratio_opt.data.labels import class_counts
from vit_ratio_opt.data.load import default_validation, load_again, load_images
from vit_ratio_opt.data.options import LoadOptions
from vit_ratio_opt.data.splits import split_in_memory, split_stratified
from vit_ratio_opt.data.stored import study_images
from vit_ratio_opt.errors import InputError

USUAL = LoadOptions(mean=(0.5,) * 3, std=(0.5,) * 3)
FEATURES = replace(USUAL, task="features")
ON_DISK = replace(FEATURES, memory_limit=0)
HINT = r"To prune on images without labels, use `task='features'` \(--task features\)\.$"


@pytest.fixture(autouse=True)
def _heard(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    caplog.set_level(logging.WARNING)


def pixels(seed: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, channels), dtype=np.uint8)


def write(root, *names, count=10, first=0):
    """Folders of ``count`` images each, all of them different."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image = Image.fromarray(pixels(first + 1000 * number + index))
            image.save(root / name / f"{index}.png")
    return root


def table(root, split, header, rows, first=0):
    (root / "images").mkdir(exist_ok=True)
    for number in range(len(rows)):
        image = Image.fromarray(pixels(first + number))
        image.save(root / "images" / f"{split}{number}.png")
    lines = [header, *(f"{split}{number}.png{row}" for number, row in enumerate(rows))]
    (root / f"{split}.csv").write_text("\n".join(lines))


def counts(data) -> list[int]:
    return [len(data.train), len(data.val), len(data.test)]


def hashes(data) -> tuple[str, str, str]:
    return data.training_fingerprint, data.fingerprint, data.test_fingerprint


def assert_unlabelled(data) -> None:
    """All labels are -1, also those of batches, and there are no classes."""
    assert (data.task, data.classes, data.has_labels) == ("features", (), False)
    for split in (data.train, data.val, data.test):
        assert split.labels.dtype == torch.int64
        assert (split.labels == -1).all()
        for images, labels in split.batches(7):
            assert labels.tolist() == [-1] * len(images)


def assert_loaded_again(data) -> None:
    again = load_again(json.loads(json.dumps(data.source)))
    assert (again.task, again.classes, again.source) == (data.task, data.classes, data.source)
    assert hashes(again) == hashes(data)
    assert again.preprocessing == data.preprocessing


# Sources with labels


def test_a_source_with_classes_gives_the_images_splits_and_labels_of_one_label(tmp_path):
    write(tmp_path / "folder", "train/cat", "train/dog", "test/cat", "test/dog")
    for split, letters in (("train", "ab"), ("test", "ab")):
        (tmp_path / "tables").mkdir(exist_ok=True)
        rows = [f",{letters[n % 2]}" for n in range(20)]
        table(tmp_path / "tables", split, "filename,label", rows, 500 * (split == "test"))
    for split, letters in (("train", "ab"), ("test", "cd")):  # few-shot
        (tmp_path / "pooled").mkdir(exist_ok=True)
        rows = [f",{letters[n % 2]}" for n in range(20)]
        table(tmp_path / "pooled", split, "filename,label", rows, 500 * (split == "test"))
    for name in ("folder", "tables", "pooled"):
        for options in (USUAL, replace(USUAL, memory_limit=0)):
            data = load_images(tmp_path / name, options=replace(options, task="features"), seed=1)
            other = load_images(tmp_path / name, options=options, seed=1)
            assert hashes(data) == hashes(other)
            assert (data.classes, data.has_labels) == (other.classes, True)
            assert data.source == {**other.source, "task": "features"}
            assert next(data.val.batches(4))[1].tolist() == data.val.labels[:4].tolist()
            assert_loaded_again(data)


def test_digits_keep_their_labels():
    data, other = load_digits(seed=3, task="features"), load_digits(seed=3)
    assert hashes(data) == hashes(other)
    assert data.classes == other.classes
    assert other.source == {"loader": "digits", "seed": 3, "val_fraction": 0.2}
    assert data.source == {**other.source, "task": "features"}
    assert_loaded_again(data)
    manifest = {"images": data.source, "validation": data.fingerprint, "classes": data.classes}
    assert study_images({**manifest, "classes": [*data.classes]}).task == "features"
    with pytest.raises(
        InputError, match=r"one class, but got {'task': 'regression'}: leave `task"
    ):
        load_digits(task="regression")


def test_cifar10_keeps_its_labels(tmp_path, monkeypatch):
    class Stored:
        classes = tuple("abcdefghij")

        def __init__(self, root, train, download):
            self.targets = [*range(10)] * 10
            self.data = np.stack([pixels(n + 500 * train) for n in range(100)])
            self.data = self.data.repeat(4, 1).repeat(4, 2)

    monkeypatch.setattr("vit_ratio_opt.data.cifar10.CIFAR10", Stored)
    options = LoadOptions(task="features")
    data, other = load_cifar10(tmp_path, options=options), load_cifar10(tmp_path)
    assert hashes(data) == hashes(other)
    assert (data.task, data.classes) == ("features", Stored.classes)
    assert data.source == {**other.source, "task": "features"}
    assert_loaded_again(data)
    with pytest.raises(InputError, match="leave `label_key` out"):
        load_cifar10(tmp_path, options=replace(options, label_key="x"))


# Folders


@pytest.mark.parametrize("names", [["."], ["a/b", "a/c d/e", "f"], ["train"], ["train/x/y"]])
@pytest.mark.parametrize("options", [FEATURES, ON_DISK])
def test_a_folder_of_images_is_split_at_random_but_the_same_each_time(tmp_path, names, options):
    write(tmp_path / "photos", *names, count=60 // len(names))
    data = load_images(tmp_path / "photos", options=options, seed=3)
    assert_unlabelled(data)
    assert counts(data) == [43, 5, 12]
    assert_loaded_again(data)
    other = load_images(tmp_path / "photos", options=options, seed=4)
    assert other.test_fingerprint == data.test_fingerprint
    assert other.fingerprint != data.fingerprint
    (tmp_path / "photos").rename(tmp_path / "moved")
    moved = load_again(data.source, root=tmp_path / "moved")
    assert hashes(moved) == hashes(data)
    manifest = {"images": data.source, "validation": data.fingerprint, "classes": []}
    assert hashes(study_images(manifest, tmp_path / "moved")) == hashes(data)


def test_a_relative_folder_leaves_its_other_splits_out_of_training(tmp_path, monkeypatch):
    write(tmp_path, "a", "test", "val", count=5)
    monkeypatch.chdir(tmp_path)
    data = load_images(".", options=FEATURES)
    assert counts(data) == [5, 5, 5]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train", "val", "test"], [10, 10, 10]),
        (["train/x", "validation", "test/y/z"], [10, 10, 10]),
        ([".", "val", "test"], [10, 10, 10]),
        (["a/b", "valid", "test"], [10, 10, 10]),
        (["train", "val"], [9, 1, 10]),
        (["more", "test"], [9, 1, 10]),
    ],
)
def test_folders_of_splits_are_kept_apart(tmp_path, names, expected, caplog):
    data = load_images(write(tmp_path, *names), options=FEATURES)
    assert_unlabelled(data)
    assert counts(data) == expected
    assert default_validation(tmp_path, "test", FEATURES) == ("val" if len(names) == 3 else "test")
    assert load_images(tmp_path, options=FEATURES, validation="test").validation == "test"
    assert_loaded_again(data)
    assert not caplog.text


def test_class_folders_of_train_are_enough(tmp_path):
    data = load_images(write(tmp_path, "train/cat", "train/dog"), options=FEATURES)
    assert data.classes == ("cat", "dog")
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert_loaded_again(data)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["train/cat", "train/dog", "test/cat"], "since some splits lack 'dog'"),
        (["train/cat", "train/dog", "test"], "since some splits lack 'cat'"),
        (["train/cat", "train/dog", "train"], "since .*train/.*png lies in none"),
        (["train/cat", "train", "test/cat"], None),  # one folder is no class
    ],
)
def test_folders_that_are_no_classes_of_all_images_give_no_labels(tmp_path, names, why, caplog):
    data = load_images(write(tmp_path, *names), options=FEATURES)
    assert_unlabelled(data)
    assert sum(counts(data)) == 30
    pattern = "^$" if why is None else f"are not used as classes, {why}"
    assert re.search(pattern, caplog.text)


def test_classes_of_single_images_are_drawn_without_regard_to_them(tmp_path):
    write(tmp_path, *(f"train/{n}" for n in range(20)), count=1)
    write(tmp_path, "train/0", count=30, first=99)
    data = load_images(tmp_path, options=FEATURES)
    assert counts(data) == [35, 4, 10]
    assert len(data.classes) == 20
    labels = torch.cat([data.train.labels, data.val.labels, data.test.labels])
    assert class_counts(labels, 20).tolist() == [30, *[1] * 19]
    assert_loaded_again(data)


def test_a_share_is_stratified_exactly_where_that_is_possible():
    draw = np.random.default_rng(0)
    for _ in range(200):
        labels = draw.integers(0, draw.integers(1, 6), draw.integers(4, 30))
        fraction = float(draw.choice([0.1, 0.2, 0.5, 0.7]))
        split = split_in_memory(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels)
        _, held = split_stratified(split, fraction, seed=0, must_stratify=False)
        positions = np.arange(len(labels))
        try:
            expected = train_test_split(
                positions, test_size=fraction, stratify=labels, random_state=0
            )
        except ValueError:
            expected = train_test_split(positions, test_size=fraction, random_state=0)
        assert held.indices.tolist() == sorted(expected[1])


def test_files_that_are_no_images_and_hidden_ones_are_left_out(tmp_path, caplog):
    write(tmp_path, "a/b", ".hidden", "__MACOSX")
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    data = load_images(tmp_path, options=FEATURES)
    assert sum(counts(data)) == 10
    assert "1 file(s)" in caplog.text
    assert "notes.txt" in caplog.text


def test_damaged_and_grey_images_are_treated_as_with_labels(tmp_path):
    write(tmp_path, "a", count=20)
    (tmp_path / "a" / "3.png").write_bytes(b"")
    for options in (FEATURES, ON_DISK):
        with pytest.raises(InputError, match=r"1 of 20 images cannot be read.*a/3\.png"):
            load_images(tmp_path, options=options)
        data = load_images(tmp_path, options=replace(options, skip_damaged=True))
        assert_unlabelled(data)
        assert sum(counts(data)) == 19


def test_the_same_image_in_a_drawn_split_is_said_to_be(tmp_path, caplog):
    write(tmp_path, "a", count=20)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    load_images(tmp_path, options=FEATURES)
    assert "test images are training images too" in caplog.text


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["train", "val"], r"train has no images \(\.jpg"),
        (["x"], r"has no images \(\.jpg"),
        (["val", "test"], r"has no images .* beside the folders of other splits"),
    ],
)
def test_a_folder_without_images_is_refused(tmp_path, names, sentence):
    write(tmp_path, *names[1:])
    (tmp_path / names[0]).mkdir(exist_ok=True)
    with pytest.raises(InputError, match=sentence):
        load_images(tmp_path, options=FEATURES)


def test_a_single_image_cannot_be_split(tmp_path):
    with pytest.raises(InputError, match=r"^1 images cannot be split, 0.2 of them held out"):
        load_images(write(tmp_path, "a", count=1), options=FEATURES)


@pytest.mark.parametrize("names", [["."], ["a/b"], ["train"], ["train/a"]])
def test_images_without_labels_are_refused_with_the_task_that_takes_them(tmp_path, names):
    write(tmp_path, *names)
    for load in (load_images, load_image_folder):
        with pytest.raises(InputError, match=HINT):
            load(tmp_path)
    with pytest.raises(InputError, match=HINT):
        load_images(tmp_path, image_size=8)
    shutil.rmtree(tmp_path)
    (tmp_path / "train").mkdir(parents=True)
    (tmp_path / "train" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"has no folders\.$"):
        load_images(tmp_path)


# Tables


def test_tables_need_no_column_of_labels(tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        table(tmp_path, split, "filename,size", [",3"] * 10, 100 * number)
    for options in (FEATURES, ON_DISK):
        data = load_images(tmp_path, options=options)
        assert_unlabelled(data)
        assert counts(data) == [10, 10, 10]
        assert_loaded_again(data)
    assert default_validation(tmp_path, "test", FEATURES) == "val"
    with pytest.raises(InputError, match="has no column 'label'.*" + HINT):
        load_images(tmp_path)
    with pytest.raises(InputError, match=r"no column 'path', .* must have rows with `path`[.] O"):
        load_images(tmp_path, options=replace(FEATURES, image_key="path"))


def test_a_table_alone_without_labels_is_pooled(tmp_path):
    table(tmp_path, "train", "path", [""] * 60)
    options = replace(FEATURES, image_key="path")
    data = load_csv_images(tmp_path, options=options, seed=3)
    assert_unlabelled(data)
    assert counts(data) == [43, 5, 12]
    assert_loaded_again(data)


@pytest.mark.parametrize(
    ("test", "why"),
    [
        (("filename", [""] * 10), "some rows have no label"),
        (("filename,label", [",a", ",b", ","] * 3), "some rows have no label"),
        (("filename,label", [",a", ",a"] * 5), "only some classes in common"),
    ],
)
def test_labels_that_are_no_classes_of_all_rows_are_not_used(tmp_path, test, why, caplog):
    table(tmp_path, "train", "filename,label", [",a", ",b"] * 10)
    table(tmp_path, "test", *test, first=100)
    data = load_images(tmp_path, options=FEATURES)
    assert_unlabelled(data)
    assert counts(data) == [18, 2, len(test[1])]
    assert f"{why}, so the labels of the .csv files are not used" in caplog.text
    assert_loaded_again(data)


def test_a_column_of_classes_may_be_named(tmp_path):
    table(tmp_path, "train", "filename,species", [",b", ",a"] * 20)
    data = load_images(tmp_path, options=replace(FEATURES, label_key="species"))
    assert data.classes == ("a", "b")
    assert data.test.labels.bincount().tolist() == [4, 4]
    assert_loaded_again(data)
    with pytest.raises(InputError, match="has no column 'kind'"):
        load_images(tmp_path, options=replace(FEATURES, label_key="kind"))


# Data sets


def load(items, test=None, *, options=FEATURES, **more):
    splits = {"train": items} if test is None else {"train": items, "test": test}
    return load_datasets(splits, name="c", options=options, **more)


@pytest.mark.parametrize(
    "make",
    [
        lambda image, label: image,
        lambda image, label: torch.from_numpy(image).permute(2, 0, 1),
        lambda image, label: Image.fromarray(image),
        lambda image, label: (image,),
        lambda image, label: (image, None),
        lambda image, label: (image, {"boxes": []}),
        lambda image, label: {"image": image},
        lambda image, label: {"image": image, "label": label, "labels": label},
        lambda image, label: {"jpg": Image.fromarray(image), "__key__": "7"},
    ],
)
@pytest.mark.parametrize("options", [FEATURES, ON_DISK])
def test_items_may_be_images_alone(make, options):
    items = [make(pixels(n), n % 2) for n in range(40)]
    test = [make(pixels(100 + n), n % 2) for n in range(10)]
    data = load(items, test, options=options)
    assert_unlabelled(data)
    assert counts(data) == [36, 4, 10]
    assert data.source == {}
    assert (next(data.test.batches(4))[0][3].permute(1, 2, 0).numpy() == pixels(103)).all()
    assert counts(load(items, options=options)) == [28, 4, 8]  # a test split is drawn


def test_a_tensor_data_set_of_images_is_enough():
    images = torch.from_numpy(np.stack([pixels(n) for n in range(40)])).permute(0, 3, 1, 2)
    data = load(TensorDataset(images.contiguous()), TensorDataset(images.contiguous()))
    assert_unlabelled(data)


@pytest.mark.parametrize("options", [FEATURES, ON_DISK])
def test_labels_of_items_are_kept_where_the_classes_are_known(options):
    items = [{"image": pixels(n), "label": n % 2} for n in range(40)]
    data = load(items, items[:10], options=options, classes=["cat", "dog"])
    assert data.classes == ("cat", "dog")
    assert data.test.labels.tolist() == next(data.test.batches(10))[1].tolist() == [0, 1] * 5
    wrong = [*items, {"image": pixels(0), "label": 2}]
    with pytest.raises(InputError, match="item 40: its label is 2, but must be 0 to 1"):
        load(wrong, items, options=options, classes=["cat", "dog"])
    with pytest.raises(InputError, match="item 40: its label is 'a', but must be a whole number"):
        load([*items, (pixels(0), "a")], items, options=options, classes=["cat", "dog"])
    named = replace(options, label_key="label")
    with pytest.raises(InputError, match="know no names of classes"):
        load(items, items, options=named)
    with pytest.raises(InputError, match="must have the key 'label'"):
        load([{"image": pixels(0)}], items, options=named, classes=["cat", "dog"])


@pytest.mark.parametrize("options", [FEATURES, ON_DISK])
@pytest.mark.parametrize("lacking", [{}, {"label": -1}, {"label": None}])
def test_labels_are_not_used_where_an_image_has_none(options, lacking, caplog):
    items = [{"image": pixels(n), "label": n % 2} for n in range(40)]
    test = [{"image": pixels(100 + n), **lacking} for n in range(10)]
    data = load(items, test, options=options, classes=["cat", "dog"])
    assert_unlabelled(data)
    assert "c: 10 of 50 images have no label, so no labels are used." in caplog.text


@pytest.mark.parametrize("options", [FEATURES, ON_DISK])
def test_torchvisions_folders_keep_their_labels_unless_items_lack_them(tmp_path, options, caplog):
    class Unlabelled(ImageFolder):
        def __getitem__(self, index):
            return super().__getitem__(index)[0]

    write(tmp_path, "cat", "dog", count=50)
    data = load(ImageFolder(tmp_path), options=options)
    assert data.classes == ("cat", "dog")
    assert data.test.labels.bincount().tolist() == [10, 10]
    assert not caplog.text
    assert_unlabelled(load(Unlabelled(tmp_path), options=options))
    assert "of 100 images have no label" in caplog.text


class Named(list):
    """Items with features, as data sets of Hugging Face have them."""

    def __init__(self, made, **features):
        super().__init__(made)
        self.features = features


class ClassLabel:
    names = ("cat", "dog")


class ClassLabels:
    feature = ClassLabel()


def test_data_sets_of_hugging_face_need_no_labels():
    items = [{"image": pixels(n), "label": n % 2, "tags": [0, 1]} for n in range(40)]
    labelled = Named(items, image=object(), label=ClassLabel())
    assert load(labelled, labelled).classes == ("cat", "dog")
    assert_unlabelled(load(Named(({"image": i["image"]} for i in items), image=object())))
    several = Named(
        ({"image": i["image"], "label": i["tags"]} for i in items), label=ClassLabels()
    )
    assert_unlabelled(load(several))


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ((pixels(0), 1, 2), "it is a tuple of 3, but must be a pair"),
        ({"picture": pixels(0)}, "name its key with `image_key`"),
        ("x.png", "it is a str, but must be a PIL image"),
        (pixels(0, channels=1), "it has 1 channel"),
        (pixels(0).astype(np.float32), "it has values of float32"),
    ],
)
def test_an_item_that_is_no_image_is_refused_with_its_index(item, sentence):
    with pytest.raises(InputError, match=rf"^c, training images, item 1: .*{sentence}"):
        load([pixels(0), item], [pixels(1)])


@pytest.mark.parametrize("item", [pixels(0), (pixels(0),), {"image": pixels(0)}])
def test_items_without_labels_are_refused_with_the_task_that_takes_them(item):
    with pytest.raises(InputError, match=HINT):
        load([item] * 4, [item] * 4, options=USUAL, classes=["a", "b"])
    with pytest.raises(InputError, match=r"as `classes`\. " + HINT):
        load([item] * 4, [item] * 4, options=USUAL)


def test_without_a_test_split_other_tasks_are_refused():
    items = [(pixels(n), n % 2) for n in range(40)]
    with pytest.raises(InputError, match="`splits` must have 'train', 'test' and perhaps 'val'"):
        load(items, options=USUAL, classes=["a", "b"])


# Options


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label_key": ["a", "b"]}, "has the 2 keys .* but an image has one label"),
        ({"label_separator": ";"}, "is for `task='multi-label'`"),
    ],
)
def test_options_of_several_labels_are_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        LoadOptions(task="features", **options)


def test_no_label_is_of_no_class():
    assert class_counts(torch.tensor([-1, -1]), 0).tolist() == []
    assert class_counts(torch.tensor([-1, 1]), 3).tolist() == [0, 1, 0]
