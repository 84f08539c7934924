"""An Optuna sampler over :mod:`vit_ratio_opt.search.plan`; its only state is the study."""

from __future__ import annotations

import contextlib
import itertools
import operator
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import TrialPruned
from optuna.logging import get_logger
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState

from vit_ratio_opt._compat import fixed_params
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.plan import Pair, Plan, Proposal

__all__ = [
    "SURPLUS",
    "BinarySearchSampler",
    "hand_back",
    "is_surplus",
    "refuse_surplus",
    "value_of",
]

SURPLUS = "vit_ratio_opt:surplus"
"""System attribute of a trial that was asked for when nothing was left to learn: why."""

_CLAIM = "vit_ratio_opt:claim"
_GIVEN_UP = "vit_ratio_opt:given_up"  # older trials that this one has waited for in vain
_FAILED = "vit_ratio_opt:failed"  # told so by its own worker
_HANDED_BACK = "vit_ratio_opt:handed_back"  # it did not fail, its worker has to go

_logger = get_logger(f"optuna.{__name__}")

# A pair that failed this often (out of memory, NaN) would fail again. A worker that died
# says little about the pair, unless it happens again and again.
_MAX_FAILURES, _MAX_DEATHS = 3, 10
# How long the first trial after it waits for one that does not claim; the others need not.
_PATIENCE_SECONDS = 2.0


