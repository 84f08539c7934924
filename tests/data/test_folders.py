from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vit_ratio_opt.data.csv_images import load_csv_images
from vit_ratio_opt.data.image_folder import load_image_folder
from vit_ratio_opt.data.load import default_validation, load_again, load_images
from vit_ratio_opt.data.options import LoadOptions
from vit_ratio_opt.errors import InputError

NORMALISED = LoadOptions(mean=(0.5,) * 3, std=(0.5,) * 3)
ON_DISK = replace(NORMALISED, memory_limit=0)
OPTIONS = {"options": NORMALISED}


@pytest.fixture(autouse=True)
def _heard(caplog, monkeypatch):
    """Optuna's loggers do not propagate by default."""
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    caplog.set_level(logging.WARNING)


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write(root: Path, *, splits=("train", "test"), suffix="png", count=10) -> Path:
    seed = 0
    for split in splits:
        for name in ("cat", "dog"):
            for index in range(count):
                picture(root / split / name / f"{index}.{suffix}", seed)
                seed += 1
    return root


def table(root: Path, split: str, labels: dict[str, str], *, seed: int = 0) -> None:
    rows = ["filename,label"]
    for name, label in labels.items():
        if not (root / "images" / name).is_file():
            picture(root / "images" / name, seed := seed + 1)
        rows.append(f"{name},{label}")
    (root / f"{split}.csv").write_text("\n".join(rows))


# Splits


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_folder_val_is_the_validation_split(tmp_path, name):
    data = load_image_folder(write(tmp_path, splits=("train", name, "test")), **OPTIONS)
    assert [len(part) for part in (data.train, data.val, data.test)] == [20, 20, 20]
    assert data.validation == data.source["validation"] == "val"
    assert default_validation(tmp_path, "test") == "val"
    pixels = np.asarray(Image.open(tmp_path / name / "cat" / "0.png"))
    assert (next(data.val.batches(1))[0][0].permute(1, 2, 0).numpy() == pixels).all()
    again = load_again(data.source)
    assert again.fingerprint == data.fingerprint
    assert again.test_fingerprint == data.test_fingerprint


@pytest.mark.parametrize(("given", "counts"), [("train", [18, 2, 20]), ("test", [20, 10, 10])])
def test_a_named_validation_split_is_taken(tmp_path, given, counts):
    root = write(tmp_path, splits=("train", "val", "test"))
    data = load_image_folder(root, validation=given, **OPTIONS)
    assert [len(part) for part in (data.train, data.val, data.test)] == counts


