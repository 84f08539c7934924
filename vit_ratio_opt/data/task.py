"""Names of tasks and augmentations. This file imports no torch, so that ``--help`` is fast."""

from __future__ import annotations

from typing import Literal, get_args

from vit_ratio_opt.errors import InputError

__all__ = ["Augmentation", "Task", "check_task"]

Task = Literal["single-label", "multi-label", "regression", "features"]
"""What the labels of a data set are.

Of ``"features"`` no labels are needed: the dense model's outputs are the targets.
"""

Augmentation = Literal["crop", "strong"]
"""Augmentations of training images beyond shifts and mirror images."""


def check_task(task: object) -> None:
    """Refuse an unknown task.

    Raises:
        InputError: ``task`` is none of :data:`Task`.
    """
    if task not in get_args(Task):
        known = ", ".join(map(repr, get_args(Task)))
        raise InputError(f"`task` must be one of {known}, but got {task!r:.80}.")
