"""The limit of a search: a budget of cost, or a tolerance of accuracy."""

from __future__ import annotations

from dataclasses import dataclass

from vit_ratio_opt.errors import InputError

__all__ = ["Budget", "Tolerance"]


@dataclass(frozen=True)
class Budget:
    """Maximise accuracy within a budget.

    Args:
        share: Largest fraction of the dense model's cost, in (0, 1].
    """

    share: float


@dataclass(frozen=True)
class Tolerance:
    """Minimise the cost while accuracy falls by no more than a tolerance.

    Args:
        points: Largest loss of accuracy against the dense model, in percentage points.
        confidence: Probability with which the answer has to keep the tolerance, in (0.5, 1).
    """

    points: float
    confidence: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.points < 100:
            raise InputError(
                f"The tolerance must be above 0 and below 100 points, but got {self.points!r}."
            )
        if not 0.5 < self.confidence < 1:
            raise InputError(
                f"`confidence` must be above 0.5 and below 1, but got {self.confidence!r}: give a "
                "probability such as 0.8."
            )
