"""What a calibration predicts of the loss of every pair, before any model is pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.plan import Array, Pair

__all__ = ["Forecast", "forecast_json"]

# Share of all that can be lost that is lost per nat, after a training. Models differ in it by a
# factor of about two to either side; a belief corrects it.
_SHARE_PER_NAT = 0.6
_LARGEST = 1e100  # number that is taken from a study


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
