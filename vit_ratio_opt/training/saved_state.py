"""The saved state of a training, from which a killed or preempted one resumes exactly.

Tensors are stored as safetensors, everything else as JSON in the header, so that reading a file
runs no code.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.device import random_state, set_random_state
from vit_ratio_opt.utils.files import replacing, why_not

__all__ = ["TrainingState", "checksum", "stored_training"]

_logger = logging.getLogger(f"optuna.{__name__}")
_FORMAT = "vit_ratio_opt training/1"


class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class TrainingState:
    """The state of a training and the file that it is saved in.

    Args:
        path: The file, which is written as a whole or not at all.
        training: JSON values that identify the training. A file with other values is refused.
        parts: Model, optimiser and other objects with a ``state_dict``, by name.
        generator: Draws the order of the images, and their augmentation.
        device: Device of the training; its random state is saved if it is a GPU.
    """

    path: Path
    training: Mapping[str, Any]
    parts: Mapping[str, _Stateful]
    generator: torch.Generator
    device: torch.device

    def save(self, order: torch.Tensor, progress: Mapping[str, float | None]) -> None:
        """Write the file.

        Args:
            order: State that the generator had when the order of the epoch's images was drawn.
            progress: Position in the training, as :meth:`load` returns it.

        Raises:
            InputError: The file cannot be written.
        """
        state = {
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "order": order,
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "device": self.device.type,
            "device_random": random_state(self.device),
        }
        tensors: dict[str, torch.Tensor] = {}
        metadata = {
            "format": _FORMAT,
            "training": json.dumps(dict(self.training)),
            "progress": json.dumps(dict(progress)),
            "state": json.dumps(_pack(state, tensors)),
        }
        metadata["checksum"] = checksum(tensors, metadata)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as partial:
                save_file(tensors, partial, metadata)
        except Exception as error:  # errors of the disk, some of them raised as safetensors' own
            raise InputError(f"{self.path} cannot be written: {why_not(error)}") from None

    def load(self) -> tuple[torch.Tensor, dict[str, Any]]:
        """Restore the state that :meth:`save` wrote; without a file, nothing changes.

        Returns:
            ``order`` and ``progress`` of :meth:`save`. Without a file, the generator's state and
            an empty dictionary.

        Raises:
            InputError: The file is damaged, or of another training or another model. Parts may
                have changed before the error.
        """
        path = self.path
        if not path.exists():
            return self.generator.get_state(), {}
        try:
            with safe_open(path, framework="pt") as file:
                metadata = _metadata(file)
                stored = json.loads(metadata["training"])
                progress = json.loads(metadata["progress"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                state = _unpack(json.loads(metadata["state"]), tensors)
            stored_sum = metadata.pop("checksum", None)  # version 0.1.0 wrote none
            if stored_sum is not None and stored_sum != checksum(tensors, metadata):
                raise ValueError("its checksum differs")
        except Exception as error:  # safetensors and JSON raise many kinds for a damaged file
            raise _unreadable(path, error) from None
        wanted = json.loads(json.dumps(dict(self.training)))
        differing = {key for key in wanted if stored.get(key) != wanted[key]}
        if "precision" in differing:  # a device of another kind may lack the old one
            _logger.warning(
                f"The training of {path} goes on in {wanted['precision']}: it was begun in "
                f"{stored.get('precision')}."
            )
            differing.remove("precision")
        if differing:
            raise InputError(
                f"{path} is of a training with other {', '.join(sorted(differing))}: name another "
                "file, or remove it to start again."
            )
        try:
            for name, part in self.parts.items():
                values = state["parts"][name]
                if values or not isinstance(part, torch.amp.GradScaler):  # idle in the other one
                    part.load_state_dict(values)
            self._check_optimizer()
            self.generator.set_state(state["generator"])
            torch.set_rng_state(state["random"])
            self._set_device_random(state)
            return state["order"], dict(progress)
        except Exception as error:  # torch raises many kinds for what does not fit
            raise InputError(
                f"{path} does not fit the model ({type(error).__name__}: {error!s:.200}): "
                "remove it to start again."
            ) from None

    def _set_device_random(self, state: Mapping[str, Any]) -> None:
        """Go on with the device's random numbers if the file is of a device of the same kind."""
        kind, own = state.get("device"), state.get("device_random")
        if kind is None:  # version 0.1.0 knew CUDA only
            kind, own = "cuda", state["cuda"]
        if kind == self.device.type and own is not None:
            set_random_state(own, self.device)

    def _check_optimizer(self) -> None:
        """Refuse moments of other shapes: torch compares the shapes of a model's weights only."""
        for part in self.parts.values():
            if isinstance(part, torch.optim.Optimizer):
                for parameter, values in part.state.items():
                    for value in values.values():
                        is_tensor = isinstance(value, torch.Tensor) and value.dim()
                        if is_tensor and value.shape != parameter.shape:
                            raise ValueError(f"the optimiser has {tuple(value.shape)}")


def stored_training(path: Path) -> dict[str, Any]:
    """Return the JSON values that identify the training of a file, see :class:`TrainingState`.

    Raises:
        InputError: The file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(json.loads(_metadata(file)["training"]))
    except Exception as error:  # safetensors and JSON raise many kinds for a damaged file
        raise _unreadable(path, error) from None


def _metadata(file: Any) -> dict[str, str]:
    """Return the header of a file of this format, opened by ``safe_open``."""
    metadata: dict[str, str] = file.metadata() or {}
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"its format is {metadata.get('format')!r}")
    return metadata


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is no readable state of a training ({type(error).__name__}: {error}): "
        "remove it to start again."
    )


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return ``value`` as JSON and add its tensors to ``tensors``. Tuples become lists."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):  # not an object: an optimiser's keys are numbers
        return {"items": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_pack(item, tensors) for item in value]
    return value


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unpack(item, tensors) for key, item in value["items"]}
    return value


def checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Return a checksum of a file's content, which reveals damage but no malice."""
    found = zlib.crc32(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, found)
    return str(found)
