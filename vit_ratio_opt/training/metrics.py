"""Metrics of a model's outputs on the validation images, and their standard errors.

A :class:`Measure` is a metric with the function that computes it. Built-in ones have names, see
:data:`MEASURES`; they are scikit-learn's functions where it has one. Any other function of outputs
and targets can be a measure, and so can an object of torchmetrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.task import Task
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.metric import ACCURACY, COSINE, Metric

__all__ = ["MEASURES", "Measure", "as_measure", "measure_of", "standard_error"]

Score = Callable[[torch.Tensor, torch.Tensor], Any]

# Draws of the validation images with replacement.
_DRAWS = 200


@dataclass(frozen=True)
class Measure:
    """A metric and the function that computes it.

    Args:
        metric: Name, unit and direction.
        score: Function of the outputs ``(images, k)``, float32 on the CPU, and the targets
            ``(images,)`` or ``(images, k)``, which returns the metric; by default the mean of
            ``per_image``. Without labels the targets are the dense model's outputs.
        per_image: Function of the same arguments that returns values ``(images,)`` whose mean is
            the metric, where there is one: it gives the standard error in closed form.
        tasks: Tasks whose targets it takes; all by default.

    Raises:
        InputError: There is no function.
    """

    metric: Metric
    score: Score | None = field(default=None, compare=False)
    per_image: Score | None = field(default=None, compare=False)
    tasks: tuple[Task, ...] = get_args(Task)

    def __post_init__(self) -> None:
        if self.score is None and self.per_image is None:
            raise InputError(
                f"The metric {self.metric.name!r} needs a function: give `score` or `per_image`."
            )

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Return the metric.

        Raises:
            InputError: The function fails, or does not return a finite number.
        """
        try:
            value = float(self._score(outputs, targets))
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"The metric {self.metric.name!r} cannot be computed of outputs of shape "
                f"{tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}: "
                f"{type(error).__name__}: {error!s:.200}"
            ) from error
        if not math.isfinite(value):
            raise InputError(
                f"The metric {self.metric.name!r} is {value} for {len(targets)} images, but must "
                "be a finite number."
            )
        return value

    def _score(self, outputs: torch.Tensor, targets: torch.Tensor) -> Any:
        if self.score is not None:
            return self.score(outputs, targets)
        assert self.per_image is not None
        return self.per_image(outputs, targets).double().mean()


