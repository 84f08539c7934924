"""Search the most accurate pair on the curve that a budget leaves: bracket and halve."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any

import numpy as np

from vit_ratio_opt.search.curve import NEAREST, Believed, Curve, believe
from vit_ratio_opt.search.forecast import Forecast, forecast_json
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.search.plan import Estimate, Observed, Pair, Proposal, as_noise

__all__ = ["BudgetSearch"]

# Trainings of one pair beyond its confirmations, and what one more has to promise, as a share of
# the noise.
_MORE_TRAININGS, _LEAST_GAIN = 2, 0.02
# For the mean of a maximum of normal variables.
_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(21)
_NODE_WEIGHTS = _NODE_WEIGHTS / _NODE_WEIGHTS.sum()


class BudgetSearch:
    """Search the maximum on a curve of pairs: bracket it and halve the bracket.

    *Statement.* A budget leaves a curve, from the smallest first ratio to the largest. The
    accuracy along it is close to unimodal: at either end, one module is pruned to its minimum.
    Find the best position in few trained trials, and say whether it is better than the baseline,
    one ratio for both modules.

    *Algorithm.* The first trial is the ``baseline``; the next one is at ``start``: the best pair
    of a screening, or where the curve crosses the diagonal. Candidates are the best pair and all
    pairs that the noise may have put below it. The neighbours that were tried on either side of
    the candidates bracket the maximum (the ends of the curve count as tried). Without noise, the
    middle of the widest gap inside the bracket is tried next; of equally wide gaps, the one with
    the better ends. Pending pairs divide gaps like tried ones, so k idle workers cut the bracket
    into k + 1 parts. With no gap left, the best candidate is trained again, ``confirmations``
    times in all.

    *Proven, without noise and for a strictly unimodal accuracy.* The bracket always holds the
    maximum. Two trials at the most halve it: a middle that is better becomes the best of a bracket
    half as wide, one that is worse closes its half gap. So ``2 log2(size) + 1`` trials find it to
    one position (and one more with a baseline); the search then ends, or confirms.

    *Heuristic.* With noise, a :class:`~vit_ratio_opt.search.belief.Belief` along the curve
    replaces the means. Of the middles of all gaps and of the candidates, which can be trained
    again, the one is tried that is expected to raise the answer's mean the most (the knowledge
    gradient, Frazier 2009).

    *The answer* is the pair of the highest posterior mean. Of pairs whose difference from it is
    below a quarter of its standard error, the one that was trained more often is taken, then that
    of the higher own mean. Where that pair is not better than the baseline with a probability
    above one half, the baseline is the answer.

    A proposal costs O(size + observed^3), some milliseconds; of more than 48 observed pairs those
    next to the best count.

    Args:
        curve: Pairs, the first ratio rising and the second not.
        baseline: Pair that is tried first and has to be beaten, on the curve or within the
            budget; none by default.
        start: Pair of the curve that is tried next; where it crosses the diagonal by default.
        noise: Standard deviation of one value, or a :class:`~vit_ratio_opt.search.noise.Noise`.
        confirmations: Number of times that the best pair is trained again before the search ends.
        dense: Value of the dense model, from which losses are counted; the best value by default.
        larger_is_better: Whether the study is maximised. If not, ``dense`` and the values that
            this search observes are the study's with the opposite sign.

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
        larger_is_better: bool = True,
    ) -> None:
        self._curve = Curve(curve, baseline, start)
        self.noise = as_noise(noise, confirmations)
        self.confirmations = confirmations
        self.dense = dense
        self.larger_is_better = larger_is_better
        self.forecast: Forecast | None = None

    def use_forecast(self, forecast: Forecast | None) -> None:
        """Take what is predicted of each pair for the prior mean, which the belief corrects."""
        self.forecast = forecast

    @property
    def curve(self) -> tuple[Pair, ...]:
        """Return the pairs that use up the budget."""
        return self._curve.pairs

    @property
    def baseline(self) -> Pair | None:
        """Return the pair to begin with and to beat."""
        return self._curve.baseline

    @property
    def limits(self) -> tuple[Pair, Pair]:
        """Return the smallest and the largest of either ratio on the curve and in the baseline."""
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
        """Return the middle of a gap in the bracket, or a candidate to be trained again."""
        off = {*pending, *blocked}
        if (
            self.baseline is not None
            and self.baseline not in off
            and not observed.get(self.baseline)
        ):
            return Proposal(self.baseline, "the fixed ratio, which the search has to beat")
        believed = self._believe(observed)
        places = {} if believed is None else believed.places
        start = self.curve[self._curve.start]
        begun = any(pair in self._curve.positions and pair != self.baseline for pair in places)
        if not begun and start not in off and start not in places:
            return Proposal(start, "where the search begins")
        answer = None if believed is None else believed.answer()
        if believed is not None and answer is not None and confirm:
            pair = believed.pairs[answer]
            if believed.counts[answer] < 2 and pair not in off:
                return Proposal(pair, "confirms the answer, which was trained once")
        gaps = self._gaps(believed, off)
        if self.noise.guess > 0 and believed is not None and answer is not None:
            proposal = self._most_informative(believed, gaps, off)
            if proposal is not None:
                return proposal
        elif gaps:
            a, b = self._widest(gaps, believed)
            return Proposal(self.curve[(a + b) // 2], f"halves the gap of {b - a - 1} pairs")
        return self._confirm(believed, answer, pending, blocked)

    def _confirm(
        self,
        believed: Believed | None,
        answer: int | None,
        pending: Collection[Pair],
        blocked: Collection[Pair],
    ) -> Proposal:
        """Return the answer where it has to be trained again, else why nothing is left."""
        if believed is None or answer is None or believed.pairs[answer] in pending:
            return Proposal(None, "every pair that could be the best is being trained")
        if len(self.curve) == 1:
            return Proposal(None, "one pair meets the budget, and it was trained")
        best, count = believed.pairs[answer], int(believed.counts[answer])
        if count <= self.confirmations and best not in blocked:
            return Proposal(best, "confirms the best pair with a fresh seed")
        confirmed = f", trained {count} times" if count > 1 else ""
        return Proposal(
            None,
            f"the best of the {len(self.curve)} pairs lies between its neighbours{confirmed}",
        )

    def answer(
        self, observed: Observed, *, complete: Container[Pair] | None = None
    ) -> Estimate | None:
        """Return the pair of the highest posterior mean, or the baseline; see the class."""
        believed = self._believe(observed)
        chosen = None if believed is None else believed.answer(complete)
        if believed is None or chosen is None:
            return None
        return believed.estimate(chosen)

    def estimates(self, observed: Observed) -> dict[Pair, Estimate]:
        """Return the estimate of every observed pair within the budget."""
        believed = self._believe(observed)
        if believed is None:
            return {}
        return {p: believed.estimate(index) for index, p in enumerate(believed.pairs)}

    def bracket(self, observed: Observed) -> tuple[Pair, Pair]:
        """Return the pairs between which the best one is looked for, these included."""
        low, high = self._bracket(self._believe(observed))
        return self.curve[max(low, 0)], self.curve[min(high, len(self.curve) - 1)]

    def fix_ratio(self, axis: int, value: float) -> BudgetSearch:
        """Return the search of one pair: the smallest other ratio that meets the budget."""
        if axis == 0:
            meeting = [second for first, second in self.curve if first <= value]
            pair = (value, meeting[-1] if meeting else self.curve[0][1])
        else:
            meeting = [first for first, second in self.curve if second <= value]
            pair = (meeting[0] if meeting else self.curve[-1][0], value)
        search = BudgetSearch(
            [pair],
            noise=self.noise,
            confirmations=self.confirmations,
            dense=self.dense,
            larger_is_better=self.larger_is_better,
        )
        search.use_forecast(self.forecast)
        return search

    def to_json(self) -> dict[str, Any]:
        """Return the search as JSON values, for :meth:`from_json`."""
        return {
            "curve": [list(pair) for pair in self.curve],
            "baseline": None if self.baseline is None else list(self.baseline),
            "start": list(self.curve[self._curve.start]),
            **self.noise.to_json(),
            "confirmations": self.confirmations,
            "dense": self.dense,
            **({} if self.larger_is_better else {"larger_is_better": False}),
            **forecast_json(self.forecast),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> BudgetSearch:
        """Return the search that :meth:`to_json` described; version 0.1.0 had curve and noise."""
        baseline, start = stored.get("baseline"), stored.get("start")
        search = cls(
            [(first, second) for first, second in stored["curve"]],
            baseline=None if baseline is None else (baseline[0], baseline[1]),
            start=None if start is None else (start[0], start[1]),
            noise=Noise.from_json(stored),
            confirmations=stored.get("confirmations", 0),
            dense=stored.get("dense"),
            larger_is_better=stored.get("larger_is_better", True),
        )
        search.use_forecast(Forecast.of_plan(stored))
        return search

    def _believe(self, observed: Observed) -> Believed | None:
        return believe(self._curve, observed, self.noise, self.dense, self.forecast)

    def _bracket(self, believed: Believed | None) -> tuple[int, int]:
        """Return the tried positions, or the curve's ends, on either side of the candidates."""
        size = len(self.curve)
        found = [] if believed is None else believed.candidates()
        if believed is None or not found:
            return -1, size
        tried = {pair: float(place) for pair, place in believed.places.items()}
        if (
            self.baseline is not None
            and self.baseline in tried
            and self.baseline not in self._curve.positions
        ):
            # It prunes more than the curve's next pair, by less than the noise at most.
            if self.noise.guess == 0:
                del tried[self.baseline]
            else:
                tried[self.baseline] = self._curve.between(self.baseline[0])
        best = [tried.get(believed.pairs[i], believed.places[believed.pairs[i]]) for i in found]
        low = max((math.ceil(place) for place in tried.values() if place < min(best)), default=-1)
        high = min((math.floor(p) for p in tried.values() if p > max(best)), default=size)
        return low, high

    def _gaps(self, believed: Believed | None, off: Collection[Pair]) -> list[tuple[int, int]]:
        """Return the gaps of the bracket between pairs that were tried or are being trained."""
        low, high = self._bracket(believed)
        places = {} if believed is None else believed.places
        positions = self._curve.positions
        marks = {low, high}
        for pair in (*places, *off):
            if pair in positions and low < positions[pair] < high:
                marks.add(positions[pair])
        return [(a, b) for a, b in itertools.pairwise(sorted(marks)) if b - a > 1]

    def _widest(
        self, gaps: Sequence[tuple[int, int]], believed: Believed | None
    ) -> tuple[int, int]:
        """Return the widest gap; of equally wide ones that of the better ends."""
        means: dict[int, float] = {}
        if believed is not None:
            named = dict(zip(believed.pairs, believed.mean.tolist(), strict=True))
            positions = self._curve.positions
            means = {positions[p]: mean for p, mean in named.items() if p in positions}

        def width_then_promise(gap: tuple[int, int]) -> tuple[int, float, float, int]:
            ends = sorted((means.get(end, -math.inf) for end in gap), reverse=True)
            return gap[1] - gap[0], ends[0], ends[1], -gap[0]

        return max(gaps, key=width_then_promise)

    def _most_informative(
        self, believed: Believed, gaps: Sequence[tuple[int, int]], off: Collection[Pair]
    ) -> Proposal | None:
        """Return the pair that is expected to raise the answer's mean the most.

        With no gap left, only a pair that promises more than a small part of the noise.
        """
        assert believed.belief is not None
        assert believed.points is not None
        if len(gaps) > NEAREST:  # among hundreds of trials on a long curve
            gaps = sorted(sorted(gaps, key=lambda gap: gap[0] - gap[1])[:NEAREST])
        middles = [self.curve[(a + b) // 2] for a, b in gaps]
        most = self.confirmations + _MORE_TRAININGS
        again = [
            index
            for index in believed.candidates()
            if believed.counts[index] < most and believed.pairs[index] not in off
        ]
        seen = len(believed.pairs)
        candidates = [*range(seen, seen + len(middles)), *again]
        if not candidates:
            return None
        mean, covariance = believed.belief.joint(believed.points(middles))
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
