"""Fine-tuning of a pruned model, or training of a dense one: the same loop."""

from __future__ import annotations

import torch
from torch import nn

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.device import Precision, model_device
from vit_ratio_opt.models.precision import Precisions
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.distributed import Ranks
from vit_ratio_opt.training.loop import Loop, Mix
from vit_ratio_opt.training.matching import Reference
from vit_ratio_opt.training.recipe import Recipe

__all__ = ["Mix", "finetune"]


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
            frozen (``requires_grad`` is False) stay unchanged.
        data: Data set; training on ``data.train``, validation on ``data.val`` after each epoch.
        recipe: Hyperparameters of the training.
        context: Seed, callbacks and file of the saved state, which is kept in the end. A resumed
            training ends with the same weights on the same machine. After the last epoch, no state
            is saved.
        teacher: The dense model, for distillation, on the device of ``model``; by default the
            context's. Or its logits for every image of ``data.train``, see
            :func:`~vit_ratio_opt.training.evaluate.predict`, if images are neither augmented nor
            mixed: then it need not run again. Images without labels need the dense model, or the
            ``reference`` of a :class:`~vit_ratio_opt.FeatureTrainer`, which keeps its outputs.
        mix: Function of the normalised images and the labels of each batch. It may return class
            probabilities for the labels, as torchvision's MixUp and CutMix do.
        precision: Precision of training and of evaluation, or one of each; by default the usual
            one of the model's device. Nothing is timed here: see
            :func:`~vit_ratio_opt.faster_precision`.
        ranks: Processes that share each batch of ``recipe.batch_size``, so that their number
            changes only the time (and the augmentation). All of them call this function. Rank 0
            reports and saves the state; all resume from it.

    Returns:
        The recipe's metric on the validation images after the last epoch.

    Raises:
        InputError: The saved state is of another training, the precision is unknown, or logits or
            frozen weights do not fit.
        TrainingDiverged: The loss is NaN or infinite.
        TrainingStopped: The context asked to stop.
    """
    context = context or TrialContext()
    teacher = context.teacher if teacher is None else teacher
    if recipe.epochs and not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            "All weights of the model are frozen, so there is nothing to train: call "
            "`model.requires_grad_(True)`."
        )
    precisions = Precisions.of(precision, model_device(model))
    if data.task == "features":
        teacher = _reference(data, teacher, mix, precisions.evaluation)
    elif isinstance(teacher, torch.Tensor):
        _check_logits(teacher, data, is_changed=bool(recipe.augment) or mix is not None)
    return Loop(model, data, recipe, context, teacher, mix, precisions, ranks).run()


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
