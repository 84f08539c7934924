"""The state of a training after an epoch, so that a killed one goes on as if nothing had been."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.files import replacing

__all__ = ["TrainingState"]


class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class TrainingState:
    """What a training has to put by, and the file that it is put into.

    Args:
        path: The file; it is there whole or not at all.
        training: What says that it is the same training, of JSON values.
        parts: Model, optimiser and the like.
        generator: Of the order of the images.
        device: Whose random state counts too.
    """

    path: Path
    training: Mapping[str, Any]
    parts: Mapping[str, _Stateful]
    generator: torch.Generator
    device: torch.device

    def save(self, **progress: float) -> None:
        """Write everything, and how far the training is.

        Raises:
            InputError: The file cannot be written.
        """
        cuda = self.device.type == "cuda"
        state = {
            "training": dict(self.training),
            "progress": progress,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as partial:
                torch.save(state, partial)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}.") from None

    def load(self) -> dict[str, float]:
        """Put everything back to where :meth:`save` found it.

        Returns:
            The progress; nothing, and nothing changed, where there is no file.

        Raises:
            InputError: The file is damaged or of another training.
        """
        path = self.path
        if not path.exists():
            return {}
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            stored, progress = state["training"], state["progress"]
        except Exception as error:  # torch raises many kinds for a damaged file
            raise InputError(
                f"{path} is no readable state of a training ({type(error).__name__}): remove it "
                "to begin again."
            ) from None
        differing = sorted(key for key in self.training if stored.get(key) != self.training[key])
        if differing:
            raise InputError(
                f"{path} is of a training with other {', '.join(differing)}: name another file, "
                "or remove it to begin again."
            )
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)
        return dict(progress)
