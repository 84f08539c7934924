"""The limits of a search: a budget, a tolerance, or none for the whole frontier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol, cast

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.direction import Direction
from vit_ratio_opt.search.frontier import FrontierSearch
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.search.plan import Pair, Plan
from vit_ratio_opt.search.tolerance import ToleranceSearch
from vit_ratio_opt.space.curve import (
    budget_curve,
    check_budget,
    curve_and_baseline,
    fixed_ratio_pair,
    pair_columns,
    smallest_cost_ratio,
)
from vit_ratio_opt.space.metric import ACCURACY, COSINE, Metric
from vit_ratio_opt.space.pairs import PairSpace, RatioPair

__all__ = ["Budget", "Frontier", "Limit", "Tolerance", "directions_of", "plan_of"]

# Standard deviation of the metric over seeds, as a share of the tolerance, where nothing is
# known of it: trainings of a pair correct it.
_NOISE_SHARE = 0.25
# Costs of a frontier that count, pairs of all of them that may be tried, and pairs of each level
# that may be tried first.
_MARKS, _PAIRS, _LEVEL_PAIRS = 128, 1536, 48
_MOST_LEVELS = 100  # the time of a proposal grows with them
_WORST_POINTS = 100  # loss of a model of which nothing is left, where the metric does not tell


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
        if not (_is_between(self.share, 0, 1) or self.share == 1):
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
        if not _is_between(self.points, 0, math.inf):
            raise InputError(
                f"The tolerance must be above 0 and finite, but got {self.points!r:.80}: give the "
                "largest loss in the unit of the metric."
            )
        if not _is_between(self.confidence, 0.5, 1):
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


@dataclass(frozen=True)
class Frontier:
    """Find the best pair at every cost, from the dense model to the smallest one.

    A study of it has two objectives, the metric and the share of the cost that is left.

    Args:
        levels: Number of costs, evenly spaced, at which the best pair is searched, from 2 to 100;
            costs between them count too, 128 or so in all. Half of the levels are tried first.
        budgets: The costs themselves, as shares of the dense model's cost, in place of ``levels``.
            All of them are tried first.

    Raises:
        InputError: ``levels`` is not in 2 to 100, or ``budgets`` has none or others than shares
            in (0, 1).
    """

    levels: int = 8
    budgets: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        is_whole = isinstance(self.levels, int) and not isinstance(self.levels, bool)
        if not (is_whole and 2 <= self.levels <= _MOST_LEVELS):
            raise InputError(
                f"`levels` must be a whole number from 2 to {_MOST_LEVELS}, but got "
                f"{self.levels!r:.80}."
            )
        if self.budgets is None:
            return
        given = tuple(self.budgets) if isinstance(self.budgets, Sequence) else ()
        if not given or not all(_is_between(share, 0, 1) for share in given):
            raise InputError(
                "`budgets` must be fractions of the dense model's cost, between 0 and 1, but got "
                f"{self.budgets!r:.80}."
            )
        object.__setattr__(self, "budgets", tuple(sorted(set(map(float, given)), reverse=True)))

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
    ) -> FrontierSearch:
        """Return the search along the curves of pairs that use up one cost each.

        Args:
            space: Space of the dense model.
            noise: Standard deviation of the metric over seeds, in its unit, or what is known of
                it; None takes every value as exact.
            confirmations: Number of times that a pair may be trained again, and two.
            dense: Metric of the dense model.
            metric: Name, unit and direction of the values.
            start: Accepted for a :class:`Budget`; a frontier ignores it.
            path: The likeliest pairs at each cost, next to which the search begins; by default it
                begins with one ratio for both modules.
            fixed_ratio: Whether to search the baseline instead, one ratio for both modules.

        Raises:
            InputError: No pair of the space keeps a budget, or ``dense`` is no finite number.
        """
        if dense is None or not math.isfinite(dense):
            raise InputError(
                "A search of the frontier counts losses from the dense model: give its metric as "
                f"`dense`, a number, but got {dense!r}."
            )
        least = smallest_cost_ratio(space)
        levels, marks = self._costs(least)
        for budget in self.budgets or ():
            check_budget(space, budget)
            if fixed_ratio:
                fixed_ratio_pair(space, budget)
        tried = [
            pair
            for mark in marks
            for pair in _pairs_at(space, mark, max(2, _PAIRS // len(marks)), fixed_ratio)
        ]
        curves = {level: _pairs_at(space, level, _LEVEL_PAIRS, fixed_ratio) for level in levels}
        sign = metric.sign
        worst = sign * dense if sign * dense > 0 else _WORST_POINTS * metric.point(dense)
        reached = [level for level in levels if curves[level]]
        first = [_likeliest(space, curves[level], level, path) for level in reached]
        costs = [space.cost_ratio(*pair) for pair in first]
        search = FrontierSearch(
            [p for i, p in enumerate(first) if costs[i] < min(costs[:i], default=math.inf)],
            tried,
            space.cost_ratio,
            marks,
            dense=sign * dense,
            worst=worst,
            noise=0.0 if noise is None else noise,
            confirmations=confirmations,
        )
        search.larger_is_better = metric.larger_is_better
        return search

    def _costs(self, least: float) -> tuple[list[float], list[float]]:
        """Return the costs that are tried first and all that count, falling."""
        if self.budgets is not None:
            return list(self.budgets), list(self.budgets)

        def evenly(parts: int) -> list[float]:
            return [1 - (1 - least) * part / parts for part in range(1, parts)]

        marks = self.levels * max(1, _MARKS // self.levels)
        return evenly(self.levels // 2 + 1), [*evenly(marks), least]

    def to_json(self) -> dict[str, Any]:
        """Return the limit as a study stores it."""
        return {"frontier": self.levels if self.budgets is None else list(self.budgets)}


def _pairs_at(
    space: PairSpace, budget: float, points: int, fixed_ratio: bool
) -> Sequence[RatioPair]:
    """Return pairs that use up a budget; with a fixed ratio one, or none where it cannot."""
    if not fixed_ratio:
        return budget_curve(space, budget, points)
    try:
        return [fixed_ratio_pair(space, budget)]
    except InputError:  # one module reaches its minimum before
        return []


def _likeliest(
    space: PairSpace, curve: Sequence[Pair], budget: float, path: Sequence[Pair]
) -> Pair:
    """Return the pair of a curve that is next to the path, or to one ratio for both modules."""
    if not path:
        return min(curve, key=lambda pair: abs(pair[0] - pair[1]))
    aim = min(path, key=lambda pair: abs(space.cost_ratio(*pair) - budget))
    return min(curve, key=lambda pair: abs(pair[0] - aim[0]) + abs(pair[1] - aim[1]))


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


def _is_between(value: object, low: float, high: float) -> bool:
    return isinstance(value, Real) and low < float(value) < high
