"""An Optuna sampler over :mod:`vit_ratio_opt.search.plan`; its only state is the study."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.logging import get_logger
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.plan import next_position

__all__ = ["BinarySearchSampler"]

_logger = get_logger(f"optuna.{__name__}")

# A pair that failed this often (out of memory, NaN) would fail again.
_MAX_FAILURES = 3


class BinarySearchSampler(BaseSampler):
    """Finds the best of a curve of pairs by bracketing and halving.

    Everything is recomputed from the study's trials at each call, so a search goes on in any
    process that opens the storage. COMPLETE trials count with their value, trials PRUNED by an
    Optuna pruner with their last intermediate value, RUNNING ones keep their pair to themselves,
    and FAIL gives it back. The order of the proposals involves no randomness.

    Args:
        search_space: The two parameters that make a pair, in the curve's order. The objective must
            suggest them with these distributions.
        curve: Pairs of values, the first parameter rising and the second falling, along which the
            objective is close to unimodal: :func:`vit_ratio_opt.geometry.budget_curve`, or any
            other trade-off between two monotone parameters.
        independent_sampler: For all other parameters of the objective; random by default.
        seed: Seed of the default independent sampler.

    Raises:
        InputError: The search space does not have two parameters, or the curve lies outside it or
            is out of order.

    Example:
        >>> curve = [(i / 10, 1 - i / 10) for i in range(11)]
        >>> space = {name: FloatDistribution(0, 1) for name in ("x", "y")}
        >>> study = optuna.create_study(sampler=BinarySearchSampler(space, curve))
        >>> study.optimize(lambda t: (t.suggest_float("x", 0, 1) - 0.3) ** 2
        ...                          + 0 * t.suggest_float("y", 0, 1), n_trials=6)
    """

    def __init__(
        self,
        search_space: Mapping[str, FloatDistribution],
        curve: Sequence[tuple[float, float]],
        *,
        independent_sampler: BaseSampler | None = None,
        seed: int | None = None,
    ) -> None:
        if len(search_space) != 2:
            raise InputError(
                f"`search_space` must have the two parameters of a pair, but has "
                f"{list(search_space)!r}."
            )
        if not curve:
            raise InputError("`curve` must have at least one pair, but is empty.")
        for pair in curve:
            for value, (name, dist) in zip(pair, search_space.items(), strict=True):
                if not dist.low <= value <= dist.high:
                    raise InputError(
                        f"`{name}` must be in [{dist.low}, {dist.high}] all along the curve, but "
                        f"got {value!r}."
                    )
        for (first, second), (next_first, next_second) in itertools.pairwise(curve):
            if not (first < next_first and second >= next_second):
                raise InputError(
                    "Along `curve` the first parameter must rise and the second fall, but "
                    f"{(first, second)} is followed by {(next_first, next_second)}."
                )
        self._search_space = dict(search_space)
        self._curve = [(float(first), float(second)) for first, second in curve]
        self._independent = independent_sampler or RandomSampler(seed=seed)
        # Where the curve crosses the diagonal. For a budget's curve this pair has the heads of the
        # fixed-ratio baseline and no more neurons removed, so the first trial is at least its
        # equal.
        crossing = (i for i, (first, second) in enumerate(self._curve) if first >= second)
        self._start = next(crossing, len(self._curve) - 1)

    def is_exhausted(self, study: Study) -> bool:
        """Whether every pair of the curve has been tried, so that no trial can add anything."""
        return self._next(study) is None

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
        # PartialFixedSampler may have taken one of ours away; then a curve has no meaning.
        if all(name in search_space for name in self._search_space):
            position = self._next(study, asking=trial.number)
            if position is None:
                position = self._best(study, asking=trial.number)
                _logger.warning(
                    f"All {len(self._curve)} pairs of the curve have been tried; trial "
                    f"{trial.number} repeats the best of them."
                )
            params.update(zip(self._search_space, self._curve[position], strict=True))
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
        """Stops the running ``optimize`` when this trial was the curve's last."""
        self._independent.after_trial(study, trial, state, values)
        # This trial is still RUNNING in the storage; what counts is what it is about to be.
        if self._next(study, ended=(trial.number, state)) is None:
            _logger.info(f"All {len(self._curve)} pairs of the curve have been tried: stopping.")
            # Asked and told by hand, there is no loop to stop.
            with contextlib.suppress(RuntimeError):
                study.stop()

    def reseed_rng(self) -> None:
        """Reseeds the independent sampler; the pairs involve no randomness."""
        self._independent.reseed_rng()

    def _next(
        self,
        study: Study,
        asking: int | None = None,
        ended: tuple[int, TrialState] | None = None,
    ) -> int | None:
        observed, taken = self._observations(study, asking, ended)
        return next_position(len(self._curve), observed, taken=taken, start=self._start)

    def _best(self, study: Study, asking: int) -> int:
        observed, _ = self._observations(study, asking)
        return max(observed, key=lambda position: observed[position], default=self._start)

    def _observations(
        self,
        study: Study,
        asking: int | None,
        ended: tuple[int, TrialState] | None = None,
    ) -> tuple[dict[int, float], set[int]]:
        """Mean value by position, higher is better, and the positions not to be proposed."""
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        positions: dict[tuple[float | None, ...], int] = {}
        for index, (first, second) in enumerate(self._curve):
            # A trial that has suggested only its first parameter so far is known by that.
            positions[first, None] = positions[first, second] = index
        values: defaultdict[int, list[float]] = defaultdict(list)
        failures: Counter[int] = Counter()
        taken: set[int] = set()
        for trial in study.get_trials(deepcopy=False):
            if trial.number == asking:
                continue
            pair = tuple(trial.params.get(name) for name in self._search_space)
            position = positions.get(pair)
            if position is None:  # off the curve: enqueued or imported
                continue
            failed = ended == (trial.number, TrialState.FAIL)
            if trial.state in (TrialState.RUNNING, TrialState.WAITING) and not failed:
                taken.add(position)
            elif failed or trial.state == TrialState.FAIL:
                failures[position] += 1
            elif trial.state == TrialState.COMPLETE:
                values[position].append(sign * trial.values[0])
            else:
                if trial.last_step is not None:
                    last = trial.intermediate_values[trial.last_step]
                    values[position] += [] if math.isnan(last) else [sign * last]
                taken.add(position)  # pruned before its first report: nothing to learn there
        taken |= {position for position, count in failures.items() if count >= _MAX_FAILURES}
        return {position: sum(v) / len(v) for position, v in values.items() if v}, taken
