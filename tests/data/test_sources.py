from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder

from vit_ratio_opt.data.cifar10 import load_cifar10
from vit_ratio_opt.data.csv_images import load_csv_images
from vit_ratio_opt.data.datasets import load_datasets
from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.data.image_folder import load_image_folder
from vit_ratio_opt.data.load import load_images
from vit_ratio_opt.data.options import LoadOptions
from vit_ratio_opt.data.reading import Files, paths_of
from vit_ratio_opt.data.splits import Split
from vit_ratio_opt.errors import InputError


class Colours(Dataset):
    """Twelve images a class, each of one shade."""

    def __init__(self, classes: int = 2, size: int = 8) -> None:
        self.items = [
            (Image.new("RGB", (size, size), (20 * c, i, 255)), c)
            for c in range(classes)
            for i in range(12)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


def write_folder(root: Path, *, splits: tuple[str, ...] = ("train", "test")) -> Path:
    for split in splits:
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for index in range(12):
                Image.new("RGB", (8, 8), (index, 0, 0)).save(root / split / name / f"{index}.png")
    return root


def test_digits_splits_are_disjoint_stratified_and_seeded():
    data, again, other = load_digits(), load_digits(), load_digits(seed=1)
    parts = [set(split.indices.tolist()) for split in (data.train, data.val, data.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    counts = torch.bincount(data.val.labels, minlength=10)
    assert counts.max() - counts.min() <= 3
    assert data.fingerprint == again.fingerprint != other.fingerprint
    assert data.image_shape == (1, 8, 8)


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_images_on_disk_and_in_memory_give_the_same_batches(tmp_path, memory_limit):
    data = load_image_folder(
        write_folder(tmp_path), options=LoadOptions(val_fraction=0.25, memory_limit=memory_limit)
    )
    assert data.classes == ("cat", "dog")
    assert [len(s) for s in (data.train, data.val, data.test)] == [18, 6, 24]
    batches = list(data.test.batches(5))
    images = torch.cat([batch[0] for batch in batches])
    assert images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == [*sorted(range(12), key=str)] * 2
    assert torch.cat([batch[1] for batch in batches]).tolist() == [0] * 12 + [1] * 12


def test_test_split_can_be_halved_for_a_dense_model_that_saw_all_training_images(tmp_path):
    data = load_image_folder(write_folder(tmp_path), validation="test")
    assert [len(s) for s in (data.train, data.val, data.test)] == [24, 12, 12]
    assert not set(data.val.indices.tolist()) & set(data.test.indices.tolist())


def test_any_pair_of_datasets_is_resized_and_labelled():
    data = load_datasets(
        {"train": Colours(), "test": Colours()}, name="colours", classes=["a", "b"], image_size=6,
        options=LoadOptions(memory_limit=0),
    )  # fmt: skip
    images, labels = next(data.test.batches(24))
    assert images.shape == (24, 3, 6, 6)
    assert labels.tolist() == [0] * 12 + [1] * 12


def test_cifar10_is_read_as_torchvision_stores_it(tmp_path, monkeypatch):
    class Stored:
        classes = ("a", "b")

        def __init__(self, root, train, download):
            self.data = np.arange(24 * 32 * 32 * 3, dtype=np.uint32).astype(np.uint8)
            self.data = self.data.reshape(24, 32, 32, 3)
            self.targets = [0, 1] * 12

    monkeypatch.setattr("vit_ratio_opt.data.cifar10.CIFAR10", Stored)
    data = load_cifar10(tmp_path, options=LoadOptions(val_fraction=0.25))
    assert data.image_shape == (3, 32, 32)
    assert data.test.dataset[0][0][:, 0, 1].tolist() == [3, 4, 5]


def test_missing_cifar10_without_download_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="CIFAR-10 is not below"):
        load_cifar10(tmp_path, download=False)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda p: None, "is not a folder"),
        (lambda p: (p / "train").mkdir(), "one folder a class"),
        (lambda p: write_folder(p, splits=("train",)), "`test` or `val`"),
        (lambda p: (write_folder(p) / "test" / "dog").rename(p / "test" / "fox"), "same classes"),
    ],
)
def test_bad_folders_are_refused(tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(InputError, match=message):
        load_image_folder(tmp_path)


def test_bad_splits_and_images_are_refused():
    splits = {"train": Colours(), "test": Colours()}
    arguments = {"name": "colours", "classes": ["a", "b"]}
    with pytest.raises(InputError, match="'train' or 'test'"):
        load_datasets(splits, **arguments, validation="both")
    with pytest.raises(InputError, match=r"in \(0, 1\)"):
        load_datasets(splits, **arguments, options=LoadOptions(val_fraction=1.5))
    with pytest.raises(InputError, match="cannot be split by class"):
        load_datasets(splits, **arguments, options=LoadOptions(val_fraction=0.01))
    with pytest.raises(InputError, match="one a channel"):
        load_datasets(splits, **arguments, options=LoadOptions(mean=[0.5]))
    floats = [(torch.zeros(3, 8, 8), 0)]
    with pytest.raises(InputError, match="8 bits"):
        load_datasets({"train": floats, "test": floats}, **arguments)
    with pytest.raises(InputError, match="must have images"):
        load_datasets({"train": [], "test": []}, **arguments)


def test_augmentation_shifts_each_image_and_mirrors_only_where_harmless():
    data = load_digits()
    images, _ = next(data.train.batches(64))
    moved = data.augment(images, torch.Generator().manual_seed(0))
    again = data.augment(images, torch.Generator().manual_seed(0))
    assert torch.equal(moved, again)
    assert moved.shape == images.shape
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    shifts = set()
    for before, after in zip(padded, moved, strict=True):
        found = [
            (y, x)
            for y in range(3)
            for x in range(3)
            if torch.equal(before[:, y : y + 8, x : x + 8], after)
        ]
        assert found
        shifts.update(found)
    assert len(shifts) >= 8


def test_normalisation_gives_zero_mean_and_unit_deviation():
    data = load_digits()
    pixels = torch.cat([data.normalise(images) for images, _ in data.train.batches(256)])
    assert abs(pixels.mean()) < 0.02
    assert abs(pixels.std() - 1) < 0.02


def test_a_size_for_what_is_no_image_folder_is_refused_before_any_download(tmp_path):
    with pytest.raises(InputError, match=r"`image_size`, .* are for a folder .* has neither"):
        load_images(tmp_path, image_size=32)
    assert list(tmp_path.iterdir()) == []


# Images named by .csv files


@pytest.fixture
def csv_folder(tmp_path):
    """Three classes of ten images, one class in each file, as in few-shot learning."""
    (tmp_path / "images").mkdir()
    for number, name in enumerate(("train", "val", "test")):
        rows = ["filename,label"]
        for i in range(10):
            Image.new("RGB", (12, 10), (80 * number, i, 0)).save(
                tmp_path / "images" / f"{name}{i}.png"
            )
            rows.append(f"{name}{i}.png,n0{number}")
        (tmp_path / f"{name}.csv").write_text("\n".join(rows))
    return tmp_path


def test_csv_images_are_put_together_and_split_by_class(csv_folder):
    data = load_images(csv_folder, image_size=8)
    assert data.classes == ("n00", "n01", "n02")
    assert data.image_shape == (3, 8, 8)
    counts = [len(split) for split in (data.train, data.val, data.test)]
    assert counts == [21, 3, 6]
    for split in (data.val, data.test):
        assert split.labels.bincount(minlength=3).tolist() == [len(split) // 3] * 3
    for images, labels in data.test.batches(10):
        assert (images[:, 0, 4, 4] == 80 * labels).all()
    other = load_images(csv_folder, image_size=8, seed=1)
    assert torch.equal(other.test.labels, data.test.labels)
    assert other.fingerprint != data.fingerprint


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.csv", "file,class\na.png,b", "rows with `filename` and `label`"),
        ("train.csv", "filename,label\n", "n00"),
        ("val.csv", "filename,label\nmissing.png,n01\n", "missing.png, which is not there"),
    ],
)
def test_csv_files_that_do_not_fit_are_refused(csv_folder, name, text, message):
    (csv_folder / name).write_text(text)
    if message == "n00":  # the other files are enough
        assert message not in load_images(csv_folder).classes
        return
    with pytest.raises(InputError, match=message):
        load_images(csv_folder)


