"""The loop over epochs and steps, which can be stopped and resumed at any step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from statistics import mean

import torch
from torch import nn

from vit_ratio_opt.data.augmentation import mix_or_cut
from vit_ratio_opt.data.feed import to_device
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.device import has_float64, model_device, random_state_kept
from vit_ratio_opt.models.elastic import ElasticViT
from vit_ratio_opt.models.precision import Precisions
from vit_ratio_opt.training.context import TrainingDiverged, TrainingStopped, TrialContext
from vit_ratio_opt.training.distributed import Polls, Ranks
from vit_ratio_opt.training.drop_path import drop_paths
from vit_ratio_opt.training.elastic import SandwichLoss, elastic_identity, models_in
from vit_ratio_opt.training.evaluate import measure_split
from vit_ratio_opt.training.losses import BatchLoss, TaskLoss
from vit_ratio_opt.training.matching import Reference
from vit_ratio_opt.training.metrics import measure_of
from vit_ratio_opt.training.progress import TrainingProgress
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.saved_state import TrainingState
from vit_ratio_opt.training.steps import Batch, Optimization

__all__ = ["Loop", "Mix"]

Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Images and labels of a batch to mixed images and labels, or class probabilities."""

_logger = logging.getLogger(f"optuna.{__name__}")
# `loss.item()` synchronises the GPU, so divergence is checked every 100 steps.
_STEPS_BETWEEN_CHECKS = 100


