"""Lock files against other processes of this machine.

The system frees a lock when its process ends, however it ends. Nobody has to obey a lock, and a
forked child does not hold those of its parent.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["try_lock", "unlock"]

_HELD_ELSEWHERE = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)
_held: set[int] = set()


def try_lock(path: Path, *, is_shared: bool = False) -> int | None:
    """Lock a file and return the handle of the lock; None if another process holds one.

    The lock is held until :func:`unlock`, or until the process ends.

    Args:
        path: The file. It is created, unless the lock is shared.
        is_shared: Whether others may hold a shared lock at the same time.

    Raises:
        OSError: The file cannot be opened, or its file system has no locks.
    """
    flags = os.O_RDONLY if is_shared else os.O_RDWR | os.O_CREAT
    handle = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        _lock(handle, is_shared)
    except OSError as error:
        os.close(handle)
        if error.errno in _HELD_ELSEWHERE:
            return None
        raise
    _held.add(handle)
    return handle


def unlock(handle: int) -> None:
    """Free the lock with this handle; a second call does nothing."""
    if handle in _held:
        _held.remove(handle)
        os.close(handle)


def _lock(handle: int, is_shared: bool) -> None:
    if sys.platform != "win32":
        fcntl.flock(handle, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    elif not is_shared:  # an open file cannot be removed there
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)


def _forget() -> None:
    """Close the handles in a forked child, which would keep the locks after its parent's end."""
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
