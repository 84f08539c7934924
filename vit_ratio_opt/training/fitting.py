"""Fit a recipe to a model: the learning rate that it leaves open, and whether to train at all.

The rule has two factors. Adam's steps have the size of the learning rate in every weight, so that
the outputs of a layer change with its width (Yang 2022): the rate falls with the width. And a
step disturbs a model that lost little as much as one that lost much. The divergence from the
dense model grows with the square of a change of the weights, so the rate rises with the root of
the divergence that pruning caused.

Two results of a study are comparable only by the same rule. A study stores ``"auto"``, so a rule
that chooses other values needs another word.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.task import Task
from vit_ratio_opt.models.device import Precision
from vit_ratio_opt.training.evaluate import predict
from vit_ratio_opt.training.matching import Reference

__all__ = ["choose", "divergence", "fitted_lr"]

# Training images that the divergence is a mean over.
_IMAGES = 512
# Peak learning rate of models up to the width, for those that lost much.
_LARGEST_LR, _WIDTH = 1e-3, 64
# Divergence from which on the largest rate is used, and its smallest share below.
_LARGE_DIVERGENCE, _LEAST_SHARE = 0.25, 0.3
# Divergence below which nothing was lost but by rounding in float32. More is no sign that a
# training can only cost: at 1e-5 the digits' model gained a point from the labels.
_NOTHING = 1e-10


def choose(model: nn.Module, data: ImageData, dense: Any, precision: Precision) -> dict[str, Any]:
    """Return what a training uses where its recipe says ``"auto"``, as JSON values.

    Args:
        model: The pruned model.
        data: The data set; the divergence is measured on training images.
        dense: The dense model, as a reference without labels, or its outputs for all training
            images; None where it is unknown.
        precision: Precision of forward passes.

    Returns:
        ``lr``; ``divergence`` where outputs are class probabilities and the dense model is known;
        ``is_trained``, False where nothing was lost.
    """
    if isinstance(dense, Reference):
        dense = dense.model if dense.is_classifier else None
    lost = None
    if dense is not None and data.task != "regression":
        lost = divergence(model, data, dense, precision)
    if lost is not None and not math.isfinite(lost):
        lost = None  # outputs that are NaN are reported where they are evaluated
    values: dict[str, Any] = {
        "lr": fitted_lr(_width(model), lost),
        "is_trained": lost is None or lost >= _NOTHING,
    }
    return values if lost is None else {**values, "divergence": float(f"{lost:.3g}")}


def fitted_lr(width: int | None, lost: float | None) -> float:
    """Return the peak learning rate of a model, rounded to two digits.

    Args:
        width: Dimensions of the embeddings; None where they are unknown.
        lost: Divergence before the training; None where it is unknown.
    """
    lr = _LARGEST_LR * min(1.0, _WIDTH / (width or _WIDTH))
    if lost is not None:
        lr *= min(1.0, max(_LEAST_SHARE, math.sqrt(max(0.0, lost) / _LARGE_DIVERGENCE)))
    return float(f"{lr:.2g}")


def divergence(model: nn.Module, data: ImageData, dense: Any, precision: Precision) -> float:
    """Return the mean of KL(dense || model) over the same training images in every process.

    With several labels it is the sum over the classes.

    Args:
        model: The pruned model.
        data: The data set.
        dense: The dense model, or its outputs for all training images.
        precision: Precision of forward passes.
    """
    train = data.train
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:_IMAGES]
    split = train.subset(drawn)
    if isinstance(dense, torch.Tensor):
        wanted = dense[drawn]
    else:
        wanted = predict(dense, data, split, precision=precision)
    return _divergence(predict(model, data, split, precision=precision), wanted, data.task)


def _divergence(outputs: torch.Tensor, wanted: torch.Tensor, task: Task) -> float:
    outputs, wanted = outputs.double().cpu(), wanted.double().cpu()
    if task == "multi-label":
        soft = wanted.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(wanted, soft, reduction="sum")
        cross = F.binary_cross_entropy_with_logits(outputs, soft, reduction="sum")
        return float(cross - entropy) / len(outputs)
    seen, aim = outputs.log_softmax(dim=1), wanted.log_softmax(dim=1)
    return F.kl_div(seen, aim, reduction="batchmean", log_target=True).item()


def _width(model: nn.Module) -> int | None:
    width = getattr(model, "embed_dim", None)
    return width if isinstance(width, int) and width > 0 else None
