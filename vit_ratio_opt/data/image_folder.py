"""Folders of images: one folder for each class, as torchvision's ``ImageFolder``, or any."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
from vit_ratio_opt.data.image_files import (
    SUFFIXES,
    has_images,
    is_folder,
    is_image,
    list_images,
)
from vit_ratio_opt.data.images import read_image
from vit_ratio_opt.data.items import ItemFormat
from vit_ratio_opt.data.labels import NO_LABEL
from vit_ratio_opt.data.options import NO_LABELS_HINT, LoadOptions, check_class_folders
from vit_ratio_opt.data.preprocessing import Preprocessing
from vit_ratio_opt.data.reading import Files
from vit_ratio_opt.data.splits import Validation
from vit_ratio_opt.errors import InputError

__all__ = ["hint_of_no_labels", "load_image_folder"]

# Files that are looked at for one image before advice is given.
_LOOKED_AT = 1000

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

    For features, images may lie anywhere below ``train``, ``val`` and ``test``, and those of a
    folder without ``train`` are all other images. A fifth of the training images is the test
    split if there are no others. Labels are kept if ``train`` has folders of two classes or more,
    each other split has the same, and every image lies in one of them.

    Every image is decoded once before anything is trained: images that fit in memory are kept,
    the others are only tried (a JPEG at an eighth of its size, which is faster).

    Args:
        root: Folder with ``train`` and ``test``, ``val`` or both; for features, any with images.
        preprocess: Preprocessing of the model's images: size, crop and normalisation, see
            :func:`vit_ratio_opt.data.preprocessing.preprocess_of`. Without it, CIFAR-10's
            normalisation is assumed, with which version 0.1.0 trained, with a warning.
        image_size: Pixels of a side, or height and width, to which images are resized and
            cropped; by default that of ``preprocess``, else the shorter side of the first image.
        validation: Images from which the validation split is taken. ``"val"``: the folder
            ``val``, the default if there are ``val`` and ``test``. ``"train"``: a fraction of the
            training images, else the default. ``"test"``: one half of the test images, for a
            dense model that has seen all training images; the other half remains the test split.
        seed: Random seed of the stratified split, which is not stratified without labels.
        options: Normalisation, share of validation images, EXIF rotation, damaged images, task.

    Raises:
        InputError: A folder or its classes are missing, differ, or are too small to split, or
            images cannot be read.
    """
    options, root = options or LoadOptions(), check_folder(root)
    check_class_folders(options, f"{root} with one folder for each class")
    is_for_features = options.task == "features"
    classes, files = _any_folders(root) if is_for_features else _class_folders(root)
    read = partial(read_image, exif_rotation=options.exif_rotation)
    data = assemble(
        add_test_split({split: Files(*listed, read) for split, listed in files.items()}),
        name=root.name,
        form=ItemFormat(classes, options.task),
        preprocess=preprocess,
        image_size=image_size,
        validation=validation or ("val" if len(files) == 3 else "train"),
        seed=seed,
        options=options,
    )
    return add_source(data, "image_folder", root, exif_rotation=options.exif_rotation)


def _any_folders(root: Path) -> tuple[list[str], dict[str, ImageFiles]]:
    """Return the classes below ``root``, if it has any, and the image files of each split.

    Raises:
        InputError: A folder has no images or cannot be read.
    """
    folders = find_split_paths(root)
    classes = _find_common_classes(root, folders) if "train" in folders else []
    if classes:
        return classes, _list_by_class(root, folders, classes)
    files, others = {}, []
    for split, folder in {"train": root, **folders}.items():
        is_root = folder == root
        images, rest = list_images(folder, skip=[*folders.values()] if is_root else ())
        if not images:
            beside = " beside the folders of other splits" if is_root and folders else ""
            raise InputError(f"{folder} has no images ({_suffixes()}){beside}.")
        files[split] = images, [NO_LABEL] * len(images)
        others += rest
    if others:
        _logger.warning(
            f"{len(others)} file(s) of {root} are left out, since they have no suffix of an "
            f"image: {name_some(others)}."
        )
    return [], files


