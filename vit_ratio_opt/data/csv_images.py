"""A folder of images with tables of their labels, as few-shot data sets are published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vit_ratio_opt.data.assembly import add_source, add_test_split, assemble
from vit_ratio_opt.data.csv_tables import Table, label_columns, read_csv_tables
from vit_ratio_opt.data.folders import check_folder
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.images import read_image
from vit_ratio_opt.data.items import ItemFormat
from vit_ratio_opt.data.labels import NO_LABEL
from vit_ratio_opt.data.options import LoadOptions
from vit_ratio_opt.data.preprocessing import Preprocessing
from vit_ratio_opt.data.reading import Files
from vit_ratio_opt.data.splits import TEST_FRACTION, Split, Validation, split_stratified
from vit_ratio_opt.data.task import Task
from vit_ratio_opt.errors import InputError

__all__ = ["are_splits", "load_csv_images", "pool"]

# Classes that a message names.
_SHOWN = 5
# Tasks whose tables have a class for each image.
_ONE_CLASS: tuple[Task, ...] = ("single-label", "features")


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
    The options name columns with a 0 or 1 for each class, with all classes of an image, or with
    targets of a regression. These files are splits, too; a ``train.csv`` alone is pooled.

    Args:
        root: Folder with the images and any of the three files.
        preprocess: The model's preprocessing, see
            :func:`vit_ratio_opt.data.preprocessing.preprocess_of`. Without it, CIFAR-10's
            normalisation is assumed, with a warning.
        image_size: Pixels of a side, or height and width, to which images are resized and
            cropped; by default that of ``preprocess``, else the first image's shorter side.
        validation: Images from which the validation split is taken: ``"val"`` for ``val.csv``,
            the default if there are three files of splits; ``"train"`` for a fraction of the
            training images, else the default; ``"test"`` for one half of the test images.
        test_fraction: Pools the images of all files and takes this share as the test split,
            independent of ``seed``. By default a fifth if the files have no class in common.
        seed: Random seed of the validation split.
        options: Normalisation, damaged images, task, columns of the labels (none for features).

    Raises:
        InputError: A table or an image cannot be read, columns or classes differ, a label is out
            of range, or the images cannot be split.
    """
    options, root = options or LoadOptions(), check_folder(root)
    tables = read_csv_tables(root, options)
    form = ItemFormat(_classes(tables, options), options.task)
    read = partial(read_image, exif_rotation=options.exif_rotation)
    if test_fraction is None and not are_splits(root, tables, options.task):
        test_fraction = TEST_FRACTION
    if test_fraction is None:
        parts = {name: _files(root, table, form, read) for name, table in tables.items()}
    else:
        rows = [row for table in tables.values() for row in table.items()]
        parts = pool(root, list(dict.fromkeys(rows)), form, read, test_fraction)
    data = assemble(
        add_test_split(parts),
        name=root.name,
        form=form,
        preprocess=preprocess,
        image_size=image_size,
        validation=validation or ("val" if len(parts) == 3 else "train"),
        seed=seed,
        options=options,
    )
    more = {"exif_rotation": options.exif_rotation, "test_fraction": test_fraction}
    return add_source(data, "csv_images", root, **more)


def _classes(tables: Mapping[str, Table], options: LoadOptions) -> list[str]:
    """Return the names of the classes or targets, by label."""
    labels = [label for table in tables.values() for label in table.values()]
    if options.task in _ONE_CLASS:
        return sorted(set(labels) - {None})
    if options.label_separator is None:
        return list(label_columns(options))
    return sorted({name for label in labels for name in label})


def _files(root: Path, table: Table, form: ItemFormat, read: Callable[..., Any]) -> Files:
    """Return the images of a table."""
    paths = [root / "images" / name for name in table]
    return Files(paths, _targets(list(table.values()), form), read)


def _targets(labels: Sequence[Any], form: ItemFormat) -> list[int] | torch.Tensor:
    """Return labels of a table as numbers ``(n,)``, or as float32 ``(n, classes)``."""
    number = {name: index for index, name in enumerate(form.classes)}
    if form.task in _ONE_CLASS:
        return [NO_LABEL if label is None else number[label] for label in labels]
    if labels[0] and isinstance(labels[0][0], float):
        return torch.tensor(labels, dtype=torch.float32)
    targets = form.empty_labels(len(labels))
    for row, names in zip(targets, labels, strict=True):
        row[[number[name] for name in names]] = 1
    return targets


def are_splits(root: Path, tables: Mapping[str, Table], task: Task = "single-label") -> bool:
    """Return whether tables have the same classes; they are to be pooled if they share none.

    Tables of several labels, of targets, or without labels are splits if there are more than one.

    Raises:
        InputError: They share some classes only.
    """
    if task not in _ONE_CLASS:
        return len(tables) > 1 and "train" in tables
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
    root: Path,
    rows: Sequence[tuple[str, Any]],
    form: ItemFormat,
    read: Callable[..., Any],
    test_fraction: float,
) -> dict[str, Files]:
    """Return all images of a folder, split by class where an image has one.

    Args:
        root: The folder.
        rows: File name and label of each image.
        form: Classes and task.
        read: Reads an image file.
        test_fraction: Share that is the test split.
    """
    paths = [root / "images" / name for name, _ in rows]
    labels = torch.as_tensor(_targets([label for _, label in rows], form))
    files = Files(paths, labels, read)
    parts = split_stratified(
        Split(files, torch.arange(len(files)), labels),
        test_fraction,
        seed=0,
        must_stratify=form.task != "features",
    )
    return {
        name: Files(
            [paths[index] for index in part.indices],
            part.labels if part.labels.ndim == 2 else part.labels.tolist(),
            read,
        )
        for name, part in zip(("train", "test"), parts, strict=True)
    }
