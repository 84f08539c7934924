"""Several labels and regression, from tables and from data sets."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from vit_ratio_opt.data.csv_images import load_csv_images
from vit_ratio_opt.data.datasets import load_datasets
from vit_ratio_opt.data.image_folder import load_image_folder
from vit_ratio_opt.data.labels import class_counts, parse_label
from vit_ratio_opt.data.load import default_validation, load_again, load_images
from vit_ratio_opt.data.options import LoadOptions
from vit_ratio_opt.data.splits import split_in_memory, split_stratified
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.exported import exported_accuracy
from vit_ratio_opt.training.evaluate import evaluate

USUAL = LoadOptions(mean=(0.5,) * 3, std=(0.5,) * 3)
COLUMNS = replace(USUAL, task="multi-label", label_key=["cat", "dog"])
SEPARATED = replace(USUAL, task="multi-label", label_separator=";")
NUMBERS = replace(USUAL, task="regression", label_key=["age", "size"])
ROWS = {
    "columns": ("filename,cat,dog", ["1,0", "0,1", "1,1", "0,0"]),
    "separated": ("filename,label", ["cat", "dog", "dog; cat", ""]),
    "numbers": ("filename,age,size", ["3,0.5", "-1.5,1e3", "0,0", "7,2"]),
}
OPTIONS = {"columns": COLUMNS, "separated": SEPARATED, "numbers": NUMBERS}
FIRST_FOUR = [[1, 0], [0, 1], [1, 1], [0, 0]]


@pytest.fixture(autouse=True)
def _heard(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    caplog.set_level(logging.WARNING)


def image(seed: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, channels), dtype=np.uint8)


def table(root, header, rows, split="train"):
    """A table of numbered images, which are made."""
    (root / "images").mkdir(exist_ok=True)
    lines = [header]
    for number, row in enumerate(rows):
        name = f"{split}{number}.png"
        seed = {"train": 0, "val": 1000, "test": 2000}[split] + number
        Image.fromarray(image(seed)).save(root / "images" / name)
        lines.append(f"{name},{row}")
    (root / f"{split}.csv").write_text("\n".join(lines))
    return root


def labels_of(data) -> torch.Tensor:
    return torch.cat([split.labels for split in (data.train, data.val, data.test)])


# Tables


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_tables_of_several_labels_and_targets_are_read_and_loaded_again(
    tmp_path, kind, memory_limit
):
    header, rows = ROWS[kind]
    for split in ("train", "val", "test"):
        table(tmp_path, header, rows * 2, split)
    options = replace(OPTIONS[kind], memory_limit=memory_limit)
    data = load_csv_images(tmp_path, options=options)
    assert data.task == options.task
    assert data.classes == (("age", "size") if kind == "numbers" else ("cat", "dog"))
    assert data.validation == default_validation(tmp_path, "test", options) == "val"
    images, labels = next(data.train.batches(4))
    assert labels.dtype == data.test.labels.dtype == torch.float32
    expected = FIRST_FOUR if kind != "numbers" else [[3, 0.5], [-1.5, 1e3], [0, 0], [7, 2]]
    assert labels.tolist() == data.val.labels[4:].tolist() == expected
    assert (images[1].permute(1, 2, 0).numpy() == image(1)).all()
    again = load_again(json.loads(json.dumps(data.source)))
    assert (again.task, again.classes, again.source) == (data.task, data.classes, data.source)
    assert again.fingerprint == data.fingerprint
    assert again.preprocessing == data.preprocessing == {}


def test_a_table_alone_is_pooled_and_split_at_random_but_the_same_each_time(tmp_path):
    table(tmp_path, "filename,cat,dog", ["1,0", "0,1"] * 20)
    data = load_images(tmp_path, options=COLUMNS, seed=3)
    assert [len(part) for part in (data.train, data.val, data.test)] == [28, 4, 8]
    assert load_images(tmp_path, options=COLUMNS, seed=3).fingerprint == data.fingerprint
    other = load_images(tmp_path, options=COLUMNS, seed=4)
    assert other.fingerprint != data.fingerprint
    assert other.test_fingerprint == data.test_fingerprint
    pooled = load_csv_images(tmp_path, options=COLUMNS, seed=3, test_fraction=0.5)
    assert load_again(pooled.source).test_fingerprint == pooled.test_fingerprint


def test_labels_are_part_of_the_fingerprint(tmp_path):
    rows = ["1,0", "0,1"] * 20
    first = load_images(table(tmp_path, "filename,cat,dog", rows), options=COLUMNS)
    table(tmp_path, "filename,cat,dog", [*rows[:-1], "1,1"])
    changed = load_images(tmp_path, options=COLUMNS)
    hashes = [
        (data.training_fingerprint, data.fingerprint, data.test_fingerprint)
        for data in (first, changed)
    ]
    assert sum(one != other for one, other in zip(*hashes, strict=True)) == 1


@pytest.mark.parametrize(
    ("options", "header", "row", "sentence"),
    [
        (COLUMNS, "filename,cat,dog", "2,0", "line 6: of 'train4.png', 'cat' is '2', but"),
        (COLUMNS, "filename,cat,dog", "1,-1", "'dog' is '-1', but must be 0 or 1"),
        (COLUMNS, "filename,cat,dog", "1,0.5", "'dog' is '0.5', but must be 0 or 1"),
        (COLUMNS, "filename,cat,dog", "nan,1", "'cat' is 'nan', but must be 0 or 1"),
        (COLUMNS, "filename,cat,dog", "1,", "line 6: .*rows with `filename` and `cat` and `dog`"),
        (COLUMNS, "filename,cat", "1", r"has no column 'dog', only \['filename', 'cat'\]"),
        (COLUMNS, "filename,cat,dog,cat", "1,1,1", "has 2 columns 'cat'"),
        (COLUMNS, "file,cat,dog", "1,1", "has no column 'filename'.*`image_key`"),
        (COLUMNS, "filename,cat,dog", "1,0,1", "more cells than the first line has columns"),
        (replace(COLUMNS, label_key="label"), "filename,label", "cat;dog", "Give `label_sep"),
        (NUMBERS, "filename,age,size", "1,inf", "'size' is 'inf', but must be a finite number"),
        (NUMBERS, "filename,age,size", "nan,1", "'age' is 'nan', but must be a finite"),
        (NUMBERS, "filename,age,size", "old,1", "'age' is 'old', but must be a finite"),
        (NUMBERS, "filename,age,size", "1e39,1", "'age' is '1e39', but must be a finite"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_named_with_its_image(tmp_path, options, header, row, sentence):
    good = ["1,0" if "," in row else "1"] * 4
    with pytest.raises(InputError, match=sentence):
        load_csv_images(table(tmp_path, header, [*good, row]), options=options)


def test_booleans_of_pandas_and_spaces_are_zeros_and_ones(tmp_path):
    rows = ["True,0.0", " false ,1.0", "1,1"] * 10
    data = load_csv_images(table(tmp_path, "filename,cat,dog", rows), options=COLUMNS)
    assert class_counts(labels_of(data), 2).tolist() == [20, 20]


def test_a_space_may_separate_classes_and_another_column_name_the_file(tmp_path):
    table(tmp_path, "image_name,tags", ["haze primary", "clear", "clear primary"] * 10)
    options = replace(SEPARATED, label_separator=" ", label_key="tags", image_key="image_name")
    data = load_csv_images(tmp_path, options=options)
    assert data.classes == ("clear", "haze", "primary")
    assert class_counts(labels_of(data), 3).tolist() == [20, 10, 20]
    assert load_again(data.source).fingerprint == data.fingerprint


def test_the_class_of_an_image_may_be_in_a_column_of_another_name(tmp_path):
    table(tmp_path, "path,species", ["a", "b"] * 20)
    data = load_csv_images(tmp_path, options=replace(USUAL, image_key="path", label_key="species"))
    assert data.task == "single-label"
    assert data.classes == ("a", "b")
    assert data.test.labels.bincount().tolist() == [4, 4]
    assert load_again(data.source).fingerprint == data.fingerprint


def test_a_class_that_a_split_has_no_image_of_is_said_and_one_without_images_refused(
    tmp_path, caplog
):
    for split, rows in (("train", ["1,0", "0,1"]), ("val", ["1,0"] * 2), ("test", ["1,1"] * 2)):
        table(tmp_path, "filename,cat,dog", rows, split)
    load_csv_images(tmp_path, options=COLUMNS)
    assert "no validation image belongs to 1 of the 2 classes, such as 'dog'" in caplog.text
    table(tmp_path, "filename,cat,dog", ["1,0"] * 2, "train")
    table(tmp_path, "filename,cat,dog", ["1,0"] * 2, "test")
    with pytest.raises(InputError, match=r"no image belongs to \['dog'\]"):
        load_csv_images(tmp_path, options=COLUMNS)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"task": "classification"}, "`task` must be one of 'single-label', .* 'classification'"),
        ({"label_key": ["a", "b"]}, "has the 2 keys .* but an image has one label"),
        ({"label_key": []}, "`label_key` a text or a list of different ones"),
        ({"label_key": 3}, "`label_key` a text or a list"),
        ({"image_key": ""}, "`image_key` must be a text"),
        ({"task": "multi-label", "label_key": ["a", "a"]}, "a list of different ones"),
        ({"label_separator": ";"}, "is for `task='multi-label'` with one"),
        ({"task": "regression", "label_separator": ";"}, "is for `task='multi-label'`"),
        ({"task": "multi-label", "label_separator": ""}, "but got ''"),
    ],
)
def test_options_of_labels_that_do_not_fit_are_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        LoadOptions(**options)


def test_folders_of_classes_have_no_options_of_labels(tmp_path):
    for options in (COLUMNS, replace(USUAL, label_key="x"), replace(USUAL, task="regression")):
        with pytest.raises(InputError, match=r"one class, but got .*leave `(task|label_key)` out"):
            load_image_folder(tmp_path, options=options)


# Splits


def test_images_of_one_class_are_split_as_before_and_others_at_random():
    images = torch.zeros(40, 1, 2, 2, dtype=torch.uint8)
    single = split_in_memory(images, [0, 1] * 20)
    rest, held = split_stratified(single, 0.25, seed=0)
    # Recorded with the version before several labels.
    assert held.indices.tolist() == [0, 6, 11, 13, 15, 19, 22, 24, 29, 30]
    assert held.labels.bincount().tolist() == [5, 5]
    several = split_in_memory(images, torch.eye(40, 3))
    assert several.labels.shape == (40, 3)
    rest, held = split_stratified(several, 0.25, seed=1)
    assert sorted([*rest.indices.tolist(), *held.indices.tolist()]) == list(range(40))
    assert held.indices.tolist() == split_stratified(several, 0.25, seed=1)[1].indices.tolist()
    assert held.indices.tolist() != split_stratified(several, 0.25, seed=2)[1].indices.tolist()
    with pytest.raises(InputError, match=r"2 images cannot be split, 0\.9.* Give more images, "):
        split_stratified(several.subset(torch.arange(2)), 0.999, seed=0)


def test_top_1_accuracy_of_several_labels_is_refused(tmp_path):
    rows = ["1,0", "0,1"] * 20
    data = load_images(table(tmp_path, "filename,cat,dog", rows), options=COLUMNS)
    for compute in (evaluate, lambda model, data, split: exported_accuracy(tmp_path, data)):
        with pytest.raises(InputError, match=r"one class each, but .* has the task 'multi-label'"):
            compute(torch.nn.Identity(), data, data.test)


# Data sets


def items(labels, *, seed: int = 0, make=lambda image, label: (image, label)):
    return [make(image(seed + index), label) for index, label in enumerate(labels)]


def load(make=None, train=FIRST_FOUR * 5, test=FIRST_FOUR * 5, *, options=COLUMNS, **more):
    make = make or (lambda image, label: (image, label))
    splits = {"train": items(train, make=make), "test": items(test, seed=99, make=make)}
    classes = more.pop("classes", ["cat", "dog"])
    return load_datasets(splits, name="c", classes=classes, options=options, **more)


PAIRS = replace(COLUMNS, label_key=None)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda image, label: (image, label), PAIRS),
        (lambda image, label: (image, torch.tensor(label)), PAIRS),
        (lambda image, label: (image, np.array(label, dtype=bool)), PAIRS),
        (lambda image, label: {"image": image, "labels": label}, PAIRS),
        (lambda image, label: {"image": image, "cat": label[0], "dog": bool(label[1])}, COLUMNS),
        (lambda image, label: {"jpg": Image.fromarray(image), "cls": label, "__key__": ""}, PAIRS),
        (
            lambda image, label: {"image": image, "photo": image, "label": 7, "tags": label},
            replace(PAIRS, image_key="photo", label_key="tags"),
        ),
    ],
)
@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_several_labels_are_read_from_pairs_and_dictionaries(make, options, memory_limit):
    data = load(make, options=replace(options, memory_limit=memory_limit))
    assert (data.task, data.source) == ("multi-label", {})
    images, labels = next(data.test.batches(4))
    assert labels.tolist() == FIRST_FOUR
    assert labels.dtype == torch.float32
    assert (images[3].permute(1, 2, 0).numpy() == image(102)).all()


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_a_target_is_a_number_or_a_list_of_numbers(memory_limit):
    options = replace(PAIRS, task="regression", memory_limit=memory_limit)
    for value in (2.5, [2.5], np.float64(2.5), torch.tensor(2.5)):
        data = load(train=[value] * 10, test=[value] * 10, classes=["age"], options=options)
        assert data.test.labels.tolist() == [[2.5]] * 10


@pytest.mark.parametrize(
    ("task", "label", "sentence"),
    [
        ("multi-label", [0, 2], "its value of 'dog' is 2, but must be 0 or 1"),
        ("multi-label", [float("nan"), 0], "its value of 'cat' is nan"),
        ("multi-label", [0, -1], "'dog' is -1"),
        ("multi-label", [0, 1, 1], r"its label is \[0, 1, 1\], but must be 2 numbers: 0 or 1"),
        ("multi-label", 1, "its label is 1, but must be 2 numbers"),
        ("multi-label", "cat", "its label is 'cat'"),
        ("multi-label", None, "its label is None"),
        ("regression", [0, float("inf")], "'dog' is inf, but must be a finite number"),
        ("regression", [1e39, 0], r"'cat' is 1e\+39, but must be a finite"),
        ("regression", 3.0, "must be 2 numbers: one for each target"),
        ("single-label", float("nan"), "its label is nan, but must be a whole number"),
        ("single-label", -1, "its label is -1, but must be 0 to 1"),
        ("single-label", 2, "its label is 2, but must be 0 to 1"),
        ("single-label", 0.5, "its label is 0.5"),
    ],
)
@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_a_label_out_of_range_is_named_with_its_item(task, label, sentence, memory_limit):
    labels = [[0, 1], [1, 0]] * 5 if task != "single-label" else [0, 1] * 5
    options = replace(PAIRS, task=task, memory_limit=memory_limit)
    with pytest.raises(InputError, match=rf"^c, test images, item 3: .*{sentence}"):
        load(train=labels, test=[*labels[:3], label, *labels], options=options)


class Listed(list):
    """Items with a list of their labels, as data sets of torchvision have one."""

    targets = FIRST_FOUR * 5


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_images_that_differ_in_channels_are_refused_when_they_are_loaded(memory_limit):
    options = replace(PAIRS, memory_limit=memory_limit)
    train = Listed(items(FIRST_FOUR * 5))
    for position in (1, 10, 19):
        bad = Listed(train)
        bad[position] = (image(0, channels=1), bad[position][1])
        with pytest.raises(InputError, match=rf"test images, item {position}: it has 1 channel"):
            load_datasets(
                {"train": train, "test": bad}, name="c", classes=["a", "b"], options=options
            )


def test_a_list_of_several_labels_that_is_not_the_items_is_refused():
    train = Listed(items(FIRST_FOUR * 5))
    bad = Listed(train)
    bad[6] = (bad[6][0], [1, 0])
    with pytest.raises(
        InputError, match=r"item 6: its label is \[1.0, 0.0\], but .* \[1.0, 1.0\]"
    ):
        load_datasets({"train": train, "test": bad}, name="c", classes=["a", "b"], options=PAIRS)


class Named(list):
    """Items with the names of their classes, as data sets of Hugging Face have them."""

    def __init__(self, made, **features):
        super().__init__(made)
        self.features = features


class ClassLabel:
    names = ("cat", "dog", "cow")


class ClassLabels:
    feature = ClassLabel()


def test_names_of_classes_and_splits_come_from_data_sets_of_hugging_face():
    made = items([0, 1, 2] * 10, make=lambda image, label: {"image": image, "label": label})
    data_set = Named(made, image=object(), label=ClassLabel())
    splits = {"train": data_set, "validation": data_set, "test": data_set}
    data = load_datasets(splits, name="c", options=USUAL)
    assert data.classes == ("cat", "dog", "cow")
    assert (data.validation, len(data.val)) == ("val", 30)
    with pytest.raises(InputError, match="another order in `classes` than in the train data set"):
        load_datasets(splits, name="c", classes=["dog", "cat", "cow"], options=USUAL)
    with pytest.raises(InputError, match="one split twice"):
        load_datasets({**splits, "val": data_set}, name="c", options=USUAL)
    with pytest.raises(InputError, match="c: the data sets know no names of classes"):
        load_datasets({"train": made, "test": made}, name="c", options=USUAL)


def test_lists_of_classes_of_hugging_face_become_zeros_and_ones():
    made = items([[0, 1], [2], []] * 10, make=lambda image, label: {"img": image, "tags": label})
    data_set = Named(made, img=object(), tags=ClassLabels())
    options = replace(PAIRS, label_key="tags")
    data = load_datasets({"train": data_set, "test": data_set}, name="c", options=options)
    assert data.test.labels[:3].tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    data_set[4] = {"img": image(0), "tags": [3]}
    with pytest.raises(InputError, match=r"item 4: its label is \[3\].* list of numbers 0 to 2"):
        load_datasets({"train": data_set, "test": data_set}, name="c", options=options)


def test_keys_of_the_labels_name_the_classes():
    made = items([0, 1] * 10, make=lambda image, n: {"image": image, "cat": n, "dog": 1 - n})
    splits = {"train": made, "test": made}
    assert load_datasets(splits, name="c", options=COLUMNS).classes == ("cat", "dog")
    with pytest.raises(InputError, match="another order in `classes` than in `label_key`"):
        load_datasets(splits, name="c", classes=["dog", "cat"], options=COLUMNS)


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (lambda image, label: (image, label), COLUMNS, "a pair .* are for dictionaries: leave"),
        (lambda image, label: {"image": image, "cat": 1}, COLUMNS, "must have the key 'dog' for"),
        (lambda image, label: {"x": image, "label": label}, PAIRS, "name its key with `image"),
        (lambda image, label: {"image": image, "jpg": image}, PAIRS, "name its key with `image"),
        (lambda image, label: {"jpg": b"\xff\xd8", "cls": b"0"}, PAIRS, "is bytes.*decode"),
    ],
)  # fmt: skip
def test_dictionaries_without_the_keys_are_refused_with_the_fix(make, options, sentence):
    with pytest.raises(InputError, match=f"^c, training images, item 0: it .*{sentence}"):
        load(make, options=options)


def test_a_stream_is_refused_with_the_advice_to_read_it_into_a_list():
    class Stream(IterableDataset):
        def __iter__(self):
            make = lambda image, label: {"jpg": Image.fromarray(image), "cls": label}  # noqa: E731
            return iter(items([0, 1] * 10, make=make))

    options = {"name": "c", "classes": ["a", "b"], "options": USUAL}
    with pytest.raises(InputError, match=r"are Stream: read a stream .* with `list\(stream\)`\.$"):
        load_datasets({"train": Stream(), "test": Stream()}, **options)
    data = load_datasets({"train": list(Stream()), "test": list(Stream())}, **options)
    assert data.test.labels.tolist() == [0, 1] * 10


def test_several_labels_may_be_the_places_of_their_classes():
    assert parse_label([2, 0], "multi-label", "abc", are_positions=True).tolist() == [1, 0, 1]
    for wrong in ([3], [-1], 1, ["a"], [0.5]):
        with pytest.raises(InputError, match="must be a list of numbers 0 to 2"):
            parse_label(wrong, "multi-label", "abc", are_positions=True)
