"""Losses of a training step."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vit_ratio_opt.training.recipe import Recipe

__all__ = ["distillation_loss"]


def distillation_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    recipe: Recipe,
) -> torch.Tensor:
    """Return ``(1 - a) cross-entropy + a T^2 KL(teacher || student)`` (Hinton 2015).

    Args:
        logits: The student's, ``(batch, classes)``.
        targets: Labels ``(batch,)``, or class probabilities ``(batch, classes)``.
        teacher_logits: The teacher's, ``(batch, classes)``; None for cross-entropy alone.
        recipe: Has the weight ``a`` (``distillation``) and the temperature ``T``.
    """
    hard = F.cross_entropy(logits, targets)
    if teacher_logits is None:
        return hard
    soft_labels = F.log_softmax(teacher_logits / recipe.temperature, dim=1)
    student = F.log_softmax(logits / recipe.temperature, dim=1)
    soft = F.kl_div(student, soft_labels, reduction="batchmean", log_target=True)
    soft = soft * recipe.temperature**2
    return (1 - recipe.distillation) * hard + recipe.distillation * soft
