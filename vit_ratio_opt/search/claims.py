"""Read from a study's trials what its sampler needs: values, claims and failures."""

from __future__ import annotations

import itertools
import operator
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from optuna.exceptions import TrialPruned
from optuna.study import Study
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState

from vit_ratio_opt._compat import enqueued_params
from vit_ratio_opt.search.direction import sign_of
from vit_ratio_opt.search.plan import Pair

__all__ = [
    "CLAIM",
    "FAILED",
    "MAX_DEATHS",
    "MAX_FAILURES",
    "SURPLUS",
    "TIMED_OUT",
    "Ending",
    "TrialReader",
    "View",
    "is_surplus",
    "refuse_surplus",
    "requeue",
    "value_of",
]

CLAIM = "vit_ratio_opt:claim"
"""System attribute of a trial: the pair that it has claimed."""

TIMED_OUT = "vit_ratio_opt:given_up"
"""System attribute of a trial: numbers of older trials that it stopped waiting for."""

SURPLUS = "vit_ratio_opt:surplus"
"""System attribute of a trial that was asked for when nothing was left to learn: why."""

FAILED = "vit_ratio_opt:failed"
"""System attribute of a trial whose own worker says that it failed."""

REQUEUED = "vit_ratio_opt:handed_back"
"""System attribute of a trial that ends FAIL only because its worker has to stop."""

MAX_FAILURES = 3
"""Failures (out of memory, NaN) after which a pair is not retried."""

MAX_DEATHS = 10
"""Dead workers after which their pair is not retried: one death may have another cause."""


class Ending(NamedTuple):
    """How a trial is about to end that is still RUNNING in the storage."""

    number: int
    state: TrialState
    values: Sequence[float] | None


class View(NamedTuple):
    """State of a study's trials at one moment.

    Args:
        observed: Values of each pair, one for each training.
        complete: Pairs with a COMPLETE trial.
        pending: Pairs that running trials have claimed.
        blocked: Pairs that keep failing, and pairs that another training would not change.
        unclaimed: Numbers of running trials that have claimed no pair yet.
        queued: Numbers of waiting trials that will have to claim a pair.
        timed_out: Numbers of trials that some trial has stopped waiting for.
        taken: This process's ``time.monotonic()`` before the trials were read.
    """

    observed: dict[Pair, tuple[float, ...]]
    complete: set[Pair]
    pending: set[Pair]
    blocked: set[Pair]
    unclaimed: set[int]
    queued: set[int]
    timed_out: set[int]
    taken: float


