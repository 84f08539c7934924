"""Distillation that enters any training loop through the gradient of the logits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from vit_ratio_opt.data.task import Task, check_task
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.device import evaluating
from vit_ratio_opt.training.losses import soft_loss

__all__ = ["distill"]

# The gradient of a mean cross-entropy has an L1 norm of at most 2. A loss that is summed over
# the batch or multiplied for half precision has much more.
_LARGEST_NORM = 100.0


def distill(
    model: nn.Module,
    teacher: nn.Module | None,
    *,
    weight: float = 0.5,
    temperature: float = 2.0,
    loss_scale: float | Callable[[], float] | None = None,
    task: Task = "single-label",
    target_scale: torch.Tensor | float = 1.0,
) -> RemovableHandle:
    """Distil from a teacher in whatever loop trains ``model``, until the handle is removed.

    Each forward pass with gradients also runs the teacher on the same images. The backward pass
    changes the gradient of the logits, so that the weights get the gradients of
    ``(1 - weight) * loss + weight * T^2 KL(teacher || model)``, where KL is a mean over the batch
    (Hinton 2015): the loss of the built-in trainer and, with ``task_loss_weight=1 - weight``, of
    timm's ``LogitDistillationTask``. The loss that the loop logs is its own. With several labels
    the KL is the binary cross-entropy of each class, and in a regression it is the smooth L1
    distance to the teacher's outputs, both means over images and outputs.

    Nothing wraps the model: its class, the names of its weights and what it returns are unchanged,
    so that optimisers, averages and saved files are those of the model. The teacher is no part.

    Args:
        model: Model that returns logits ``(batch, classes)`` or values ``(batch, targets)``.
        teacher: The dense model, on the device of ``model``; it stays in evaluation mode. None
            changes nothing.
        weight: Weight of the soft labels, in [0, 1]; the rest is the loop's loss.
        temperature: Temperature T of the soft labels.
        loss_scale: Factor between the mean loss of a batch and what the loop calls ``backward``
            on, or a function that returns it: ``scaler.get_scale`` in half precision, ``1 / n``
            to accumulate ``n`` batches. None means 1; loops with another scale are refused.
        task: Meaning of the outputs: ``"single-label"``, ``"multi-label"`` or ``"regression"``.
        target_scale: Unit of the distance of a regression, a number or one for each target: the
            built-in trainer takes the targets' standard deviation over the training images.

    Returns:
        A handle with ``remove()``, which is also a context manager.

    Raises:
        InputError: An option is out of range, shapes of outputs differ, a scale is missing, or
            a single output is taken for the logit of one class.

    Example:
        >>> with vro.distill(model, context.teacher):
        ...     my_loop(model)
    """
    _check_options(weight, temperature, task)
    if teacher is None:
        return model.register_forward_hook(_change_nothing)

    def soften(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        _check_outputs(outputs, targets, task)
        return weight * _gradient(outputs, targets, temperature, task, target_scale)

    hook = _teach(teacher, soften, 1 - weight, loss_scale)
    return model.register_forward_hook(hook, with_kwargs=True)


def _change_nothing(module: nn.Module, args: Any, output: Any) -> None:
    """Leave a model without a teacher as it is."""


def _teach(
    teacher: nn.Module,
    soften: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    rest: float,
    loss_scale: float | Callable[[], float] | None,
) -> Callable[..., None]:
    """Return a forward hook that mixes the gradient of the outputs with that of the soft loss.

    Args:
        teacher: The dense model.
        soften: Function of the outputs of model and teacher that returns the weighted gradient.
        rest: Weight of the loop's own gradient.
        loss_scale: See :func:`distill`.
    """
    batches = itertools.count()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def run_teacher(module: nn.Module, args: Any, options: Any, logits: torch.Tensor) -> None:
        # A function, not an object: a copy of the model, such as an average, copies no teacher.
        if not logits.requires_grad:
            return
        with torch.no_grad(), evaluating(teacher):
            soft = soften(logits.detach(), teacher(*args, **options))

        def mix(gradient: torch.Tensor) -> torch.Tensor:
            if loss_scale is None:
                _check_scale(gradient, module, is_first=next(batches) == 0)
            scale = loss_scale() if callable(loss_scale) else loss_scale
            added = soft if scale is None else scale * soft
            return rest * gradient + added.to(gradient.dtype)

        logits.register_hook(mix)  # type: ignore[no-untyped-call]

    return run_teacher  # type: ignore[no-any-return]


def _check_options(weight: float, temperature: float, task: Task) -> None:
    if not (0 <= weight <= 1 and temperature > 0):
        raise InputError(
            "`weight` must be in [0, 1] and `temperature` above 0, but got "
            f"{weight!r} and {temperature!r}."
        )
    check_task(task)
    if task == "features":
        raise InputError(
            "`distill` adds the teacher to a loss of labels, but features have none: train the "
            "model with a loss against the teacher's features."
        )


def _check_outputs(outputs: torch.Tensor, targets: torch.Tensor, task: Task) -> None:
    if outputs.dim() != 2 or outputs.shape != targets.shape:
        raise InputError(
            "Distillation needs logits (batch, classes) of model and teacher, but they are "
            f"{tuple(outputs.shape)} and {tuple(targets.shape)}."
        )
    if task == "single-label" and outputs.shape[1] == 1:
        raise InputError(
            "The only class of a single output always has the probability 1: give `distill` the "
            "`task` of the output, 'multi-label' or 'regression'."
        )


def _gradient(
    outputs: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    task: Task,
    target_scale: torch.Tensor | float,
) -> torch.Tensor:
    """Return the gradient by ``outputs`` of the soft loss, the mean of the batch."""
    outputs, targets = outputs.float(), targets.float()
    if task == "single-label":
        student, dense = (torch.softmax(x / temperature, dim=1) for x in (outputs, targets))
        return (student - dense) * (temperature / len(outputs))
    if isinstance(target_scale, torch.Tensor):
        target_scale = target_scale.to(outputs)
    with torch.enable_grad():
        loss = soft_loss(
            outputs.requires_grad_(),
            targets,
            task,
            temperature=temperature,
            target_scale=target_scale,
        )
    return torch.autograd.grad(loss, outputs)[0]


def _check_scale(gradient: torch.Tensor, model: nn.Module, *, is_first: bool) -> None:
    """Refuse a loss that is plainly no mean over the batch.

    Before the gradient has passed the logits, no weight has one of this batch. A weight that has
    one nevertheless has it from a batch before.
    """
    # `item()` synchronises the GPU.
    norm = gradient.float().abs().sum().item() if is_first else 0.0
    if norm > _LARGEST_NORM:
        raise InputError(
            f"The gradient of the logits has an L1 norm of {norm:.3g}, so the loss of the loop is "
            "scaled, or summed over the batch: give `distill` its `loss_scale`, such as "
            "`scaler.get_scale`, the size of a batch, or 1.0 for a mean of large errors."
        )
    trained = [weight.grad for weight in model.parameters() if weight.requires_grad]
    if trained and trained[-1] is not None and bool(trained[-1].any()):
        raise InputError(
            "The loop accumulates the gradients of several batches: give `distill` its "
            "`loss_scale`, which is 1 / n if the loss of each of n batches is divided by n."
        )
