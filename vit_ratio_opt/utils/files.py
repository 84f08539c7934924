"""Write files atomically, name them, and refuse places that cannot be written.

A regular file is replaced, so that it is complete at every moment, and keeps its mode and owner.
Pipes and devices are written as by a shell's ``>``, and symbolic links are followed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from vit_ratio_opt.errors import CannotWriteError, InputError

__all__ = [
    "check_outputs",
    "check_writable_folder",
    "check_place",
    "check_writable",
    "file_name",
    "is_plain",
    "named_folder",
    "replacing",
    "why_not",
    "write_json",
    "write_text",
]

_MAX_NAME_BYTES = 150  # file systems allow 255, and callers append suffixes
_MAX_SHOWN = 200
_PROBE_BYTES = 4096  # an empty file can be created on a full disk


@contextlib.contextmanager
def replacing(path: str | Path, *, keep_links: bool = False) -> Iterator[Path]:
    """Yield a temporary file that replaces ``path`` when the block succeeds.

    When the block raises, ``path`` stays as it was and the temporary file is removed.

    Args:
        path: Regular file to replace, or a pipe or device to write.
        keep_links: Whether a file with several names (hard links) keeps all of them and is
            overwritten in place, which a crash may interrupt. Otherwise ``path`` becomes a new
            file, and the other names keep the earlier content.
    """
    target = _regular(Path(path))
    if target is None:
        with TemporaryDirectory() as folder:
            partial = Path(folder, "output")
            yield partial
            with partial.open("rb") as content, _open_through(Path(path)) as out:
                shutil.copyfileobj(content, out)
        return
    partial = target.with_name(f".{target.name[:40]}.{uuid.uuid4().hex[:12]}.partial")
    try:
        partial.touch()
        new = partial.stat()  # with the umask's mode; the writer of the content may be stricter
        yield partial
        before = target.stat() if target.exists() else new
        if keep_links and before.st_nlink > 1:
            _overwrite(target, partial)
            partial.unlink()
            return
        with contextlib.suppress(OSError):  # not every file system has modes and owners
            partial.chmod(stat.S_IMODE(before.st_mode))
            os.chown(partial, before.st_uid, before.st_gid)
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_text(text: str, path: str | Path) -> None:
    """Write ``text`` to a UTF-8 file atomically.

    Raises:
        CannotWriteError: The file cannot be written.
    """
    try:
        with replacing(path, keep_links=True) as partial:
            partial.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CannotWriteError(f"{_shown(path)} cannot be written: {why_not(error)}") from None


def write_json(content: dict[str, Any], path: str | Path) -> None:
    """Write ``content`` to an indented JSON file atomically.

    Raises:
        CannotWriteError: The file cannot be written.
    """
    write_text(json.dumps(content, indent=2) + "\n", path)


def check_writable(path: str | Path) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Raises:
        InputError: The output is a folder, has an impossible name, its folder is missing, or it or
            its folder is not writable.
    """
    shown = _shown(path)
    try:
        target = _regular(Path(path))
        if target is None or target.exists():
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, "no permission")
        elif not target.parent.is_dir():
            raise InputError(
                f"{shown} cannot be written: it lies in no folder: {_shown(target.parent)} is "
                "missing."
            )
        if target is not None:
            _probe(target.parent)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{shown} cannot be written: {why_not(error)}") from None


def check_outputs(outputs: Iterable[str | Path], inputs: Iterable[str | Path]) -> None:
    """Refuse outputs of a command that would overwrite its inputs or each other.

    Args:
        outputs: Files that the command writes.
        inputs: Files that the command reads, such as those of a database; they may be missing.

    Raises:
        InputError: An output is the same file as an input or as another output, or cannot be
            written.
    """
    read, written = list(inputs), list[str | Path]()
    for output in outputs:
        check_writable(output)
        if not is_plain(output):
            continue
        if any(_is_same(output, path) for path in read):
            raise InputError(
                f"{_shown(output)} is read by this command, so nothing is written there: give "
                "another file."
            )
        if any(_is_same(output, path) for path in written):
            raise InputError(
                f"{_shown(output)} is two outputs at once: give a file for each of them."
            )
        written.append(output)


