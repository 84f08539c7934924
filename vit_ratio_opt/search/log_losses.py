"""A belief over the logarithm of losses, which is nearly straight where the loss itself bends.

The unit of the belief is ``log(whole / (loss + offset))``: 0 where ``loss + offset`` is ``whole``,
and the higher, the less is lost.
"""

from __future__ import annotations

import numpy as np

from vit_ratio_opt.search.belief import Alternatives
from vit_ratio_opt.search.forecast import Forecast
from vit_ratio_opt.search.plan import Array

__all__ = ["LARGEST_EXPONENT", "add_ends", "expected_losses", "with_forecast"]

LARGEST_EXPONENT = 20.0  # values that contradict each other would overflow
_DENSE_VARIANCE, _EVERYTHING_VARIANCE = 0.01, 1.0  # of what is expected at both ends
_SAME = 1e-4  # variance of values without noise


def add_ends(found: Alternatives) -> Alternatives:
    """Return the alternatives of the noise with two values more, which are expected, not observed.

    These are the dense model, which loses nothing, and one of which nothing is left.
    """
    ends = np.tile([_DENSE_VARIANCE, _EVERYTHING_VARIANCE], (len(found.log_weights), 1))
    return found._replace(
        noise=np.concatenate([found.noise + _SAME, ends], axis=1),
        own=np.concatenate([found.own, np.zeros_like(ends)], axis=1),
    )


def with_forecast(
    points: Array, forecast: Forecast | None, pairs: Array, offset: float, *, whole: float
) -> Array:
    """Return points of a belief with the prior mean of each, as they are without a forecast.

    Args:
        points: Points of the pairs, ``(n, 2)``.
        forecast: What is predicted of each pair.
        pairs: The pairs, ``(n, 2)``.
        offset: Offset of a loss under the logarithm.
        whole: The loss, with the offset, at which the belief is 0.
    """
    if forecast is None:
        return points
    return np.column_stack([points, np.log(whole / (forecast.losses(pairs) + offset))])


def expected_losses(
    weights: Array, means: Array, variances: Array, whole: float
) -> tuple[Array, Array, Array, Array]:
    """Return what is believed of some pairs, on the average over all components of a belief.

    Args:
        weights: Weight of each component, ``(c,)``.
        means: Mean of each pair in each component, in the unit of the belief, ``(c, n)``.
        variances: Their variances, ``(c, n)``.
        whole: The loss, with the offset, at which the belief is 0.

    Returns:
        Mean and variance in the unit of the belief, and the expected loss with the offset and its
        standard error, those of a log-normal variable; ``(n,)`` each.
    """
    mean = weights @ means
    variance = weights @ (variances + means**2) - mean**2
    losses: Array = whole * np.exp(np.minimum(variances / 2 - means, LARGEST_EXPONENT))
    second = weights @ (losses**2 * np.exp(np.minimum(variances, LARGEST_EXPONENT)))
    expected = weights @ losses
    errors = np.sqrt(np.maximum(second - expected**2, 0.0))
    return mean, variance, expected, errors
