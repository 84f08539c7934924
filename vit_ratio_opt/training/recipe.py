"""How a model is trained: the hyperparameters of fine-tuning, and of training from scratch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, Literal, get_args

from vit_ratio_opt.data.task import Augmentation
from vit_ratio_opt.errors import InputError

__all__ = ["CUSTOM", "Recipe"]

CUSTOM = "custom: "
"""Beginning of the stored name of a metric that is no name of a built-in one."""

# Hyperparameters that older studies do not store.
_SPARSE = ("label_smoothing", "class_weights", "metric", "drop_path", "teacher_labels")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters of a training with AdamW.

    Recipes by name: :meth:`short` for the trials of a search, :meth:`standard` for the model that
    is kept, and :meth:`imagenet` for large pretrained models.

    Args:
        epochs: Passes over the training split; 0 leaves the model unchanged.
        batch_size: Images in a step.
        lr: Peak learning rate. ``"auto"`` fits it to the width of the model and to the divergence
            from the dense model before the training, see :mod:`vit_ratio_opt.training.fitting`;
            nothing is trained where nothing was lost.
        weight_decay: Weight decay; biases, norms and embeddings have none (timm's rule).
        warmup: Share of all steps in which the learning rate rises, in [0, 1). Afterwards the
            rate falls along a cosine.
        clip_norm: Largest gradient norm.
        distillation: Weight of the teacher's soft labels in the loss, in [0, 1]; the rest is
            cross-entropy with the true labels. Without a teacher the loss is cross-entropy alone.
        temperature: Temperature of the soft labels (Hinton 2015).
        ema: Decay of an exponential moving average of the weights, in [0, 1); 0 for none. The
            average is evaluated and kept. In the first steps the decay is smaller (timm's
            warm-up).
        layer_decay: Factor of the learning rate from each block to the block before it, in (0, 1].
        drop_path: Rate of stochastic depth in the last block, in [0, 1); it rises linearly from 0
            in the first block. 0 leaves the rates as the model has them.
        teacher_labels: ``"soft"`` for the teacher's probabilities, ``"hard"`` for its likeliest
            class, as DeiT does (Touvron 2021); hard ones are for images of one class each.
        label_smoothing: Share of each true label that is spread over all classes, in [0, 1); for
            labels, not for regression.
        class_weights: Weights of the classes in the cross-entropy, by label; ``"balanced"``
            weights each class by the inverse of its share of the training images. With several
            labels, the weights of the images that have the label.
        metric: Name of the metric that validates, see
            :data:`~vit_ratio_opt.training.metrics.MEASURES`, a :class:`~vit_ratio_opt.Measure`, or
            an object of torchmetrics. By default the accuracy, the mean average precision of
            several labels, or the mean absolute error of a regression.
        augment: How training images are changed at random. Meant for many epochs: in the few
            epochs after pruning it lowered the accuracy in every measurement.

            - True: shifted by up to an eighth, and mirrored.
            - ``"crop"``: a random part, enlarged to the whole, and mirrored; images of at most 64
              pixels as by True.
            - ``"strong"``: as ``"crop"``, and RandAugment, Random Erasing, and MixUp or CutMix in
              each batch, with DeiT's values (Touvron 2021).

    Raises:
        InputError: A value is out of range.
    """

    epochs: int = 1
    batch_size: int = 128
    lr: float | Literal["auto"] = "auto"
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip_norm: float = 1.0
    distillation: float = 0.5
    temperature: float = 2.0
    ema: float = 0.0
    layer_decay: float = 1.0
    drop_path: float = 0.0
    teacher_labels: Literal["soft", "hard"] = "soft"
    augment: bool | Augmentation = False
    label_smoothing: float = 0.0
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    metric: Any = None

    def __post_init__(self) -> None:
        rules = {
            "epochs": (self.epochs >= 0, "at least 0"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "lr": (self.lr == "auto" or _is_above_0(self.lr), "above 0, or 'auto'"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
            "warmup": (0 <= self.warmup < 1, "in [0, 1)"),
            "clip_norm": (self.clip_norm > 0, "above 0"),
            "distillation": (0 <= self.distillation <= 1, "in [0, 1]"),
            "ema": (0 <= self.ema < 1, "in [0, 1)"),
            "augment": (
                self.augment in (False, True, *get_args(Augmentation)),
                "True, False, 'crop' or 'strong'",
            ),
            "layer_decay": (0 < self.layer_decay <= 1, "in (0, 1]"),
            "drop_path": (0 <= self.drop_path < 1, "in [0, 1)"),
            "teacher_labels": (self.teacher_labels in ("soft", "hard"), "'soft' or 'hard'"),
            "temperature": (0 < self.temperature < math.inf, "above 0"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(f"`{name}` must be {rule}, but got {getattr(self, name)!r}.")
        weights = self.class_weights
        if weights is not None and weights != "balanced":
            object.__setattr__(self, "class_weights", tuple(map(float, weights)))
            if not all(0 < weight < math.inf for weight in weights):
                raise InputError(f"`class_weights` must be above 0, but got {weights!r:.80}.")

    @classmethod
    def short(cls, **changes: Any) -> Recipe:
        """Return the recipe for the trials of a search: one epoch.

        Args:
            **changes: Fields with other values.
        """
        return replace(cls(epochs=1, lr="auto"), **changes)

    @classmethod
    def standard(cls, **changes: Any) -> Recipe:
        """Return the recipe for the model that is kept: ten epochs, with averaged weights.

        Args:
            **changes: Fields with other values.
        """
        return replace(cls(epochs=10, lr="auto", ema=0.99), **changes)

    @classmethod
    def imagenet(cls, **changes: Any) -> Recipe:
        """Return the recipe for a pruned ViT of ImageNet size: 100 epochs.

        Give the trainer a convolutional network as ``teacher``, as DeiT has; without one, the
        dense model teaches. The values are from:

        - DeiT (Touvron 2021, arXiv 2012.12877): 1,024 images in a batch, weight decay 0.05, 5
          epochs of warm-up, label smoothing 0.1, stochastic depth 0.1, strong augmentation, and
          half of the loss from the hard labels of the teacher.
        - The fine-tuning of MAE (He 2022, arXiv 2111.06377): 100 epochs, and a learning rate that
          falls by 0.75 from block to block (that of its ViT-L; 0.65 for ViT-B).
        - This package: the peak learning rate. DeiT's 1e-3 is for training from scratch.

        Args:
            **changes: Fields with other values.
        """
        recipe = cls(
            epochs=100,
            batch_size=1024,
            lr="auto",
            weight_decay=0.05,
            warmup=0.05,
            layer_decay=0.75,
            drop_path=0.1,
            label_smoothing=0.1,
            distillation=0.5,
            teacher_labels="hard",
            augment="strong",
        )
        return replace(recipe, **changes)

    @property
    def peak_lr(self) -> float:
        """Return the learning rate as a number.

        Raises:
            InputError: It is ``"auto"``, which only a training resolves.
        """
        if self.lr == "auto":
            raise InputError("`lr` must be a number here, but is 'auto': name one.")
        return self.lr

    def to_json(self) -> dict[str, Any]:
        """Return the hyperparameters as JSON values, without new ones that have their default."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        if self.metric is not None and not isinstance(self.metric, str):
            given = getattr(self.metric, "metric", None)
            name = getattr(given, "name", type(self.metric).__name__)
            values["metric"] = f"{CUSTOM}{name}"
        for name in _SPARSE:
            if values[name] == getattr(Recipe, name):
                del values[name]
        return values


def _is_above_0(value: object) -> bool:
    return isinstance(value, Real) and 0 < float(value) < math.inf
