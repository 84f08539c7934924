"""What to try next, from what has been observed. Pure and deterministic; no study, no clock.

Two searches over pairs of ratios ``(first, second)``, each in [0, 1), whose cost is known:

- :class:`BudgetSearch`: the most accurate pair on a budget's curve. Bracket and halve.
- :class:`ToleranceSearch`: the cheapest pair that loses no more than a tolerance. Halve the doubt
  where it saves most.

Both take ``observed`` (pair to its values, one for each time it was trained), ``pending`` (pairs
that are being trained) and ``blocked`` (pairs that keep failing), and answer with a
:class:`Proposal`. Any worker that asks with the same three gets the same answer.

*Noise* is the standard deviation of one value. A comparison that it may have decided is not
trusted: the search keeps both sides, and the winner is trained again with fresh seeds.
"""

from __future__ import annotations

import bisect
import itertools
import math
import operator
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.belief import Belief, fit

__all__ = [
    "BudgetSearch",
    "Observed",
    "Pair",
    "Plan",
    "Proposal",
    "ToleranceSearch",
    "accuracy_noise",
    "follow",
]

Pair = tuple[float, float]
Observed = Mapping[Pair, Sequence[float]]


class Proposal(NamedTuple):
    """A pair and what it is for; without a pair, why nothing is left to learn."""

    pair: Pair | None
    why: str


def accuracy_noise(accuracy: float, images: int) -> float:
    """Standard deviation over seeds to expect of an accuracy, both in per cent.

    Two trainings of one pair disagree on some images only, so their accuracies vary less than
    those of two draws of images would: recorded was about half of that standard error.

    Args:
        accuracy: In per cent.
        images: That it is measured on.
    """
    share = accuracy / 100
    return 50 * math.sqrt(share * (1 - share) / images)


class Plan(Protocol):
    """What :class:`vit_ratio_opt.search.BinarySearchSampler` asks."""

    @property
    def constraint(self) -> str | None:
        """The trials' constraint that holds the value, or None for the objective's value."""

    @property
    def limits(self) -> tuple[Pair, Pair]:
        """Smallest and largest of either ratio that the plan may propose."""

    def propose(
        self,
        observed: Observed,
        pending: Collection[Pair] = (),
        blocked: Collection[Pair] = (),
    ) -> Proposal:
        """The pair to try next."""

    def winner(self, observed: Observed) -> Pair | None:
        """The answer so far, or None when nothing observed will do."""

    def along(self, axis: int, value: float) -> Plan:
        """The same search with the first (0) or second (1) ratio fixed."""


def follow(plan: Plan, value: Callable[[Pair], float]) -> dict[Pair, list[float]]:
    """What ``plan`` observes when it is followed to its end, each pair's values in their order.

    Args:
        plan: Proposes.
        value: Of a pair, each time that it is proposed.
    """
    observed: dict[Pair, list[float]] = {}
    while (pair := plan.propose(observed).pair) is not None:
        observed.setdefault(pair, []).append(value(pair))
    return observed


