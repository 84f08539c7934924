"""What the study of a search stores, how it is resumed, and how its pairs are planned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, cast

from optuna.study import Study

from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.classifier import blind, gives_classes
from vit_ratio_opt.models.create import source_of
from vit_ratio_opt.models.device import Precision
from vit_ratio_opt.records.labels import CostRecord
from vit_ratio_opt.records.settings import StudySettings
from vit_ratio_opt.records.study import StudyRecord
from vit_ratio_opt.runs.images import other_batches
from vit_ratio_opt.runs.parts import SearchParts
from vit_ratio_opt.runs.precision import choose_precisions
from vit_ratio_opt.runs.screening import forecast_path, likely_path, screen
from vit_ratio_opt.runs.task import check_settings, screened_best
from vit_ratio_opt.search.binary_search import BinarySearchSampler
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.forecast import Forecast
from vit_ratio_opt.search.forecasting import forecast_of, worst_loss
from vit_ratio_opt.search.frontier import FrontierSearch
from vit_ratio_opt.search.limits import Budget, Frontier, Tolerance
from vit_ratio_opt.search.noise import UNKNOWN_NOISE, Noise, accuracy_noise, seed_noise
from vit_ratio_opt.search.tolerance import ToleranceSearch
from vit_ratio_opt.space.costs import Cost, Latency
from vit_ratio_opt.space.curve import budget_curve, cost_saved, smallest_cost_ratio
from vit_ratio_opt.space.metric import ACCURACY
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.training.progress import show_waiting
from vit_ratio_opt.training.trainer import ImageTrainer
from vit_ratio_opt.utils.versions import installed_versions

__all__ = ["SearchTask"]

# Share of the cost of the pruned model whose standard error stands for those near a tolerance.
_NEAR_TOLERANCE = 0.8
# Least standard error, in points: where pruning alone changes nothing, a training may.
_LEAST_ERROR = 0.005


class SearchTask(SearchParts):
    """A search as :mod:`vit_ratio_opt.runs.creation` needs it: a ``StudyTask``."""

    def _connect(self) -> None:
        super()._connect()
        self.objective.admit = self._admit
        self.objective.describe = self.describe

    @property
    def value_names(self) -> list[str]:
        """Return the name of each value of a trial, for optuna-dashboard."""
        cost, metric = f"{self.space.cost.word} of dense", self.trainer.metric.name
        if isinstance(self.limit, Tolerance):
            return [cost]
        return [metric, cost] if isinstance(self.limit, Frontier) else [metric]

    @property
    def settings(self) -> StudySettings:
        """Return everything on which the results of trials depend, as a study stores it."""
        is_built_in = isinstance(self.trainer, ImageTrainer)
        identity = self.trainer.identity()
        options, limit = self.options, self.limit
        return StudySettings(
            strategy="fixed" if options.fixed_ratio else "searched",
            budget=limit.share if isinstance(limit, Budget) else None,
            tolerance=limit.points if isinstance(limit, Tolerance) else None,
            confidence=getattr(limit, "confidence", Tolerance.confidence),
            frontier=limit.to_json()["frontier"] if isinstance(limit, Frontier) else None,
            noise=options.noise,
            confirmations=options.confirmations,
            iterative=options.iterative,
            **self.pruner.identity(),
            **(identity if is_built_in else {"trainer": identity}),
        )

    @property
    def origin(self) -> dict[str, Any]:
        """Return JSON values that :func:`vit_ratio_opt.load_search` needs beside the settings."""
        folder = self.journal.checkpoints
        return {
            "model": source_of(self.dense),
            "data": {} if self.data is None else self.data.source,
            "checkpoints": None if folder is None else str(folder.resolve()),
            "artifacts": self.journal.artifacts,
        }

    def describe(self, pair: RatioPair, model: ViT, accuracy: float) -> dict[str, Any]:
        """Return the manifest of a pruned model, as JSON values."""
        dense, settings = self.pruner.shape, self.settings.to_json()
        del settings["architecture"]  # a file has its own, of the pruned model
        described = {
            **self.objective.describe_model(pair, model, accuracy),
            "dense": {
                "macs": dense.macs, "params": dense.params, "val_accuracy": self.dense_accuracy,
            },
        }  # fmt: skip
        if self.trainer.metric != ACCURACY:
            described["metric"] = self.trainer.metric.to_json()
        if self.data is not None and self.data.task == "features":
            described["outputs"] = "logits" if gives_classes(self.dense) else "features"
        if self.data is not None:
            described |= {
                "classes": self.data.classes,
                "mean": self.data.mean,
                "std": self.data.std,
                # How to load the same splits elsewhere; the place of the images is left open.
                "images": {
                    key: None if key == "root" else value
                    for key, value in self.data.source.items()
                },
            }
        return {**described, **settings}

    def check(self) -> None:
        """Raise an InputError if models cannot be kept here."""
        self.objective.check()

    def settings_for(self, stored: StudySettings) -> StudySettings:
        """Return the settings that this search has in a study with stored ones.

        The study decides the precisions and the number of which sizes are multiples where none
        was given, the learning rate where it is ``"auto"``, and which of the two hashes of the
        validation split is compared.
        """
        changes: dict[str, Any] = {}
        is_given = getattr(self.trainer, "is_precision_given", True)
        if stored.precision is not None and not is_given:
            changes["precision"] = stored.precision
            changes["training_precision"] = stored.training_precision
        if not self.pruner.is_round_to_given:
            changes["round_to"] = stored.round_to
        if self.options.calibration.precision is None:
            changes["calibration_precision"] = stored.calibration_precision
        own, theirs = self.settings.recipe or {}, stored.recipe or {}
        if own.get("lr") == "auto" and "lr" in theirs:
            changes["recipe"] = {**own, "lr": theirs["lr"]}
        hashed = stored.validation
        if self.data is not None and hashed is not None and self.data.has_fingerprint(hashed):
            changes["validation"] = hashed
        return replace(self.settings, **changes)

    def new_attributes(self) -> dict[str, Any]:
        """Compute all attributes that a new study stores, in the order of writing."""
        shape, cost, metric = self.pruner.shape, self.space.cost, self.trainer.metric
        speedups = self._choose_precisions()
        self._follow_precision()
        begins = self.first_pairs()
        attributes = {
            "settings": self.settings.to_json(),
            "versions": installed_versions(),
            "device": getattr(self.trainer, "device_name", str(self.pruner.device)),
            "saved": cost_saved(self.space),
            "cost": asdict(CostRecord.of(cost)),
            "metric": metric.to_json(),
            "origin": self.origin,
            **begins,
            "dense": {
                "macs": shape.macs,
                "params": shape.params,
                "val_accuracy": self.dense_accuracy,
                "blocks": shape.block_sizes,
                "tokens": shape.tokens,
            },
        }
        if speedups:
            attributes["bfloat16_speedup"] = speedups
        if isinstance(cost, Latency):
            attributes["latency"] = cost.curves
        return {**attributes, "plan": self.plan(attributes).to_json()}

    def _choose_precisions(self) -> dict[str, float]:
        """Choose the precisions of a new study by timing, where none was given.

        A latency that counts as cost was measured in the precision of evaluation, which stays.
        """
        trainer, shown = self.trainer, self.run_options.progress
        if not isinstance(trainer, ImageTrainer) or trainer.is_precision_given:
            return {}
        before, is_latency = trainer.precision, isinstance(self.space.cost, Latency)
        with show_waiting("timing the model in float32 and bfloat16", enabled=shown):
            speedups = choose_precisions(trainer, self.dense, evaluation=not is_latency)
        if trainer.precision != before:  # the dense model is evaluated in it, too
            vars(self.objective).pop("dense_accuracy", None)
        return speedups

    def missing_attributes(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Compute the attributes that a killed process of version 0.1.0 did not store."""
        missing = {} if "origin" in attributes else {"origin": self.origin}
        if not {"screened", "path"} <= attributes.keys():
            begins = self.first_pairs()
            missing |= {key: value for key, value in begins.items() if key not in attributes}
        # Version 0.1.0 stored only a curve, and its answer did not come from its sampler's plan.
        if "noise_is_known" not in attributes.get("plan", {}):
            missing["plan"] = self.plan({**attributes, **missing}).to_json()
        return missing

    def adopt(self, record: StudyRecord) -> None:
        """Adopt what a study has measured, and mark the folders that it may name.

        Raises:
            InputError: The latency is of another model, or a folder cannot be written.
        """
        self._adopt_measured(record)
        self.journal.mark_folders()

    def _adopt_measured(self, record: StudyRecord) -> None:
        """Adopt precisions, learning rate, latency, dense accuracy and the multiple of sizes.

        Another machine may measure others, and would then search other pairs.
        """
        settings = self.settings_for(record.settings)
        self.use_precisions(settings)
        lr = (settings.recipe or {}).get("lr")
        if lr is not None and isinstance(self.trainer, ImageTrainer):
            self.trainer.recipe = replace(self.trainer.recipe, lr=lr)
        cost, latency = self.space.cost, record.latency
        if isinstance(cost, Latency) and latency is not None:
            cost = replace(cost, curves=latency)
        round_to = settings.round_to
        if cost != self.space.cost or round_to != self.pruner.round_to:
            self._price(cast(Cost, cost), round_to=round_to)
        if record.dense.val_accuracy is not None:
            self.objective.dense_accuracy = record.dense.val_accuracy

    def use_precisions(self, settings: StudySettings) -> None:
        """Calibrate, train and evaluate in the precisions of a study.

        Version 0.1.0 did not store those of training and evaluation.
        """
        self.pruner.use_precision(cast(Any, settings.calibration_precision or "float32"))
        trainer = self.trainer
        if settings.precision is not None and isinstance(trainer, ImageTrainer):
            trainer.precision = cast(Precision, settings.precision)
            trainer.training_precision = cast("Precision | None", settings.training_precision)

    def sampler(self, attributes: Mapping[str, Any]) -> BinarySearchSampler:
        """Return the sampler of a study with these attributes."""
        return BinarySearchSampler(self.space, self.plan(attributes), seed=self.options.seed)

    def plan(
        self, attributes: Mapping[str, Any]
    ) -> BudgetSearch | ToleranceSearch | FrontierSearch:
        """Return the plan of a study with these attributes."""
        options, metric = self.options, self.trainer.metric
        stored = attributes.get("plan", {})
        # Another machine may estimate another noise.
        known = Noise.from_json(stored) if "noise_is_known" in stored else None
        if options.noise is not None:
            noise = Noise(options.noise, point=known.point if known else self._point)
        else:
            noise = known or Noise(self._expected_noise, is_known=False, point=self._point)
        plan = self.limit.plan(
            self.space,
            noise=noise,
            confirmations=options.confirmations,
            dense=self.dense_accuracy,
            metric=metric,
            start=screened_best(attributes),
            path=[(first, second) for first, second in attributes.get("path", ())],
            fixed_ratio=options.fixed_ratio,
        )
        forecast = Forecast.of_plan(stored) if stored else self.forecast
        if forecast is not None and hasattr(plan, "use_forecast"):  # not every custom plan has it
            plan.use_forecast(forecast)
        if isinstance(plan, FrontierSearch):
            worst = stored.get("worst") or self._worst
            plan.rule = plan.rule._replace(worst=worst)
        return plan

    @property
    def forecast(self) -> Forecast | None:
        """Return what the calibration predicts of each pair; None where it predicts nothing.

        How much of another metric a nat of other outputs than classes costs is not known.
        """
        if (self.options.calibration.task or "single-label") != "single-label":
            return None
        return forecast_of(self.space, self.pruner.expected_loss, self._worst)

    @cached_property
    def _worst(self) -> float:
        """Return the loss of a model of which nothing is left.

        Where less is better, the dense model's value says little of how large the metric may get:
        the smallest model before any training, and one that gives every image the same output, may
        lose more.
        """
        dense, metric = self.dense_accuracy, self.trainer.metric
        losses = [worst_loss(dense, metric)]
        if not metric.larger_is_better:
            for model in (self.pruner.prune(self.space.max_pair), blind(self.dense)):
                losses.append(metric.loss(dense, self.objective.evaluate(model)))
        return max(loss for loss in losses if loss < math.inf)

    def first_pairs(self) -> dict[str, Any]:
        """Evaluate pairs before any training; return where a new study begins, as it stores it.

        Returns:
            ``screened``: within a budget, ratios and accuracy of the pairs that were evaluated
            without training. ``path``: otherwise, the likeliest pair at each cost.
        """
        screened: dict[tuple[float, float], float] = {}
        path: tuple[tuple[float, float], ...] = ()
        options, shown = self.options, self.run_options.progress
        with show_waiting("evaluating pairs before any training", enabled=shown):
            _ = self.dense_accuracy
            if options.screen and isinstance(self.limit, Budget):
                screened = screen(
                    self.pruner, self.objective.evaluate, self.curve, sign=self.trainer.metric.sign
                )
            elif options.screen and not options.fixed_ratio:
                path = self._path()
        return {"screened": [[*pair, value] for pair, value in screened.items()], "path": path}

    def _path(self) -> tuple[tuple[float, float], ...]:
        """Return the likeliest pair at each cost; none where nothing tells which are likely.

        Without a forecast it takes outputs that are logits or features.
        """
        forecast = self.forecast
        if forecast is not None:
            return forecast_path(self.space, forecast)
        if self.data is None or self.data.task == "regression":
            return ()
        images = other_batches(self.data, **self._images())
        task = self.options.calibration.task or "single-label"
        return likely_path(self.pruner, images, self.precision, task)

    @property
    def _point(self) -> float:
        """Return one point in the unit of the metric, see :class:`~vit_ratio_opt.Metric`.

        A dense value of 0, such as that of a divergence from the dense model, says nothing of the
        unit; a tolerance does.
        """
        metric, dense = self.trainer.metric, self.dense_accuracy
        if metric.unit != "%" and dense == 0 and isinstance(self.limit, Tolerance):
            return self.limit.points / 2
        if metric.unit != "%" and not metric.larger_is_better:
            return self._worst / 100
        return metric.point(dense)

    @property
    def _expected_noise(self) -> float:
        """Return a guess of the metric's standard deviation over seeds, in its unit."""
        metric = self.trainer.metric
        if metric.noise is not None:
            return metric.noise
        if self.data is not None and metric == ACCURACY:
            return accuracy_noise(self.dense_accuracy, len(self.data.val))
        standard_error = getattr(self.trainer, "standard_error", None)
        if standard_error is None:
            return UNKNOWN_NOISE * self._point
        error = standard_error(self.pruner.dense) or self._error_of_pruned(standard_error)
        has_scale = self.dense_accuracy != 0 or isinstance(self.limit, Tolerance)
        return seed_noise(max(error, _LEAST_ERROR * self._point if has_scale else 0.0))

    def _error_of_pruned(self, standard_error: Callable[[ViT], float]) -> float:
        """Return the standard error of a pruned model near the limit, before any training.

        A metric that compares with the dense model has no error at the dense model itself. Within
        a tolerance, the error is taken to grow with the root of the loss, as that of a share does.
        """
        limit, metric, curve = self.limit, self.trainer.metric, self.curve
        if not curve:
            share = max(_NEAR_TOLERANCE, smallest_cost_ratio(self.space))
            curve = budget_curve(self.space, share)
        model = self.pruner.prune(curve[len(curve) // 2])
        error = standard_error(model)
        loss = metric.loss(self.dense_accuracy, self.objective.evaluate(model))
        if not isinstance(limit, Tolerance) or loss <= 0:
            return error
        return error * math.sqrt(limit.points / loss)

    def _admit(self, study: Study) -> None:
        """Refuse a study with other settings; adopt its measurements.

        A study that ``optuna.create_study`` made stores no settings, and none are compared.
        """
        if "settings" in study.user_attrs:
            attributes = study.user_attrs
            check_settings(self, study.study_name, attributes)
            self._adopt_measured(StudyRecord.read(study.study_name, attributes))
