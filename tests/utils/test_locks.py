"""Locks against other processes; another open file stands for another process."""

from __future__ import annotations

import os

import pytest

from vit_ratio_opt.utils.locks import try_lock, unlock


def test_a_lock_is_held_by_one_until_it_is_freed(tmp_path):
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    assert try_lock(tmp_path / "lock") is None
    unlock(lock)
    unlock(lock)  # closes nobody else's file
    again = try_lock(tmp_path / "lock")
    assert again is not None
    unlock(again)


def test_a_shared_lock_keeps_the_file_from_a_process_that_wants_it_alone(tmp_path):
    path = tmp_path / "file"
    path.touch()
    readers = [try_lock(path, is_shared=True) for _ in range(2)]
    assert None not in readers
    assert try_lock(path) is None
    for reader in readers:
        unlock(reader)
    alone = try_lock(path)
    assert alone is not None
    assert try_lock(path, is_shared=True) is None
    unlock(alone)


def test_a_file_that_cannot_be_opened_is_an_error_and_no_lock(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        try_lock(tmp_path / "missing" / "lock")
    with pytest.raises(OSError, match="No such file"):
        try_lock(tmp_path / "missing", is_shared=True)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        try_lock(tmp_path / "link")
    assert os.listdir(tmp_path) == ["link"]
