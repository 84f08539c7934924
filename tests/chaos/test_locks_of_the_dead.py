"""The device of a killed worker is free at once, whatever it has forked."""

from __future__ import annotations

import os
import signal

from processes import hold_lock

from vit_ratio_opt.utils.locks import try_lock, unlock

from .conftest import wait_for


def test_a_killed_process_frees_its_lock_while_its_child_lives_on(start, tmp_path):
    path, forked = tmp_path / "lock", tmp_path / "forked"
    process = start(hold_lock, path, forked)
    wait_for(lambda: forked.exists() and forked.read_text(), seconds=60)
    child = int(forked.read_text())
    try:
        assert try_lock(path) is None
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        os.kill(child, 0)  # it is there
        lock = try_lock(path)
        assert lock is not None
        unlock(lock)
    finally:
        os.kill(child, signal.SIGKILL)
