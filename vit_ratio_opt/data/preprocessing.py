"""The preprocessing of images for a model: size, crop and normalisation.

Preprocessing belongs to the model. It comes from the file's metadata, Hugging Face's
``preprocessor_config.json`` or timm's ``pretrained_cfg``. If none of these is known, it is
assumed, and marked as an assumption.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from vit_ratio_opt.errors import InputError

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "INTERPOLATIONS",
    "LARGEST_SIDE",
    "Preprocessing",
    "to_height_and_width",
    "check_channels",
    "find_differences",
    "to_floats",
    "preprocess_of",
    "preprocess_or_assume",
    "remember_preprocessing",
    "resolve_preprocessing",
    "warn_if_assumed",
]

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")

LARGEST_SIDE = 8192
"""Largest side of a model's input, in pixels."""

_logger = logging.getLogger(f"optuna.{__name__}")

# Means and deviations that differ by less are the same values after rounding.
_ROUNDED = 2e-3
# Attribute of a model that holds its preprocessing.
_PREPROCESSING = "vit_ratio_opt_preprocessing"


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of a model's images: size, crop and normalisation.

    Args:
        mean: Mean of each channel, of pixels in [0, 1].
        std: Standard deviation of each channel, of pixels in [0, 1]; above 0.
        image_size: Height and width of the model's input, in pixels.
        interpolation: One of :data:`INTERPOLATIONS`.
        crop: Share of the resized shorter side that the centre crop keeps, in (0, 1]; timm's
            ``crop_pct``.
        origin: Origin of the values, for messages.
        is_assumed: Whether it is unknown that the model was trained with these values.
        squash: Whether the whole image is resized to ``image_size`` and loses its proportions, as
            by Hugging Face's ViT processor, instead of keeping them and cutting off the rest.

    Raises:
        InputError: A value has another type or is out of range.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    interpolation: str = "bilinear"
    crop: float = 1.0
    origin: str = "the caller"
    is_assumed: bool = False
    squash: bool = False

    def __post_init__(self) -> None:
        for name in ("mean", "std", "image_size"):  # lists, of JSON
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)):
                raise InputError(f"`{name}` must be a sequence of numbers, but got {value!r:.80}.")
            object.__setattr__(self, name, tuple(value))
        numbers = (*self.mean, *self.std, self.crop)
        if not self.mean or len(self.mean) != len(self.std) or not all(map(_is_finite, numbers)):
            raise InputError(
                "`mean` and `std` must have one finite number for each channel, but got "
                f"{self.mean!r:.80} and {self.std!r:.80}."
            )
        if any(value > 1 for value in (*self.mean, *self.std)):
            raise InputError(
                "`mean` and `std` are of pixels in [0, 1], but got "
                f"{self.mean!r:.80} and {self.std!r:.80}: divide by 255."
            )
        if not all(value >= 0 for value in self.mean) or not all(value > 0 for value in self.std):
            raise InputError(
                "`mean` must be at least 0 and `std` above 0 in each channel, but got "
                f"{self.mean!r:.80} and {self.std!r:.80}."
            )
        if len(self.image_size) != 2 or not all(
            type(side) is int and 0 < side <= LARGEST_SIDE for side in self.image_size
        ):
            raise InputError(
                f"`image_size` must be a height and a width from 1 to {LARGEST_SIDE} pixels, but "
                f"got {self.image_size!r:.80}."
            )
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"`interpolation` must be one of {INTERPOLATIONS}, but got "
                f"{self.interpolation!r:.80}."
            )
        if not 0 < self.crop <= 1:
            raise InputError(f"`crop` must be above 0 and at most 1, but got {self.crop!r:.80}.")
        for name in ("is_assumed", "squash"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"`{name}` must be true or false.")

    def to_json(self) -> dict[str, Any]:
        """Return the values as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], origin: str | None = None) -> Preprocessing:
        """Return the preprocessing that :meth:`to_json` gave.

        Args:
            stored: The JSON object.
            origin: Replaces the stored origin, unless it is None.

        Raises:
            InputError: The object is damaged.
        """
        try:
            values = {**stored, **({} if origin is None else {"origin": origin})}
            return cls(**values)
        except TypeError:
            raise InputError(f"The preprocessing is damaged: {stored!r:.200}.") from None

    def describe_normalisation(self) -> str:
        """Return mean and standard deviation as part of a sentence."""
        mean, std = (
            ", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std)
        )
        return f"mean ({mean}) and std ({std})"

    def describe_crop(self) -> str:
        """Return how images are brought to size, as part of a sentence."""
        whole = "squashed to size" if self.squash else "cut to the centre"
        return whole if self.crop == 1 else f"{whole} at crop {self.crop:.4g}"


def remember_preprocessing(model: Any, preprocessing: Preprocessing) -> None:
    """Make :func:`preprocess_of` return ``preprocessing`` for ``model`` and its pruned copies."""
    setattr(model, _PREPROCESSING, preprocessing)


def preprocess_of(model: Any) -> Preprocessing | None:
    """Return the preprocessing that ``model`` was trained with; None if it is unknown."""
    known: Preprocessing | None = getattr(model, _PREPROCESSING, None)
    return known


def preprocess_or_assume(model: Any) -> Preprocessing:
    """Return the preprocessing that ``model`` was trained with; assume CIFAR-10's if unknown.

    Files of version 0.1.0 do not name their normalisation; by default it was CIFAR-10's.
    """
    known = preprocess_of(model)
    size = tuple(int(side) for side in model.patch_embed.img_size)
    return known or _assumed(model.patch_embed.proj.in_channels, size)


def _assumed(channels: int, size: Any) -> Preprocessing:
    is_rgb = channels == 3
    return Preprocessing(
        CIFAR10_MEAN if is_rgb else (0.5,) * channels,
        CIFAR10_STD if is_rgb else (0.5,) * channels,
        size,
        origin="CIFAR-10's, as version 0.1.0 did" if is_rgb else "half the range",
        is_assumed=True,
    )


def find_differences(trained: Preprocessing, given: Preprocessing) -> list[str]:
    """Return one clause for each difference between two preprocessings.

    Args:
        trained: Preprocessing that the model was trained with.
        given: Preprocessing of the images.
    """
    clauses = []
    pairs = zip((*trained.mean, *trained.std), (*given.mean, *given.std), strict=False)
    is_same_length = len(trained.mean) == len(given.mean)
    if not is_same_length or any(abs(one - other) > _ROUNDED for one, other in pairs):
        clauses.append(f"{given.describe_normalisation()}, not {trained.describe_normalisation()}")
    if trained.image_size != given.image_size:
        height, width = trained.image_size
        clauses.append(
            f"{given.image_size[0]} x {given.image_size[1]} pixels, not {height} x {width}"
        )
    if trained.interpolation != given.interpolation:
        clauses.append(f"{given.interpolation} interpolation, not {trained.interpolation}")
    if abs(trained.crop - given.crop) > _ROUNDED or trained.squash != given.squash:
        clauses.append(f"{given.describe_crop()}, not {trained.describe_crop()}")
    return clauses


def resolve_preprocessing(
    name: str,
    shape: Sequence[int],
    preprocess: Preprocessing | None,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    image_size: int | Sequence[int] | None = None,
) -> Preprocessing:
    """Return the preprocessing of a data set.

    Args:
        name: Name of the data set, for messages.
        shape: Channels, height and width of its first image.
        preprocess: The model's preprocessing, if it is known.
        mean: Replaces the mean of ``preprocess``.
        std: Replaces the standard deviation of ``preprocess``.
        image_size: Replaces the size of ``preprocess``.

    Raises:
        InputError: A value has another type, another number of channels, or is out of range.
    """
    if preprocess is not None and not isinstance(preprocess, Preprocessing):
        raise InputError(f"`preprocess` must be a Preprocessing, but got {preprocess!r:.80}.")
    channels, side = shape[0], min(shape[1:])
    if preprocess is None:
        preprocess = _assumed(channels, to_height_and_width(image_size or side))
    changes: dict[str, Any] = {}
    if mean is not None:
        changes["mean"] = to_floats(mean)
    if std is not None:
        changes["std"] = to_floats(std)
    if image_size is not None:
        changes["image_size"] = to_height_and_width(image_size)
    if mean is not None and std is not None:
        changes["is_assumed"] = False
    check_channels(
        name, channels, changes.get("mean", preprocess.mean), changes.get("std", preprocess.std)
    )
    return replace(preprocess, **changes)


def warn_if_assumed(name: str, resolved: Preprocessing) -> None:
    """Warn if the normalisation of a data set is only assumed.

    Args:
        name: Name of the data set.
        resolved: Preprocessing that :func:`resolve_preprocessing` returned.
    """
    if resolved.is_assumed:
        _logger.warning(
            f"{name}: the normalisation that the model was trained with is unknown, so "
            f"{resolved.describe_normalisation()} are assumed ({resolved.origin}). If they are "
            "wrong, give `preprocess`, or `mean` and `std` (--mean and --std)."
        )


def check_channels(name: str, channels: int, *values: Sequence[float]) -> None:
    """Refuse means or standard deviations of another number of channels than the images have."""
    if any(len(value) != channels for value in values):
        raise InputError(f"{name}: `mean` and `std` must have {channels} values, one a channel.")


def to_floats(values: Any) -> tuple[float, ...]:
    """Return means or standard deviations, from any sequence or array, as floats."""
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise InputError(
            f"`mean` and `std` must be sequences of numbers, but got {values!r:.80}."
        ) from None


def to_height_and_width(size: Any) -> Any:
    """Return height and width, from a pair or from one side of a square."""
    return (size, size) if isinstance(size, int) else size


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
