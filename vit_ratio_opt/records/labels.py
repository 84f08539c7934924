"""Names of the cost, the metric and the limit of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.typed import check_type, field_types, shorten_repr
from vit_ratio_opt.space.costs import cost_label
from vit_ratio_opt.space.metric import Metric
from vit_ratio_opt.space.pairs import CostLabel

__all__ = [
    "CHANGE",
    "MACS",
    "CostRecord",
    "LimitRecord",
    "format_below",
    "metric_from_json",
    "precision_text",
]


@dataclass(frozen=True)
class CostRecord:
    """Cost that a budget limits and that a search with a tolerance minimises.

    Args:
        name: The name in settings and on the command line, such as ``"macs"``.
        word: The word in sentences and tables, such as ``"FLOPs"``.
        constraint: The name of the constraint of a trial.
    """

    name: str = "macs"
    word: str = "FLOPs"
    constraint: str = "flops"

    @classmethod
    def named(cls, name: str) -> CostRecord:
        """Return the record of a built-in cost; a custom cost has its name as word."""
        return cls.of(cost_label(name))

    @classmethod
    def of(cls, cost: CostLabel) -> CostRecord:
        """Return the record of a cost."""
        return cls(cost.name, cost.word, cost.constraint)

    @classmethod
    def from_json(cls, stored: object) -> CostRecord:
        """Return the record of the attribute ``cost``.

        Raises:
            InputError: A part is missing or no text.
        """
        return cls(**_entries("cost", stored, {"name": str, "word": str, "constraint": str}))


def metric_from_json(stored: object) -> Metric:
    """Return the metric of the attribute ``metric``.

    Raises:
        InputError: A part is missing or of another type.
    """
    parts = {"name": str, "unit": str, "larger_is_better": bool}
    return Metric(**_entries("metric", stored, parts))


MACS = CostRecord()
"""The cost of a study that does not name one."""

CHANGE = Metric("change of accuracy", "points")
"""The metric of a tolerance where the accuracy of the dense model is unknown."""


@dataclass(frozen=True)
class LimitRecord:
    """The limit of a study, one of four.

    Args:
        budget: Largest share of the dense model's cost.
        tolerance: Largest loss of the metric, in its unit.
        frontier: Number of levels of the frontier, or its budgets.
        confidence: Probability with which the answer has to keep the tolerance.
        other: Name of the class of a custom limit or search.
        cost: Name of the cost, where the sampler has written it.
        macs: MACs of the dense model, where the sampler has written them.
    """

    budget: float | None = None
    tolerance: float | None = None
    frontier: int | tuple[float, ...] | None = None
    confidence: float | None = None
    other: str | None = None
    cost: str | None = None
    macs: int | None = None

    @classmethod
    def from_json(cls, stored: object) -> LimitRecord:
        """Return the record of the attribute ``limit``.

        Raises:
            InputError: It has not exactly one of ``budget``, ``tolerance``, ``frontier`` and
                ``other``, or a part is of another type.
        """
        hints = field_types(cls)
        limit = cls(**_entries("limit", stored, hints))
        if [limit.budget, limit.tolerance, limit.frontier, limit.other].count(None) != 3:
            raise InputError(
                "The attribute `limit` must have one of `budget`, `tolerance` and `frontier`."
            )
        return limit

    def text(self, word: str, metric: Metric) -> str:
        """Return the limit in words, such as ``at most 60 % of the FLOPs``.

        Args:
            word: The word for the cost.
            metric: Metric of the study.
        """
        if self.budget is not None:
            return f"at most {100 * self.budget:g} % of the {word}"
        if self.frontier is not None:
            return f"the frontier of {metric.name} and {word}"
        if self.tolerance is None:
            return f"a limit of its own, {self.other}"
        return metric.lost(self.tolerance, "at most ")


def format_below(value: float, limit: float) -> str:
    """Return a number with as many digits as it takes to be below a limit."""
    digits = next((n for n in range(2, 6) if round(value, n) < limit), 6)
    return f"{value:.{digits}f}"


def _entries(key: str, stored: object, hints: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(stored, Mapping):
        raise InputError(
            f"The attribute `{key}` must be a JSON object, but is {shorten_repr(stored)}."
        )
    return {
        name: check_type(f"`{name}` of the attribute `{key}`", stored.get(name), hint)
        for name, hint in hints.items()
    }


def precision_text(evaluation: str, training: str, speedups: Mapping[str, float]) -> str:
    """Return in which precisions a study evaluates and trains, and what was measured.

    Args:
        evaluation: Precision of evaluation.
        training: Precision of training.
        speedups: How many times as fast as in float32 the dense model was in bfloat16, in
            ``evaluation`` and ``training``.
    """
    used = f"evaluated in {evaluation} and trained in {training}"
    measured = " and ".join(f"{value:.2f} times in {name}" for name, value in speedups.items())
    return f"Models are {used}: bfloat16 was {measured} as fast as float32."
