"""The dense model as the target of a data set without labels, and the loss that matches it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.splits import Split
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.classifier import gives_classes
from vit_ratio_opt.models.device import Precision, autocast, evaluating, model_device, precision_of
from vit_ratio_opt.models.families import FAMILIES
from vit_ratio_opt.models.shape import read_shape
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.training.evaluate import predict
from vit_ratio_opt.training.losses import BatchLoss, TaskLoss
from vit_ratio_opt.training.metrics import Measure, measure_of
from vit_ratio_opt.training.recipe import Recipe

__all__ = ["MatchingLoss", "Reference", "Scale", "final_tokens"]

# Training images of which means and deviations of channels are computed.
_SCALE_IMAGES = 256
# Smallest standard deviation of a channel, as a share of the median channel's: a channel that
# hardly varies tells images hardly apart.
_LEAST_DEVIATION = 0.1
# Outputs of 2 GB are kept.
_MOST_OUTPUTS = 2**29
# Hyperparameters of labels.
_OF_LABELS = ("label_smoothing", "class_weights", "teacher_labels")


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each channel of features, ``(channels,)``."""

    mean: torch.Tensor
    deviation: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor) -> Scale:
        """Return the scale of features ``(..., channels)``."""
        rows = features.flatten(0, -2).float()
        deviation = rows.std(dim=0, unbiased=False)
        least = _LEAST_DEVIATION * float(deviation.median())
        return cls(rows.mean(dim=0), deviation.clamp_min(max(least, 1e-6)))

    def distance(self, features: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Return 1 - cosine plus smooth L1 of normalised features, as a mean."""
        seen = (features.float() - self.mean) / self.deviation
        aim = (wanted.float() - self.mean) / self.deviation
        cosine = F.cosine_similarity(seen, aim, dim=-1).mean()
        return 1 - cosine + F.smooth_l1_loss(seen, aim)


class Reference:
    """The dense model, whose outputs are the targets of images without labels.

    Attributes:
        model: The dense model.
        is_classifier: Whether its outputs are logits.

    Args:
        model: The dense model, on the device of the trained models.
        data: The data set.
        precision: Precision of forward passes; by default the usual one of the model's device.
    """

    def __init__(self, model: Any, data: ImageData, precision: Precision | None = None) -> None:
        self.model, self.data = model, data
        self.precision: Precision = precision or precision_of(model_device(model))
        self.is_classifier = type(model) in FAMILIES and gives_classes(model)
        self._outputs: list[tuple[Split, torch.Tensor]] = []

    def targets(self, split: Split) -> torch.Tensor:
        """Return the dense model's outputs for a split of the data, float32, on the CPU.

        They are computed once, in the same way as those of a pruned model.

        Raises:
            InputError: They do not fit into memory.
        """
        for known, outputs in self._outputs:
            if known is split:
                return outputs
        one = predict(self.model, self.data, split.subset(torch.arange(1)))
        if one.numel() * len(split) > _MOST_OUTPUTS:
            raise InputError(
                f"The model gives {one.numel():,} numbers for each of {len(split):,} images "
                f"of {self.data.name}, too many to keep: use `model.reset_classifier(0, "
                "'token')` or 'avg', or fewer images."
            )
        outputs = predict(self.model, self.data, split, precision=self.precision)
        self._outputs.append((split, outputs))
        return outputs

    @property
    def usual_metric(self) -> str:
        """Return the name of the metric that suits the outputs."""
        return "agreement" if self.is_classifier else "cosine"

    def identity(self) -> dict[str, Any]:
        """Return JSON values that a resumed training must have as well."""
        return {"matched": weights_hash(self.model)}

    def loss(self, model: nn.Module, recipe: Recipe) -> BatchLoss:
        """Return the loss that brings a pruned model back to the dense one.

        The outputs of a classifier are compared as probabilities, those of any other model, and
        where the metric is their cosine, as features.

        Args:
            model: The pruned model.
            recipe: Has the metric, and the temperature of probabilities.
        """
        if self.is_classifier and not _is_named(recipe.metric, "cosine"):
            return TaskLoss(self.data, recipe, model_device(model))
        return MatchingLoss(model, self)

    def measure(self, recipe: Recipe) -> Measure:
        """Return the recipe's metric, or the usual one of the model's outputs.

        Raises:
            InputError: The metric does not fit the outputs, or the recipe has values that are for
                labels.
        """
        check_recipe(recipe)
        given = self.usual_metric if recipe.metric is None else recipe.metric
        if _is_named(given, "agreement", "kl") and not self.is_classifier:
            raise InputError(
                f"The metric {given!r} compares classes, but the model gives features: use "
                "'cosine', or a function of your own."
            )
        if _is_named(given, "cosine") and _gives_one_value(self.model):
            raise InputError(
                "The model gives one value for each image, which has no direction: give `metric` "
                "a function of your own."
            )
        return measure_of(given, self.data)

    @cached_property
    def scales(self) -> tuple[Scale, Scale | None]:
        """Return the scale of the outputs, and that of the tokens where the model has them."""
        train, device = self.data.train, model_device(self.model)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        drawn = train.subset(order[:_SCALE_IMAGES])
        images, _ = next(self.data.batches(drawn, _SCALE_IMAGES, device))
        with (
            torch.no_grad(),
            evaluating(self.model),
            autocast(device, self.precision),
            final_tokens(self.model) as tokens,
        ):
            outputs = self.model(images)
        return Scale.of(outputs), Scale.of(tokens[0]) if tokens else None


class MatchingLoss:
    """Loss that brings the features of a pruned model back to those of the dense one.

    It is 1 - cosine plus smooth L1, both of the output and of all tokens that enter the pooling,
    with each channel in units of the dense model's standard deviation. A model that leaves out
    tokens is compared by its output alone.

    Args:
        model: The pruned model.
        reference: The dense model.
    """

    def __init__(self, model: nn.Module, reference: Reference) -> None:
        self._model = model
        self._output_scale, self._token_scale = reference.scales

    def of_batch(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        targets: torch.Tensor,
        teacher: nn.Module | torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean loss of a batch and the outputs, see :class:`BatchLoss`."""
        assert isinstance(teacher, nn.Module)
        with final_tokens(self._model) as own:
            outputs = forward(images)
        with torch.no_grad(), final_tokens(teacher) as wanted:
            aims = teacher(images)
        loss = self._output_scale.distance(outputs, aims)
        are_alike = own and wanted and own[0].shape == wanted[0].shape
        if self._token_scale is not None and are_alike and outputs.ndim == 2:
            loss = loss + self._token_scale.distance(own[0], wanted[0])
        return loss, outputs


def _is_named(metric: Any, *names: str) -> bool:
    return isinstance(metric, str) and metric in names  # torchmetrics has its own ==


def _gives_one_value(model: nn.Module) -> bool:
    return type(model) in FAMILIES and read_shape(model).num_classes == 1


@contextmanager
def final_tokens(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Yield a list that gets the tokens ``(batch, tokens, dim)`` of each forward pass.

    They are what leaves the norm after the blocks, which timm's models have as ``norm``: an
    identity where the pooled features are normalised instead.
    """
    found: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        found.append(output)

    norm = getattr(model, "norm", None)
    if not isinstance(norm, nn.Module):
        yield found
        return
    handle = norm.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def check_recipe(recipe: Recipe) -> None:
    """Refuse hyperparameters of labels, which images without labels cannot have.

    Raises:
        InputError: With the hyperparameter.
    """
    defaults = Recipe()
    for name in _OF_LABELS:
        if getattr(recipe, name) != getattr(defaults, name):
            raise InputError(f"`{name}` is for labels, but the task is 'features': leave it out.")
    if recipe.distillation not in (defaults.distillation, 1):
        raise InputError(
            f"Without labels all of the loss compares with the dense model, so `distillation` "
            f"cannot be {recipe.distillation:g}: leave it out."
        )
