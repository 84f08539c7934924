"""Choose the answer of a study: the best pair within its limit, and the trial to take away."""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import fmean

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.geometry import BUDGET_CONSTRAINTS
from vit_ratio_opt.records.trials import cost_of, cost_ratio_of, finished_trials, pair_of
from vit_ratio_opt.search import BudgetSearch, Pair

__all__ = ["best_trial", "trained_trial", "trainings_of"]


def trained_trial(study: Study, number: int | None = None) -> FrozenTrial:
    """Return the trial with this number, or the best trial.

    Raises:
        InputError: The trial does not exist or was not trained to its end, or no trial is within
            the limit.
    """
    if number is None:
        best = best_trial(study)
        if best is None:
            raise InputError(f"Study {study.study_name!r} has no trial within its limit yet.")
        return best
    trained = {
        trial.number: trial
        for trial in study.get_trials(deepcopy=False)
        if "accuracy" in trial.user_attrs
    }
    if number not in trained:
        raise InputError(
            f"Trial {number} of study {study.study_name!r} was not trained to its end; "
            f"{', '.join(map(str, trained)) or 'none'} were."
        )
    return trained[number]


def best_trial(study: Study) -> FrozenTrial | None:
    """Return the first trial of the best pair within the limit, or None while there is none.

    A pair that was trained several times counts with its mean. Within a budget, the best pair is
    the answer of :class:`~vit_ratio_opt.search.plan.BudgetSearch`, which takes the noise of
    neighbouring pairs into account. With a tolerance, it is the cheapest pair that keeps it.
    """
    trainings = trainings_of(study)
    if study.direction == StudyDirection.MAXIMIZE:
        plan = study.user_attrs.get("plan")
        if plan is not None:
            curve = [(mhsa_ratio, ffn_ratio) for mhsa_ratio, ffn_ratio in plan["curve"]]
            observed = {p: [t.values[0] for t in trials] for p, trials in trainings.items()}
            answer = BudgetSearch(curve, noise=plan["noise"]).winner(observed)
            # Pairs off the curve were enqueued by hand and have no neighbours to judge them by.
            trainings = {p: t for p, t in trainings.items() if p == answer or p not in curve}

        def merit(trials: list[FrozenTrial]) -> float:
            return fmean(trial.values[0] for trial in trials)
    else:

        def merit(trials: list[FrozenTrial]) -> float:
            within = fmean(trial.constraints["accuracy_drop"] for trial in trials) <= 0
            return -cost_ratio_of(trials[0]) if within else -math.inf

    # Of equal pairs the first: a later pair has to be better.
    best = max(
        trainings.values(), key=lambda trials: (merit(trials), -trials[0].number), default=None
    )
    if best is None or merit(best) == -math.inf:
        return None
    # One seed may break a tolerance that the mean keeps: prefer a complete trial.
    complete = [trial for trial in best if trial.state == TrialState.COMPLETE]
    return complete[0] if complete else best[0]


def trainings_of(study: Study) -> dict[Pair, list[FrozenTrial]]:
    """Return the trials that were trained to their end within the budget, by pair."""
    by_pair: defaultdict[Pair, list[FrozenTrial]] = defaultdict(list)
    limit = BUDGET_CONSTRAINTS[cost_of(study)]
    for trial in finished_trials(study):
        to_the_end = trial.state == TrialState.COMPLETE or "accuracy_drop" in trial.user_attrs
        if to_the_end and trial.constraints.get(limit, 0.0) <= 0:
            by_pair[pair_of(trial)].append(trial)
    return dict(by_pair)
