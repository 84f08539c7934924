"""Accuracy of each class before and after pruning, and which classes fell."""

from __future__ import annotations

import math
from dataclasses import dataclass

from optuna.study import Study
from optuna.trial import FrozenTrial

from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.utils.text import shorten

__all__ = ["ClassAccuracy", "class_accuracies", "fallen_sentence"]

# A class fell if it lost this many standard errors more than the other classes together.
_ERRORS = 5
_SHOWN = 5


@dataclass(frozen=True)
class ClassAccuracy:
    """Validation accuracies of a class in per cent.

    Args:
        name: Name of the class.
        images: Number of its validation images.
        dense: Accuracy of the dense model.
        pruned: Accuracy of the answer's model.
        error: Standard error of the difference in points.
        has_fallen: Whether the class lost over five standard errors more than the other classes.
    """

    name: str
    images: int
    dense: float
    pruned: float
    error: float
    has_fallen: bool

    @property
    def drop(self) -> float:
        """Return the loss in points."""
        return self.dense - self.pruned


def class_accuracies(study: Study, trial: FrozenTrial | None) -> list[ClassAccuracy]:
    """Return the accuracies of the classes that have validation images, most loss first.

    Args:
        study: The study. It knows the accuracies once its answer was tested.
        trial: Trial of the answer; nothing is returned if another trial's model was evaluated.
    """
    record = record_of(study)
    stored, settings = record.per_class, record.optional_settings
    names = None if settings is None else settings.classes
    if not stored or names is None or trial is None or stored["trial"] != trial.number:
        return []
    counts = [stored[key] for key in ("images", "dense", "pruned")]
    if any(len(part) != len(names) for part in counts) or not sum(counts[0]):
        return []
    every, lost = sum(counts[0]), sum(counts[1]) - sum(counts[2])
    rows = []
    for name, images, dense, pruned in zip(names, *counts, strict=True):
        if not images:
            continue
        error = math.sqrt(_variance(dense, images) + _variance(pruned, images))
        others = (lost - (dense - pruned)) / max(1, every - images)
        excess = (dense - pruned) / images - others
        rows.append(
            ClassAccuracy(
                shorten(name),
                images,
                100 * dense / images,
                100 * pruned / images,
                100 * error,
                excess > _ERRORS * error,
            )
        )
    return sorted(rows, key=lambda row: -row.drop)


def _variance(right: int, images: int) -> float:
    """Return the variance of a share with one success and one failure added (Agresti 2000).

    So it is not 0 where all images, or none, are classified correctly.
    """
    share = (right + 1) / (images + 2)
    return share * (1 - share) / (images + 2)


def fallen_sentence(study: Study, trial: FrozenTrial | None) -> str | None:
    """Return a sentence about the classes that fell; None if there are none."""
    rows = class_accuracies(study, trial)
    fallen = [row for row in rows if row.has_fallen]
    if not fallen:
        return None
    listed = ", ".join(
        f"{row.name} {row.dense:.1f} -> {row.pruned:.1f} %" for row in fallen[:_SHOWN]
    )
    more = f" and {len(fallen) - _SHOWN} more" if len(fallen) > _SHOWN else ""
    total = sum(row.images for row in rows)
    drop = sum(row.images * row.drop for row in rows) / total
    return (
        f"Some classes lose far more than the mean, whose accuracy falls by {drop:.1f} points on "
        f"the validation images: {listed}{more}, of {len(rows)} classes. Each falls by over "
        f"{_ERRORS} standard errors more than the others."
    )
