"""Give each worker of a machine a GPU of its own.

A worker locks a file for the GPU that it uses, in a folder of its user's. The system frees the
lock when the worker ends. Files are named by the UUID of the GPU, so workers to which
``CUDA_VISIBLE_DEVICES`` shows different GPUs under one number do not disturb each other.
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from vit_ratio_opt.models.device import resolve_device
from vit_ratio_opt.utils.failures import reason
from vit_ratio_opt.utils.locks import try_lock, unlock

__all__ = ["claim_device"]

# One of them is in a machine, or the system shares them out.
_NOT_CLAIMED = ("cpu", "mps")
# A worker reads the locks of the others in milliseconds.
_PATIENCE_SECONDS = 5.0

_logger = logging.getLogger(f"optuna.{__name__}")
# The process, and what it claimed: a forked child has to claim its own.
_own: tuple[int, dict[torch.device, int]] = (0, {})


def claim_device(device: torch.device | str | None = None) -> torch.device:
    """Return the device of this worker, and let the other workers of the machine know.

    Without a given one, it is the accelerator that the fewest other workers use, which becomes the
    current device of this process. A process that asks again gets the same one. Where PyTorch
    has another current device than the first, that counts as given.

    Args:
        device: A given device, which is taken even if it is used; None for a free one.

    Raises:
        InputError: This machine has no such device.
    """
    given = resolve_device(device)
    if given.type in _NOT_CLAIMED:
        return given
    module = torch.get_device_module(given)
    current = int(module.current_device())
    is_given = device is not None or current > 0
    chosen = torch.device(given.type, current if given.index is None else given.index)
    claimed = _claimed()
    if claimed and (chosen in claimed or not is_given):
        return chosen if is_given else next(iter(claimed))
    others = [torch.device(given.type, index) for index in range(torch.accelerator.device_count())]
    try:
        with _alone(_folder()) as folder:
            users = {other: _users(folder, other) for other in ([chosen] if is_given else others)}
            chosen = min(users, key=lambda other: users[other])
            claimed[chosen] = _hold(folder, chosen)
    except OSError as error:
        if not is_given and len(others) > 1:
            _logger.warning(
                f"Workers of this machine cannot tell each other which GPU they use "
                f"({reason(error)}), so each of them takes {chosen}: give each its --device."
            )
        return chosen
    if not is_given:
        module.set_device(chosen.index)
        _warn_if_shared(chosen, users)
    return chosen


def _claimed() -> dict[torch.device, int]:
    """Return the devices that this very process has claimed, with their locks."""
    global _own
    if _own[0] != os.getpid():
        _own = (os.getpid(), {})
    return _own[1]


def _warn_if_shared(chosen: torch.device, users: dict[torch.device, int]) -> None:
    if users[chosen]:
        _logger.warning(
            f"All {len(users)} GPUs that this worker sees are used by other workers, so it shares "
            f"{chosen} with {users[chosen]} of them, which slows both down: start one worker for "
            "each GPU."
        )


def _folder() -> Path:
    """Return the folder of the locks, which belongs to the user alone.

    Raises:
        OSError: It cannot be made, or somebody else has made it.
    """
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    folder = Path(tempfile.gettempdir(), f"vit_ratio_opt-devices-{user}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != user):
        raise PermissionError(f"{folder} belongs to another user")
    return folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """Keep other workers from choosing a device inside the block; do not wait for ever."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (lock := try_lock(folder / "choosing")) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        yield folder
    finally:
        if lock is not None:
            unlock(lock)


def _users(folder: Path, device: torch.device) -> int:
    """Return how many workers use a device: each has locked a file of its own."""
    locks = [try_lock(path) for path in folder.glob(f"{_name(device)}.*")]
    for lock in locks:
        if lock is not None:
            unlock(lock)
    return locks.count(None)


def _hold(folder: Path, device: torch.device) -> int:
    """Lock the first free file of a device."""
    for number in itertools.count():
        lock = try_lock(folder / f"{_name(device)}.{number}")
        if lock is not None:
            return lock
    raise AssertionError


def _name(device: torch.device) -> str:
    """Return a name of a device that all processes of the machine have in common."""
    properties = torch.get_device_module(device).get_device_properties(device)
    uuid = getattr(properties, "uuid", None)
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    number = device.index or 0
    place = shown[number].strip() if number < len(shown) else ""
    # The parts of a divided GPU may have one UUID; their names in the variable differ.
    parts = [device.type, str(uuid or place or number)]
    parts += [place] if place.startswith("MIG") and uuid else []
    return re.sub(r"[^\w-]", "-", "-".join(parts))
