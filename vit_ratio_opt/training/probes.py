"""Probes of features: what their neighbours, and a linear classifier, know of the labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.splits import Split
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.device import Precision
from vit_ratio_opt.training.evaluate import predict

__all__ = ["Probe", "neighbour_votes", "probe"]

# Those of DINO (Caron 2021).
_NEIGHBOURS, _TEMPERATURE = 20, 0.07
_ITERATIONS = 1000  # at most, of the linear classifier
_ROWS = 2000  # of similarities that are in memory at the same time


@dataclass(frozen=True)
class Probe:
    """Accuracies in per cent of two classifiers on a model's features.

    Args:
        knn: Of the vote of the 20 nearest training images, weighted by ``exp(cosine / 0.07)``.
        linear: Of a logistic regression on standardised features (scikit-learn's, with its
            default penalty), fitted to the same training images.
        images: Number of test images.
        bank: Number of training images that were used.
        hits: For each probe, which test images are classified correctly, ``(images,)``.
    """

    knn: float
    linear: float
    images: int
    bank: int
    hits: dict[str, torch.Tensor] = field(repr=False, compare=False)

    def error(self, name: str) -> float:
        """Return the standard error of ``"knn"`` or ``"linear"`` over the test images."""
        return 100 * float(self.hits[name].double().std()) / math.sqrt(self.images)

    def change_to(self, pruned: Probe) -> dict[str, Any]:
        """Return both models' accuracies as JSON values, with the errors of the differences.

        Args:
            pruned: Probe of the pruned model on the same images.
        """
        errors = {
            name: 100 * float((own.double() - pruned.hits[name].double()).std())
            for name, own in self.hits.items()
        }
        return {
            "images": self.images,
            "bank": self.bank,
            "dense": {"knn": self.knn, "linear": self.linear},
            "pruned": {"knn": pruned.knn, "linear": pruned.linear},
            "errors": {name: error / math.sqrt(self.images) for name, error in errors.items()},
        }


def probe(
    model: nn.Module,
    data: ImageData,
    *,
    split: Split | None = None,
    bank_images: int = 10_000,
    precision: Precision | None = None,
) -> Probe:
    """Measure how well a model's features tell the classes of a data set apart.

    Nothing of the model is trained. Features of tokens are averaged over the tokens of an image.

    Args:
        model: Model that returns features, on its device.
        data: Data set with one class for each image, of any task.
        split: Images that are classified; the test split by default.
        bank_images: Largest number of training images, drawn with a fixed seed.
        precision: Precision of the forward passes; by default the usual one of the model's device.

    Raises:
        InputError: The images have no labels, or several labels or targets each.
    """
    if not data.has_labels or data.task not in ("single-label", "features"):
        raise InputError(
            f"A probe needs one class for each image, which {data.name} (task {data.task!r}) does "
            "not have."
        )
    split = data.test if split is None else split
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    bank = data.train.subset(order[:bank_images])
    known, seen = (_features(model, data, part, precision) for part in (bank, split))
    knn = neighbour_votes(seen, known, bank.labels) == split.labels
    linear = _linear_votes(seen, known, bank.labels) == split.labels
    hits = {"knn": knn, "linear": linear}
    shares = {name: 100 * float(part.double().mean()) for name, part in hits.items()}
    return Probe(**shares, images=len(split), bank=len(bank), hits=hits)


def _features(
    model: nn.Module, data: ImageData, split: Split, precision: Precision | None
) -> torch.Tensor:
    outputs = predict(model, data, split, precision=precision)
    return outputs.flatten(1, -2).mean(dim=1) if outputs.ndim > 2 else outputs


def neighbour_votes(
    features: torch.Tensor, bank: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Return the class that the nearest images of a bank vote for, ``(images,)``.

    Args:
        features: Features ``(images, dim)``.
        bank: Features of the bank, ``(bank, dim)``.
        labels: Classes of the bank, ``(bank,)``.
    """
    bank, found = F.normalize(bank, dim=1), []
    for part in torch.split(F.normalize(features, dim=1), _ROWS):
        near, places = (part @ bank.mT).topk(min(_NEIGHBOURS, len(bank)), dim=1)
        votes = torch.zeros(len(part), int(labels.max()) + 1)
        votes.scatter_add_(1, labels[places], (near / _TEMPERATURE).exp())
        found.append(votes.argmax(dim=1))
    return torch.cat(found)


def _linear_votes(
    features: torch.Tensor, bank: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    from sklearn.linear_model import LogisticRegression  # slow to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    classifier.fit(bank.numpy(), labels.numpy())
    return torch.from_numpy(classifier.predict(features.numpy()))
