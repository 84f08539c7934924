"""Image files below a folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from vit_ratio_opt.data.folders import list_visible_entries

__all__ = ["SUFFIXES", "has_images", "is_folder", "is_image", "list_images"]

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".avif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga"),
)
"""Suffixes of image files."""


def list_images(folder: Path, *, skip: Collection[Path] = ()) -> tuple[list[Path], list[str]]:
    """Return the image files below a folder in torchvision's order, and the other files.

    Args:
        folder: The folder.
        skip: Folders in it that are left out.
    """
    found: list[tuple[str, str]] = []
    others = []
    for parent, entry in _walk(str(folder), frozenset(), skip):
        if is_image(entry):
            found.append((parent, entry.name))
        else:
            others.append(entry.path)
    return [Path(parent, name) for parent, name in sorted(found)], others


def has_images(folder: Path, *, limit: int | None = None) -> bool:
    """Return whether an image is below a folder.

    Args:
        folder: The folder, which need not exist.
        limit: Number of files that are looked at; by default all until an image is found.
    """
    entries = islice(_walk(str(folder), frozenset()), limit)
    return folder.is_dir() and any(is_image(entry) for _, entry in entries)


def is_image(entry: os.DirEntry[str]) -> bool:
    """Return whether it is a file with the suffix of an image."""
    return _may_be_read(entry) and entry.name.lower().endswith(SUFFIXES)


def _walk(
    folder: str, above: frozenset[tuple[int, int]], skip: Collection[Path] = ()
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield every file below ``folder`` with its own folder; skip a link back to one above."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in list_visible_entries(folder):
        if not is_folder(entry):
            yield folder, entry
        elif Path(entry.path) not in skip:
            yield from _walk(entry.path, above | {here})


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """Return whether it is a file or a broken link, which is reported later; a pipe is not."""
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()