class Loop:
    """One training: its position, its random numbers and its saved state.

    Args:
        model: Trained in place.
        data: Trains on ``data.train``, validates on ``data.val``.
        recipe: The hyperparameters.
        context: Seed, callbacks and file of the saved state.
        teacher: The teacher, its logits for all images of ``data.train``, or the reference of a
            data set without labels.
        mix: Mixes the images and labels of each batch.
        precisions: Precisions of training and of evaluation.
        ranks: The processes that share each batch; None for this process alone.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        recipe: Recipe,
        context: TrialContext,
        teacher: nn.Module | torch.Tensor | Reference | None,
        mix: Mix | None,
        precisions: Precisions,
        ranks: Ranks | None,
    ) -> None:
        self._model, self._data, self._recipe, self._context = model, data, recipe, context
        self._precisions = precisions
        self._teacher = teacher.model if isinstance(teacher, Reference) else teacher
        self._device = model_device(model)
        self._feed = data.train.feed(self._device)
        self._ranks = ranks = ranks or Ranks(0, 1, self._device)
        self._steps_per_epoch = math.ceil(len(data.train) / recipe.batch_size)
        self._steps = recipe.epochs * self._steps_per_epoch
        self._reference = reference = teacher if isinstance(teacher, Reference) else None
        if reference is None:
            loss: BatchLoss = TaskLoss(data, recipe, self._device)
            if isinstance(model, ElasticViT):
                loss = SandwichLoss(loss, len(model.levels))
            self._measure = measure_of(recipe.metric, data)
        else:
            loss = reference.loss(model, recipe)
            self._measure = reference.measure(recipe)
        self._optimization = Optimization(
            model, recipe, self._steps, precisions.training, ranks, loss
        )
        self._generator = torch.Generator().manual_seed(context.seed)
        # The order of images has to be equal in all processes, which draw different numbers for
        # the augmentation of parts that differ in size.
        self._augmentation = self._generator
        if ranks.size > 1:
            self._augmentation = torch.Generator().manual_seed(context.seed + ranks.rank)
        self._polls = Polls(ranks)
        has_classes = reference is None and data.task in ("single-label", "multi-label")
        if mix is None and recipe.augment == "strong" and has_classes:
            mix = mix_or_cut(len(data.classes), self._augmentation)
        self._mix = mix
        self._step = 0
        self._accuracy: float | None = None
        self._loss_sum = torch.zeros(
            (),
            dtype=torch.float64 if has_float64(self._device) else torch.float32,
            device=self._device,
        )
        self._epoch_state = self._generator.get_state()
        self._saved = self._saved_state()

    def _saved_state(self) -> TrainingState | None:
        context = self._context
        if context.state is None:
            return None
        identity = {
            "recipe": self._recipe.to_json(),
            "seed": context.seed,
            "images": len(self._data.train),
            "validation": self._data.fingerprint,
            "precision": self._precisions.training,
            "mix": self._mix is not None,
            "teacher": self._teacher is not None,
            **({} if self._reference is None else self._reference.identity()),
            **elastic_identity(self._model),
            **context.identity,
        }
        parts = self._optimization.parts
        return TrainingState(context.state, identity, parts, self._generator, self._device)

    def run(self) -> float:
        """Train to the end and return the recipe's metric on the validation images.

        Raises:
            InputError: The saved state is damaged or of another training.
            TrainingDiverged: The loss is NaN or infinite.
            TrainingStopped: The context asked to stop.
        """
        context, average = self._context, self._optimization.average
        shown = context.progress if self._ranks.rank == 0 else False
        with (
            random_state_kept(self._device),
            drop_paths(self._model, self._recipe.drop_path),
            TrainingProgress(
                context.title, self._steps, self._steps_per_epoch, shown=shown
            ) as bar,
        ):
            torch.manual_seed(context.seed)  # mixing, dropout and stochastic depth
            self._resume()
            bar.skip(self._step)
            if self._step < self._steps or not self._steps:
                self._optimization.begin()  # all processes have rank 0's weights, trained or not
            while self._step < self._steps:
                self._run_epoch(bar)
        self._model.eval()
        if average is not None:
            self._model.load_state_dict(average.module.state_dict())
        return self._evaluate(self._model) if self._accuracy is None else float(self._accuracy)

    def _resume(self) -> None:
        if self._saved is None:
            return
        self._epoch_state, position = self._saved.load()
        if position:
            self._step = int(position["step"])
            self._accuracy = position["accuracy"]
            self._loss_sum.fill_(position["loss_sum"])
            self._context.on_resume()

    def _run_epoch(self, bar: TrainingProgress) -> None:
        """Make the steps that are left of an epoch, validate, save the state if due, report."""
        self._model.train()
        for batch in self._batches():
            with self._context.clock("train"):
                loss, logits = self._optimization.step(self._step, batch)
                self._step += 1
                self._loss_sum += loss / self._ranks.size
            if self._step % _STEPS_BETWEEN_CHECKS == 0:
                self._mean_loss()
            bar.count(batch.size)
            if bar.is_due(self._step):  # what it shows is computed on the device
                share = None
                if batch.labels.ndim == 1 and self._reference is None:
                    share = 100 * (logits.argmax(dim=1) == batch.labels).float().mean().item()
                bar.advance(self._step, loss.item(), share)
        mean_loss = self._mean_loss()
        self._accuracy = self._evaluate(self._optimization.average or self._model)
        self._epoch_state = self._generator.get_state()
        self._loss_sum.zero_()
        if self._step < self._steps and self._is_save_due():
            self._save(loss_sum=0.0)
        accuracy = self._accuracy
        self._in_rank_0(lambda: self._context.report(self._epochs_done, accuracy, mean_loss))

    def _batches(self) -> Iterator[Batch]:
        """Yield the batches that are left of this epoch; save or stop before a step if asked."""
        train = self._data.train
        done = self._step % self._steps_per_epoch  # not 0 if an epoch was interrupted
        now = self._generator.get_state()
        self._generator.set_state(self._epoch_state)
        order = torch.randperm(len(train), generator=self._generator)
        if done:
            self._generator.set_state(now)
        wholes = torch.split(order, self._recipe.batch_size)[done:]
        # A process without an image of a batch takes any one; its loss has no weight.
        owns = [own if len(own := self._ranks.share(whole)) else whole[:1] for whole in wholes]
        batches = self._feed.batches(owns)
        for whole, own in zip(wholes, owns, strict=True):
            self._save_or_stop()
            with self._context.clock("data"):
                batch = self._batch(*next(batches), whole=whole, own=own)
            yield batch

    def _batch(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        whole: torch.Tensor,
        own: torch.Tensor,
    ) -> Batch:
        """Return a batch, augmented, normalised and mixed."""
        if self._recipe.augment:
            images = self._data.augment(images, self._augmentation, self._recipe.augment)
        images, targets = self._data.normalise(images), labels
        if self._mix is not None:
            images, targets = self._mix(images, labels)
        has_teacher = self._recipe.distillation or self._reference is not None
        teacher = self._teacher if has_teacher else None
        if isinstance(teacher, torch.Tensor):
            teacher = to_device(teacher[own], self._device)
        # Each part's loss is a mean, and the processes' gradients are averaged.
        weight = len(self._ranks.share(whole)) * self._ranks.size / len(whole)
        return Batch(images, labels, targets, len(whole), teacher, weight)

    def _save_or_stop(self) -> None:
        """Save the state if that is due or any process is asked to stop, which ends all."""
        if not self._polls.is_due(self._step):
            return
        stops, saves = self._polls.sum(
            self._step, self._context.should_stop(), self._is_save_due()
        )
        if not stops and not saves:
            return
        # Every process has its part of the loss, and takes part in the sum.
        self._save(self._ranks.sum(self._loss_sum.item())[0] / self._ranks.size)
        if stops:
            raise TrainingStopped(f"stopped after step {self._step} of {self._steps}")
        self._in_rank_0(self._context.on_save)

    def _mean_loss(self) -> float:
        mean = self._loss_sum.item() / (1 + (self._step - 1) % self._steps_per_epoch)
        (mean,) = self._ranks.sum(mean)
        if not math.isfinite(mean):
            raise TrainingDiverged(f"The loss is {mean} after step {self._step} of {self._steps}.")
        return mean

    def _evaluate(self, model: nn.Module) -> float:
        split, reference = self._data.val, self._reference
        with self._context.clock("evaluate"):
            return mean(
                measure_split(
                    one,
                    self._data,
                    split,
                    self._measure,
                    targets=None if reference is None else reference.targets(split),
                    ranks=None if self._ranks.size == 1 else self._ranks,
                    precision=self._precisions.evaluation,
                )
                for one in models_in(model)
            )

    def _is_save_due(self) -> bool:
        """Return whether rank 0 has to save the state now; False in all other ranks."""
        has_state = self._saved is not None and self._ranks.rank == 0
        return has_state and self._context.should_save()

    def _save(self, loss_sum: float) -> None:
        if self._saved is None or self._ranks.rank > 0:
            return
        position = {"step": self._step, "accuracy": self._accuracy, "loss_sum": loss_sum}
        try:
            self._saved.save(self._epoch_state, position)
        except InputError as error:  # a full disk, say: no reason to lose the training
            _logger.warning(f"{error} The training continues, but could not be resumed.")

    @property
    def _epochs_done(self) -> int:
        return self._step // self._steps_per_epoch

    def _in_rank_0(self, tell: Callable[[], None]) -> None:
        """Tell rank 0's caller something while all others wait, for hours if need be.

        An exception raised there ends the training in all processes.
        """
        if self._ranks.rank > 0:
            if not self._ranks.broadcast():
                raise TrainingStopped("rank 0 ended the training")
            return
        try:
            tell()
        except BaseException:
            self._ranks.broadcast(False)
            raise
        self._ranks.broadcast(True)
