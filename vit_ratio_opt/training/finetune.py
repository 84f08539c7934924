"""Fine-tuning of a pruned model, or training of a dense one: the same loop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.device import Precision, check_training_precision, model_device
from vit_ratio_opt.models.precision import Precisions
from vit_ratio_opt.training.context import TrainingStopped, TrialContext
from vit_ratio_opt.training.distributed import Ranks
from vit_ratio_opt.training.elastic import check_elastic, choose_for_all
from vit_ratio_opt.training.loop import Loop, Mix
from vit_ratio_opt.training.matching import Reference
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.saved_state import stored_training

__all__ = ["Mix", "finetune"]

_logger = logging.getLogger(f"optuna.{__name__}")


def finetune(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    context: TrialContext | None = None,
    *,
    teacher: nn.Module | torch.Tensor | Reference | None = None,
    mix: Mix | None = None,
    precision: Precision | Precisions | None = None,
    ranks: Ranks | None = None,
) -> float:
    """Train ``model`` in place on its device and leave it in evaluation mode.

    The caller's random state is untouched; the context's seed fixes everything random. A batch
    that does not fit into memory is processed in two or more parts, with the same gradients.

    Args:
        model: Model that returns class logits, or the outputs of a regression. Weights that are
            frozen (``requires_grad`` is False) stay unchanged. All levels of an ``ElasticViT`` are
            trained together, see :mod:`vit_ratio_opt.training.elastic`.
        data: Data set; training on ``data.train``, validation on ``data.val`` after each epoch.
        recipe: Hyperparameters of the training.
        context: Seed, callbacks and file of the saved state, which is kept in the end. A resumed
            training ends with the same weights on the same machine. The last epoch saves none.
        teacher: The dense model, for distillation, on the device of ``model``; by default the
            context's. Or its logits for every image of ``data.train``, see
            :func:`~vit_ratio_opt.training.evaluate.predict`, if images are neither augmented nor
            mixed: then it need not run again. Images without labels need the dense model, or the
            ``reference`` of a :class:`~vit_ratio_opt.FeatureTrainer`, which keeps its outputs.
        mix: Function of the normalised images and the labels of each batch. It may return class
            probabilities for the labels, as torchvision's MixUp and CutMix do.
        precision: Precision of training and of evaluation, or one of each; by default the usual
            one of the model's device, without :func:`~vit_ratio_opt.faster_precision`'s timing.
        ranks: Processes that share each batch of ``recipe.batch_size``, so that their number
            changes only the time (and the augmentation). All of them call this function. Rank 0
            reports and saves the state; all resume from it.

    Returns:
        The recipe's metric on the validation images after the last epoch, or its mean over levels.

    Raises:
        InputError: The saved state is of another training, the precision is unknown, or logits or
            frozen weights do not fit.
        TrainingDiverged: The loss is NaN or infinite.
        TrainingStopped: The context asked to stop.
    """
    context = context or TrialContext()
    precisions = Precisions.of(precision, model_device(model))
    ranks = ranks or Ranks(0, 1, model_device(model))
    _check_trainable(model, data, recipe, precisions, ranks)
    if teacher is None and recipe.distillation:
        teacher = context.teacher
    teacher = _checked(teacher, data, recipe, mix, precisions.evaluation)
    dense, epochs = _dense(teacher, context), recipe.epochs
    if recipe.lr == "auto":
        choosing = partial(choose_for_all, model, data, dense, precisions.evaluation)
        recipe, context = _fitted(recipe, context, _chosen(choosing, context.state, ranks))
    value = Loop(model, data, recipe, context, teacher, mix, precisions, ranks).run()
    _report_left_out(context, epochs - recipe.epochs, value, ranks)
    return value


def _check_trainable(
    model: nn.Module, data: ImageData, recipe: Recipe, precisions: Precisions, ranks: Ranks
) -> None:
    check_elastic(model, data, recipe, ranks.size)
    if not recipe.epochs:
        return
    check_training_precision(precisions.training, model_device(model))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            "All weights of the model are frozen, so there is nothing to train: call "
            "`model.requires_grad_(True)`."
        )


def _dense(
    teacher: nn.Module | torch.Tensor | Reference | None, context: TrialContext
) -> nn.Module | torch.Tensor | Reference | None:
    """Return the dense model, which the teacher need not be."""
    is_dense = isinstance(teacher, Reference) or context.teacher is None
    return teacher if is_dense else context.teacher


def _report_left_out(context: TrialContext, epochs: int, value: float, ranks: Ranks) -> None:
    """Report epochs that could only cost, so that Optuna's pruners see a value of each."""
    for epoch in range(1, epochs + 1) if ranks.rank == 0 else ():
        context.report(epoch, value)


def _fitted(
    recipe: Recipe, context: TrialContext, chosen: dict[str, Any]
) -> tuple[Recipe, TrialContext]:
    """Return the recipe with what was chosen, and a context whose saved state knows both."""
    context.record(chosen)
    own = {"recipe": recipe.to_json(), "chosen": chosen}
    context = replace(context, identity={**context.identity, **own})
    recipe = replace(recipe, lr=chosen["lr"])
    if chosen["is_trained"] or not recipe.epochs:
        return recipe, context
    _logger.info(f"{context.title}: pruning changed no output, so the model is not trained.")
    return replace(recipe, epochs=0), context


def _chosen(
    choose_values: Callable[[], dict[str, Any]], state: Path | None, ranks: Ranks
) -> dict[str, Any]:
    """Return what rank 0 chooses, or has chosen before the state was saved, in every rank.

    Raises:
        InputError: The state is damaged or of another training, in rank 0.
        TrainingStopped: Rank 0 could not choose.
    """
    chosen: dict[str, Any] | None = None
    try:
        if ranks.rank == 0 and state is not None and state.exists():
            chosen = stored_training(state).get("chosen")
            if chosen is None:
                raise InputError(
                    f"{state} is of a training with other recipe: name another file, or remove "
                    "it to start again."
                )
        elif ranks.rank == 0:
            chosen = choose_values()
    finally:
        chosen = ranks.broadcast(chosen)
    if chosen is None:
        raise TrainingStopped("rank 0 ended the training")
    return chosen


def _checked(
    teacher: nn.Module | torch.Tensor | Reference | None,
    data: ImageData,
    recipe: Recipe,
    mix: Mix | None,
    precision: Precision,
) -> nn.Module | torch.Tensor | Reference | None:
    """Return a teacher that fits the images; a reference where they have no labels."""
    if data.task == "features":
        return _reference(data, teacher, mix, precision)
    if isinstance(teacher, torch.Tensor):
        _check_logits(teacher, data, is_changed=bool(recipe.augment) or mix is not None)
    return teacher


def _check_logits(logits: torch.Tensor, data: ImageData, *, is_changed: bool) -> None:
    if is_changed:
        raise InputError(
            "`teacher` must be a model if images are augmented or mixed, but got logits."
        )
    if len(logits) != len(data.train):
        raise InputError(
            f"`teacher` must have logits for {len(data.train)} images, but has {len(logits)}."
        )


def _reference(
    data: ImageData,
    teacher: nn.Module | torch.Tensor | Reference | None,
    mix: Mix | None,
    precision: Precision,
) -> Reference:
    """Return the dense model as the target of images without labels."""
    if mix is not None:
        raise InputError("`mix` mixes labels, but the task is 'features': leave it out.")
    if isinstance(teacher, nn.Module):
        return Reference(teacher, data, precision)
    if isinstance(teacher, Reference):
        return teacher
    raise InputError(
        f"The images of {data.name} have no labels, so the dense model is the target of the "
        "training: give it as `teacher`."
    )
