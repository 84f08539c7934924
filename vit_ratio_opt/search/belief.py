"""What a few noisy trials say about the pairs that were not tried: a Gaussian process.

The prior says what pruning two modules does in general: the effects of the two ratios mostly add
up, each grows with its ratio, smoothly. So the kernel is a constant, a line and a smooth curve in
either ratio, and a smaller interaction of both (Duvenaud 2011, additive Gaussian processes). Its
scales are the likeliest ones of a small fixed grid: nothing iterates, nothing is random, and the
same trials give the same belief on every worker.

Fitting n values costs O(27 n^3), a prediction of m points O(m n^2).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Belief", "fit"]

Array = NDArray[np.float64]

_LENGTHS = (0.25, 0.5, 1.0)  # in units of the whole range of a ratio
_AMPLITUDES = (0.3, 1.0, 3.0)
_CONSTANT, _LINE, _INTERACTION = 4.0, 2.0, 0.3  # variances, the smooth curve's being 1
_JITTER = 1e-9


def fit(points: Array, values: Array, variances: Array) -> Belief:
    """A :class:`Belief`; the last ones again when the same is asked.

    A worker that told a trial and asks for the next, or that asks for the winner too, asks the
    same twice.
    """
    return _fit(points.tobytes(), values.tobytes(), variances.tobytes())


@functools.lru_cache(maxsize=4)
def _fit(points: bytes, values: bytes, variances: bytes) -> Belief:
    return Belief(
        np.frombuffer(points).reshape(-1, 2), np.frombuffer(values), np.frombuffer(variances)
    )


class Belief:
    """The posterior of a function on the unit square, given noisy values of it.

    Args:
        points: Where the values were seen, ``(n, 2)``, n at least 1.
        values: ``(n,)``, of the order of 1.
        variances: Of the noise in each value, ``(n,)``, above 0.
    """

    def __init__(self, points: Array, values: Array, variances: Array) -> None:
        self._points = points
        # All scales at once: these matrices are so small that a call costs more than its sums.
        grid = np.array(_LENGTHS)[:, None, None]
        shapes = self._shape(points, points, (grid[:, None], grid))
        amplitudes = _AMPLITUDES if len(values) > 2 else (1.0,)
        squares = np.square(amplitudes)[:, None, None]
        covariances = (_CONSTANT + squares * shapes[:, :, None]).reshape(-1, *shapes.shape[2:])
        diagonal = np.arange(len(values))
        covariances[:, diagonal, diagonal] += variances + _JITTER
        factors = np.linalg.cholesky(covariances)
        whites = np.linalg.solve(factors, values)
        halves = np.log(factors[:, diagonal, diagonal]).sum(axis=1)  # of the log determinants
        scales = list(itertools.product(_LENGTHS, _LENGTHS, amplitudes))
        likelihoods = []
        for (*lengths, amplitude), white, half in zip(scales, whites, halves, strict=True):
            likelihood = 0.0
            for length in lengths:
                likelihood -= 0.5 * (math.log(length / 0.5) / 0.7) ** 2
            likelihood -= 0.5 * math.log(amplitude) ** 2
            likelihoods.append(likelihood - (0.5 * float(white @ white) + float(half)))
        best = likelihoods.index(max(likelihoods))
        *self._lengths, self._amplitude = scales[best]
        self._factor, self._white = factors[best].copy(), whites[best].copy()  # not all the others

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
    def _shape(first: Array, second: Array, lengths: Sequence[float | Array]) -> Array:
        one, other = (
            np.exp(-0.5 * ((first[:, None, axis] - second[None, :, axis]) / length) ** 2)
            for axis, length in enumerate(lengths)
        )
        shape: Array = _LINE * (first @ second.T) + (one + other) + _INTERACTION * (one * other)
        return shape
