"""The parts of a search, made from a dense model, its data and options."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.described import check_saveable
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.classifier import gives_classes
from vit_ratio_opt.models.copies import copy_for_training
from vit_ratio_opt.models.device import Precision, model_device, precision_of, resolve_device
from vit_ratio_opt.models.shape import check_all_tokens
from vit_ratio_opt.pruning.options import Pruning, Structural
from vit_ratio_opt.pruning.pruner import Batch, ModelPruner
from vit_ratio_opt.runs.devices import claim_device
from vit_ratio_opt.runs.fit import check_fit, check_outputs
from vit_ratio_opt.runs.images import calibration_batches
from vit_ratio_opt.runs.journal import Journal
from vit_ratio_opt.runs.objective import PruningObjective
from vit_ratio_opt.runs.options import RunOptions, SearchOptions
from vit_ratio_opt.runs.pricing import measure_curves, round_to_of
from vit_ratio_opt.search.direction import Direction
from vit_ratio_opt.search.limits import Budget, Frontier, Tolerance
from vit_ratio_opt.space.costs import MACS, Cost, Latency, cost_named
from vit_ratio_opt.space.curve import curve_and_baseline, fixed_ratio_pair
from vit_ratio_opt.space.metric import ACCURACY
from vit_ratio_opt.space.pairs import PairSpace, RatioPair
from vit_ratio_opt.training.checks import warn_near_chance, warn_of_other_preprocessing
from vit_ratio_opt.training.context import Trainer
from vit_ratio_opt.training.features import FeatureTrainer
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.trainer import ImageTrainer
from vit_ratio_opt.training.trainer_checks import check_trainer

__all__ = ["SearchParts"]


class SearchParts:
    """Pruner, trainer, journal and objective that fit each other; see ``vit_ratio_opt.Search``.

    Attributes:
        dense: Copy of the dense model, on the device of the trainer.
        data: The data set; None where only calibration batches were given.
        pruner: Prunes the dense model.
        trainer: Trains and evaluates.
        journal: Writes trials.
        objective: Runs trials.
        curve: The pairs that use up the budget; empty with a tolerance.
        baseline: The pair of one fixed ratio within the budget, where there is one.
    """

    def __init__(
        self,
        dense: ViT,
        data: ImageData | Iterable[Batch],
        limit: Budget | Tolerance | Frontier,
        *,
        cost: str | Cost = "macs",
        pruning: Pruning | None = None,
        training: Recipe | Trainer | None = None,
        options: SearchOptions | None = None,
        run: RunOptions | None = None,
    ) -> None:
        self.limit = _check_limit(limit)
        self.data = data if isinstance(data, ImageData) else None
        self.options = options or SearchOptions()
        self.run_options = run or RunOptions()
        self.is_run_default = run is None
        self.cost = cost_named(cost) if isinstance(cost, str) else cost
        pruning = pruning or Structural()
        self.cost.check(strategy=pruning.name, iterative=self.options.iterative)
        _check_iterative(self.options, pruning, self.run_options)
        _check_scores(pruning, self.data)
        dense = self._checked(dense)
        self.options = _with_task(self.options, self.data, dense, training)
        # A copy, so that nothing that the caller does later changes it.
        self.dense = copy_for_training(dense)
        self.trainer = self._trainer(training)
        if isinstance(limit, Tolerance):
            limit.check(self.trainer.metric)
        device = getattr(self.trainer, "device", None) or resolve_device(self.run_options.device)
        self.dense.to(device)
        if self.data is not None:
            check_outputs(self.dense, self.data)
        self.pruner = ModelPruner(
            self.dense,
            self._calibration_batches if isinstance(data, ImageData) else data,
            pruning=pruning,
            cost=self._counted,
            calibration=self.options.calibration,
            seed=self.options.seed,
        )
        self._follow_precision()
        if self.options.iterative:
            self.pruner.check_parents()
        self.curve: tuple[RatioPair, ...] = ()
        self.baseline: RatioPair | None = None
        self._fit_space()
        self.journal = Journal(self.run_options.checkpoints, self.run_options.artifacts)
        self.objective = PruningObjective(
            self.pruner,
            self.trainer,
            limit,
            self.journal,
            fixed_ratio=self.options.fixed_ratio,
            iterative=self.options.iterative,
            seed=self.options.seed,
        )
        self.objective.progress = self.run_options.progress
        self.objective.state_every = self.run_options.state_every
        self._connect()

    def _connect(self) -> None:
        """Connect the parts to the classes above, at the end of the constructor."""

    @property
    def space(self) -> PairSpace:
        """Return the search space: all pairs of ratios, with their costs."""
        return self.pruner.space

    @property
    def directions(self) -> list[Direction]:
        """Return the direction of each objective of the study."""
        return self.objective.directions

    @property
    def dense_accuracy(self) -> float:
        """Return the dense model's metric on the validation data; warn if it is near chance."""
        is_new = "dense_accuracy" not in vars(self.objective)
        if is_new and self.data is not None and self.trainer.metric == ACCURACY:
            warn_near_chance(self.objective.dense_accuracy, self.data)
        return self.objective.dense_accuracy

    @property
    def precision(self) -> Precision:
        """Return the precision in which models are evaluated and timed."""
        precision: Precision | None = getattr(self.trainer, "precision", None)
        return precision or precision_of(self.pruner.device)

    def _follow_precision(self) -> None:
        """Calibrate in the precision of the models where none was given; never in float16.

        A calibration has gradients, so that it is in bfloat16 where training is, too.
        """
        if self.options.calibration.precision is None:
            training = getattr(self.trainer, "training_precision", None) or self.precision
            in_half = self.precision == training == "bfloat16"
            self.pruner.use_precision("bfloat16" if in_half else "float32")

    def _checked(self, dense: ViT) -> ViT:
        """Return a dense model that fits the data and can be saved where models are kept."""
        dense = check_all_tokens(dense)
        if self.data is not None:
            check_fit(dense, self.data)
            warn_of_other_preprocessing(dense, self.data)
        if self.run_options.checkpoints is not None:
            check_saveable(dense)
        return dense

    def _trainer(self, training: Recipe | Trainer | None) -> Trainer:
        if training is not None and not isinstance(training, Recipe):
            check_trainer(training)
            return training
        if self.data is None:
            raise InputError(
                "Training by a recipe needs `data` such as `load_images` returns, with labels or "
                "with `task='features'`: give that, or a custom trainer as `training`."
            )
        run = self.run_options
        make: Callable[..., ImageTrainer] = ImageTrainer
        if self.data.task == "features":
            make = partial(FeatureTrainer, self.dense)
        ranks = run.ranks
        device = claim_device(ranks.device if run.device is None and ranks else run.device)
        return make(self.data, training, device=device, precision=run.precision, ranks=ranks)

    @property
    def _counted(self) -> Cost:
        """Return the cost that is known before anything is measured."""
        return MACS if isinstance(self.cost, Latency) else self.cost

    def _fit_space(self) -> None:
        """Choose the number of which sizes are multiples, if none was given; price pairs."""
        shown = self.run_options.progress
        round_to = round_to_of(self.cost, self.pruner, self.precision, progress=shown)
        self.pruner.price(self._counted, round_to=round_to)
        self._price(self.cost)

    def _price(self, cost: Cost, *, round_to: int | None = None) -> None:
        budget = self.limit.share if isinstance(self.limit, Budget) else None
        if isinstance(cost, Latency) and cost.curves is None:
            shown = self.run_options.progress
            cost = measure_curves(
                cost, self.pruner, budget=budget, precision=self.precision, progress=shown
            )
        self.pruner.price(cost, round_to=round_to)
        if budget is None:
            return
        if self.options.fixed_ratio:
            self.curve = (fixed_ratio_pair(self.space, budget),)
        else:
            self.curve, self.baseline = curve_and_baseline(self.space, budget)

    def _calibration_batches(self) -> list[Batch]:
        assert self.data is not None
        return list(calibration_batches(self.data, **self._images()))

    def _images(self) -> dict[str, Any]:
        """Return how many training images calibrate, and which."""
        options = self.options
        return {
            "images": options.calibration.images,
            "seed": options.seed,
            "device": model_device(self.dense),
        }


