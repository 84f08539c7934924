"""Folders of images, a folder for each class, and tables of them."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from vit_ratio_opt.errors import InputError

__all__ = [
    "SPLIT_NAMES",
    "ImageFiles",
    "check_folder",
    "class_folders",
    "csv_tables",
    "split_paths",
    "visible_names",
]

SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Splits, and the names that a folder or a table of each may have."""

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".avif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga"),
)
"""Suffixes of image files in a folder, in small letters."""

# Left by operating systems and archives; names that begin with a dot are hidden as well.
_LITTER = {
    *("__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    *("$recycle.bin", "system volume information", "lost+found"),
}
_SHOWN = 3

_logger = logging.getLogger(f"optuna.{__name__}")

ImageFiles = tuple[list[Path], list[int]]
"""Image files and the number of each one's class."""


def check_folder(root: str | Path) -> Path:
    """Return ``root`` as a path.

    Raises:
        InputError: There is no such folder.
    """
    root = Path(root)
    if not root.exists():
        raise InputError(f"There is no folder {root}.")
    if not root.is_dir():
        raise InputError(f"{root} is not a folder.")
    return root


def visible_names(folder: Path) -> list[str]:
    """Return what is in a folder, sorted, without hidden files.

    Raises:
        InputError: It cannot be read.
    """
    return sorted(entry.name for entry in _entries(folder))


def split_paths(root: Path, suffix: str = "") -> dict[str, Path]:
    """Return the folders, or the files with ``suffix``, of the splits that are below ``root``.

    Raises:
        InputError: Several could be one split.
    """
    found = {}
    for split, names in SPLIT_NAMES.items():
        there = [path for path in (root / f"{name}{suffix}" for name in names) if path.exists()]
        if len(there) > 1:
            raise InputError(
                f"{root} has {' and '.join(path.name for path in there)}: keep one of them."
            )
        if there:
            found[split] = there[0]
    return found


def class_folders(root: Path) -> tuple[list[str], dict[str, ImageFiles]]:
    """Return the classes below ``root`` and the image files of each split.

    Classes and files are in torchvision's order, that of ``ImageFolder``. Hidden files and what
    operating systems leave behind are no images; other files that are none are reported.

    Args:
        root: Has a folder ``train`` and ``test``, ``val`` or both, each with a folder for each
            class. Images in folders below a class's folder belong to the class.

    Raises:
        InputError: A folder is missing, empty or unreadable, or the classes of splits differ.
    """
    folders = split_paths(root)
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
    files, others = {}, []
    for split, folder in folders.items():
        others += [entry.path for entry in _entries(folder) if not _is_folder(entry)]
        paths: list[Path] = []
        targets: list[int] = []
        for number, name in enumerate(classes):
            images, rest = _images_below(folder / name)
            if not images:
                raise InputError(
                    f"{folder} must have one folder a class, each with images, but {name} has "
                    f"none ({', '.join(SUFFIXES[:8])}, ...): remove the folder, or fill it."
                )
            paths += images
            targets += [number] * len(images)
            others += rest
        files[split] = paths, targets
    if others:
        _logger.warning(
            f"{len(others)} file(s) of {root} are left out, since they are in no class's folder "
            f"or have no suffix of an image: {_few(others)}."
        )
    return classes, files


def _class_names(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in _entries(folder) if _is_folder(entry))
    if not names:
        raise InputError(f"{folder} must have one folder a class, but has no folders.")
    return names


def _images_below(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the image files of a class in torchvision's order, and the other files."""
    found: list[tuple[str, str]] = []
    others = []
    for parent, entry in _walk(str(folder), frozenset()):
        if _may_be_read(entry) and entry.name.lower().endswith(SUFFIXES):
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
    """Yield every file below ``folder`` with its own folder; a link back to one above is left."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in _entries(folder):
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
    """Whether it is a file, or a link to nowhere, which is said to be missing; not a pipe."""
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [
                entry
                for entry in entries
                if not entry.name.startswith(".") and entry.name.lower() not in _LITTER
            ]
    except NotADirectoryError:
        raise InputError(
            f"{folder} is not a folder; expected one folder a class below it."
        ) from None
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be read: {error.strerror}.") from None


def csv_tables(root: Path) -> dict[str, dict[str, str]]:
    """Return the label of each image file that ``train.csv``, ``val.csv``, ``test.csv`` name.

    A row that is there twice counts once.

    Args:
        root: The tables that are there are read. Each has columns ``filename``, below
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
    for split, path in split_paths(root, ".csv").items():
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
            f"{_few(twice)}."
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


def _few(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
