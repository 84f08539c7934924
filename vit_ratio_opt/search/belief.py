"""What a few noisy trials say about the pairs that were not tried: a Gaussian process.

The prior says what pruning two modules does in general: the effects of the two ratios mostly add
up, each grows with its ratio, smoothly. So the kernel is a constant, a line and a smooth curve in
either ratio, and a smaller interaction of both (Duvenaud 2011, additive Gaussian processes). Its
scales are the likeliest ones of a small fixed grid: nothing iterates, nothing is random, and the
same trials give the same belief on every worker.

Fitting n values costs O(27 n^3), a prediction of m points O(m n^2).
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["Belief"]

Array = NDArray[np.float64]

_LENGTHS = (0.25, 0.5, 1.0)  # in units of the whole range of a ratio
_AMPLITUDES = (0.3, 1.0, 3.0)
_CONSTANT, _LINE, _INTERACTION = 4.0, 2.0, 0.3  # variances, the smooth curve's being 1
_JITTER = 1e-9


class Belief:
    """The posterior of a function on the unit square, given noisy values of it.

    Args:
        points: Where the values were seen, ``(n, 2)``, n at least 1.
        values: ``(n,)``, of the order of 1.
        variances: Of the noise in each value, ``(n,)``, above 0.
    """

    def __init__(self, points: Array, values: Array, variances: Array) -> None:
        self._points = points
        likeliest = -math.inf
        for lengths in itertools.product(_LENGTHS, repeat=2):
            shape, prior = self._shape(points, points, lengths), 0.0
            for length in lengths:
                prior -= 0.5 * (math.log(length / 0.5) / 0.7) ** 2
            for amplitude in _AMPLITUDES if len(values) > 2 else (1.0,):
                covariance = _CONSTANT + amplitude**2 * shape
                covariance[np.diag_indices_from(covariance)] += variances + _JITTER
                factor = np.linalg.cholesky(covariance)
                white = np.linalg.solve(factor, values)
                likelihood = prior - 0.5 * math.log(amplitude) ** 2
                likelihood -= 0.5 * float(white @ white) + float(np.log(factor.diagonal()).sum())
                if likelihood > likeliest:
                    likeliest = likelihood
                    self._lengths, self._amplitude = lengths, amplitude
                    self._factor, self._white = factor, white

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Mean and variance at ``points``, ``(m, 2)`` to two ``(m,)``."""
        mean, root = self._project(points)
        return mean, self._variance(points, root)

    def outcomes(self, points: Array, unknown: Array, draws: Array) -> tuple[Array, Array, Array]:
        """What would be believed at ``points`` if the values at ``unknown`` were known.

        Args:
            points: ``(m, 2)``.
            unknown: Points whose values are still to come, ``(k, 2)``.
            draws: Standard normal numbers, ``(s, k)``: s possible outcomes.

        Returns:
            Values at ``unknown``, ``(s, k)``; means at ``points`` in each outcome, ``(s, m)``; and
            the variances that are left there, ``(m,)``, the same in every outcome.
        """
        mean, root = self._project(points)
        mean_unknown, root_unknown = self._project(unknown)
        covariance = self._prior(unknown, unknown) - root_unknown.T @ root_unknown
        covariance[np.diag_indices_from(covariance)] += 1e-6
        factor = np.linalg.cholesky(covariance)
        cross = self._prior(unknown, points) - root_unknown.T @ root
        share = np.linalg.solve(factor, cross)  # (k, m)
        left = np.maximum(self._variance(points, root) - (share**2).sum(axis=0), _JITTER)
        return mean_unknown + draws @ factor.T, mean + draws @ share, left

    def _project(self, points: Array) -> tuple[Array, Array]:
        root = np.linalg.solve(self._factor, self._prior(self._points, points))
        return root.T @ self._white, root

    def _variance(self, points: Array, root: Array) -> Array:
        line = _LINE * (points**2).sum(axis=1)
        prior = _CONSTANT + self._amplitude**2 * (line + 2 + _INTERACTION)
        left: Array = np.maximum(prior - (root**2).sum(axis=0), _JITTER)
        return left

    def _prior(self, first: Array, second: Array) -> Array:
        return _CONSTANT + self._amplitude**2 * self._shape(first, second, self._lengths)

    @staticmethod
    def _shape(first: Array, second: Array, lengths: tuple[float, ...]) -> Array:
        curves = []
        for axis, length in enumerate(lengths):
            distance = first[:, None, axis] - second[None, :, axis]
            curves.append(np.exp(-0.5 * (distance / length) ** 2))
        shape: Array = _LINE * (first @ second.T) + sum(curves) + _INTERACTION * np.prod(curves, 0)
        return shape
