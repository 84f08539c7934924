"""Several processes that share one training, as ``torchrun`` starts them.

They exchange tensors and JSON, no pickles.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vit_ratio_opt.errors import InputError

__all__ = ["Ranks", "RanksBroken"]


class RanksBroken(SystemExit):
    """One process has left a training that the others are still in, so none can continue."""


@dataclass(frozen=True)
class Ranks:
    """The processes of one training. Rank 0 runs the study; the others follow it.

    With a size of 1, no other process is waited for.

    Args:
        rank: Rank of this process.
        size: Number of processes.
        device: Device of this process.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def from_environment(cls) -> Ranks | None:
        """Join the processes that ``torchrun`` started; return None for a single process.

        NCCL connects GPUs, one for each process of a machine; gloo connects CPUs.

        Raises:
            InputError: A machine has GPUs, but fewer than processes.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return None
        local = int(os.environ["LOCAL_RANK"])
        gpus = torch.cuda.device_count()
        if 0 < gpus < int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
            raise InputError(
                f"Each process needs a GPU of its own, but there are {gpus} for "
                f"{os.environ['LOCAL_WORLD_SIZE']} processes: lower --nproc-per-node."
            )
        device = torch.device("cuda", local) if gpus else torch.device("cpu")
        if gpus:
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def share(self, items: torch.Tensor) -> torch.Tensor:
        """Return this process's part of ``items``, every ``size``-th."""
        return items[self.rank :: self.size]

    def sum(self, *values: float) -> list[float]:
        """Return the sums of each value over all processes, in float64."""
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers)
        return numbers.tolist()

    def gather(self, own: torch.Tensor, total: int) -> torch.Tensor:
        """Return the items of all processes in their order, where each has its :meth:`share`.

        Args:
            own: This process's items, ``(n, k)``, on the CPU.
            total: Number of items of all processes.
        """
        if self.size == 1:
            return own
        longest = -(-total // self.size)
        padded = torch.zeros((longest, *own.shape[1:]), dtype=own.dtype)
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:total]

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is True in any process."""
        return self.sum(float(flag))[0] > 0

    def broadcast(self, message: Any = None) -> Any:
        """Return rank 0's ``message`` in every process.

        Args:
            message: JSON values in rank 0, ignored in other ranks; floats arrive bit for bit.
        """
        if self.size == 1:
            return message
        text = json.dumps(message).encode() if self.rank == 0 else b""
        length = torch.tensor([len(text)])
        dist.broadcast(length, src=0)
        content = torch.zeros(int(length), dtype=torch.uint8)
        if self.rank == 0:
            content = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        dist.broadcast(content, src=0)
        return json.loads(bytes(content.tolist()))

    def leave(self) -> None:
        """Leave the other processes, after all communication with them."""
        if self.size > 1:
            dist.destroy_process_group()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return ``model`` with rank 0's weights and gradients averaged over the processes."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)
