"""Measure the outputs and the cost of a model's classifier, also where it was replaced."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.device import evaluating
from vit_ratio_opt.models.families import FAMILIES

__all__ = ["Classifier", "blind", "classes_of", "classifier_of", "gives_classes"]


class Classifier(NamedTuple):
    """The classifier of a model as it is, not as the model was made.

    Args:
        classes: Number of logits for an image; 0 without a classifier.
        linear: Number of linear classifiers: 1, 2 with a distillation head, 0 for other modules.
        other_macs: MACs of classifiers that are no linear layers.
    """

    classes: int
    linear: int
    other_macs: int


def classifier_of(model: ViT, classified_tokens: int) -> Classifier:
    """Return the classifier of a model; one that is no linear layer is run on zeros.

    Args:
        model: A supported model.
        classified_tokens: Tokens of an image that the classifier reads: 1, or all of them where
            the model has no pooling.

    Raises:
        UnsupportedModelError: The classifier takes no features of the model's width, or gives no
            logits ``(batch, classes)``.
    """
    heads = {name: getattr(model, name) for name in FAMILIES[type(model)].classifiers}
    classes, macs = set(), 0
    for name, head in heads.items():
        if type(head) is nn.Linear and head.in_features != model.embed_dim:
            raise UnsupportedModelError(
                f"`{name}` takes {head.in_features} features, but the model has "
                f"{model.embed_dim}: replace it by `nn.Linear({model.embed_dim}, classes)`."
            )
        if type(head) in (nn.Linear, nn.Identity):
            classes.add(head.out_features if isinstance(head, nn.Linear) else 0)
        else:
            tokens = () if model.global_pool else (classified_tokens,)
            weight = model.patch_embed.proj.weight
            found, cost = _run(name, head, weight.new_zeros(2, *tokens, model.embed_dim))
            classes.add(found)
            macs += cost
    if len(classes) > 1:
        raise UnsupportedModelError(
            f"{' and '.join(f'`{name}`' for name in heads)} must have the same classes, but have "
            f"{sorted(classes)}."
        )
    linear = sum(type(head) in (nn.Linear, nn.Identity) for head in heads.values())
    return Classifier(classes.pop(), linear, macs)


def gives_classes(model: ViT) -> bool:
    """Return whether the model gives logits of whole images, not features.

    A single output is a value, such as that of a regression: its softmax would always be 1.

    Raises:
        UnsupportedModelError: The classifier does not fit, see :func:`classifier_of`.
        InputError: The model has a classifier but no pooling, so it classifies single tokens.
    """
    heads = [getattr(model, name) for name in FAMILIES[type(model)].classifiers]
    return any(type(head) is not nn.Identity for head in heads) and classes_of(model) > 1


def blind(model: ViT) -> ViT:
    """Return a copy that gives every image the same output; features stay as they are."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name in FAMILIES[type(model)].classifiers:
            for layer in getattr(copied, name).modules():
                if isinstance(layer, nn.Linear):
                    layer.weight.zero_()
    return copied


def classes_of(model: ViT) -> int:
    """Return the number of classes; refuse a model that does not classify whole images.

    Raises:
        UnsupportedModelError: The classifier does not fit, see :func:`classifier_of`.
        InputError: The model has no classifier or no pooling.
    """
    missing = "no pooling"
    if model.global_pool:
        classes, missing = classifier_of(model, 1).classes, "no classifier"
        if classes:
            return classes
    raise InputError(
        f"The model has {missing}, so it gives no class of an image: call "
        "`model.reset_classifier(classes, global_pool=...)` and train it."
    )


def _run(name: str, head: nn.Module, features: torch.Tensor) -> tuple[int, int]:
    """Return the number of logits and the MACs of one image, given features of two images."""
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), evaluating(head), counter:
            logits = head(features)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnsupportedModelError(
            f"`{name}` cannot take the model's features {tuple(features.shape)}: {reason:.200}"
        ) from None
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if not isinstance(shape, tuple) or shape[:-1] != tuple(features.shape[:-1]):
        raise UnsupportedModelError(
            f"`{name}` must give logits of shape (images, classes), but gives {shape} for two "
            f"images with features {tuple(features.shape)}."
        )
    return shape[-1], counter.get_total_flops() // 4  # of two images, two FLOPs each
