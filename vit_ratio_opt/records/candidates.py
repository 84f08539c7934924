"""Estimate the accuracies of the trained pairs from the trials of a study."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.records.study import StudyRecord, record_of
from vit_ratio_opt.records.trial import attribute
from vit_ratio_opt.records.trials import (
    accuracy_of,
    cost_ratio_of,
    finished_trials,
    has_tolerance,
    pair_of,
)
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.claims import is_surplus, value_of
from vit_ratio_opt.search.direction import sign_of
from vit_ratio_opt.search.front import INSIDE, FrontierAnswer, frontier_answer, knee
from vit_ratio_opt.search.margins import tolerance_answer
from vit_ratio_opt.search.plan import Estimate, Pair
from vit_ratio_opt.space.metric import Metric

__all__ = ["Candidate", "Estimates", "Expected", "candidate_of", "estimate_pairs"]

# The plan of a study with a tolerance that version 0.1.0 created: it stored none, and took every
# pair's mean for its accuracy.
_MEANS = {"noise": 0.0, "noise_is_known": True, "confidence": 0.5}

_Values = Mapping[Pair, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Trained pair with the estimate of its accuracy.

    Args:
        pair: MHSA ratio and FFN ratio.
        trial: Trial whose model represents the pair: its first complete one.
        trials: All trials that trained the pair, the first one first.
        cost_ratio: Share of the dense model's cost that is left.
        accuracy: Posterior mean of the validation accuracy in per cent.
        error: Standard error of ``accuracy``, in the unit of the metric.
        own_accuracies: Validation accuracy of each training, in the order of ``trials``.
        probability: Within a budget, probability that the pair is better than the fixed ratio's;
            with a tolerance, probability that it keeps the tolerance; on a frontier, probability
            that it loses less than every cheaper pair is expected to.
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
        """Return the number of trainings that no Optuna pruner stopped early."""
        return sum(
            trial.state == TrialState.COMPLETE or attribute(trial, "accuracy") is not None
            for trial in self.trials
        )

    @property
    def own_accuracy(self) -> float:
        """Return the mean validation accuracy of the pair's own trainings in per cent."""
        return fmean(self.own_accuracies)

    def value_of(self, trial: FrozenTrial) -> float:
        """Return the validation accuracy of one of the pair's trials in per cent."""
        numbers = [other.number for other in self.trials]
        return self.own_accuracies[numbers.index(trial.number)]


class Expected(NamedTuple):
    """Metric that is expected at a cost.

    Args:
        cost_ratio: Share of the dense model's cost.
        accuracy: The metric, in its unit.
        error: Its standard error.
    """

    cost_ratio: float
    accuracy: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """Estimates of all pairs that were trained.

    The values of ``estimates`` become accuracies by ``offset + sign * value``.

    Args:
        best: The pair of the answer; None for the dense model, or where no pair is complete.
        estimates: Estimate of each pair.
        trials: Trials of each pair.
        accuracies: Accuracy of each training of each pair.
        offset: Accuracy at the value 0.
        sign: -1 where smaller metrics are better.
        dense_accuracy: Accuracy of the dense model, if it is known.
        baseline: The fixed ratio's pair, where the search begins with it.
        confidence: Probability with which the answer has to keep the tolerance; None within a
            budget.
        metric: Metric of the trials.
        frontier: The frontier; None with another limit.
    """

    best: Pair | None
    estimates: dict[Pair, Estimate]
    trials: dict[Pair, list[FrozenTrial]]
    accuracies: dict[Pair, tuple[float, ...]]
    offset: float
    sign: float
    dense_accuracy: float | None
    baseline: Pair | None
    confidence: float | None
    metric: Metric
    frontier: FrontierAnswer | None = None

    def candidate(self, pair: Pair | None) -> Candidate | None:
        """Return a pair with its estimate; None where the pair has none."""
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
            accuracy=self.offset + self.sign * estimate.mean,
            error=estimate.error,
            own_accuracies=self.accuracies[estimate.pair],
            probability=estimate.probability,
        )

    def front(self) -> tuple[Candidate, ...]:
        """Return the pairs on the frontier, of rising cost; none with another limit."""
        pairs = [one.pair for one in self.frontier.front] if self.frontier else []
        return tuple(filter(None, map(self.candidate, pairs)))

    def expected(self) -> tuple[Expected, ...]:
        """Return what is expected at the pairs of the frontier and between, of rising cost."""
        front = self.front()
        found = [Expected(one.cost_ratio, one.accuracy, one.error) for one in front]
        for (first, last), inside in zip(
            itertools.pairwise(front), self.frontier.between if self.frontier else (), strict=True
        ):
            for share, (value, error) in zip(INSIDE, inside, strict=True):
                cost = (1 - share) * first.cost_ratio + share * last.cost_ratio
                found.append(Expected(cost, self.offset + self.sign * value, error))
        return tuple(sorted(found))


def candidate_of(study: Study, trial: FrozenTrial) -> Candidate | None:
    """Return the pair of a trial with its estimate; None where the pair has none."""
    estimates = estimate_pairs(study)
    return None if estimates is None else estimates.candidate(pair_of(trial))