def standard_error(measure: Measure, outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the standard error of a metric over draws of the images.

    In closed form where the metric is a mean over images, else by the bootstrap of 200 draws with
    a fixed seed (Efron 1979). A draw in which the metric is undefined, such as one without a
    class, is left out.
    """
    images = len(targets)
    if measure.per_image is not None:
        values = measure.per_image(outputs, targets).double()
        return float(values.std(unbiased=False)) / math.sqrt(images)
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(_DRAWS):
        drawn = torch.randint(images, (images,), generator=generator)
        try:
            found.append(measure(outputs[drawn], targets[drawn]))
        except InputError:
            continue
    return float(np.std(found, ddof=1)) if len(found) > 1 else 0.0


def as_measure(given: Any) -> Measure:
    """Return the measure with a name, of an object of torchmetrics, or ``given`` itself.

    Raises:
        InputError: There is no measure of this name, or the object is none and does not say
            whether larger values are better.
    """
    if isinstance(given, Measure):
        return given
    if isinstance(given, str):
        if given not in MEASURES:
            raise InputError(
                f"`metric` must be one of {', '.join(map(repr, MEASURES))}, a `Measure` or an "
                f"object of torchmetrics, but got {given!r:.80}."
            )
        return MEASURES[given]
    name, is_larger = type(given).__name__, getattr(given, "higher_is_better", None)
    if not callable(getattr(given, "compute", None)) or not callable(getattr(given, "update", 0)):
        raise InputError(
            f"`metric` must be a name, a `Measure` or an object of torchmetrics, but got "
            f"{given!r:.80}: put a function into `Measure(Metric(name), function)`."
        )
    if is_larger is None:
        raise InputError(
            f"{name} does not say whether larger values are better: use "
            "`Measure(Metric(name, larger_is_better=...), metric)`."
        )
    return Measure(Metric(name, larger_is_better=is_larger), _torchmetric(given))


def measure_of(given: Any, data: ImageData) -> Measure:
    """Return the measure of a data set: the given one, or the usual one of the task.

    Raises:
        InputError: The measure does not fit the task, see also :func:`as_measure`.
    """
    if given is None and data.task == "features":
        raise InputError(
            f"The images of {data.name} have no labels, so models are compared with the dense "
            "one: use `FeatureTrainer(dense, data)`."
        )
    measure = as_measure(_USUAL[data.task] if given is None else given)
    if data.task not in measure.tasks:
        fitting = [name for name, known in MEASURES.items() if data.task in known.tasks]
        raise InputError(
            f"The metric {measure.metric.name!r} does not fit the task of {data.name}, "
            f"{data.task}: use {', '.join(map(repr, fitting))}, or a function of your own."
        )
    return measure


def _torchmetric(given: Any) -> Score:
    def score(outputs: torch.Tensor, targets: torch.Tensor) -> Any:
        given.reset()
        given.update(outputs, targets if targets.ndim == 1 else targets.to(_kind(given, targets)))
        return given.compute()

    return score


def _kind(given: Any, targets: torch.Tensor) -> torch.dtype:
    """Return the type of targets: torchmetrics takes labels as whole numbers."""
    is_label = "classification" in type(given).__module__
    return torch.int64 if is_label else targets.dtype


def _hits(k: int, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    top = outputs.topk(min(k, outputs.shape[1]), dim=1).indices
    return 100.0 * (top == targets[:, None]).any(dim=1)


def _balanced(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    from sklearn.metrics import balanced_accuracy_score  # slow to import

    return 100 * cast(float, balanced_accuracy_score(targets, outputs.argmax(dim=1)))


def _macro_f1(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    from sklearn.metrics import f1_score

    predicted = (outputs > 0).long() if targets.ndim == 2 else outputs.argmax(dim=1)
    return 100 * cast(float, f1_score(targets, predicted, average="macro", zero_division=0.0))


def _auroc(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    if targets.ndim == 2:
        return 100 * cast(float, roc_auc_score(targets, outputs, average="macro"))
    shares = outputs.double().softmax(dim=1)
    if shares.shape[1] == 2:
        return 100 * cast(float, roc_auc_score(targets, shares[:, 1]))
    return 100 * cast(float, roc_auc_score(targets, shares, multi_class="ovr"))


def _mean_average_precision(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    from sklearn.metrics import average_precision_score

    known = targets.any(dim=0)  # scikit-learn counts 0 for a class without an image
    if not known.any():
        raise InputError("The mean average precision needs an image of some class.")
    targets, outputs = targets[:, known], outputs[:, known]
    return 100 * cast(float, average_precision_score(targets, outputs, average="macro"))


def _r2(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    from sklearn.metrics import r2_score

    return cast(float, r2_score(targets, outputs))


def _absolute_errors(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).abs().mean(dim=1)


def _losses(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if targets.ndim == 1:
        return F.cross_entropy(outputs, targets, reduction="none")
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(dim=1)


def _cosines(outputs: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Return the cosine of both outputs of each image; of tokens, the mean over the image."""
    cosines = F.cosine_similarity(outputs.double(), dense.double(), dim=-1)
    by_image = cosines.flatten(1).mean(dim=1) if cosines.ndim > 1 else cosines
    # Without the last digits, so that it is 1 for the dense model itself.
    return by_image.round(decimals=12)


def _same_class(outputs: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    is_same = outputs.argmax(dim=1) == dense.argmax(dim=1)
    return 100.0 * (is_same & outputs.isfinite().all(dim=1))


def _divergences(outputs: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    predicted, wanted = (part.double().log_softmax(dim=1) for part in (outputs, dense))
    return F.kl_div(predicted, wanted, reduction="none", log_target=True).sum(dim=1)


def _of_mean(metric: Metric, per_image: Score, *tasks: Task) -> Measure:
    return Measure(metric, per_image=per_image, tasks=tasks)


MEASURES = {
    "accuracy": _of_mean(ACCURACY, partial(_hits, 1), "single-label"),
    "top5": _of_mean(Metric("top-5 accuracy", "%"), partial(_hits, 5), "single-label"),
    "balanced_accuracy": Measure(
        Metric("balanced accuracy", "%"), _balanced, tasks=("single-label",)
    ),
    "macro_f1": Measure(Metric("macro F1", "%"), _macro_f1, tasks=("single-label", "multi-label")),
    "auroc": Measure(Metric("AUROC", "%"), _auroc, tasks=("single-label", "multi-label")),
    "map": Measure(
        Metric("mean average precision", "%"), _mean_average_precision, tasks=("multi-label",)
    ),
    "r2": Measure(Metric("R2"), _r2, tasks=("regression",)),
    "mae": _of_mean(
        Metric("mean absolute error", larger_is_better=False), _absolute_errors, "regression"
    ),
    "loss": _of_mean(
        Metric("loss", larger_is_better=False), _losses, "single-label", "multi-label"
    ),
    "cosine": _of_mean(COSINE, _cosines, "features"),
    "agreement": _of_mean(Metric("agreement", "%"), _same_class, "features"),
    "kl": _of_mean(
        Metric("KL divergence", "nats", larger_is_better=False), _divergences, "features"
    ),
}
"""The built-in measures by name. Those of ``"features"`` compare with the dense model."""

_USUAL: dict[Task, str] = {"single-label": "accuracy", "multi-label": "map", "regression": "mae"}
