"""Labels of each task: what one of them must be, and how many images each class has."""

from __future__ import annotations

import logging
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vit_ratio_opt.data.task import Task
from vit_ratio_opt.errors import InputError

__all__ = ["NO_LABEL", "check_labels", "class_counts", "parse_label"]

NO_LABEL = -1
"""Label of every image of a data set without classes, whose task is ``"features"``."""

_SHOWN = 5
_MANY = 2**31  # more than all classes

_logger = logging.getLogger(f"optuna.{__name__}")


def parse_label(
    label: Any, task: Task, names: Sequence[str], *, are_positions: bool = False
) -> int | torch.Tensor:
    """Return the label of an image: a whole number, or float32 ``(classes,)``.

    A whole number may be out of range: where all labels are known, the message can say more.

    Args:
        label: The label: a number, list, array or tensor.
        task: The task.
        names: Names of the classes or targets; empty for images without labels.
        are_positions: Whether several labels are the positions of an image's classes, as many as
            it has, instead of a 0 or 1 for each class.

    Raises:
        InputError: The label is of another kind; or, for several labels, another value than 0 and
            1; or, for a regression, no finite number.
    """
    if task == "features" and (label is None or not names):
        return NO_LABEL
    if task in ("single-label", "features"):
        return _whole_number(label, len(names))
    if are_positions:
        return _from_positions(label, names)
    what = "0 or 1, one value for each class" if task == "multi-label" else "one for each target"
    wanted = f"{len(names)} number{'s'[: len(names) > 1]}: {what}"
    try:
        values = np.asarray(label, dtype=np.float64)
    except (OverflowError, RuntimeError, TypeError, ValueError):
        raise InputError(f"its label is {_shown(label)}, but must be {wanted}.") from None
    if values.shape != (len(names),) and not (values.ndim == 0 and len(names) == 1):
        raise InputError(f"its label is {_shown(label)}, but must be {wanted}.")
    vector = torch.from_numpy(values.reshape(len(names))).to(torch.float32)
    is_right = (vector == 0) | (vector == 1) if task == "multi-label" else vector.isfinite()
    if not bool(is_right.all()):
        first = int((~is_right).nonzero()[0, 0])
        must = "0 or 1" if task == "multi-label" else "a finite number"
        raise InputError(
            f"its value of {names[first]!r:.80} is {values.reshape(-1)[first]:g}, but must be "
            f"{must}."
        )
    return vector


def class_counts(labels: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Return the number of images of each class, int64 ``(classes,)``.

    Args:
        labels: Labels ``(n,)``, or several labels ``(n, classes)`` of 0 and 1. Images without a
            label, :data:`NO_LABEL`, belong to no class.
        n_classes: Number of classes.
    """
    if labels.ndim == 2:
        return labels.sum(dim=0).to(torch.int64)
    return labels[labels != NO_LABEL].bincount(minlength=n_classes)


def check_labels(name: str, classes: Sequence[str], parts: Mapping[str, torch.Tensor]) -> None:
    """Refuse classes without any image, and warn of classes that a split has no image of.

    Args:
        name: Name of the data set, for messages.
        classes: Class names, by label.
        parts: Labels of each split, see :func:`class_counts`, by the split's title.

    Raises:
        InputError: A class has no image.
    """
    counts = {title: class_counts(labels, len(classes)) for title, labels in parts.items()}
    without = {title: (part == 0).nonzero()[:, 0].tolist() for title, part in counts.items()}
    nowhere = set.intersection(*(set(part) for part in without.values()))
    if nowhere:
        raise InputError(
            f"{name}: `classes` has {len(classes)} names, but no image belongs to "
            f"{[classes[label] for label in sorted(nowhere)[:_SHOWN]]}."
        )
    for title, part in without.items():
        if part:
            _logger.warning(
                f"{name}: no {title} image belongs to {len(part)} of the {len(classes)} classes, "
                f"such as {classes[part[0]]!r:.80}."
            )


def _whole_number(label: Any, n_classes: int) -> int:
    value = label
    if getattr(value, "ndim", 0) and getattr(value, "size", None) is not None:
        count = value.numel() if isinstance(value, torch.Tensor) else value.size
        value = value.reshape(()) if count == 1 else None
    try:
        number = operator.index(value.item() if hasattr(value, "item") else value)
    except TypeError:
        raise InputError(
            f"its label is {_shown(label)}, but must be a whole number, the place of its class in "
            "`classes`."
        ) from None
    if abs(number) > _MANY:  # no int64
        raise InputError(f"its label is {_shown(number)}, but must be 0 to {n_classes - 1}.")
    return number


def _from_positions(label: Any, names: Sequence[str]) -> torch.Tensor:
    vector = torch.zeros(len(names))
    try:
        positions = [_whole_number(position, len(names)) for position in label]
    except (InputError, TypeError):
        positions = [-1]
    if any(not 0 <= position < len(names) for position in positions):
        raise InputError(
            f"its label is {_shown(label)}, but must be a list of numbers 0 to {len(names) - 1}, "
            "the places of its classes in `classes`."
        )
    vector[positions] = 1
    return vector


def _shown(label: Any) -> str:
    return f"{' '.join(repr(label).split()):.80}"
