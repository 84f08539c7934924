"""A search from a dense model and its data: pruner, trainer, objective, study and answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

from optuna.pruners import BasePruner
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.described import check_saveable
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.copies import copy_for_training
from vit_ratio_opt.models.create import source_of
from vit_ratio_opt.models.device import Precision, model_device, precision_of, resolve_device
from vit_ratio_opt.models.shape import check_all_tokens, shape_of
from vit_ratio_opt.pruning.options import Pruning, Structural
from vit_ratio_opt.pruning.pruner import Batch, ModelPruner
from vit_ratio_opt.records.answer import Answer, answer_of
from vit_ratio_opt.records.settings import StudySettings
from vit_ratio_opt.records.study import StudyRecord
from vit_ratio_opt.report.explainer import Explainer
from vit_ratio_opt.report.sentences import answer_sentences
from vit_ratio_opt.report.trial_files import trial_files
from vit_ratio_opt.runs.creation import create_study
from vit_ratio_opt.runs.fit import check_fit, check_logits
from vit_ratio_opt.runs.images import calibration_batches, other_batches
from vit_ratio_opt.runs.journal import Journal
from vit_ratio_opt.runs.loop import Callback, run_study
from vit_ratio_opt.runs.objective import PruningObjective
from vit_ratio_opt.runs.options import RunOptions, SearchOptions
from vit_ratio_opt.runs.pricing import measured
from vit_ratio_opt.runs.screening import likely_path, screen
from vit_ratio_opt.runs.signals import SearchStopped
from vit_ratio_opt.runs.storage_url import DEFAULT_STORAGE
from vit_ratio_opt.runs.task import check_settings, screened_best
from vit_ratio_opt.runs.testing import test_answer
from vit_ratio_opt.search.binary_search import BinarySearchSampler
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.limits import Budget, Tolerance
from vit_ratio_opt.search.noise import Noise, accuracy_noise
from vit_ratio_opt.search.tolerance import ToleranceSearch
from vit_ratio_opt.space.costs import MACS, Cost, Latency, cost_named
from vit_ratio_opt.space.curve import (
    cost_saved,
    curve_and_baseline,
    fixed_ratio_pair,
)
from vit_ratio_opt.space.pairs import PairSpace, RatioPair
from vit_ratio_opt.training.checks import warn_near_chance, warn_of_other_preprocessing
from vit_ratio_opt.training.context import Trainer
from vit_ratio_opt.training.progress import show_waiting
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.trainer import ImageTrainer
from vit_ratio_opt.utils.versions import installed_versions

__all__ = ["Search"]

# Points of noise that are assumed of a metric about which nothing is known.
_UNKNOWN_NOISE = 0.5


class Search:
    """A search of the two pruning ratios of a dense ViT.

    Args:
        dense: The dense, fine-tuned ViT. It is copied, not changed. The copy is in float32, and
            none of its weights are frozen.
        data: Images of training, validation and test. With a trainer of one's own this may also be
            an iterable of calibration batches, normalised and on the device of ``dense``.
        limit: :class:`~vit_ratio_opt.Budget` or :class:`~vit_ratio_opt.Tolerance`.
        cost: What a budget is a share of: ``"macs"``, ``"params"``, ``"latency"`` or a cost
            object.
        pruning: What is pruned: :class:`~vit_ratio_opt.Structural` by default.
        training: How models are fine-tuned: a :class:`~vit_ratio_opt.Recipe`, or a trainer of
            one's own.
        options: How pairs are searched.
        run: Where and on what the search runs here.

    Attributes:
        pruner: Prunes the dense model; ``pruner.space`` has the pairs.
        trainer: Trains and evaluates.
        objective: For ``study.optimize``.
        curve: The pairs that use up the budget; empty with a tolerance.
        baseline: The pair of one fixed ratio within the budget, where there is one.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: The limit cannot be met, the data does not fit the model, or options do not go
            together.

    Example:
        >>> search = vro.Search(dense, data, limit=vro.Budget(0.6))
        >>> study = search.create_study("cifar10", storage="sqlite:///study.db")
        >>> search.run(study, n_trials=8)
        >>> print(search.answer(study))
    """

    def __init__(
        self,
        dense: ViT,
        data: ImageData | Iterable[Batch],
        limit: Budget | Tolerance,
        *,
        cost: str | Cost = "macs",
        pruning: Pruning | None = None,
        training: Recipe | Trainer | None = None,
        options: SearchOptions | None = None,
        run: RunOptions | None = None,
    ) -> None:
        if not isinstance(limit, (Budget, Tolerance)):
            raise InputError(
                f"`limit` must be a Budget or a Tolerance, but got {limit!r:.80}: give "
                "vro.Budget(0.6), for example."
            )
        self.limit = limit
        self.options = options or SearchOptions()
        self.run_options = run or RunOptions()
        self.cost = cost_named(cost) if isinstance(cost, str) else cost
        pruning = pruning or Structural()
        self.cost.check(strategy=pruning.name, iterative=self.options.iterative)
        _check_iterative(self.options, pruning, self.run_options)
        self.data = data if isinstance(data, ImageData) else None
        dense = check_all_tokens(dense)
        if self.data is not None:
            check_fit(dense, self.data)
            warn_of_other_preprocessing(dense, self.data)
        if self.run_options.checkpoints is not None:
            check_saveable(dense)
        self.trainer = self._trainer(training)
        device = getattr(self.trainer, "device", None) or resolve_device(self.run_options.device)
        self.dense = copy_for_training(dense).to(
            device
        )  # nothing that the caller does later changes it
        if self.data is not None:
            check_logits(self.dense, self.data)
        self.pruner = ModelPruner(
            self.dense,
            partial(calibration_batches, data, **self._images())
            if isinstance(data, ImageData)
            else data,
            pruning=pruning,
            cost=MACS if isinstance(self.cost, Latency) else self.cost,
            calibration=self.options.calibration,
            seed=self.options.seed,
        )
        self.curve: tuple[RatioPair, ...] = ()
        self.baseline: RatioPair | None = None
        self._price(self.cost)
        self.journal = Journal(
            self.run_options.checkpoints, self.run_options.artifacts, attach=trial_files
        )
        self.objective = PruningObjective(
            self.pruner,
            self.trainer,
            limit,
            self.journal,
            fixed_ratio=self.options.fixed_ratio,
            iterative=self.options.iterative,
            seed=self.options.seed,
            admit=self._admit,
        )
        self.objective.describe = self.describe
        self.objective.progress = self.run_options.progress

    # What is searched

    @property
    def space(self) -> PairSpace:
        """The pairs of ratios that there are, with their costs."""
        return self.pruner.space

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Direction of the study."""
        return self.objective.direction

    @property
    def metric_name(self) -> str:
        """Name of the value of a trial, for optuna-dashboard."""
        if isinstance(self.limit, Tolerance):
            return f"{self.space.cost.word} of dense"
        return self.trainer.metric.name

    @property
    def dense_accuracy(self) -> float:
        """Metric of the dense model on the validation data; a warning where it is at chance."""
        if "dense_accuracy" not in vars(self.objective) and self.data is not None:
            warn_near_chance(self.objective.dense_accuracy, self.data)
        return self.objective.dense_accuracy

    @property
    def settings(self) -> StudySettings:
        """Everything on which the numbers of a trial depend; a study stores one such value."""
        is_built_in = isinstance(self.trainer, ImageTrainer)
        identity = self.trainer.identity()
        options, limit = self.options, self.limit
        return StudySettings(
            strategy="fixed" if options.fixed_ratio else "searched",
            budget=limit.share if isinstance(limit, Budget) else None,
            tolerance=limit.points if isinstance(limit, Tolerance) else None,
            confidence=getattr(limit, "confidence", Tolerance(1.0).confidence),
            noise=options.noise,
            confirmations=options.confirmations,
            iterative=options.iterative,
            **self.pruner.identity(),
            **(identity if is_built_in else {"trainer": identity}),
        )

    @property
    def origin(self) -> dict[str, Any]:
        """What :func:`vit_ratio_opt.load_search` needs beside the settings, as JSON values."""
        folder = self.journal.checkpoints
        return {
            "model": source_of(self.dense),
            "data": {} if self.data is None else self.data.source,
            "checkpoints": None if folder is None else str(folder.resolve()),
            "artifacts": self.journal.artifacts,
        }

    def describe(self, pair: RatioPair, model: ViT, accuracy: float) -> dict[str, Any]:
        """Return what the file of a pruned model says about it, as JSON values."""
        shape, dense, settings = shape_of(model), self.pruner.shape, self.settings.to_json()
        del settings["architecture"]  # a file has its own, of the pruned model
        described = {
            **pair._asdict(),
            "macs_ratio": shape.macs / dense.macs,
            "macs": shape.macs,
            "params": shape.params,
            "val_accuracy": accuracy,
            "dense": {
                "macs": dense.macs, "params": dense.params, "val_accuracy": self.dense_accuracy,
            },
        }  # fmt: skip
        if self.data is not None:
            described |= {
                "classes": self.data.classes,
                "mean": self.data.mean,
                "std": self.data.std,
                # How to have the same splits elsewhere; where the images are is left open.
                "images": {
                    key: None if key == "root" else value
                    for key, value in self.data.source.items()
                },
            }
        return {**described, **settings}

    # The study

    def create_study(
        self,
        study_name: str,
        *,
        storage: str | BaseStorage = DEFAULT_STORAGE,
        pruner: BasePruner | None = None,
    ) -> Study:
        """Create the study of this search, or resume it if the storage has it.

        Args:
            study_name: Name of the study in the storage.
            storage: SQLAlchemy URL, or a storage of Optuna.
            pruner: Optuna pruner for the reports after each epoch; none by default.

        Raises:
            InputError: The storage cannot be used, or it has a study of this name with other
                settings.
        """
        return create_study(self, study_name=study_name, storage=storage, pruner=pruner)

    def run(
        self,
        study: Study,
        n_trials: int | None = None,
        *,
        wait: bool = False,
        say: Callable[[str], None] = print,
        callbacks: Sequence[Callback] = (),
        explain: bool = True,
    ) -> None:
        """Run until the study has ``n_trials`` trained trials, those of earlier runs included.

        See :func:`vit_ratio_opt.runs.loop.run_study` for workers, signals and failures.

        Args:
            study: From :meth:`create_study`.
            n_trials: Trained trials in all; None until nothing is left to learn.
            wait: Whether to wait for the trials of other workers when there is nothing to begin.
            say: Called with each line of text: one for each trial, and the answer at the end.
            callbacks: Called after each trial of this process, as callbacks of ``study.optimize``.
            explain: Whether notes and figures for optuna-dashboard are kept in the study.

        Raises:
            InputError: ``n_trials`` is below 1, the study is another search's, or a model cannot
                be kept.
            SearchStopped: A signal ended the search; running it again resumes it.
        """
        explainer = Explainer(n_trials) if explain else None
        observers: list[Callback] = [] if explainer is None else [explainer]
        try:
            run_study(
                study,
                self.objective,
                n_trials=n_trials,
                wait=wait,
                say=say,
                callbacks=[*observers, *callbacks],
            )
        except SearchStopped:
            if explainer is not None:
                explainer.refresh(study)
            raise
        if explainer is not None:
            explainer.refresh(study)
        if answer_of(study) is not None:
            for sentence in answer_sentences(study):
                say(sentence)

    def answer(self, study: Study) -> Answer | None:
        """Return the answer of a study, whose ``load_model()`` loads the pruned model.

        None before any trial was trained.
        """
        answer = answer_of(study)
        if answer is None:
            return None
        return answer.bind(lambda trial: self.model_of(study, trial))

    @property
    def recipe(self) -> Recipe:
        """The recipe of the built-in trainer.

        Raises:
            InputError: The trainer is the user's own.
        """
        if not isinstance(self.trainer, ImageTrainer):
            raise InputError("A trainer of your own has no recipe: train with it.")
        return self.trainer.recipe

    def trainer_for(self, recipe: Recipe) -> ImageTrainer:
        """Return the built-in trainer with another recipe; raises as :attr:`recipe` does."""
        _ = self.recipe
        assert isinstance(self.trainer, ImageTrainer)
        return self.trainer.with_recipe(recipe)

    def model_of(self, study: Study, trial: FrozenTrial) -> ViT:
        """Return the pruned model of a trial, on the device of the search.

        Raises:
            InputError: The trial left no model, or it is neither here nor in the store.
        """
        return self.journal.model_of(trial, study, self.dense).to(self.pruner.device)

    def test(self, study: Study) -> float | None:
        """Return the test accuracy of the answer of a study, in per cent; None without an answer.

        The test split is read once for each model: the study keeps the accuracies.

        Raises:
            InputError: No models were kept, the file of the model is gone, or the trainer has no
                test data.
        """
        before = study.user_attrs.get("tested")
        accuracy = test_answer(study, self.objective)
        if study.user_attrs.get("tested") != before:
            if self.data is not None and self.data.validation == "test":
                sizes = len(self.data.val), len(self.data.test)
                dense = self.dense_accuracy, study.user_attrs["tested"]["dense"]
                whole = (sizes[0] * dense[0] + sizes[1] * dense[1]) / sum(sizes)
                study.set_user_attr("dense_full_test_accuracy", round(whole, 4))
            Explainer(getattr(study.sampler, "n_trials", None)).refresh(study)
        return accuracy

    # The protocol of runs.task.StudyTask

    def check(self) -> None:
        """Raise an InputError if models cannot be kept here."""
        self.objective.check()

    def settings_for(self, stored: StudySettings) -> StudySettings:
        """Return the settings that this search has in a study with stored ones.

        The study decides the precision where none was given, and which of the two hashes of the
        validation split is compared.
        """
        changes: dict[str, Any] = {}
        is_given = getattr(self.trainer, "is_precision_given", True)
        if stored.precision is not None and not is_given:
            changes["precision"] = stored.precision
        hashed = stored.validation
        if self.data is not None and hashed is not None and self.data.has_fingerprint(hashed):
            changes["validation"] = hashed
        return replace(self.settings, **changes)

    def new_attributes(self) -> dict[str, Any]:
        """Compute all attributes that a new study stores, in the order of writing."""
        shape, cost, metric = self.pruner.shape, self.space.cost, self.trainer.metric
        begins = self.first_pairs()
        attributes = {
            "settings": self.settings.to_json(),
            "versions": installed_versions(),
            "device": getattr(self.trainer, "device_name", str(self.pruner.device)),
            "saved": cost_saved(self.space),
            "cost": {"name": cost.name, "word": cost.word, "constraint": cost.constraint},
            "metric": {
                "name": metric.name,
                "unit": metric.unit,
                "larger_is_better": metric.larger_is_better,
            },
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
        if isinstance(cost, Latency):
            attributes["latency"] = cost.curves
        return {**attributes, "plan": self.plan(attributes).to_json()}

    def missing_attributes(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Compute what version 0.1.0 has not stored in a study that it was killed in."""
        missing = {} if "origin" in attributes else {"origin": self.origin}
        if not {"screened", "path"} <= attributes.keys():
            with show_waiting(
                "looking at pairs before any training", enabled=self.run_options.progress
            ):
                looked = self.first_pairs()
            missing |= {key: value for key, value in looked.items() if key not in attributes}
        # Version 0.1.0 stored a curve at the most, and answered otherwise than its sampler.
        if "noise_is_known" not in attributes.get("plan", {}):
            missing["plan"] = self.plan({**attributes, **missing}).to_json()
        return missing

    def adopt(self, record: StudyRecord) -> None:
        """Adopt precision, latency and dense accuracy of a study.

        Another machine may count an image more or less, or need another time for a pair, and
        would search in another way.

        Raises:
            InputError: The latency is of another model.
        """
        precision = self.settings_for(record.settings).precision
        if precision is not None and isinstance(self.trainer, ImageTrainer):
            self.trainer.precision = cast(Precision, precision)
        cost, latency = self.space.cost, record.latency
        if isinstance(cost, Latency) and latency is not None and latency != cost.curves:
            self._price(replace(cost, curves=latency))
        if record.dense.val_accuracy is not None:
            self.objective.dense_accuracy = record.dense.val_accuracy
        self.journal.mark_folders()

    def sampler(self, attributes: Mapping[str, Any]) -> BinarySearchSampler:
        """Return the sampler of a study with these attributes."""
        return BinarySearchSampler(self.space, self.plan(attributes), seed=self.options.seed)

    def plan(self, attributes: Mapping[str, Any]) -> BudgetSearch | ToleranceSearch:
        """Return the plan of a study that begins where these attributes say."""
        options, noise = self.options, Noise(self._expected_noise, is_known=False)
        if options.noise is not None:
            noise = Noise(options.noise)
        return self.limit.plan(
            self.space,
            noise=noise,
            confirmations=options.confirmations,
            dense=self.dense_accuracy,
            start=screened_best(attributes),
            path=[(first, second) for first, second in attributes.get("path", ())],
            fixed_ratio=options.fixed_ratio,
        )

    # How it is built

    def first_pairs(self) -> dict[str, Any]:
        """Look at pairs before any training: where a new study begins, as it stores it.

        Returns:
            ``screened``: within a budget, ratios and accuracy of the pairs that were evaluated
            without training. ``path``: with a tolerance, the likeliest pair at each cost.
        """
        screened: dict[tuple[float, float], float] = {}
        path: tuple[tuple[float, float], ...] = ()
        options, shown = self.options, self.run_options.progress
        with show_waiting("looking at pairs before any training", enabled=shown):
            _ = self.dense_accuracy
            if options.screen and isinstance(self.limit, Budget):
                screened = screen(self.pruner, self.trainer.evaluate, self.curve)
            elif options.screen and not options.fixed_ratio and self.data is not None:
                images = other_batches(self.data, **self._images())
                path = likely_path(self.pruner, images, self.precision)
        return {"screened": [[*pair, value] for pair, value in screened.items()], "path": path}

    def _trainer(self, training: Recipe | Trainer | None) -> Trainer:
        if training is not None and not isinstance(training, Recipe):
            return training
        if self.data is None:
            raise InputError(
                "Training by a recipe needs `data` with labels, such as `load_image_folder` "
                "returns: give one, or a trainer of your own as `training`."
            )
        return ImageTrainer(
            self.data,
            training or Recipe(),
            device=self.run_options.device,
            precision=self.run_options.precision,
            ranks=self.run_options.ranks,
        )

    def _price(self, cost: Cost) -> None:
        budget = self.limit.share if isinstance(self.limit, Budget) else None
        if isinstance(cost, Latency) and cost.curves is None:
            shown = self.run_options.progress
            cost = measured(
                cost, self.pruner, budget=budget, precision=self.precision, progress=shown
            )
        self.pruner.price(cost)
        if budget is None:
            return
        if self.options.fixed_ratio:
            self.curve = (fixed_ratio_pair(self.space, budget),)
        else:
            self.curve, self.baseline = curve_and_baseline(self.space, budget)

    @property
    def precision(self) -> Precision:
        """The precision in which models are evaluated and timed."""
        precision: Precision | None = getattr(self.trainer, "precision", None)
        return precision or precision_of(self.pruner.device)

    @property
    def _expected_noise(self) -> float:
        """Standard deviation of the metric over seeds, in points, before any training."""
        if self.data is None:
            return _UNKNOWN_NOISE
        return accuracy_noise(self.dense_accuracy, len(self.data.val))

    def _images(self) -> dict[str, Any]:
        """Return how many training images calibrate, and which."""
        options = self.options
        return {
            "images": options.calibration.images,
            "seed": options.seed,
            "device": model_device(self.dense),
        }

    def _admit(self, study: Study | None) -> None:
        """Refuse a study of other settings; adopt what it has measured.

        A study that ``optuna.create_study`` made stores no settings, and none are compared.
        """
        if study is not None and "settings" in study.user_attrs:
            attributes = study.user_attrs
            check_settings(self, study.study_name, attributes)
            self.adopt(StudyRecord.read(study.study_name, attributes))


def _check_iterative(options: SearchOptions, pruning: Pruning, run: RunOptions) -> None:
    """Refuse what trials that start from other trials' models cannot do."""
    if options.iterative and run.checkpoints is None:
        raise InputError("`iterative` and `artifacts` need `checkpoints`: name a folder.")
    if options.iterative and not isinstance(pruning, Structural) and pruning.rule.heads:
        raise InputError("`iterative` does not go with a rule that removes heads.")
