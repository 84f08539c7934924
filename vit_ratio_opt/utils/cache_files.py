"""List the files of a cache, and remove those that were not used for the longest time.

A process locks each file that it has read or written until it ends, since tensors may be mapped
into its memory. A locked file is never removed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.locks import try_lock, unlock

__all__ = [
    "LIMIT",
    "CachedFile",
    "cache_limit",
    "cached_files",
    "limit_cache",
    "mark_used",
    "remove_unused",
]

LIMIT = "VIT_RATIO_OPT_CACHE_GB"
"""Environment variable: the size of the cache in GB (10^9 bytes), 10 by default."""

_DEFAULT_GB = 10.0
_NAME = re.compile(r"[0-9a-f]{32}\.(safetensors|json)")
# What a killed process left behind while it wrote a file of the cache.
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.\w+\.[0-9a-f]{12}\.partial")
_PARTIAL_SECONDS = 86_400
_MOST_METADATA = 10_000_000

_in_use: set[tuple[int, int, int]] = set()  # process, device and inode


@dataclass(frozen=True)
class CachedFile:
    """A file of a cache.

    Args:
        path: The file.
        size: Its size in bytes.
        used: When it was last read or written, in seconds since 1970.
    """

    path: Path
    size: int
    used: float

    @property
    def kind(self) -> str:
        """Return what the file holds, in words."""
        if self.path.suffix == ".json":
            return "latency table"
        return "unfinished" if self.path.suffix == ".partial" else "calibration"

    @property
    def about(self) -> str:
        """Return the device of a latency table, or the model of a calibration; "" if unknown."""
        damage = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
        with contextlib.suppress(OSError, *damage):
            if self.path.suffix == ".json":
                return str(json.loads(self.path.read_text())["table"]["device"])
            with self.path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(length, _MOST_METADATA)))
            return str(header["__metadata__"].get("model", ""))
        return ""


def cached_files(folder: Path) -> list[CachedFile]:
    """Return the files in a folder that this package's cache has written, the oldest use first."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):  # removed meanwhile
                known = entry.stat(follow_symlinks=False)
                is_partial = _PARTIAL.fullmatch(entry.name) is not None
                if is_partial and time.time() - known.st_mtime < _PARTIAL_SECONDS:
                    continue  # being written
                is_own = is_partial or _NAME.fullmatch(entry.name)
                if is_own and entry.is_file(follow_symlinks=False):
                    found.append(CachedFile(Path(entry), known.st_size, known.st_mtime))
    return sorted(found, key=lambda file: (file.used, file.path))


def mark_used(path: Path) -> None:
    """Note the time at which a file was used, and lock it until this process ends."""
    with contextlib.suppress(OSError):  # a cache of somebody else, or a file system without locks
        known = path.stat()
        os.utime(path)
        mark = (os.getpid(), known.st_dev, known.st_ino)
        if mark not in _in_use and try_lock(path, is_shared=True) is not None:
            _in_use.add(mark)


def remove_unused(path: Path) -> bool:
    """Remove a file that no process uses; return whether it is gone."""
    try:
        lock = try_lock(path)
        if lock is None:
            return False
        try:
            path.unlink(missing_ok=True)
        finally:
            unlock(lock)
    except OSError:  # no permission, or no locks, so nobody knows who uses it
        return False
    return True


def limit_cache(folder: Path, limit: float) -> None:
    """Remove the files that were not used for the longest time, until a cache keeps its limit.

    Args:
        folder: Folder of the cache.
        limit: Bytes of all files.
    """
    files = cached_files(folder)
    total = sum(file.size for file in files)
    for file in files:
        if total <= limit:
            return
        if remove_unused(file.path):
            total -= file.size


def cache_limit() -> float:
    """Return the limit of the default folder in bytes.

    Raises:
        InputError: The limit in the environment is no number.
    """
    text = os.environ.get(LIMIT) or _DEFAULT_GB
    try:
        limit = 1e9 * float(text)
    except ValueError:
        limit = math.nan
    if not limit >= 0:
        raise InputError(f"{LIMIT} must be a number of GB, such as 10, but is {text!r:.80}.")
    return limit
