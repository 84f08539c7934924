"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["file_name", "replacing"]

_LONGEST = 150  # bytes; file systems take 255, of which others need some


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place when the context ends well.

    When it does not, ``path`` stays as it was and the file beside it is removed.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def file_name(text: str) -> str:
    """A name for a file or folder, as readable as may be; two texts never share one."""
    safe = re.sub(r"[^\w-]", lambda match: f"%{ord(match[0]):x}", text)
    if len(safe.encode()) <= _LONGEST:
        return safe
    return f"{safe.encode()[:_LONGEST].decode(errors='ignore')}%{_hash(text)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
