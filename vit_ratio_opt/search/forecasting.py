"""Make the forecast of a space from what a calibration estimates."""

from __future__ import annotations

import math
from collections.abc import Callable

from vit_ratio_opt.search.forecast import Forecast
from vit_ratio_opt.search.plan import Pair
from vit_ratio_opt.space.metric import Metric
from vit_ratio_opt.space.pairs import PairSpace, RatioPair, pick_evenly

__all__ = ["forecast_of", "worst_loss"]

# Ratios of a module between which its loss is interpolated, and digits of a loss that are kept.
_RATIOS, _DIGITS = 33, 4
_WORST_POINTS = 100  # loss of a model of which nothing is left, where the metric does not tell


def forecast_of(
    space: PairSpace, expected_loss: Callable[[RatioPair], float | None], worst: float
) -> Forecast | None:
    """Return the forecast of a space; None where a loss has no estimate.

    Where blocks have floors, the smallest ratios count twice, which moves all losses alike.

    Args:
        space: Space of the dense model.
        expected_loss: Function that returns the nats that pruning a pair is estimated to add, such
            as :meth:`vit_ratio_opt.Pruner.expected_loss`.
        worst: Loss of a model of which nothing is left.
    """
    least = space.min_pair
    known: list[tuple[Pair, ...]] = []
    for axis, ratios in enumerate((space.mhsa_ratios, space.ffn_ratios)):
        found: list[Pair] = []
        for ratio in pick_evenly(ratios, _RATIOS):
            pair = RatioPair(ratio, least[1]) if axis == 0 else RatioPair(least[0], ratio)
            nats = expected_loss(pair)
            if nats is None or not math.isfinite(nats):
                return None
            found.append((ratio, float(f"{max(nats, 0.0):.{_DIGITS}g}")))
        known.append(tuple(found))
    return Forecast(known[0], known[1], worst)


def worst_loss(dense: float, metric: Metric) -> float:
    """Return the loss of a model of which nothing is left, in the unit of the metric.

    Args:
        dense: Metric of the dense model.
        metric: The metric.
    """
    value = metric.sign * dense
    return value if value > 0 else _WORST_POINTS * metric.point(dense)
