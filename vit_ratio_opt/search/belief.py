"""Predict pairs that were not tried from a few noisy trials, by a Gaussian process.

The prior expresses what pruning two modules does in general: the effects of the two ratios mostly
add up, and each grows smoothly with its ratio. So the kernel is a constant, a line and a smooth
curve in either ratio, and a smaller interaction of both (Duvenaud 2011, additive Gaussian
processes). Each pair also deviates a little from this smooth function, as rounding removes other
units.

Where something is known of the function before any trial, the belief is about its deviation from
that: from a prior mean whose own height is uncertain by a factor.

Ten trials determine neither the smoothness nor the noise of the function, and the single likeliest
answer would be overconfident. So the belief is an average over a fixed grid of scales and over the
alternatives of the noise, weighted by their likelihoods. It involves no iteration and no
randomness, so every worker has the same belief after the same trials.

Fitting n values with s alternatives costs O((27 + 8 s) n^3), a prediction of m points O(m n^2).
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Alternatives", "Belief", "fit"]

Array = NDArray[np.floating[Any]]

_LENGTHS = (0.25, 0.5, 1.0)  # in units of the whole range of a ratio
_AMPLITUDES: tuple[float, ...] = (0.3, 1.0, 3.0)
_CONSTANT, _LINE, _INTERACTION = 4.0, 2.0, 0.3  # variances, the smooth curve's being 1
# The same around a prior mean, and the variance of the factor by which it is too low.
_AMPLITUDES_AROUND: tuple[float, ...] = (0.1, 0.3, 1.0)
_CONSTANT_AROUND, _FACTOR = 1.0, 0.25
_JITTER = 1e-9
# Scales that are combined with all alternatives, components that are kept, and components that
# predict at many points: the others have next to no weight.
_SCALES, _COMPONENTS, _PREDICTING = 8, 40, 12


class Alternatives(NamedTuple):
    """Alternatives of the noise at n values.

    ``noise`` and ``own``, ``(s, n)``, are variances of each value's noise and of its pair's own
    deviation; ``log_weights`` ``(s,)``; ``next_noise`` and ``next_own``, ``(s,)``, are the
    variances of the next value and of its pair.
    """

    noise: Array
    own: Array
    log_weights: Array
    next_noise: Array
    next_own: Array


def fit(points: Array, values: Array, alternatives: Alternatives) -> Belief:
    """Return a :class:`Belief`, from a small cache if the arguments are those of a recent call.

    A worker that finishes a trial and asks for the next one, or for the answer, asks twice.
    """
    shape = (len(alternatives.log_weights), *points.shape)
    return _fit(points.tobytes(), values.tobytes(), shape, *(a.tobytes() for a in alternatives))


@functools.lru_cache(maxsize=4)
def _fit(points: bytes, values: bytes, shape: tuple[int, int, int], *parts: bytes) -> Belief:
    noise, own, *rest = map(np.frombuffer, parts)
    alternatives = Alternatives(noise.reshape(shape[:2]), own.reshape(shape[:2]), *rest)
    return Belief(np.frombuffer(points).reshape(shape[1:]), np.frombuffer(values), alternatives)


class Belief:
    """The posterior of a function on the unit square, given noisy values of it.

    Args:
        points: Points of the values, ``(n, 2)``, n at least 1; or ``(n, 3)``, with the prior mean
            of each value. All other points have to have it, too.
        values: Values of the function, ``(n,)``, of the order of 1.
        alternatives: Alternatives of the noise; variances above 0 where values may disagree.
    """

    def __init__(self, points: Array, values: Array, alternatives: Alternatives) -> None:
        self._points, values = points, values - _prior_mean(points)
        amplitudes = _AMPLITUDES if points.shape[1] == 2 else _AMPLITUDES_AROUND
        if len(values) <= 2:
            amplitudes = amplitudes[1:2]
        scales = np.array(list(itertools.product(_LENGTHS, _LENGTHS, amplitudes)))
        prior = -0.5 * ((np.log(scales[:, :2] / 0.5) / 0.7) ** 2).sum(axis=1)
        prior -= 0.125 * np.log(scales[:, 2] ** 2) ** 2
        variances = alternatives.noise + alternatives.own + _JITTER
        before = np.exp(alternatives.log_weights - alternatives.log_weights.max())
        expected = (before / before.sum()) @ variances
        # In one batch: these matrices are so small that a call costs more than its arithmetic.
        smooth = self._prior(points, points, scales)
        first = _likelihoods(smooth, values, expected[None])[0][:, 0] + prior
        chosen = np.argsort(-first, kind="stable")[:_SCALES]
        scales, smooth, prior = scales[chosen], smooth[chosen], prior[chosen]
        likelihoods, factors, whites = _likelihoods(smooth, values, variances)
        likelihoods += prior[:, None] + alternatives.log_weights
        order = np.argsort(-likelihoods.ravel(), kind="stable")[:_COMPONENTS]
        scale, level = np.unravel_index(order, likelihoods.shape)
        weights = np.exp(likelihoods[scale, level] - likelihoods.max())
        self.weights: Array = weights / weights.sum()
        self._scales = scales[scale]
        self._factors, self._whites = factors[scale, level], whites[scale, level]
        self._own = alternatives.own[level]
        self._next_own = alternatives.next_own[level]
        self._smooth = smooth[scale]
        self.next_noise = float(self.weights @ alternatives.next_noise[level])

    def components(self) -> tuple[Array, Array]:
        """Return means and variances at the values' own points in each component, ``(c, n)``."""
        prior = self._smooth.copy()
        diagonal = np.arange(len(self._points))
        prior[:, diagonal, diagonal] += self._own
        root = np.linalg.solve(self._factors, prior)
        means = (root * self._whites[..., None]).sum(axis=1)
        left = prior[:, diagonal, diagonal] - (root**2).sum(axis=1)
        return means + _prior_mean(self._points), np.maximum(left, _JITTER)

    def joint(self, points: Array) -> tuple[Array, Array]:
        """Return mean and covariance at the values' own points and then at other ``points``.

        Args:
            points: Points of pairs that were not tried, ``(m, 2)``, m may be 0.

        Returns:
            ``(n + m,)`` and ``(n + m, n + m)``, of the average over all components.
        """
        n, m = len(self._points), len(points)
        every = np.concatenate([self._points, points.reshape(m, self._points.shape[1])])
        prior = self._prior(every, every, self._scales)
        seen, new = np.arange(n), np.arange(n, n + m)
        prior[:, seen, seen] += self._own
        prior[:, new, new] += self._next_own[:, None]
        root = np.linalg.solve(self._factors, prior[:, :n])
        means = (root * self._whites[..., None]).sum(axis=1) + _prior_mean(every)
        covariances = prior - root.transpose(0, 2, 1) @ root
        mean: Array = self.weights @ means
        second = covariances + means[:, :, None] * means[:, None, :]
        covariance: Array = np.tensordot(self.weights, second, 1) - np.outer(mean, mean)
        return mean, covariance

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Return mean and variance of pairs that were not tried, ``(m, 2)`` to two ``(m,)``."""
        count = min(_PREDICTING, len(self.weights))
        weights = self.weights[:count] / self.weights[:count].sum()
        means, root = self._project(points, slice(count))
        left = self._left(points, root, slice(count))
        mean: Array = weights @ means
        variance: Array = weights @ (left + means**2) - mean**2
        return mean, variance

    def outcomes(self, points: Array, unknown: Array, draws: Array) -> tuple[Array, Array, Array]:
        """Return the posterior that each possible outcome at ``unknown`` would give.

        Uses the likeliest component only.

        Args:
            points: Points of pairs that were not tried, ``(m, 2)``.
            unknown: Points whose values are still to come, ``(k, 2)``.
            draws: Standard normal numbers, ``(s, k)``: s possible outcomes.

        Returns:
            Values at ``unknown``, ``(s, k)``; means at ``points`` in each outcome, ``(s, m)``; and
            the variances that are left there, ``(m,)``, the same in every outcome.
        """
        likeliest = slice(1)
        (mean,), (root,) = self._project(points, likeliest)
        (mean_unknown,), (root_unknown,) = self._project(unknown, likeliest)
        scale = self._scales[likeliest]
        covariance = self._prior(unknown, unknown, scale)[0] - root_unknown.T @ root_unknown
        covariance[np.diag_indices_from(covariance)] += 1e-6
        factor = np.linalg.cholesky(covariance)
        cross = self._prior(unknown, points, scale)[0] - root_unknown.T @ root
        share = np.linalg.solve(factor, cross)  # (k, m)
        (left,) = self._left(points, root[None], likeliest)
        left = np.maximum(left - (share**2).sum(axis=0), _JITTER)
        return mean_unknown + draws @ factor.T, mean + draws @ share, left

    def _project(self, points: Array, chosen: slice) -> tuple[Array, Array]:
        prior = self._prior(self._points, points, self._scales[chosen])
        root: Array = np.linalg.solve(self._factors[chosen], prior)
        means: Array = (root * self._whites[chosen][..., None]).sum(axis=1)
        return means + _prior_mean(points), root

    def _left(self, points: Array, root: Array, chosen: slice) -> Array:
        line = _LINE * (points[:, :2] ** 2).sum(axis=1)
        squares = self._scales[chosen, 2][:, None] ** 2
        prior = squares * (line + 2 + _INTERACTION) + self._next_own[chosen][:, None]
        prior += _common_prior(points, points)
        left: Array = np.maximum(prior - (root**2).sum(axis=1), _JITTER)
        return left

    @staticmethod
    def _prior(first: Array, second: Array, scales: Array) -> Array:
        """Return the covariances ``(c, n, m)`` of the smooth part."""
        one, other = (
            np.exp(
                -0.5
                * ((first[:, None, axis] - second[None, :, axis]) / scales[:, axis, None, None])
                ** 2
            )
            for axis in (0, 1)
        )
        line = _LINE * (first[:, :2] @ second[:, :2].T)
        shape = line + (one + other) + _INTERACTION * (one * other)
        prior: Array = scales[:, 2, None, None] ** 2 * shape
        prior += _common_prior(first[:, None], second[None])
        return prior


def _prior_mean(points: Array) -> Array:
    """Return the prior mean at some points, ``(n,)``; 0 where none is given."""
    return points[:, 2] if points.shape[1] == 3 else np.zeros(len(points))


def _common_prior(first: Array, second: Array) -> Array:
    """Return the covariances of the constant and of the prior mean's factor, for all scales."""
    if first.shape[-1] == 2:
        return np.array(_CONSTANT)
    covariances: Array = _CONSTANT_AROUND + _FACTOR * first[..., 2] * second[..., 2]
    return covariances


def _likelihoods(smooth: Array, values: Array, variances: Array) -> tuple[Array, Array, Array]:
    """Return log likelihoods, Cholesky factors and whitened values of each scale and level."""
    n = len(values)
    diagonal = np.arange(n)
    # With the values as one more row, the factor's last row is the whitened values: no triangular
    # system has to be solved. The corner only has to be large enough to keep the matrix definite.
    covariances = np.empty((len(smooth), len(variances), n + 1, n + 1))
    covariances[..., :n, :n] = smooth[:, None]
    covariances[..., diagonal, diagonal] += variances
    covariances[..., n, :n] = covariances[..., :n, n] = values
    covariances[..., n, n] = 1 + 2 * (values @ values) / variances.min()
    bordered: Array = np.linalg.cholesky(covariances)
    factors, whites = bordered[..., :n, :n], bordered[..., n, :n]
    halves = np.log(factors[..., diagonal, diagonal]).sum(axis=-1)  # of the log determinants
    likelihoods: Array = -0.5 * (whites**2).sum(axis=-1) - halves
    return likelihoods, factors, whites