# Fingerprints


ON_DISK = LoadOptions(val_fraction=0.25, memory_limit=0)


def fingerprints(data):
    return data.training_fingerprint, data.fingerprint, data.test_fingerprint


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_fingerprints_go_by_contents_wherever_the_folder_is(tmp_path, memory_limit):
    options = replace(ON_DISK, memory_limit=memory_limit)
    folder = write_folder(tmp_path / "a")
    first = fingerprints(load_image_folder(folder, options=options))
    assert len(set(first)) == 3
    moved = folder.rename(tmp_path / "b")
    assert fingerprints(load_image_folder(moved, options=options)) == first
    Image.new("RGB", (8, 8), (255, 255, 255)).save(moved / "test" / "cat" / "0.png")
    changed = fingerprints(load_image_folder(moved, options=options))
    assert changed[:2] == first[:2]
    assert changed[2] != first[2]


def test_a_renamed_file_is_another_image_on_disk(tmp_path):
    folder = write_folder(tmp_path)
    before = load_image_folder(folder, options=ON_DISK)
    first = fingerprints(before)
    (folder / "test" / "dog" / "9.png").rename(folder / "test" / "dog" / "99.png")
    after = load_image_folder(folder, options=ON_DISK)
    assert fingerprints(after) != first
    assert after.has_fingerprint(before.val.fingerprint(contents=False))  # of version 0.1.0
    assert not after.has_fingerprint("abc")


