"""Room for the dense model's streams, in memory or in a file."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import torch

__all__ = ["empty_on_disk"]

_BLOCK = 2**20


def empty_on_disk(shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> torch.Tensor:
    """Return a tensor whose values lie in a file without a name, which goes with the tensor.

    Args:
        shape: Shape of the tensor.
        dtype: Type of its values.
        folder: Folder of the file; it is created.

    Raises:
        OSError: The folder cannot be written, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = math.prod(shape) * dtype.itemsize
    with tempfile.TemporaryFile(dir=folder) as file:
        # All is written: a process dies when it writes to a page for which there is no room.
        for start in range(0, size, _BLOCK):
            file.write(bytes(min(_BLOCK, size - start)))
        file.flush()
        values = torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,)))
    return values.view(dtype).view(shape)
