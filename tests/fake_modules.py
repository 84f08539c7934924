"""What replaces functions and classes of ``torch`` and ``torch.cuda`` for a fake device."""

from __future__ import annotations

import contextlib
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

__all__ = ["replaced_functions"]


class Generator(torch.Generator):
    """Random numbers of the CPU that may be said to be the GPU's."""

    _said = torch.device("cpu")

    def __new__(cls, device: torch.device | str = "cpu") -> Generator:
        self = super().__new__(cls)
        self._said = torch.device(device)
        return self

    @property
    def device(self) -> torch.device:
        return self._said


class Event:
    """A point in time of a device that takes a nanosecond for each number that it reads."""

    def __init__(self, mode: Any, **_: object) -> None:
        self._mode, self._read = mode, 0

    def record(self, *_: object) -> None:
        self._read = self._mode.read

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: Event) -> float:
        return 1e-6 * (other._read - self._read)


class Graph:
    """What was captured takes as long in a replay, which does nothing."""

    def __init__(self, mode: Any) -> None:
        self._mode, self.read = mode, 0

    def replay(self) -> None:
        self._mode.read += self.read


class Stream:
    """A queue that is always empty."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def wait_stream(self, other: Stream) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, *_: object) -> None: ...

    def is_capturing(self) -> bool:
        return False


def replaced_functions(mode: Any, bfloat16: bool, free_bytes: int) -> dict[Any, dict[str, Any]]:
    """Return what replaces PyTorch's functions, by module and name."""
    kind = mode.device.type
    functions: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "get_rng_state": lambda device=None: mode.random.clone(),
        "set_rng_state": mode.set_random_state,
        "manual_seed": mode.seed,
        "recommended_max_memory": lambda: free_bytes,  # these two of Apple
        "driver_allocated_memory": lambda: 0,
    }
    if kind == "cuda":
        functions |= {
            "CUDAGraph": partial(Graph, mode),
            "Event": partial(Event, mode),
            "Stream": Stream,
            "current_device": lambda: 0,
            "current_stream": Stream,
            "device": lambda device: contextlib.nullcontext(),
            "get_device_name": lambda device=None: "Fake GPU",
            "get_device_properties": lambda device=None: SimpleNamespace(uuid="fake"),
            "graph": mode.capture,
            "graph_pool_handle": lambda: (0, 0),
            "is_bf16_supported": lambda including_emulation=True: bfloat16 or including_emulation,
            "is_current_stream_capturing": lambda: mode.is_capturing,
            "manual_seed_all": mode.seed,
            "mem_get_info": lambda device=None: (free_bytes, free_bytes),
            "set_device": lambda device: None,
            "stream": lambda stream: contextlib.nullcontext(),
        }
    accelerator = {
        "current_accelerator": lambda check_available=False: torch.device(kind),
        "current_stream": Stream,
        "device_count": lambda: 1,
        "is_available": lambda: True,
        "synchronize": lambda device=None: None,
    }
    return {
        torch: {"Generator": Generator},
        torch.Tensor: {"record_stream": lambda tensor, stream: mode.record_stream(tensor)},
        torch.accelerator: accelerator,
        torch.backends.mps: {
            "is_available": lambda: kind == "mps",
            "is_macos_or_newer": lambda major, minor: True,  # asked by autocast of PyTorch 2.7
        },
        getattr(torch, kind): functions,
    }
