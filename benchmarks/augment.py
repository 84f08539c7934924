"""Augmentation of whole batches on their device, with other values for each image.

torchvision's transforms draw once for a batch, or run image by image on the CPU, which could not
feed a GPU that trains a small model: some tens of thousands of images a second. These draw on the
device and never wait for it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

__all__ = ["augment", "change_colours", "erase", "move"]

_COLOUR_OPERATIONS = 10
_MOVES = 6


def augment(
    images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, *, flip: bool = True
) -> torch.Tensor:
    """Return normalised images: one colour operation and one move each, some partly erased.

    Args:
        images: uint8, ``(batch, channels, height, width)``.
        mean: Of each channel, of pixels in [0, 1], ``(channels, 1, 1)``.
        std: Standard deviation, like ``mean``.
        flip: Whether half of the images are mirrored.
    """
    pixels = change_colours(images.float()) / 255
    return erase(move((pixels - mean) / std, flip=flip))  # both fill with the mean colour


def change_colours(images: torch.Tensor) -> torch.Tensor:
    """Apply one of RandAugment's colour operations (Cubuk 2020) to each image, or none.

    The strength is uniform, as in TrivialAugment (Müller 2021).

    Args:
        images: float, from 0 to 255, ``(batch, channels, height, width)``.
    """
    each = (len(images), 1, 1, 1)
    operation = torch.randint(0, _COLOUR_OPERATIONS, each, device=images.device)
    strength = torch.rand(each, device=images.device)
    grey = images.mean(1, keepdim=True)
    # Brightness, saturation, contrast and sharpness move away from, or towards, another image.
    other = images
    for number, base in enumerate(
        (images.new_zeros(()), grey, grey.mean((2, 3), True), _blur(images))
    ):
        other = torch.where(operation == number, base, other)
    changed = (other + (0.1 + 1.8 * strength) * (images - other)).clamp(0, 255)
    step = 2 ** (5 * strength).floor()
    low, high = images.amin((2, 3), True), images.amax((2, 3), True)
    for number, result in enumerate(
        (
            (images / step).floor() * step,  # posterise
            torch.where(images >= 256 * strength, 255 - images, images),  # solarise
            (images - low) * 255 / (high - low).clamp(min=1),  # stretch the contrast
            _equalise(images),
        ),
        start=4,
    ):
        changed = torch.where(operation == number, result, changed)
    return changed


def move(images: torch.Tensor, *, flip: bool = True) -> torch.Tensor:
    """Shift each image by up to an eighth, and mirror, rotate, shear or shift some of them more.

    What comes in from outside is 0.

    Args:
        images: float, ``(batch, channels, height, width)``.
        flip: Whether half of the images are mirrored.
    """
    n, _, height, width = images.shape
    device = images.device
    kind = torch.randint(0, _MOVES, (n,), device=device)

    def drawn(number: int, limit: float) -> torch.Tensor:
        """Uniform up to the limit where the image's kind of move is ``number``, else 0."""
        return (2 * torch.rand(n, device=device) - 1) * limit * (kind == number)

    angle = drawn(0, math.pi / 6)
    cos, sin = angle.cos(), angle.sin()
    sign = torch.randint(0, 2, (n,), device=device) * 2 - 1 if flip else torch.ones_like(cos)

    def shift(number: int, size: int) -> torch.Tensor:
        """Whole pixels, in units of half the image: other shifts would blur every image."""
        pad = max(1, size // 8)
        pixels = torch.randint(-pad, pad + 1, (n,), device=device)
        return (pixels + drawn(number, size / 4).round()) * 2 / size

    rows = (
        torch.stack((cos * sign, drawn(1, 0.3) - sin, shift(2, width)), dim=1),
        torch.stack(((drawn(3, 0.3) + sin) * sign, cos, shift(4, height)), dim=1),
    )
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def erase(images: torch.Tensor, *, share: float = 0.25) -> torch.Tensor:
    """Set a box of some images to 0: of 2 to 33 % of the image (Zhong 2020), less at the border.

    Args:
        images: float, ``(batch, channels, height, width)``.
        share: Of the images.
    """
    n, _, height, width = images.shape
    device = images.device
    area = 0.02 + 0.31 * torch.rand(n, 1, device=device)
    ratio = torch.exp((2 * torch.rand(n, 1, device=device) - 1) * math.log(1 / 0.3))

    def inside(size: int, extent: torch.Tensor) -> torch.Tensor:
        centre = torch.rand(n, 1, device=device) * size
        return (torch.arange(size, device=device) + 0.5 - centre).abs() < size * extent.sqrt() / 2

    box = inside(height, area * ratio)[:, :, None] & inside(width, area / ratio)[:, None, :]
    chosen = torch.rand(n, 1, 1, device=device) < share
    return images.masked_fill((box & chosen)[:, None], 0)


def _blur(images: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)


def _equalise(images: torch.Tensor) -> torch.Tensor:
    """Give each channel of each image a flat histogram."""
    levels = images.long().flatten(2)
    counts = images.new_zeros((*levels.shape[:2], 256))
    counts.scatter_add_(2, levels, torch.ones_like(levels, dtype=images.dtype))
    below = counts.cumsum(2) / levels.shape[2]
    return 255 * below.gather(2, levels).view_as(images)
