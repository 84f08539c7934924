"""Training images for the calibration and the screening of a dense model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from vit_ratio_opt.data.image_data import ImageData

__all__ = ["calibration_batches", "other_batches"]

_BATCH = 128


def calibration_batches(
    data: ImageData, images: int, *, seed: int, device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return normalised batches of the first shuffled training images, with their labels.

    Args:
        data: The data set.
        images: Number of images.
        seed: Random seed of the shuffling.
        device: Device of the batches.
    """
    return list(_batches(data, seed, device, lambda order: order[:images]))


def other_batches(
    data: ImageData, images: int, *, seed: int, device: torch.device
) -> list[torch.Tensor]:
    """Return normalised batches of the training images that follow the calibration's.

    A reconstruction is at its best on the images that it was fitted to. Of a small data set, the
    calibration's own images are returned.

    Args:
        data: The data set.
        images: Number of calibration images, and largest number of returned images.
        seed: Random seed of the shuffling.
        device: Device of the batches.
    """

    def choose(order: torch.Tensor) -> torch.Tensor:
        return (order[images:] if len(order) > images else order)[:images]

    return [batch for batch, _ in _batches(data, seed, device, choose)]


def _batches(
    data: ImageData,
    seed: int,
    device: torch.device,
    choose: Callable[[torch.Tensor], torch.Tensor],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    return data.batches(data.train.subset(choose(order)), _BATCH, device)