class BinarySearchSampler(BaseSampler):
    """Proposes the pairs of a plan: bisection in one or two monotone parameters of known cost.

    Everything comes from the study's trials at each call, so a search goes on in any process
    that opens the storage. COMPLETE trials count with their value, trials PRUNED by an
    Optuna pruner with their last intermediate value, and FAIL gives a pair back. In a search with
    a constraint (:class:`~vit_ratio_opt.search.plan.ToleranceSearch`) both count with the
    constraint's value instead. The order of the proposals involves no randomness.

    *Workers.* Trial n takes the n-th claim: the pair is written into the trial when its first
    parameter is suggested, after the claims of all older running trials, which are waited for. An
    older trial that does not come forward (its process died in that moment, or is slow) is given
    up once for all, and takes its turn late if it comes. Whoever has claimed while another was out
    of turn looks once more, and gives way to a claim of the same pair. So no two running trials
    have one pair, whoever started them and wherever they run.

    Args:
        search_space: The two parameters of a pair, in the plan's order. The objective must suggest
            them with these distributions.
        plan: :class:`~vit_ratio_opt.search.plan.BudgetSearch` or
            :class:`~vit_ratio_opt.search.plan.ToleranceSearch`.
        independent_sampler: For all other parameters of the objective; random by default.
        seed: Seed of the default independent sampler.
        n_trials: Trained trials that the study is to have. An eighth of them, rounded down, is
            kept to confirm the answer: the last one of eight, the last two of sixteen. None while
            that is not known.

    Raises:
        InputError: The search space does not have two parameters, or not the plan's range.

    Example:
        >>> curve = [(i / 10, 1 - i / 10) for i in range(11)]
        >>> space = {name: FloatDistribution(0, 1) for name in ("x", "y")}
        >>> study = optuna.create_study(sampler=BinarySearchSampler(space, BudgetSearch(curve)))
        >>> study.optimize(lambda t: (t.suggest_float("x", 0, 1) - 0.3) ** 2
        ...                          + 0 * t.suggest_float("y", 0, 1), n_trials=6)
    """

    def __init__(
        self,
        search_space: Mapping[str, FloatDistribution],
        plan: Plan,
        *,
        independent_sampler: BaseSampler | None = None,
        seed: int | None = None,
        n_trials: int | None = None,
    ) -> None:
        if len(search_space) != 2:
            raise InputError(
                f"`search_space` must have the two parameters of a pair, but has "
                f"{list(search_space)!r}."
            )
        for pair in plan.limits:
            for value, (name, dist) in zip(pair, search_space.items(), strict=True):
                if not dist.low <= value <= dist.high:
                    raise InputError(
                        f"`{name}` must be in [{dist.low}, {dist.high}] in all pairs of the plan, "
                        f"but may be {value!r}."
                    )
        self._search_space = dict(search_space)
        self._plan = plan
        self._independent = independent_sampler or RandomSampler(seed=seed)
        self.n_trials = n_trials
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Without what was read from trials: a copy reads its own."""
        return {
            key: value for key, value in vars(self).items() if key not in ("_lock", "_finished")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._finished = _Finished()

    def nothing_left(self, study: Study) -> str | None:
        """Why no trial can add anything, or None while one can."""
        proposal = self.next_proposal(study)
        return proposal.why if proposal.pair is None else None

    def next_proposal(self, study: Study) -> Proposal:
        """What a trial that begins now would try, and what for; it is not claimed."""
        return self._propose(study)

    @property
    def plan(self) -> Plan:
        """The search that proposes the pairs."""
        return self._plan

    def winner(self, study: Study) -> Pair | None:
        """Return the pair of the plan's answer so far, or None when nothing observed will do."""
        view = self._look(study)
        answer = self._plan.answer(view.observed, complete=view.complete)
        return None if answer is None else answer.pair

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The pair, in every trial from the first on."""
        return dict(self._search_space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next pair of the plan; other parameters come from the independent sampler.

        Raises:
            ValueError: The study has several objectives.
            InputError: Its direction is not the plan's.
        """
        self._raise_error_if_multi_objective(study)
        self._check_direction(study)
        params = {
            name: self.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
            if name not in self._search_space
        }
        asked = [name for name in self._search_space if name in search_space]
        if asked:
            pair = dict(zip(self._search_space, self._claim(study, trial), strict=True))
            params.update({name: pair[name] for name in asked})
        return params

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A value for a parameter that is not part of the pair.

        Raises:
            ValueError: The study has several objectives.
        """
        self._raise_error_if_multi_objective(study)
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Passed on to the independent sampler."""
        self._independent.before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Stops the running ``optimize`` when nothing is left to learn, and says why."""
        self._independent.after_trial(study, trial, state, values)
        if state == TrialState.FAIL:
            study._storage.set_trial_system_attr(trial._trial_id, _FAILED, True)
        if len(study.directions) > 1:  # its trials were refused
            return
        # This trial is still RUNNING in the storage; what counts is what it is about to be.
        proposal = self._propose(study, ended=(trial.number, state, values))
        if proposal.pair is None:
            _logger.info(f"Nothing is left to learn: {proposal.why}.")
            # Asked and told by hand, there is no loop to stop.
            with contextlib.suppress(RuntimeError):
                study.stop()

    def reseed_rng(self) -> None:
        """Reseeds the independent sampler; the pairs involve no randomness."""
        self._independent.reseed_rng()

    def _check_direction(self, study: Study) -> None:
        """Refuse a study that would take the worst pair for the best.

        A plan with a constraint minimises a cost. A plan that knows the dense model's accuracy
        maximises accuracies; without it, values are whatever the study says.
        """
        wanted = None
        if self._plan.constraint is not None:
            wanted = StudyDirection.MINIMIZE
        elif getattr(self._plan, "dense", None) is not None:
            wanted = StudyDirection.MAXIMIZE
        if wanted is not None and study.direction != wanted:
            raise InputError(
                f"Study {study.study_name!r} has direction {study.direction.name.lower()!r}, but "
                f"the sampler's plan needs {wanted.name.lower()!r}: create the study with "
                f"`direction={wanted.name.lower()!r}`."
            )

    def _claim(self, study: Study, trial: FrozenTrial) -> Pair:
        """The trial's pair, written into the trial."""
        plan = self._restricted_plan(study, trial)
        gave_way = False
        while True:
            view, given_up = self._wait_for_claims(study, trial)
            proposal = self._ask(plan, view)
            pair = proposal.pair
            attributes: dict[str, Any] = {_GIVEN_UP: given_up} if given_up else {}
            if pair is None:
                _logger.warning(
                    f"Nothing is left to learn: {proposal.why}; trial {trial.number} repeats the "
                    "best."
                )
                attributes[SURPLUS] = proposal.why  # instead of a claim
                answer = plan.answer(view.observed)
                pair = None if answer is None else answer.pair
                pair = pair or min(view.pending | view.blocked, default=None)
                # A plan that gave no pair to a study without any trial has a first one all the
                # same.
                pair = pair or self._corner()
            else:
                attributes[_CLAIM] = list(pair)
            # Optuna's own samplers keep what belongs to a trial in the same place.
            for key, value in attributes.items():
                study._storage.set_trial_system_attr(trial._trial_id, key, value)
            if SURPLUS in attributes:
                return pair
            if not gave_way and self._in_turn(trial, view):
                return pair
            # Two trials that read the same, because one was given up but came, may have written
            # the same. Whoever of them wrote last sees it here, and looks for another pair.
            if gave_way:
                # Whoever has read the claim that was given back may be about to claim this pair,
                # and will not look again.
                now, _ = self._wait_for_claims(study, trial, younger=True)
            else:
                now = self._look(study, asking=trial)
            if pair not in now.pending and now.observed.get(pair) == view.observed.get(pair):
                return pair
            gave_way = True
            time.sleep(0.01 * (1 + trial.number % 8))  # not both at the same moment again

    @staticmethod
    def _in_turn(trial: FrozenTrial, view: _View) -> bool:
        """Whether nobody can claim the pair that ``trial`` has just claimed, after this ``view``.

        Another trial would have to read before the claim was written, so without waiting for it.
        It was there when ``view`` was taken, and had not claimed; or it came later, and had this
        trial given up, by someone who was there or who had the time to wait. Not noticed is only
        a computer that is suspended in this very moment with its clock.
        """
        others = view.nameless or view.queued or trial.number in view.given_up
        return not others and time.monotonic() - view.taken < _PATIENCE_SECONDS

    def _wait_for_claims(
        self, study: Study, trial: FrozenTrial, *, younger: bool = False
    ) -> tuple[_View, list[int]]:
        """What is known once the older running trials have claims, and who never came forward.

        The clock is this process's own: those of two machines, or their time zones, may differ.
        """
        awaited: set[int] = set()
        deadline, pause = 0.0, 0.002
        while True:
            view = self._look(study, asking=trial)
            missing = view.nameless - view.given_up
            if not younger:
                missing = {number for number in missing if number < trial.number}
            if not missing:
                return view, []
            if not awaited or missing < awaited:  # someone came forward: the queue moves
                awaited, deadline = missing, time.monotonic() + _PATIENCE_SECONDS
            if view.taken >= deadline:  # they were still missing then
                return view, sorted(missing)
            time.sleep(pause)
            # Whoever is next looks often; the others leave the database time for the claims.
            pause = min(2 * pause, 0.02 * len(missing), _PATIENCE_SECONDS / 4)

    def _propose(
        self, study: Study, ended: tuple[int, TrialState, Sequence[float] | None] | None = None
    ) -> Proposal:
        view = self._look(study, ended=ended)
        return self._ask(self._restricted_plan(study), view)

    def _ask(self, plan: Plan, view: _View) -> Proposal:
        last = False
        if self.n_trials is not None:
            begun = sum(map(len, view.observed.values())) + len(view.pending)
            last = self.n_trials - begun <= self.n_trials // 8
        return plan.propose(view.observed, view.pending, view.blocked, confirm=last)

    def _restricted_plan(self, study: Study, trial: FrozenTrial | None = None) -> Plan:
        """The plan along what an outer PartialFixedSampler or an enqueued trial fixes."""
        fixed = fixed_params(study.sampler)
        if trial is not None:
            fixed.update(trial.system_attrs.get("fixed_params", {}))
        for axis, name in enumerate(self._search_space):
            if name in fixed:
                return self._plan.along(axis, float(fixed[name]))
        return self._plan

    def _corner(self) -> Pair:
        first, second = (distribution.low for distribution in self._search_space.values())
        return first, second

    def _pair_of(self, trial: FrozenTrial) -> Pair | None:
        """What the trial trains: claimed, overruled by what was enqueued, and by what it used."""
        known: dict[str, Any] = {}
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            known.update(zip(self._search_space, trial.system_attrs.get(_CLAIM, ()), strict=False))
            known.update(trial.system_attrs.get("fixed_params", {}))
        known.update(trial.params)  # all that counts in the end: its objective may use others
        if not all(name in known for name in self._search_space):
            return None
        try:
            first, second = (float(known[name]) for name in self._search_space)
        except (TypeError, ValueError):  # enqueued, and no number
            return None
        return (first, second) if first == first and second == second else None  # nor NaN

    def _look(
        self,
        study: Study,
        *,
        asking: FrozenTrial | None = None,
        ended: tuple[int, TrialState, Sequence[float] | None] | None = None,
    ) -> _View:
        """What the study's trials say now.

        Args:
            study: The study.
            asking: The trial that asks: it does not count itself.
            ended: A trial that is still RUNNING in the storage, with what it is about to be.
        """
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        taken = time.monotonic()
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
                    self._count(self._finished, trial, trial.state, trial.values, sign)
                else:
                    unfinished.append(trial)
            known = self._finished.copy()
        pending: set[Pair] = set()
        nameless: set[int] = set()
        queued: set[int] = set()
        for trial in unfinished:
            if asking is not None and trial.number == asking.number:
                continue
            if ended is not None and trial.number == ended[0]:
                self._count(known, trial, ended[1], ended[2], sign)
                continue
            known.given_up.update(trial.system_attrs.get(_GIVEN_UP, ()))
            if SURPLUS in trial.system_attrs:
                continue  # it does not stand for its pair
            pair = self._pair_of(trial)
            if pair is not None:
                pending.add(pair)
            else:
                (nameless if trial.state == TrialState.RUNNING else queued).add(trial.number)
        blocked = known.blocked | {
            pair
            for pair, failures in known.failures.items()
            if failures.told >= _MAX_FAILURES or failures.untold >= _MAX_DEATHS
        }
        return _View(
            known.observed,
            known.complete,
            pending,
            blocked,
            nameless,
            queued,
            known.given_up,
            taken,
        )

    def _count(
        self,
        known: _Finished,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
        sign: float,
    ) -> None:
        """Add a finished trial to what is known."""
        known.given_up.update(trial.system_attrs.get(_GIVEN_UP, ()))
        pair = self._pair_of(trial)
        if pair is None or (SURPLUS in trial.system_attrs and state != TrialState.COMPLETE):
            return
        if state == TrialState.FAIL and _HANDED_BACK in trial.system_attrs:
            return
        if state == TrialState.FAIL:
            told, untold = known.failures.get(pair, (0, 0))
            itself = trial.system_attrs.get(_FAILED, False)
            known.failures[pair] = _Failures(told + itself, untold + (not itself))
            return
        value = value_of(trial, state, values, self._plan.constraint, sign)
        if value is None:  # pruned before its first report: nothing to learn there
            known.blocked.add(pair)
        else:
            known.observed[pair] = (*known.observed.get(pair, ()), value)
            if state == TrialState.COMPLETE:
                known.complete.add(pair)


