"""The metric that a search improves or keeps: name, unit, direction, noise, and its words."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from vit_ratio_opt.errors import InputError

__all__ = ["ACCURACY", "COSINE", "Metric"]


@dataclass(frozen=True)
class Metric:
    """Metric of a model on the validation data.

    A *point* is the unit in which a search expects differences and noise: one percentage point
    where the unit is ``"%"``, and one per cent of the dense model's value elsewhere.

    Args:
        name: Name in reports, such as ``"accuracy"`` or ``"mean absolute error"``.
        unit: Unit of its values, such as ``"%"`` or ``"mm"``; empty if it has none.
        larger_is_better: Whether a larger value is a better model.
        noise: Standard deviation of the value over seeds of the training, in the unit of the
            values; None where it is unknown. Metrics that differ in it alone are equal.

    Raises:
        InputError: The name is empty, or the noise is no number of at least 0.
    """

    name: str
    unit: str = ""
    larger_is_better: bool = True
    noise: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InputError("A metric needs a name, such as 'accuracy'.")
        if self.noise is not None and not 0 <= self.noise < math.inf:
            raise InputError(
                f"`noise` of the metric {self.name!r} must be at least 0, but got {self.noise!r}."
            )

    def to_json(self) -> dict[str, Any]:
        """Return name, unit and direction as a study stores them."""
        return {"name": self.name, "unit": self.unit, "larger_is_better": self.larger_is_better}

    @property
    def sign(self) -> int:
        """Return 1 where larger values are better, else -1."""
        return 1 if self.larger_is_better else -1

    def loss(self, dense: float, value: float) -> float:
        """Return by how much a value is worse than the dense model's; negative where better."""
        return self.sign * (dense - value)

    def after_loss(self, dense: float, loss: float) -> float:
        """Return the value that is worse than the dense model's by ``loss``."""
        return dense - self.sign * loss

    def point(self, dense: float | None) -> float:
        """Return one point in the unit of the values.

        Args:
            dense: Value of the dense model, if it is known.
        """
        if self.unit == "%" or not dense or not math.isfinite(dense):
            return 1.0
        return abs(dense) / 100

    @property
    def constraint(self) -> str:
        """Return the name of the constraint of trials in a search with a tolerance.

        For the accuracy it is ``accuracy_drop``, for a loss it is ``loss_rise``.
        """
        word = re.sub(r"\W+", "_", self.name.lower()).strip("_") or "metric"
        return f"{word}_{'drop' if self.larger_is_better else 'rise'}"

    @property
    def label(self) -> str:
        """Return the name in sentences, such as ``validation accuracy``."""
        return self.name if self.name == "value" else f"validation {self.name}"

    @property
    def title(self) -> str:
        """Return the name at the beginning of a sentence."""
        name = self.name
        return f"{name[:1].upper()}{name[1:]}" if name.islower() else name

    @property
    def heading(self) -> str:
        """Return the name and unit in tables, such as ``val %`` or ``loss``."""
        if self.name == "accuracy" and self.unit:
            return f"val {self.unit}"
        return f"{self.name} {self.unit}".rstrip()

    @property
    def short(self) -> str:
        """Return the unit, or the name without one, for a heading beside another word."""
        return self.unit or self.name

    @property
    def axis(self) -> str:
        """Return the name on an axis, such as ``validation accuracy, %``."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def points(self) -> str:
        """Return the unit of a difference, with a space before it."""
        return " points" if self.unit == "%" else f" {self.unit}".rstrip()

    def text(self, value: float, *, error: float | None = None) -> str:
        """Return a value with its unit, and with its standard error if that is known."""
        return f"{self.number(value, error=error)} {self.unit}".rstrip()

    def number(self, value: float, *, error: float | None = None) -> str:
        """Return a value without its unit, and with its standard error if that is known.

        The error is 0 where the study knows no noise, as in studies of version 0.1.0.
        """
        shown = f"{value:.2f}" if self.unit == "%" else f"{value:.4g}"
        return f"{shown} ± {self.number(error)}" if error else shown

    def gain(self, difference: float, *, error: float | None = None) -> str:
        """Return a difference of two values with its sign, standard error if known, and unit."""
        shown = f"{difference:+.2f}" if self.unit == "%" else f"{difference:+.4g}"
        shown += f" ± {self.number(error)}" if error else ""
        return f"{shown}{self.points}"

    def change(self, loss: float) -> str:
        """Return a loss against the dense model as a signed difference, without its unit."""
        digits = 2 if self.unit == "%" else 4
        difference = 0.0 - self.sign * round(loss, digits)  # no minus before a zero
        return f"{difference:+.2f}" if self.unit == "%" else f"{difference:+.4g}"

    def lost(self, loss: float, most: str = "") -> str:
        """Return a loss against the dense model in words.

        Such as ``2 points of accuracy lost``, or ``mean absolute error 0.3 mm higher than the
        dense model's``.

        Args:
            loss: The loss, in the unit of the values.
            most: Words before the number, such as ``"at most "``.
        """
        unit = " point" if loss == 1 and self.points == " points" else self.points
        if self.larger_is_better and self.points == " points":
            return f"{most}{loss:g}{unit} of {self.name.removeprefix('change of ')} lost"
        word = "lower" if self.larger_is_better else "higher"
        return f"{self.name} {most}{loss:g}{unit} {word} than the dense model's"


ACCURACY = Metric("accuracy", "%")
"""Top-1 accuracy in per cent."""

COSINE = Metric("cosine similarity")
"""Mean cosine of a model's outputs to those of the dense model, which has 1 itself."""