class BudgetSearch:
    """Maximises along a curve of pairs by bracketing the maximum and halving the bracket.

    *Statement.* A budget leaves a curve, from the least of the first ratio to the most. The
    accuracy along it is close to unimodal: at either end one module is cut to the bone for the
    sake of the other. Find the best position in few trained trials.

    *Algorithm.* The first trial is at ``start``: where a cheap look found the best pair, or where
    the curve crosses the diagonal, which is the fixed ratio that the search has to beat. The
    contenders are the best mean and all means that the noise may have put below it. The
    neighbours that were tried on either side of the contenders bracket the maximum (the ends of
    the curve count as tried), and the middle of the widest gap inside is tried next; on a tie, the
    gap with the better ends. Pending pairs divide gaps like tried ones, so k idle workers cut the
    bracket into k + 1 parts. With no gap left the best contender is trained again,
    ``confirmations`` times in all.

    *Proven, without noise and for a strictly unimodal accuracy.* The bracket always holds the
    maximum. Two trials at the most halve it: a middle that is better becomes the best of a bracket
    half as wide, one that is worse closes its half gap. So ``2 log2(size) + 1`` trials find it to
    one position; the search then ends, or confirms.

    *Heuristic.* With noise, means are first smoothed along the curve, where neighbours differ
    little: a :class:`~vit_ratio_opt.search.belief.Belief` in one dimension takes their place, for
    choosing the winner too. What one standard deviation of a difference leaves open, stays open.

    A proposal costs O(size + observed^3), some milliseconds.

    Args:
        curve: Pairs, the first ratio rising and the second not.
        start: The pair of the curve to begin with; where it crosses the diagonal by default.
        noise: Standard deviation of one value.
        confirmations: Fresh trainings of the winner before the search ends.

    Raises:
        InputError: The curve is empty or out of order, ``start`` is not on it, or a number is
            negative.
    """

    constraint = None

    def __init__(
        self,
        curve: Sequence[Pair],
        *,
        start: Pair | None = None,
        noise: float = 0.0,
        confirmations: int = 0,
    ) -> None:
        if not curve:
            raise InputError("`curve` must have at least one pair, but is empty.")
        if not all(math.isfinite(ratio) for pair in curve for ratio in pair):
            raise InputError(f"The ratios of `curve` must be numbers, but are {list(curve)!r}.")
        for (first, second), (next_first, next_second) in itertools.pairwise(curve):
            if not (first < next_first and second >= next_second):
                raise InputError(
                    "Along `curve` the first ratio must rise and the second must not, but "
                    f"{(first, second)} is followed by {(next_first, next_second)}."
                )
        _check_noise(noise, confirmations)
        self.curve = tuple((float(first), float(second)) for first, second in curve)
        self.noise = noise
        self.confirmations = confirmations
        self._positions = {pair: position for position, pair in enumerate(self.curve)}
        crossing = (i for i, (first, second) in enumerate(self.curve) if first >= second)
        self._start = next(crossing, len(self.curve) - 1)
        if start is not None:
            if start not in self._positions:
                raise InputError(f"`start` must be a pair of the curve, but got {start!r}.")
            self._start = self._positions[start]

    @property
    def limits(self) -> tuple[Pair, Pair]:
        """The curve's ends, as the smallest and the largest of either ratio."""
        (least, most_second), (most, least_second) = self.curve[0], self.curve[-1]
        return (least, least_second), (most, most_second)

    def propose(
        self,
        observed: Observed,
        pending: Collection[Pair] = (),
        blocked: Collection[Pair] = (),
    ) -> Proposal:
        """The middle of the widest gap in the bracket; pairs off the curve are ignored."""
        size, start = len(self.curve), self._start
        means, counts = self._estimates(observed)
        taken = {self._positions[pair] for pair in (*pending, *blocked) if pair in self._positions}
        if not means and start not in taken:
            return Proposal(self.curve[start], "where the search begins")

        low, high = self._bracket(means, counts)
        marks = sorted({low, high, *(p for p in (*means, *taken) if low < p < high)})
        gaps = [(a, b) for a, b in itertools.pairwise(marks) if b - a > 1]
        if gaps:

            def width_then_promise(gap: tuple[int, int]) -> tuple[int, float, float, int]:
                ends = sorted((means.get(end, -math.inf) for end in gap), reverse=True)
                return gap[1] - gap[0], ends[0], ends[1], -gap[0]

            a, b = max(gaps, key=width_then_promise)
            return Proposal(self.curve[(a + b) // 2], f"halves the gap of {b - a - 1} pairs")

        # Nothing between the contenders: the seeds have to tell them apart.
        best = max(means, key=means.__getitem__, default=None)
        if best is None or best in taken:
            return Proposal(None, "every pair that could be the best is being trained")
        if size == 1:
            return Proposal(None, "one pair meets the budget, and it was trained")
        if counts[best] <= self.confirmations:
            return Proposal(self.curve[best], "confirms the best pair with a fresh seed")
        confirmed = f", trained {counts[best]} times" if counts[best] > 1 else ""
        return Proposal(
            None, f"the best of the {size} pairs lies between its neighbours{confirmed}"
        )

    def winner(self, observed: Observed) -> Pair | None:
        """The pair of the highest (smoothed) mean; of equals the one nearest to the start."""
        means, _ = self._estimates(observed)
        best = max(means, key=lambda p: (means[p], -abs(p - self._start), -p), default=None)
        return None if best is None else self.curve[best]

    def bracket(self, observed: Observed) -> tuple[Pair, Pair]:
        """The pairs of the curve between which the best one is looked for, these included."""
        low, high = self._bracket(*self._estimates(observed))
        return self.curve[max(low, 0)], self.curve[min(high, len(self.curve) - 1)]

    def along(self, axis: int, value: float) -> BudgetSearch:
        """The one pair worth trying: the least of the other ratio that meets the budget."""
        if axis == 0:
            meeting = [second for first, second in self.curve if first <= value]
            pair = (value, meeting[-1] if meeting else self.curve[0][1])
        else:
            meeting = [first for first, second in self.curve if second <= value]
            pair = (meeting[0] if meeting else self.curve[-1][0], value)
        return BudgetSearch([pair], noise=self.noise, confirmations=self.confirmations)

    def _estimates(self, observed: Observed) -> tuple[dict[int, float], dict[int, int]]:
        """Accuracy by position, the start's first, and from how many values."""
        found = {
            self._positions[pair]: values
            for pair, values in observed.items()
            if pair in self._positions and values
        }
        # From the start outwards, so that max() gives the nearest to it among equals.
        order = sorted(found, key=lambda p: (abs(p - self._start), p))
        means = {p: _mean(found[p]) for p in order}
        counts = {p: len(found[p]) for p in order}
        if self.noise > 0 and len(means) >= _SMOOTHED:
            # On [0, 2] the belief's lengths are an eighth, a quarter and a half of the curve.
            places = np.array([[2 * p / max(1, len(self.curve) - 1), 0.0] for p in order])
            values = np.array([means[p] for p in order])
            centre, scale = values.mean(), max(float(values.std()), self.noise)
            variances = (self.noise / scale) ** 2 / np.array([counts[p] for p in order])
            belief = fit(places, (values - centre) / scale, variances)
            smooth, _ = belief.predict(places)
            means = dict(zip(order, (centre + scale * smooth).tolist(), strict=True))
        return means, counts

    def _bracket(self, means: dict[int, float], counts: dict[int, int]) -> tuple[int, int]:
        """The tried positions on either side of the contenders, or what lies beyond the curve."""
        contenders, size = self._contenders(means, counts), len(self.curve)
        low = max((p for p in means if p < min(contenders, default=-1)), default=-1)
        high = min((p for p in means if p > max(contenders, default=size)), default=size)
        return low, high

    def _contenders(self, means: dict[int, float], counts: dict[int, int]) -> list[int]:
        if not means:
            return []
        best = max(means, key=means.__getitem__)
        return [
            p
            for p, mean in means.items()
            if p == best
            or (
                self.noise > 0
                and mean >= means[best] - self.noise * math.sqrt(1 / counts[p] + 1 / counts[best])
            )
        ]


_T = TypeVar("_T")
_Cost = Callable[[float, float], float]
_SMOOTHED = 3  # observed pairs; two say nothing about how smooth the curve is
_Array = NDArray[np.float64]
# Candidates looked at at once; finer ones only around the most promising.
_COLUMNS, _CANDIDATES = 36, 1440
_OUTCOMES = 64
_NEAREST = 48  # observations that a belief is made from
_EVERYTHING_PRUNED, _EVERYTHING_VARIANCE = -3.0, 1.0


# What a trial on the path, or near it, has to promise, and how far away near is: shares of all.
_PATH_RESOLUTION, _CORRIDOR = 0.005, 0.15


class _Ranked(NamedTuple):
    """The margins of the observed pairs, and those pairs in order.

    ``near`` rises by the mean's distance from the limit, ``kept`` (mean not negative) by cost;
    ``failed`` are the least of those that failed.
    """

    margins: dict[Pair, tuple[float, ...]]
    near: list[tuple[float, Pair]]
    kept: list[tuple[float, Pair]]
    failed: list[Pair]

    @property
    def winner(self) -> Pair | None:
        """The cheapest pair that was kept."""
        return self.kept[0][1] if self.kept else None


_NOTHING = _Ranked({}, [], [], [])


class ToleranceSearch:
    """Minimises a known cost over the pairs whose margin is not negative.

    The *margin* of a pair is its accuracy minus the least accuracy allowed; that of the unpruned
    pair (0, 0) is the tolerance.

    *Statement.* Margin and cost both fall as either ratio rises. Find the cheapest pair with a
    margin of at least 0 in few trained trials.

    *Algorithm.* A :class:`~vit_ratio_opt.search.belief.Belief` over the logarithm of the accuracy
    lost, which is nearly straight where the accuracy itself bends, gives each pair its probability
    to be within the tolerance. Tried next is the pair with the largest expected saving: what it
    costs less than the answer so far, times that probability (Gardner 2014, with the cost known).
    That is a bisection that knows how steep the ground is: it goes to where the doubt is about
    even, on the split between the two ratios that can still win, and halves the doubt there.
    A pending pair counts as both of its outcomes, weighted by the belief, so k idle workers get k
    different pairs. A winner that the belief gives less than an even chance was lucky rather than
    good, and is trained again with a fresh seed before anything else, up to ``confirmations``
    times; so is the last one.

    Where something foretells which split is the best at each cost, these pairs are the ``path``.
    The search first goes along it alone, like that of one ratio, then along a corridor around it,
    each time until no trial there can be expected to save half a hundredth of the cost. Only then
    does it ask whether the path was right.

    *Proven, without noise and for a monotone margin.* No pair that could be the answer is ever
    left out: a pair needs no trial if it costs at least as much as the answer so far, or prunes
    both modules at least as much as one that failed. Each trial settles at least its own pair, so
    the search ends; with ``resolution=0``, at the cheapest pair there is.

    *Heuristic.* How fast that goes; and with noise, a failure by more than two standard deviations
    counts as one.

    A proposal costs O(candidates * observations^2), both bounded: a few milliseconds.

    Args:
        columns: For each first ratio, rising, the second ratios to choose from, rising.
        cost: Cost of a pair, falling in both ratios; (0, 0) costs the most.
        tolerance: Largest loss of accuracy allowed, above 0; in the unit of the values.
        noise: Standard deviation of one value.
        confirmations: Fresh trainings of the winner before the search ends.
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
        noise: float = 0.0,
        confirmations: int = 0,
        resolution: float = 5e-4,
        constraint: str = "accuracy_drop",
        path: Sequence[Pair] = (),
    ) -> None:
        if not 0 < tolerance < math.inf:
            raise InputError(f"`tolerance` must be above 0, but got {tolerance!r}.")
        if not columns or not all(len(seconds) for _, seconds in columns):
            raise InputError("`columns` must have at least one pair each, but one has none.")
        for values in ([first for first, _ in columns], *(seconds for _, seconds in columns)):
            if any(a >= b for a, b in itertools.pairwise(values)):
                raise InputError(f"The ratios of `columns` must rise, but are {list(values)!r}.")
        _check_noise(noise, confirmations)
        self.columns = tuple((float(first), tuple(seconds)) for first, seconds in columns)
        self.cost = cost
        self.tolerance = tolerance
        self.noise = noise
        self.confirmations = confirmations
        self.resolution = resolution
        self.constraint: str | None = constraint
        seconds_of = dict(self.columns)
        self.path = tuple((float(first), float(second)) for first, second in path)
        for first, second in self.path:
            if second not in seconds_of.get(first, ()):
                raise InputError(f"`path` must be pairs of `columns`, but has {(first, second)}.")
        self._path = _array(self.path), np.array([cost(*pair) for pair in self.path])
        self._ranked = _NOTHING
        # Ratios as shares of the largest, for the belief's unit square.
        self._scale = np.array(
            [self.columns[-1][0] or 1.0, max(seconds[-1] for _, seconds in self.columns) or 1.0]
        )
        self._thin = self._candidates(range(len(self.columns)), None)
        self._thin_near_path = self._near_path(*self._thin) if self.path else self._thin
        draws = np.random.default_rng(0).standard_normal((_OUTCOMES // 2, 64))
        self._draws = np.concatenate([draws, -draws])

    def __getstate__(self) -> dict[str, Any]:
        """Without what was observed: a copy ranks its own."""
        return vars(self) | {"_ranked": _NOTHING}

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
    ) -> Proposal:
        """The pair of the largest expected saving."""
        ranked = self._rank(observed)
        belief = self._belief(ranked)
        winner = ranked.winner
        if winner is not None and winner not in pending and self._may_confirm(winner, observed):
            mean, _ = belief.predict(self._square([winner]))
            if mean[0] < 0:
                return Proposal(winner, "a lucky winner: trained again with a fresh seed")

        limit = self.cost(0.0, 0.0) if winner is None else self.cost(*winner)
        excluded = observed, pending, blocked
        failed = _array(ranked.failed)

        def promising(pairs: _Array, costs: _Array) -> tuple[Pair | None, float]:
            return self._most_saving(belief, pairs, costs, limit, pending, excluded, failed)

        if self.path:
            best, saving = promising(*self._path)
            if saving <= _PATH_RESOLUTION:
                best, saving = promising(*self._thin_near_path)
                if best is not None:
                    finer = promising(*self._near_path(*self._around(best)))
                    best, saving = finer if finer[1] > saving else (best, saving)
            if best is not None and saving > _PATH_RESOLUTION:
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
        if best is not None and saving > self.resolution:
            return Proposal(best, f"expected to save {saving:.4f} of the cost")
        if winner is None:
            why = "no pair can be expected to keep the accuracy within the tolerance"
            return Proposal(None, why)
        if winner in pending:
            return Proposal(None, "the winner is being trained again")
        if self._may_confirm(winner, observed):
            return Proposal(winner, "confirms the winner with a fresh seed")
        return Proposal(
            None, f"no other pair is expected to save more than {self.resolution:g} of the cost"
        )

    def winner(self, observed: Observed) -> Pair | None:
        """The cheapest pair whose mean margin is not negative."""
        return self._rank(observed).winner

    def along(self, axis: int, value: float) -> ToleranceSearch:
        """The same search in one column or one row."""
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
            resolution=self.resolution,
            constraint=str(self.constraint),
        )

    def _may_confirm(self, winner: Pair, observed: Observed) -> bool:
        return len(observed[winner]) <= self.confirmations

    def _rank(self, observed: Observed) -> _Ranked:
        """What a proposal needs of all pairs; from the last time, and what is new since."""
        last = self._ranked
        # Ranked are tuples, so the same object is the same margins. The only look at every pair.
        known = map(last.margins.get, observed)
        changed = itertools.compress(observed, map(operator.is_not, observed.values(), known))
        fresh = {pair: tuple(observed[pair]) for pair in changed}
        margins = last.margins | fresh
        if len(margins) > len(observed):  # of another study
            last, margins = _NOTHING, {pair: tuple(observed[pair]) for pair in observed}
            fresh = margins
        if not fresh:
            return last
        # The last ones stay as they are: another thread may be reading them.
        near, kept, failed = list(last.near), list(last.kept), list(last.failed)
        for pair in fresh:
            for move, values in (_remove, last.margins.get(pair)), (bisect.insort, margins[pair]):
                if not values:
                    continue
                mean = _mean(values)
                move(near, (abs(mean), pair))
                if mean >= 0:
                    move(kept, (self.cost(*pair), pair))
                elif self._failed(values):
                    failed.append(pair)
        # One of the least that did not fail after all had hidden others.
        if any(not self._failed(margins[pair]) for pair in failed):
            failed = [pair for pair in margins if self._failed(margins[pair])]
        self._ranked = _Ranked(margins, near, kept, _least(failed))
        return self._ranked

    def _failed(self, margins: Sequence[float]) -> bool:
        doubt = 2 * self.noise / math.sqrt(len(margins) or 1)
        return bool(margins) and _mean(margins) < -doubt

    def _belief(self, ranked: _Ranked) -> Belief:
        """Over ``log((tolerance + c) / (loss + c))`` with c the tolerance: 0 at the limit."""
        # Those near the limit say where it is; thousands would only cost time.
        chosen = [pair for _, pair in ranked.near[:_NEAREST]]
        margins = [ranked.margins[pair] for pair in chosen]
        loss = self.tolerance - np.array([_mean(values) for values in margins])
        loss = np.maximum(loss, -self.tolerance / 2) + self.tolerance
        counts = np.array([len(values) for values in margins], dtype=np.float64)
        values = np.log(2 * self.tolerance / loss)
        variances = (self.noise / loss) ** 2 / np.maximum(counts, 1) + 1e-4
        # The unpruned model loses nothing, and one with everything pruned nearly everything.
        points = np.concatenate([self._square(chosen), [[0.0, 0.0], [1.0, 1.0]]])
        values = np.concatenate([values, [math.log(2), _EVERYTHING_PRUNED]])
        variances = np.concatenate([variances, [0.01, _EVERYTHING_VARIANCE]])
        return fit(points, values, variances)

    def _most_saving(
        self,
        belief: Belief,
        pairs: _Array,
        costs: _Array,
        limit: float,
        pending: Collection[Pair],
        excluded: Sequence[Container[Pair]],
        failed: _Array,
    ) -> tuple[Pair | None, float]:
        open_ = costs < limit
        if len(failed):
            as_pruned = np.all(pairs[:, None, :] >= failed[None, :, :], axis=2)
            open_ &= ~np.any(as_pruned, axis=1)
        pairs, costs = pairs[open_], costs[open_]
        if not len(pairs):
            return None, 0.0
        points = pairs / self._scale
        if pending:
            unknown = sorted(pending)[: self._draws.shape[1]]
            margins, means, variance = belief.outcomes(
                points, self._square(unknown), self._draws[:, : len(unknown)]
            )
            known = np.array([self.cost(*pair) for pair in unknown])
            limits = np.where(margins >= 0, known, limit).min(axis=1)
            limits = np.minimum(limits, limit)[:, None]
        else:
            mean, variance = belief.predict(points)
            means, limits = mean[None, :], np.array([[limit]])
        chances = _normal_cdf(means / np.sqrt(variance))
        savings = (np.maximum(limits - costs, 0.0) * chances).mean(axis=0)
        for index in np.argsort(-savings, kind="stable"):
            pair = (float(pairs[index, 0]), float(pairs[index, 1]))
            if not any(pair in some for some in excluded):
                return pair, float(savings[index])
        return None, 0.0

    def _square(self, pairs: Sequence[Pair]) -> _Array:
        scaled: _Array = _array(pairs) / self._scale
        return scaled

    def _candidates(self, columns: Sequence[int], around: Pair | None) -> tuple[_Array, _Array]:
        """Pairs ``(n, 2)`` and costs ``(n,)`` of some columns, evenly thinned."""
        kept = _spread(columns, _COLUMNS if around is None else 9)
        if all(len(self.columns[index][1]) == 1 for index in columns):
            kept = _spread(columns, _CANDIDATES)
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
            pairs += [(first, second) for second in _spread(chosen, rows)]
        return _array(pairs), np.array([self.cost(*pair) for pair in pairs])

    def _near_path(self, pairs: _Array, costs: _Array) -> tuple[_Array, _Array]:
        """Those of the pairs that are in the corridor."""
        apart = np.abs((pairs[:, None] - self._path[0][None]) / self._scale).max(axis=2)
        near = apart.min(axis=1) <= _CORRIDOR
        return pairs[near], costs[near]

    def _around(self, pair: Pair) -> tuple[_Array, _Array]:
        firsts = [first for first, _ in self.columns]
        place = firsts.index(pair[0])
        reach = -(-len(firsts) // _COLUMNS) - 1
        return self._candidates(
            range(max(0, place - reach), min(len(firsts), place + reach + 1)), pair
        )

    def _open(self, limit: float, failed: _Array) -> tuple[_Array, _Array]:
        """Pairs ``(n, 2)`` and costs ``(n,)`` from what each column has left between the two."""
        rows = max(2, _CANDIDATES // len(self.columns))
        pairs = []
        for first, seconds in self.columns:
            cheaper = bisect.bisect_left(
                seconds, True, key=lambda second: self.cost(first, second) < limit
            )
            least_failed = failed[failed[:, 0] <= first, 1].min(initial=math.inf)
            hopeless = bisect.bisect_left(seconds, least_failed)
            pairs += [(first, second) for second in _spread(seconds[cheaper:hopeless], rows)]
        return _array(pairs), np.array([self.cost(*pair) for pair in pairs])


def _array(pairs: Sequence[Pair]) -> _Array:
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def _remove(ordered: list[tuple[float, Pair]], item: tuple[float, Pair]) -> None:
    del ordered[bisect.bisect_left(ordered, item)]


def _least(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that exceed no other in both ratios, rising."""
    least: list[Pair] = []
    for pair in sorted(pairs):
        if not least or pair[1] < least[-1][1]:
            least.append(pair)
    return least


def _spread(items: Sequence[_T], most: int) -> list[_T]:
    """At most ``most`` of the items, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _mean(values: Sequence[float]) -> float:
    return values[0] if len(values) == 1 else math.fsum(values) / len(values)


def _normal_cdf(x: _Array) -> _Array:
    """Within 1e-5 (Abramowitz and Stegun 1964, 26.2.16, on the absolute value)."""
    t = 1 / (1 + 0.33267 * np.abs(x))
    tail = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    tail = tail * t * (0.4361836 + t * (-0.1201676 + t * 0.9372980))
    result: _Array = np.where(x >= 0, 1 - tail, tail)
    return result


def _check_noise(noise: float, confirmations: int) -> None:
    if not 0 <= noise < math.inf:
        raise InputError(f"`noise` must be at least 0, but got {noise!r}.")
    if confirmations < 0:
        raise InputError(f"`confirmations` must be at least 0, but got {confirmations!r}.")
