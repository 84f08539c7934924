"""The cheapest pair that loses no more than a tolerance: halve the doubt where it saves most."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import operator
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.belief import Belief, fit
from vit_ratio_opt.search.noise import Noise, Repeats
from vit_ratio_opt.search.plan import (
    Array,
    Estimate,
    Observed,
    Pair,
    Proposal,
    alternatives,
    as_noise,
    normal_cdf,
)

__all__ = ["ToleranceSearch", "tolerance_answer"]

_T = TypeVar("_T")
_Cost = Callable[[float, float], float]
# Candidates looked at at once; finer ones only around the most promising.
_COLUMNS, _CANDIDATES = 36, 1440
_OUTCOMES = 64
_NEAREST = 48  # observed pairs that a belief is made from
_EVERYTHING_PRUNED, _EVERYTHING_VARIANCE = -3.0, 1.0
_LARGEST_EXPONENT = 20.0
_SAME = 1e-4  # variance of values without noise
_MORE_TRAININGS = 2  # of one pair, beyond its confirmations

# What a trial on the path, or near it, has to promise, and how far away near is: shares of all.
_PATH_RESOLUTION, _CORRIDOR = 0.005, 0.15


class _Seen(NamedTuple):
    """The observed pairs as arrays ``(n,)`` and ``(n, 2)``, in the order of ``places``."""

    margins: dict[Pair, tuple[float, ...]]
    places: dict[Pair, int]
    pairs: Array
    costs: Array
    means: Array
    squares: Array
    counts: Array


_NOTHING = _Seen({}, {}, np.empty((0, 2)), *(np.empty(0) for _ in range(4)))


class _Believed(NamedTuple):
    """What is believed of the pairs next to the limit: arrays ``(n,)``.

    ``chosen`` are indices into what was seen. ``loss`` and ``error`` are mean and standard error
    of the accuracy lost, ``kept`` is the probability to keep the tolerance. Without noise there is
    a belief, but each pair is its mean.
    """

    chosen: NDArray[np.int64]
    loss: Array
    error: Array
    kept: Array
    mean: Array
    variance: Array
    belief: Belief


class ToleranceSearch:
    """Minimises a known cost over the pairs whose margin is not negative.

    The *margin* of a pair is its accuracy minus the least accuracy allowed; that of the unpruned
    pair (0, 0) is the tolerance.

    *Statement.* Margin and cost both fall as either ratio rises. Find the cheapest pair that has a
    margin of at least 0 with a probability of ``confidence``, in few trained trials.

    *Algorithm.* A :class:`~vit_ratio_opt.search.belief.Belief` over the logarithm of the accuracy
    lost, which is nearly straight where the accuracy itself bends, gives each pair its probability
    to keep the tolerance. Tried next is the pair with the largest expected saving: what it costs
    less than the answer so far, times the probability that the pair will have passed the
    confidence once it is trained (after Gardner 2014, with the cost known). That is a bisection
    that knows how steep the ground is: it goes to where the doubt is about even, on the split
    between the two ratios that can still win, and halves the doubt there. Pairs that were trained
    are candidates too: training one again may bring it past the confidence. A pending pair counts
    as both of its outcomes, weighted by the belief, so k idle workers get k different pairs.

    Where something predicts which split is the best at each cost, these pairs are the ``path``.
    The search first goes along it alone, like that of one ratio, then along a corridor around it,
    each time until no trial there can be expected to save half a hundredth of the cost. Only then
    does it ask whether the path was right.

    *The answer* is the cheapest pair that keeps the tolerance with a probability of at least
    ``confidence``, and kept it in one of its trainings at least: that model can be taken away.

    *Proven, without noise and for a monotone margin.* No pair that could be the answer is ever
    left out: a pair needs no trial if it costs at least as much as the answer so far, or prunes
    both modules at least as much as one that failed. Each trial settles at least its own pair, so
    the search ends; with ``resolution=0``, at the cheapest pair there is.

    *Heuristic.* How fast that goes; and with noise, a failure by more than two standard deviations
    counts as one.

    A proposal costs O(candidates * observations^2), both bounded: some milliseconds.

    Args:
        columns: For each first ratio, rising, the second ratios to choose from, rising.
        cost: Cost of a pair, falling in both ratios; (0, 0) costs the most.
        tolerance: Largest loss of accuracy allowed, above 0; in the unit of the values.
        noise: Standard deviation of one value, or what is known of it.
        confirmations: Fresh trainings of the answer before the search ends.
        confidence: Probability with which the answer has to keep the tolerance.
        resolution: The search ends when no trial can be expected to save this much.
        constraint: The trials' constraint that holds the negative margin.
        path: Some of the pairs, where the search begins.

    Raises:
        InputError: A column is missing or out of order, a pair of the path is in none, or a number
            is out of range.
    """

    def __init__(
        self,
        columns: Sequence[tuple[float, Sequence[float]]],
        cost: _Cost,
        tolerance: float,
        *,
        noise: float | Noise = 0.0,
        confirmations: int = 0,
        confidence: float = 0.8,
        resolution: float = 5e-4,
        constraint: str = "accuracy_drop",
        path: Sequence[Pair] = (),
    ) -> None:
        if not 0 < tolerance < math.inf:
            raise InputError(f"`tolerance` must be above 0, but got {tolerance!r}.")
        if not 0.5 <= confidence < 1:
            raise InputError(f"`confidence` must be in [0.5, 1), but got {confidence!r}.")
        if not columns or not all(len(seconds) for _, seconds in columns):
            raise InputError("`columns` must have at least one pair each, but one has none.")
        for values in ([first for first, _ in columns], *(seconds for _, seconds in columns)):
            if any(a >= b for a, b in itertools.pairwise(values)):
                raise InputError(f"The ratios of `columns` must rise, but are {list(values)!r}.")
        self.columns = tuple((float(first), tuple(seconds)) for first, seconds in columns)
        self.cost = cost
        self.tolerance = tolerance
        self.noise = as_noise(noise, confirmations)
        self.confirmations = confirmations
        self.confidence = confidence
        self.resolution = resolution
        self.constraint: str | None = constraint
        seconds_of = dict(self.columns)
        self.path = tuple((float(first), float(second)) for first, second in path)
        for first, second in self.path:
            if second not in seconds_of.get(first, ()):
                raise InputError(f"`path` must be pairs of `columns`, but has {(first, second)}.")
        self._path = _array(self.path), np.array([cost(*pair) for pair in self.path])
        self._seen = _NOTHING
        self._cheaper_than: tuple[float, list[int]] = math.nan, []
        # Ratios as shares of the largest, for the belief's unit square.
        self.scale = (
            self.columns[-1][0] or 1.0,
            max(seconds[-1] for _, seconds in self.columns) or 1.0,
        )
        self._thin = self._candidates(range(len(self.columns)), None)
        self._thin_near_path = self._near_path(*self._thin) if self.path else self._thin
        draws = np.random.default_rng(0).standard_normal((_OUTCOMES // 2, 64))
        self._draws = np.concatenate([draws, -draws])

    def __getstate__(self) -> dict[str, Any]:
        """Without what was observed: a copy reads its own."""
        return vars(self) | {"_seen": _NOTHING}

    @property
    def limits(self) -> tuple[Pair, Pair]:
        """The columns' corners."""
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
        seen = self._look(observed)
        believed = _believe(seen, self)
        place = _cheapest_kept(seen, believed, self)
        answer = None if place is None else _pair(seen.pairs[place])
        once = answer is not None and len(observed[answer]) < 2
        if confirm and once and answer not in pending:
            return Proposal(answer, "confirms the answer, which was trained once")

        limit = self.cost(0.0, 0.0) if answer is None else self.cost(*answer)
        excluded = observed, pending, blocked
        failed = self._failed(seen)

        def promising(pairs: Array, costs: Array) -> tuple[Pair | None, float]:
            return self._most_saving(
                believed.belief, pairs, costs, limit, pending, excluded, failed
            )

        again, gain = self._again(seen, believed, limit, {*pending, *blocked})
        if self.path:
            best, saving = promising(*self._path)
            if saving <= _PATH_RESOLUTION:
                best, saving = promising(*self._thin_near_path)
                if best is not None:
                    finer = promising(*self._near_path(*self._around(best)))
                    best, saving = finer if finer[1] > saving else (best, saving)
            if best is not None and saving > _PATH_RESOLUTION:
                if again is not None and gain > saving:
                    return _once_more(again, gain)
                where = "on" if best in self.path else "near"
                return Proposal(
                    best, f"expected to save {saving:.4f} of the cost {where} the path"
                )
        best, saving = promising(*self._thin)
        if best is not None:
            # The same again between the neighbours, down to one unit.
            finer = promising(*self._around(best))
            best, saving = finer if finer[1] > saving else (best, saving)
        if best is None or saving <= self.resolution:
            # The thinned candidates may all be settled while pairs between them are open.
            last = promising(*self._open(limit, failed))
            best, saving = last if last[1] > saving else (best, saving)
        if again is not None and gain > max(saving, self.resolution):
            return _once_more(again, gain)
        if best is not None and saving > self.resolution:
            return Proposal(best, f"expected to save {saving:.4f} of the cost")
        if answer is None:
            why = "no pair can be expected to keep the accuracy within the tolerance"
            return Proposal(None, why)
        if answer in pending:
            return Proposal(None, "the answer is being trained again")
        if len(observed[answer]) <= self.confirmations:
            return Proposal(answer, "confirms the answer with a fresh seed")
        return Proposal(
            None, f"no other pair is expected to save more than {self.resolution:g} of the cost"
        )

    def answer(self, observed: Observed) -> Estimate | None:
        """Return the cheapest pair that keeps the tolerance with the confidence asked for.

        Mean, error and own value are of the margin.
        """
        seen = self._look(observed)
        believed = _believe(seen, self)
        place = _cheapest_kept(seen, believed, self)
        return None if place is None else _estimate(seen, believed, place, self)

    def along(self, axis: int, value: float) -> ToleranceSearch:
        """Return the same search in one column or one row."""
        if axis == 0:
            nearest = min(self.columns, key=lambda column: abs(column[0] - value))
            columns: list[tuple[float, Sequence[float]]] = [(value, nearest[1])]
        else:
            columns = [(first, (value,)) for first, _ in self.columns]
        return ToleranceSearch(
            columns,
            self.cost,
            self.tolerance,
            noise=self.noise,
            confirmations=self.confirmations,
            confidence=self.confidence,
            resolution=self.resolution,
            constraint=str(self.constraint),
        )

    def to_json(self) -> dict[str, Any]:
        """Return what :func:`tolerance_answer` needs, as JSON values."""
        return {
            "tolerance": self.tolerance,
            "scale": list(self.scale),
            "noise": self.noise.guess,
            "noise_is_known": self.noise.is_known,
            "confidence": self.confidence,
        }

    def _look(self, observed: Observed) -> _Seen:
        """Return what was observed as arrays; from the last time, and what is new since."""
        last = self._seen
        # Margins are tuples, so the same object is the same values. The only look at every pair.
        known = list(map(last.margins.get, observed))
        changed = itertools.compress(observed, map(operator.is_not, observed.values(), known))
        fresh = {pair: tuple(observed[pair]) for pair in changed}
        seen_again = len(known) - known.count(None)
        if seen_again < len(last.margins) or not all(fresh.values()):  # of another study
            last, fresh = _NOTHING, {p: tuple(values) for p, values in observed.items() if values}
        if fresh:
            self._seen = last = _with(last, fresh, self.cost)
        return last

    def _failed(self, seen: _Seen) -> Array:
        """Return the least of the pairs that failed by more than two standard deviations."""
        doubt = 2 * _spread_at(seen, self) / np.sqrt(seen.counts)
        return _least(seen.pairs[seen.means < -doubt])

    def _again(
        self, seen: _Seen, believed: _Believed, limit: float, off: Collection[Pair]
    ) -> tuple[Pair | None, float]:
        """Return the trained pair that may pass the confidence and saves most, and how much."""
        chosen, most = believed.chosen, self.confirmations + _MORE_TRAININGS
        if self.noise.guess == 0 or not len(chosen):
            return None, 0.0
        passing = _passing(
            believed.mean, believed.variance, believed.belief.next_noise, self.confidence
        )
        savings = np.maximum(limit - seen.costs[chosen], 0.0) * passing
        savings[seen.counts[chosen] >= most] = 0.0
        for place in np.argsort(-savings, kind="stable"):
            pair = _pair(seen.pairs[chosen[place]])
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
        points = pairs / self.scale
        if pending:
            unknown = sorted(pending)[: self._draws.shape[1]]
            margins, means, variance = belief.outcomes(
                points, _array(unknown) / self.scale, self._draws[:, : len(unknown)]
            )
            known = np.array([self.cost(*pair) for pair in unknown])
            limits = np.where(margins >= 0, known, limit).min(axis=1)
            limits = np.minimum(limits, limit)[:, None]
        else:
            mean, variance = belief.predict(points)
            means, limits = mean[None, :], np.array([[limit]])
        chances = _passing(means, variance, belief.next_noise, self.confidence)
        savings = (np.maximum(limits - costs, 0.0) * chances).mean(axis=0)
        for index in np.argsort(-savings, kind="stable"):
            pair = _pair(pairs[index])
            if not any(pair in some for some in excluded):
                return pair, float(savings[index])
        return None, 0.0

    def _candidates(self, columns: Sequence[int], around: Pair | None) -> tuple[Array, Array]:
        """Return pairs ``(n, 2)`` and costs ``(n,)`` of some columns, evenly thinned."""
        kept = _evenly(columns, _COLUMNS if around is None else 9)
        if all(len(self.columns[index][1]) == 1 for index in columns):
            kept = _evenly(columns, _CANDIDATES)
        rows = max(2, _CANDIDATES // len(kept))
        pairs = []
        for index in kept:
            first, seconds = self.columns[index]
            chosen: Sequence[float] = seconds
            if around is not None:
                above = bisect.bisect_left(seconds, around[1])
                near = range(max(0, above - 1), min(len(seconds), above + 1))
                place = min(near, key=lambda i: abs(seconds[i] - around[1]))
                reach = -(-len(seconds) // (_CANDIDATES // _COLUMNS))
                chosen = seconds[max(0, place - reach) : place + reach + 1]
            pairs += [(first, second) for second in _evenly(chosen, rows)]
        return _array(pairs), np.array([self.cost(*pair) for pair in pairs])

    def _near_path(self, pairs: Array, costs: Array) -> tuple[Array, Array]:
        """Return those of the pairs that are in the corridor."""
        apart = np.abs((pairs[:, None] - self._path[0][None]) / self.scale).max(axis=2)
        near = apart.min(axis=1) <= _CORRIDOR
        return pairs[near], costs[near]

    def _around(self, pair: Pair) -> tuple[Array, Array]:
        firsts = [first for first, _ in self.columns]
        place = firsts.index(pair[0])
        reach = -(-len(firsts) // _COLUMNS) - 1
        return self._candidates(
            range(max(0, place - reach), min(len(firsts), place + reach + 1)), pair
        )

    def _costs_less(self, limit: float, first: float, second: float) -> bool:
        return self.cost(first, second) < limit

    def _cheaper(self, limit: float) -> list[int]:
        """Return where in each column the pairs begin that cost less than the limit."""
        known, places = self._cheaper_than
        if known != limit:
            places = [
                bisect.bisect_left(
                    seconds, True, key=functools.partial(self._costs_less, limit, first)
                )
                for first, seconds in self.columns
            ]
            self._cheaper_than = limit, places
        return places

    def _open(self, limit: float, failed: Array) -> tuple[Array, Array]:
        """Return pairs and costs of what each column has left between the limit and failures."""
        rows = max(2, _CANDIDATES // len(self.columns))
        pairs = []
        for (first, seconds), cheaper in zip(self.columns, self._cheaper(limit), strict=True):
            least_failed = failed[failed[:, 0] <= first, 1].min(initial=math.inf)
            hopeless = bisect.bisect_left(seconds, least_failed)
            pairs += [(first, second) for second in _evenly(seconds[cheaper:hopeless], rows)]
        return _array(pairs), np.array([self.cost(*pair) for pair in pairs])


class _Rule(NamedTuple):
    """What the answer depends on beside the observations, as in a :class:`ToleranceSearch`."""

    tolerance: float
    scale: tuple[float, float]
    noise: Noise
    confidence: float


def tolerance_answer(
    stored: Mapping[str, Any], observed: Observed, cost: _Cost
) -> tuple[Estimate | None, dict[Pair, Estimate]]:
    """Return the answer of the search whose :meth:`ToleranceSearch.to_json` was ``stored``.

    Args:
        stored: JSON values.
        observed: Margins of each pair.
        cost: Of a pair that was observed.

    Returns:
        The answer, as :meth:`ToleranceSearch.answer` gives it, and what is believed of every
        observed pair.
    """
    first, second = stored["scale"]
    noise = Noise(stored["noise"], is_known=stored["noise_is_known"])
    rule = _Rule(stored["tolerance"], (first, second), noise, stored["confidence"])
    values = {pair: tuple(margins) for pair, margins in observed.items() if margins}
    if not values:
        return None, {}
    seen = _with(_NOTHING, values, cost)
    believed = _believe(seen, rule)
    estimates = {p: _estimate(seen, believed, i, rule) for p, i in seen.places.items()}
    place = _cheapest_kept(seen, believed, rule)
    return None if place is None else estimates[_pair(seen.pairs[place])], estimates


def _with(last: _Seen, fresh: Mapping[Pair, tuple[float, ...]], cost: _Cost) -> _Seen:
    """Return what was seen, and what is new. Arrays are copied: another thread may read them."""
    places = dict(last.places)
    added = [pair for pair in fresh if pair not in places]
    places.update((pair, len(last.places) + place) for place, pair in enumerate(added))
    zeros = np.zeros(len(added))
    pairs = np.concatenate([last.pairs, _array(added)])
    costs = np.concatenate([last.costs, [cost(*pair) for pair in added]])
    means, squares, counts = (
        np.concatenate([array, zeros]) for array in (last.means, last.squares, last.counts)
    )
    for pair, values in fresh.items():
        place, mean = places[pair], math.fsum(values) / len(values)
        means[place], counts[place] = mean, len(values)
        squares[place] = math.fsum((value - mean) ** 2 for value in values)
    return _Seen({**last.margins, **fresh}, places, pairs, costs, means, squares, counts)


def _offset(rule: _Rule | ToleranceSearch) -> float:
    """Return what is added to the loss under the logarithm, so that gains have one, too."""
    return rule.tolerance + 2 * rule.noise.guess


def _repeats(seen: _Seen, tolerance: float) -> Repeats:
    return Repeats(tolerance - seen.means, seen.squares, seen.counts)


def _spread_at(seen: _Seen, rule: _Rule | ToleranceSearch) -> Array:
    """Return the expected standard deviation of one value of each pair."""
    repeats = _repeats(seen, rule.tolerance)
    levels = rule.noise.levels(repeats, least_loss=rule.tolerance)
    weights = np.exp(levels.log_weights - levels.log_weights.max())
    variances = levels.variances(np.maximum(repeats.losses, rule.tolerance))
    spread: Array = np.sqrt(weights / weights.sum() @ variances)
    return spread


def _believe(seen: _Seen, rule: _Rule | ToleranceSearch) -> _Believed:
    """Over ``log((tolerance + c) / (loss + c))``, c of the order of the tolerance: 0 at the limit.

    Those near the limit say where it is; thousands would only cost time.
    """
    tolerance, offset = rule.tolerance, _offset(rule)
    repeats = _repeats(seen, tolerance)
    levels = rule.noise.levels(repeats, least_loss=tolerance)
    order = _nearest(seen)
    near = Repeats(*(array[order] for array in repeats))
    lost = np.maximum(near.losses, -offset / 2) + offset
    # The unpruned model loses nothing, and one with everything pruned nearly everything.
    points = np.concatenate([seen.pairs[order] / rule.scale, [[0.0, 0.0], [1.0, 1.0]]])
    whole = tolerance + offset
    values = np.concatenate([np.log(whole / lost), [math.log(whole / offset), _EVERYTHING_PRUNED]])
    found = alternatives(levels, near, tolerance, np.append(1 / lost, 1 / whole))
    ends = np.tile([0.01, _EVERYTHING_VARIANCE], (len(found.log_weights), 1))
    found = found._replace(
        noise=np.concatenate([found.noise + _SAME, ends], axis=1),
        own=np.concatenate([found.own, np.zeros_like(ends)], axis=1),
    )
    belief = fit(points, values, found)
    means, variances = (array[:, : len(order)] for array in belief.components())
    mean = belief.weights @ means
    variance = belief.weights @ (variances + means**2) - mean**2
    if rule.noise.guess == 0:
        exact, none = near.losses, np.zeros(len(order))
        return _Believed(order, exact, none, 1.0 * (exact <= tolerance), mean, variance, belief)
    kept = np.minimum(belief.weights @ normal_cdf(means / np.sqrt(variances)), 1.0)
    # Mean and variance of a log-normal variable, of the average over all components. Values that
    # contradict each other would overflow.
    losses: Array = whole * np.exp(np.minimum(variances / 2 - means, _LARGEST_EXPONENT))
    second = belief.weights @ (losses**2 * np.exp(np.minimum(variances, _LARGEST_EXPONENT)))
    expected = belief.weights @ losses
    error = np.sqrt(np.maximum(second - expected**2, 0.0))
    return _Believed(order, expected - offset, error, kept, mean, variance, belief)


def _kept_alone(seen: _Seen, rule: _Rule | ToleranceSearch) -> Array:
    """Return the probability of each pair to keep the tolerance, from its own values alone."""
    if rule.noise.guess == 0:
        return 1.0 * (seen.means >= 0)
    return normal_cdf(seen.means * np.sqrt(seen.counts) / _spread_at(seen, rule))


def _nearest(seen: _Seen) -> NDArray[np.int64]:
    """Return the indices of the pairs next to the limit, the nearest first."""
    apart = np.abs(seen.means)
    near = np.arange(len(apart))
    if len(apart) > _NEAREST:
        near = np.flatnonzero(apart <= np.partition(apart, _NEAREST - 1)[_NEAREST - 1])
    order = np.lexsort((seen.pairs[near, 1], seen.pairs[near, 0], apart[near]))
    return near[order][:_NEAREST]


def _cheapest_kept(seen: _Seen, believed: _Believed, rule: _Rule | ToleranceSearch) -> int | None:
    """Return the index of the answer in ``seen``."""
    if len(seen.means) > len(believed.chosen):  # further from the limit than the belief looks
        probabilities = _kept_alone(seen, rule)
    else:
        probabilities = np.zeros(len(seen.means))
    probabilities[believed.chosen] = believed.kept
    sure = np.flatnonzero(probabilities >= rule.confidence)
    order = np.lexsort((seen.pairs[sure, 1], seen.pairs[sure, 0], seen.costs[sure]))
    kept = (int(p) for p in sure[order] if max(seen.margins[_pair(seen.pairs[p])]) >= 0)
    return next(kept, None)


def _estimate(
    seen: _Seen, believed: _Believed, place: int, rule: _Rule | ToleranceSearch
) -> Estimate:
    near = np.flatnonzero(believed.chosen == place)
    if len(near):
        mean, error, kept = (
            float(array[near[0]]) for array in (believed.loss, believed.error, believed.kept)
        )
        mean = rule.tolerance - mean
    else:
        mean = float(seen.means[place])
        error = float(_spread_at(seen, rule)[place] / math.sqrt(seen.counts[place]))
        kept = float(_kept_alone(seen, rule)[place])
    return Estimate(
        _pair(seen.pairs[place]), mean, error, float(seen.means[place]),
        int(seen.counts[place]), kept,
    )  # fmt: skip


def _once_more(pair: Pair, gain: float) -> Proposal:
    return Proposal(pair, f"trained again, expected to save {gain:.4f} of the cost")


def _passing(mean: Array, variance: Array, noise: float, confidence: float) -> Array:
    """Return the probability that one more value brings a pair past the confidence.

    After it, the variance is ``left`` and the mean has moved by a normal variable whose standard
    deviation is ``move``. Without noise that is the probability that the margin is not negative.
    """
    left = variance * noise / (variance + noise)
    move = variance / np.sqrt(variance + noise)
    wanted = NormalDist().inv_cdf(confidence) * np.sqrt(left)
    return normal_cdf((mean - wanted) / move)


def _pair(row: Array) -> Pair:
    return float(row[0]), float(row[1])


def _array(pairs: Sequence[Pair]) -> Array:
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def _least(pairs: Array) -> Array:
    """Return the pairs that exceed no other in both ratios, rising."""
    ordered = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    lowest = np.minimum.accumulate(ordered[:, 1])
    is_least = np.ones(len(ordered), dtype=bool)
    is_least[1:] = ordered[1:, 1] < lowest[:-1]
    return ordered[is_least]


def _evenly(items: Sequence[_T], most: int) -> list[_T]:
    """Return at most ``most`` of the items, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
