"""Outputs and metrics of a model on a split of images."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import nn

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.splits import Split
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.device import (
    Precision,
    autocast,
    evaluating,
    free_memory,
    is_out_of_memory,
    model_device,
)
from vit_ratio_opt.space.metric import ACCURACY
from vit_ratio_opt.training.distributed import Ranks
from vit_ratio_opt.training.metrics import Measure

__all__ = [
    "check_shape",
    "count_correct",
    "evaluate",
    "measure_split",
    "predict",
]

_BATCH = 500

_logger = logging.getLogger(f"optuna.{__name__}")


def predict(
    model: nn.Module, data: ImageData, split: Split, *, precision: Precision | None = None
) -> torch.Tensor:
    """Return the outputs ``(images, ...)`` of ``split`` in its order, float32, on the CPU.

    The model runs in evaluation mode; afterwards each module has its mode of before.

    Args:
        model: Model that returns class logits, features, or other outputs.
        data: Data set of the images.
        split: Split of ``data`` that is evaluated.
        precision: Precision of the forward passes; by default the usual one of the model's device.
    """
    outputs = _outputs(model, data, split, precision)
    return torch.cat([logits.float().cpu() for logits, _ in outputs])


def evaluate(
    model: nn.Module,
    data: ImageData,
    split: Split,
    *,
    ranks: Ranks | None = None,
    precision: Precision | None = None,
) -> float:
    """Return the top-1 accuracy in per cent on ``split``, computed on the model's device.

    The model runs in evaluation mode; afterwards each module has its mode of before. An image
    whose logits are not finite counts as wrong, with a logged warning.

    Args:
        model: Model that returns class logits.
        data: Data set of the images.
        split: Split of ``data`` that is evaluated.
        ranks: Processes that share the images; all of them have to call this function.
        precision: Precision of the forward passes; by default the usual one of the model's device.

    Raises:
        InputError: The model has another number of classes than ``data``, or images have several
            labels or targets.
    """
    if data.task != "single-label":
        raise InputError(
            f"Top-1 accuracy is for images with one class each, but {data.name} has the task "
            f"{data.task!r}: use `ImageTrainer(data, Recipe(metric=...)).evaluate(model)`."
        )
    own = split if ranks is None else split.subset(ranks.share(torch.arange(len(split))))
    correct, unknown = torch.zeros((2,), dtype=torch.int64, device=model_device(model))
    for logits, labels in _outputs(model, data, own, precision):
        check_shape(logits, len(labels), data)
        correct += _hits(logits, labels).sum()
        unknown += (~logits.isfinite().all(dim=1)).sum()
    if unknown:
        _logger.warning(
            f"The model returns NaN or infinite logits for {unknown.item()} of {len(own)} "
            f"images of {data.name}: they count as wrong."
        )
    right = correct.item() if ranks is None else ranks.sum(correct.item())[0]
    return 100.0 * right / len(split)


def count_correct(
    model: nn.Module, data: ImageData, split: Split, *, precision: Precision | None = None
) -> torch.Tensor:
    """Return how many images of each class are classified correctly, int64 ``(classes,)``.

    Args:
        model: Model that returns class logits.
        data: Data set of the images, with one label for each.
        split: Split of ``data`` that is evaluated.
        precision: Precision of the forward passes; by default the usual one of the model's device.
    """
    correct = torch.zeros(len(data.classes), dtype=torch.int64)
    for logits, labels in _outputs(model, data, split, precision):
        correct += labels[_hits(logits, labels)].cpu().bincount(minlength=len(correct))
    return correct


def _hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return which images are classified correctly, ``(batch,)``; none without finite logits."""
    return (logits.argmax(dim=1) == labels) & logits.isfinite().all(dim=1)


def measure_split(
    model: nn.Module,
    data: ImageData,
    split: Split,
    measure: Measure,
    *,
    targets: torch.Tensor | None = None,
    ranks: Ranks | None = None,
    precision: Precision | None = None,
) -> float:
    """Return a metric on ``split``, with the model on its device and in evaluation mode.

    The accuracy is counted on the device, see :func:`evaluate`.

    Args:
        model: Model that returns outputs ``(batch, k)``.
        data: Data set of the images.
        split: Split of ``data`` that is evaluated.
        measure: The metric and its function.
        targets: What the outputs are compared with, such as the dense model's outputs; the labels
            of ``split`` by default.
        ranks: Processes that share the images; all of them have to call this function.
        precision: Precision of the forward passes; by default the usual one of the model's device.

    Raises:
        InputError: The outputs do not fit ``data``, or the metric cannot be computed.
    """
    if measure.metric == ACCURACY:
        return evaluate(model, data, split, ranks=ranks, precision=precision)
    own = split if ranks is None else split.subset(ranks.share(torch.arange(len(split))))
    outputs = predict(model, data, own, precision=precision)
    targets = split.labels if targets is None else targets
    if data.task == "features":
        _check_alike(outputs, targets)
    else:
        check_shape(outputs, len(own), data)
    if ranks is not None:
        outputs = ranks.gather(outputs, len(split))
    return measure(outputs, targets)


def check_shape(logits: torch.Tensor, n_images: int, data: ImageData) -> None:
    """Refuse outputs that are not ``(images, classes)``, or ``(images, targets)``.

    Raises:
        InputError: They have another shape.
    """
    wanted = (n_images, len(data.classes))
    if logits.shape != wanted:
        raise InputError(
            f"The model must return outputs of shape {wanted} for {n_images} images of "
            f"{data.name}, but returns {tuple(logits.shape)}."
        )


def _check_alike(outputs: torch.Tensor, dense: torch.Tensor) -> None:
    """Refuse outputs of other shapes than the dense model's."""
    if outputs.shape[1:] != dense.shape[1:]:
        raise InputError(
            f"The dense model gives {tuple(dense.shape[1:])} numbers for an image, but the pruned "
            f"one {tuple(outputs.shape[1:])}, so they cannot be compared."
        )


def _outputs(
    model: nn.Module, data: ImageData, split: Split, precision: Precision | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield logits and labels on the model's device, batch by batch, in evaluation mode."""
    device = model_device(model)
    with evaluating(model):
        for images, labels in data.batches(split, _BATCH, device):
            # Inference mode ends before the caller goes on.
            with torch.inference_mode(), autocast(device, precision):
                logits = _in_parts(model, images)
            yield logits, labels


def _in_parts(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the logits of all images, half by half if memory is short."""
    try:
        return model(images)  # type: ignore[no-any-return]
    except RuntimeError as error:
        if len(images) == 1 or not is_out_of_memory(error):
            raise
    _logger.warning(
        f"A batch of {len(images)} images does not fit into memory: it is processed in two halves."
    )
    free_memory(images.device)
    return torch.cat([_in_parts(model, part) for part in images.chunk(2)])
