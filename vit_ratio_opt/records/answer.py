"""The answer of a study: which pair, how good, and better than one ratio for both modules?

It is computed here alone. Report, notes, page, figures, model card, ``test`` and ``final`` show
what :func:`answer_of` returns, and the sampler's winner is the same pair, by the same functions of
:mod:`vit_ratio_opt.search` on the same trials.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.trials import cost_ratio_of, finished_trials, pair_of
from vit_ratio_opt.search import BudgetSearch, Estimate, Pair, tolerance_answer
from vit_ratio_opt.search.sampler import is_surplus, value_of

__all__ = ["Answer", "Candidate", "answer_of", "answer_trial", "trained_trial"]

# The plan of a study with a tolerance that version 0.1.0 created: it stored none, and believed
# every pair's mean.
_MEANS = {"noise": 0.0, "noise_is_known": True, "confidence": 0.5}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A pair that was trained, and what is believed of it.

    Args:
        pair: MHSA ratio and FFN ratio.
        trial: The trial whose model can be taken away: the first complete one of the pair.
        trials: All trials that trained the pair, the first one first.
        cost_ratio: Share of the dense model's cost that is left.
        accuracy: Posterior mean of the validation accuracy in per cent.
        error: Its standard error, in percentage points.
        own_accuracy: Mean validation accuracy of the pair's own trainings, in per cent.
        probability: Within a budget, that the pair is better than the fixed ratio's; with a
            tolerance, that it keeps the tolerance.
    """

    pair: Pair
    trial: FrozenTrial
    trials: tuple[FrozenTrial, ...]
    cost_ratio: float
    accuracy: float
    error: float
    own_accuracy: float
    probability: float

    @property
    def trained(self) -> int:
        """How often the pair was trained."""
        return len(self.trials)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a study has found so far.

    Args:
        found: The pair of the answer; None where it is the dense model, since no pair keeps the
            tolerance with the confidence asked for yet.
        dense_accuracy: Validation accuracy of the dense model in per cent.
        baseline: The fixed ratio's pair in the same study; None where the study has none, or has
            not trained it yet.
        confidence: Probability with which the answer has to keep the tolerance; None within a
            budget.
        rival: The pair of Optuna's ``study.best_trial``, where its trial is another one than the
            answer's.
        rival_trial: That trial.
    """

    found: Candidate | None
    dense_accuracy: float
    baseline: Candidate | None
    confidence: float | None
    rival: Candidate | None
    rival_trial: FrozenTrial | None

    @property
    def is_baseline(self) -> bool:
        """Whether the answer is the fixed ratio's pair."""
        return self.baseline is not None and self.found == self.baseline

    @property
    def is_confirmed(self) -> bool:
        """Whether the answer was trained more than once; the dense model needs no confirmation."""
        return self.found is None or self.found.trained > 1

    @property
    def accuracy(self) -> float:
        """Expected validation accuracy of the answer in per cent."""
        return self.dense_accuracy if self.found is None else self.found.accuracy

    @property
    def error(self) -> float:
        """Standard error of :attr:`accuracy` in percentage points."""
        return 0.0 if self.found is None else self.found.error

    @property
    def why_not_best(self) -> str | None:
        """Why the answer's trial is not Optuna's best one, in a sentence; None where it is."""
        rival, trial = self.rival, self.rival_trial
        if rival is None or trial is None:
            return None
        number = trial.number
        if self.found is not None and rival.pair == self.found.pair:
            return (
                f"Optuna's best trial, {number}, is another training of the same pair: the model "
                f"of trial {self.found.trial.number} is not chosen for its luck."
            )
        believed = f"{rival.accuracy:.2f} ± {rival.error:.2f} %"
        if self.confidence is not None:
            return (
                f"Optuna's best trial, {number}, is cheaper, but its pair ({believed} expected) "
                f"keeps the tolerance with a probability of {rival.probability:.2f} only, where "
                f"{self.confidence:g} is asked for."
            )
        assert self.found is not None
        return (
            f"Optuna's best trial, {number}, has the highest single value, "
            f"{trial.user_attrs['accuracy']:.2f} %, but from its pair {believed} is expected, "
            f"from the answer {self.found.accuracy:.2f} ± {self.found.error:.2f} %."
        )


