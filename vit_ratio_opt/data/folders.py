"""Folders of data sets: which splits they hold, and which of their files count."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vit_ratio_opt.errors import InputError

__all__ = [
    "SPLIT_NAMES",
    "check_folder",
    "name_some",
    "find_split_paths",
    "list_visible_entries",
    "list_visible_names",
]

SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Splits, and the names that a folder or a table of each may have."""

# Files of operating systems and archives; names that begin with a dot are hidden as well.
_LITTER = {
    *("__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    *("$recycle.bin", "system volume information", "lost+found"),
}
_SHOWN = 3


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


def list_visible_names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted, without hidden files.

    Raises:
        InputError: The folder cannot be read.
    """
    return sorted(entry.name for entry in list_visible_entries(folder))


def list_visible_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, without hidden files and those of operating systems.

    Raises:
        InputError: The folder cannot be read.
    """
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


def find_split_paths(root: Path, suffix: str = "") -> dict[str, Path]:
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


def name_some(names: Sequence[str]) -> str:
    """Return the first three names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
