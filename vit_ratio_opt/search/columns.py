"""All pairs of a search with a tolerance, in columns, thinned to as many as are looked at."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.plan import Array, Pair

__all__ = ["Columns", "as_array"]

_T = TypeVar("_T")
# Candidates of one proposal; finer ones are looked at only around the most promising.
_COLUMNS, _CANDIDATES = 36, 1440
# How far from the path a pair is near it, as a share of the largest ratio.
_CORRIDOR = 0.15


class Columns:
    """Pairs by their first ratio, and a path through them.

    Args:
        columns: For each first ratio, rising, the second ratios to choose from, rising.
        cost: Function that returns the cost of a pair.
        path: Some of the pairs, where a search begins.

    Raises:
        InputError: A column is missing or out of order, or a pair of the path is in none.
    """

    def __init__(
        self,
        columns: Sequence[tuple[float, Sequence[float]]],
        cost: Callable[[float, float], float],
        path: Sequence[Pair] = (),
    ) -> None:
        if not columns or not all(len(seconds) for _, seconds in columns):
            raise InputError("`columns` must have at least one pair each, but one has none.")
        for values in ([first for first, _ in columns], *(seconds for _, seconds in columns)):
            if any(a >= b for a, b in itertools.pairwise(values)):
                raise InputError(f"The ratios of `columns` must rise, but are {list(values)!r}.")
        self.columns = tuple((float(first), tuple(seconds)) for first, seconds in columns)
        self.cost = cost
        # The largest ratios, for the belief's unit square.
        self.scale = (
            self.columns[-1][0] or 1.0,
            max(seconds[-1] for _, seconds in self.columns) or 1.0,
        )
        seconds_of = dict(self.columns)
        self.path = tuple((float(first), float(second)) for first, second in path)
        for first, second in self.path:
            if second not in seconds_of.get(first, ()):
                raise InputError(f"`path` must be pairs of `columns`, but has {(first, second)}.")
        self.on_path = as_array(self.path), np.array([cost(*pair) for pair in self.path])
        self.thinned = self._candidates(range(len(self.columns)), None)
        self.thinned_near_path = self.near_path(*self.thinned) if self.path else self.thinned
        self._cheaper_than: tuple[float, list[int]] = math.nan, []

    def around(self, pair: Pair) -> tuple[Array, Array]:
        """Return the pairs between a pair and its thinned neighbours, and their costs."""
        firsts = [first for first, _ in self.columns]
        place = firsts.index(pair[0])
        reach = -(-len(firsts) // _COLUMNS) - 1
        return self._candidates(
            range(max(0, place - reach), min(len(firsts), place + reach + 1)), pair
        )

    def near_path(self, pairs: Array, costs: Array) -> tuple[Array, Array]:
        """Return the pairs, and their costs, that are in a corridor around the path."""
        apart = np.abs((pairs[:, None] - self.on_path[0][None]) / self.scale).max(axis=2)
        near = apart.min(axis=1) <= _CORRIDOR
        return pairs[near], costs[near]

    def open_pairs(self, limit: float, failed: Array) -> tuple[Array, Array]:
        """Return what each column has left between a limit of cost and failures.

        Args:
            limit: Cost that a pair has to stay below.
            failed: Smallest pairs that failed, ``(n, 2)``.

        Returns:
            Pairs, ``(m, 2)``, and costs, ``(m,)``.
        """
        rows = max(2, _CANDIDATES // len(self.columns))
        pairs = []
        for (first, seconds), cheaper in zip(self.columns, self._cheaper(limit), strict=True):
            least_failed = failed[failed[:, 0] <= first, 1].min(initial=math.inf)
            hopeless = bisect.bisect_left(seconds, least_failed)
            pairs += [(first, second) for second in _pick_evenly(seconds[cheaper:hopeless], rows)]
        return self._priced(pairs)

    def _candidates(self, columns: Sequence[int], around: Pair | None) -> tuple[Array, Array]:
        """Return pairs ``(n, 2)`` and costs ``(n,)`` of some columns, evenly thinned."""
        kept = _pick_evenly(columns, _COLUMNS if around is None else 9)
        if all(len(self.columns[index][1]) == 1 for index in columns):
            kept = _pick_evenly(columns, _CANDIDATES)
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
            pairs += [(first, second) for second in _pick_evenly(chosen, rows)]
        return self._priced(pairs)

    def _priced(self, pairs: Sequence[Pair]) -> tuple[Array, Array]:
        return as_array(pairs), np.array([self.cost(*pair) for pair in pairs])

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


def as_array(pairs: Sequence[Pair] | Array) -> Array:
    """Return pairs as an array ``(n, 2)``."""
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def _pick_evenly(items: Sequence[_T], most: int) -> list[_T]:
    """Return at most ``most`` of the items, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
