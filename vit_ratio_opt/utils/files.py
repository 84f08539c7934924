"""Write files atomically, and name them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit_ratio_opt.errors import InputError

__all__ = ["file_name", "replacing", "write_json", "write_text"]

_MAX_NAME_BYTES = 150  # file systems allow 255, and callers append suffixes


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` and rename it to ``path`` when the block succeeds.

    When the block raises, ``path`` stays as it was and the temporary file is removed.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_text(text: str, path: str | Path) -> None:
    """Write ``text`` to a UTF-8 file atomically.

    Raises:
        InputError: The file cannot be written.
    """
    path = Path(path)
    try:
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from None


def write_json(content: dict[str, Any], path: str | Path) -> None:
    """Write ``content`` to an indented JSON file atomically.

    Raises:
        InputError: The file cannot be written.
    """
    write_text(json.dumps(content, indent=2) + "\n", path)


def file_name(text: str) -> str:
    """Return a readable name for a file or folder; different texts get different names."""
    safe = re.sub(r"[^\w-]", lambda match: f"%{ord(match[0]):x}", text)
    if len(safe.encode()) <= _MAX_NAME_BYTES:
        return safe
    return f"{safe.encode()[:_MAX_NAME_BYTES].decode(errors='ignore')}%{_hash(text)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
