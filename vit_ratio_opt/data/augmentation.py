"""Random changes of whole batches of training images, on their device.

torchvision's transforms draw once for a batch, or run image by image. These draw for each image,
on the CPU, so that a seed gives the same images on every device.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from vit_ratio_opt.data.feed import to_device
from vit_ratio_opt.data.task import Augmentation
from vit_ratio_opt.errors import InputError

__all__ = ["SMALL", "augment_images", "mix_or_cut", "shift"]

SMALL = 64
"""Images whose shorter side has at most this many pixels are shifted, larger ones cropped."""

# timm's and DeiT's defaults.
_AREA, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_ERASED_SHARE, _ERASED_AREA, _ERASED_RATIO = 0.25, (0.02, 1 / 3), (0.3, 1 / 0.3)
_OPERATIONS, _STRENGTH = 2, 9
_MIXUP, _CUTMIX = 0.8, 1.0
# Images that share a draw of RandAugment: other ones in the second draw.
_ALIKE = 8


def augment_images(
    images: torch.Tensor,
    generator: torch.Generator,
    how: Augmentation | bool,
    *,
    flip: bool,
    mean: Sequence[float],
) -> torch.Tensor:
    """Return changed images, uint8, as :class:`~vit_ratio_opt.Recipe` describes ``augment``.

    Args:
        images: uint8, ``(batch, channels, height, width)``.
        generator: On the CPU.
        how: The augmentation; False for none, True for shifts and mirror images.
        flip: Whether half of the images are mirrored.
        mean: Mean of each channel, of pixels in [0, 1], which fills what is cut away.

    Raises:
        InputError: Images of another number of channels than 1 or 3 have no strong augmentation.
    """
    if not how:
        return images
    is_small = min(images.shape[-2:]) <= SMALL
    move = shift if how is True or is_small else crop
    images = move(images, generator, flip=flip)
    if how != "strong":
        return images
    if len(mean) not in (1, 3):
        raise InputError(
            "`augment='strong'` changes colours, but the images have "
            f"{len(mean)} channels: use 'crop'."
        )
    fill = [round(255 * value) for value in mean]
    return erase(_rand_augment(images, generator, fill), generator, fill)


def shift(images: torch.Tensor, generator: torch.Generator, *, flip: bool) -> torch.Tensor:
    """Shift every image by up to an eighth of its size, and mirror half if ``flip``."""
    n, _, height, width = images.shape
    pad = max(1, height // 8)
    padded = F.pad(images, (pad, pad, pad, pad))
    moved = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=generator)
    rows = moved[0] + torch.arange(height)
    columns = moved[1] + torch.arange(width)
    if flip:
        mirrored = torch.rand((n, 1), generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(n)[:, None, None]
    rows, columns = rows[:, :, None], columns[:, None, :]
    index, rows, columns = (to_device(part, images.device) for part in (index, rows, columns))
    # Advanced indices around a slice put the channels last; moving them back is free.
    chosen = padded[index, :, rows, columns]
    return chosen.movedim(-1, 1).contiguous()


def crop(images: torch.Tensor, generator: torch.Generator, *, flip: bool) -> torch.Tensor:
    """Enlarge a random part of each image to the image's size, and mirror half if ``flip``.

    The part has 8 to 100 % of the area and, where it fits, an aspect ratio of 3:4 to 4:3, as
    timm's ``RandomResizedCrop``.
    """
    n = len(images)
    sides = _draw_sides(images.shape, generator, _AREA, _RATIO)
    starts = torch.rand((2, n), generator=generator) * (1 - sides)
    centres = 2 * starts + sides - 1  # of -1 to 1
    if flip:
        sides[1] *= 1 - 2 * (torch.rand(n, generator=generator) < 0.5).float()
    zeros = torch.zeros(n)
    rows = torch.stack((sides[1], zeros, centres[1])), torch.stack((zeros, sides[0], centres[0]))
    maps = to_device(torch.stack(rows).permute(2, 0, 1), images.device)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    # Reflection gives what the border does here, and Apple's GPUs have it.
    parts = F.grid_sample(
        images.float(), grid, padding_mode="reflection", align_corners=False
    )  # enlarges, so that nothing aliases
    return parts.round_().clamp_(0, 255).to(torch.uint8)


def erase(images: torch.Tensor, generator: torch.Generator, fill: Sequence[int]) -> torch.Tensor:
    """Fill a random box of a quarter of the images with one colour (Zhong 2020)."""
    n, _, height, width = images.shape
    sides = _draw_sides(images.shape, generator, _ERASED_AREA, _ERASED_RATIO)
    starts = torch.rand((2, n), generator=generator) * (1 - sides)
    is_erased = torch.rand(n, generator=generator) < _ERASED_SHARE

    def inside(size: int, start: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
        position = (torch.arange(size) + 0.5) / size
        return (position >= start[:, None]) & (position < (start + side)[:, None])

    rows = inside(height, starts[0], sides[0]) & is_erased[:, None]
    columns = inside(width, starts[1], sides[1])
    rows, columns = (to_device(part, images.device) for part in (rows, columns))
    box = rows[:, None, :, None] & columns[:, None, None, :]
    colour = torch.tensor(fill, dtype=torch.uint8, device=images.device).view(-1, 1, 1)
    return torch.where(box, colour, images)


def _draw_sides(
    shape: Sequence[int],
    generator: torch.Generator,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> torch.Tensor:
    """Return heights and widths of boxes as shares of the image's, ``(2, images)``."""
    n, _, height, width = shape
    areas = area[0] + (area[1] - area[0]) * torch.rand(n, generator=generator)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios = torch.exp(low + (high - low) * torch.rand(n, generator=generator)) * height / width
    return torch.stack(((areas / ratios).sqrt(), (areas * ratios).sqrt())).clamp_(max=1)


def _rand_augment(
    images: torch.Tensor, generator: torch.Generator, fill: list[int]
) -> torch.Tensor:
    """Apply two operations of RandAugment (Cubuk 2020), drawn for few images at once."""
    change = v2.RandAugment(num_ops=1, magnitude=_STRENGTH, fill=fill)
    with _drawing_from(generator):
        for _ in range(_OPERATIONS):
            changed = torch.empty_like(images)
            order = to_device(torch.randperm(len(images)), images.device)
            for alike in torch.split(order, _ALIKE):
                changed[alike] = change(images[alike])
            images = changed
    return images


def mix_or_cut(
    classes: int, generator: torch.Generator
) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Return a function that mixes images and labels by MixUp or CutMix, with even chances."""
    mixes = [
        v2.MixUp(alpha=_MIXUP, num_classes=classes),
        v2.CutMix(alpha=_CUTMIX, num_classes=classes),
    ]

    def mix(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with _drawing_from(generator):
            chosen = mixes[int(torch.randint(len(mixes), ()))]
            mixed: tuple[torch.Tensor, torch.Tensor] = chosen(images, labels)
            return mixed

    return mix


@contextlib.contextmanager
def _drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let torchvision, which knows only PyTorch's global generator, draw from another one."""
    with torch.random.fork_rng(devices=[]):
        seed = int(torch.randint(2**62, (), generator=generator))
        torch.default_generator.manual_seed(seed)  # not those of GPUs
        yield
