"""Several processes that share one training, as ``torchrun`` starts them.

They exchange tensors and JSON, no pickles. Gradients go from GPU to GPU (NCCL on NVIDIA's and
AMD's, XCCL on Intel's); everything else goes between the CPUs (gloo), in a group of its own: other
ranks wait there while rank 0 prunes or waits for the storage, for hours if need be. A rank that
dies closes its connections, which ends that wait at once, and torchrun ends the others.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.device import best_device

__all__ = ["Polls", "Ranks", "RanksBroken"]

# A wait for rank 0 has no other end than its message or its death.
_LONGEST_WAIT = timedelta(days=365)
_POLL_SECONDS = 1.0


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
        control: Group of everything but gradients, between CPUs; the default group if None.
    """

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @classmethod
    def from_environment(cls) -> Ranks | None:
        """Join the processes that ``torchrun`` started; return None for a single process.

        Each process of a machine has a GPU of its own, where there are GPUs.

        Raises:
            InputError: A machine has GPUs, but fewer than processes, or PyTorch cannot connect
                them.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return None
        local = int(os.environ["LOCAL_RANK"])
        kind = best_device().type
        gpus = 0 if kind in ("cpu", "mps") else torch.accelerator.device_count()
        if 0 < gpus < int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
            raise InputError(
                f"Each process needs a GPU of its own, but there are {gpus} for "
                f"{os.environ['LOCAL_WORLD_SIZE']} processes: lower --nproc-per-node."
            )
        device = torch.device(kind, local) if gpus else torch.device("cpu")
        backend = dist.get_default_backend_for_device(device)
        if not dist.is_backend_available(backend):
            raise InputError(
                f"This PyTorch lacks {backend}, which connects GPUs of type {kind}: start one "
                "process without torchrun."
            )
        if gpus:
            torch.accelerator.set_device_index(local)
        if not dist.is_initialized():
            dist.init_process_group(backend)
        control: Any = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
        return cls(dist.get_rank(), dist.get_world_size(), device, control)

    def share(self, items: torch.Tensor) -> torch.Tensor:
        """Return this process's part of ``items``, every ``size``-th."""
        return items[self.rank :: self.size]

    def sum(self, *values: float) -> list[float]:
        """Return the sums of each value over all processes, in float64."""
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, group=self.control)
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
        dist.all_gather(parts, padded, group=self.control)
        return torch.stack(parts, dim=1).flatten(0, 1)[:total]

    def broadcast(self, message: Any = None) -> Any:
        """Return rank 0's ``message`` in every process.

        Args:
            message: JSON values in rank 0, ignored in other ranks; floats arrive bit for bit.

        Raises:
            RanksBroken: Rank 0 is gone.
        """
        if self.size == 1:
            return message
        text = json.dumps(message).encode() if self.rank == 0 else b""
        try:
            length = torch.tensor([len(text)])
            dist.broadcast(length, src=0, group=self.control)
            content = torch.zeros(int(length), dtype=torch.uint8)
            if self.rank == 0:
                content = torch.frombuffer(bytearray(text), dtype=torch.uint8)
            dist.broadcast(content, src=0, group=self.control)
        except RuntimeError as error:
            if self.rank == 0:  # its trial fails first
                raise
            raise RanksBroken(
                f"Rank {self.rank} has lost the connection to rank 0: {error}"
            ) from error
        return json.loads(bytes(content.tolist()))

    def leave(self) -> None:
        """Leave the other processes, after all communication with them."""
        if self.size > 1:
            dist.destroy_process_group()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return ``model`` with rank 0's weights and gradients averaged over the processes."""
        if self.size == 1:
            return model
        ids = None if self.device.type == "cpu" else [self.device.index]
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


class Polls:
    """What all processes of a training ask each other about once a second, not in each step.

    The number of steps in between is computed from the same exchanged times in all of them, so
    that all ask after the same step. It doubles at most from one poll to the next.

    Args:
        ranks: The processes; one alone asks nobody, and is ready in each step.
        now: Clock in seconds.
    """

    def __init__(self, ranks: Ranks, now: Callable[[], float] = time.monotonic) -> None:
        self._ranks, self._now = ranks, now
        self._step, self._steps, self._asked = 0, 0, now()

    def is_due(self, step: int) -> bool:
        """Return whether all processes ask before this step."""
        return self._ranks.size == 1 or step >= self._step + self._steps

    def sum(self, step: int, *values: float) -> list[float]:
        """Return the sums of each value over all processes; all have to call this if it is due."""
        if self._ranks.size == 1:
            return list(values)
        now, steps = self._now(), step - self._step
        milliseconds = round(1000 * (now - self._asked))  # whole numbers, whose sum is exact
        *sums, taken = self._ranks.sum(*values, milliseconds)
        each = taken / self._ranks.size / 1000 / max(1, steps)
        fitting = int(_POLL_SECONDS / each) if each else math.inf
        self._steps = int(max(1, min(2 * self._steps, fitting)))
        self._step, self._asked = step, now
        return sums