def _check_limit(limit: Budget | Tolerance | Frontier) -> Budget | Tolerance | Frontier:
    if not isinstance(limit, (Budget, Tolerance, Frontier)):
        raise InputError(
            f"`limit` must be a Budget, a Tolerance or a Frontier, but got {limit!r:.80}: give "
            "vro.Budget(0.6), for example."
        )
    return limit


def _with_task(
    options: SearchOptions, data: ImageData | None, dense: ViT, training: Recipe | Trainer | None
) -> SearchOptions:
    """Return the options with the meaning of the dense model's outputs.

    It is the task of the data set; without labels, the logits of a classifier are of one class,
    unless their cosine is the metric, as of embeddings.
    """
    if data is None:
        return options
    calibration, task = options.calibration, data.task
    has_classes = task == "features" and gives_classes(dense)
    metric = training.metric if isinstance(training, Recipe) else None
    if has_classes and not (isinstance(metric, str) and metric == "cosine"):
        task = "single-label"
    if calibration.task is not None and calibration.task != task and not has_classes:
        raise InputError(
            f"The task of {data.name} is {data.task!r}, but that of the calibration is "
            f"{calibration.task!r}: leave out `task` of `CalibrationOptions`."
        )
    return replace(options, calibration=replace(calibration, task=calibration.task or task))


def _check_scores(pruning: Pruning, data: ImageData | None) -> None:
    """Refuse scores of heads and neurons that need labels where there are none to be used."""
    if data is None or data.task != "features" or not isinstance(pruning, Structural):
        return
    if pruning.unit == "head" and pruning.criterion is None:
        raise InputError(
            "`unit='head'` scores heads by labels, but the task is 'features': use the default "
            "unit, or `criterion=vro.magnitude_importance`."
        )


def _check_iterative(options: SearchOptions, pruning: Pruning, run: RunOptions) -> None:
    """Refuse what trials that start from other trials' models cannot do."""
    if options.iterative and run.checkpoints is None:
        raise InputError("`iterative` and `artifacts` need `checkpoints`: name a folder.")
    if options.iterative and not isinstance(pruning, Structural) and pruning.rule.heads:
        raise InputError("`iterative` does not go with a rule that removes heads.")