def test_without_a_folder_test_the_folder_val_is_the_test_split(tmp_path):
    data = load_image_folder(write(tmp_path, splits=("train", "val")), **OPTIONS)
    assert [len(part) for part in (data.train, data.val, data.test)] == [18, 2, 20]
    with pytest.raises(InputError, match="needs validation images beside"):
        load_image_folder(tmp_path, validation="val", **OPTIONS)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"validation": "both"}, "'val', 'train' or 'test', but got 'both'"),
        ({"validation": "val"}, "needs validation images"),
        ({"val_fraction": float("nan")}, r"in \(0, 1\)"),
        ({"val_fraction": 0.01}, "cannot be split by class"),
        ({"seed": 2**70}, "cannot be split by class"),
        ({"mean": (0.5,)}, "one a channel"),
        ({"std": (0.0,) * 3}, "above 0"),
        ({"image_size": 10**6}, "1 to 8192"),
        ({"preprocess": {"mean": 1}}, "must be a Preprocessing"),
    ],
)
def test_what_needs_no_images_is_checked_before_they_are_read(tmp_path, options, sentence):
    root, arguments = write(tmp_path), dict(OPTIONS)
    for name, value in options.items():
        if hasattr(NORMALISED, name):
            arguments["options"] = replace(NORMALISED, **{name: value})
        else:
            arguments[name] = value
    for path in root.glob("test/*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=sentence):
        load_image_folder(root, **arguments)


def test_two_folders_that_could_validate_are_refused(tmp_path):
    with pytest.raises(InputError, match="has val and valid: keep one"):
        load_image_folder(write(tmp_path, splits=("train", "val", "valid", "test")))


@pytest.mark.parametrize("kind", ["folder", "csv"])
@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_a_source_of_version_0_1_0_gives_the_split_that_it_gave(tmp_path, kind, memory_limit):
    if kind == "folder":
        write(tmp_path, splits=("train", "val", "test"))
        clear = Image.new("RGBA", (8, 8), (9, 9, 9, 0))  # it cut transparency off
        clear.save(tmp_path / "train" / "cat" / "0.png")
        source = {"loader": "image_folder", "validation": "train", "val_fraction": 0.1}
    else:  # it put all together
        for number, split in enumerate(("train", "val", "test")):
            labels = {f"{split}{i}.png": "ab"[i % 2] for i in range(10)}
            table(tmp_path, split, labels, seed=100 * number)
        source = {"loader": "csv_images", "validation": "train", "val_fraction": 0.1}
        source["test_fraction"] = 0.2
    source |= {"root": str(tmp_path), "image_size": None, "seed": 0, "mean": None, "std": None}
    source["memory_limit"] = memory_limit
    data = load_again(source)
    counts = [18, 2, 20] if kind == "folder" else [21, 3, 6]
    assert [len(part) for part in (data.train, data.val, data.test)] == counts
    assert data.mean == (0.4914, 0.4822, 0.4465)
    assert data.source == source
    assert data.preprocessing == {}
    if kind == "folder":
        assert any((image == 9).all() for images, _ in data.train.batches(30) for image in images)


def test_tables_of_the_same_classes_are_the_splits_they_are_named_for(tmp_path):
    for number, (split, count) in enumerate((("train", 20), ("val", 4), ("test", 6))):
        labels = {f"{split}{i}.png": "ab"[i % 2] for i in range(count)}
        table(tmp_path, split, labels, seed=100 * number)
    data = load_images(tmp_path, **OPTIONS)
    assert [len(part) for part in (data.train, data.val, data.test)] == [20, 4, 6]
    assert default_validation(tmp_path, "test") == "val"
    assert load_again(data.source).fingerprint == data.fingerprint
    pooled = load_csv_images(tmp_path, test_fraction=0.2, **OPTIONS)
    assert [len(part) for part in (pooled.train, pooled.val, pooled.test)] == [21, 3, 6]
    (tmp_path / "val.csv").unlink()
    data = load_images(tmp_path, **OPTIONS)
    assert [len(part) for part in (data.train, data.val, data.test)] == [18, 2, 6]


def test_tables_with_some_classes_in_common_are_refused(tmp_path):
    table(tmp_path, "train", {f"{i}.png": "abc"[i % 3] for i in range(9)})
    table(tmp_path, "test", {f"t{i}.png": "ab"[i % 2] for i in range(9)}, seed=50)
    with pytest.raises(InputError, match=r"or no class in common; in some only: \['c'\]"):
        load_images(tmp_path)


# Rows of tables


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("/etc/passwd,a", "line 12: '/etc/passwd' is not below"),
        ("../secret.png,a", "line 12: '../secret.png' is not below"),
        ("sub/../../secret.png,a", "is not below"),
        ("0.png,b", "'0.png' has the label 'b', but elsewhere 'a'"),
        (",a", "line 12: .*rows with `filename` and `label`"),
        ("0.png,", "rows with `filename` and `label`"),
        ("missing.png,a", "missing.png, which is not there"),
        ("\xff.png,a", "cannot be read as a table in UTF-8"),
    ],
)
def test_a_row_that_names_no_image_of_the_folder_is_refused(tmp_path, row, sentence):
    table(tmp_path, "train", {f"{i}.png": "ab"[i % 2] for i in range(10)})
    path = tmp_path / "train.csv"
    path.write_bytes(path.read_bytes() + b"\n" + row.encode("latin-1"))
    picture(tmp_path / "secret.png", 9)
    with pytest.raises(InputError, match=sentence):
        load_images(tmp_path)


def test_a_row_that_is_there_twice_counts_once(tmp_path, caplog):
    table(tmp_path, "train", {f"{i}.png": "ab"[i % 2] for i in range(40)})
    data = load_images(tmp_path, **OPTIONS)
    path = tmp_path / "train.csv"
    path.write_text("\ufeff" + path.read_text() + "\n3.png,b\n", encoding="utf-8")
    again = load_images(tmp_path, **OPTIONS)
    assert again.training_fingerprint == data.training_fingerprint
    assert "1 row(s)" in caplog.text
    assert "3.png (line 42)" in caplog.text


# What is no image and no class


@pytest.mark.parametrize(
    "litter",
    [
        ".ipynb_checkpoints/x.png",
        "__MACOSX/cat/x.png",
        "cat/._0.png",
        "cat/.hidden.png",
        "cat/.DS_Store",
        "cat/Thumbs.db",
        "dog/@eaDir/0.png",
        "desktop.ini",
    ],
)
def test_what_systems_leave_behind_is_neither_image_nor_class(tmp_path, litter, caplog):
    root = write(tmp_path)
    first = load_image_folder(root, **OPTIONS)
    path = root / "train" / litter
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0\5\26\7")
    data = load_image_folder(root, **OPTIONS)
    assert data.classes == ("cat", "dog")
    assert data.training_fingerprint == first.training_fingerprint
    assert "left out" not in caplog.text


