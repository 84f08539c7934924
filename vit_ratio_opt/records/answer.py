"""The answer of a study: its best pair, with estimate and comparison to the fixed ratio.

It is computed here alone. Terminal, report, notes, page, figures, model card, ``test`` and
``final`` show what :func:`answer_of` returns. The sampler confirms the same pair, by the same
functions of :mod:`vit_ratio_opt.search` on the same trials.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from optuna.study import Study
from optuna.trial import FrozenTrial

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.candidates import Candidate, Expected, estimate_pairs
from vit_ratio_opt.records.frontier import best_within, cheapest_keeping, expected_at
from vit_ratio_opt.records.labels import MACS, CostRecord, format_below
from vit_ratio_opt.records.snapshot import StudySnapshot
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.records.trial import attribute
from vit_ratio_opt.records.trials import finished_trials, has_pair, pair_of
from vit_ratio_opt.search.front import knee
from vit_ratio_opt.search.limits import Budget, Tolerance
from vit_ratio_opt.space.metric import ACCURACY, Metric

__all__ = ["Answer", "answer_of", "answer_trial", "trained_trial"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Answer:
    """Answer of a study: its best pair so far. ``print(answer)`` shows it in a few lines.

    Args:
        found: Pair of the answer; None where the answer is the dense model, because no pair keeps
            the tolerance with the confidence yet.
        dense_accuracy: Validation accuracy of the dense model in per cent; None where the study
            does not store it.
        baseline: The fixed ratio's pair in the same study; None where the study has none, or has
            not trained it yet.
        has_baseline: Whether the search begins with the fixed ratio's pair.
        likeliest_other: Where the answer is the fixed ratio's pair, the pair that is the likeliest
            to be better; None while no other pair is trained.
        confidence: Probability with which the answer has to keep the tolerance; None within a
            budget.
        best_candidate: The pair of Optuna's ``study.best_trial``, where that trial is not the
            answer's and its pair has an estimate.
        best_trial: Optuna's ``study.best_trial``, where it is not the answer's.
        study_name: Name of the study.
        cost: Cost that the budget limits, or that is minimised within a tolerance.
        metric: Metric of the trials.
        front: The pairs of the frontier, of rising cost, where the study searches it; ``found`` is
            the one at its knee, or the one that :meth:`at` has chosen.
        points: What is expected on the frontier, at its pairs and between them, of rising cost.
        loader: Function that returns the pruned model of a trial, see :meth:`bind`.
        study: The study, see :meth:`bind`.
    """

    found: Candidate | None
    dense_accuracy: float | None
    baseline: Candidate | None
    has_baseline: bool
    likeliest_other: Candidate | None
    confidence: float | None
    best_candidate: Candidate | None
    best_trial: FrozenTrial | None
    study_name: str = ""
    cost: CostRecord = MACS
    metric: Metric = ACCURACY
    front: tuple[Candidate, ...] = ()
    points: tuple[Expected, ...] = ()
    loader: Callable[[FrozenTrial], Any] | None = field(default=None, compare=False)
    study: Study | None = field(default=None, compare=False)

    @property
    def is_baseline(self) -> bool:
        """Return whether the answer is the fixed ratio's pair."""
        return self.baseline is not None and self.found == self.baseline

    @property
    def is_confirmed(self) -> bool:
        """Return whether the answer was trained more than once; True for the dense model."""
        return self.found is None or self.found.trained > 1

    @property
    def accuracy(self) -> float:
        """Return the expected validation accuracy of the answer in per cent, or another metric."""
        if self.found is not None:
            return self.found.accuracy
        return 0.0 if self.dense_accuracy is None else self.dense_accuracy

    @property
    def error(self) -> float:
        """Return the standard error of :attr:`accuracy` in the unit of the metric."""
        return 0.0 if self.found is None else self.found.error

    def bind(self, study: Study, loader: Callable[[FrozenTrial], Any]) -> Answer:
        """Return the answer with its study and a function that :meth:`load_model` calls.

        Args:
            study: The study, for :meth:`vit_ratio_opt.Search.test`.
            loader: Function that returns the pruned model of a trial.
        """
        return replace(self, study=study, loader=loader)

    def at(
        self,
        *,
        budget: float | None = None,
        tolerance: float | None = None,
        confidence: float = Tolerance.confidence,
    ) -> Answer:
        """Return the answer for a budget or for a tolerance, from the pairs of the frontier.

        Args:
            budget: Largest share of the dense model's cost: the pair that loses the least.
            tolerance: Largest loss, in the unit of the metric: the cheapest pair.
            confidence: Probability with which the pair has to keep the tolerance; where none
                does, the answer is the dense model.

        Raises:
            InputError: The study does not search the frontier, not exactly one of both is given,
                or every pair is over the budget.
        """
        self._check_front()
        if (budget is None) == (tolerance is None):
            raise InputError("`at` needs a budget or a tolerance, and only one of both.")
        if budget is not None:
            return replace(self, found=best_within(self.front, Budget(budget).share))
        limit = Tolerance(cast(float, tolerance), confidence)
        limit.check(self.metric)
        found = cheapest_keeping(
            self.front,
            limit.points,
            dense=0.0 if self.dense_accuracy is None else self.dense_accuracy,
            metric=self.metric,
            confidence=confidence,
        )
        return replace(self, found=found, confidence=confidence)

    def knee(self) -> Answer:
        """Return the answer at the knee, the furthest from the line between the frontier's ends.

        Raises:
            InputError: The study does not search the frontier.
        """
        self._check_front()
        signed = [self.metric.sign * one.accuracy for one in self.front]
        place = cast(int, knee([one.cost_ratio for one in self.front], signed))
        return replace(self, found=self.front[place], confidence=None)

    def expect(self, budget: float) -> Expected | None:
        """Return the metric that the search expects at a budget, whether a pair is there or not.

        Between two trained pairs it is what the belief of the search expects of a pair between
        them, whose error is the larger, the further both are. Above the most expensive pair it is
        what that one has.

        Args:
            budget: Share of the dense model's cost.

        Returns:
            The expected metric with its standard error; None where every pair costs more.

        Raises:
            InputError: The study does not search the frontier.
        """
        self._check_front()
        return expected_at(self.points, Budget(budget).share)

    def _check_front(self) -> None:
        if not self.front:
            raise InputError(
                f"Study {self.study_name!r} searches no frontier: its answer is for its own limit."
            )

    def load_model(self) -> Any:
        """Return the pruned and fine-tuned model of the answer, as a timm model.

        Raises:
            InputError: The answer is the dense model, its trial kept no model, or the answer has
                no loader.
        """
        if self.found is None:
            raise InputError(
                f"The answer of study {self.study_name!r} is the dense model, which is not "
                "pruned: run more trials."
            )
        if self.loader is None:
            raise InputError(
                f"This answer has no access to the models of study {self.study_name!r}: "
                "use `Search.answer(study)`, or load the file of the trial with `load_pruned`."
            )
        return self.loader(self.found.trial)

    def __str__(self) -> str:
        if self.found is None:
            return (
                f"The dense model: no pair keeps the tolerance with a probability of "
                f"{self.confidence:g} yet."
            )
        found, text = self.found, self.metric.text
        times = "once" if found.trained == 1 else f"{found.trained} times"
        dense = "" if self.dense_accuracy is None else f", dense {text(self.dense_accuracy)}"
        lines = [
            f"MHSA ratio {found.pair[0]:.3f}, FFN ratio {found.pair[1]:.3f} "
            f"(trial {found.trial.number}, trained {times})",
            f"{100 * found.cost_ratio:.1f} % of the {self.cost.word}",
            f"{text(found.accuracy, error=found.error)} {self.metric.label} expected{dense}",
        ]
        if self.front:
            count = len(self.front)
            of_all = f"one of the {count} pairs" if count > 1 else "the only pair"
            lines.append(f"{of_all} of the frontier")
        elif self.confidence is not None:
            lines.append(f"keeps the tolerance with a probability of {found.probability:.2f}")
        elif self.is_baseline:
            lines.append("the fixed ratio itself: no other pair is better")
        elif self.baseline is not None:
            fixed = self.baseline
            lines.append(
                f"better than the fixed ratio {fixed.pair[0]:.3f} "
                f"({text(fixed.accuracy, error=fixed.error)}, trial {fixed.trial.number}) with a "
                f"probability of {found.probability:.2f}"
            )
        if self.harm_of_training is not None:
            lines.append(self.harm_of_training)
        return "\n".join(lines)

    def __repr__(self) -> str:
        lines = str(self).splitlines()
        return f"<Answer of study {self.study_name!r}: {'; '.join(lines)}>"

    @property
    def harm_of_training(self) -> str | None:
        """Return a sentence where its training made the answer's model worse; else None.

        A change within the standard error of :attr:`accuracy` counts as none.
        """
        if self.found is None:
            return None
        trial, sign = self.found.trial, 1 if self.metric.larger_is_better else -1
        before, after = attribute(trial, "accuracy_pruned"), attribute(trial, "accuracy")
        if before is None or after is None or sign * (before - after) <= self.error:
            return None
        verb, number = "lowered" if sign > 0 else "raised", self.metric.number
        return (
            f"The training of trial {trial.number} {verb} its {self.metric.label} from "
            f"{number(before)} to {self.metric.text(after)}: try a lower learning rate or fewer "
            "epochs."
        )

    @property
    def why_not_best(self) -> str | None:
        """Return a sentence why the answer's trial is not Optuna's best one; None where it is."""
        other, trial, found = self.best_candidate, self.best_trial, self.found
        if trial is None:
            return None
        best = f"Optuna's best trial, {trial.number},"
        if found is not None and pair_of(trial) == found.pair:
            return (
                f"{best} is another training of the same pair: the model of trial "
                f"{found.trial.number} is taken since it was trained first, not for its value."
            )
        if other is None:
            return f"{best} has a pair that is too far from the answer's to be compared with it."
        expected = f"{self.metric.text(other.accuracy, error=other.error)} expected"
        if self.confidence is not None and other.probability < self.confidence:
            return (
                f"{best} is cheaper, but its pair ({expected}) keeps the tolerance with a "
                f"probability of only {format_below(other.probability, self.confidence)}, and "
                f"{self.confidence:g} is required."
            )
        if self.confidence is not None:
            return f"{best} has a pair ({expected}) that is planned to cost no less."
        assert found is not None
        value, own = other.value_of(trial), found.own_accuracies
        is_larger = self.metric.larger_is_better
        is_best = value > max(own) if is_larger else value < min(own)
        level = "high" if is_larger else "low"
        single = f"the {level}est" if is_best else f"an equally {level}"
        return (
            f"{best} has {single} single value, {self.metric.text(value)}, but its pair "
            f"({expected}) is not the answer: a single value also depends on chance."
        )


