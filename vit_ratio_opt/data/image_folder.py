"""Folders of images, one folder for each class, as torchvision's ``ImageFolder`` reads them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from vit_ratio_opt.data.assembly import add_source, add_test_split, assemble
from vit_ratio_opt.data.folders import (
    check_folder,
    find_split_paths,
    list_visible_entries,
    name_some,
)
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.images import read_image
from vit_ratio_opt.data.items import ItemFormat
from vit_ratio_opt.data.options import LoadOptions, check_class_folders
from vit_ratio_opt.data.preprocessing import Preprocessing
from vit_ratio_opt.data.reading import Files
from vit_ratio_opt.data.splits import Validation
from vit_ratio_opt.errors import InputError

__all__ = ["load_image_folder"]

_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".avif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga"),
)

_logger = logging.getLogger(f"optuna.{__name__}")

ImageFiles = tuple[list[Path], list[int]]
"""Image files and the number of each one's class."""


def load_image_folder(
    root: str | Path,
    *,
    preprocess: Preprocessing | None = None,
    image_size: int | Sequence[int] | None = None,
    validation: Validation | None = None,
    seed: int = 0,
    options: LoadOptions | None = None,
) -> ImageData:
    """Load ``root/train/<class>/*`` and ``root/test/<class>/*`` (or ``val`` for ``test``) as RGB.

    Every image is decoded once before anything is trained: images that fit in memory are kept,
    the others are only tried (a JPEG at an eighth of its size, which is faster).

    Args:
        root: Folder with ``train`` and ``test``, ``val`` or both.
        preprocess: Preprocessing of the model's images: size, crop and normalisation, see
            :func:`vit_ratio_opt.data.preprocessing.preprocess_of`. Without it, CIFAR-10's
            normalisation is assumed, with which version 0.1.0 trained, with a warning.
        image_size: Pixels of a side, or height and width, to which images are resized and
            cropped; by default that of ``preprocess``, else the shorter side of the first image.
        validation: Images from which the validation split is taken. ``"val"``: the folder
            ``val``, the default if there are ``val`` and ``test``. ``"train"``: a fraction of the
            training images, else the default. ``"test"``: one half of the test images, for a
            dense model that has seen all training images; the other half remains the test split.
        seed: Random seed of the stratified split.
        options: Normalisation, share of validation images, EXIF rotation, damaged images.

    Raises:
        InputError: A folder or its classes are missing, differ, or are too small to split, or
            images cannot be read.
    """
    options, root = options or LoadOptions(), check_folder(root)
    check_class_folders(options, f"{root} with one folder for each class")
    classes, files = _class_folders(root)
    read = partial(read_image, exif_rotation=options.exif_rotation)
    data = assemble(
        add_test_split({split: Files(*listed, read) for split, listed in files.items()}),
        name=root.name,
        form=ItemFormat(classes),
        preprocess=preprocess,
        image_size=image_size,
        validation=validation or ("val" if len(files) == 3 else "train"),
        seed=seed,
        options=options,
    )
    return add_source(data, "image_folder", root, exif_rotation=options.exif_rotation)


def _class_folders(root: Path) -> tuple[list[str], dict[str, ImageFiles]]:
    """Return the classes below ``root`` and the image files of each split.

    Classes and files are in torchvision's order, that of ``ImageFolder``. Images in folders below
    a class's folder belong to the class. Hidden files and those of operating systems are ignored;
    other files that are no images are reported.

    Raises:
        InputError: A folder is missing, empty or unreadable, or the classes of splits differ.
    """
    folders = find_split_paths(root)
    classes = _check_classes(root, folders)
    files, others = {}, []
    for split, folder in folders.items():
        others += [entry.path for entry in list_visible_entries(folder) if not _is_folder(entry)]
        paths: list[Path] = []
        targets: list[int] = []
        for number, name in enumerate(classes):
            images, rest = _images_below(folder / name)
            if not images:
                raise InputError(
                    f"{folder} must have one folder a class, each with images, but {name} has "
                    f"none ({', '.join(_SUFFIXES[:8])}, ...): remove the folder, or fill it."
                )
            paths += images
            targets += [number] * len(images)
            others += rest
        files[split] = paths, targets
    if others:
        _logger.warning(
            f"{len(others)} file(s) of {root} are left out, since they are in no class's folder "
            f"or have no suffix of an image: {name_some(others)}."
        )
    return classes, files


def _check_classes(root: Path, folders: dict[str, Path]) -> list[str]:
    """Return the class names, which all splits must have."""
    if "train" not in folders:
        raise InputError(
            f"{root / 'train'} is not a folder; expected one folder a class below it."
        )
    classes = _class_names(folders["train"])
    if len(classes) < 2:
        raise InputError(
            f"{folders['train']} has the one class {classes[0]!r}: it must have a folder for each "
            "of at least two classes."
        )
    if len(folders) == 1:
        raise InputError(f"{root} must have a folder `test` or `val` beside `train`.")
    for folder in folders.values():
        odd = sorted(set(classes) ^ set(_class_names(folder)))
        if odd:
            raise InputError(
                f"{folders['train']} and {folder} must have the same classes; differing: "
                f"{odd[:5]}."
            )
    return classes


def _class_names(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in list_visible_entries(folder) if _is_folder(entry))
    if not names:
        raise InputError(f"{folder} must have one folder a class, but has no folders.")
    return names


def _images_below(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the image files of a class in torchvision's order, and the other files."""
    found: list[tuple[str, str]] = []
    others = []
    for parent, entry in _walk(str(folder), frozenset()):
        if _may_be_read(entry) and entry.name.lower().endswith(_SUFFIXES):
            found.append((parent, entry.name))
        else:
            others.append(entry.path)
    below = [parent for parent, _ in found if parent != str(folder)]
    if below and len(below) == len(found) and len(set(below)) > 1:
        _logger.warning(
            f"All images of the class {folder} lie in folders below it, such as {below[0]}: they "
            "count as one class."
        )
    return [Path(parent, name) for parent, name in sorted(found)], others


def _walk(
    folder: str, above: frozenset[tuple[int, int]]
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield every file below ``folder`` with its own folder; skip a link back to one above."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in list_visible_entries(folder):
        if _is_folder(entry):
            yield from _walk(entry.path, above | {here})
        else:
            yield folder, entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """Return whether it is a file or a broken link, which is reported later; a pipe is not."""
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()
