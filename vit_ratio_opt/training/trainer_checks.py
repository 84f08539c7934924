"""Checks of what a trainer returns: a metric that is a number, and the model it was given."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np
import torch
from torch import nn

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.metric import Metric
from vit_ratio_opt.training.context import Trainer, TrainingDiverged

__all__ = [
    "check_layers",
    "check_trainer",
    "layers_of",
    "metric_value",
    "warn_if_constant",
    "warn_if_reversed",
]

# Number of trained models whose metric equals that of the dense one only if something is wrong.
_MOST_EQUAL = 3
# Points by which no pruned model is better than the dense one before training.
_CLEAR_POINTS = 5.0

_logger = logging.getLogger(f"optuna.{__name__}")

Layers = Mapping[str, tuple[type, tuple[tuple[str, torch.Size], ...]]]
"""Class, names and shapes of parameters of each module, by its name."""


def check_trainer(trainer: object) -> None:
    """Refuse an object that is no trainer.

    Raises:
        InputError: It lacks a part of :class:`~vit_ratio_opt.Trainer`.
    """
    missing = [
        name for name in ("metric", "identity", "evaluate", "train") if not hasattr(trainer, name)
    ]
    if missing or isinstance(trainer, type):
        lacks = (
            f"lacks `{'`, `'.join(missing)}`" if missing else "is a class: make an object of it"
        )
        raise InputError(
            "`training` must be a Recipe, or a Trainer with `metric`, `identity`, `evaluate` and "
            f"`train`, but {_name(trainer)} {lacks}."
        )


def metric_value(value: object, trainer: Trainer, method: str) -> float:
    """Return what a trainer measured as a finite float.

    A tensor or array of one element is a number, as metrics of torchmetrics return.

    Args:
        value: What the trainer returned or reported.
        trainer: The trainer.
        method: Its method, for the message. ``"evaluate"`` measures, the others train.

    Raises:
        InputError: The value is no number, or ``evaluate`` returned NaN or an infinite one.
        TrainingDiverged: The value after a training is NaN or infinite.
    """
    number, shown = value, repr(value)[:80]
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        shown = f"a {type(value).__name__} of shape {tuple(value.shape)}"
        number = value.item() if math.prod(value.shape) == 1 else value
    source = f"`{method}` of {_name(trainer)}"
    if isinstance(number, bool) or not isinstance(number, Real):
        raise InputError(f"{source} must give the metric as one number, but gave {shown}.")
    if not math.isfinite(number):
        text = f"{source} gave {number} as the {trainer.metric.name}"
        if method != "evaluate":
            raise TrainingDiverged(f"{text}: the training diverged, or the metric is undefined.")
        raise InputError(f"{text}: it must be finite for every model, trained or not.")
    return float(number)


def layers_of(model: nn.Module) -> Layers:
    """Return the classes of all modules of a model, and the shapes of their parameters."""
    return {
        name: (
            type(module),
            tuple((key, value.shape) for key, value in module.named_parameters(recurse=False)),
        )
        for name, module in model.named_modules()
    }


def check_layers(before: Layers, model: nn.Module, trainer: Trainer) -> None:
    """Refuse a model whose layers a trainer has replaced: its file could not be loaded.

    Args:
        before: What :func:`layers_of` returned before the training.
        model: The model after it.
        trainer: The trainer.

    Raises:
        InputError: With the first layer that differs.
    """
    after = layers_of(model)
    for name in [*before, *after]:
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        what = f"the layer {name}" if name else "the model"
        if old is None or new is None:
            change = "was added" if old is None else "was removed"
        elif old[0] is not new[0]:
            change = f"was a {old[0].__name__} and is a {new[0].__name__}"
        else:
            change = "has other parameters than before"
        raise InputError(
            f"`train` of {_name(trainer)} changed the model: {what} {change}. Train the weights "
            "in place; merge adapters and remove wrappers at the end."
        )


def warn_if_constant(metric: Metric, dense: float, values: Sequence[float | None]) -> None:
    """Warn if the dense model and all trained models have the same metric.

    The warning is logged once in a study: when there are just enough trained models for it.

    Args:
        metric: The metric.
        dense: Its value of the dense model.
        values: Its values of all trained models so far; None where one is not recorded.
    """
    if len(values) == _MOST_EQUAL and all(value == dense for value in values):
        _logger.warning(
            f"The {metric.name} is {dense:g} for the dense model and for each of "
            f"{len(values)} pruned and trained ones. Check that the trainer measures the model "
            "that it is given."
        )


def warn_if_reversed(metric: Metric, dense: float, values: Sequence[float | None]) -> None:
    """Warn if pruned models are clearly better than the dense one before any training.

    The warning is logged once in a study, see :func:`warn_if_constant`.

    Args:
        metric: The metric.
        dense: Its value of the dense model.
        values: Its values of all models after pruning and before training; None where one is not
            recorded.
    """
    clearly = _CLEAR_POINTS * metric.point(dense) if dense else 0.0  # a dense 0 has no unit
    known = [-metric.loss(dense, value) for value in values if value is not None]
    if len(values) == len(known) == _MOST_EQUAL and min(known) > clearly:
        _logger.warning(
            f"Each of {len(known)} pruned models has a better {metric.name} before any training "
            f"than the dense model, which has {metric.number(dense)}. Check whether larger values "
            "are better: `larger_is_better` of the metric says so."
        )


def _name(trainer: object) -> str:
    return trainer.__name__ if isinstance(trainer, type) else type(trainer).__name__