def check_writable_folder(folder: str | Path) -> None:
    """Create a folder, and write and remove a file there to prove that this is possible.

    Raises:
        CannotWriteError: The folder cannot be created, or no file can be written there.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise CannotWriteError(
            f"The folder {_shown(folder)} cannot be created: {why_not(error)}"
        ) from None
    try:
        _probe(Path(folder))
    except OSError as error:
        raise CannotWriteError(
            f"The folder {_shown(folder)} cannot be written: {why_not(error)}"
        ) from None


def check_place(folder: str | Path) -> None:
    """Refuse a folder that cannot be created because it is a file or lies in one.

    Raises:
        InputError: There is a file; the message names it.
    """
    try:
        for place in (Path(folder), *Path(folder).parents):
            if place.is_dir():
                return
            if place.exists():
                raise InputError(f"{_shown(folder)} is no folder: {_shown(place)} is a file.")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{_shown(folder)} is no folder: {why_not(error)}") from None


def is_plain(path: str | Path) -> bool:
    """Return whether an output is or will be a regular file, and not this process's output."""
    try:
        return _regular(Path(path)) is not None
    except (OSError, ValueError):
        return False


def why_not(error: Exception) -> str:
    """Return the end of a sentence: why a file could not be written, and what to do."""
    number = getattr(error, "errno", None)
    if number is None and (found := re.search(r"os error (\d+)", str(error))):  # safetensors'
        number = int(found[1])
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "no space is left there. Free some space and run the same command again."
    if number in (errno.EACCES, errno.EPERM):
        return "no permission."
    lines = (getattr(error, "strerror", None) or str(error)).splitlines()
    text = lines[0] if lines else type(error).__name__
    return f"{text.rstrip('.')}."


def file_name(text: str) -> str:
    """Return a readable name for a file or folder; different texts get different names."""
    return _escaped(text, r"[^\w.-]|^\.|\.$")  # a dot at an end hides a file, or is lost


def named_folder(parent: Path, text: str) -> Path:
    """Return the folder ``file_name(text)`` below ``parent``, or the one of earlier versions.

    Earlier versions escaped every dot; where such a folder exists, it stays in use.
    """
    earlier = parent / _escaped(text, r"[^\w-]")
    return earlier if earlier.is_dir() else parent / file_name(text)


def _escaped(text: str, pattern: str) -> str:
    safe = re.sub(pattern, lambda match: f"%{ord(match[0]):x}", text)
    if len(safe.encode()) <= _MAX_NAME_BYTES:
        return safe
    return f"{safe.encode()[:_MAX_NAME_BYTES].decode(errors='ignore')}%{_hash(text)}"


def _regular(path: Path) -> Path | None:
    """Return the regular file that ``path`` is or will be, links followed; None for another kind.

    Raises:
        OSError: ``path`` is a folder or something else that takes no output, or not accessible.
        ValueError: The name has a null byte.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return Path(os.path.realpath(path))
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if stat.S_ISBLK(found.st_mode) or stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EINVAL, "it is neither a file nor a pipe")
    if not stat.S_ISREG(found.st_mode) or _own_output(found) is not None:
        return None
    return Path(os.path.realpath(path))


def _own_output(found: os.stat_result) -> int | None:
    """Return the descriptor of this process's output or error stream that this file is."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(found, os.fstat(descriptor)):
                return descriptor
    return None


def _open_through(path: Path) -> BinaryIO:
    """Open a pipe or device; this process's own output is flushed, and not truncated."""
    own = _own_output(path.stat())
    if own is None:
        return path.open("wb")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return os.fdopen(os.dup(own), "wb")


def _overwrite(target: Path, source: Path) -> None:
    """Overwrite a file in place; a full disk is noticed before the file is changed."""
    with source.open("rb") as content, target.open("r+b") as out:
        if hasattr(os, "posix_fallocate") and source.stat().st_size:
            os.posix_fallocate(out.fileno(), 0, source.stat().st_size)
        shutil.copyfileobj(content, out)
        out.truncate()


def _is_same(first: str | Path, second: str | Path) -> bool:
    """Return whether two names are or will be one file; links of both kinds are followed."""
    try:
        return os.path.realpath(first) == os.path.realpath(second) or os.path.samefile(
            first, second
        )
    except (OSError, ValueError):  # one is not there, or cannot be
        return False


def _probe(folder: Path) -> None:
    probe = folder / f".{uuid.uuid4().hex[:12]}.partial"
    try:
        probe.write_bytes(bytes(_PROBE_BYTES))
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _shown(path: str | Path) -> str:
    text = str(path) or "''"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
