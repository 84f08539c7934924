"""Prune within a custom objective, in Optuna's usual style."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import BaseTrial

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.copies import copy_for_training
from vit_ratio_opt.models.shape import check_all_tokens, shape_of
from vit_ratio_opt.pruning.options import CalibrationOptions, Pruning
from vit_ratio_opt.pruning.pruner import Batch, ModelPruner
from vit_ratio_opt.records.labels import CostRecord
from vit_ratio_opt.records.study import write_study
from vit_ratio_opt.records.trial import write_trial
from vit_ratio_opt.records.typed import shorten_repr
from vit_ratio_opt.runs.outcome import record_cost, record_sizes, trial_value
from vit_ratio_opt.runs.suggest import suggest_pair
from vit_ratio_opt.search.direction import check_directions
from vit_ratio_opt.search.limits import Budget, Frontier, Tolerance, directions_of
from vit_ratio_opt.space.costs import MACS, Cost
from vit_ratio_opt.space.metric import ACCURACY, Metric

__all__ = ["Pruner"]


class Pruner(ModelPruner):
    """Prune a dense ViT in the trials of a custom objective.

    Args:
        dense: The dense, fine-tuned ViT. It is copied; the copy is in float32 and on the same
            device. Its frozen parts are frozen in the pruned models too.
        images: Calibration images: batches ``(batch, channels, height, width)``, normalised as
            for training, on the model's device, alone or with their labels.
        pruning: Weights, patches or both; :class:`~vit_ratio_opt.Structural` by default.
        cost: Cost that a budget limits; multiply-adds by default.
        calibration: Number of images of the calibration, folder of its cache, and meaning of the
            model's outputs.
        seed: Random seed of the calibration.

    Raises:
        UnsupportedModelError: The model cannot be pruned.

    Example:
        >>> pruner = vro.Pruner(dense, images)
        >>> def objective(trial):
        ...     model = pruner.suggest(trial, vro.Budget(0.6))
        ...     return train_and_validate(model, lr=trial.suggest_float("lr", 1e-5, 1e-3))
    """

    def __init__(
        self,
        dense: ViT,
        images: Iterable[Batch] | Callable[[], Iterable[Batch]],
        *,
        pruning: Pruning | None = None,
        cost: Cost = MACS,
        calibration: CalibrationOptions | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            copy_for_training(check_all_tokens(dense)).eval(),
            images,
            pruning=pruning,
            cost=cost,
            calibration=calibration,
            seed=seed,
        )

    def suggest(
        self,
        trial: BaseTrial,
        limit: Budget | Tolerance | Frontier,
        *,
        metric: Metric | None = None,
    ) -> ViT:
        """Suggest both ratios of a trial and return the pruned, untrained model.

        The cost of the model is recorded in the trial, so that reports can show it.

        Args:
            trial: The trial, whose sampler proposes the pair.
            limit: Limit of the search. A pair over a budget ends the trial before any pruning.
            metric: Metric of the objective; that of the sampler, or else an accuracy, by default.

        Raises:
            InputError: The direction of the study is not that of the limit and the metric.
            TrialPruned: The pair is over the budget or not in the space, or the sampler has
                nothing left to learn.
        """
        if isinstance(trial, optuna.Trial):
            check_directions(trial.study, directions_of(limit, _metric_of(trial, metric)))
            self._describe_study(trial.study)
        suggestion = suggest_pair(trial, self.space, limit)
        model = self.prune(suggestion.pair)
        shape = shape_of(model)
        record_sizes(trial, shape)
        record_cost(trial, suggestion, self.space, dense=self.shape, pruned=shape)
        return model

    def result(
        self,
        trial: BaseTrial,
        limit: Budget | Tolerance | Frontier,
        value: float,
        dense_value: float,
        *,
        metric: Metric | None = None,
    ) -> float | tuple[float, float]:
        """Record the metric of a trained model and return the value of the trial.

        Within a budget that is the metric itself. With a tolerance it is the share of the cost
        that is left, in a study that is minimised. For a frontier it is both.

        Args:
            trial: Trial whose model was trained.
            limit: The limit of the search.
            value: Metric of the trained model, the accuracy in per cent by default.
            dense_value: Metric of the dense model on the same images.
            metric: Metric of the objective; that of the sampler, or else an accuracy, by default.

        Raises:
            TrialPruned: The model loses more than the tolerance.
        """
        metric = _metric_of(trial, metric)
        loss = metric.loss(dense_value, value)
        write_trial(trial, metric=metric, accuracy=value, accuracy_drop=loss)
        attributes = trial.user_attrs
        cost_ratio = attributes.get("cost_ratio", attributes["macs_ratio"])
        return trial_value(trial, limit, metric, value=value, loss=loss, cost_ratio=cost_ratio)

    def _describe_study(self, study: Study) -> None:
        """Record the sizes and costs of the dense model in the study, once.

        Raises:
            InputError: The study prunes to multiples of another number.
        """
        stored = study.user_attrs
        if "dense" in stored:
            self._check_round_to(study.study_name, stored)
            return
        shape = self.shape
        sizes = {"blocks": shape.block_sizes, "tokens": shape.tokens}
        write_study(
            study,
            cost=asdict(CostRecord.of(self.space.cost)),
            dense={"macs": shape.macs, "params": shape.params, **sizes},
            round_to=self.round_to,
        )

    def _check_round_to(self, study_name: str, attributes: Mapping[str, Any]) -> None:
        """Refuse a study of other sizes: earlier versions stored none, and had 1 by default."""
        earlier = self.round_to if self.is_round_to_given else 1
        stored = attributes.get("round_to", earlier)
        if stored != self.round_to:
            raise InputError(
                f"Study {study_name!r} prunes to multiples of {shorten_repr(stored)}, but "
                f"here they are of {self.round_to}: give that number, as in "
                "`pruning=vro.Structural(round_to=...)`."
            )


def _metric_of(trial: BaseTrial, given: Metric | None) -> Metric:
    """Return the given metric, that of the study's sampler, or the accuracy."""
    if given is None and isinstance(trial, optuna.Trial):
        given = getattr(trial.study.sampler, "metric", None)
    return given or ACCURACY
