"""The answer of a study: which pair, how good, and better than one ratio for both modules?

It is computed here alone. Terminal, report, notes, page, figures, model card, ``test`` and
``final`` show what :func:`answer_of` returns, and the sampler's winner is the same pair, by the
same functions of :mod:`vit_ratio_opt.search` on the same trials.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.snapshot import StudySnapshot
from vit_ratio_opt.records.trials import (
    accuracy_of,
    attribute,
    cost_ratio_of,
    finished_trials,
    has_pair,
    pair_of,
)
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.claims import is_surplus, value_of
from vit_ratio_opt.search.margins import tolerance_answer
from vit_ratio_opt.search.plan import Estimate, Pair

__all__ = [
    "Answer",
    "Candidate",
    "answer_of",
    "answer_trial",
    "candidate_of",
    "trained_trial",
]

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
        own_accuracies: Validation accuracy of each training, in the order of ``trials``.
        probability: Within a budget, that the pair is better than the fixed ratio's; with a
            tolerance, that it keeps the tolerance.
    """

    pair: Pair
    trial: FrozenTrial
    trials: tuple[FrozenTrial, ...]
    cost_ratio: float
    accuracy: float
    error: float
    own_accuracies: tuple[float, ...]
    probability: float

    @property
    def trained(self) -> int:
        """How often the pair was trained to the end, not stopped early by an Optuna pruner."""
        return sum(
            trial.state == TrialState.COMPLETE or attribute(trial, "accuracy") is not None
            for trial in self.trials
        )

    @property
    def own_accuracy(self) -> float:
        """Mean validation accuracy of the pair's own trainings in per cent."""
        return fmean(self.own_accuracies)

    def value_of(self, trial: FrozenTrial) -> float:
        """Return the validation accuracy of one of the pair's trials in per cent."""
        numbers = [other.number for other in self.trials]
        return self.own_accuracies[numbers.index(trial.number)]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a study has found so far.

    Args:
        found: The pair of the answer; None where it is the dense model, since no pair keeps the
            tolerance with the confidence asked for yet.
        dense_accuracy: Validation accuracy of the dense model in per cent.
        baseline: The fixed ratio's pair in the same study; None where the study has none, or has
            not trained it yet.
        has_baseline: Whether the search begins with the fixed ratio's pair.
        contender: Where the answer is the fixed ratio's pair, the pair that is the likeliest to be
            better; None while no other pair is trained.
        confidence: Probability with which the answer has to keep the tolerance; None within a
            budget.
        rival: The pair of Optuna's ``study.best_trial``, where its trial is another one than the
            answer's and something is believed of the pair.
        rival_trial: That trial, where it is another one than the answer's.
    """

    found: Candidate | None
    dense_accuracy: float
    baseline: Candidate | None
    has_baseline: bool
    contender: Candidate | None
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
        rival, trial, found = self.rival, self.rival_trial, self.found
        if trial is None:
            return None
        best = f"Optuna's best trial, {trial.number},"
        if found is not None and pair_of(trial) == found.pair:
            return (
                f"{best} is another training of the same pair: the model of trial "
                f"{found.trial.number} is taken since it was trained first, not for its value."
            )
        if rival is None:
            return f"{best} has a pair that is too far from the answer's to be compared with it."
        believed = f"{rival.accuracy:.2f} ± {rival.error:.2f} % expected"
        if self.confidence is not None and rival.probability < self.confidence:
            return (
                f"{best} is cheaper, but its pair ({believed}) keeps the tolerance with a "
                f"probability of only {_below(rival.probability, self.confidence)}, and "
                f"{self.confidence:g} is required."
            )
        if self.confidence is not None:
            return f"{best} has a pair ({believed}) that is planned to cost no less."
        assert found is not None
        value = rival.value_of(trial)
        highest = "the highest" if value > max(found.own_accuracies) else "an equally high"
        return (
            f"{best} has {highest} single value, {value:.2f} %, but its pair ({believed}) is not "
            "the answer: a single value owes something to chance."
        )


def answer_of(study: Study) -> Answer | None:
    """Return the answer of a study, or None before any trial was trained.

    - Within a budget: the pair of the highest posterior mean, or the fixed ratio's where none is
      better with a probability above one half, see
      :class:`~vit_ratio_opt.search.budget.BudgetSearch`.
    - With a tolerance: the cheapest pair that keeps it with the confidence of the study, else the
      dense model, see :class:`~vit_ratio_opt.search.tolerance.ToleranceSearch`.
    """
    if not isinstance(study, StudySnapshot):
        return _answer_of(study)
    if "answer" not in study.computed:
        study.computed["answer"] = _answer_of(study)
    answer: Answer | None = study.computed["answer"]
    return answer


def _answer_of(study: Study) -> Answer | None:
    believed = _believe(study)
    if believed is None or (believed.best is None and believed.confidence is None):
        return None
    found, baseline = believed.candidate(believed.best), believed.candidate(believed.baseline)
    contender = None
    if baseline is not None and found == baseline:
        others = [e for pair, e in believed.estimates.items() if pair != baseline.pair]
        likeliest = max(others, key=lambda e: (e.probability, e.mean), default=None)
        contender = None if likeliest is None else believed.candidate(likeliest.pair)
    rival = _optunas_best(study)
    if rival is not None and found is not None and rival.number == found.trial.number:
        rival = None
    return Answer(
        found=found,
        dense_accuracy=believed.dense_accuracy,
        baseline=baseline,
        has_baseline=believed.baseline is not None,
        contender=contender,
        confidence=believed.confidence,
        rival=None if rival is None else believed.candidate(pair_of(rival)),
        rival_trial=rival,
    )


def candidate_of(study: Study, trial: FrozenTrial) -> Candidate | None:
    """Return what is believed of the pair of a trial; None where nothing is."""
    believed = _believe(study)
    return None if believed is None else believed.candidate(pair_of(trial))


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
        answer = answer_of(study)
        if answer is None:
            raise InputError(
                f"Study {study.study_name!r} has no answer yet: no trial was trained. Run more "
                "trials."
            )
        if answer.found is None:
            raise InputError(
                f"The answer of study {study.study_name!r} is the dense model: no pair keeps the "
                f"tolerance with a probability of {answer.confidence:g} yet. Run more trials, or "
                "name a trial with --trial."
            )
        return answer.found.trial
    trained = {
        trial.number: trial
        for trial in finished_trials(study)
        if attribute(trial, "accuracy") is not None
    }
    if number not in trained:
        raise InputError(
            f"Trial {number} of study {study.study_name!r} was not trained to its end; "
            f"{', '.join(map(str, trained)) or 'none'} were."
        )
    return trained[number]


@dataclass(frozen=True, kw_only=True)
class _Believed:
    """What the trials of a study say of its pairs.

    ``offset`` turns the values of ``estimates`` into accuracies; ``baseline`` is the fixed ratio's
    pair where the search begins with it.
    """

    best: Pair | None
    estimates: dict[Pair, Estimate]
    trials: dict[Pair, list[FrozenTrial]]
    accuracies: dict[Pair, tuple[float, ...]]
    offset: float
    dense_accuracy: float
    baseline: Pair | None
    confidence: float | None

    def candidate(self, pair: Pair | None) -> Candidate | None:
        """Return what is believed of a pair; None where nothing is."""
        estimate = None if pair is None else self.estimates.get(pair)
        if estimate is None:
            return None
        trials = self.trials[estimate.pair]
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        trial = (complete or trials)[0]
        return Candidate(
            pair=estimate.pair,
            trial=trial,
            trials=tuple(trials),
            cost_ratio=cost_ratio_of(trial),
            accuracy=self.offset + estimate.mean,
            error=estimate.error,
            own_accuracies=self.accuracies[estimate.pair],
            probability=estimate.probability,
        )


def _believe(study: Study) -> _Believed | None:
    """Return what the trials of a study say of its pairs, or None before any was trained."""
    sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
    constraint = None if sign > 0 else "accuracy_drop"
    trials: defaultdict[Pair, list[FrozenTrial]] = defaultdict(list)
    values: defaultdict[Pair, tuple[float, ...]] = defaultdict(tuple)
    for trial in finished_trials(study):
        surplus = is_surplus(trial) and trial.state != TrialState.COMPLETE
        value = value_of(trial, trial.state, trial.values, constraint, sign)
        if not surplus and value is not None and math.isfinite(value):
            trials[pair_of(trial)].append(trial)
            values[pair_of(trial)] += (value,)
    if not trials:
        return None
    complete = {
        pair
        for pair, found in trials.items()
        if any(trial.state == TrialState.COMPLETE for trial in found)
    }
    first = next(iter(trials.values()))[0]
    dense, stored = _dense_accuracy(study, first), study.user_attrs.get("plan")
    offset, baseline, confidence = 0.0, None, None
    if constraint is None:
        search = BudgetSearch.from_json({"dense": dense, **_curve(stored, values)})
        best, estimates = search.answer(values, complete=complete), search.estimates(values)
        baseline = search.baseline
    else:
        tolerance = _tolerance(study, first, stored)
        costs = {pair: _planned_cost_ratio(found[0]) for pair, found in trials.items()}
        plan = stored or {"tolerance": tolerance, "scale": _largest(study), **_MEANS}
        best, estimates = tolerance_answer(
            plan, values, lambda *pair: costs[pair], complete=complete
        )
        offset, confidence = dense - tolerance, float(plan["confidence"])
    return _Believed(
        best=None if best is None else best.pair,
        estimates=estimates,
        trials=dict(trials),
        accuracies={
            pair: tuple(
                _own_accuracy(trial, offset + value)
                for trial, value in zip(trials[pair], found, strict=True)
            )
            for pair, found in values.items()
        },
        offset=offset,
        dense_accuracy=dense,
        baseline=baseline,
        confidence=confidence,
    )


def _dense_accuracy(study: Study, trial: FrozenTrial) -> float:
    """Return the dense model's validation accuracy; a study of other makers has it in its trials.

    Without either, the accuracy of the trial.
    """
    if "dense" in study.user_attrs:
        return float(study.user_attrs["dense"]["val_accuracy"])
    accuracy = accuracy_of(trial, study) or 0.0
    return accuracy + float(attribute(trial, "accuracy_drop") or 0.0)


def _own_accuracy(trial: FrozenTrial, otherwise: float) -> float:
    accuracy = attribute(trial, "accuracy")
    return otherwise if accuracy is None else float(accuracy)


def _tolerance(study: Study, trial: FrozenTrial, plan: Mapping[str, Any] | None) -> float:
    """Return the tolerance in points, of the settings, else of the plan, else of a trial."""
    if "settings" in study.user_attrs:
        return float(study.user_attrs["settings"]["tolerance"])
    if plan is not None:
        return float(plan["tolerance"])
    return float((attribute(trial, "accuracy_drop") or 0.0) - trial.constraints["accuracy_drop"])


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


def _below(value: float, limit: float) -> str:
    """Return a number with as many digits as it takes to be below another one."""
    digits = next((n for n in range(2, 6) if round(value, n) < limit), 6)
    return f"{value:.{digits}f}"


def _planned_cost_ratio(trial: FrozenTrial) -> float:
    """Return the cost that the search knew before training; a model may come out smaller."""
    planned = attribute(trial, "planned_cost_ratio")
    return cost_ratio_of(trial) if planned is None else float(planned)


def _optunas_best(study: Study) -> FrozenTrial | None:
    try:
        best = study.best_trial
    except ValueError:  # no trial is complete and feasible
        return None
    return best if has_pair(best) else None
