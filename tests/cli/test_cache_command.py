"""``vit-ratio-opt cache`` lists and removes what the cache has written."""

from __future__ import annotations

import pytest

from vit_ratio_opt.cli.cache import CacheOptions, cache
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.caching import default_cache
from vit_ratio_opt.utils.locks import try_lock, unlock


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    default_cache().mkdir()
    for letter in "ab":
        (default_cache() / f"{letter * 32}.safetensors").write_bytes(bytes(2_000_000))
    (default_cache() / "notes.txt").touch()
    return default_cache()


def test_it_lists_by_default(folder, capsys):
    cache(CacheOptions())
    shown = capsys.readouterr().out
    assert f"2 file(s) of 4.0 MB in {folder}" in shown
    assert "calibration" in shown
    assert "aaaaaaaaaaaa" in shown
    assert "notes" not in shown
    cache(CacheOptions(list=True))
    assert capsys.readouterr().out == shown


def test_it_removes_its_own_files_that_nobody_uses(folder, capsys):
    lock = try_lock(folder / f"{'a' * 32}.safetensors", is_shared=True)
    cache(CacheOptions(clear=True))
    assert lock is not None
    unlock(lock)
    shown = capsys.readouterr().out
    assert f"removed 1 file(s) of 2.0 MB from {folder}; 1 are in use" in shown
    assert sorted(path.name[0] for path in folder.iterdir()) == ["a", "n"]


def test_an_empty_or_missing_folder_is_no_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "missing"))
    cache(CacheOptions())
    cache(CacheOptions(clear=True))
    assert "0 file(s) of 0.0 MB" in capsys.readouterr().out


def test_both_at_once_are_refused():
    with pytest.raises(InputError, match="give one of them"):
        cache(CacheOptions(list=True, clear=True))
