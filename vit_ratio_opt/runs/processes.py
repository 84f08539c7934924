"""Names of processes, by which a worker can tell that another one of its machine is dead."""

from __future__ import annotations

import functools
import os
import platform

__all__ = ["is_dead", "machine_name", "process_name"]


def process_name(process: int | None = None) -> str:
    """Return a name that no other running process on any machine has.

    Args:
        process: Process id on this machine; this process by default.
    """
    return f"{machine_name()}:{os.getpid() if process is None else process}"


def is_dead(name: str) -> bool:
    """Return whether a :func:`process_name` is of this machine and its process is gone."""
    machine, _, process = name.rpartition(":")
    return machine == machine_name() and process.isdigit() and not _is_alive(int(process))


@functools.cache
def machine_name() -> str:
    """Return the name of this machine and, since containers share it, of the process namespace."""
    try:
        return f"{platform.node()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return platform.node()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
