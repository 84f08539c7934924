"""Check that a model can take the batches of images that a caller gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT

__all__ = [
    "CHUNK",
    "check_images",
    "check_labels",
    "check_outputs",
    "check_sequence",
    "chunks",
    "image_batches",
    "image_means",
    "tokens_at",
]

CHUNK = 32
"""Images that pass through a model at once."""


def image_batches(model: ViT, batches: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return all batches that have images as a list.

    Raises:
        InputError: ``batches`` is no sequence of batches, or a batch does not fit the model.
    """
    check_sequence("images", batches)
    images = list(batches)
    for index, batch in enumerate(images):
        check_images(model, batch, index)
    return [batch for batch in images if len(batch)]


def image_means(batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of each image, ``(images,)``, float32, on the CPU."""
    return torch.cat([batch.mean(dim=(1, 2, 3)).float().cpu() for batch in batches])


def chunks(batches: Sequence[torch.Tensor], size: int = CHUNK) -> Iterator[torch.Tensor]:
    """Yield all images in parts small enough to pass through a model at once."""
    for batch in batches:
        yield from torch.split(batch, size)


def tokens_at(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the tokens ``(B, sampled, D)`` of ``(B, N, D)`` at positions ``(B, sampled)``."""
    count = tokens.shape[1]
    first = torch.arange(0, len(tokens) * count, count, device=positions.device)
    rows = (positions + first[:, None]).flatten()
    # Whole rows are copied: on a CPU take_along_dim is 20 times slower.
    return tokens.flatten(0, 1).index_select(0, rows).view(*positions.shape, -1)


def check_sequence(name: str, batches: object) -> None:
    """Refuse batches that are no sequence.

    Raises:
        InputError: ``batches`` is a single tensor, a dictionary or the like.
    """
    if isinstance(batches, (torch.Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise InputError(
            f"`{name}` must be a sequence of batches, but is a {type(batches).__name__}: put one "
            "batch into a list, `[batch]`."
        )


def check_images(model: ViT, batch: Any, index: int) -> None:
    """Refuse a batch that is not of normalised images of the model's size.

    Args:
        model: A supported model.
        batch: Images ``(batch, channels, height, width)``.
        index: Index of the batch, for messages.

    Raises:
        InputError: The batch is no tensor, or has another shape, type, device or values.
    """
    where = f"Batch {index} of the images"
    if not isinstance(batch, torch.Tensor):
        raise InputError(
            f"{where} must be a tensor, but is a {type(batch).__name__}: give the images alone, "
            "without labels."
        )
    weight = model.patch_embed.proj.weight
    shape = (weight.shape[1], *model.patch_embed.img_size)
    if batch.dim() != 4 or tuple(batch.shape[1:]) != shape:
        raise InputError(
            f"{where} must have shape (batch, {', '.join(map(str, shape))}), as the model takes "
            f"images, but has {tuple(batch.shape)}."
        )
    if batch.dtype != weight.dtype:
        hint = "" if batch.is_floating_point() else ", normalised as for training"
        raise InputError(
            f"{where} must be in {_name(weight.dtype)}, as the model is{hint}, but is in "
            f"{_name(batch.dtype)}."
        )
    if batch.device != weight.device:
        raise InputError(
            f"{where} must be on the model's device, {weight.device}, but is on {batch.device}."
        )
    if not bool(batch.isfinite().all()):
        raise InputError(f"{where} has values that are NaN or infinite: look at its images.")


def check_labels(labels: Any, images: torch.Tensor, classes: int, index: int) -> None:
    """Refuse labels that do not fit the images or the number of classes.

    Args:
        labels: Class indices ``(batch,)``, or probabilities ``(batch, classes)``.
        images: Images of the labels.
        classes: Number of classes of the model.
        index: Index of the batch, for messages.

    Raises:
        InputError: The labels have another shape, type or device.
    """
    where = f"The labels of batch {index}"
    if not isinstance(labels, torch.Tensor):
        raise InputError(f"{where} must be a tensor, but are a {type(labels).__name__}.")
    wanted = (len(images), classes) if labels.is_floating_point() else (len(images),)
    if tuple(labels.shape) != wanted:
        raise InputError(f"{where} must have shape {wanted}, but have {tuple(labels.shape)}.")
    if labels.device != images.device:
        raise InputError(f"{where} must be on {images.device}, but are on {labels.device}.")
    if not labels.is_floating_point() and labels.dtype != torch.int64:
        raise InputError(f"{where} must be in int64, but are in {_name(labels.dtype)}.")


def check_outputs(outputs: torch.Tensor, index: int) -> None:
    """Refuse logits or features that are not finite.

    Args:
        outputs: Logits ``(batch, classes)``, or features.
        index: Index of the batch, for messages.

    Raises:
        InputError: A value is NaN or infinite.
    """
    if not bool(outputs.isfinite().all()):
        raise InputError(
            f"The model gives NaN or infinite outputs for batch {index} of the images: look at "
            "its weights and at the normalisation of the images."
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
