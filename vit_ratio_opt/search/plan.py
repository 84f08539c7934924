"""What to try next: bisection along a budget's curve. Pure functions of what has been observed.

*Statement.* A budget leaves a curve of pairs, position 0 (least attention pruned) to ``size - 1``
(most). The accuracy along it is close to unimodal: at either end one module is cut to the bone for
the sake of the other. Find the position of the largest accuracy in few trained trials.

*Algorithm.* The first trial is at the fixed ratio's place on the curve, so the search starts from
what it has to beat. From then on the neighbours that were tried on either side of the best
position bracket the maximum (the ends of the curve count as tried until the best is next to
them), and the middle of the wider of the two gaps is tried next; on a tie, the gap whose far end
is better.

*Proven, without noise and for a strictly unimodal accuracy.* The bracket always holds the maximum.
Two trials at the most halve it: a middle that is better becomes the best of a bracket half as
wide, one that is worse closes its half gap. So ``2 log2(size) + 1`` trials find it to one head.

*Heuristic.* With noise a comparison may go wrong and the bracket closes around a neighbour of the
maximum. Trials that remain after that go to the untried positions nearest to the best, which is
where such a mistake leads.

Each call is O(size + trials).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping

__all__ = ["next_position"]


def next_position(
    size: int, observed: Mapping[int, float], *, taken: Collection[int] = (), start: int
) -> int | None:
    """The position to try next, or None when every position is observed or taken.

    Args:
        size: Positions on the curve, at least 1.
        observed: Position to its accuracy, higher is better; the mean where there are several.
        taken: Positions that are not to be proposed: running elsewhere, or failed too often.
        start: Where to begin.
    """
    free = sorted(set(range(size)) - set(observed) - set(taken))
    if not free:
        return None
    if not observed:
        return min(free, key=lambda position: (abs(position - start), position))

    best = max(
        observed, key=lambda position: (observed[position], -abs(position - start), -position)
    )
    left = max((position for position in observed if position < best), default=-1)
    right = min((position for position in observed if position > best), default=size)

    def width_then_promise(gap: tuple[int, int]) -> tuple[int, float]:
        low, high = gap
        far_end = low if high <= best else high
        return high - low, observed.get(far_end, float("-inf"))

    marks = [left, *sorted(p for p in {best, *taken} if left < p < right), right]
    gaps = [(low, high) for low, high in itertools.pairwise(marks) if high - low > 1]
    if gaps:
        low, high = max(gaps, key=width_then_promise)
        return (low + high) // 2
    return min(free, key=lambda position: (abs(position - best), position))
