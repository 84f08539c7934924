"""An Optuna sampler over :mod:`vit_ratio_opt.search.plan`; its only state is the study."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.logging import get_logger
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.plan import Pair, Plan, Proposal

__all__ = ["SURPLUS", "BinarySearchSampler"]

SURPLUS = "vit_ratio_opt:surplus"
"""System attribute of a trial that was asked for when nothing was left to learn: why."""

_CLAIM = "vit_ratio_opt:claim"

_logger = get_logger(f"optuna.{__name__}")

# A pair that failed this often (out of memory, NaN) would fail again.
_MAX_FAILURES = 3
# How long a trial waits for the claims of older trials, and how much older they may be to be
# waited for: a process that died between asking and claiming must not slow every later trial.
_PATIENCE_SECONDS, _CLAIMING_SECONDS = 2.0, 10.0


class BinarySearchSampler(BaseSampler):
    """Proposes the pairs of a plan: bisection in one or two monotone parameters of known cost.

    Everything is recomputed from the study's trials at each call, so a search goes on in any
    process that opens the storage. COMPLETE trials count with their value, trials PRUNED by an
    Optuna pruner with their last intermediate value, and FAIL gives a pair back. In a search with
    a constraint (:class:`~vit_ratio_opt.search.plan.ToleranceSearch`) both count with the
    constraint's value instead. The order of the proposals involves no randomness.

    *Workers.* Trial n takes the n-th claim: the pair is written into the trial when it is asked
    for, after the claims of all older trials, which are waited for. An older trial that does not
    come forward (its process died in that moment) is assumed to take what the plan gives it. So
    no two running trials have one pair, whoever started them and wherever they run.

    Args:
        search_space: The two parameters of a pair, in the plan's order. The objective must suggest
            them with these distributions.
        plan: :class:`~vit_ratio_opt.search.plan.BudgetSearch` or
            :class:`~vit_ratio_opt.search.plan.ToleranceSearch`.
        independent_sampler: For all other parameters of the objective; random by default.
        seed: Seed of the default independent sampler.

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

    def nothing_left(self, study: Study) -> str | None:
        """Why no trial can add anything, or None while one can."""
        proposal = self._propose(study, study.get_trials(deepcopy=False))
        return proposal.why if proposal.pair is None else None

    def winner(self, study: Study) -> Pair | None:
        """The plan's answer so far: over all trainings of a pair, not the luckiest one."""
        return self._plan.winner(self._observations(study, study.get_trials(deepcopy=False))[0])

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
        """
        self._raise_error_if_multi_objective(study)
        params = {
            name: self.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
            if name not in self._search_space
        }
        asked = [name for name in self._search_space if name in search_space]
        if asked:
            pair = self._claim(study, trial)
            params.update(
                {
                    name: v
                    for name, v in zip(self._search_space, pair, strict=True)
                    if name in asked
                }
            )
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
        """Claims a pair. Optuna asks for parameters only when the objective suggests the first."""
        self._independent.before_trial(study, trial)
        if not study._is_multi_objective() and self._pair_of(trial) is None:
            self._claim(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Stops the running ``optimize`` when nothing is left to learn, and says why."""
        self._independent.after_trial(study, trial, state, values)
        trials = study.get_trials(deepcopy=False)
        # This trial is still RUNNING in the storage; what counts is what it is about to be.
        proposal = self._propose(study, trials, ended=(trial.number, state, values))
        if proposal.pair is None:
            _logger.info(f"Nothing is left to learn: {proposal.why}.")
            # Asked and told by hand, there is no loop to stop.
            with contextlib.suppress(RuntimeError):
                study.stop()

    def reseed_rng(self) -> None:
        """Reseeds the independent sampler; the pairs involve no randomness."""
        self._independent.reseed_rng()

    def _claim(self, study: Study, trial: FrozenTrial) -> Pair:
        """The trial's pair, written into the trial."""
        trials = self._wait_for_claims(study, trial)
        plan = self._restricted_plan(study)
        observed, pending, blocked, nameless = self._observations(study, trials, before=trial)
        # Trials that never came forward take what the plan gave them.
        for _ in range(nameless):
            assumed = plan.propose(observed, pending, blocked).pair
            if assumed is None:
                break
            pending.add(assumed)
        proposal = plan.propose(observed, pending, blocked)
        pair = proposal.pair
        attributes: dict[str, Any] = {}
        if pair is None:
            _logger.warning(
                f"Nothing is left to learn: {proposal.why}; trial {trial.number} repeats the best."
            )
            attributes[SURPLUS] = proposal.why
            pair = plan.winner(observed) or min(pending | blocked, default=None)
            # A plan that gave no pair to a study without any trial has a first one all the same.
            pair = pair or self._corner()
        attributes[_CLAIM] = list(pair)
        # Optuna's own samplers keep what belongs to a trial in the same place.
        for key, value in attributes.items():
            study._storage.set_trial_system_attr(trial._trial_id, key, value)
        return pair

    def _wait_for_claims(self, study: Study, trial: FrozenTrial) -> list[FrozenTrial]:
        """All trials, once the older running ones have claims or are given up."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        pause = 0.001
        while True:
            trials = study.get_trials(deepcopy=False)
            if time.monotonic() >= deadline or not any(
                other.number < trial.number
                and other.state == TrialState.RUNNING
                and self._pair_of(other) is None
                and _recent(other, trial)
                for other in trials
            ):
                return trials
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def _propose(
        self,
        study: Study,
        trials: Sequence[FrozenTrial],
        ended: tuple[int, TrialState, Sequence[float] | None] | None = None,
    ) -> Proposal:
        observed, pending, blocked, _ = self._observations(study, trials, ended=ended)
        return self._restricted_plan(study).propose(observed, pending, blocked)

    def _restricted_plan(self, study: Study) -> Plan:
        """The plan along what an outer PartialFixedSampler fixes."""
        fixed = getattr(study.sampler, "_fixed_params", {})
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
        first, second = (float(known[name]) for name in self._search_space)
        return first, second

    def _observations(
        self,
        study: Study,
        trials: Sequence[FrozenTrial],
        *,
        before: FrozenTrial | None = None,
        ended: tuple[int, TrialState, Sequence[float] | None] | None = None,
    ) -> tuple[dict[Pair, list[float]], set[Pair], set[Pair], int]:
        """Values by pair, higher is better; pending and blocked pairs; running trials without one.

        Args:
            study: Of the trials.
            trials: All of them.
            before: The trial that asks: it and running ones that came later do not count.
            ended: A trial that is still RUNNING in the storage, with what it is about to be.
        """
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        observed: defaultdict[Pair, list[float]] = defaultdict(list)
        failures: Counter[Pair] = Counter()
        pending: set[Pair] = set()
        blocked: set[Pair] = set()
        nameless = 0
        for trial in trials:
            if before is not None and trial.number == before.number:
                continue
            state, values = trial.state, trial.values
            if ended is not None and trial.number == ended[0]:
                _, state, values = ended
            if SURPLUS in trial.system_attrs and state != TrialState.COMPLETE:
                continue  # it never stood for its pair
            pair = self._pair_of(trial)
            if pair is None:
                nameless += state == TrialState.RUNNING and (
                    before is None or trial.number < before.number
                )
            elif state in (TrialState.RUNNING, TrialState.WAITING):
                pending.add(pair)
            elif state == TrialState.FAIL:
                failures[pair] += 1
            else:
                value = self._value(trial, state, values, sign)
                if value is None:  # pruned before its first report: nothing to learn there
                    blocked.add(pair)
                else:
                    observed[pair].append(value)
        blocked |= {pair for pair, count in failures.items() if count >= _MAX_FAILURES}
        return dict(observed), pending, blocked, nameless

    def _value(
        self,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
        sign: float,
    ) -> float | None:
        if self._plan.constraint is not None:
            held = trial.constraints.get(self._plan.constraint)
            return None if held is None else -held
        if state == TrialState.COMPLETE and values is not None:
            return sign * values[0]
        if trial.last_step is None:
            return None
        last = trial.intermediate_values[trial.last_step]
        return sign * last if last == last else None  # not NaN


def _recent(other: FrozenTrial, trial: FrozenTrial) -> bool:
    """Whether ``other`` began so shortly before ``trial`` that it may still be claiming."""
    if other.datetime_start is None or trial.datetime_start is None:
        return False
    age = trial.datetime_start - other.datetime_start
    return abs(age) < timedelta(seconds=_CLAIMING_SECONDS)
