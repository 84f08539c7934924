"""Estimate how much the value of one training varies over seeds, from a guess and repeats.

The guess is updated by every pair that was trained more than once: the variance has a conjugate
(scaled inverse chi-squared) prior around the guess, and the repeats of all pairs are pooled. The
noise grows with the loss of accuracy; how fast is not known before, so there are alternatives,
which the repeats weigh. A search averages over all alternatives, see
:mod:`vit_ratio_opt.search.belief`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_ratio_opt.errors import InputError

__all__ = ["UNKNOWN_NOISE", "Levels", "Noise", "Repeats", "accuracy_noise", "seed_noise"]

Array = NDArray[np.floating[Any]]

UNKNOWN_NOISE = 0.5
"""Points of noise that are assumed of an unknown metric; trainings of a pair correct it."""

# Observations that the guess is worth, and quantiles of the variance that stand for all of it.
_PRIOR_DEGREES, _QUANTILES = 5.0, 5
# Points of loss at which the noise is 1.4 times that at none, with logarithms of their prior
# weights. On the recorded CIFAR-10 surfaces it is about 7, on the digits about 1.
_GROWTHS = ((7.0, 0.0), (1.0, -1.0))


class Repeats(NamedTuple):
    """Observations of each pair on which the noise depends; arrays ``(n,)``.

    Args:
        losses: Mean loss of each pair in points, against the dense model.
        squares: Sum of squared deviations from the pair's mean.
        counts: Number of trainings of the pair.
    """

    losses: Array
    squares: Array
    counts: Array


class Levels(NamedTuple):
    """Alternatives of the noise; arrays ``(s,)``.

    Args:
        sigmas: Standard deviation of a value without loss.
        growths: Loss in points at which the standard deviation is 1.4 times that.
        log_weights: Logarithm of the weight.
    """

    sigmas: Array
    growths: Array
    log_weights: Array

    def variances(self, losses: Array) -> Array:
        """Return the variance of one value at each loss, ``(s, n)``."""
        scale = 1 + (np.maximum(losses, 0.0) / self.growths[:, None]) ** 2
        variances: Array = self.sigmas[:, None] ** 2 * scale
        return variances


@dataclass(frozen=True)
class Noise:
    """Standard deviation of the value of one training over seeds, in the unit of the values.

    Args:
        guess: Standard deviation for a pair that loses nothing.
        is_known: Whether the guess holds for every pair, even if repeated trainings contradict it.
        point: One point in the unit of the values, see :class:`~vit_ratio_opt.Metric`. It sets
            how fast the noise grows with the loss.
        may_be_fractions: Whether guess and point are in percentage points, though the values may
            be fractions: where none is above 1, both are divided by 100.

    Raises:
        InputError: A number is out of its range.
    """

    guess: float
    is_known: bool = True
    point: float = 1.0
    may_be_fractions: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.guess < math.inf:
            raise InputError(f"`noise` must be at least 0, but got {self.guess!r}.")
        if not 0 < self.point < math.inf:
            raise InputError(f"`point` must be above 0, but got {self.point!r}.")

    def to_json(self) -> dict[str, Any]:
        """Return the noise as entries of a plan's JSON values."""
        known: dict[str, Any] = {"noise": self.guess, "noise_is_known": self.is_known}
        known |= {} if self.point == 1 else {"noise_point": self.point}
        return known | ({"may_be_fractions": True} if self.may_be_fractions else {})

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Noise:
        """Return the noise of a plan's JSON values; version 0.1.0 stored the guess alone."""
        return cls(
            stored["noise"],
            stored.get("noise_is_known", False),
            stored.get("noise_point", 1.0),
            stored.get("may_be_fractions", False),
        )

    def of_values(self, values: Array) -> Noise:
        """Return the noise in the unit of some values, see ``may_be_fractions``."""
        if not self.may_be_fractions or np.abs(values).max() > 1:
            return self
        return Noise(self.guess / 100, self.is_known, self.point / 100)

    def levels(self, repeats: Repeats, *, least_loss: float, grows: bool = True) -> Levels:
        """Return alternatives of the noise, weighted by their likelihood given the repeats.

        Args:
            repeats: Losses, squares and counts of all pairs.
            least_loss: Loss that pairs have at least, as far as the noise depends on it: a smaller
                one may be luck, and must not make its own value look precise.
            grows: Whether the noise may grow faster with the loss than usual.
        """
        if self.is_known or self.guess == 0:
            return Levels(np.array([self.guess]), np.array([math.inf]), np.zeros(1))
        losses = np.maximum(repeats.losses, least_loss)
        # Only repeats determine the noise. Exact sums do not depend on the order of the pairs.
        repeated = repeats.counts > 1
        losses, found_squares = losses[repeated], repeats.squares[repeated]
        extra = repeats.counts[repeated] - 1  # degrees of freedom
        degrees = _PRIOR_DEGREES + float(extra.sum())
        found = []
        for points, log_weight in _GROWTHS if grows else _GROWTHS[:1]:
            growth = points * self.point
            scale = 1 + (np.maximum(losses, 0.0) / growth) ** 2
            squares = math.fsum((found_squares / scale).tolist())
            # Marginal likelihood of the repeats, up to a factor that all growths share.
            log_weight -= 0.5 * math.fsum((extra * np.log(scale)).tolist())
            log_weight -= degrees / 2 * math.log1p(squares / (_PRIOR_DEGREES * self.guess**2))
            total = _PRIOR_DEGREES * self.guess**2 + squares
            for index in range(_QUANTILES):
                sigma = math.sqrt(total / _chi_squared((index + 0.5) / _QUANTILES, degrees))
                found.append((sigma, growth, log_weight))
        return Levels(*np.array(found).T)


def accuracy_noise(accuracy: float, images: int) -> float:
    """Return a guess of the standard deviation of an accuracy over seeds, in points.

    Two trainings of one pair disagree on few images, so their accuracies vary less than those of
    two draws of images: in recorded studies by about half of that standard error.

    Args:
        accuracy: Accuracy in per cent.
        images: Number of images on which it is measured.
    """
    share = accuracy / 100
    return seed_noise(100 * math.sqrt(share * (1 - share) / images))


def seed_noise(standard_error: float) -> float:
    """Return a guess of the standard deviation of a metric over seeds.

    Args:
        standard_error: Standard error of the metric over draws of the validation images.
    """
    return standard_error / 2


def _chi_squared(quantile: float, degrees: float) -> float:
    """Return a quantile of the chi-squared distribution (Wilson and Hilferty 1931)."""
    z, spread = NormalDist().inv_cdf(1 - quantile), 2 / (9 * degrees)
    return float(degrees * (1 - spread + z * math.sqrt(spread)) ** 3)
