"""A GPU for machines without one: tensors of the CPU that are said to be on a GPU, and its rules.

``with fake_device("cuda") as device:`` lets PyTorch find one GPU of NVIDIA, or of Apple with
``"mps"``. A mark on the storage says that a tensor is on it, so views, parameters and ``.data``
are there too. All numbers are the CPU's. The rules:

- No operation takes tensors of both devices, but for scalars and indices, nor does it take a
  random generator of the other device. The GPU has random numbers of its own.
- ``numpy()`` and ``pin_memory()`` need a tensor of the CPU.
- ``torch.autocast`` casts the inputs of the operations in PyTorch's lists, and those that multiply
  matrices or normalise take one type of numbers. Decompositions of matrices have no half types.
- ``"mps"`` has no float64, and no decompositions, which depend on the version of PyTorch there.
- Nothing waits for the GPU while a CUDA graph is captured. A replay does nothing.

Not followed: what C++ does by itself, such as the backward pass, and other threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from autocast_lists import FULL, LOWER, WIDEST
from fake_modules import replaced_functions
from torch.overrides import TorchFunctionMode

__all__ = ["fake_device", "fake_seconds"]

# Python's functions and operators that consist of operations in the lists.
_SAME = {
    "__matmul__": "matmul", "__rmatmul__": "matmul", "__pow__": "pow", "__rpow__": "pow",
    "__rtruediv__": "reciprocal", "__rdiv__": "reciprocal", "cross_entropy": "log_softmax",
    "linalg_norm": "linalg_vector_norm", "norm": "linalg_vector_norm",
    "normalize": "linalg_vector_norm", "rms_norm": "rsqrt",
}  # fmt: skip
_ONE_TYPE = LOWER | {"layer_norm", "group_norm"}
_DECOMPOSITIONS = ("cholesky", "lu_", "qr", "svd", "pinverse", "inverse") + tuple(
    f"linalg_{name}"
    for name in ("cholesky", "eig", "inv", "ldl", "lstsq", "lu", "pinv", "qr", "solve", "svd")
)
_RANDOM = {
    "bernoulli", "bernoulli_", "dropout", "exponential_", "multinomial", "normal", "normal_",
    "rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "random_", "randperm",
    "uniform_",
}  # fmt: skip
_WAITING = {"__bool__", "__float__", "__int__", "cpu", "item", "nonzero", "numpy", "tolist"}
_CPU_INDICES = {"__getitem__", "__setitem__", "index_put", "index_put_"}
_HALF = (torch.bfloat16, torch.float16)


class _FakeDevice(TorchFunctionMode):
    """Follow the rules in every call of PyTorch."""

    current: _FakeDevice

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.device = torch.device(kind, 0)
        self.random = torch.Generator().get_state()
        self.is_capturing = False
        self.read = 0  # numbers
        self._inside = False
        self._special: dict[str, Callable[..., Any]] = {
            "to": self._to,
            "cpu": lambda tensor, **_: self._to(tensor, "cpu"),
            "cuda": lambda tensor, *_, **__: self._to(tensor, "cuda"),
            "type_as": self._to,
            "as_tensor": self._as_tensor,
            "copy_": torch.Tensor.copy_,
            "_has_compatible_shallow_copy_type": torch._has_compatible_shallow_copy_type,
            "numpy": partial(self._numpy, torch.Tensor.numpy),
            "__array__": partial(self._numpy, torch.Tensor.__array__),
            "pin_memory": self._pin,
            "register_hook": self._register_hook,
        }

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self._inside, kwargs = True, dict(kwargs or {})
        try:
            name = getattr(func, "__name__", "")
            if name == "__get__":
                return self._get(func, *args)
            if name == "__set__" and func.__self__.__name__ != "grad":
                return func(*args)
            if self.is_capturing and name in _WAITING:
                raise RuntimeError(f"`{name}` is not permitted while a graph is captured.")
            if name in self._special:
                return self._special[name](*args, **kwargs)
            return self._call(func, name, args, kwargs)
        finally:
            self._inside = False

    def holds(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is on this device."""
        if tensor.layout != torch.strided or tensor.is_meta:
            return False
        return hasattr(tensor.untyped_storage(), "_on_fake_device")

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Mark a tensor's storage as one of this device."""
        if self.device.type == "mps" and tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64: MPS has no such type.")
        tensor.untyped_storage()._on_fake_device = True  # type: ignore[attr-defined]
        return tensor

    def is_own(self, device: Any) -> bool:
        """Return whether a device is this one."""
        if isinstance(device, int):
            device = torch.device(self.device.type, device)
        device = torch.device(device)
        if device.type == self.device.type and device.index not in (None, 0):
            raise RuntimeError(f"There is no device {device}.")
        return bool(device.type == self.device.type)

    # Attributes and methods that know of devices

    def _get(self, func: Any, tensor: torch.Tensor, *owner: Any) -> Any:
        name = getattr(func.__self__, "__name__", "")
        if name == "device" and self.holds(tensor):
            return self.device
        if name in ("is_cuda", "is_mps", "is_cpu"):
            own = self.device.type if self.holds(tensor) else tensor.device.type
            return name == f"is_{own}"
        found = func(tensor, *owner)
        if name == "grad" and found is not None and self.holds(tensor):
            self.put(found)  # made by the backward pass
        return found

    def _to(self, tensor: torch.Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Any:
        other = args[0] if args else kwargs.get("other")
        layout: dict[str, Any] = {}
        if isinstance(other, torch.Tensor):
            device, dtype = self.device if self.holds(other) else other.device, other.dtype
        else:
            device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
            if memory_format is not None:
                layout["memory_format"] = memory_format
        if device is not None and device.type == "meta":
            return tensor.to(device, dtype or tensor.dtype)
        here = self.holds(tensor)
        goes = here if device is None else self.is_own(device)
        if here and not goes and dtype == torch.float64 and self.device.type == "mps":
            raise TypeError("MPS converts before it copies, but has no float64: copy first.")
        moved = tensor.to(dtype or tensor.dtype, copy=copy or here != goes, **layout)
        return self.put(moved) if goes else moved

    def _as_tensor(self, data: Any, dtype: Any = None, device: Any = None) -> torch.Tensor:
        if isinstance(data, torch.Tensor):
            return self._to(data, device=device, dtype=dtype)
        made = torch.as_tensor(data, dtype=dtype)
        return made if device is None else self._to(made, device)

    def _numpy(self, func: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.holds(tensor):
            raise TypeError(f"can't convert {self.device} device type tensor to numpy.")
        return func(tensor, *args, **kwargs)

    def _pin(self, tensor: torch.Tensor, *args: Any) -> torch.Tensor:
        if self.holds(tensor) or self.device.type == "mps":
            raise RuntimeError(f"cannot pin a tensor of {self.device}, or for it")
        return tensor

    def _register_hook(self, tensor: torch.Tensor, hook: Callable[..., Any]) -> Any:
        def on_device(gradient: torch.Tensor) -> Any:
            with self if self._inside else contextlib.nullcontext():
                return hook(self.put(gradient))

        return tensor.register_hook(on_device if self.holds(tensor) else hook)

    # Everything else

    def _call(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        device = kwargs.get("device")
        given = _tensors((args, kwargs))
        if name == "__setitem__" and not _tensors(args[1:2]):
            given = given[:1]  # the value is copied
        held = [self.holds(tensor) for tensor in given]
        on_device = any(held)
        if on_device:
            self._check_devices(name, given, held)
        if device is not None:
            on_device = self.is_own(device)
            if on_device:
                kwargs["device"] = "cpu"
        if kwargs.pop("pin_memory", False):
            self._pin(torch.empty(0))
        generator = kwargs.get("generator")
        wanted = self.device.type if on_device else "cpu"
        if generator is not None and generator.device.type != wanted:
            raise RuntimeError(
                f"Expected a {wanted!r} device type for generator but found "
                f"{generator.device.type!r}."
            )
        if on_device and given:
            self.read += sum(tensor.numel() for tensor in given)
            args, kwargs = self._autocast(name, given, args, kwargs)
            self._check_types(name, args, kwargs)
        with self._own_random_numbers() if on_device and name in _RANDOM else _NOTHING:
            result = func(*args, **kwargs)
        if on_device:
            for tensor in _tensors((result,)):
                self.put(tensor)
        return result

    def _check_devices(self, name: str, given: list[torch.Tensor], held: list[bool]) -> None:
        others = [t for t, own in zip(given, held, strict=True) if not own and t.dim()]
        if others and name in _CPU_INDICES and held[0]:
            others = [t for t in others if t.dtype not in (torch.int64, torch.bool)]
        if others:
            raise RuntimeError(
                f"Expected all tensors of `{name}` to be on one device, but found {self.device} "
                "and cpu."
            )

    def _autocast(self, name: str, given: list[torch.Tensor], args: Any, kwargs: Any) -> Any:
        kind, name = self.device.type, _SAME.get(name, name)
        if not torch.is_autocast_enabled(kind):
            return args, kwargs
        if name == "binary_cross_entropy":
            raise RuntimeError("`binary_cross_entropy` is unsafe to autocast.")
        if name in LOWER:
            return self._cast((args, kwargs), torch.get_autocast_dtype(kind), None)
        if name in FULL or (name in WIDEST and any(t.dtype == torch.float32 for t in given)):
            return self._cast((args, kwargs), torch.float32, _HALF)
        return args, kwargs

    def _cast(self, values: Any, dtype: torch.dtype, only: tuple[torch.dtype, ...] | None) -> Any:
        if isinstance(values, torch.Tensor):
            if not self.holds(values) or not values.is_floating_point():
                return values
            if values.dtype == torch.float64 or (only and values.dtype not in only):
                return values
            return self.put(values.to(dtype))
        if isinstance(values, dict):
            return {key: self._cast(value, dtype, only) for key, value in values.items()}
        if type(values) in (tuple, list):
            return type(values)(self._cast(value, dtype, only) for value in values)
        return values

    def _check_types(self, name: str, args: Any, kwargs: Any) -> None:
        one_type = _SAME.get(name, name) in _ONE_TYPE
        if not one_type and not name.startswith(_DECOMPOSITIONS):
            return
        types = {t.dtype for t in _tensors((args, kwargs)) if t.is_floating_point()}
        if one_type and len(types) > 1:
            raise RuntimeError(f"`{name}` needs one type of numbers, but got {types}.")
        if not one_type and types.intersection(_HALF):
            raise RuntimeError(f"`{name}` is not implemented for half types, but got {types}.")
        if not one_type and self.device.type == "mps":
            raise NotImplementedError(f"`{name}` is not implemented for the MPS device.")

    @contextlib.contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.random)
            yield
            self.random = torch.get_rng_state()

    def record_stream(self, tensor: torch.Tensor) -> None:
        if not self.holds(tensor):
            raise RuntimeError("`record_stream` needs a tensor of the device.")

    def seed(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed).get_state()

    def set_random_state(self, state: torch.Tensor, *_: Any) -> None:
        self.random = state.clone()

    @contextlib.contextmanager
    def capture(self, graph: Any, **_: object) -> Iterator[None]:
        """Do as ``torch.cuda.graph`` does, but run what is captured."""
        self.is_capturing, before = True, self.read
        try:
            yield
        finally:
            self.is_capturing, graph.read = False, self.read - before


_NOTHING = contextlib.nullcontext()


def _tensors(values: Any) -> list[torch.Tensor]:
    """Return all tensors in tuples, lists and dictionaries."""
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += _tensors(value)
        elif isinstance(value, dict):
            found += _tensors(value.values())
    return found


@contextlib.contextmanager
def fake_device(
    kind: str, *, bfloat16: bool = True, free_bytes: int = 2**30
) -> Iterator[torch.device]:
    """Let PyTorch find one device of a kind inside the block.

    Args:
        kind: ``"cuda"`` or ``"mps"``.
        bfloat16: Whether a GPU of NVIDIA has bfloat16, or emulates it.
        free_bytes: Free memory that the device tells; it has more.
    """
    mode = _FakeDevice(kind)
    with pytest.MonkeyPatch.context() as patch:
        for owner, functions in replaced_functions(mode, bfloat16, free_bytes).items():
            for name, function in functions.items():
                patch.setattr(owner, name, function, raising=False)
        patch.setattr(_FakeDevice, "current", mode, raising=False)
        with mode:
            yield mode.device


def fake_seconds() -> float:
    """Return the time of the fake device: a nanosecond for each number that it has read."""
    return 1e-9 * _FakeDevice.current.read
