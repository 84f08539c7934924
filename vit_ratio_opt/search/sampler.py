"""An Optuna sampler over any :class:`~vit_ratio_opt.search.plan.Plan`; it keeps no state."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.logging import get_logger
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt._compat import enqueued_params, fixed_params
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.claims import (
    CLAIM,
    FAILED,
    SURPLUS,
    TIMED_OUT,
    Ending,
    TrialReader,
    View,
)
from vit_ratio_opt.search.direction import Direction, check_directions
from vit_ratio_opt.search.plan import Pair, Plan, Proposal

__all__ = ["PlanSampler"]

_logger = get_logger(f"optuna.{__name__}")


class PlanSampler(BaseSampler):
    """Sampler that proposes the pairs of a plan: two monotone parameters of known cost.

    Everything comes from the study's trials at each call, so a search continues in any process
    that opens the storage. COMPLETE trials count with their value, trials PRUNED by an Optuna
    pruner with their last intermediate value, and FAIL requeues a pair. In a search with a
    constraint (:class:`~vit_ratio_opt.search.tolerance.ToleranceSearch`), COMPLETE and PRUNED
    trials count with the constraint's value instead. Proposals involve no randomness.

    *Workers.* Trial n makes the n-th claim: the pair is written into the trial when its first
    parameter is suggested, after the claims of all older running trials, which are waited for. An
    older trial that claims nothing for ``claim_seconds`` (its process died in that moment, or is
    slow) has timed out for all workers; it claims late if it comes back. A trial that has claimed
    while another one was out of turn reads the trials once more, and gives way to a claim of the
    same pair. So no two running trials have one pair, on whatever machines they run.

    Args:
        search_space: The two parameters of a pair, in the plan's order. The objective must suggest
            them with these distributions.
        plan: :class:`~vit_ratio_opt.search.budget.BudgetSearch`,
            :class:`~vit_ratio_opt.search.tolerance.ToleranceSearch`, or a custom plan.
        independent_sampler: Sampler of all other parameters of the objective; random by default.
        seed: Random seed of the default independent sampler.
        n_trials: Number of trained trials at the end of the study. An eighth of them, rounded
            down, is kept to confirm the answer: the last one of eight, the last two of sixteen.
            None while the number is unknown.
        claim_seconds: Seconds to wait for an older running trial to claim a pair.

    Raises:
        InputError: The search space does not have two parameters, or not the plan's range.

    Example:
        >>> curve = [(i / 10, 1 - i / 10) for i in range(11)]
        >>> space = {name: FloatDistribution(0, 1) for name in ("x", "y")}
        >>> study = optuna.create_study(sampler=PlanSampler(space, BudgetSearch(curve)))
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
        claim_seconds: float = 2.0,
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
        self.logs_end = True  # a caller that says it itself sets False
        self._claim_seconds = claim_seconds
        self._trials = TrialReader(list(search_space), plan.constraint)

    @property
    def plan(self) -> Plan:
        """Return the plan whose pairs are proposed."""
        return self._plan

    def next_proposal(self, study: Study) -> Proposal:
        """Return the pair that a trial beginning now would try, and why; nothing is claimed."""
        return self._ask(self._restricted_plan(study), self._trials.read(study))

    def nothing_left(self, study: Study) -> str | None:
        """Return why no trial can add anything, or None while one can."""
        proposal = self.next_proposal(study)
        return proposal.why if proposal.pair is None else None

    def answer(self, study: Study) -> Pair | None:
        """Return the pair of the plan's answer so far, or None without an answer."""
        view = self._trials.read(study)
        answer = self._plan.answer(view.observed, complete=view.complete)
        return None if answer is None else answer.pair

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the two parameters of a pair, from the first trial on."""
        return dict(self._search_space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the next pair of the plan; other parameters come from the independent sampler.

        Raises:
            ValueError: The study has another number of objectives than the plan.
            InputError: Its direction is not the plan's.
        """
        self._check_objectives(study)
        self._check_study(study, trial)
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
        """Return a value for a parameter that is not part of the pair.

        Raises:
            ValueError: The study has another number of objectives than the plan.
        """
        self._check_objectives(study)
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Call the independent sampler's ``before_trial``."""
        self._independent.before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Stop the running ``optimize`` when nothing is left to learn, and log why."""
        self._independent.after_trial(study, trial, state, values)
        if state == TrialState.FAIL:
            study._storage.set_trial_system_attr(trial._trial_id, FAILED, True)
        if len(study.directions) != self._objectives:  # its trials were refused
            return
        # In the storage this trial is still RUNNING.
        view = self._trials.read(study, ending=Ending(trial.number, state, values))
        proposal = self._ask(self._restricted_plan(study), view)
        if proposal.pair is None:
            if self.logs_end:
                _logger.info(f"Nothing is left to learn: {proposal.why}.")
            # With ask and tell there is no loop to stop.
            with contextlib.suppress(RuntimeError):
                study.stop()

    def reseed_rng(self) -> None:
        """Reseed the independent sampler; pairs involve no randomness."""
        self._independent.reseed_rng()

    def _check_study(self, study: Study, trial: FrozenTrial) -> None:
        """Refuse a study that would take the worst pair for the best.

        A plan with a constraint minimises a cost. A plan that knows the dense model's value knows
        the direction of the metric; without it, either direction is possible.
        """
        wanted: Direction | None = None
        if self._plan.constraint is not None:
            wanted = "minimize"
        elif getattr(self._plan, "dense", None) is not None:
            wanted = "maximize" if getattr(self._plan, "larger_is_better", True) else "minimize"
        if wanted is not None:
            costs: list[Direction] = ["minimize"] * (self._objectives - 1)
            check_directions(study, [wanted, *costs])

    def _claim(self, study: Study, trial: FrozenTrial) -> Pair:
        """Choose the trial's pair, write it into the trial, and return it."""
        plan = self._restricted_plan(study, trial)
        gave_way = False
        while True:
            view, timed_out = self._wait_for_claims(study, trial)
            proposal = self._ask(plan, view)
            attributes: dict[str, Any] = {TIMED_OUT: timed_out} if timed_out else {}
            pair = proposal.pair
            if pair is None:
                _logger.warning(
                    f"Nothing is left to learn: {proposal.why}; trial {trial.number} repeats the "
                    "best."
                )
                attributes[SURPLUS] = proposal.why  # instead of a claim
                pair = self._repetition(plan, view)
            else:
                attributes[CLAIM] = list(pair)
            # Optuna's own samplers keep what belongs to a trial in the same place.
            for key, value in attributes.items():
                study._storage.set_trial_system_attr(trial._trial_id, key, value)
            if SURPLUS in attributes:
                return pair
            if not gave_way and self._is_in_turn(trial, view):
                return pair
            # Two trials that read the same, because one had timed out but came, may have claimed
            # the same pair. The one that wrote last sees it here, and takes another pair.
            if gave_way:
                # A trial that has read the claim withdrawn here may be about to claim this pair,
                # and will not read again.
                now, _ = self._wait_for_claims(study, trial, younger=True)
            else:
                now = self._trials.read(study, asking=trial)
            if pair not in now.pending and now.observed.get(pair) == view.observed.get(pair):
                return pair
            gave_way = True
            time.sleep(0.01 * (1 + trial.number % 8))  # so that both do not collide again

    def _is_in_turn(self, trial: FrozenTrial, view: View) -> bool:
        """Return whether no other trial can have claimed the pair of ``trial`` after ``view``.

        Such a trial has read the study before this claim was written, without waiting for it. It
        was RUNNING at ``view`` without a claim; or it began later, after this trial had timed out
        for a trial at ``view`` or after the time to wait. Only a computer that is suspended at
        this moment together with its clock is not noticed.
        """
        others = view.unclaimed or view.queued or trial.number in view.timed_out
        return not others and time.monotonic() - view.taken < self._claim_seconds

    def _wait_for_claims(
        self, study: Study, trial: FrozenTrial, *, younger: bool = False
    ) -> tuple[View, list[int]]:
        """Wait until every older RUNNING trial has claimed a pair.

        Clocks of two machines may differ, so only this process's own is used.

        Returns:
            The view, and the trials that timed out.
        """
        awaited: set[int] = set()
        deadline, pause = 0.0, 0.002
        while True:
            view = self._trials.read(study, asking=trial)
            missing = view.unclaimed - view.timed_out
            if not younger:
                missing = {number for number in missing if number < trial.number}
            if not missing:
                return view, []
            if not awaited or missing < awaited:  # one of them has claimed: the queue moves
                awaited, deadline = missing, time.monotonic() + self._claim_seconds
            if view.taken >= deadline:  # they were still missing then
                return view, sorted(missing)
            time.sleep(pause)
            # The next one in turn reads often; the others leave the database time for the claims.
            pause = min(2 * pause, 0.02 * len(missing), self._claim_seconds / 4)

    def _ask(self, plan: Plan, view: View) -> Proposal:
        is_last = False
        if self.n_trials is not None:
            begun = sum(map(len, view.observed.values())) + len(view.pending)
            is_last = self.n_trials - begun <= self.n_trials // 8
        return plan.propose(view.observed, view.pending, view.blocked, confirm=is_last)

    def _restricted_plan(self, study: Study, trial: FrozenTrial | None = None) -> Plan:
        """Return the plan with the ratio that a PartialFixedSampler or an enqueued trial fixes."""
        fixed = fixed_params(study.sampler)
        if trial is not None:
            fixed.update(enqueued_params(trial.system_attrs))
        for axis, name in enumerate(self._search_space):
            if name in fixed:
                return self._plan.fix_ratio(axis, float(fixed[name]))
        return self._plan

    def _repetition(self, plan: Plan, view: View) -> Pair:
        """Return a pair for a trial that has nothing left to learn."""
        answer = plan.answer(view.observed)
        if answer is not None:
            return answer.pair
        others = view.pending | view.blocked
        if others:
            return min(others)
        # A plan that proposes nothing in a study without any trial.
        first, second = (distribution.low for distribution in self._search_space.values())
        return first, second

    @property
    def _objectives(self) -> int:
        """Return the number of objectives: with the cost, two of a search of the frontier."""
        return int(getattr(self._plan, "objectives", 1))

    def _check_objectives(self, study: Study) -> None:
        wanted, found = self._objectives, len(study.directions)
        if found == wanted:
            return
        if wanted > 1:
            first = "maximize" if getattr(self._plan, "larger_is_better", True) else "minimize"
            raise ValueError(
                f"A search of the frontier has {wanted} objectives, the metric and the cost, but "
                f"study {study.study_name!r} has {found}: create it with "
                f"`directions={[first, 'minimize']!r}`."
            )
        raise ValueError(
            f"A search has one objective, but study {study.study_name!r} has {found}: create it "
            "with `direction`, not `directions`."
        )
