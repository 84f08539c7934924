"""The trainer of images without labels: a pruned model is brought back to its dense model."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.splits import Split
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.device import Precision
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.distributed import Ranks
from vit_ratio_opt.training.matching import Reference
from vit_ratio_opt.training.probes import Probe, probe
from vit_ratio_opt.training.progress import SearchProgress
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.trainer import ImageTrainer

__all__ = ["FeatureTrainer"]


class FeatureTrainer(ImageTrainer):
    """Trainer on ``data.train`` without labels, for a data set of the task ``"features"``.

    A pruned model is trained to give what the dense model gives for the same images, and its
    metric compares the two on the validation images:

    - *Encoder.* The features are matched, by 1 - cosine and smooth L1 of the output and of all
      tokens, in units of each channel's standard deviation. The metric is ``"cosine"``, the mean
      cosine of the outputs of both models: 1 for the dense model.
    - *Classifier.* The loss is ``T^2 KL(dense || pruned)``. The metric is ``"agreement"``, the
      share of the images that both models give the same class, or ``"kl"``.

    Attributes:
        dense: The dense model.

    Args:
        dense: The dense model, which is moved to the device.
        data: The data set.
        recipe: Hyperparameters of each training, without those of labels; ``distillation`` is not
            used.
        device: Device of the models, such as ``"cuda:0"``; the best one by default.
        precision: Precision of forward passes, see :class:`~vit_ratio_opt.ImageTrainer`.
        ranks: Processes that share each training; None for this process alone.
        progress: Progress bars of trainings whose context has none; None shows them in a terminal
            only.

    Raises:
        InputError: The data set has another task, or the metric or a value of the recipe does not
            fit.
    """

    def __init__(
        self,
        dense: ViT,
        data: ImageData,
        recipe: Recipe | None = None,
        *,
        device: torch.device | str | None = None,
        precision: Precision | None = None,
        ranks: Ranks | None = None,
        progress: SearchProgress | bool | None = None,
    ) -> None:
        if data.task != "features":
            raise InputError(
                f"{data.name} has the task {data.task!r}: load it with `task='features'`."
            )
        recipe, reference = recipe or Recipe(), Reference(dense, data)
        if recipe.metric is None:  # the usual one is stored: it depends on the model
            recipe = replace(recipe, metric=reference.usual_metric)
        reference.measure(recipe)  # refuses what does not fit the model
        super().__init__(
            data, recipe, device=device, precision=precision, ranks=ranks, progress=progress
        )
        self.dense = dense.to(self.device)
        self._known: Reference | None = None

    @property
    def reference(self) -> Reference:
        """Return the dense model with its outputs, which are computed once."""
        known = self._known
        if known is None or known.precision != self.precision:
            self._known = known = Reference(self.dense, self.data, self.precision)
        return known

    @property
    def has_probes(self) -> bool:
        """Return whether features can be probed: the images have labels that nothing else uses."""
        return self.data.has_labels and not self.reference.is_classifier

    def probe(self, model: nn.Module) -> Probe:
        """Move ``model`` to the device and probe its features on the test split."""
        return probe(model.to(self.device), self.data, precision=self.precision)

    def with_recipe(self, recipe: Recipe) -> FeatureTrainer:
        """Return a trainer of the same model, data, device and precision with another recipe."""
        other = FeatureTrainer(
            self.dense,
            self.data,
            recipe,
            device=self.device,
            precision=self.precision,
            ranks=self.ranks,
            progress=self.progress,
        )
        other.training_precision = self.training_precision
        other._known = self.reference
        return other

    def _targets(self, split: Split) -> torch.Tensor:
        return self.reference.targets(split)

    def _teacher(self, context: TrialContext) -> Reference:
        return self.reference
