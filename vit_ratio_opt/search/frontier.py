"""Search the best pair at every cost: the frontier from the dense model to the smallest one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Container, Sequence
from typing import Any

import numpy as np

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.columns import as_array
from vit_ratio_opt.search.forecast import Forecast, forecast_json
from vit_ratio_opt.search.front import Judged, Rule, judge, knee
from vit_ratio_opt.search.log_losses import LARGEST_EXPONENT
from vit_ratio_opt.search.margins import as_pair
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.search.plan import (
    Array,
    Estimate,
    Observed,
    Pair,
    Proposal,
    as_noise,
    normal_cdf,
)

__all__ = ["FrontierSearch"]

_MORE_TRAININGS = 2  # of one pair, beyond its confirmations
_RESOLUTION = 1e-5  # of the worst loss, that a trial has to promise for the search to go on
_LEAST_VARIANCE = 1e-12

_Promise = tuple[Pair | None, float]  # a pair, and by how much a trial of it lowers the frontier


class FrontierSearch:
    """Search the pairs that no cheaper pair beats, at all costs at once.

    *Statement.* The *frontier* at a cost is the least loss of the trained pairs that cost no more.
    Make it low on the average over some costs, the ``marks``, in few trained trials.

    *Algorithm.* The first trials are the ``levels``, from the largest cost to the smallest: the
    likeliest pair of each, or only the first of them where a forecast says enough of the others.
    From then on one :class:`~vit_ratio_opt.search.belief.Belief` over the
    logarithm of the loss, which is nearly straight where the loss itself bends, serves all costs,
    and the pair is tried whose training is expected to lower the frontier most. Since costs are
    known, this has a closed form: it is the expected hypervolume improvement (Emmerich 2006) of
    two objectives, one of them exact. A trained pair may be trained again, for what its mean is
    expected to change then (the knowledge gradient, Frazier 2009). A pending pair counts as
    trained with the loss that is expected of it, so k workers spread.

    All of this is heuristic. The search ends when no trial promises more than a hundred-thousandth
    of the worst loss; without noise no pair is tried twice, so it ends in any case.

    A proposal costs O(pairs * (observed^2 + marks)), all bounded: some milliseconds.

    Args:
        levels: Pairs that are tried first, of falling cost.
        pairs: All pairs that may be tried.
        cost: Function that returns the cost of a pair as a share of the dense model's.
        marks: Costs at which the frontier counts.
        dense: Value of the dense model, from which losses are counted.
        worst: Loss of a model of which nothing is left, above 0.
        noise: Standard deviation of one value, or a :class:`~vit_ratio_opt.search.noise.Noise`.
        confirmations: Number of times that a pair may be trained again, and two.

    Raises:
        InputError: There is no level or no mark, the costs of the levels do not fall, or a number
            is out of range.
    """

    constraint = None
    objectives = 2  # metric and cost
    larger_is_better = True
    """Whether the metric is maximised. If not, ``dense`` and the values that the search observes
    are those of the study with the opposite sign."""

    def __init__(
        self,
        levels: Sequence[Pair],
        pairs: Sequence[Pair],
        cost: Callable[[float, float], float],
        marks: Sequence[float],
        *,
        dense: float,
        worst: float,
        noise: float | Noise = 0.0,
        confirmations: int = 0,
    ) -> None:
        costs = [cost(*pair) for pair in levels]
        if not costs or any(more <= less for more, less in itertools.pairwise(costs)):
            raise InputError(
                f"`levels` must be pairs of falling cost, at least one, but their costs are "
                f"{costs!r}."
            )
        if not len(marks):
            raise InputError("`marks` must have at least one cost, but is empty.")
        if not 0 < worst < math.inf:
            raise InputError(f"`worst` must be above 0, but got {worst!r}.")
        every = ((float(first), float(second)) for first, second in (*levels, *pairs))
        self.pairs = tuple(dict.fromkeys(every))
        self.levels = self.pairs[: len(costs)]
        self.cost = cost
        self.marks = np.array(marks, dtype=np.float64)
        self.confirmations = confirmations
        self._costs = np.array([cost(*pair) for pair in self.pairs])
        points = as_array(self.pairs)
        least, most = as_pair(points.min(axis=0)), as_pair(points.max(axis=0))
        self._limits = least, most  # each proposal asks often
        noise = as_noise(noise, confirmations)
        self.rule = Rule(dense, worst, (most[0] or 1.0, most[1] or 1.0), noise)

    def use_forecast(self, forecast: Forecast | None) -> None:
        """Take what is predicted of each pair for the prior mean, which the belief corrects."""
        self.rule = self.rule._replace(forecast=forecast)

    @property
    def dense(self) -> float:
        """Return the value of the dense model."""
        return self.rule.dense

    @property
    def limits(self) -> tuple[Pair, Pair]:
        """Return the smallest and the largest of either ratio."""
        return self._limits

    def propose(
        self,
        observed: Observed,
        pending: Collection[Pair] = (),
        blocked: Collection[Pair] = (),
        *,
        confirm: bool = False,
    ) -> Proposal:
        """Return the next level, then the pair that is expected to lower the frontier most."""
        observed = {pair: values for pair, values in observed.items() if self._is_known(pair)}
        off = {*pending, *blocked}
        for number, pair in enumerate(self._open_levels(observed), 1):
            if pair not in off and not observed.get(pair):
                return Proposal(pair, f"level {number} of {len(self.levels)}")
        judged = judge(observed, self.cost, self.rule)
        if judged is None:
            return self._between(off)
        expected = self._expected(judged, sorted(pending))
        judged = judge({**expected, **observed}, self.cost, self.rule) or judged
        new = self._best_new(judged, [*off, *observed])
        again = self._best_again(judged, {*off, *expected})
        best, gain = max(new, again, key=lambda promise: promise[1])
        if best is None or gain <= _RESOLUTION * judged.rule.worst:
            return Proposal(None, "no pair is expected to lower the frontier")
        what = "again, " if best in observed else ""
        return Proposal(best, f"{what}expected to lower the frontier by {gain:.3g} on average")

    def front(
        self, observed: Observed, *, complete: Container[Pair] | None = None
    ) -> list[Estimate]:
        """Return the trained pairs that lose less than every cheaper one, of rising cost.

        Args:
            observed: Values of each pair, one for each training.
            complete: Pairs with a training that was not stopped early; only they can be in it. All
                by default.
        """
        judged = judge(observed, self.cost, self.rule)
        if judged is None:
            return []
        return [judged.estimate(place) for place in judged.front(complete)]

    def answer(
        self, observed: Observed, *, complete: Container[Pair] | None = None
    ) -> Estimate | None:
        """Return the knee of the frontier; None where nothing was trained."""
        front = self.front(observed, complete=complete)
        found = knee([self.cost(*one.pair) for one in front], [one.mean for one in front])
        return None if found is None else front[found]

    def fix_ratio(self, axis: int, value: float) -> FrontierSearch:
        """Return the search among the pairs whose one ratio is the nearest to a value."""
        nearest = min((pair[axis] for pair in self.pairs), key=lambda ratio: abs(ratio - value))
        fixed = sorted((p for p in self.pairs if p[axis] == nearest), key=lambda p: -self.cost(*p))
        falling = {self.cost(*pair): pair for pair in reversed(fixed)}
        levels = sorted(falling.values(), key=lambda pair: -self.cost(*pair))
        step = max(1, len(levels) // len(self.levels))
        search = FrontierSearch(
            levels[::step],
            fixed,
            self.cost,
            self.marks.tolist(),
            dense=self.rule.dense,
            worst=self.rule.worst,
            noise=self.rule.noise,
            confirmations=self.confirmations,
        )
        search.use_forecast(self.rule.forecast)
        search.larger_is_better = self.larger_is_better
        return search

    def to_json(self) -> dict[str, Any]:
        """Return JSON values for :func:`~vit_ratio_opt.search.front.frontier_answer`."""
        return {
            "levels": [list(pair) for pair in self.levels],
            "marks": self.marks.tolist(),
            "dense": self.rule.dense,
            "worst": self.rule.worst,
            "scale": list(self.rule.scale),
            **self.rule.noise.to_json(),
            "confirmations": self.confirmations,
            **forecast_json(self.rule.forecast),
        }

    def _open_levels(self, observed: Observed) -> Sequence[Pair]:
        """Return the levels that come before all other pairs.

        A forecast says enough of other levels once a value is known, unless no other cost counts.
        """
        is_enough = self.rule.forecast is not None and len(self.marks) > len(self.levels)
        return () if is_enough and any(observed.values()) else self.levels

    def _is_known(self, pair: Pair) -> bool:
        """Return whether a pair has a cost: one that was enqueued by hand may be out of range."""
        _, most = self._limits
        return 0 <= pair[0] <= most[0] and 0 <= pair[1] <= most[1]

    def _between(self, off: Container[Pair]) -> Proposal:
        """Return a pair in the middle of two levels, the most apart, while nothing is observed."""
        left = [pair for pair in self.pairs if pair not in off]
        if not left:
            return Proposal(None, "every pair is being trained, or keeps failing")
        taken = sorted((-self.cost(*pair), pair) for pair in self.pairs if pair in off)
        gaps = itertools.pairwise([(-1.0, (0.0, 0.0)), *taken])  # from the dense model on
        (_, first), (_, second) = max(gaps, key=lambda gap: gap[1][0] - gap[0][0])
        middle = (as_array([first]) + as_array([second])) / 2
        nearest = np.abs(as_array(left) - middle).sum(axis=1).argmin()
        return Proposal(left[int(nearest)], "between two levels that are being trained")

    def _expected(self, judged: Judged, pending: Sequence[Pair]) -> dict[Pair, list[float]]:
        """Return the value that is expected of each pending pair."""
        pairs = [pair for pair in pending if self._is_known(pair)]
        if not pairs:
            return {}
        mean, _ = judged.belief.predict(judged.rule.points(pairs))
        lost = judged.rule.offset * np.expm1(np.minimum(-mean, LARGEST_EXPONENT))
        values = (judged.rule.dense - lost).tolist()
        return {pair: [value] for pair, value in zip(pairs, values, strict=True)}

    def _best_new(self, judged: Judged, tried: Collection[Pair]) -> _Promise:
        """Return the untried pair that is expected to lower the frontier most."""
        tried = set(tried)
        left = [place for place, pair in enumerate(self.pairs) if pair not in tried]
        if not left:
            return None, 0.0
        rule = judged.rule
        mean, variance = judged.belief.predict(rule.points([self.pairs[place] for place in left]))
        heights = judged.heights(self.marks, rule.worst)
        below = _below(mean, variance, judged.belief.next_noise, heights, rule.offset)
        gains = np.where(self._costs[left, None] <= self.marks, below, 0.0).mean(axis=1)
        best = int(np.argmax(gains))
        return self.pairs[left[best]], float(gains[best])

    def _best_again(self, judged: Judged, off: Container[Pair]) -> _Promise:
        """Return the trained pair of which one more training is expected to help most."""
        best: _Promise = None, 0.0
        most = self.confirmations + _MORE_TRAININGS
        for place, pair in enumerate(judged.pairs if self.rule.noise.guess else ()):
            if pair in off or judged.counts[place] >= most:
                continue
            one, reached = slice(place, place + 1), judged.costs[place] <= self.marks
            heights = judged.heights(self.marks, judged.rule.worst, without=place)[reached]
            noise, offset = judged.belief.next_noise, judged.rule.offset
            below = _below(judged.mean[one], judged.variance[one], noise, heights, offset)[0]
            gain = below - np.maximum(heights - judged.losses[place], 0.0)
            if gain.sum() > best[1] * len(self.marks):
                best = pair, float(gain.sum()) / len(self.marks)
        return best


def _below(mean: Array, variance: Array, noise: float, heights: Array, offset: float) -> Array:
    """Return how far a training is expected to bring a pair's loss below some heights.

    The loss is judged by its expectation after the training, which before it is log-normal:
    this is Black and Scholes' price of a put.

    Args:
        mean: Belief's mean of each pair, ``(n,)``.
        variance: Its variance, ``(n,)``.
        noise: Variance of one value.
        heights: Losses, ``(k,)``.
        offset: Offset of the loss under the logarithm.

    Returns:
        ``(n, k)``.
    """
    left = variance * noise / (variance + noise + _LEAST_VARIANCE)
    move = np.sqrt(np.maximum(variance - left, _LEAST_VARIANCE))[:, None]
    middle = math.log(offset) + np.minimum(left / 2 - mean, LARGEST_EXPONENT)
    middle = middle[:, None]
    struck = heights + offset
    reach = (np.log(struck) - middle) / move
    forward = np.exp(np.minimum(middle + move**2 / 2, LARGEST_EXPONENT))
    below: Array = struck * normal_cdf(reach) - forward * normal_cdf(reach - move)
    return np.maximum(below, 0.0)
