"""The whole frontier as the limit of a search: the costs at which it is searched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.forecasting import worst_loss
from vit_ratio_opt.search.frontier import FrontierSearch
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.search.plan import Pair
from vit_ratio_opt.space.curve import (
    budget_curve,
    check_budget,
    fixed_ratio_pair,
    smallest_cost_ratio,
)
from vit_ratio_opt.space.metric import ACCURACY, Metric
from vit_ratio_opt.space.pairs import PairSpace, RatioPair
from vit_ratio_opt.utils.checks import is_between

__all__ = ["Frontier"]

# Costs of a frontier that count, pairs of all of them that may be tried, and pairs of each level
# that may be tried first.
_MARKS, _PAIRS, _LEVEL_PAIRS = 128, 1536, 48
_MOST_LEVELS = 100  # the time of a proposal grows with them


@dataclass(frozen=True)
class Frontier:
    """Find the best pair at every cost, from the dense model to the smallest one.

    A study of it has two objectives, the metric and the share of the cost that is left.

    Args:
        levels: Number of costs, evenly spaced, at which the best pair is searched, from 2 to 100;
            costs between them count too, 128 or so in all. Half of the levels are tried first, or
            only one of them where the losses of all pairs are predicted.
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
        if not given or not all(is_between(share, 0, 1) for share in given):
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
        levels, marks = self._costs(smallest_cost_ratio(space))
        for budget in self.budgets or ():
            check_budget(space, budget)
            if fixed_ratio:
                fixed_ratio_pair(space, budget)
        tried = [
            pair
            for mark in marks
            for pair in _pairs_at(space, mark, max(2, _PAIRS // len(marks)), fixed_ratio)
        ]
        sign = metric.sign
        search = FrontierSearch(
            _first_pairs(space, levels, path, fixed_ratio),
            tried,
            space.cost_ratio,
            marks,
            dense=sign * dense,
            worst=worst_loss(dense, metric),
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


def _first_pairs(
    space: PairSpace, levels: Sequence[float], path: Sequence[Pair], fixed_ratio: bool
) -> list[Pair]:
    """Return the likeliest pair of each level that has one, of falling cost."""
    found: list[Pair] = []
    for level in levels:
        curve = _pairs_at(space, level, _LEVEL_PAIRS, fixed_ratio)
        pair = _likeliest(space, curve, level, path) if curve else None
        if pair and (not found or space.cost_ratio(*pair) < space.cost_ratio(*found[-1])):
            found.append(pair)
    return found


def _likeliest(
    space: PairSpace, curve: Sequence[Pair], budget: float, path: Sequence[Pair]
) -> Pair:
    """Return the pair of a curve that is next to the path, or to one ratio for both modules."""
    if not path:
        return min(curve, key=lambda pair: abs(pair[0] - pair[1]))
    aim = min(path, key=lambda pair: abs(space.cost_ratio(*pair) - budget))
    return min(curve, key=lambda pair: abs(pair[0] - aim[0]) + abs(pair[1] - aim[1]))
