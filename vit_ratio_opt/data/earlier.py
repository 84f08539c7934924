"""Images as version 0.1.0 loaded them: the numbers of its studies depend on that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader

from vit_ratio_opt.data.assembly import add_test_split, assemble
from vit_ratio_opt.data.csv_images import pool
from vit_ratio_opt.data.csv_tables import read_csv_tables
from vit_ratio_opt.data.folders import check_folder, find_split_paths
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.items import ItemFormat
from vit_ratio_opt.data.options import LoadOptions
from vit_ratio_opt.data.preprocessing import CIFAR10_MEAN, CIFAR10_STD
from vit_ratio_opt.data.reading import Files
from vit_ratio_opt.errors import InputError

__all__ = ["load_as_version_0_1_0"]


def load_as_version_0_1_0(
    loader: str, root: str | Path, *, test_fraction: float = 0.2, **stored: Any
) -> ImageData:
    """Return the images that version 0.1.0 loaded, image by image.

    It listed hidden files and folders, pooled all .csv files, cut off transparency and lower bits,
    and normalised as CIFAR-10 by default.

    Args:
        loader: ``"image_folder"`` or ``"csv_images"``.
        root: Folder of the images.
        test_fraction: Share of each class that is the test split, of .csv files.
        stored: The other values of ``ImageData.source``.
    """
    root = check_folder(root)
    parts: Mapping[str, Dataset[Any]]
    if loader == "image_folder":
        classes, parts = _image_folder(root)
    else:
        rows = [row for table in read_csv_tables(root).values() for row in table.items()]
        classes = sorted({label for _, label in rows})
        parts = pool(root, rows, ItemFormat(classes), default_loader, test_fraction)
    arguments = dict(stored)
    options = LoadOptions(
        mean=arguments.pop("mean", None) or CIFAR10_MEAN,
        std=arguments.pop("std", None) or CIFAR10_STD,
        **{key: arguments.pop(key) for key in ("val_fraction", "memory_limit") if key in stored},
    )
    defaults = {"validation": "train", "seed": 0, "image_size": None, "preprocess": None}
    data = assemble(
        parts,
        name=root.name,
        form=ItemFormat(classes),
        options=options,
        **{**defaults, **arguments},
    )
    source = {"loader": loader, "root": str(root.resolve()), **stored}
    if loader == "csv_images":
        source["test_fraction"] = test_fraction
    return replace(data, source=source)


def _image_folder(root: Path) -> tuple[list[str], dict[str, Dataset[Any]]]:
    found: dict[str, Path] = find_split_paths(root)
    try:
        folders = {split: ImageFolder(str(path)) for split, path in found.items()}
    except FileNotFoundError as error:
        raise InputError(f"{root} must have one folder a class: {error}") from None
    if not {"train"} < set(folders):
        raise InputError(f"{root} must have folders `train` and `test` or `val`.")
    parts = {
        split: Files([Path(path) for path, _ in part.samples], part.targets, default_loader)
        for split, part in folders.items()
    }
    return folders["train"].classes, add_test_split(parts)
