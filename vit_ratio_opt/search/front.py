"""Judge the pairs that a search of the frontier has trained, and find those on it.

A *loss* is how much worse than the dense model a pair is, in the unit of the metric.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

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

__all__ = ["INSIDE", "FrontierAnswer", "Judged", "Rule", "frontier_answer", "judge", "knee"]

_NEAREST = 48  # observed pairs that a belief is made from
_OFFSET = 0.02  # of the loss under the logarithm, so that gains have one, as a share of the worst
INSIDE = (0.2, 0.4, 0.6, 0.8)
"""Shares of the way from one pair to the next at which a frontier is estimated."""


class Rule(NamedTuple):
    """Parameters on which the frontier depends, beside the observed values.

    Args:
        dense: Value of the dense model.
        worst: Loss of a model of which nothing is left, above 0.
        scale: Largest ratios.
        noise: Noise of one value.
        forecast: What is predicted of each pair, if anything.
    """

    dense: float
    worst: float
    scale: tuple[float, float]
    noise: Noise
    forecast: Forecast | None = None

    @property
    def offset(self) -> float:
        """Return the offset of the loss under the logarithm."""
        return _OFFSET * self.worst + 2 * self.noise.guess

    def around(self, values: Array) -> Rule:
        """Return the rule in whose range all values are.

        A pair may lose more than a model of which nothing is left was taken to, and a training may
        gain more than it loses by pruning. The logarithm has room for gains of half the offset;
        beyond that all pairs would count as equal, so losses are counted from above the dense
        model.

        Args:
            values: Values of the pairs, at least one.
        """
        worst = max(self.worst, self.dense - float(values.min()))
        noise = self.noise
        if worst > self.worst:
            noise = replace(noise, point=max(noise.point, worst / 100))
        rule = self._replace(worst=worst, noise=noise)
        gain = float(values.max()) - rule.dense - rule.offset / 2
        return rule if gain <= 0 else rule._replace(dense=rule.dense + gain)

    def points(self, pairs: Sequence[Pair] | Array) -> Array:
        """Return pairs as points of the belief, ``(n, 2)``, with a forecast ``(n, 3)``."""
        ratios, offset = as_array(pairs), self.offset
        return with_forecast(ratios / self.scale, self.forecast, ratios, offset, whole=offset)


class Judged(NamedTuple):
    """Posterior of the trained pairs next to the frontier; arrays ``(n,)``.

    Args:
        pairs: The pairs.
        costs: Their costs.
        own: Mean loss of each pair's own trainings.
        counts: Number of trainings of each pair.
        losses: Expected losses.
        errors: Standard errors of ``losses``.
        mean: Posterior mean in the units of the belief, which is ``-log(1 + loss / offset)``.
        variance: Posterior variance in the units of the belief.
        belief: The belief.
        rule: Parameters of the search; losses are counted from its ``dense``.
    """

    pairs: list[Pair]
    costs: Array
    own: Array
    counts: Array
    losses: Array
    errors: Array
    mean: Array
    variance: Array
    belief: Belief
    rule: Rule

    def front(self, complete: Container[Pair] | None = None) -> list[int]:
        """Return the places of the pairs that lose less than every cheaper one, of rising cost.

        Args:
            complete: The only pairs that count; all by default.
        """
        places = [i for i, p in enumerate(self.pairs) if complete is None or p in complete]
        found: list[int] = []
        for place in sorted(places, key=lambda i: (self.costs[i], self.losses[i], self.pairs[i])):
            if not found or self.losses[place] < self.losses[found[-1]]:
                found.append(place)
        return found

    def heights(self, marks: Array, worst: float, *, without: int | None = None) -> Array:
        """Return the least loss of the pairs that cost at most so much, ``(marks,)``.

        Args:
            marks: Costs.
            worst: Largest loss, which also holds where no pair is as cheap.
            without: Place of a pair that does not count.
        """
        allowed = self.costs[:, None] <= marks
        if without is not None:
            allowed[without] = False
        losses = np.where(allowed, self.losses[:, None], worst)
        heights: Array = np.minimum(losses.min(axis=0, initial=worst), worst)
        return heights

    def between(self, front: Sequence[int]) -> list[list[tuple[float, float]]]:
        """Return what is expected between the pairs of a frontier, which was not tried.

        Where the belief expects a larger loss than that of the cheaper pair, it is the latter's,
        since a larger budget allows the cheaper pair too.

        Args:
            front: Places of the pairs, of rising cost.

        Returns:
            For each two neighbours, the value and its standard error at the shares ``INSIDE`` of
            the way from one to the other.
        """
        steps = list(itertools.pairwise(front))
        if not steps:
            return []
        ends = as_array([self.pairs[place] for place in front])
        shares = np.array(INSIDE)[:, None]
        inside = [(1 - shares) * ends[i] + shares * ends[i + 1] for i in range(len(steps))]
        points = self.rule.points(np.concatenate(inside))
        mean, variance = self.belief.predict(points)
        one = np.ones(1)
        *_, losses, errors = expected_losses(one, mean[None], variance[None], self.rule.offset)
        losses = (losses - self.rule.offset).reshape(len(steps), -1)
        cheaper = np.array([self.losses[first] for first, _ in steps])[:, None]
        known = np.array([self.errors[first] for first, _ in steps])[:, None]
        errors = np.where(losses > cheaper, known, errors.reshape(losses.shape))
        values = self.rule.dense - np.minimum(losses, cheaper)
        return [
            list(zip(*row, strict=True))
            for row in zip(values.tolist(), errors.tolist(), strict=True)
        ]

    def estimate(self, place: int) -> Estimate:
        """Return the estimate of one pair.

        Its probability is that of losing less than every cheaper pair is expected to.
        """
        dense, loss = self.rule.dense, float(self.losses[place])
        error = float(self.errors[place])
        cheaper = self.losses[self.costs < self.costs[place]]
        apart = float(cheaper.min(initial=math.inf)) - loss
        sure = float(apart > 0)
        return Estimate(
            self.pairs[place],
            dense - loss,
            error,
            dense - float(self.own[place]),
            int(self.counts[place]),
            float(normal_cdf(np.array(apart / error))) if error > 0 else sure,
        )


def judge(observed: Observed, cost: Callable[[float, float], float], rule: Rule) -> Judged | None:
    """Return the posterior of the trained pairs next to the frontier; None without any.

    Args:
        observed: Values of each pair, one for each training.
        cost: Function that returns the cost of an observed pair.
        rule: Parameters of the search.
    """
    pairs = [pair for pair, values in observed.items() if values]
    if not pairs:
        return None
    costs = np.array([cost(*pair) for pair in pairs])
    means = np.array([math.fsum(observed[pair]) / len(observed[pair]) for pair in pairs])
    rule = rule.around(means)
    chosen = _next_to_front(costs, rule.dense - means)
    pairs, costs, means = [pairs[place] for place in chosen], costs[chosen], means[chosen]
    own = rule.dense - means
    counts = np.array([len(observed[pair]) for pair in pairs], dtype=np.float64)
    squares = np.array(
        [
            math.fsum((value - mean) ** 2 for value in observed[pair])
            for pair, mean in zip(pairs, means.tolist(), strict=True)
        ]
    )
    belief = _fit(rule, pairs, Repeats(own, squares, counts))
    means, variances = (array[:, : len(pairs)] for array in belief.components())
    mean, variance, losses, errors = expected_losses(belief.weights, means, variances, rule.offset)
    losses = losses - rule.offset
    if rule.noise.guess == 0:
        losses, errors = own, np.zeros(len(pairs))
    return Judged(pairs, costs, own, counts, losses, errors, mean, variance, belief, rule)


def _fit(rule: Rule, pairs: Sequence[Pair], repeats: Repeats) -> Belief:
    """Return the belief over ``-log(1 + loss / offset)``, which is 0 for the dense model."""
    offset = rule.offset
    lost = np.maximum(repeats.losses, -offset / 2) + offset
    # The dense model loses nothing, and one of which nothing is left about the worst.
    points = rule.points([*pairs, (0.0, 0.0), rule.scale])
    ends = [0.0, -math.log1p(rule.worst / offset)]
    levels = rule.noise.levels(repeats, least_loss=offset)
    found = alternatives(levels, repeats, offset, np.append(1 / lost, 1 / np.median(lost)))
    return fit(points, np.concatenate([-np.log(lost / offset), ends]), add_ends(found))


def _next_to_front(costs: Array, losses: Array) -> list[int]:
    """Return the places of at most 48 pairs, those that lose the least more than cheaper ones."""
    order = np.lexsort((losses, costs))
    excess = np.empty(len(losses))
    excess[order] = losses[order] - np.minimum.accumulate(losses[order])
    return sorted(np.argsort(excess, kind="stable")[:_NEAREST].tolist())


def knee(costs: Sequence[float], values: Sequence[float]) -> int | None:
    """Return the place of the pair that is the furthest above the line between both ends.

    Args:
        costs: Costs of the pairs of a frontier, rising.
        values: Their values, larger ones being better.

    Returns:
        The place; None without pairs.
    """
    if not costs:
        return None
    slope = (values[-1] - values[0]) / ((costs[-1] - costs[0]) or 1.0)
    above = [value - slope * cost for cost, value in zip(costs, values, strict=True)]
    return above.index(max(above))


class FrontierAnswer(NamedTuple):
    """What is known of a frontier.

    Args:
        front: Estimates of the pairs on it, of rising cost.
        estimates: Those of all pairs that are next to it.
        between: See :meth:`Judged.between`.
    """

    front: list[Estimate]
    estimates: dict[Pair, Estimate]
    between: list[list[tuple[float, float]]]


def frontier_answer(
    stored: Mapping[str, Any],
    observed: Observed,
    cost: Callable[[float, float], float],
    *,
    complete: Container[Pair] | None = None,
) -> FrontierAnswer:
    """Return the frontier of the search whose :meth:`FrontierSearch.to_json` was ``stored``.

    Args:
        stored: JSON values of the plan.
        observed: Values of each pair, to be maximised.
        cost: Function that returns the cost of an observed pair.
        complete: Pairs with a training that was not stopped early; all by default.
    """
    first, second = stored["scale"]
    noise, forecast = Noise.from_json(stored), Forecast.of_plan(stored)
    rule = Rule(stored["dense"], stored["worst"], (first, second), noise, forecast)
    judged = judge(observed, cost, rule)
    if judged is None:
        return FrontierAnswer([], {}, [])
    all_ = [judged.estimate(place) for place in range(len(judged.pairs))]
    places = judged.front(complete)
    front = [all_[place] for place in places]
    return FrontierAnswer(front, {one.pair: one for one in all_}, judged.between(places))