class TrialReader:
    """Reads the trials of a study; finished ones, which never change, only once.

    Args:
        names: Names of the two parameters of a pair, in the plan's order.
        constraint: Name of the constraint that holds a trial's value; None for the objective's.
    """

    def __init__(self, names: Sequence[str], constraint: str | None) -> None:
        self._names = tuple(names)
        self._constraint = constraint
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the trials that were read: a copy reads them again."""
        return {"_names": self._names, "_constraint": self._constraint}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._finished = _Finished()

    def read(
        self, study: Study, *, asking: FrozenTrial | None = None, ending: Ending | None = None
    ) -> View:
        """Return the current state of the study's trials.

        Args:
            study: The study.
            asking: Trial that asks for a pair; it does not count itself.
            ending: Trial that counts as ended already.
        """
        sign = sign_of(study)
        taken = time.monotonic()
        known, unfinished = self._read_finished(study, sign)
        pending: set[Pair] = set()
        unclaimed: set[int] = set()
        queued: set[int] = set()
        for trial in unfinished:
            if asking is not None and trial.number == asking.number:
                continue
            if ending is not None and trial.number == ending.number:
                self._count(known, trial, ending, sign)
                continue
            known.timed_out.update(trial.system_attrs.get(TIMED_OUT, ()))
            if is_surplus(trial):
                continue  # it repeats a pair of another trial
            pair = self._pair_of(trial)
            if pair is not None:
                pending.add(pair)
            else:
                (unclaimed if trial.state == TrialState.RUNNING else queued).add(trial.number)
        return View(
            known.observed,
            known.complete,
            pending,
            known.blocked | known.often_failed(),
            unclaimed,
            queued,
            known.timed_out,
            taken,
        )

    def _read_finished(self, study: Study, sign: float) -> tuple[_Finished, list[FrozenTrial]]:
        """Return a copy of the state of finished trials, and the trials that are not in it."""
        with self._lock:
            trials = study.get_trials(deepcopy=False)
            places = self._finished.unread(trials)
            if places is None:
                # Another study, or a storage that makes its trials anew at each call.
                self._finished = _Finished([None] * len(trials))
                places = range(len(trials))
            unfinished = []
            for place in places:
                trial = trials[place]
                if trial.state.is_finished():
                    self._finished.read[place] = trial
                    ending = Ending(trial.number, trial.state, trial.values)
                    self._count(self._finished, trial, ending, sign)
                else:
                    unfinished.append(trial)
            return self._finished.copy(), unfinished

    def _pair_of(self, trial: FrozenTrial) -> Pair | None:
        """Return the pair that a trial trains; None while it is unknown.

        A trial's parameters overrule what was enqueued for it, and this overrules its claim.
        """
        known: dict[str, Any] = {}
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            known.update(zip(self._names, trial.system_attrs.get(CLAIM, ()), strict=False))
            known.update(enqueued_params(trial.system_attrs))
        known.update(trial.params)  # of a finished trial they alone count
        if not all(name in known for name in self._names):
            return None
        try:
            first, second = (float(known[name]) for name in self._names)
        except (TypeError, ValueError):  # enqueued, and no number
            return None
        return (first, second) if first == first and second == second else None  # nor NaN

    def _count(self, known: _Finished, trial: FrozenTrial, ending: Ending, sign: float) -> None:
        """Add a trial that has ended, or is about to, to the state."""
        known.timed_out.update(trial.system_attrs.get(TIMED_OUT, ()))
        pair, state = self._pair_of(trial), ending.state
        if pair is None or (is_surplus(trial) and state != TrialState.COMPLETE):
            return
        if state == TrialState.FAIL:
            if REQUEUED not in trial.system_attrs:
                failures, deaths = known.failures.get(pair, (0, 0))
                has_failed = trial.system_attrs.get(FAILED, False)
                known.failures[pair] = _Failures(failures + has_failed, deaths + (not has_failed))
            return
        value = value_of(trial, state, ending.values, self._constraint, sign)
        if value is None:  # pruned before its first report: nothing to learn there
            known.blocked.add(pair)
        else:
            known.observed[pair] = (*known.observed.get(pair, ()), value)
            if _is_untrained(trial):  # its value again would make the noise look small
                known.blocked.add(pair)
            if state == TrialState.COMPLETE:
                known.complete.add(pair)


def value_of(
    trial: FrozenTrial,
    state: TrialState,
    values: Sequence[float] | None,
    constraint: str | None,
    sign: float,
) -> float | None:
    """Return the value that a search observes in a trial, to be maximised; None for no value.

    Args:
        trial: The trial.
        state: COMPLETE or PRUNED: the state that the trial has, or is about to have.
        values: Values of a complete trial.
        constraint: Name of the constraint that holds the value; None for the objective's value.
        sign: 1.0 in a study that is maximised, -1.0 in one that is minimised.
    """
    if constraint is not None:
        held = trial.constraints.get(constraint)
        return None if held is None else -held
    if state == TrialState.COMPLETE and values is not None:
        return sign * values[0]
    if trial.last_step is None:
        return None
    last = trial.intermediate_values[trial.last_step]
    return sign * last if last == last else None  # not NaN


def _is_untrained(trial: FrozenTrial) -> bool:
    """Return whether pruning lost nothing, so that the trial left out its training."""
    chosen = trial.user_attrs.get("chosen")
    return isinstance(chosen, dict) and chosen.get("is_trained") is False


def is_surplus(trial: FrozenTrial) -> bool:
    """Return whether the trial was asked for when nothing was left to learn."""
    return SURPLUS in trial.system_attrs


def refuse_surplus(trial: Trial | FixedTrial) -> None:
    """Prune a trial that would only repeat a pair, before it costs anything.

    Call it in an objective after the first ratio was suggested.

    Raises:
        TrialPruned: Nothing was left to learn; the message says why.
    """
    if isinstance(trial, FixedTrial):
        return
    attributes = trial.storage.get_trial(trial._trial_id).system_attrs
    if SURPLUS in attributes:
        raise TrialPruned(f"Nothing left to learn: {attributes[SURPLUS]}.")


def requeue(trial: Trial | FixedTrial) -> None:
    """Requeue the pair of a trial that will end FAIL; the failure does not count for the pair.

    Call it in an objective whose worker has to stop through no fault of the pair.
    """
    if not isinstance(trial, FixedTrial):
        trial.storage.set_trial_system_attr(trial._trial_id, REQUEUED, True)


class _Failures(NamedTuple):
    failures: int
    deaths: int


@dataclass
class _Finished:
    """Values and failures of the finished trials of a study.

    Args:
        read: The trial objects that the storage returned, in its order, and None for a trial that
            had not finished. A study that was deleted and created again has other objects.
        observed: Values of each pair.
        complete: Pairs with a COMPLETE trial.
        failures: How often each pair failed.
        blocked: Pairs whose trial was pruned without any value, or left out its training.
        timed_out: Numbers of trials that some trial has stopped waiting for.
    """

    read: list[FrozenTrial | None] = field(default_factory=list)
    observed: dict[Pair, tuple[float, ...]] = field(default_factory=dict)
    complete: set[Pair] = field(default_factory=set)
    failures: dict[Pair, _Failures] = field(default_factory=dict)
    blocked: set[Pair] = field(default_factory=set)
    timed_out: set[int] = field(default_factory=set)

    def often_failed(self) -> set[Pair]:
        """Return the pairs that failed too often to be retried."""
        return {
            pair
            for pair, (failures, deaths) in self.failures.items()
            if failures >= MAX_FAILURES or deaths >= MAX_DEATHS
        }

    def unread(self, trials: Sequence[FrozenTrial]) -> Sequence[int] | None:
        """Return the places of trials that were not read; None if others were read."""
        self.read += [None] * (len(trials) - len(self.read))
        # Nearly all were read: comparing them in C keeps this fast in studies of thousands.
        others = map(operator.is_not, trials, self.read)
        places = list(itertools.compress(range(len(trials)), others))
        if len(trials) < len(self.read) or any(self.read[i] is not None for i in places):
            return None
        return places

    def copy(self) -> _Finished:
        """Return a copy that more can be added to."""
        return replace(
            self,
            read=[],
            observed=dict(self.observed),
            complete=set(self.complete),
            failures=dict(self.failures),
            blocked=set(self.blocked),
            timed_out=set(self.timed_out),
        )
