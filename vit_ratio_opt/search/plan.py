"""The protocol of a plan: from observed values to the next pair and to the current answer.

Two plans search pairs of ratios ``(first, second)``, each in [0, 1),
of known cost:

- :class:`~vit_ratio_opt.search.budget.BudgetSearch`: the most accurate pair on a budget's curve.
- :class:`~vit_ratio_opt.search.tolerance.ToleranceSearch`: the cheapest pair that keeps a
  tolerance.

Both are pure and deterministic: no study, no clock. They take ``observed`` (pair to its values,
one for each time it was trained), ``pending`` (pairs that are being trained) and ``blocked``
(pairs that are not tried again), and return a :class:`Proposal`. Any worker that asks with the
same three gets the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.belief import Alternatives
from vit_ratio_opt.search.noise import Levels, Noise, Repeats

__all__ = ["Estimate", "Observed", "Pair", "Plan", "Proposal", "run_plan"]

Pair = tuple[float, float]
Observed = Mapping[Pair, Sequence[float]]

Array = NDArray[np.floating[Any]]

# A pair's own deviation from the smooth function, in standard deviations of the noise.
_OWN_DEVIATIONS = (0.0, 0.5, 1.0)


class Proposal(NamedTuple):
    """Pair and the reason to try it; without a pair, the reason why the search ends."""

    pair: Pair | None
    why: str


class Estimate(NamedTuple):
    """Estimate of the value of a trained pair.

    Args:
        pair: The pair.
        mean: Posterior mean of its value.
        error: Standard error of ``mean``.
        own: Mean of the values of the pair's own trainings.
        trained: Number of its trainings.
        probability: Within a budget, probability to be better than the baseline; with a tolerance,
            probability to keep it.
    """

    pair: Pair
    mean: float
    error: float
    own: float
    trained: int
    probability: float


class Plan(Protocol):
    """Search that a :class:`~vit_ratio_opt.search.sampler.PlanSampler` asks for pairs."""

    @property
    def constraint(self) -> str | None:
        """Return the constraint that holds a trial's value; None for the objective's value."""

    @property
    def limits(self) -> tuple[Pair, Pair]:
        """Return the smallest and the largest ratios that the plan may propose, as two pairs."""

    def propose(
        self,
        observed: Observed,
        pending: Collection[Pair] = (),
        blocked: Collection[Pair] = (),
        *,
        confirm: bool = False,
    ) -> Proposal:
        """Return the pair to try next.

        Args:
            observed: Values of each pair, one for each training.
            pending: Pairs that are being trained.
            blocked: Pairs that are not tried again: they keep failing, or have no other value.
            confirm: Whether this is one of the last trials, so that an answer that was trained
                once is trained again before anything else.
        """

    def answer(
        self, observed: Observed, *, complete: Container[Pair] | None = None
    ) -> Estimate | None:
        """Return the current answer; None if no observed pair is acceptable.

        Args:
            observed: Values of each pair, one for each training.
            complete: Pairs with a training that was not stopped early; only they can be the
                answer. All by default.
        """

    def fix_ratio(self, axis: int, value: float) -> Plan:
        """Return the plan in which one ratio is fixed.

        Args:
            axis: 0 fixes the first ratio, 1 the second one.
            value: The fixed ratio.
        """


def run_plan(plan: Plan, value: Callable[[Pair], float]) -> dict[Pair, list[float]]:
    """Evaluate the pairs that a plan proposes until it proposes none; return their values.

    Args:
        plan: The plan.
        value: Function that returns the value of a pair, called each time it is proposed.
    """
    observed: dict[Pair, list[float]] = {}
    while (pair := plan.propose(observed).pair) is not None:
        observed.setdefault(pair, []).append(value(pair))
    return observed


def alternatives(
    levels: Levels, repeats: Repeats, least_loss: float, slopes: Array
) -> Alternatives:
    """Return each level of the noise combined with each size of a pair's own deviation.

    Args:
        levels: Alternatives of the noise.
        repeats: Losses and counts of the pairs.
        least_loss: Smallest loss that counts, see :meth:`Noise.levels`; the next value is expected
            to have it, too.
        slopes: Belief's unit per point at each pair and at the next one, ``(n + 1,)``.
    """
    losses = np.append(np.maximum(repeats.losses, least_loss), least_loss)
    single = levels.variances(losses) * slopes**2  # of one value, (levels, n + 1)
    shares = np.array(_OWN_DEVIATIONS if single.any() else (0.0,)) ** 2
    noise = np.repeat(single, len(shares), axis=0)
    own = (single[:, None, :] * shares[None, :, None]).reshape(len(noise), -1)
    return Alternatives(
        noise[:, :-1] / repeats.counts,
        own[:, :-1],
        np.repeat(levels.log_weights, len(shares)),
        np.ascontiguousarray(noise[:, -1]),
        np.ascontiguousarray(own[:, -1]),
    )


def normal_cdf(x: Array) -> Array:
    """Return the distribution function of the standard normal, within 1.2e-5.

    Abramowitz and Stegun 1964, 26.2.16, on the absolute value.
    """
    t = 1 / (1 + 0.33267 * np.abs(x))
    tail = np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)
    tail = tail * t * (0.4361836 + t * (-0.1201676 + t * 0.9372980))
    result: Array = np.where(x >= 0, 1 - tail, tail)
    return result


def as_noise(noise: float | Noise, confirmations: int) -> Noise:
    """Return a plan's noise; a number is a known standard deviation.

    Raises:
        InputError: The noise or ``confirmations`` is negative.
    """
    if confirmations < 0:
        raise InputError(f"`confirmations` must be at least 0, but got {confirmations!r}.")
    return noise if isinstance(noise, Noise) else Noise(noise)
