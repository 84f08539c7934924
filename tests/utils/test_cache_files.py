"""The cache keeps its limit, and removes nothing that is in use or not its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils import cache_files
from vit_ratio_opt.utils.cache_files import LIMIT, cached_files, limit_cache, remove_unused
from vit_ratio_opt.utils.caching import default_cache, read_or_compute
from vit_ratio_opt.utils.locks import try_lock, unlock

KB = 1000


def name(letter: str, suffix: str = "json") -> str:
    return f"{letter * 32}.{suffix}"


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The default folder, with a limit of 3 kB."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(LIMIT, "0.000003")
    monkeypatch.setattr(cache_files, "_in_use", set())
    default_cache().mkdir()
    return default_cache()


def put(folder: Path, letter: str, age: float, size: int = KB) -> Path:
    """A file of another process that was used some seconds ago."""
    path = folder / name(letter)
    path.write_bytes(bytes(size))
    used = path.stat().st_mtime - age
    os.utime(path, (used, used))
    return path


def read(path: Path, size: int = KB) -> bytes:
    return read_or_compute(
        path, read=Path.read_bytes, compute=lambda: bytes(size),
        write=lambda content, path: path.write_bytes(content) and None,
    )  # fmt: skip


def letters(folder: Path) -> str:
    return "".join(sorted(file.path.name[0] for file in cached_files(folder)))


def test_what_was_not_used_for_the_longest_time_goes_first(folder):
    for letter, age in (("a", 30), ("b", 20), ("c", 10)):
        put(folder, letter, age)
    read(folder / name("d"))
    assert letters(folder) == "bcd"
    put(folder, "b", 20)
    os.utime(folder / name("b"))  # another process reads it
    read(folder / name("e"))
    assert letters(folder) == "bde"


def test_reading_counts_as_use(folder):
    put(folder, "a", 30)
    put(folder, "b", 20)
    read(folder / name("a"))
    assert [file.path.name[0] for file in cached_files(folder)] == ["b", "a"]


def test_a_file_that_a_process_uses_or_has_just_written_stays(folder):
    used = put(folder, "a", 30)
    lock = try_lock(used, is_shared=True)
    for letter in "bc":
        put(folder, letter, 20)
    read(folder / name("d"), size=5 * KB)  # more than the limit by itself
    assert letters(folder) == "ad"
    assert not remove_unused(used)
    unlock(lock)
    assert remove_unused(used)
    assert not remove_unused(folder / name("d"))


def test_files_of_others_are_neither_counted_nor_removed(folder, tmp_path):
    others = [folder / "notes.txt", folder / f"{'A' * 32}.json", folder / f"{'a' * 31}.json"]
    for path in others:
        path.write_bytes(bytes(9 * KB))
    (tmp_path / "target").write_bytes(bytes(9 * KB))
    (folder / name("b")).symlink_to(tmp_path / "target")
    (folder / name("c")).mkdir()
    read(folder / name("d"))
    assert letters(folder) == "d"
    limit_cache(folder, 0)
    assert all(path.exists() for path in (*others, folder / name("b"), folder / name("c")))


def test_what_a_killed_writer_left_is_removed_after_a_day(folder):
    partial = folder / f".{name('a', 'safetensors')}.{'0' * 12}.partial"
    partial.write_bytes(bytes(9 * KB))
    assert cached_files(folder) == []  # it may be about to be renamed
    os.utime(partial, (0, 0))
    read(folder / name("b"))
    assert not partial.exists()


def test_another_folder_has_no_limit(folder, tmp_path):
    own = tmp_path / "own"
    for letter in "abcdef":
        read(own / name(letter))
    assert letters(own) == "abcdef"


@pytest.mark.parametrize("text", ["much", "-1", "nan"])
def test_a_limit_that_is_no_size_is_refused(folder, monkeypatch, text):
    monkeypatch.setenv(LIMIT, text)
    with pytest.raises(InputError, match="must be a number of GB, such as 10, but is"):
        read(folder / name("a"))
    assert not (folder / name("a")).exists()  # refused before any work


def test_a_file_says_what_it_is_about(folder):
    table = folder / name("a")
    table.write_text(json.dumps({"key": "k", "table": {"device": "NVIDIA H100"}}))
    header = json.dumps({"__metadata__": {"key": "k", "model": "VisionTransformer"}}).encode()
    (folder / name("b", "safetensors")).write_bytes(len(header).to_bytes(8, "little") + header)
    (folder / name("c", "safetensors")).write_bytes(b"damaged")
    found = {file.path.name[0]: (file.kind, file.about) for file in cached_files(folder)}
    assert found == {
        "a": ("latency table", "NVIDIA H100"),
        "b": ("calibration", "VisionTransformer"),
        "c": ("calibration", ""),
    }
