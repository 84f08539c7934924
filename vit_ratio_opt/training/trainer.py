"""The built-in trainer: fine-tuning and a metric on a data set of images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.splits import Split
from vit_ratio_opt.models.device import (
    Precision,
    check_precision,
    check_training_precision,
    device_name,
    precision_of,
    resolve_device,
)
from vit_ratio_opt.models.precision import Precisions
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.distributed import Ranks
from vit_ratio_opt.training.evaluate import count_correct, measure_split, predict
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.matching import Reference
from vit_ratio_opt.training.metrics import measure_of, standard_error
from vit_ratio_opt.training.progress import SearchProgress
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.teacher import OtherTeacher

__all__ = ["ImageTrainer"]

# Teacher logits up to 256 MB are kept.
_MAX_LOGITS = 2**26


class ImageTrainer:
    """Trainer on ``data.train`` that returns the recipe's metric.

    Attributes:
        metric: Metric of the recipe; the top-1 accuracy in per cent by default.
        teacher: The teacher that is not the dense model; None where the dense model teaches.
        precision: Precision in which models are evaluated. A study sets it where
            :attr:`is_precision_given` is False.
        training_precision: Precision in which models are trained, which a study may set as well;
            that of evaluation if None.
        is_precision_given: Whether the caller chose the precision.

    Args:
        data: The data set.
        recipe: Hyperparameters of each training; the default ones if None.
        device: Device of the models, such as ``"cuda:0"``; the best one by default.
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``. By default the usual one of the
            device, mixed on a GPU and full elsewhere, or what a new study measures to be faster.
        ranks: Processes that share each training; None for this process alone.
        progress: Progress bars of trainings whose context has none; None shows them in a terminal
            only.
        teacher: Trained model that teaches instead of the dense one, such as a convolutional
            network (Touvron 2021). It is copied, and sees images in its own normalisation.

    Raises:
        InputError: This machine has no such device, the precision is unknown, or the metric or the
            teacher does not fit the data.
    """

    def __init__(
        self,
        data: ImageData,
        recipe: Recipe | None = None,
        *,
        device: torch.device | str | None = None,
        precision: Precision | None = None,
        ranks: Ranks | None = None,
        progress: SearchProgress | bool | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        check_precision(precision)
        self.data, self.recipe = data, recipe or Recipe()
        self._measure = measure_of(self.recipe.metric, data)
        self.metric = self._measure.metric
        self.ranks, self.progress = ranks, progress
        self.device = resolve_device(ranks.device if device is None and ranks else device)
        self.precision: Precision = precision or precision_of(self.device)
        if self.epochs:
            check_training_precision(self.precision, self.device)
        self.training_precision: Precision | None = None
        self.is_precision_given = precision is not None
        self.teacher = None if teacher is None else OtherTeacher(teacher, data)
        self._logits: tuple[nn.Module, Precision, torch.Tensor] | None = None

    @property
    def device_name(self) -> str:
        """Return the name of the device, such as ``"NVIDIA H100"``."""
        return device_name(self.device)

    @property
    def epochs(self) -> int:
        """Return the number of epochs of each training."""
        return self.recipe.epochs

    def with_recipe(self, recipe: Recipe) -> ImageTrainer:
        """Return a trainer of the same data, device and precision with another recipe."""
        other = ImageTrainer(
            self.data,
            recipe,
            device=self.device,
            precision=self.precision,
            ranks=self.ranks,
            progress=self.progress,
            teacher=None if self.teacher is None else self.teacher.model,
        )
        other.training_precision = self.training_precision
        return other

    def identity(self) -> dict[str, Any]:
        """Return the settings of data and training, by the names of ``StudySettings``.

        Two results are comparable if all of it is equal.
        """
        data = self.data
        return {
            "dataset": data.name,
            "training": data.training_fingerprint,
            "validation": data.fingerprint,
            "test": data.test_fingerprint,
            "image_shape": data.image_shape,
            "preprocessing": data.preprocessing,
            "classes": data.classes,
            "mean": data.mean,
            "std": data.std,
            "flip": data.flip,
            "recipe": self.recipe.to_json(),
            "precision": self.precision,
            "training_precision": self.training_precision,
            **({} if self.teacher is None else {"teacher": weights_hash(self.teacher)}),
        }

    def evaluate(self, model: nn.Module) -> float:
        """Move ``model`` to the device and return its metric on the validation split."""
        return self._value(model, self.data.val)

    def test(self, model: nn.Module) -> float:
        """Move ``model`` to the device and return its metric on the test split."""
        return self._value(model, self.data.test)

    def count_correct(self, model: nn.Module) -> list[int]:
        """Return how many validation images of each class are classified correctly."""
        split, model = self.data.val, model.to(self.device)
        counts: list[int] = count_correct(
            model, self.data, split, precision=self.precision
        ).tolist()
        return counts

    def standard_error(self, model: nn.Module) -> float:
        """Return the standard error of :meth:`evaluate` over draws of the validation images."""
        split = self.data.val
        outputs = predict(model.to(self.device), self.data, split, precision=self.precision)
        return standard_error(self._measure, outputs, self._targets(split))

    def _value(self, model: nn.Module, split: Split) -> float:
        return measure_split(
            model.to(self.device),
            self.data,
            split,
            self._measure,
            targets=self._targets(split),
            precision=self.precision,
        )

    def _targets(self, split: Split) -> torch.Tensor:
        """Return what the outputs for a split are compared with."""
        return split.labels

    def train(self, model: nn.Module, context: TrialContext) -> float:
        """Move ``model`` to the device, train it in place and return its validation metric.

        Args:
            model: Model that returns class logits, or the outputs of a regression.
            context: Seed, teacher, callbacks and file of the saved state.

        Raises:
            InputError: The saved state is of another training, or logits or frozen weights do not
                fit.
            TrainingDiverged: The loss is NaN or infinite.
            TrainingStopped: The context asked to stop.
        """
        with context.clock("train"):
            teacher = self._teacher(context)
        # Where the dense model teaches, its outputs are not computed a second time.
        dense = context.teacher if teacher is None or self.teacher is not None else None
        progress = self.progress if context.progress is None else context.progress
        return finetune(
            model.to(self.device),
            self.data,
            self.recipe,
            replace(context, progress=progress, teacher=dense),
            teacher=teacher,
            precision=Precisions(
                training=self.training_precision or self.precision, evaluation=self.precision
            ),
            ranks=self.ranks,
        )

    def _teacher(self, context: TrialContext) -> nn.Module | torch.Tensor | Reference | None:
        """Return the teacher of a training."""
        teacher = context.teacher if self.teacher is None else self.teacher
        return None if teacher is None else self.teacher_of(teacher)

    def teacher_of(self, model: nn.Module) -> nn.Module | torch.Tensor | None:
        """Return the teacher of a training: logits if that is possible, else ``model``.

        Logits are computed once for all trials: computing them takes longer than training a small
        pruned model. None if the recipe does not distill.

        Args:
            model: The teacher, such as the dense model.
        """
        if self.recipe.distillation == 0:
            return None
        model = model.to(self.device)
        if self.recipe.augment or len(self.data.train) * len(self.data.classes) > _MAX_LOGITS:
            return model
        known = self._logits
        if known is None or known[0] is not model or known[1] != self.precision:
            logits = predict(model, self.data, self.data.train, precision=self.precision)
            self._logits = known = (model, self.precision, logits)
        return known[2]
