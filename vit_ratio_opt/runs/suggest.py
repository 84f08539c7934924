"""Suggest a pair of ratios in a trial, and record what it is planned to cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import optuna
from optuna.trial import BaseTrial, FixedTrial, Trial

from vit_ratio_opt._compat import enqueued_params
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.trial import write_trial
from vit_ratio_opt.search.claims import refuse_surplus
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.search.space import ratio_distributions
from vit_ratio_opt.space.pairs import PairSpace, RatioPair, check_pair

__all__ = ["Suggestion", "suggest_pair"]


class Suggestion(NamedTuple):
    """A suggested pair and what its model may cost at most."""

    pair: RatioPair
    macs: int
    cost_ratio: float


def suggest_pair(
    trial: BaseTrial, space: PairSpace, limit: object, *, fixed_ratio: bool = False
) -> Suggestion:
    """Suggest both ratios of a trial, and record the cost of the pair.

    Args:
        trial: The trial, whose sampler proposes the pair.
        space: Search space.
        limit: Limit of the search. A :class:`~vit_ratio_opt.Budget` is checked here, since costs
            are known before any training; other limits are not.
        fixed_ratio: Whether both ratios have to be equal.

    Raises:
        TrialPruned: The pair is over the budget or not in the space, or the sampler has nothing
            left to learn.
    """
    distributions = ratio_distributions(space)
    _check_enqueued(trial, distributions)
    pair = RatioPair(*(trial.suggest_float(n, d.low, d.high) for n, d in distributions.items()))
    if isinstance(trial, (Trial, FixedTrial)):
        refuse_surplus(trial)
    if fixed_ratio and pair.mhsa_ratio != pair.ffn_ratio:
        raise optuna.TrialPruned(f"One ratio for both modules is searched, not {tuple(pair)}.")
    try:
        check_pair(space, pair)
    except InputError as error:  # a user enqueued it, so the search continues
        raise optuna.TrialPruned(str(error)) from None
    macs, cost_ratio = space.pruned_macs(pair), space.cost_ratio(*pair)
    write_trial(trial, macs_ratio=macs / space.macs, macs=macs)
    if space.cost.name != "macs":
        write_trial(trial, cost_ratio=cost_ratio)
    if isinstance(limit, Budget):
        trial.set_constraint(space.cost.constraint, cost_ratio - limit.share)
        if cost_ratio > limit.share:
            raise optuna.TrialPruned(
                f"{cost_ratio:.4f} of the {space.cost.word}, over {limit.share}."
            )
    return Suggestion(pair, macs, cost_ratio)


def _check_enqueued(trial: BaseTrial, names: Iterable[str]) -> None:
    """End a trial that was enqueued with a ratio that is no number.

    Raises:
        TrialPruned: With the ratio.
    """
    if not isinstance(trial, Trial):
        return
    attributes = trial.storage.get_trial(trial._trial_id).system_attrs
    for name, value in enqueued_params(attributes).items():
        if name in names and not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise optuna.TrialPruned(
                f"`{name}` must be a number, but {value!r:.100} was enqueued."
            )
