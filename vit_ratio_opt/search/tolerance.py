"""Search the cheapest pair that loses no more than a tolerance of accuracy."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Collection, Container, Sequence
from typing import Any

import numpy as np

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.belief import Belief
from vit_ratio_opt.search.columns import Columns, as_array
from vit_ratio_opt.search.forecast import Forecast, forecast_json
from vit_ratio_opt.search.margins import (
    NOTHING,
    Believed,
    Rule,
    Seen,
    add_values,
    as_pair,
    believe,
    cheapest_kept,
    estimate,
    failed_pairs,
    passing_probability,
)
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.search.plan import Array, Estimate, Observed, Pair, Proposal, as_noise

__all__ = ["ToleranceSearch"]

_Promise = tuple[Pair | None, float]  # a pair, and what a trial of it is expected to save
_Promising = Callable[[Array, Array], _Promise]
_OUTCOMES = 64
_MORE_TRAININGS = 2  # of one pair, beyond its confirmations
_PATH_RESOLUTION = 0.005  # of the cost, that a trial on the path or near it has to promise


class ToleranceSearch:
    """Search the cheapest pair whose margin is not negative.

    The *margin* of a pair is its accuracy minus the least accuracy allowed; that of the unpruned
    pair (0, 0) is the tolerance.

    *Statement.* Margin and cost both fall as either ratio rises. Find the cheapest pair that has a
    margin of at least 0 with a probability of ``confidence``, in few trained trials.

    *Algorithm.* A :class:`~vit_ratio_opt.search.belief.Belief` over the logarithm of the accuracy
    lost, which is nearly straight where the accuracy itself bends, gives each pair a probability
    to keep the tolerance. The pair with the largest expected saving is tried next: the cost that
    it saves against the answer so far, times the probability that one training brings it past the
    confidence (after Gardner 2014, with a known cost). This is a bisection that takes the slope
    into account: it tries pairs that keep the tolerance with a probability of about one half, at
    the split between the two ratios that can still be the cheapest. Trained pairs are candidates,
    too: another training may bring one past the confidence. A pending pair counts as both of its
    outcomes, weighted by the belief, so k idle workers get k different pairs.

    Pairs that are predicted to be the best split at each cost are the ``path``. The search first
    tries pairs on the path alone, as with one ratio, then in a corridor around it, each time until
    no trial there is expected to save 0.005 of the cost. Only then it tries all other pairs.

    *The answer* is the cheapest pair that keeps the tolerance with a probability of at least
    ``confidence``, and whose model kept it in at least one training.

    *Proven, without noise and for a monotone margin.* No pair that could be the answer is left
    out: a pair needs no trial if it costs at least as much as the answer so far, or prunes both
    modules at least as much as a pair that failed. Each trial settles at least its own pair, so
    the search ends; with ``resolution=0``, it ends at the cheapest pair.

    *Heuristic.* The number of trials; and with noise, only a failure by more than two standard
    deviations counts as one.

    A proposal costs O(candidates * observations^2), both bounded: some milliseconds.

    Args:
        columns: For each first ratio, rising, the second ratios to choose from, rising.
        cost: Function that returns the cost of a pair, which decreases with both ratios.
        tolerance: Largest loss of accuracy allowed, above 0, in the unit of the values.
        noise: Standard deviation of one value, or a :class:`~vit_ratio_opt.search.noise.Noise`.
        confirmations: Number of times that the answer is trained again before the search ends.
        confidence: Probability with which the answer has to keep the tolerance.
        resolution: Cost that a trial has to be expected to save for the search to continue.
        path: Pairs of the columns with which the search begins.

    Raises:
        InputError: A column is missing or out of order, a pair of the path is in none, or a number
            is out of range.
    """

    constraint: str | None = "accuracy_drop"
    """Name of the trials' constraint that holds the negative margin."""

    def __init__(
        self,
        columns: Sequence[tuple[float, Sequence[float]]],
        cost: Callable[[float, float], float],
        tolerance: float,
        *,
        noise: float | Noise = 0.0,
        confirmations: int = 0,
        confidence: float = 0.8,
        resolution: float = 5e-4,
        path: Sequence[Pair] = (),
    ) -> None:
        if not 0 < tolerance < math.inf:
            raise InputError(f"`tolerance` must be above 0, but got {tolerance!r}.")
        if not 0.5 <= confidence < 1:
            raise InputError(f"`confidence` must be in [0.5, 1), but got {confidence!r}.")
        self._pairs = Columns(columns, cost, path)
        self.tolerance = tolerance
        self.noise = as_noise(noise, confirmations)
        self.confirmations = confirmations
        self.confidence = confidence
        self.resolution = resolution
        self.rule = Rule(tolerance, self._pairs.scale, self.noise, confidence)
        self._seen = NOTHING
        draws = np.random.default_rng(0).standard_normal((_OUTCOMES // 2, 64))
        self._draws = np.concatenate([draws, -draws])

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without observations: a copy reads them again."""
        return vars(self) | {"_seen": NOTHING}

    @property
    def columns(self) -> tuple[tuple[float, tuple[float, ...]], ...]:
        """Return for each first ratio, rising, the second ratios to choose from, rising."""
        return self._pairs.columns

    @property
    def path(self) -> tuple[Pair, ...]:
        """Return the pairs where the search begins."""
        return self._pairs.path

    def use_forecast(self, forecast: Forecast | None) -> None:
        """Take what is predicted of each pair for the prior mean, which the belief corrects."""
        self.rule = self.rule._replace(forecast=forecast)

    def cost(self, first: float, second: float) -> float:
        """Return the cost of a pair."""
        return self._pairs.cost(first, second)

    @property
    def limits(self) -> tuple[Pair, Pair]:
        """Return the columns' corners."""
        seconds = [second for _, column in self.columns for second in (column[0], column[-1])]
        return (self.columns[0][0], min(seconds)), (self.columns[-1][0], max(seconds))

    def propose(
        self,
        observed: Observed,
        pending: Collection[Pair] = (),
        blocked: Collection[Pair] = (),
        *,
        confirm: bool = False,
    ) -> Proposal:
        """Return the pair of the largest expected saving."""
        # A pair that was enqueued by hand may be out of range; its trial fails.
        _, most = self.limits
        pending = [p for p in pending if p[0] <= most[0] and p[1] <= most[1] and min(p) >= 0]
        seen = self._look(observed)
        believed = believe(seen, self.rule)
        place = cheapest_kept(seen, believed, self.rule)
        answer = None if place is None else as_pair(seen.pairs[place])
        once = answer is not None and len(observed[answer]) < 2
        if confirm and once and answer not in {*pending, *blocked}:
            return Proposal(answer, "confirms the answer, which was trained once")

        limit = self.cost(0.0, 0.0) if answer is None else self.cost(*answer)
        excluded = observed, pending, blocked
        failed = failed_pairs(seen, self.rule)

        def promising(pairs: Array, costs: Array) -> _Promise:
            return self._most_saving(
                believed.belief, pairs, costs, limit, pending, excluded, failed
            )

        again, gain = self._best_repetition(seen, believed, limit, {*pending, *blocked})
        best, saving = self._best_near_path(promising)
        if best is not None and saving > _PATH_RESOLUTION:
            if again is not None and gain > saving:
                return _once_more(again, gain)
            where = "on" if best in self.path else "near"
            return Proposal(best, f"expected to save {saving:.4f} of the cost {where} the path")
        best, saving = self._best_anywhere(promising, limit, failed)
        if again is not None and gain > max(saving, self.resolution):
            return _once_more(again, gain)
        if best is not None and saving > self.resolution:
            return Proposal(best, f"expected to save {saving:.4f} of the cost")
        if best is not None and not len(seen.counts):  # a forecast alone ends no search
            return Proposal(best, "likeliest to keep the tolerance")
        trained = 0 if answer is None else len(observed[answer])
        return self._confirm(answer, trained, pending, blocked)

    def _best_near_path(self, promising: _Promising) -> _Promise:
        """Return the most promising pair on the path, else in the corridor around it."""
        pairs = self._pairs
        if not pairs.path:
            return None, 0.0
        best, saving = promising(*pairs.on_path)
        if saving <= _PATH_RESOLUTION:
            best, saving = promising(*pairs.thinned_near_path)
            if best is not None:
                finer = promising(*pairs.near_path(*pairs.around(best)))
                best, saving = finer if finer[1] > saving else (best, saving)
        return best, saving

    def _best_anywhere(self, promising: _Promising, limit: float, failed: Array) -> _Promise:
        """Return the most promising of all pairs."""
        best, saving = promising(*self._pairs.thinned)
        if best is not None:
            # The same again between the neighbours, down to one unit.
            finer = promising(*self._pairs.around(best))
            best, saving = finer if finer[1] > saving else (best, saving)
        if best is None or saving <= self.resolution:
            # The thinned candidates may all be settled while pairs between them are open.
            last = promising(*self._pairs.open_pairs(limit, failed))
            best, saving = last if last[1] > saving else (best, saving)
        return best, saving

    def _confirm(
        self,
        answer: Pair | None,
        trained: int,
        pending: Collection[Pair],
        blocked: Collection[Pair],
    ) -> Proposal:
        """Return the answer where it has to be trained again, else why nothing is left."""
        if answer is None:
            why = "no pair can be expected to keep the accuracy within the tolerance"
            return Proposal(None, why)
        if answer in pending:
            return Proposal(None, "the answer is being trained again")
        if trained <= self.confirmations and answer not in blocked:
            return Proposal(answer, "confirms the answer with a fresh seed")
        return Proposal(
            None, f"no other pair is expected to save more than {self.resolution:g} of the cost"
        )

    def answer(
        self, observed: Observed, *, complete: Container[Pair] | None = None
    ) -> Estimate | None:
        """Return the cheapest pair that keeps the tolerance with the confidence.

        Its mean, error and own value are margins.
        """
        seen = self._look(observed)
        believed = believe(seen, self.rule)
        place = cheapest_kept(seen, believed, self.rule, complete)
        return None if place is None else estimate(seen, believed, place, self.rule)

    def fix_ratio(self, axis: int, value: float) -> ToleranceSearch:
        """Return the search in one column or one row."""
        if axis == 0:
            nearest = min(self.columns, key=lambda column: abs(column[0] - value))
            columns: list[tuple[float, Sequence[float]]] = [(value, nearest[1])]
        else:
            columns = [(first, (value,)) for first, _ in self.columns]
        search = ToleranceSearch(
            columns,
            self.cost,
            self.tolerance,
            noise=self.noise,
            confirmations=self.confirmations,
            confidence=self.confidence,
            resolution=self.resolution,
        )
        search.use_forecast(self.rule.forecast)
        return search

    def to_json(self) -> dict[str, Any]:
        """Return JSON values for :func:`~vit_ratio_opt.search.margins.tolerance_answer`."""
        return {
            "tolerance": self.tolerance,
            "scale": list(self._pairs.scale),
            **self.noise.to_json(),
            "confidence": self.confidence,
            **forecast_json(self.rule.forecast),
        }

    def _look(self, observed: Observed) -> Seen:
        """Return what was observed as arrays, made from those of the last call where possible."""
        last = self._seen
        # Margins are tuples, so the same object has the same values: few pairs are compared.
        known = list(map(last.margins.get, observed))
        changed = itertools.compress(observed, map(operator.is_not, observed.values(), known))
        fresh = {pair: tuple(observed[pair]) for pair in changed}
        seen_again = len(known) - known.count(None)
        if seen_again < len(last.margins) or not all(fresh.values()):  # of another study
            last, fresh = NOTHING, {p: tuple(values) for p, values in observed.items() if values}
        if fresh:
            self._seen = last = add_values(last, fresh, self.cost)
        return last

    def _best_repetition(
        self, seen: Seen, believed: Believed, limit: float, off: Collection[Pair]
    ) -> tuple[Pair | None, float]:
        """Return the trained pair that may pass the confidence and saves most, and how much."""
        chosen, most = believed.chosen, self.confirmations + _MORE_TRAININGS
        if self.noise.guess == 0 or not len(chosen):
            return None, 0.0
        passing = passing_probability(
            believed.mean, believed.variance, believed.belief.next_noise, self.confidence
        )
        savings = np.maximum(limit - seen.costs[chosen], 0.0) * passing
        savings[seen.counts[chosen] >= most] = 0.0
        for place in np.argsort(-savings, kind="stable"):
            pair = as_pair(seen.pairs[chosen[place]])
            if pair not in off:
                return pair, float(savings[place])
        return None, 0.0

    def _most_saving(
        self,
        belief: Belief,
        pairs: Array,
        costs: Array,
        limit: float,
        pending: Collection[Pair],
        excluded: Sequence[Container[Pair]],
        failed: Array,
    ) -> tuple[Pair | None, float]:
        open_ = costs < limit
        if len(failed):
            as_pruned = np.all(pairs[:, None, :] >= failed[None, :, :], axis=2)
            open_ &= ~np.any(as_pruned, axis=1)
        pairs, costs = pairs[open_], costs[open_]
        if not len(pairs):
            return None, 0.0
        points = self.rule.points(pairs)
        if pending:
            unknown = sorted(pending)[: self._draws.shape[1]]
            margins, means, variance = belief.outcomes(
                points, self.rule.points(as_array(unknown)), self._draws[:, : len(unknown)]
            )
            known = np.array([self.cost(*pair) for pair in unknown])
            limits = np.where(margins >= 0, known, limit).min(axis=1)
            limits = np.minimum(limits, limit)[:, None]
        else:
            mean, variance = belief.predict(points)
            means, limits = mean[None, :], np.array([[limit]])
        chances = passing_probability(means, variance, belief.next_noise, self.confidence)
        savings = (np.maximum(limits - costs, 0.0) * chances).mean(axis=0)
        for index in np.argsort(-savings, kind="stable"):
            pair = as_pair(pairs[index])
            if not any(pair in some for some in excluded):
                return pair, float(savings[index])
        return None, 0.0


def _once_more(pair: Pair, gain: float) -> Proposal:
    return Proposal(pair, f"trained again, expected to save {gain:.4f} of the cost")