def answer_of(study: Study) -> Answer | None:
    """Return the answer of a study, or None before any trial was trained.

    - Within a budget: the pair of the highest posterior mean, or the fixed ratio's where none is
      better with a probability above one half, see
      :class:`~vit_ratio_opt.search.budget.BudgetSearch`.
    - With a tolerance: the cheapest pair that keeps it with the confidence of the study, else the
      dense model, see :class:`~vit_ratio_opt.search.tolerance.ToleranceSearch`.
    """
    trials = _trials_by_pair(study)
    if not trials:
        return None
    dense = float(study.user_attrs["dense"]["val_accuracy"])
    stored, settings = study.user_attrs.get("plan"), study.user_attrs["settings"]
    tolerance: float | None = settings["tolerance"]
    baseline: Pair | None = None
    if tolerance is None:
        observed = _observed(study, trials, None)
        search = BudgetSearch.from_json({"dense": dense, **_curve(stored, observed)})
        best, estimates, baseline = (
            search.answer(observed), search.estimates(observed), search.baseline,
        )  # fmt: skip
        least = 0.0
    else:
        observed = _observed(study, trials, "accuracy_drop")
        costs = {pair: _planned_cost_ratio(found[0]) for pair, found in trials.items()}
        plan = stored or {"tolerance": tolerance, "scale": _largest(study), **_MEANS}
        best, estimates = tolerance_answer(plan, observed, lambda *pair: costs[pair])
        least = dense - tolerance

    def candidate(estimate: Estimate | None) -> Candidate | None:
        if estimate is None:
            return None
        found = trials[estimate.pair]
        complete = [trial for trial in found if trial.state == TrialState.COMPLETE]
        trial = (complete or found)[0]
        return Candidate(
            pair=estimate.pair,
            trial=trial,
            trials=tuple(found),
            cost_ratio=cost_ratio_of(trial),
            accuracy=least + estimate.mean,
            error=estimate.error,
            own_accuracy=least + estimate.own,
            probability=estimate.probability,
        )

    found = candidate(best)
    if found is None and tolerance is None:
        return None
    optunas = _optunas_best(study)
    rival = None
    if optunas is not None and (found is None or optunas.number != found.trial.number):
        rival = candidate(estimates.get(pair_of(optunas)))
    return Answer(
        found=found,
        dense_accuracy=dense,
        baseline=None if baseline is None else candidate(estimates.get(baseline)),
        confidence=None if tolerance is None else _confidence(stored),
        rival=rival,
        rival_trial=optunas if rival is not None else None,
    )


def answer_trial(study: Study) -> FrozenTrial | None:
    """Return the trial whose model is the study's answer; None without, or for the dense model."""
    answer = answer_of(study)
    return None if answer is None or answer.found is None else answer.found.trial


def trained_trial(study: Study, number: int | None = None) -> FrozenTrial:
    """Return the trial with this number, or the answer's.

    Raises:
        InputError: The trial does not exist or was not trained to its end, or no pair is the
            answer yet.
    """
    if number is None:
        trial = answer_trial(study)
        if trial is None:
            raise InputError(
                f"The answer of study {study.study_name!r} is the dense model so far: no pruned "
                "model keeps its limit. Run more trials, or name a trial with --trial."
            )
        return trial
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


def _trials_by_pair(study: Study) -> dict[Pair, list[FrozenTrial]]:
    """Return the trials that the search counts, by pair."""
    by_pair: defaultdict[Pair, list[FrozenTrial]] = defaultdict(list)
    constraint = None if study.user_attrs["settings"]["tolerance"] is None else "accuracy_drop"
    for trial in finished_trials(study):
        surplus = is_surplus(trial) and trial.state != TrialState.COMPLETE
        if not surplus and _value(study, trial, constraint) is not None:
            by_pair[pair_of(trial)].append(trial)
    return dict(by_pair)


def _observed(
    study: Study, trials: Mapping[Pair, list[FrozenTrial]], constraint: str | None
) -> dict[Pair, tuple[float, ...]]:
    return {
        pair: tuple(
            value for trial in found if (value := _value(study, trial, constraint)) is not None
        )
        for pair, found in trials.items()
    }


def _value(study: Study, trial: FrozenTrial, constraint: str | None) -> float | None:
    sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
    return value_of(trial, trial.state, trial.values, constraint, sign)


def _curve(
    stored: Mapping[str, Any] | None, observed: Mapping[Pair, tuple[float, ...]]
) -> Mapping[str, Any]:
    """Return the stored plan; without one, that of the pairs that were tried, by their means."""
    if stored is not None:
        return stored
    least: list[Pair] = []
    for pair in sorted(observed):
        if not least or pair[0] > least[-1][0]:
            while least and least[-1][1] < pair[1]:
                least.pop()
            least.append(pair)
    return {"curve": least, "noise": 0.0, "noise_is_known": True}


def _largest(study: Study) -> list[float]:
    """Return the largest ratios that the study may try."""
    saved = study.user_attrs.get("saved")
    return [saved[name][-1][0] or 1.0 if saved else 1.0 for name in ("mhsa_ratio", "ffn_ratio")]


def _confidence(stored: Mapping[str, Any] | None) -> float:
    return float((stored or _MEANS)["confidence"])


def _planned_cost_ratio(trial: FrozenTrial) -> float:
    """Return the cost that the search knew before training; a model may come out smaller."""
    return float(trial.user_attrs.get("planned_cost_ratio", cost_ratio_of(trial)))


def _optunas_best(study: Study) -> FrozenTrial | None:
    try:
        return study.best_trial
    except ValueError:  # no trial is complete and feasible
        return None