def estimate_pairs(study: Study) -> Estimates | None:
    """Return estimates of all pairs that were trained, or None before any was trained."""
    record, is_tolerance = record_of(study), has_tolerance(study)
    known_front: FrontierAnswer | None = None
    metric = record.metric
    sign = sign_of(study)
    if is_tolerance:
        sign = metric.sign
    trials, values = _values(study, record.constraint if is_tolerance else None, sign)
    if not trials:
        return None
    complete = {
        pair
        for pair, found in trials.items()
        if any(trial.state == TrialState.COMPLETE for trial in found)
    }
    first = next(iter(trials.values()))[0]
    costs = {pair: _planned_cost_ratio(found[0]) for pair, found in trials.items()}
    offset, baseline, confidence = 0.0, None, None
    dense = _dense_accuracy(study, first)
    if record.has_frontier:
        assert record.plan is not None
        known_front = frontier_answer(
            record.plan, values, lambda *pair: costs[pair], complete=complete
        )
        found, estimates = known_front.front, known_front.estimates
        ratios = [cost_ratio_of(trials[one.pair][0]) for one in found]
        place = knee(ratios, [one.mean for one in found])
        best = None if place is None else found[place]
    elif not is_tolerance:
        known = None if dense is None else sign * dense
        search = BudgetSearch.from_json({"dense": known, **_curve(record.plan, values)})
        best, estimates = search.answer(values, complete=complete), search.estimates(values)
        baseline = search.baseline
    else:
        dense = 0.0 if dense is None else dense
        tolerance = _tolerance(record, first)
        plan = record.plan or {"tolerance": tolerance, "scale": _largest(record), **_MEANS}
        best, estimates = tolerance_answer(
            plan, values, lambda *pair: costs[pair], complete=complete
        )
        offset, confidence = metric.after_loss(dense, tolerance), float(plan["confidence"])
    return Estimates(
        best=None if best is None else best.pair,
        estimates=estimates,
        trials=trials,
        accuracies=_own_accuracies(trials, values, offset, sign),
        offset=offset,
        sign=sign,
        dense_accuracy=dense,
        baseline=baseline,
        confidence=confidence,
        metric=metric,
        frontier=known_front,
    )


def _values(
    study: Study, constraint: str | None, sign: float
) -> tuple[dict[Pair, list[FrozenTrial]], dict[Pair, tuple[float, ...]]]:
    """Return the trials of each pair, and the values that a search observes in them."""
    trials: defaultdict[Pair, list[FrozenTrial]] = defaultdict(list)
    values: defaultdict[Pair, tuple[float, ...]] = defaultdict(tuple)
    for trial in finished_trials(study):
        surplus = is_surplus(trial) and trial.state != TrialState.COMPLETE
        value = value_of(trial, trial.state, trial.values, constraint, sign)
        if not surplus and value is not None and math.isfinite(value):
            trials[pair_of(trial)].append(trial)
            values[pair_of(trial)] += (value,)
    return dict(trials), dict(values)


def _dense_accuracy(study: Study, trial: FrozenTrial) -> float | None:
    """Return the dense model's validation accuracy, from the study, a trial or the plan."""
    record = record_of(study)
    if record.dense.val_accuracy is not None:
        return float(record.dense.val_accuracy)
    drop, accuracy = attribute(trial, "accuracy_drop"), accuracy_of(trial, study)
    if drop is None and record.has_tolerance and record.limit is not None:
        drop = trial.constraints[record.constraint] + (record.limit.tolerance or 0.0)
    if accuracy is None or drop is None:
        known = (record.plan or {}).get("dense")
        return None if known is None else sign_of(study) * float(known)
    return record.metric.after_loss(accuracy, -float(drop))


def _own_accuracies(
    trials: Mapping[Pair, list[FrozenTrial]], values: _Values, offset: float, sign: float
) -> dict[Pair, tuple[float, ...]]:
    """Return the accuracy of each training of each pair; where it is not stored, of its value."""

    def accuracy(trial: FrozenTrial, value: float) -> float:
        stored = attribute(trial, "accuracy")
        return offset + sign * value if stored is None else float(stored)

    return {pair: tuple(map(accuracy, trials[pair], found)) for pair, found in values.items()}


def _tolerance(record: StudyRecord, trial: FrozenTrial) -> float:
    """Return the tolerance in points: of the limit, else of the plan, else of a trial."""
    if record.limit is not None and record.limit.tolerance is not None:
        return float(record.limit.tolerance)
    if record.plan is not None and "tolerance" in record.plan:
        return float(record.plan["tolerance"])
    drop = attribute(trial, "accuracy_drop") or 0.0
    return float(drop - trial.constraints[record.constraint])


def _curve(stored: Mapping[str, Any] | None, observed: _Values) -> Mapping[str, Any]:
    """Return the stored plan; without a curve, a plan of the pairs that were tried."""
    if stored is not None and stored.get("curve") is not None:
        return stored
    least: list[Pair] = []
    for pair in sorted(observed):
        if not least or pair[0] > least[-1][0]:
            while least and least[-1][1] < pair[1]:
                least.pop()
            least.append(pair)
    return {"curve": least, "noise": 0.0, "noise_is_known": True}


def _largest(record: StudyRecord) -> list[float]:
    """Return the largest ratios that the study may try."""
    saved = record.saved
    return [saved[name][-1][0] or 1.0 if saved else 1.0 for name in ("mhsa_ratio", "ffn_ratio")]


def _planned_cost_ratio(trial: FrozenTrial) -> float:
    """Return the cost that the search knew before training; a model may come out smaller."""
    planned = attribute(trial, "planned_cost_ratio")
    return cost_ratio_of(trial) if planned is None else float(planned)