@pytest.mark.parametrize("other", ["cat/notes.txt", "cat/0.heic", "lost.png", "dog/1.npy"])
def test_files_that_are_left_out_are_named(tmp_path, other, caplog):
    root = write(tmp_path)
    (root / "train" / other).write_bytes(b"x")
    assert len(load_image_folder(root, **OPTIONS).test) == 20
    assert "1 file(s)" in caplog.text
    assert other in caplog.text


@pytest.mark.parametrize("suffix", ["PNG", "Jpg", "JPEG", "TIFF", "gif", "jfif", "webp", "BMP"])
def test_suffixes_of_any_kind_and_case_are_images(tmp_path, suffix):
    assert len(load_image_folder(write(tmp_path, suffix=suffix), **OPTIONS).test) == 20


def test_content_decides_where_the_suffix_is_wrong(tmp_path):
    root = write(tmp_path)
    Image.new("RGB", (8, 8), "red").save(root / "test" / "dog" / "9.png", "JPEG")
    assert len(load_image_folder(root, **OPTIONS).test) == 20


def test_files_are_in_the_order_of_torchvision(tmp_path):
    from torchvision.datasets import ImageFolder

    root = write(tmp_path)
    for name in ("x/1.png", "x-1/1.png", "x/y/1.png", "10.png", "B.png"):
        picture(root / "train" / "cat" / name, 1)
    data = load_image_folder(root, options=ON_DISK, validation="test")
    paths = [str(path) for path in data.train.dataset.dataset.paths]
    assert paths == [path for path, _ in ImageFolder(str(root / "train")).samples]


def test_a_link_back_is_not_followed_for_ever(tmp_path):
    root = write(tmp_path)
    (root / "train" / "cat" / "all").symlink_to(root / "train")
    (root / "train" / "cat" / "self").symlink_to(root / "train" / "cat")
    (root / "train" / "dog" / "loop").symlink_to("loop")
    data = load_image_folder(root, **OPTIONS, validation="test")
    assert len(data.train) == 30  # the link `all` brings dog's images, and its own end


def test_a_link_to_nowhere_is_named_and_a_pipe_does_not_block(tmp_path, caplog):
    root = write(tmp_path)
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    assert len(load_image_folder(root, **OPTIONS).test) == 20
    assert "pipe.png" in caplog.text
    (root / "train" / "cat" / "link.png").symlink_to("nowhere.png")
    with pytest.raises(InputError, match=r"1 of 41 images cannot be read.*link\.png"):
        load_image_folder(root, **OPTIONS)


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda p: (p / "train" / "fox").mkdir(), "differing: \\['fox'\\]"),
        (lambda p: [(p / s / "fox").mkdir() for s in ("train", "test")], "but fox has none"),
        (lambda p: (p / "train" / "dog").rename(p / "dog"), "one class 'cat'"),
        (lambda p: (p / "train").rename(p / "train" / ".." / "Train"), "expected one folder"),
        (lambda p: (p / "train").rename(p / "x") and (p / "train").touch(), "not a folder"),
    ],
)
def test_classes_without_images_or_in_one_split_are_refused(tmp_path, prepare, sentence):
    prepare(write(tmp_path))
    with pytest.raises(InputError, match=sentence):
        load_image_folder(tmp_path)


def test_a_class_only_in_the_folder_val_is_refused(tmp_path):
    write(tmp_path, splits=("train", "val", "test"))
    picture(tmp_path / "val" / "fox" / "0.png", 0)
    with pytest.raises(InputError, match="val must have the same classes"):
        load_image_folder(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(tmp_path):
    root = write(tmp_path)
    (root / "train" / "cat" / "3.png").chmod(0)
    with pytest.raises(InputError, match=r"cat/3\.png cannot be read: Permission denied"):
        load_image_folder(root)
    (root / "train" / "cat").chmod(0)
    with pytest.raises(InputError, match=r"train/cat cannot be read: Permission denied"):
        load_image_folder(root)
    (root / "train" / "cat").chmod(0o700)


def test_images_in_two_splits_are_said_to_be(tmp_path, caplog):
    root = write(tmp_path, splits=("train", "val", "test"))
    load_image_folder(root, **OPTIONS)
    assert "training images too" not in caplog.text
    for index in range(3):
        path = root / "train" / "cat" / f"{index}.png"
        (root / "test" / "cat" / f"copy{index}.png").write_bytes(path.read_bytes())
        (root / "val" / "dog" / f"{index}.png").write_bytes(path.read_bytes())
    load_image_folder(root, **OPTIONS)
    assert "3 of 23 test images are training images too" in caplog.text
    assert "3 of 20 validation images are training images too" in caplog.text


# Damaged files


DAMAGE = {
    "0.png": lambda path: path.write_bytes(b""),
    "1.png": lambda path: path.write_bytes(path.read_bytes()[:60]),
    "2.png": lambda path: path.write_text("no image"),
    "3.png": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "4.png": lambda path: path.write_bytes(b"GIF89a"),
    "5.png": lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(30)),
}


