"""A folder of images with tables of their labels, as few-shot data sets are published."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import torch

from vit_ratio_opt.data.assembly import add_source, add_test_split, assemble
from vit_ratio_opt.data.folders import check_folder, find_split_paths, name_some
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.images import read_image
from vit_ratio_opt.data.options import LoadOptions
from vit_ratio_opt.data.preprocessing import Preprocessing
from vit_ratio_opt.data.reading import Files
from vit_ratio_opt.data.splits import Split, Validation, split_stratified
from vit_ratio_opt.errors import InputError

__all__ = ["are_splits", "read_csv_tables", "load_csv_images", "pool"]

# Classes that a message names.
_SHOWN = 5
_TEST_FRACTION = 0.2

_logger = logging.getLogger(f"optuna.{__name__}")


def load_csv_images(
    root: str | Path,
    *,
    preprocess: Preprocessing | None = None,
    image_size: int | Sequence[int] | None = None,
    validation: Validation | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    options: LoadOptions | None = None,
) -> ImageData:
    """Load ``root/images/*`` with ``train.csv``, ``val.csv``, ``test.csv``.

    Each row has a ``filename`` and a ``label``. Files with the same classes are the splits that
    they are named for. Files that have no class in common were made for few-shot learning, such
    as Mini-ImageNet's (Vinyals 2016): for classification all images are pooled and split by class.

    Args:
        root: Folder with the images and any of the three files.
        preprocess: Preprocessing of the model's images: size, crop and normalisation, see
            :func:`vit_ratio_opt.data.preprocessing.preprocess_of`. Without it, CIFAR-10's
            normalisation is assumed, with a warning.
        image_size: Pixels of a side, or height and width, to which images are resized and
            cropped; by default that of ``preprocess``, else the shorter side of the first image.
        validation: Images from which the validation split is taken: ``"val"`` for those of
            ``val.csv``, the default if there are three files with the same classes; ``"train"``
            for a fraction of the training images, else the default; ``"test"`` for one half of
            the test images.
        test_fraction: Pools all images, whichever files name them, and takes this share of each
            class as the test split, independent of ``seed``. By default a fifth is taken if the
            files have no class in common.
        seed: Random seed of the validation split.
        options: Normalisation, share of validation images, EXIF rotation, damaged images.

    Raises:
        InputError: A file is missing, empty or has other columns or other classes, names an
            image outside of ``root/images``, or cannot be split; or images cannot be read.
    """
    options, root = options or LoadOptions(), check_folder(root)
    tables = read_csv_tables(root)
    read = partial(read_image, exif_rotation=options.exif_rotation)
    if test_fraction is None and not are_splits(root, tables):
        test_fraction = _TEST_FRACTION
    if test_fraction is None:
        classes, parts = _read_splits(root, tables, read)
    else:
        rows = [row for table in tables.values() for row in table.items()]
        classes, parts = pool(root, list(dict.fromkeys(rows)), read, test_fraction)
    data = assemble(
        add_test_split(parts),
        name=root.name,
        classes=classes,
        preprocess=preprocess,
        image_size=image_size,
        validation=validation or ("val" if len(parts) == 3 else "train"),
        seed=seed,
        options=options,
    )
    more = {"exif_rotation": options.exif_rotation, "test_fraction": test_fraction}
    return add_source(data, "csv_images", root, **more)


def _read_splits(
    root: Path, tables: Mapping[str, Mapping[str, str]], read: Callable[..., Any]
) -> tuple[list[str], dict[str, Files]]:
    """Return the classes, and the images of each table."""
    classes = sorted(set(tables["train"].values()))
    return classes, {
        split: Files(
            [root / "images" / name for name in table],
            [classes.index(label) for label in table.values()],
            read,
        )
        for split, table in tables.items()
    }


def are_splits(root: Path, tables: Mapping[str, Mapping[str, str]]) -> bool:
    """Return whether tables have the same classes; they are to be pooled if they share none.

    Raises:
        InputError: They share some classes only.
    """
    classes = [set(table.values()) for table in tables.values()]
    if len(classes) > 1 and all(part == classes[0] for part in classes):
        return "train" in tables
    every = set().union(*classes)
    if len(every) < sum(map(len, classes)):
        odd = sorted(every - set(classes[0]).intersection(*classes))
        raise InputError(
            f"The .csv files of {root} must have the same classes, or no class in common; in some "
            f"only: {odd[:_SHOWN]}. `test_fraction` pools all images."
        )
    return False


def pool(
    root: Path, rows: Sequence[tuple[str, str]], read: Callable[..., Any], test_fraction: float
) -> tuple[list[str], dict[str, Files]]:
    """Return the classes, and all images of a folder split by class.

    Args:
        root: The folder.
        rows: File name and label of each image.
        read: Reads an image file.
        test_fraction: Share of each class that is the test split.
    """
    classes = sorted({label for _, label in rows})
    number = {label: index for index, label in enumerate(classes)}
    paths = [root / "images" / name for name, _ in rows]
    labels = torch.tensor([number[label] for _, label in rows])
    files = Files(paths, labels.tolist(), read)
    parts = split_stratified(Split(files, torch.arange(len(files)), labels), test_fraction, seed=0)
    return classes, {
        name: Files(
            [paths[index] for index in part.indices], [int(label) for label in part.labels], read
        )
        for name, part in zip(("train", "test"), parts, strict=True)
    }


def read_csv_tables(root: Path) -> dict[str, dict[str, str]]:
    """Return the label of each image file that ``train.csv``, ``val.csv``, ``test.csv`` name.

    A row that is there twice counts once.

    Args:
        root: Folder with any of the three tables. Each has columns ``filename``, below
            ``root/images``, and ``label``.

    Returns:
        For each split, labels by file name, in the order of the table.

    Raises:
        InputError: A table cannot be read, its columns have other names, or a row names no file,
            one outside of ``root/images``, or one that has another label elsewhere.
    """
    tables: dict[str, dict[str, str]] = {}
    known: dict[str, str] = {}
    twice = []
    for split, path in find_split_paths(root, ".csv").items():
        table = tables[split] = {}
        for line, name, label in _rows(path):
            where = f"{path}, line {line}:"
            if not name or not label:
                raise InputError(
                    f"{where} the .csv files must have rows with `filename` and `label`."
                )
            parts = PurePath(name)
            if parts.is_absolute() or ".." in parts.parts:
                raise InputError(f"{where} {name!r:.200} is not below {root / 'images'}.")
            if known.setdefault(name, label) != label:
                raise InputError(
                    f"{where} {name!r:.200} has the label {label!r:.80}, but elsewhere "
                    f"{known[name]!r:.80}."
                )
            if name in table:
                twice.append(f"{name} (line {line})")
            table[name] = label
            if not (root / "images" / name).is_file():
                raise InputError(
                    f"{root}: a .csv file names {root / 'images' / name}, which is not there."
                )
    if twice:
        _logger.warning(
            f"{len(twice)} row(s) of the .csv files of {root} are there twice and count once: "
            f"{name_some(twice)}."
        )
    if not known:
        raise InputError(f"{root}: the .csv files must have rows with `filename` and `label`.")
    return {split: table for split, table in tables.items() if table}


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            for row in table:
                yield table.line_num, row.get("filename") or "", row.get("label") or ""
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table in UTF-8: {error}.") from None
