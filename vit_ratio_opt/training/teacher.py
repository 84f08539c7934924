"""A teacher that is not the dense model, such as the convolutional network of DeiT."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.preprocessing import preprocess_of
from vit_ratio_opt.errors import InputError

__all__ = ["OtherTeacher"]


class OtherTeacher(nn.Module):
    """A copy of a trained model that sees images in its own normalisation and stays as it is.

    Args:
        model: Model that returns logits ``(batch, classes)`` or values ``(batch, targets)``. Its
            normalisation is the one that this package or timm stores with it, else that of the
            data.
        data: The data set, whose normalisation the trained models have.

    Raises:
        InputError: The model has another number of outputs, or does not take the images.
    """

    factor: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: nn.Module, data: ImageData) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in _normalisation(model, data))
        ours, scale = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
        self.register_buffer("factor", scale / std)
        self.register_buffer("shift", (ours - mean) / std)
        images, _ = next(data.batches(data.train.subset(torch.arange(1)), 1, torch.device("cpu")))
        device = next(self.model.parameters()).device
        self.to(device)
        try:
            with torch.no_grad():
                outputs = self(images.to(device))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise InputError(
                f"The teacher does not take images of {tuple(data.image_shape)}: {error!s:.200}"
            ) from None
        wanted = (1, len(data.classes))
        if not isinstance(outputs, torch.Tensor) or outputs.shape != wanted:
            shape = tuple(getattr(outputs, "shape", ()))
            raise InputError(
                f"The teacher must give {wanted[1]} outputs for an image of {data.name}, but gave "
                f"the shape {shape}."
            )

    def train(self, mode: bool = True) -> OtherTeacher:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the teacher's outputs for images in the normalisation of the data set."""
        outputs: torch.Tensor = self.model(images * self.factor + self.shift)
        return outputs


def _normalisation(model: nn.Module, data: ImageData) -> tuple[Any, Any]:
    """Return mean and standard deviation of the images that a model was trained with."""
    known = preprocess_of(model)
    if known is not None:
        return known.mean, known.std
    config = getattr(model, "pretrained_cfg", None)  # timm's, for three channels whatever it takes
    if isinstance(config, Mapping) and config.get("mean") and config.get("std"):
        mean, std = tuple(config["mean"]), tuple(config["std"])
        if len(mean) == len(std) == len(data.mean):
            return mean, std
    return data.mean, data.std