def answer_of(study: Study) -> Answer | None:
    """Return the answer of a study, or None before any trial was trained.

    - Within a budget: the pair of the highest posterior mean, or the fixed ratio's where none is
      better with a probability above one half, see
      :class:`~vit_ratio_opt.search.budget.BudgetSearch`.
    - On a frontier: the pair at its knee, which is the furthest below the line between both ends,
      see :class:`~vit_ratio_opt.search.frontier.FrontierSearch`; :meth:`Answer.at` gives others.
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
    estimates = estimate_pairs(study)
    if estimates is None or (estimates.best is None and estimates.confidence is None):
        return None
    found, baseline = estimates.candidate(estimates.best), estimates.candidate(estimates.baseline)
    likeliest_other = None
    if baseline is not None and found == baseline:
        others = [e for pair, e in estimates.estimates.items() if pair != baseline.pair]
        likeliest = max(others, key=lambda e: (e.probability, e.mean), default=None)
        likeliest_other = None if likeliest is None else estimates.candidate(likeliest.pair)
    best = _optunas_best(study)
    if best is not None and found is not None and best.number == found.trial.number:
        best = None
    return Answer(
        found=found,
        dense_accuracy=estimates.dense_accuracy,
        baseline=baseline,
        has_baseline=estimates.baseline is not None,
        likeliest_other=likeliest_other,
        confidence=estimates.confidence,
        best_candidate=None if best is None else estimates.candidate(pair_of(best)),
        best_trial=best,
        study_name=study.study_name,
        cost=record_of(study).cost,
        metric=estimates.metric,
        front=estimates.front(),
        points=estimates.expected(),
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


def _optunas_best(study: Study) -> FrozenTrial | None:
    if len(study.directions) > 1:
        return None
    try:
        best = study.best_trial
    except ValueError:  # no trial is complete and feasible
        return None
    return best if has_pair(best) else None
