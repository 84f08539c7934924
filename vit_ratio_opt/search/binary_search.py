"""The sampler of the two pruning ratios, for studies in Optuna's own style."""

from __future__ import annotations

from typing import Any

import numpy as np
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.limits import Budget, Frontier, Limit, plan_of
from vit_ratio_opt.search.noise import UNKNOWN_NOISE, Noise
from vit_ratio_opt.search.plan import Plan
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.search.space import ratio_distributions
from vit_ratio_opt.space.curve import cost_saved
from vit_ratio_opt.space.metric import ACCURACY, Metric
from vit_ratio_opt.space.pairs import PairSpace
from vit_ratio_opt.utils.versions import installed_versions

__all__ = ["BinarySearchSampler"]

_CONFIRMATIONS = 1  # times that the answer is trained again before the search ends


class BinarySearchSampler(PlanSampler):
    """Search MHSA ratio and FFN ratio within a limit; sample other parameters as usual.

    Any number of processes may run trials of one study, and a study resumes where it stopped: all
    state is in the study's trials. The first trial writes into the study what a reader needs to
    find and show its answer: the user attributes ``plan``, ``limit``, ``saved`` and ``versions``.

    Args:
        space: Space of the dense model, such as ``pruner.space``.
        limit: :class:`~vit_ratio_opt.Budget` in a study of the metric;
            :class:`~vit_ratio_opt.Tolerance` in one that minimises the cost, whose trials set the
            constraint ``metric.constraint`` to the loss minus the tolerance;
            :class:`~vit_ratio_opt.Frontier` in one of both, metric and cost; or a custom limit or
            plan.
        metric: Name, unit and direction of the values; the accuracy in per cent by default.
        dense: Metric of the dense model. A frontier needs it; other limits do without.
        noise: Standard deviation of the metric over seeds, in its unit; by default that of the
            metric, or a guess that the trainings of a pair correct: half a percentage point
            within a budget or along a frontier, a quarter of a tolerance. Values without ``"%"``
            are taken as exact, but for a tolerance. What other parameters change, such as a
            learning rate, is noise too.
        independent_sampler: Sampler of all other parameters; random by default.
        seed: Random seed of the default independent sampler.
        n_trials: Number of trained trials at the end of the study, an eighth of which are kept
            to confirm the answer; None while the number is unknown.

    Raises:
        InputError: The limit cannot be kept in the space, or an argument is out of its range.

    Example:
        >>> sampler = BinarySearchSampler(pruner.space, Budget(0.6))
        >>> study = optuna.create_study(direction="maximize", sampler=sampler)
    """

    def __init__(
        self,
        space: PairSpace,
        limit: Limit | Plan,
        *,
        metric: Metric | None = None,
        dense: float | None = None,
        noise: float | Noise | None = None,
        independent_sampler: BaseSampler | None = None,
        seed: int | None = None,
        n_trials: int | None = None,
    ) -> None:
        known = metric or ACCURACY
        noise = known.noise if noise is None else noise
        if noise is None and isinstance(limit, (Budget, Frontier)) and known.unit == "%":
            noise = Noise(UNKNOWN_NOISE, is_known=False, may_be_fractions=metric is None)
            if dense is not None:
                noise = noise.of_values(np.array([dense]))
        plan = plan_of(
            limit, space, noise=noise, confirmations=_CONFIRMATIONS, dense=dense, metric=known
        )
        super().__init__(
            ratio_distributions(space),
            plan,
            independent_sampler=independent_sampler,
            seed=seed,
            n_trials=n_trials,
        )
        self._limit = _limit_json(limit, space)
        self.metric = metric
        self._space = space
        self._described: tuple[int, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the study that was described last."""
        return vars(self) | {"_described": None}

    def _check_study(self, study: Study, trial: FrozenTrial) -> None:
        super()._check_study(study, trial)
        key = id(study._storage), study._study_id
        # A study that was deleted and created again may have the same id, and begins with trial 0.
        if self._described != key or trial.number == 0:
            self._describe(study)
            self._described = key

    def _describe(self, study: Study) -> None:
        """Write the attributes that a reader of the study needs, unless the study has them.

        Processes that write at the same time write equal values. ``plan`` is written last.

        Raises:
            InputError: The study has another limit.
        """
        stored = study.user_attrs
        limit = stored.get("limit", self._limit)
        if limit != self._limit:
            raise InputError(
                f"Study {study.study_name!r} has the limit {limit}, but its sampler "
                f"{self._limit}: use another study name, or the limit of the study."
            )
        plan_json = getattr(self.plan, "to_json", None)
        if "plan" in stored or plan_json is None:
            return
        study.set_user_attr("limit", self._limit)
        study.set_user_attr("versions", installed_versions())
        study.set_user_attr("saved", cost_saved(self._space))
        if self.metric is not None and "metric" not in stored:
            study.set_user_attr("metric", self.metric.to_json())
        study.set_user_attr("plan", plan_json())


def _limit_json(limit: Limit | Plan, space: PairSpace) -> dict[str, Any]:
    """Return the limit, the name of its cost and the dense model's MACs as JSON values."""
    to_json = getattr(limit, "to_json", None)
    is_plan = hasattr(limit, "propose")
    known = to_json() if to_json is not None and not is_plan else {"other": type(limit).__name__}
    return {**known, "cost": space.cost.name, "macs": space.macs}
