"""How images become the input that a model was trained with: size, crop and normalisation.

Preprocessing belongs to the model. It comes from the file's metadata, Hugging Face's
``preprocessor_config.json`` or timm's ``pretrained_cfg``; where none of these is known, what is
assumed instead carries a sentence that says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vit_ratio_opt.errors import InputError

__all__ = ["INTERPOLATIONS", "Preprocessing", "preprocess_of", "remember_preprocessing"]

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")

# Attribute of a model that is known to have been trained with these images.
_PREPROCESSING = "vit_ratio_opt_preprocessing"


@dataclass(frozen=True)
class Preprocessing:
    """How a model's images are resized, cropped and normalised.

    Args:
        mean: Mean of each channel, of pixels in [0, 1].
        std: Standard deviation of each channel, likewise; above 0.
        image_size: Height and width of the model's input, in pixels.
        interpolation: One of :data:`INTERPOLATIONS`.
        crop: Share of the resized shorter side that the centre crop keeps, in (0, 1]; timm's
            ``crop_pct``.
        origin: Where these values come from, for messages.
        is_assumed: Whether nothing says that the model was trained with them.

    Raises:
        InputError: A value is of another kind or out of range.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    interpolation: str = "bilinear"
    crop: float = 1.0
    origin: str = "the caller"
    is_assumed: bool = False

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
        if not all(value > 0 for value in self.std):
            raise InputError(f"`std` must be above 0 in each channel, but got {self.std!r:.80}.")
        if len(self.image_size) != 2 or not all(
            type(side) is int and side > 0 for side in self.image_size
        ):
            raise InputError(
                "`image_size` must be a height and a width in pixels, but got "
                f"{self.image_size!r:.80}."
            )
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"`interpolation` must be one of {INTERPOLATIONS}, but got "
                f"{self.interpolation!r:.80}."
            )
        if not 0 < self.crop <= 1:
            raise InputError(f"`crop` must be above 0 and at most 1, but got {self.crop!r:.80}.")

    def to_json(self) -> dict[str, Any]:
        """Return the values as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], origin: str | None = None) -> Preprocessing:
        """Return the preprocessing that :meth:`to_json` gave.

        Args:
            stored: The JSON object.
            origin: Replaces the stored origin.

        Raises:
            InputError: It is damaged.
        """
        try:
            values = {**stored, **({} if origin is None else {"origin": origin})}
            return cls(**values)
        except TypeError:
            raise InputError(f"The preprocessing is damaged: {stored!r:.200}.") from None


def remember_preprocessing(model: Any, preprocessing: Preprocessing) -> None:
    """Make :func:`preprocess_of` return ``preprocessing`` for ``model`` and its pruned copies."""
    setattr(model, _PREPROCESSING, preprocessing)


def preprocess_of(model: Any) -> Preprocessing | None:
    """Return the preprocessing that ``model`` was trained with; None where nothing is known."""
    known: Preprocessing | None = getattr(model, _PREPROCESSING, None)
    return known


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
