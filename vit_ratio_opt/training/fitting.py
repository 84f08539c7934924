"""Fit a recipe to a model: the learning rate that it leaves open, and whether to train at all.

The rule has two factors. Adam's steps have the size of the learning rate in every weight, so that
the outputs of a layer change with its width, and those of a model with the root of its depth: the
rate falls with both (Yang 2022, arXiv 2203.03466, and 2023, arXiv 2310.02244).

And a training moves a model that lost little as far as one that lost much: by a divergence that
grows with the square of the rate and, as gradients are noise where labels remain uncertain, with
the entropy of the dense model's outputs. The second factor is the rate whose own divergence is
that of the pruning, and a little more.

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
from vit_ratio_opt.models.device import Precision
from vit_ratio_opt.training.checks import check_same_outputs
from vit_ratio_opt.training.evaluate import predict
from vit_ratio_opt.training.matching import Reference

__all__ = ["choose", "divergence", "fitted_share"]

# Training images that divergence and entropy are means over.
_IMAGES = 512
# Peak learning rate of models up to the width and depth, for those that lost much.
_LARGEST_LR, _WIDTH, _DEPTH = 1e-3, 64, 4
# Divergence that the largest rate causes by itself, as a share of the entropy up to a largest one,
# and what is always allowed. Fitted to `vit_cifar10_d64`, the digits and Mini-ImageNet.
_CAUSED, _LARGEST_ENTROPY, _ALLOWED = 0.5, 0.6, 0.06
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
        ``lr``; ``is_trained``, False where nothing was lost; and ``divergence`` and ``entropy``
        where outputs are class probabilities and the dense model is known.
    """
    if isinstance(dense, Reference):
        dense = dense.model if dense.is_classifier else None
    lr = _LARGEST_LR * _size_share(model)
    if dense is None or data.task == "regression":
        return {"lr": float(f"{lr:.2g}"), "is_trained": True}
    lost, entropy = divergence(model, data, dense, precision)
    if not math.isfinite(lost + entropy):  # NaN is reported where the model is evaluated
        return {"lr": float(f"{lr:.2g}"), "is_trained": True}
    lr *= fitted_share(lost, entropy)
    return {
        "lr": float(f"{lr:.2g}"),
        "is_trained": lost >= _NOTHING,
        "divergence": float(f"{lost:.3g}"),
        "entropy": float(f"{entropy:.3g}"),
    }


def fitted_share(lost: float, entropy: float) -> float:
    """Return the share of the largest learning rate that fits a model, above 0 and up to 1.

    Args:
        lost: KL divergence of the pruned model from the dense one, in nats.
        entropy: Mean entropy of the dense model's outputs.
    """
    allowed = max(lost, 0.0) + _ALLOWED
    caused = _CAUSED * min(entropy, _LARGEST_ENTROPY)
    return math.sqrt(min(1.0, allowed / max(caused, 1e-9)))


def divergence(
    model: nn.Module, data: ImageData, dense: Any, precision: Precision
) -> tuple[float, float]:
    """Return the means of KL(dense || model) and of the entropy of the dense model's outputs.

    They are of the same training images in every process. With several labels they are sums over
    the classes.

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
        aim = dense[drawn]
    else:
        aim = predict(dense, data, split, precision=precision)
    outputs = predict(model, data, split, precision=precision).double().cpu()
    aim = aim.double().cpu()
    check_same_outputs(outputs, aim)
    if data.task == "multi-label":
        soft = aim.sigmoid()
        cross = F.binary_cross_entropy_with_logits(outputs, soft, reduction="sum")
        entropy = F.binary_cross_entropy_with_logits(aim, soft, reduction="sum")
    else:
        soft = aim.softmax(dim=1)
        cross = F.cross_entropy(outputs, soft, reduction="sum")
        entropy = F.cross_entropy(aim, soft, reduction="sum")
    return (cross - entropy).item() / len(drawn), entropy.item() / len(drawn)


def _size_share(model: Any) -> float:
    """Return the share of the largest learning rate by width and depth; 1 where unknown."""
    width, depth = getattr(model, "embed_dim", _WIDTH), len(getattr(model, "blocks", ()))
    return min(1.0, _WIDTH / width) * math.sqrt(min(1.0, _DEPTH / max(1, depth)))
