"""The most accurate pair on the curve that a budget leaves: bracket and halve."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

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

__all__ = ["BudgetSearch"]

_ROUNDING = 1e-9
_NEAREST = 48  # observed pairs that a belief is made from, and gaps that it is asked about
_SLACK = 2.0  # what a ratio more than the budget asks for counts, beside a curve of length 2
# Pairs whose difference is below this share of its standard error count as equally good.
_TIE = 0.25
# Trainings of one pair beyond its confirmations, and what one more has to promise, as a share of
# the noise.
_MORE_TRAININGS, _LEAST_GAIN = 2, 0.02
# For the mean of a maximum of normal variables.
_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(21)
_NODE_WEIGHTS = _NODE_WEIGHTS / _NODE_WEIGHTS.sum()


class _Believed(NamedTuple):
    """What is believed of the observed pairs: arrays ``(n,)``, and ``covariance`` ``(n, n)``.

    ``places`` are the positions of all observed pairs of the curve, and of the baseline.
    """

    pairs: list[Pair]
    own: Array
    counts: Array
    mean: Array
    covariance: Array
    places: dict[Pair, int]
    belief: Belief | None = None

    def difference(self, first: int, second: int) -> tuple[float, float]:
        """Return mean and standard error of the first pair's value less the second one's."""
        c = self.covariance
        variance = c[first, first] + c[second, second] - 2 * c[first, second]
        return float(self.mean[first] - self.mean[second]), math.sqrt(max(0.0, variance))


class BudgetSearch:
    """Maximises along a curve of pairs by bracketing the maximum and halving the bracket.

    *Statement.* A budget leaves a curve, from the least of the first ratio to the most. The
    accuracy along it is close to unimodal: at either end one module is cut to the bone for the
    sake of the other. Find the best position in few trained trials, and say whether it is better
    than the baseline, one ratio for both modules.

    *Algorithm.* The first trial is the ``baseline``; the next one is at ``start``: where a cheap
    look found the best pair, or where the curve crosses the diagonal. The contenders are the best
    pair and all pairs that the noise may have put below it. The neighbours that were tried on
    either side of the contenders bracket the maximum (the ends of the curve count as tried), and
    the middles of the gaps inside are the candidates: without noise the widest gap's, on a tie
    that of the better ends. Pending pairs divide gaps like tried ones, so k idle workers cut the
    bracket into k + 1 parts. With no gap left the best contender is trained again,
    ``confirmations`` times in all.

    *Proven, without noise and for a strictly unimodal accuracy.* The bracket always holds the
    maximum. Two trials at the most halve it: a middle that is better becomes the best of a bracket
    half as wide, one that is worse closes its half gap. So ``2 log2(size) + 1`` trials find it to
    one position (and one more with a baseline); the search then ends, or confirms.

    *Heuristic.* With noise, a :class:`~vit_ratio_opt.search.belief.Belief` along the curve takes
    the place of the means, and of the candidates (the contenders are then among them, to be
    trained again) the one is tried that is expected to raise the answer's mean the most (the
    knowledge gradient, Frazier 2009).

    *The answer* is the pair of the highest posterior mean. Of pairs whose difference from it is
    below a quarter of its standard error, the one that was trained more often is taken, then that
    of the higher own mean. Where that pair is not better than the baseline with a probability
    above one half, the baseline is the answer.

    A proposal costs O(size + observed^3), some milliseconds; of more than 48 observed pairs those
    next to the best count.

    Args:
        curve: Pairs, the first ratio rising and the second not.
        baseline: The pair to begin with and to beat, on the curve or within the budget; none by
            default.
        start: The pair of the curve to go on with; where it crosses the diagonal by default.
        noise: Standard deviation of one value, or what is known of it.
        confirmations: Fresh trainings of the winner before the search ends.
        dense: The value of the unpruned model, from which losses are counted; the best value by
            default.

    Raises:
        InputError: The curve is empty or out of order, ``start`` is not on it, ``baseline`` is
            over the budget, or a number is negative.
    """

    constraint = None

    def __init__(
        self,
        curve: Sequence[Pair],
        *,
        baseline: Pair | None = None,
        start: Pair | None = None,
        noise: float | Noise = 0.0,
        confirmations: int = 0,
        dense: float | None = None,
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
        self.curve = tuple((float(first), float(second)) for first, second in curve)
        self.noise = as_noise(noise, confirmations)
        self.confirmations = confirmations
        self.dense = dense
        self._positions = {pair: position for position, pair in enumerate(self.curve)}
        self._firsts, self._seconds = np.array(self.curve).T
        crossing = (i for i, (first, second) in enumerate(self.curve) if first >= second)
        self._start = next(crossing, len(self.curve) - 1)
        if start is not None:
            if start not in self._positions:
                raise InputError(f"`start` must be a pair of the curve, but got {start!r}.")
            self._start = self._positions[start]
        self.baseline = None if baseline is None else (float(baseline[0]), float(baseline[1]))
        if self.baseline is not None and self._place(self.baseline) is None:
            raise InputError(f"`baseline` must be within the budget, but got {baseline!r}.")

    @property
    def limits(self) -> tuple[Pair, Pair]:
        """The curve's ends (and the baseline), as the smallest and the largest of either ratio."""
        pairs = self.curve if self.baseline is None else (*self.curve, self.baseline)
        firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
        return (min(firsts), min(seconds)), (max(firsts), max(seconds))

    def propose(
        self,
        observed: Observed,
        pending: Collection[Pair] = (),
        blocked: Collection[Pair] = (),
        *,
        confirm: bool = False,
    ) -> Proposal:
        """Return the middle of a gap in the bracket, or a contender to be trained again."""
        size = len(self.curve)
        off = {*pending, *blocked}
        if (
            self.baseline is not None
            and self.baseline not in off
            and not observed.get(self.baseline)
        ):
            return Proposal(self.baseline, "the fixed ratio, which the search has to beat")
        believed = self._believe(observed)
        places = {} if believed is None else believed.places
        start = self.curve[self._start]
        begun = any(pair in self._positions and pair != self.baseline for pair in places)
        if not begun and start not in off and start not in places:
            return Proposal(start, "where the search begins")
        answer = None if believed is None else self._answer(believed)
        if believed is not None and answer is not None and confirm:
            pair = believed.pairs[answer]
            if believed.counts[answer] < 2 and pair not in off:
                return Proposal(pair, "confirms the answer, which was trained once")

        low, high = self._bracket(believed)
        taken = [self._positions[pair] for pair in off if pair in self._positions]
        tried = [self._positions[pair] for pair in places if pair in self._positions]
        marks = sorted({low, high, *(p for p in (*tried, *taken) if low < p < high)})
        gaps = [(a, b) for a, b in itertools.pairwise(marks) if b - a > 1]
        if self.noise.guess > 0 and believed is not None and answer is not None:
            proposal = self._most_informative(believed, gaps, off)
            if proposal is not None:
                return proposal
        elif gaps:
            a, b = self._widest(gaps, believed)
            return Proposal(self.curve[(a + b) // 2], f"halves the gap of {b - a - 1} pairs")

        # Nothing between the contenders: the seeds have to tell them apart.
        if believed is None or answer is None or believed.pairs[answer] in off:
            return Proposal(None, "every pair that could be the best is being trained")
        if size == 1:
            return Proposal(None, "one pair meets the budget, and it was trained")
        best, count = believed.pairs[answer], int(believed.counts[answer])
        if count <= self.confirmations:
            return Proposal(best, "confirms the best pair with a fresh seed")
        confirmed = f", trained {count} times" if count > 1 else ""
        return Proposal(
            None, f"the best of the {size} pairs lies between its neighbours{confirmed}"
        )

    def answer(
        self, observed: Observed, *, complete: Container[Pair] | None = None
    ) -> Estimate | None:
        """Return the pair of the highest posterior mean, or the baseline; see the class."""
        believed = self._believe(observed)
        chosen = None if believed is None else self._answer(believed, complete)
        if believed is None or chosen is None:
            return None
        return self._estimate(believed, chosen)

    def estimates(self, observed: Observed) -> dict[Pair, Estimate]:
        """Return what is believed of every observed pair within the budget."""
        believed = self._believe(observed)
        if believed is None:
            return {}
        return {p: self._estimate(believed, index) for index, p in enumerate(believed.pairs)}

    def bracket(self, observed: Observed) -> tuple[Pair, Pair]:
        """Return the pairs between which the best one is looked for, these included."""
        believed = self._believe(observed)
        low, high = self._bracket(believed)
        return self.curve[max(low, 0)], self.curve[min(high, len(self.curve) - 1)]

    def fix_ratio(self, axis: int, value: float) -> BudgetSearch:
        """Return the search of one pair: the least of the other ratio that meets the budget."""
        if axis == 0:
            meeting = [second for first, second in self.curve if first <= value]
            pair = (value, meeting[-1] if meeting else self.curve[0][1])
        else:
            meeting = [first for first, second in self.curve if second <= value]
            pair = (meeting[0] if meeting else self.curve[-1][0], value)
        return BudgetSearch(
            [pair], noise=self.noise, confirmations=self.confirmations, dense=self.dense
        )

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` makes the search of again, as JSON values."""
        return {
            "curve": [list(pair) for pair in self.curve],
            "baseline": None if self.baseline is None else list(self.baseline),
            "start": list(self.curve[self._start]),
            "noise": self.noise.guess,
            "noise_is_known": self.noise.is_known,
            "confirmations": self.confirmations,
            "dense": self.dense,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> BudgetSearch:
        """Return the search of :meth:`to_json`; of version 0.1.0 there are curve and noise."""
        baseline, start = stored.get("baseline"), stored.get("start")
        return cls(
            [(first, second) for first, second in stored["curve"]],
            baseline=None if baseline is None else (baseline[0], baseline[1]),
            start=None if start is None else (start[0], start[1]),
            noise=Noise(stored["noise"], is_known=stored.get("noise_is_known", False)),
            confirmations=stored.get("confirmations", 0),
            dense=stored.get("dense"),
        )

    def _place(self, pair: Pair) -> int | None:
        """Return the position of the curve's pair that prunes no more; None over the budget.

        A first ratio between two of the curve removes what the larger one does. One above the
        curve's needs no more than its last pair.
        """
        first, second = pair
        place = bisect.bisect_left(self.curve, (first - _ROUNDING,), hi=len(self.curve) - 1)
        return None if second < self.curve[place][1] - _ROUNDING else place

    def _believe(self, observed: Observed) -> _Believed | None:
        """Return what the values say of the pairs within the budget; None without any."""
        places = {
            pair: place
            for pair, values in observed.items()
            if values and (place := self._place(pair)) is not None
        }
        if not places:
            return None
        # From the start outwards, so that the first of equals is the nearest to it.
        pairs = sorted(places, key=lambda p: (abs(places[p] - self._start), places[p], p))
        tried = {p: place for p, place in places.items() if p in self._positions}
        if self.baseline in places:
            tried[self.baseline] = places[self.baseline]
        if len(pairs) > _NEAREST:
            best = max(pairs, key=lambda p: math.fsum(observed[p]) / len(observed[p]))
            near = sorted(pairs, key=lambda p: (p != self.baseline, abs(places[p] - places[best])))
            # The best itself is kept even among many pairs of one place.
            kept = {best, *near[: _NEAREST - 1]}
            pairs = [pair for pair in pairs if pair in kept]
        counts = np.array([len(observed[pair]) for pair in pairs], dtype=np.float64)
        own = np.array([math.fsum(observed[pair]) / len(observed[pair]) for pair in pairs])
        if self.noise.guess == 0:
            return _Believed(pairs, own, counts, own, np.zeros((len(pairs),) * 2), tried)
        squares = np.array(
            [
                math.fsum(((np.array(observed[pair]) - mean) ** 2).tolist())
                for pair, mean in zip(pairs, own, strict=True)
            ]
        )
        losses = (own.max() if self.dense is None else self.dense) - own
        repeats = Repeats(losses, squares, counts)
        least_loss = max(0.0, float(np.median(losses)))
        levels = self.noise.levels(repeats, least_loss=least_loss, grows=False)
        centre, scale = float(own.mean()), max(float(own.std()), self.noise.guess)
        slopes = np.full(len(pairs) + 1, 1 / scale)
        belief = fit(
            self._points(pairs), (own - centre) / scale,
            alternatives(levels, repeats, least_loss, slopes),
        )  # fmt: skip
        mean, covariance = belief.joint(np.empty((0, 2)))
        return _Believed(
            pairs, own, counts, centre + scale * mean, scale**2 * covariance, tried, belief
        )

    def _points(self, pairs: Sequence[Pair]) -> Array:
        """Return places on [0, 2] and how much more than needed is pruned, ``(n, 2)``.

        On [0, 2] the belief's lengths are an eighth, a quarter and a half of the curve.
        """
        given = np.array(pairs).reshape(-1, 2)
        needed = [self._seconds[self._place(pair) or 0] for pair in pairs]
        slack = np.maximum(0.0, given[:, 1] - np.array(needed).reshape(-1))
        places = np.interp(given[:, 0], self._firsts, np.linspace(0, 2, len(self.curve)))
        return np.stack([places, _SLACK * slack], axis=1)

    def _answer(self, believed: _Believed, complete: Container[Pair] | None = None) -> int | None:
        """Return the index of the answer among the believed pairs."""
        allowed = [i for i, p in enumerate(believed.pairs) if complete is None or p in complete]
        if not allowed:
            return None
        best = max(allowed, key=lambda i: (believed.mean[i], -i))
        equals = [best]
        for index in allowed:
            difference, error = believed.difference(best, index)
            if index != best and difference < _TIE * error:
                equals.append(index)
        # The first of what is left equal is the nearest to the start.
        chosen = max(equals, key=lambda i: (believed.counts[i], believed.own[i], -i))
        fixed = next((i for i in allowed if believed.pairs[i] == self.baseline), None)
        if fixed is not None and believed.mean[chosen] <= believed.mean[fixed]:
            return fixed
        return chosen

    def _estimate(self, believed: _Believed, index: int) -> Estimate:
        probability = 0.5
        if self.baseline in believed.pairs and believed.pairs[index] != self.baseline:
            fixed = believed.pairs.index(self.baseline)
            difference, error = believed.difference(index, fixed)
            if error > 0:
                probability = float(normal_cdf(np.array(difference / error)))
            elif difference:
                probability = float(difference > 0)
        return Estimate(
            believed.pairs[index],
            float(believed.mean[index]),
            math.sqrt(max(0.0, believed.covariance[index, index])),
            float(believed.own[index]),
            int(believed.counts[index]),
            probability,
        )

    def _bracket(self, believed: _Believed | None) -> tuple[int, int]:
        """Return the tried positions, or the curve's ends, on either side of the contenders."""
        size = len(self.curve)
        found = [] if believed is None else self._contenders(believed)
        if believed is None or not found:
            return -1, size
        tried = {pair: float(place) for pair, place in believed.places.items()}
        if self.baseline in tried and self.baseline not in self._positions:
            # It prunes more than the curve's next pair, by less than the noise at most.
            if self.noise.guess == 0:
                del tried[self.baseline]
            else:
                between = np.interp(self.baseline[0], self._firsts, np.arange(size))
                tried[self.baseline] = float(between)
        best = [tried.get(believed.pairs[i], believed.places[believed.pairs[i]]) for i in found]
        low = max((math.ceil(place) for place in tried.values() if place < min(best)), default=-1)
        high = min((math.floor(p) for p in tried.values() if p > max(best)), default=size)
        return low, high

    def _contenders(self, believed: _Believed) -> list[int]:
        known = [index for index, pair in enumerate(believed.pairs) if pair in believed.places]
        if not known:
            return []
        best = max(known, key=lambda index: believed.mean[index])
        found = []
        for index in known:
            difference, error = believed.difference(best, index)
            if index == best or difference < error:
                found.append(index)
        return found

    def _widest(
        self, gaps: Sequence[tuple[int, int]], believed: _Believed | None
    ) -> tuple[int, int]:
        means: dict[int, float] = {}
        if believed is not None:
            named = dict(zip(believed.pairs, believed.mean.tolist(), strict=True))
            means = {self._positions[p]: mean for p, mean in named.items() if p in self._positions}

        def width_then_promise(gap: tuple[int, int]) -> tuple[int, float, float, int]:
            ends = sorted((means.get(end, -math.inf) for end in gap), reverse=True)
            return gap[1] - gap[0], ends[0], ends[1], -gap[0]

        return max(gaps, key=width_then_promise)

    def _most_informative(
        self, believed: _Believed, gaps: Sequence[tuple[int, int]], off: Collection[Pair]
    ) -> Proposal | None:
        """Return the candidate that is expected to raise the answer's mean the most.

        With no gap left, only one that promises more than a small part of the noise.
        """
        assert believed.belief is not None
        if len(gaps) > _NEAREST:  # among hundreds of trials on a long curve
            gaps = sorted(sorted(gaps, key=lambda gap: gap[0] - gap[1])[:_NEAREST])
        middles = [self.curve[(a + b) // 2] for a, b in gaps]
        most = self.confirmations + _MORE_TRAININGS
        again = [
            index
            for index in self._contenders(believed)
            if believed.counts[index] < most and believed.pairs[index] not in off
        ]
        seen = len(believed.pairs)
        candidates = [*range(seen, seen + len(middles)), *again]
        if not candidates:
            return None
        mean, covariance = believed.belief.joint(self._points(middles))
        noise, best = believed.belief.next_noise, float(mean[:seen].max())
        gains = []
        for index in candidates:
            moves = covariance[:, index] / math.sqrt(covariance[index, index] + noise)
            rows = [*range(seen), *([index] if index >= seen else [])]
            outcomes = mean[rows, None] + moves[rows, None] * _NODES
            gains.append(float(outcomes.max(axis=0) @ _NODE_WEIGHTS) - best)
        chosen = max(range(len(candidates)), key=lambda i: (gains[i], -i))
        index = candidates[chosen]
        if index >= seen:
            a, b = gaps[index - seen]
            return Proposal(middles[index - seen], f"halves a gap of {b - a - 1} pairs")
        if gaps or gains[chosen] > _LEAST_GAIN * math.sqrt(noise):
            return Proposal(believed.pairs[index], "tells pairs apart that are close, again")
        return None
