"""Options that all loaders of images share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vit_ratio_opt.data.preprocessing import Preprocessing, to_height_and_width

__all__ = ["LoadOptions", "read_arguments"]

_MEMORY_LIMIT = 4 * 2**30
_PREPROCESSING = ("mean", "std", "image_size", "interpolation", "crop", "squash")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of a loader of images that are rarely needed.

    Args:
        mean: Mean of each channel, for pixels in [0, 1]; that of ``preprocess`` by default.
        std: Standard deviation of each channel; that of ``preprocess`` by default.
        val_fraction: Share of the training images that validates if the validation split is taken
            from them, in (0, 1).
        flip: Whether a mirrored image keeps its label.
        exif_rotation: Whether photographs are rotated by their EXIF orientation; torchvision and
            timm do not rotate them.
        skip_damaged: Whether images that cannot be read are left out, instead of refusing all.
        memory_limit: Decoded images above this many bytes stay on disk.
    """

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    val_fraction: float = 0.1
    flip: bool = True
    exif_rotation: bool = False
    skip_damaged: bool = False
    memory_limit: int = _MEMORY_LIMIT


def read_arguments(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a loader that stored this ``ImageData.source``.

    Args:
        stored: The source, without its ``loader``.

    Raises:
        KeyError: The preprocessing is incomplete.
    """
    arguments = dict(stored)
    if "interpolation" in arguments:
        values = {key: arguments.pop(key) for key in _PREPROCESSING if key in arguments}
        values["image_size"] = to_height_and_width(values["image_size"])
        arguments["preprocess"] = Preprocessing(**values, origin="the study")
    names = {field.name for field in fields(LoadOptions)}
    options = {name: arguments.pop(name) for name in names if name in arguments}
    return {**arguments, "options": LoadOptions(**options)}
