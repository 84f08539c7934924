"""Take the preprocessing of images from timm's configurations, and keep it with the model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vit_ratio_opt.data.preprocessing import INTERPOLATIONS, Preprocessing, remember_preprocessing
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT

__all__ = [
    "parse_timm_config",
    "fit_preprocessing",
    "remember",
    "remember_timm_config",
    "parse_preprocessing",
]

_logger = logging.getLogger(f"optuna.{__name__}")


def parse_timm_config(
    config: Any, model: ViT, *, origin: str, is_assumed: bool = False
) -> Preprocessing | None:
    """Return the preprocessing that timm's ``pretrained_cfg`` gives.

    Args:
        config: The configuration.
        model: Model with the size of the images and the number of channels.
        origin: Origin of the configuration, for messages.
        is_assumed: Whether the model may have been trained with another preprocessing.

    Returns:
        None where the configuration gives none, or one for another number of channels.

    Raises:
        InputError: The configuration is damaged.
    """
    if not isinstance(config, Mapping) or "mean" not in config or "std" not in config:
        return None
    mean, std = config["mean"], config["std"]
    if isinstance(mean, (list, tuple)) and len(mean) != model.patch_embed.proj.in_channels:
        return None
    interpolation = config.get("interpolation") or "bilinear"
    mode = config.get("crop_mode") or "center"
    if interpolation not in INTERPOLATIONS:
        raise InputError(
            f"{origin} has the interpolation {interpolation!r:.40}, which is unknown."
        )
    if mode not in ("center", "squash") and not is_assumed:
        _logger.warning(
            f"{origin} resizes images by crop_mode {mode!r:.40}; here the shorter side is resized "
            "and the centre is cropped, which differs for images that are not square."
        )
    sides = tuple(map(int, model.patch_embed.img_size))
    crop = config.get("crop_pct") or 1.0
    return Preprocessing(
        mean,
        std,
        sides,  # type: ignore[arg-type]
        interpolation,
        crop,
        origin,
        is_assumed,
        squash=mode == "squash",
    )


def remember_timm_config(model: ViT, *, origin: str, is_assumed: bool = False) -> None:
    """Remember the preprocessing of the ``pretrained_cfg`` that a timm model has.

    Args:
        model: The model.
        origin: Origin of the configuration, for messages.
        is_assumed: Whether the model may have been trained with another preprocessing.

    Raises:
        InputError: The configuration is damaged.
    """
    config = getattr(model, "pretrained_cfg", None)
    known = parse_timm_config(config, model, origin=origin, is_assumed=is_assumed)
    if known is not None:
        remember_preprocessing(model, known)


def remember(where: object, model: ViT, known: Preprocessing | None) -> None:
    """Remember a model's preprocessing, for images of the model's size.

    Args:
        where: Source of the preprocessing, for messages.
        model: The model.
        known: The preprocessing; None changes nothing.

    Raises:
        InputError: The preprocessing is for another number of channels.
    """
    known = fit_preprocessing(where, model, known)
    if known is not None:
        remember_preprocessing(model, known)


def fit_preprocessing(
    where: object, model: ViT, known: Preprocessing | None
) -> Preprocessing | None:
    """Return the preprocessing for images of the model's size, which may have been changed.

    Args:
        where: Source of the preprocessing, for messages.
        model: The model.
        known: The preprocessing, or None.

    Raises:
        InputError: The preprocessing is for another number of channels.
    """
    if known is None:
        return None
    channels = model.patch_embed.proj.in_channels
    if len(known.mean) != channels:
        raise InputError(
            f"{where} has mean and std of {len(known.mean)} channels, but the model takes images "
            f"of {channels}."
        )
    return replace(known, image_size=tuple(model.patch_embed.img_size))


def parse_preprocessing(where: object, stored: Any) -> Preprocessing:
    """Return the preprocessing that a file holds as JSON.

    Args:
        where: The file, for messages.
        stored: The JSON value.

    Raises:
        InputError: The value is damaged.
    """
    if not isinstance(stored, dict):
        raise InputError(f"{where} has a damaged preprocessing: {stored!r:.80}.")
    return Preprocessing.from_json(stored)