def _find_common_classes(root: Path, folders: dict[str, Path]) -> list[str]:
    """Return the classes that all splits have, if every image lies in the folder of a class."""
    names: list[set[str]] = []
    loose: list[str] = []
    for folder in folders.values():
        entries = list_visible_entries(folder)
        loose += [entry.path for entry in entries if is_image(entry)]
        below = [entry.name for entry in entries if is_folder(entry)]
        names.append({name for name in below if has_images(folder / name)})
    if len(names[0]) < 2:
        return []
    odd = sorted(name for name in set().union(*names) if any(name not in part for part in names))
    if not odd and not loose:
        return sorted(names[0])
    why = f"some splits lack {odd[0]!r}" if odd else f"{loose[0]} lies in none"
    _logger.warning(
        f"{root}: the folders in {folders['train']} are not used as classes, since {why}."
    )
    return []


def _class_folders(root: Path) -> tuple[list[str], dict[str, ImageFiles]]:
    """Return the classes below ``root`` and the image files of each split.

    Raises:
        InputError: A folder is missing, empty or unreadable, or the classes of splits differ.
    """
    folders = find_split_paths(root)
    classes = _check_classes(root, folders)
    return classes, _list_by_class(root, folders, classes)


def _list_by_class(
    root: Path, folders: dict[str, Path], classes: list[str]
) -> dict[str, ImageFiles]:
    """Return the image files of each split.

    Classes and files are in torchvision's order, that of ``ImageFolder``. Images in folders below
    a class's folder belong to the class. Hidden files and those of operating systems are ignored;
    other files that are no images are reported.

    Raises:
        InputError: A class has no images, or a folder cannot be read.
    """
    files, others = {}, []
    for split, folder in folders.items():
        others += [entry.path for entry in list_visible_entries(folder) if not is_folder(entry)]
        paths: list[Path] = []
        targets: list[int] = []
        for number, name in enumerate(classes):
            images, rest = _list_class(folder / name)
            if not images:
                raise InputError(
                    f"{folder} must have one folder a class, each with images, but {name} has "
                    f"none ({_suffixes()}): remove the folder, or fill it."
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
    return files


def _suffixes() -> str:
    return f"{', '.join(SUFFIXES[:8])}, ..."


def _check_classes(root: Path, folders: dict[str, Path]) -> list[str]:
    """Return the class names, which all splits must have."""
    if "train" not in folders:
        raise InputError(
            f"{root / 'train'} is not a folder; expected one folder a class below it."
            f"{hint_of_no_labels(root)}"
        )
    hint = hint_of_no_labels(folders["train"])
    classes = _class_names(folders["train"], hint)
    if len(classes) < 2:
        raise InputError(
            f"{folders['train']} has the one class {classes[0]!r}: it must have a folder for each "
            f"of at least two classes.{hint}"
        )
    if len(folders) == 1:
        raise InputError(f"{root} must have a folder `test` or `val` beside `train`.")
    for folder in folders.values():
        odd = sorted(set(classes) ^ set(_class_names(folder, hint)))
        if odd:
            raise InputError(
                f"{folders['train']} and {folder} must have the same classes; differing: "
                f"{odd[:5]}."
            )
    return classes


def _class_names(folder: Path, hint: str) -> list[str]:
    names = sorted(entry.name for entry in list_visible_entries(folder) if is_folder(entry))
    if not names:
        raise InputError(f"{folder} must have one folder a class, but has no folders.{hint}")
    return names


def hint_of_no_labels(folder: Path) -> str:
    """Return advice for images without labels, if there are images below a folder."""
    return NO_LABELS_HINT if has_images(folder, limit=_LOOKED_AT) else ""


def _list_class(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the image files of a class in torchvision's order, and the other files."""
    images, others = list_images(folder)
    above = {path.parent for path in images}
    if len(above) > 1 and folder not in above:
        _logger.warning(
            f"All images of the class {folder} lie in folders below it, such as "
            f"{images[0].parent}: they count as one class."
        )
    return images, others
