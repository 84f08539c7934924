"""The loss of a training step: labels or targets, and the dense model's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.task import Task
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.training.checks import check_same_outputs
from vit_ratio_opt.training.recipe import Recipe

__all__ = ["BatchLoss", "TaskLoss", "soft_loss"]


class BatchLoss(Protocol):
    """Loss of a batch of images, with the forward pass that it needs."""

    def of_batch(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        targets: torch.Tensor,
        teacher: nn.Module | torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean loss of a batch, and the student's outputs.

        Args:
            forward: Forward pass of the student.
            images: Normalised images.
            targets: Labels or targets of the images.
            teacher: The teacher, or its outputs for the images; None without one.
        """


class TaskLoss:
    """Loss ``(1 - a) hard + a soft`` of a task, where ``a`` is the recipe's ``distillation``.

    - *Single label.* Cross-entropy, and ``T^2 KL(teacher || student)`` (Hinton 2015). With hard
      labels of the teacher, ``soft`` is the cross-entropy with its likeliest class instead.
    - *Several labels.* The binary cross-entropy of each class, and the same against the teacher's
      probabilities at the temperature ``T``.
    - *Features.* ``soft`` of a single label alone: there are no labels.
    - *Regression.* The smooth L1 distance to the targets and to the teacher's outputs, in units
      of each target's standard deviation over the training images.

    Without a teacher the loss is ``hard`` alone.

    Args:
        data: The data set.
        recipe: Has the weight ``a``, the temperature ``T``, label smoothing and class weights.
        device: Device of the outputs.

    Raises:
        InputError: The class weights do not fit the classes or the task, or hard labels of the
            teacher do not fit the task.
    """

    def __init__(self, data: ImageData, recipe: Recipe, device: torch.device) -> None:
        if recipe.teacher_labels == "hard" and data.task != "single-label":
            raise InputError(
                "`teacher_labels='hard'` is for images of one class each, but the task is "
                f"{data.task!r}: leave it out."
            )
        self._task, self._recipe = data.task, recipe
        weights = _class_weights(data, recipe)
        self._weights = None if weights is None else weights.to(device)
        self._scale: torch.Tensor | float = 1.0
        if data.task == "regression":
            self._scale = data.train.labels.std(dim=0).clamp_min(1e-6).to(device)

    def of_batch(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        targets: torch.Tensor,
        teacher: nn.Module | torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean loss of a batch and the outputs, see :class:`BatchLoss`."""
        outputs = forward(images)
        if not isinstance(teacher, nn.Module):
            return self(outputs, targets, teacher), outputs
        with torch.no_grad():
            soft = teacher(images)
        return self(outputs, targets, soft), outputs

    def __call__(
        self, outputs: torch.Tensor, targets: torch.Tensor, teacher: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the mean loss of a batch.

        Args:
            outputs: The student's, ``(batch, k)``.
            targets: Labels ``(batch,)``, class probabilities, several labels or regression
                targets ``(batch, k)``.
            teacher: The teacher's outputs ``(batch, k)``; None without distillation.
        """
        if self._task == "features":
            assert teacher is not None
            return self._soft(outputs, teacher)
        hard = self._hard(outputs, targets)
        if teacher is None:
            return hard
        soft = self._soft(outputs, teacher)
        return (1 - self._recipe.distillation) * hard + self._recipe.distillation * soft

    def _hard(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        smoothing = self._recipe.label_smoothing
        if self._task == "regression":
            return self._distance(outputs, targets)
        if self._task == "multi-label":
            targets = targets * (1 - smoothing) + smoothing / 2
            return F.binary_cross_entropy_with_logits(outputs, targets, pos_weight=self._weights)
        return F.cross_entropy(outputs, targets, self._weights, label_smoothing=smoothing)

    def _soft(self, outputs: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        check_same_outputs(outputs, teacher)
        if self._recipe.teacher_labels == "hard":
            return F.cross_entropy(outputs, teacher.argmax(dim=1))
        return soft_loss(
            outputs,
            teacher,
            self._task,
            temperature=self._recipe.temperature,
            target_scale=self._scale,
        )

    def _distance(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.smooth_l1_loss(outputs / self._scale, targets / self._scale)


def soft_loss(
    outputs: torch.Tensor,
    teacher: torch.Tensor,
    task: Task,
    *,
    temperature: float,
    target_scale: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """Return the loss ``soft`` of :class:`TaskLoss`, a mean over the batch.

    Args:
        outputs: The student's, ``(batch, k)``.
        teacher: The teacher's, ``(batch, k)``.
        task: Meaning of the outputs.
        temperature: Temperature of the soft labels; a regression has none.
        target_scale: Unit of each target of a regression, a number or ``(k,)``.
    """
    if task == "regression":
        return F.smooth_l1_loss(outputs / target_scale, teacher / target_scale)
    if task == "multi-label":
        soft = F.binary_cross_entropy_with_logits(
            outputs / temperature, (teacher / temperature).sigmoid()
        )
        return soft * temperature**2
    soft_labels = F.log_softmax(teacher / temperature, dim=1)
    student = F.log_softmax(outputs / temperature, dim=1)
    soft = F.kl_div(student, soft_labels, reduction="batchmean", log_target=True)
    return soft * temperature**2


def _class_weights(data: ImageData, recipe: Recipe) -> torch.Tensor | None:
    """Return the weight of each class, float32 ``(classes,)``; None where all are equal."""
    given, classes = recipe.class_weights, len(data.classes)
    if given is None:
        return None
    if data.task == "regression":
        raise InputError("`class_weights` are for labels, but the task is a regression: drop it.")
    if given != "balanced":
        if len(given) != classes:
            raise InputError(
                f"`class_weights` must have a weight for each of {classes} classes of "
                f"{data.name}, but has {len(given)}."
            )
        return torch.tensor(given)
    labels = data.train.labels
    if data.task == "multi-label":
        positive = labels.sum(dim=0)
        return (len(labels) - positive) / positive.clamp_min(1)
    counts = labels.bincount(minlength=classes).float()
    return len(labels) / (classes * counts.clamp_min(1))
