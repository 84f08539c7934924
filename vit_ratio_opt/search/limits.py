"""The limits of a search: a budget, a tolerance, or none for the whole frontier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.direction import Direction
from vit_ratio_opt.search.levels import Frontier
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.search.plan import Pair, Plan
from vit_ratio_opt.search.tolerance import ToleranceSearch
from vit_ratio_opt.space.curve import (
    curve_and_baseline,
    fixed_ratio_pair,
    pair_columns,
)
from vit_ratio_opt.space.metric import ACCURACY, COSINE, Metric
from vit_ratio_opt.space.pairs import PairSpace, RatioPair
from vit_ratio_opt.utils.checks import is_between

__all__ = ["Budget", "Frontier", "Limit", "Tolerance", "directions_of", "plan_of"]

# Standard deviation of the metric over seeds, as a share of the tolerance, where nothing is
# known of it: trainings of a pair correct it.
_NOISE_SHARE = 0.25


class Limit(Protocol):
    """A :class:`Budget`, a :class:`Tolerance`, a :class:`Frontier`, or a custom limit.

    ``plan`` may take the options ``noise`` and ``confirmations``, and those of
    :meth:`Budget.plan` that it can use; it must accept the others.
    """

    def plan(self, space: PairSpace, *arguments: Any, **options: Any) -> Plan:
        """Return the search over a space that keeps the limit."""


@dataclass(frozen=True)
class Budget:
    """Find the pair with the best metric that costs at most a share of the dense model's cost.

    Args:
        share: Largest fraction of the dense model's cost, in (0, 1].

    Raises:
        InputError: ``share`` is no number in (0, 1].
    """

    share: float

    def __post_init__(self) -> None:
        is_whole = self.share == 1 and not isinstance(self.share, bool)
        if not (is_between(self.share, 0, 1) or is_whole):
            raise InputError(
                "The budget must be in (0, 1], a fraction of the dense model's cost, but got "
                f"{self.share!r:.80}."
            )

    def plan(
        self,
        space: PairSpace,
        *,
        noise: float | Noise | None = None,
        confirmations: int = 1,
        dense: float | None = None,
        metric: Metric = ACCURACY,
        start: Pair | None = None,
        path: Sequence[Pair] = (),
        fixed_ratio: bool = False,
    ) -> BudgetSearch:
        """Return the search along the curve of pairs that use up the budget.

        Args:
            space: Space of the dense model.
            noise: Standard deviation of the metric over seeds, in its unit, or a
                :class:`~vit_ratio_opt.search.noise.Noise`; None takes every value as exact.
            confirmations: Number of times that the best pair is trained again.
            dense: Metric of the dense model; the best value observed by default.
            metric: Name, unit and direction of the values.
            start: Pair of the curve that is tried after the fixed ratio.
            path: Accepted for a :class:`Tolerance`; a budget ignores it.
            fixed_ratio: Whether to search the baseline instead, one ratio for both modules.

        Raises:
            InputError: No pair of the space keeps the budget.
        """
        curve: tuple[RatioPair, ...]
        if fixed_ratio:
            curve, baseline = (fixed_ratio_pair(space, self.share),), None
        else:
            curve, baseline = curve_and_baseline(space, self.share)
        if start is not None and start not in curve:
            # Version 0.1.0 had another pair for the units that the fixed ratio removes.
            units = space.removed(RatioPair(*start))
            start = next((pair for pair in curve if space.removed(pair) == units), None)
        return BudgetSearch(
            curve,
            baseline=baseline,
            start=start,
            noise=0.0 if noise is None else noise,
            confirmations=confirmations,
            dense=None if dense is None else metric.sign * dense,
            larger_is_better=metric.larger_is_better,
        )

    def to_json(self) -> dict[str, float]:
        """Return the limit as a study stores it."""
        return {"budget": float(self.share)}


@dataclass(frozen=True)
class Tolerance:
    """Find the cheapest pair whose metric is at most so much worse than the dense model's.

    Args:
        points: Largest loss against the dense model, above 0 and in the unit of the metric:
            percentage points of accuracy, below 100, where no other metric is named.
        confidence: Probability with which the answer has to keep the tolerance, in (0.5, 1).

    Raises:
        InputError: A number is out of its range.
    """

    points: float
    confidence: float = 0.8

    def __post_init__(self) -> None:
        if not is_between(self.points, 0, math.inf):
            raise InputError(
                f"The tolerance must be above 0 and finite, but got {self.points!r:.80}: give the "
                "largest loss in the unit of the metric."
            )
        if not is_between(self.confidence, 0.5, 1):
            raise InputError(
                f"`confidence` must be above 0.5 and below 1, but got {self.confidence!r:.80}: "
                "give a probability such as 0.8."
            )

    def plan(
        self,
        space: PairSpace,
        *,
        noise: float | Noise | None = None,
        confirmations: int = 1,
        dense: float | None = None,
        metric: Metric = ACCURACY,
        start: Pair | None = None,
        path: Sequence[Pair] = (),
        fixed_ratio: bool = False,
    ) -> ToleranceSearch:
        """Return the search over all pairs of the space.

        Args:
            space: Space of the dense model.
            noise: Standard deviation of the metric over seeds in its unit, or what is known of
                it; None guesses a quarter of the tolerance and corrects it by the trainings of a
                pair.
            confirmations: Number of times that the answer is trained again.
            dense: Metric of the dense model, if it is known.
            metric: Name, unit and direction of the values.
            start: Accepted for a :class:`Budget`; a tolerance ignores it.
            path: Pairs with which the search begins, the likeliest ones at each cost.
            fixed_ratio: Whether to search the baseline instead, one ratio for both modules.

        Raises:
            InputError: A pair of ``path`` is not of the space, or the tolerance allows any model.
        """
        self.check(metric)
        if noise is None:
            noise = Noise(_NOISE_SHARE * self.points, is_known=False, point=metric.point(dense))
        search = ToleranceSearch(
            pair_columns(space, fixed_ratio=fixed_ratio),
            space.cost_ratio,
            self.points,
            noise=noise,
            confirmations=confirmations,
            confidence=self.confidence,
            path=path,
        )
        search.constraint = metric.constraint
        return search

    def check(self, metric: Metric) -> None:
        """Refuse a tolerance that every model would keep.

        Raises:
            InputError: The unit of the metric is ``"%"`` and 100 points may be lost, or all of a
                cosine.
        """
        if metric.unit == "%" and self.points >= 100:
            raise InputError(
                f"The tolerance must be above 0 and below 100 points, but got {self.points!r:.80}."
            )
        if metric == COSINE and self.points >= 1:
            raise InputError(
                f"A tolerance of the {metric.name} must be below 1, but got {self.points!r:.80}: "
                "0.02, for example, allows a mean cosine of 0.98."
            )

    def to_json(self) -> dict[str, float]:
        """Return the limit as a study stores it."""
        return {"tolerance": float(self.points), "confidence": float(self.confidence)}


def directions_of(limit: Limit, metric: Metric = ACCURACY) -> list[Direction]:
    """Return the direction of each objective of a study.

    It is that of the cost with a tolerance, of the metric and of the cost for the frontier, else
    of the metric.
    """
    if isinstance(limit, Tolerance):
        return ["minimize"]
    of_metric: Direction = "maximize" if metric.larger_is_better else "minimize"
    return [of_metric, "minimize"] if isinstance(limit, Frontier) else [of_metric]


def plan_of(limit: Limit | Plan, space: PairSpace, **options: Any) -> Plan:
    """Return a limit's plan of a space; a plan is returned as it is.

    Args:
        limit: A limit or a plan.
        space: Space of the dense model.
        **options: Options of the limit's ``plan`` method, such as ``noise``.

    Raises:
        InputError: ``limit`` is neither, or cannot be kept in the space.
    """
    if hasattr(limit, "propose"):
        return cast(Plan, limit)
    if not hasattr(limit, "plan"):
        raise InputError(
            "`limit` must be a Budget, Tolerance, Frontier, or an object with a `plan` method, "
            f"but got {limit!r:.80}: use vro.Budget(0.6), for example."
        )
    return limit.plan(space, **options)