def test_sizes_of_all_files_count_and_bytes_of_some(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(300)]
    for path in paths:
        path.write_bytes(b"x")
    files = Files(paths, [0] * len(paths))
    split = Split(files, torch.arange(len(files)), torch.tensor(files.targets))
    first, other_bytes = split.fingerprint(), 0
    for path in paths[::10]:
        path.write_bytes(b"xx")
        assert split.fingerprint() != first
        path.write_bytes(b"y")
        other_bytes += split.fingerprint() != first
        path.write_bytes(b"x")
    assert split.fingerprint() == first
    assert 0 < other_bytes < 30  # 256 of 300 are read


def test_named_files_of_csv_and_of_subsets_are_hashed_as_files(csv_folder):
    data = load_images(csv_folder, image_size=8)
    on_disk = load_csv_images(csv_folder, image_size=8, options=LoadOptions(memory_limit=0))
    assert len(set(fingerprints(on_disk))) == 3
    part = Subset(on_disk.test.dataset.dataset, range(3))
    paths = [Path(path).name for path in paths_of(part)]
    assert paths == [path.name for path in on_disk.test.dataset.dataset.paths[:3]]
    assert fingerprints(data) != fingerprints(on_disk)


def test_pixels_of_a_data_set_of_another_kind_count_unless_they_are_random():
    def load(dataset):
        return load_datasets(
            {"train": dataset, "test": Colours()}, name="c", classes=["a", "b"], options=ON_DISK
        )

    class Random(Colours):
        def __getitem__(self, index):
            pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
            return pixels, self.items[index][1]

    other = Colours()
    other.items = [(Image.new("RGB", (8, 8), (9, 9, 9)), label) for _, label in other.items]
    plain = load(Colours())
    assert fingerprints(plain) == fingerprints(load(Colours()))
    assert plain.training_fingerprint != load(other).training_fingerprint
    first, second = load(Random()), load(Random())
    state = torch.get_rng_state()
    assert fingerprints(first) == fingerprints(second)
    assert torch.equal(torch.get_rng_state(), state)


def test_options_that_change_pixels_are_preprocessing(tmp_path):
    data = load_image_folder(write_folder(tmp_path), image_size=6, options=ON_DISK)
    assert data.preprocessing == {}
    source = {**data.source, "interpolation": "bicubic", "crop": None}
    assert replace(data, source=source).preprocessing == {"interpolation": "bicubic"}


def test_a_transform_of_files_counts(tmp_path):
    def load(transform):
        splits = [ImageFolder(str(write_folder(tmp_path / name))) for name in ("a", "b")]
        train = Subset(splits[0], range(20))
        splits[0].transforms = transform
        parts, classes = {"train": train, "test": splits[1]}, ["test", "train"]
        return load_datasets(parts, name="f", classes=classes, options=ON_DISK)

    class Dark:
        def __call__(self, image, label):
            return image.point(lambda value: value // 2), label

    first = load(None)
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    second = load(Dark())
    assert first.training_fingerprint != second.training_fingerprint
    assert first.test_fingerprint == second.test_fingerprint
