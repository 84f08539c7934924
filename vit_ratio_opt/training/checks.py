"""What a dense model and its images are warned about before anything is trained."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.preprocessing import differences, preprocess_of

__all__ = ["warn_near_chance", "warn_of_other_preprocessing"]

# Guessing reaches an accuracy that is not warned about once in so many validation splits.
_ONE_IN = 1000

_logger = logging.getLogger(f"optuna.{__name__}")


def warn_of_other_preprocessing(model: Any, data: ImageData) -> None:
    """Say it if images are not prepared as the ones that a model was trained with.

    Args:
        model: Nothing is said where its preprocessing is not known.
        data: Where it does not say how its images came to their size, that is not compared.
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
    found = differences(trained, given)
    if found:
        how = "presumably " if trained.is_assumed else ""
        _logger.warning(
            f"The images of {data.name} have {'; '.join(found)}, with which the model was {how}"
            f"trained (says {trained.origin}). Load them with `preprocess=preprocess_of(model)`, "
            "unless you know better."
        )


def warn_near_chance(accuracy_percent: float, data: ImageData) -> None:
    """Say it if a dense model could have guessed, and what to check then.

    Guessing is to name any class, or always the one that is most frequent. By the binomial
    distribution, its accuracy is as high as ``accuracy_percent`` in one of 1,000 validation
    splits or more.

    Args:
        accuracy_percent: Top-1 accuracy on the validation split.
        data: The images.
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
        f"rightly, which cannot be told from guessing ({100 * chance:.2f} %). Check that the "
        f"classes are in the model's order ({', '.join(data.classes[:3])}, ...), that "
        f"{data.preprocess.normalisation()} are those it was trained with, and that it is the "
        "right checkpoint."
    )
