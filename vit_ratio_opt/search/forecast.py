"""What a calibration predicts of the loss of every pair, before any model is pruned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.plan import Array, Pair
from vit_ratio_opt.space.metric import Metric
from vit_ratio_opt.space.pairs import PairSpace, RatioPair, pick_evenly

__all__ = ["Forecast", "forecast_json", "forecast_of", "worst_loss"]

# Ratios of a module between which its loss is interpolated, and digits of a loss that are kept.
_RATIOS, _DIGITS = 33, 4
# Share of all that can be lost that is lost per nat, after a training. It differs between models by
# a factor of about two to either side; a belief corrects it.
_SHARE_PER_NAT = 0.6
_LARGEST = 1e100  # number that is taken from a study
_WORST_POINTS = 100  # loss of a model of which nothing is left, where the metric does not tell


@dataclass(frozen=True)
class Forecast:
    """Predicted losses of all pairs, in the unit of the metric.

    A calibration estimates for either module how many nats the predictions diverge when it is
    pruned alone. Their sum tells which pairs lose more than others nearly as well as an evaluation
    of the pruned model does (``benchmarks/screen.py``), and needs none.

    Args:
        mhsa: Nats by MHSA ratio; interpolated between the ratios, which rise.
        ffn: Nats by FFN ratio.
        worst: Loss of a model of which nothing is left, above 0.

    Raises:
        InputError: The ratios do not rise, or a number is out of its range.
    """

    mhsa: tuple[Pair, ...]
    ffn: tuple[Pair, ...]
    worst: float

    def __post_init__(self) -> None:
        for name, known in (("mhsa", self.mhsa), ("ffn", self.ffn)):
            ratios, nats = np.array(known, dtype=np.float64).reshape(-1, 2).T
            rises = len(ratios) and np.all(np.diff(ratios) > 0)
            is_share = np.all((ratios >= 0) & (ratios <= 1))
            if not rises or not is_share or not np.all((nats >= 0) & (nats < np.inf)):
                raise InputError(
                    f"`{name}` must be losses in nats by rising ratios, but got {known!r:.80}."
                )
        if not 0 < self.worst < np.inf:
            raise InputError(f"`worst` must be above 0, but got {self.worst!r}.")

    def losses(self, pairs: Array) -> Array:
        """Return the predicted loss of each pair, ``(n, 2)`` to ``(n,)``."""
        nats = np.zeros(len(pairs))
        for axis, known in enumerate((self.mhsa, self.ffn)):
            nats += np.interp(pairs[:, axis], *np.array(known).T)
        losses: Array = -self.worst * np.expm1(-_SHARE_PER_NAT * nats)
        return losses

    def to_json(self) -> dict[str, Any]:
        """Return the forecast as JSON values."""
        return {
            "mhsa": [list(known) for known in self.mhsa],
            "ffn": [list(known) for known in self.ffn],
            "worst": self.worst,
        }

    @classmethod
    def of_plan(cls, stored: Mapping[str, Any]) -> Forecast | None:
        """Return the forecast among a plan's JSON values; None without one.

        Raises:
            InputError: It is none.
        """
        found = stored.get("forecast")
        if found is None:
            return None
        try:
            mhsa, ffn = (
                tuple((_number(ratio), _number(nats)) for ratio, nats in found[name])
                for name in ("mhsa", "ffn")
            )
            worst = _number(found["worst"])
        except (KeyError, TypeError, ValueError):
            raise InputError(
                "`forecast` of the plan must have `mhsa` and `ffn`, lists of ratios and their "
                f"losses, and the number `worst`, but is {found!r:.80}."
            ) from None
        return cls(mhsa, ffn, worst)


def forecast_json(forecast: Forecast | None) -> dict[str, Any]:
    """Return a forecast as an entry of a plan's JSON values, see :meth:`Forecast.of_plan`."""
    return {} if forecast is None else {"forecast": forecast.to_json()}


def _number(value: Any) -> float:
    """Return a JSON number as a float; raises a ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > _LARGEST:
        raise ValueError(value)
    return float(value)


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