def damage(root: Path) -> Path:
    write(root)
    for name, break_it in DAMAGE.items():
        break_it(root / "train" / "dog" / name)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    jpeg = root / "test" / "cat" / "9.jpg"
    Image.fromarray(noise).save(jpeg, quality=90)
    jpeg.write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size // 2])
    return root


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_damaged_files_are_named_all_at_once(tmp_path, memory_limit):
    with pytest.raises(InputError) as caught:
        load_image_folder(damage(tmp_path), options=replace(NORMALISED, memory_limit=memory_limit))
    message = str(caught.value)
    assert "7 of 41 images cannot be read" in message
    assert all(f"dog/{index}.png cannot be read" in message for index in range(5))
    assert "And 2 more." in message
    assert "--skip-damaged" in message
    assert len(message) < 2000


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_damaged_files_are_left_out_if_asked_for(tmp_path, memory_limit, caplog):
    options = replace(NORMALISED, memory_limit=memory_limit, skip_damaged=True)
    data = load_image_folder(damage(tmp_path), image_size=8, validation="test", options=options)
    assert "7 of 41 images are left out" in caplog.text
    assert len(data.train) == 14
    assert len(data.val) + len(data.test) == 20
    assert data.preprocessing == {"skip_damaged": True}
    images, labels = next(data.train.batches(14))
    assert labels.tolist() == [0] * 10 + [1] * 4
    last = torch.from_numpy(np.array(Image.open(tmp_path / "train" / "dog" / "9.png")))
    assert torch.equal(images[-1], last.permute(2, 0, 1))
    again = load_again(data.source)
    assert again.training_fingerprint == data.training_fingerprint


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_damaged_files_of_a_table_are_named(tmp_path, memory_limit):
    table(tmp_path, "train", {f"{i}.png": "ab"[i % 2] for i in range(40)})
    (tmp_path / "images" / "7.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 of 40 images cannot be read.*images/7\.png"):
        load_csv_images(tmp_path, options=replace(NORMALISED, memory_limit=memory_limit))
    data = load_images(tmp_path, options=replace(NORMALISED, skip_damaged=True))
    assert sum(len(part) for part in (data.train, data.val, data.test)) == 39


def test_a_file_that_is_damaged_later_is_named_when_it_is_met(tmp_path):
    data = load_image_folder(write(tmp_path), options=ON_DISK)
    (tmp_path / "test" / "cat" / "5.png").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        list(data.test.batches(4))
    assert str(caught.value).startswith(str(tmp_path / "test" / "cat" / "5.png"))
    assert "Traceback" not in str(caught.value)


def test_a_folder_of_damaged_files_only_is_refused(tmp_path):
    root = write(tmp_path)
    for path in root.glob("test/*/*.png"):
        path.write_bytes(b"")
    for options in (NORMALISED, replace(NORMALISED, skip_damaged=True)):
        with pytest.raises(InputError, match="no test image can be read"):
            load_image_folder(root, options=options)


# Folders that are not there


@pytest.mark.parametrize("load", [load_images, load_image_folder, load_csv_images])
def test_a_missing_folder_is_one_sentence_and_is_not_made(tmp_path, load):
    with pytest.raises(InputError, match=r"^There is no folder .*typo\.$"):
        load(tmp_path / "typo")
    with pytest.raises(InputError, match="There is no folder"):
        load_again({"loader": "cifar10", "root": str(tmp_path / "typo")})
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is not a folder"):
        load(tmp_path / "file")


def test_nothing_is_downloaded_into_a_folder_of_something_else(tmp_path, monkeypatch):
    def download(root, train, download):
        assert not download
        raise RuntimeError("Dataset not found")

    monkeypatch.setattr("vit_ratio_opt.data.cifar10.CIFAR10", download)
    with pytest.raises(InputError, match="CIFAR-10 is not below"):  # asked for by a study
        load_again({"loader": "cifar10", "root": str(tmp_path)})
    write(tmp_path, splits=("cat", "dog"))
    with pytest.raises(InputError, match=r"nor CIFAR-10, .* it has cat, dog\."):
        load_images(tmp_path)
