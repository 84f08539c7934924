"""One training step: forward and backward pass, in parts if memory is short, and the update."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from vit_ratio_opt.models.device import (
    Precision,
    autocast,
    free_memory,
    is_out_of_memory,
    model_device,
)
from vit_ratio_opt.training.distributed import Ranks
from vit_ratio_opt.training.losses import BatchLoss
from vit_ratio_opt.training.recipe import Recipe

__all__ = ["Batch", "Optimization"]

_logger = logging.getLogger(f"optuna.{__name__}")
# Devices on which PyTorch updates all weights of a group by one call.
_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


@dataclass(frozen=True)
class Batch:
    """The part of a batch that this process trains on, on its device.

    Args:
        images: Normalised images ``(batch, channels, height, width)``.
        labels: True labels ``(batch,)``.
        targets: What the loss compares with: labels ``(batch,)``, or class probabilities
            ``(batch, classes)``.
        size: Number of images of the batch in all processes.
        teacher: The teacher, or its logits ``(batch, classes)``; None without distillation.
        weight: Weight of the loss. Processes may have parts of different sizes, and gradients are
            averaged over the processes.
    """

    images: torch.Tensor
    labels: torch.Tensor
    targets: torch.Tensor
    size: int
    teacher: nn.Module | torch.Tensor | None
    weight: float


class Optimization:
    """Everything that changes the weights: optimiser, schedule, gradient scaler and average.

    Attributes:
        average: Moving average of the weights; None if the recipe has none.

    Args:
        model: Trained in place.
        recipe: The hyperparameters.
        steps: Number of steps in all epochs.
        precision: Precision of forward passes.
        ranks: The processes that share each batch.
        loss: Loss of a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        steps: int,
        precision: Precision,
        ranks: Ranks,
        loss: BatchLoss,
    ) -> None:
        self._model, self._recipe, self._precision, self._ranks = model, recipe, precision, ranks
        self._forward, self._loss = model, loss
        self._pieces = 1
        self._optimizer = create_optimizer_v2(
            model,
            opt="adamw",
            lr=recipe.peak_lr,
            weight_decay=recipe.weight_decay,
            layer_decay=None if recipe.layer_decay == 1 else recipe.layer_decay,
            fused=model_device(model).type in _FUSED_DEVICES,
        )
        self._optimizer.register_load_state_dict_pre_hook(_keep_implementation)
        self.average = ModelEmaV3(model, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        self._scheduler = CosineLRScheduler(
            self._optimizer,
            t_initial=max(2, steps),
            warmup_t=round(recipe.warmup * steps),
            warmup_lr_init=recipe.peak_lr / 100,
            lr_min=recipe.peak_lr / 100,
            warmup_prefix=False,
            t_in_epochs=False,
        )
        # Idle unless the GPU lacks bfloat16.
        self._scaler = torch.amp.GradScaler(
            model_device(model).type, enabled=precision == "float16"
        )

    @property
    def parts(self) -> dict[str, Any]:
        """Return what has to be saved to resume the training."""
        parts = {"model": self._model, "optimizer": self._optimizer, "scaler": self._scaler}
        return parts if self.average is None else {**parts, "average": self.average}

    def begin(self) -> None:
        """Synchronise the weights and gradients of all processes from now on."""
        self._forward = self._ranks.wrap(self._model)

    def step(self, number: int, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Make one step and return the loss and the logits of the batch, without gradients.

        Args:
            number: Number of steps that were made before.
            batch: The images of the step.
        """
        self._scheduler.step_update(number)
        loss, logits = self._gradients(batch)
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._model.parameters(), self._recipe.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self.average is not None:
            self.average.update(self._model, step=number + 1)
        return loss, logits

    def _gradients(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the gradients of a batch, in twice as many parts after each lack of memory."""
        images = batch.images
        while True:
            self._optimizer.zero_grad(set_to_none=True)
            try:
                return self._backward(batch)
            except RuntimeError as error:
                cannot_split = self._ranks.size > 1 or self._pieces >= len(images)
                if cannot_split or not is_out_of_memory(error):
                    raise
            self._pieces *= 2
            _logger.warning(
                f"A batch of {len(images)} images does not fit into memory: it is processed in "
                f"{self._pieces} parts, with the same gradients."
            )
            free_memory(images.device)

    def _backward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradients of a batch, part by part; return its loss and logits."""
        losses, outputs = [], []
        images, teacher, pieces = batch.images, batch.teacher, self._pieces
        teachers = (
            teacher.chunk(pieces) if isinstance(teacher, torch.Tensor) else [teacher] * pieces
        )
        parts = zip(images.chunk(pieces), batch.targets.chunk(pieces), teachers, strict=False)
        for part, targets, part_teacher in parts:
            with autocast(images.device, self._precision):
                loss, logits = self._loss.of_batch(self._forward, part, targets, part_teacher)
            loss = loss * (batch.weight * len(part) / len(images))
            torch.autograd.backward(self._scaler.scale(loss))
            losses.append(loss.detach())
            outputs.append(logits.detach())
        return torch.stack(losses).sum(), torch.cat(outputs)


def _keep_implementation(
    optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> dict[str, Any]:
    """Load a saved state into the optimiser's own implementation, whichever one saved it."""
    own = {name: optimizer.defaults[name] for name in ("fused", "foreach")}
    return {**state, "param_groups": [{**group, **own} for group in state["param_groups"]]}
