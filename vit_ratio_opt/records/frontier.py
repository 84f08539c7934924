"""Choose a pair from a frontier, for a budget or a tolerance, and estimate between the pairs."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.candidates import Candidate, Expected
from vit_ratio_opt.space.metric import Metric

__all__ = ["best_within", "cheapest_keeping", "expected_at"]


def best_within(front: Sequence[Candidate], budget: float) -> Candidate:
    """Return the pair of a frontier that loses the least within a budget.

    Args:
        front: The pairs of the frontier, of rising cost.
        budget: Largest share of the dense model's cost.

    Raises:
        InputError: Every pair costs more.
    """
    within = [candidate for candidate in front if candidate.cost_ratio <= budget]
    if not within:
        raise InputError(
            f"No trained pair of the frontier costs at most {budget:g} of the dense model: the "
            f"cheapest costs {front[0].cost_ratio:.4f}. Run more trials, or give a larger budget."
        )
    return within[-1]


def cheapest_keeping(
    front: Sequence[Candidate],
    tolerance: float,
    *,
    dense: float,
    metric: Metric,
    confidence: float,
) -> Candidate | None:
    """Return the cheapest pair of a frontier that keeps a tolerance; None where none does.

    Its probability is that of keeping the tolerance.

    Args:
        front: The pairs of the frontier, of rising cost.
        tolerance: Largest loss, in the unit of the metric.
        dense: Metric of the dense model.
        metric: Metric of the pairs.
        confidence: Probability with which the pair has to keep the tolerance.
    """
    for candidate in front:
        loss = metric.loss(dense, candidate.accuracy)
        kept = float(loss <= tolerance)
        if candidate.error > 0:
            kept = NormalDist(loss, candidate.error).cdf(tolerance)
        if kept >= confidence:
            return replace(candidate, probability=kept)
    return None


def expected_at(points: Sequence[Expected], cost_ratio: float) -> Expected | None:
    """Return what is expected at a cost, linear between some points; None below all of them.

    Above the most expensive point it is what that one has.

    Args:
        points: What is expected at some costs, rising.
        cost_ratio: Share of the dense model's cost.
    """
    after = bisect.bisect_right([point.cost_ratio for point in points], cost_ratio)
    if after == 0:
        return None
    before = points[after - 1]
    if after == len(points):
        return before._replace(cost_ratio=cost_ratio)
    behind = points[after]
    share = (cost_ratio - before.cost_ratio) / (behind.cost_ratio - before.cost_ratio)
    return Expected(
        cost_ratio,
        (1 - share) * before.accuracy + share * behind.accuracy,
        (1 - share) * before.error + share * behind.error,
    )
