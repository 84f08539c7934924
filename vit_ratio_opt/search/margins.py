"""Judge the pairs that a search with a tolerance has trained, and choose its answer.

The *margin* of a pair is its accuracy minus the least accuracy allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_ratio_opt.search.belief import Belief, fit
from vit_ratio_opt.search.columns import as_array
from vit_ratio_opt.search.forecast import Forecast
from vit_ratio_opt.search.log_losses import add_ends, expected_losses, with_forecast
from vit_ratio_opt.search.noise import Noise, Repeats
from vit_ratio_opt.search.plan import (
    Array,
    Estimate,
    Observed,
    Pair,
    alternatives,
    normal_cdf,
)

__all__ = [
    "NOTHING",
    "Believed",
    "Rule",
    "Seen",
    "as_pair",
    "believe",
    "cheapest_kept",
    "estimate",
    "failed_pairs",
    "passing_probability",
    "spread_at",
    "tolerance_answer",
    "add_values",
]

_Cost = Callable[[float, float], float]
_NEAREST = 48  # observed pairs that a belief is made from
_EVERYTHING_PRUNED = -3.0  # what is expected of it


class Rule(NamedTuple):
    """Parameters on which the answer of a search depends, beside the observed values.

    Args:
        tolerance: Largest loss of accuracy allowed, in the unit of the values.
        scale: Largest ratios.
        noise: Noise of one value.
        confidence: Probability with which the answer has to keep the tolerance.
        forecast: What is predicted of each pair, if anything.
    """

    tolerance: float
    scale: tuple[float, float]
    noise: Noise
    confidence: float
    forecast: Forecast | None = None

    @property
    def offset(self) -> float:
        """Return the offset of the loss under the logarithm, so that gains have one, too."""
        return self.tolerance + 2 * self.noise.guess

    def points(self, pairs: Array) -> Array:
        """Return pairs as points of the belief, ``(n, 2)``, with a forecast ``(n, 3)``."""
        whole = self.tolerance + self.offset
        return with_forecast(pairs / self.scale, self.forecast, pairs, self.offset, whole=whole)


class Seen(NamedTuple):
    """Observed values, as arrays in the order of ``places``.

    Args:
        margins: Margins of each pair, one for each training.
        places: Index of each pair in the arrays.
        pairs: The pairs, ``(n, 2)``.
        costs: Cost of each pair, ``(n,)``.
        means: Mean margin, ``(n,)``.
        squares: Sum of squared deviations from the mean, ``(n,)``.
        counts: Number of trainings, ``(n,)``.
    """

    margins: dict[Pair, tuple[float, ...]]
    places: dict[Pair, int]
    pairs: Array
    costs: Array
    means: Array
    squares: Array
    counts: Array


NOTHING = Seen({}, {}, np.empty((0, 2)), *(np.empty(0) for _ in range(4)))


class Believed(NamedTuple):
    """Posterior of the pairs next to the limit; arrays ``(n,)``.

    Args:
        chosen: Indices of the pairs in :class:`Seen`.
        loss: Expected loss of accuracy; the mean of the values without noise.
        error: Standard error of ``loss``.
        kept: Probability to keep the tolerance.
        mean: Posterior mean in the units of the belief.
        variance: Posterior variance in the units of the belief.
        belief: The belief.
    """

    chosen: NDArray[np.int64]
    loss: Array
    error: Array
    kept: Array
    mean: Array
    variance: Array
    belief: Belief


def tolerance_answer(
    stored: Mapping[str, Any],
    observed: Observed,
    cost: _Cost,
    *,
    complete: Container[Pair] | None = None,
) -> tuple[Estimate | None, dict[Pair, Estimate]]:
    """Return the answer of the search whose :meth:`ToleranceSearch.to_json` was ``stored``.

    Args:
        stored: JSON values of the plan.
        observed: Margins of each pair.
        cost: Function that returns the cost of an observed pair.
        complete: Pairs with a training that was not stopped early; all by default.

    Returns:
        The answer, as :meth:`ToleranceSearch.answer` returns it, and the estimate of every
        observed pair.
    """
    first, second = stored["scale"]
    noise, forecast = Noise.from_json(stored), Forecast.of_plan(stored)
    rule = Rule(stored["tolerance"], (first, second), noise, stored["confidence"], forecast)
    values = {pair: tuple(margins) for pair, margins in observed.items() if margins}
    if not values:
        return None, {}
    seen = add_values(NOTHING, values, cost)
    believed = believe(seen, rule)
    estimates = {p: estimate(seen, believed, i, rule) for p, i in seen.places.items()}
    place = cheapest_kept(seen, believed, rule, complete)
    return None if place is None else estimates[as_pair(seen.pairs[place])], estimates


def add_values(last: Seen, fresh: Mapping[Pair, tuple[float, ...]], cost: _Cost) -> Seen:
    """Return the observations with new values; arrays are copied, as other threads read them."""
    places = dict(last.places)
    added = [pair for pair in fresh if pair not in places]
    places.update((pair, len(last.places) + place) for place, pair in enumerate(added))
    zeros = np.zeros(len(added))
    pairs = np.concatenate([last.pairs, as_array(added)])
    costs = np.concatenate([last.costs, [cost(*pair) for pair in added]])
    means, squares, counts = (
        np.concatenate([array, zeros]) for array in (last.means, last.squares, last.counts)
    )
    for pair, values in fresh.items():
        place, mean = places[pair], math.fsum(values) / len(values)
        means[place], counts[place] = mean, len(values)
        squares[place] = math.fsum((value - mean) ** 2 for value in values)
    return Seen({**last.margins, **fresh}, places, pairs, costs, means, squares, counts)


def _repeats(seen: Seen, tolerance: float) -> Repeats:
    return Repeats(tolerance - seen.means, seen.squares, seen.counts)


def spread_at(seen: Seen, rule: Rule) -> Array:
    """Return the expected standard deviation of one value of each pair."""
    repeats = _repeats(seen, rule.tolerance)
    levels = rule.noise.levels(repeats, least_loss=rule.tolerance)
    weights = np.exp(levels.log_weights - levels.log_weights.max())
    variances = levels.variances(np.maximum(repeats.losses, rule.tolerance))
    spread: Array = np.sqrt(weights / weights.sum() @ variances)
    return spread


def believe(seen: Seen, rule: Rule) -> Believed:
    """Fit a belief over ``log((tolerance + c) / (loss + c))``, which is 0 at the limit.

    The offset c is of the order of the tolerance. Only pairs near the limit are used: they
    determine where it is, and thousands would cost time.
    """
    tolerance, offset = rule.tolerance, rule.offset
    repeats = _repeats(seen, tolerance)
    levels = rule.noise.levels(repeats, least_loss=tolerance)
    order = _nearest_pairs(seen)
    near = Repeats(*(array[order] for array in repeats))
    lost = np.maximum(near.losses, -offset / 2) + offset
    # The dense model loses nothing, and one with everything pruned loses nearly everything.
    points = rule.points(np.concatenate([seen.pairs[order], [[0.0, 0.0], rule.scale]]))
    whole = tolerance + offset
    values = np.concatenate([np.log(whole / lost), [math.log(whole / offset), _EVERYTHING_PRUNED]])
    found = alternatives(levels, near, tolerance, np.append(1 / lost, 1 / whole))
    belief = fit(points, values, add_ends(found))
    means, variances = (array[:, : len(order)] for array in belief.components())
    mean, variance, expected, error = expected_losses(belief.weights, means, variances, whole)
    if rule.noise.guess == 0:
        exact, none = near.losses, np.zeros(len(order))
        return Believed(order, exact, none, 1.0 * (exact <= tolerance), mean, variance, belief)
    kept = np.minimum(belief.weights @ normal_cdf(means / np.sqrt(variances)), 1.0)
    return Believed(order, expected - offset, error, kept, mean, variance, belief)


def _kept_alone(seen: Seen, rule: Rule) -> Array:
    """Return the probability of each pair to keep the tolerance, from its own values alone."""
    if rule.noise.guess == 0:
        return 1.0 * (seen.means >= 0)
    return normal_cdf(seen.means * np.sqrt(seen.counts) / spread_at(seen, rule))


def _nearest_pairs(seen: Seen) -> NDArray[np.int64]:
    """Return the indices of the pairs next to the limit, the nearest first."""
    apart = np.abs(seen.means)
    near = np.arange(len(apart))
    if len(apart) > _NEAREST:
        near = np.flatnonzero(apart <= np.partition(apart, _NEAREST - 1)[_NEAREST - 1])
    order = np.lexsort((seen.pairs[near, 1], seen.pairs[near, 0], apart[near]))
    return near[order][:_NEAREST]


def cheapest_kept(
    seen: Seen, believed: Believed, rule: Rule, complete: Container[Pair] | None = None
) -> int | None:
    """Return the index of the answer in ``seen``."""
    if len(seen.means) > len(believed.chosen):  # further from the limit than the belief looks
        probabilities = _kept_alone(seen, rule)
    else:
        probabilities = np.zeros(len(seen.means))
    probabilities[believed.chosen] = believed.kept
    sure = np.flatnonzero(probabilities >= rule.confidence)
    order = np.lexsort((seen.pairs[sure, 1], seen.pairs[sure, 0], seen.costs[sure]))
    for place in sure[order]:
        pair = as_pair(seen.pairs[place])
        if max(seen.margins[pair]) >= 0 and (complete is None or pair in complete):
            return int(place)
    return None


def estimate(seen: Seen, believed: Believed, place: int, rule: Rule) -> Estimate:
    """Return the estimate of one pair; mean, error and own value are margins."""
    near = np.flatnonzero(believed.chosen == place)
    if len(near):
        mean, error, kept = (
            float(array[near[0]]) for array in (believed.loss, believed.error, believed.kept)
        )
        mean = rule.tolerance - mean
    else:
        mean = float(seen.means[place])
        error = float(spread_at(seen, rule)[place] / math.sqrt(seen.counts[place]))
        kept = float(_kept_alone(seen, rule)[place])
    return Estimate(
        as_pair(seen.pairs[place]), mean, error, float(seen.means[place]),
        int(seen.counts[place]), kept,
    )  # fmt: skip


def failed_pairs(seen: Seen, rule: Rule) -> Array:
    """Return the smallest of the pairs that failed by more than two standard deviations."""
    doubt = 2 * spread_at(seen, rule) / np.sqrt(seen.counts)
    return _minimal_pairs(seen.pairs[seen.means < -doubt])


def _minimal_pairs(pairs: Array) -> Array:
    """Return the pairs that exceed no other in both ratios, rising."""
    ordered = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    lowest = np.minimum.accumulate(ordered[:, 1])
    is_least = np.ones(len(ordered), dtype=bool)
    is_least[1:] = ordered[1:, 1] < lowest[:-1]
    return ordered[is_least]


def passing_probability(mean: Array, variance: Array, noise: float, confidence: float) -> Array:
    """Return the probability that one more value brings a pair past the confidence.

    After that value, the variance is ``left`` and the mean has moved by a normal variable of
    standard deviation ``move``. Without noise this is the probability of a margin of at least 0.
    """
    left = variance * noise / (variance + noise)
    move = variance / np.sqrt(variance + noise)
    wanted = NormalDist().inv_cdf(confidence) * np.sqrt(left)
    return normal_cdf((mean - wanted) / move)


def as_pair(row: Array) -> Pair:
    """Return a row of an array of pairs as a pair."""
    return float(row[0]), float(row[1])