def value_of(
    trial: FrozenTrial,
    state: TrialState,
    values: Sequence[float] | None,
    constraint: str | None,
    sign: float,
) -> float | None:
    """Return what a search learns from a finished trial, to be maximised; None for nothing.

    Args:
        trial: The trial.
        state: COMPLETE or PRUNED, which it is or is about to be.
        values: Of a complete trial.
        constraint: The plan's.
        sign: -1 where the study is minimised.
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


def is_surplus(trial: FrozenTrial) -> bool:
    """Whether the trial was asked for when nothing was left to learn."""
    return SURPLUS in trial.system_attrs


def refuse_surplus(trial: Trial | FixedTrial) -> None:
    """End a trial that the sampler could only fill with a repetition, before it costs anything.

    For an objective to call after it has suggested its first ratio, when the sampler was asked.

    Raises:
        TrialPruned: Nothing was left to learn; the message says why.
    """
    if isinstance(trial, FixedTrial):
        return
    attributes = trial.storage.get_trial(trial._trial_id).system_attrs
    if SURPLUS in attributes:
        raise TrialPruned(f"Nothing left to learn: {attributes[SURPLUS]}.")


def hand_back(trial: Trial | FixedTrial) -> None:
    """Let the trial's pair be tried again however often, though the trial ends FAIL.

    For an objective whose worker has to stop, through no fault of the pair.
    """
    if not isinstance(trial, FixedTrial):
        trial.storage.set_trial_system_attr(trial._trial_id, _HANDED_BACK, True)


class _Failures(NamedTuple):
    told: int
    untold: int


class _View(NamedTuple):
    """What a study's trials say at one moment, not before ``taken`` by this process's clock.

    ``complete`` are the pairs with a complete trial, ``nameless`` running trials that have claimed
    nothing yet, ``queued`` those that will have to, ``given_up`` those that some trial has waited
    for in vain.
    """

    observed: dict[Pair, tuple[float, ...]]
    complete: set[Pair]
    pending: set[Pair]
    blocked: set[Pair]
    nameless: set[int]
    queued: set[int]
    given_up: set[int]
    taken: float


@dataclass
class _Finished:
    """What finished trials say. They never change, so each is read once.

    ``read`` holds the very objects that the storage gave, in its order, and None for a trial that
    had not finished: a study that was deleted and made again, or another storage, has others.
    """

    read: list[FrozenTrial | None] = field(default_factory=list)
    observed: dict[Pair, tuple[float, ...]] = field(default_factory=dict)
    complete: set[Pair] = field(default_factory=set)
    failures: dict[Pair, _Failures] = field(default_factory=dict)
    blocked: set[Pair] = field(default_factory=set)
    given_up: set[int] = field(default_factory=set)

    def unread(self, trials: Sequence[FrozenTrial]) -> Sequence[int] | None:
        """Places of the trials that were not read; None if others were read than these."""
        self.read += [None] * (len(trials) - len(self.read))
        # Nearly all were read; that they are the same is found out in C.
        others = map(operator.is_not, trials, self.read)
        places = list(itertools.compress(range(len(trials)), others))
        if len(trials) < len(self.read) or any(self.read[i] is not None for i in places):
            return None
        return places

    def copy(self) -> _Finished:
        """One that more can be added to; it reads no more trials."""
        return replace(
            self,
            read=[],
            observed=dict(self.observed),
            complete=set(self.complete),
            failures=dict(self.failures),
            blocked=set(self.blocked),
            given_up=set(self.given_up),
        )
