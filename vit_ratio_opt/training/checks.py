"""Checks of what a trainer is given: the dense model and its images, before any training."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.preprocessing import find_differences, preprocess_of
from vit_ratio_opt.errors import InputError

__all__ = ["check_same_outputs", "warn_near_chance", "warn_of_other_preprocessing"]

# An accuracy that guessing reaches in one of 1,000 validation splits is not warned about.
_ONE_IN = 1000

_logger = logging.getLogger(f"optuna.{__name__}")


def check_same_outputs(outputs: torch.Tensor, teacher: torch.Tensor) -> None:
    """Refuse a teacher with other outputs than the model: some losses would stretch them.

    Args:
        outputs: Outputs of the model, ``(batch, ...)``.
        teacher: Outputs of the teacher for the same images.

    Raises:
        InputError: Their shapes differ.
    """
    if outputs.shape != teacher.shape:
        raise InputError(
            f"The teacher gives outputs of {tuple(teacher.shape[1:])} for an image, but the model "
            f"gives {tuple(outputs.shape[1:])}: give a teacher with the model's outputs."
        )


def warn_of_other_preprocessing(model: Any, data: ImageData) -> None:
    """Warn if images are preprocessed in another way than those that a model was trained with.

    Args:
        model: The dense model. Without a known preprocessing there is no warning.
        data: The images. Interpolation and crop are compared only if their source names them.
    """
    trained = preprocess_of(model)
    if trained is None:
        return
    given = data.preprocess
    if "interpolation" not in data.source:
        given = replace(
            given,
            interpolation=trained.interpolation,
            crop=trained.crop,
            squash=trained.squash,
        )
    found = find_differences(trained, given)
    if found:
        how = "presumably " if trained.is_assumed else ""
        _logger.warning(
            f"The images of {data.name} have {'; '.join(found)}, with which the model was {how}"
            f"trained (according to {trained.origin}). Load them with "
            "`preprocess=preprocess_of(model)`, unless the difference is intended."
        )


def warn_near_chance(accuracy_percent: float, data: ImageData) -> None:
    """Warn if guessing would reach the dense model's accuracy.

    Guessing means a random class, or always the most frequent one. The warning is logged if, by
    the binomial distribution, at least one of 1,000 guesses at the validation split is as good.

    Args:
        accuracy_percent: Top-1 accuracy on the validation split.
        data: The images on which it was measured.
    """
    from scipy.special import bdtrc  # slow to import

    images = len(data.val)
    right = round(accuracy_percent / 100 * images)
    frequent = int(data.val.labels.bincount().max()) / images
    chance = max(1 / len(data.classes), frequent)
    if chance == 1 or (right > 0 and bdtrc(right - 1, images, chance) < 1 / _ONE_IN):
        return
    _logger.warning(
        f"The dense model classifies {accuracy_percent:.2f} % of the {images:,} validation images "
        f"correctly, which is no better than guessing ({100 * chance:.2f} %). Check that the "
        f"classes are in the model's order ({', '.join(data.classes[:3])}, ...), that "
        f"{data.preprocess.describe_normalisation()} are those it was trained with, and that it "
        "is the right checkpoint."
    )
