"""Train the levels of an elastic model together, by the sandwich rule.

Each step trains the largest and the smallest level and up to two levels between, drawn at random,
on the same images (Yu and Huang 2019, arXiv 1903.05134). All learn from the labels and from the
same teacher, the dense model, whose outputs are computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import geometric_mean
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.device import Precision
from vit_ratio_opt.models.elastic import ElasticViT
from vit_ratio_opt.training.fitting import choose
from vit_ratio_opt.training.losses import BatchLoss
from vit_ratio_opt.training.recipe import Recipe

__all__ = [
    "SandwichLoss",
    "check_elastic",
    "choose_for_all",
    "elastic_identity",
    "models_in",
]

_BETWEEN = 2  # levels between the largest and the smallest that a step trains


class SandwichLoss:
    """Mean loss of some levels of a batch: the largest, the smallest and up to two between.

    The levels are drawn with torch's own random numbers, which a training's seed fixes.

    Args:
        loss: Loss of one model.
        levels: Number of levels.
    """

    def __init__(self, loss: BatchLoss, levels: int) -> None:
        self._loss, self._levels = loss, levels

    def of_batch(
        self,
        forward: Callable[..., torch.Tensor],
        images: torch.Tensor,
        targets: torch.Tensor,
        teacher: nn.Module | torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean loss of the levels, and the outputs of the largest one."""
        if isinstance(teacher, nn.Module):
            with torch.no_grad():
                teacher = teacher(images)
        losses, outputs = [], []
        for level in self._draw():
            own = partial(forward, level=level)
            loss, logits = self._loss.of_batch(own, images, targets, teacher)
            losses.append(loss)
            outputs.append(logits)
        return torch.stack(losses).mean(), outputs[0]

    def _draw(self) -> list[int]:
        between = 1 + torch.randperm(max(0, self._levels - 2))[:_BETWEEN]
        return sorted({0, *between.tolist(), self._levels - 1})


def models_in(model: nn.Module) -> list[nn.Module]:
    """Return the models of all levels, or the model itself where it is no elastic one."""
    if isinstance(model, ModelEmaV3):
        model = model.module
    if isinstance(model, ElasticViT):
        return [model.extract(level) for level in range(len(model.levels))]
    return [model]


def elastic_identity(model: nn.Module) -> dict[str, Any]:
    """Return the sizes of an elastic model's levels, which its weights alone do not tell."""
    if not isinstance(model, ElasticViT):
        return {}
    return {"levels": [[[*vars(b).values()] for b in level.blocks] for level in model.levels]}


def check_elastic(model: nn.Module, data: ImageData, recipe: Recipe, processes: int) -> None:
    """Refuse a training that an elastic model cannot have.

    Raises:
        InputError: The images have no labels, the recipe has a layer decay, or several processes
            share the training.
    """
    if not isinstance(model, ElasticViT):
        return
    if data.task == "features":
        raise InputError(
            "The levels of an elastic model are trained with labels, but the task is 'features': "
            "train the model of each level, `elastic.at(budget)`, by itself."
        )
    if recipe.layer_decay != 1:
        raise InputError(
            f"An elastic model is trained with `layer_decay=1`, but got {recipe.layer_decay!r}."
        )
    if processes > 1:
        raise InputError(
            "An elastic model is trained in one process: start the training without torchrun."
        )


def choose_for_all(
    model: nn.Module, data: ImageData, dense: Any, precision: Precision
) -> dict[str, Any]:
    """Return what a training uses where its recipe says ``"auto"``.

    Of an elastic model that is the geometric mean of its levels' learning rates, and whether any
    of them is trained. See :func:`~vit_ratio_opt.training.fitting.choose` for the arguments.
    """
    chosen = [choose(one, data, dense, precision) for one in models_in(model)]
    if len(chosen) == 1:
        return chosen[0]
    rate = geometric_mean(one["lr"] for one in chosen)
    return {"lr": float(f"{rate:.2g}"), "is_trained": any(one["is_trained"] for one in chosen)}
