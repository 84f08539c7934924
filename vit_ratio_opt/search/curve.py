"""The curve of pairs that a budget leaves, and the estimates of the pairs within the budget."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.belief import Belief, fit
from vit_ratio_opt.search.columns import as_array
from vit_ratio_opt.search.forecast import Forecast
from vit_ratio_opt.search.noise import Noise, Repeats
from vit_ratio_opt.search.plan import Array, Estimate, Observed, Pair, alternatives, normal_cdf

__all__ = ["NEAREST", "Believed", "Curve", "believe"]

NEAREST = 48
"""Observed pairs that a belief is made from, and gaps that it is asked about."""

_ROUNDING = 1e-9
_SLACK = 2.0  # weight of a ratio above what the budget asks for, beside a curve of length 2
# Pairs whose difference is below this share of its standard error count as equally good.
_TIE = 0.25


class Curve:
    """The pairs that use up a budget, and the baseline.

    Args:
        pairs: Pairs, the first ratio rising and the second not.
        baseline: Pair of the fixed ratio, on the curve or within the budget; None for none.
        start: Pair of the curve where a search begins; where it crosses the diagonal by default.

    Raises:
        InputError: There is no pair, or pairs are out of order, ``start`` is not on the curve, or
            ``baseline`` is over the budget.
    """

    def __init__(
        self, pairs: Sequence[Pair], baseline: Pair | None = None, start: Pair | None = None
    ) -> None:
        if not pairs:
            raise InputError("`curve` must have at least one pair, but is empty.")
        if not all(math.isfinite(ratio) for pair in pairs for ratio in pair):
            raise InputError(f"The ratios of `curve` must be numbers, but are {list(pairs)!r}.")
        for (first, second), (next_first, next_second) in itertools.pairwise(pairs):
            if not (first < next_first and second >= next_second):
                raise InputError(
                    "Along `curve` the first ratio must rise and the second must not, but "
                    f"{(first, second)} is followed by {(next_first, next_second)}."
                )
        self.pairs = tuple((float(first), float(second)) for first, second in pairs)
        self.positions = {pair: position for position, pair in enumerate(self.pairs)}
        self._firsts, self._seconds = np.array(self.pairs).T
        crossing = (i for i, (first, second) in enumerate(self.pairs) if first >= second)
        self.start = next(crossing, len(self.pairs) - 1)
        if start is not None:
            if start not in self.positions:
                raise InputError(f"`start` must be a pair of the curve, but got {start!r}.")
            self.start = self.positions[start]
        self.baseline = None if baseline is None else (float(baseline[0]), float(baseline[1]))
        if self.baseline is not None and self.place(self.baseline) is None:
            raise InputError(f"`baseline` must be within the budget, but got {baseline!r}.")

    def place(self, pair: Pair) -> int | None:
        """Return the position of the curve's pair that prunes no more; None over the budget.

        A first ratio between two of the curve removes what the larger one does. One above the
        curve's needs no more than its last pair.
        """
        first, second = pair
        place = bisect.bisect_left(self.pairs, (first - _ROUNDING,), hi=len(self.pairs) - 1)
        return None if second < self.pairs[place][1] - _ROUNDING else place

    def between(self, first: float) -> float:
        """Return the position of a first ratio, with a fraction between two pairs."""
        return float(np.interp(first, self._firsts, np.arange(len(self.pairs))))

    def points(self, pairs: Sequence[Pair]) -> Array:
        """Return places on [0, 2] and how much more than needed is pruned, ``(n, 2)``.

        On [0, 2] the belief's lengths are an eighth, a quarter and a half of the curve.
        """
        given = np.array(pairs).reshape(-1, 2)
        needed = [self._seconds[self.place(pair) or 0] for pair in pairs]
        slack = np.maximum(0.0, given[:, 1] - np.array(needed).reshape(-1))
        places = np.interp(given[:, 0], self._firsts, np.linspace(0, 2, len(self.pairs)))
        return np.stack([places, _SLACK * slack], axis=1)


class Believed(NamedTuple):
    """Posterior of the observed pairs within a budget.

    Args:
        pairs: The pairs, those nearest to the start first.
        own: Mean value of each pair's own trainings, ``(n,)``.
        counts: Number of trainings of each pair, ``(n,)``.
        mean: Posterior mean of each pair's value, ``(n,)``.
        covariance: Posterior covariance, ``(n, n)``.
        places: Positions of all observed pairs of the curve, and of the baseline.
        baseline: The fixed ratio's pair.
        belief: The belief; None without noise.
        points: Function that returns the belief's points of pairs; None without noise.
    """

    pairs: list[Pair]
    own: Array
    counts: Array
    mean: Array
    covariance: Array
    places: dict[Pair, int]
    baseline: Pair | None
    belief: Belief | None = None
    points: Callable[[Sequence[Pair]], Array] | None = None

    def difference(self, first: int, second: int) -> tuple[float, float]:
        """Return mean and standard error of the first pair's value less the second one's."""
        c = self.covariance
        variance = c[first, first] + c[second, second] - 2 * c[first, second]
        return float(self.mean[first] - self.mean[second]), math.sqrt(max(0.0, variance))

    def candidates(self) -> list[int]:
        """Return the best pair of the curve and all that the noise may have put below it."""
        known = [index for index, pair in enumerate(self.pairs) if pair in self.places]
        if not known:
            return []
        best = max(known, key=lambda index: self.mean[index])
        found = []
        for index in known:
            difference, error = self.difference(best, index)
            if index == best or difference < error:
                found.append(index)
        return found

    def answer(self, complete: Container[Pair] | None = None) -> int | None:
        """Return the index of the answer; None where no pair is ``complete``."""
        allowed = [i for i, p in enumerate(self.pairs) if complete is None or p in complete]
        if not allowed:
            return None
        best = max(allowed, key=lambda i: (self.mean[i], -i))
        equals = [best]
        for index in allowed:
            difference, error = self.difference(best, index)
            if index != best and difference < _TIE * error:
                equals.append(index)
        # Of pairs that are equal in all of this, the first is the nearest to the start.
        chosen = max(equals, key=lambda i: (self.counts[i], self.own[i], -i))
        fixed = next((i for i in allowed if self.pairs[i] == self.baseline), None)
        if fixed is not None and self.mean[chosen] <= self.mean[fixed]:
            return fixed
        return chosen

    def estimate(self, index: int) -> Estimate:
        """Return the estimate of one pair."""
        probability = 0.5
        if self.baseline in self.pairs and self.pairs[index] != self.baseline:
            fixed = self.pairs.index(self.baseline)
            difference, error = self.difference(index, fixed)
            if error > 0:
                probability = float(normal_cdf(np.array(difference / error)))
            elif difference:
                probability = float(difference > 0)
        return Estimate(
            self.pairs[index],
            float(self.mean[index]),
            math.sqrt(max(0.0, self.covariance[index, index])),
            float(self.own[index]),
            int(self.counts[index]),
            probability,
        )


def believe(
    curve: Curve,
    observed: Observed,
    noise: Noise,
    dense: float | None = None,
    forecast: Forecast | None = None,
) -> Believed | None:
    """Return the posterior of the pairs within the budget; None without observed pairs.

    Args:
        curve: The pairs that use up the budget.
        observed: Values of each pair.
        noise: Noise of one value.
        dense: Value of the dense model; the best value by default.
        forecast: What is predicted of each pair, if anything.
    """
    places = {
        pair: place
        for pair, values in observed.items()
        if values and (place := curve.place(pair)) is not None
    }
    if not places:
        return None
    tried = {p: place for p, place in places.items() if p in curve.positions}
    if curve.baseline is not None and curve.baseline in places:
        tried[curve.baseline] = places[curve.baseline]
    pairs = _nearest(curve, observed, places)
    counts = np.array([len(observed[pair]) for pair in pairs], dtype=np.float64)
    own = np.array([math.fsum(observed[pair]) / len(observed[pair]) for pair in pairs])
    noise = noise.of_values(own)
    if noise.guess == 0:
        exact = np.zeros((len(pairs),) * 2)
        return Believed(pairs, own, counts, own, exact, tried, curve.baseline)
    squares = np.array(
        [
            math.fsum(((np.array(observed[pair]) - mean) ** 2).tolist())
            for pair, mean in zip(pairs, own, strict=True)
        ]
    )
    losses = (own.max() if dense is None else dense) - own
    repeats = Repeats(losses, squares, counts)
    least_loss = max(0.0, float(np.median(losses)))
    levels = noise.levels(repeats, least_loss=least_loss, grows=False)
    centre, scale = float(own.mean()), max(float(own.std()), noise.guess)
    slopes = np.full(len(pairs) + 1, 1 / scale)
    points: Callable[[Sequence[Pair]], Array] = curve.points
    if forecast is not None:
        middle = float(forecast.losses(as_array(pairs)).mean())
        points = partial(_points_with, forecast, curve, middle, scale)
    belief = fit(
        points(pairs), (own - centre) / scale, alternatives(levels, repeats, least_loss, slopes)
    )
    mean, covariance = belief.joint(points([]))
    mean, covariance = centre + scale * mean, scale**2 * covariance
    return Believed(pairs, own, counts, mean, covariance, tried, curve.baseline, belief, points)


def _points_with(
    forecast: Forecast, curve: Curve, middle: float, scale: float, pairs: Sequence[Pair]
) -> Array:
    """Return the curve's points with the value that a forecast gives each of them, ``(n, 3)``."""
    expected = (middle - forecast.losses(as_array(pairs))) / scale
    return np.column_stack([curve.points(pairs), expected])


def _nearest(curve: Curve, observed: Observed, places: dict[Pair, int]) -> list[Pair]:
    """Return at most :data:`NEAREST` of the pairs, those next to the best one."""
    # From the start outwards, so that the first of equals is the nearest to it.
    pairs = sorted(places, key=lambda p: (abs(places[p] - curve.start), places[p], p))
    if len(pairs) <= NEAREST:
        return pairs
    best = max(pairs, key=lambda p: math.fsum(observed[p]) / len(observed[p]))
    near = sorted(pairs, key=lambda p: (p != curve.baseline, abs(places[p] - places[best])))
    # The best itself is kept even among many pairs of one place.
    kept = {best, *near[: NEAREST - 1]}
    return [pair for pair in pairs if pair in kept]
