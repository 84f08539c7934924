"""Keep results of long computations in files that any number of processes share.

A file's name is a hash of everything on which its content depends, so it never goes stale. Two
processes that miss the same file both compute, and one overwrites the other's equal result. The
default folder has a limit, see :mod:`vit_ratio_opt.utils.cache_files`.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vit_ratio_opt.utils.cache_files import cache_limit, limit_cache, mark_used
from vit_ratio_opt.utils.files import why_not

__all__ = ["default_cache", "read_or_compute"]

T = TypeVar("T")

_logger = logging.getLogger(f"optuna.{__name__}")


def default_cache() -> Path:
    """Return ``$XDG_CACHE_HOME/vit_ratio_opt``, by default in ``~/.cache``."""
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as containers have them
        root = tempfile.gettempdir()
    return Path(root) / "vit_ratio_opt"


def read_or_compute(
    path: Path,
    *,
    read: Callable[[Path], T],
    compute: Callable[[], T],
    write: Callable[[T, Path], None],
) -> T:
    """Return the content of ``path``, or compute and store it.

    A damaged file, or a folder that cannot be written, costs a warning and the computation.

    Args:
        path: The file; its folder is created.
        read: Function that returns the content of an existing file. OSError, KeyError, TypeError
            and ValueError mean that the file is damaged.
        compute: Function that returns the content where there is no file.
        write: Function that writes the content to a file. OSError and ValueError mean that this
            is impossible.

    Raises:
        InputError: The limit of the default folder, in the environment, is no number.
    """
    # Other folders are the user's to clean.
    limit = cache_limit() if path.parent == default_cache() else math.inf
    if os.path.exists(path):
        try:
            mark_used(path)
            return read(path)
        except (OSError, KeyError, TypeError, ValueError) as error:
            _logger.warning(f"{path} cannot be read and is measured again: {error}")
    content = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(content, path)
        mark_used(path)
        if limit < math.inf:
            limit_cache(path.parent, limit)
    except (OSError, ValueError) as error:
        _logger.warning(
            f"{path} cannot be written, so every process measures anew: {why_not(error)}"
        )
    return content
