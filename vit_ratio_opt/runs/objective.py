"""Run one trial: from a pair of ratios to the value of a pruned and trained model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import BaseTrial, FrozenTrial

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.records.trial import attribute, write_trial
from vit_ratio_opt.records.trials import finished_trials
from vit_ratio_opt.runs.contracts import JournalProtocol, PrunerProtocol
from vit_ratio_opt.runs.jobs import job_of
from vit_ratio_opt.runs.lineage import fetch_state, interrupted_trials, state_artifact
from vit_ratio_opt.runs.outcome import record_cost, record_sizes, record_training, trial_value
from vit_ratio_opt.runs.parents import best_start
from vit_ratio_opt.runs.resume import check_resumed, copy_progress, next_seed, report_epoch
from vit_ratio_opt.runs.saving import StateKeeper
from vit_ratio_opt.runs.state_files import remove
from vit_ratio_opt.runs.suggest import suggest_pair
from vit_ratio_opt.search.direction import Direction, check_directions
from vit_ratio_opt.search.limits import Budget, Frontier, Tolerance, directions_of
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.training.context import (
    Stopwatch,
    Trainer,
    TrainingDiverged,
    TrainingStopped,
    TrialContext,
    exit_means_stop,
)
from vit_ratio_opt.training.distributed import RanksBroken
from vit_ratio_opt.training.progress import SearchProgress
from vit_ratio_opt.training.save_clock import STATE_SECONDS
from vit_ratio_opt.training.trainer_checks import (
    check_layers,
    layers_of,
    metric_value,
    warn_if_constant,
    warn_if_reversed,
)
from vit_ratio_opt.utils.failures import is_storage_error, reason

__all__ = ["PruningObjective"]

# Settings on which the model depends that a training begins with.
_STARTS_FROM = (
    *("pruned", "rule", "by_cascade", "mhsa_unit", "repair", "allocation", "round_to"),
    *("calibration_images", "seed"),
)
# The same, left out where they are None: earlier versions did not have them.
_MAY_START_FROM = ("bounds", "frozen", "calibration_precision")

_logger = optuna.logging.get_logger(f"optuna.{__name__}")


class PruningObjective:
    """Suggest a pair of ratios, prune, train and evaluate, and record the trial.

    With a :class:`~vit_ratio_opt.Budget`, the value is the trainer's metric, to be improved; a
    pair over the budget is PRUNED before any training. With a :class:`~vit_ratio_opt.Tolerance`,
    the value is the share of the cost that is left, to be minimised; a pair that loses more than
    the tolerance is PRUNED after its training. With a :class:`~vit_ratio_opt.Frontier`, the values
    are both, metric and cost, and no trial is PRUNED.

    Every pair is first trained with the same seed, so that pairs differ in nothing but the pair; a
    pair that is trained again, or whose training diverged, takes the next seed.

    Args:
        pruner: Prunes the dense model.
        trainer: Trains and evaluates the pruned models.
        limit: Budget, tolerance or frontier of the search.
        journal: Writes trials, models and training states.
        fixed_ratio: Whether both ratios have to be equal, as in the baseline.
        iterative: Whether each trial may start from the nearest finished trial that pruned neither
            module more, where that is no worse before the training than to start from the dense
            model. The pairs on the curve of one budget have no such parents.
        seed: Random seed of the first training of each pair.

    Attributes:
        should_stop: Function called before each step of a training; True ends the trial with
            KeyboardInterrupt, and its pair is requeued.
        admit: Function called with the study before each trial; it raises an InputError for a
            study of another search. The direction is always checked.
        describe: Function that returns the manifest of a pruned model; :meth:`describe_model` by
            default.
        progress: Progress bars of the search, or whether to show progress bars.
        state_every: Seconds between two saves of a training's state.
    """

    def __init__(
        self,
        pruner: PrunerProtocol,
        trainer: Trainer,
        limit: Budget | Tolerance | Frontier,
        journal: JournalProtocol,
        *,
        fixed_ratio: bool = False,
        iterative: bool = False,
        seed: int = 0,
    ) -> None:
        self.pruner = pruner
        self.trainer = trainer
        self.limit = limit
        self.journal = journal
        self.fixed_ratio = fixed_ratio
        self.iterative = iterative
        self.seed = seed
        self.should_stop: Callable[[], bool] | None = None
        self.describe: Callable[[RatioPair, ViT, float], Mapping[str, Any]] = self.describe_model
        self.progress: SearchProgress | bool | None = None
        self.state_every = STATE_SECONDS
        self.admit: Callable[[Study], None] | None = None

    @property
    def directions(self) -> list[Direction]:
        """Return the direction of each objective of the study."""
        return directions_of(self.limit, self.trainer.metric)

    @cached_property
    def dense_accuracy(self) -> float:
        """Return the metric of the dense model on the validation data."""
        return self.evaluate(self.pruner.dense)

    def evaluate(self, model: ViT) -> float:
        """Return the trainer's metric of a model on the validation data.

        Raises:
            InputError: The trainer returned no finite number.
        """
        return metric_value(self.trainer.evaluate(model), self.trainer, "evaluate")

    def __call__(self, trial: BaseTrial) -> float | tuple[float, float]:
        """Run one trial.

        Raises:
            TrialPruned: The pair is over the budget or loses more than the tolerance, Optuna's
                pruner ended the training after an epoch, or the sampler had nothing left to learn.
            TrainingStopped: ``should_stop`` returned True.
        """
        with self.journal.trial(trial):
            self.check(getattr(trial, "study", None))
            return self._run(trial)

    def check(self, study: Study | None = None) -> None:
        """Check, before any work, that trials of a study can be run and saved here.

        Args:
            study: The study; None for a trial without a study.

        Raises:
            InputError: The study has another direction or other settings.
            CannotWriteError: Models or training states cannot be written.
        """
        if study is not None:
            check_directions(study, self.directions)
            if self.admit is not None:
                self.admit(study)
        self.journal.check_writable()

    def identity_of(self, pair: RatioPair) -> dict[str, Any]:
        """Return the JSON values that identify the training of a pair in its saved state."""
        known = self.pruner.identity()
        pruning = {name: known[name] for name in _STARTS_FROM}
        pruning |= {name: known[name] for name in _MAY_START_FROM if known.get(name) is not None}
        pruning["iterative"] = self.iterative
        return {"pair": list(pair), "dense": known["weights"], "pruning": pruning}

    def _run(self, trial: BaseTrial) -> float | tuple[float, float]:
        started, clock = time.perf_counter(), Stopwatch()
        space = self.pruner.space
        suggestion = suggest_pair(trial, space, self.limit, fixed_ratio=self.fixed_ratio)
        study = getattr(trial, "study", None)
        trials = [] if study is None else study.get_trials(deepcopy=False)
        finished = [] if study is None else finished_trials(study)
        seed = next_seed(self.seed, suggestion.pair, trials, finished)
        write_trial(trial, seed=seed)
        with clock("evaluate"):
            _ = self.dense_accuracy
        earlier = interrupted_trials(trials, suggestion.pair, seed)
        with TemporaryDirectory() as folder:
            # No suffix: a trainer of one's own chooses the format, and torch.load goes by it.
            state = None if self.journal.store is None else Path(folder, "state")
            context = self._context(trial, suggestion.pair, seed, state, clock)
            try:
                model, accuracy = self._train_or_resume(trial, suggestion.pair, context, earlier)
            except (optuna.TrialPruned, TrainingDiverged):
                self.journal.spend_states(trial, *earlier)
                raise
        cost_ratio = record_cost(
            trial, suggestion, space, dense=self.pruner.shape, pruned=shape_of(model)
        )
        metric = self.trainer.metric
        loss = metric.loss(self.dense_accuracy, accuracy)
        write_trial(trial, metric=metric, accuracy=accuracy, accuracy_drop=loss)
        others = [attribute(other, "accuracy") for other in finished]
        warn_if_constant(metric, self.dense_accuracy, [*others, accuracy])
        before = [attribute(other, "accuracy_pruned") for other in [*finished, trial]]
        warn_if_reversed(metric, self.dense_accuracy, before)
        record_training(trial, self._epochs, getattr(self.trainer, "device_name", None))
        with clock("checkpoint"):
            manifest = dict(self.describe(suggestion.pair, model, accuracy))
            if space.cost.name != "macs":
                manifest["cost_ratio"] = cost_ratio
            self.journal.keep_model(trial, model, manifest)
        with clock("explain"):
            self.journal.attach_files(trial)
        write_trial(
            trial,
            seconds=round(time.perf_counter() - started, 3),
            timing={name: round(seconds, 4) for name, seconds in clock.seconds.items()},
        )
        self.journal.spend_states(trial, *earlier)
        return trial_value(
            trial, self.limit, metric, value=accuracy, loss=loss, cost_ratio=cost_ratio
        )

    def _context(
        self, trial: BaseTrial, pair: RatioPair, seed: int, state: Path | None, clock: Stopwatch
    ) -> TrialContext:
        def report(epoch: int, value: float, loss: float | None = None, /) -> None:
            value = metric_value(value, self.trainer, "train")
            if loss is not None:
                losses = trial.user_attrs.get("losses", [])
                write_trial(trial, losses=[*losses, round(loss, 5)])
            metric = self.trainer.metric
            lost = metric.loss(self.dense_accuracy, value)
            tolerance = self.limit.points if isinstance(self.limit, Tolerance) else None
            # Optuna's pruners compare reports in the direction of the study.
            report_epoch(trial, epoch, value if tolerance is None else lost)
            if not isinstance(self.limit, Frontier) and trial.should_prune():
                if tolerance is not None:
                    trial.set_constraint(metric.constraint, lost - tolerance)
                raise optuna.TrialPruned(f"{value:.4g} {metric.unit} after epoch {epoch}.")

        return TrialContext(
            seed=seed,
            teacher=self.pruner.dense,
            report=report,
            should_stop=self.should_stop or (lambda: False),
            state=state,
            identity=self.identity_of(pair),
            record=lambda values: write_trial(trial, chosen=dict(values)),
            clock=clock,
            title=f"trial {trial.number}",
            progress=self.progress,
        )

    def _train_or_resume(
        self,
        trial: BaseTrial,
        pair: RatioPair,
        context: TrialContext,
        earlier: Sequence[FrozenTrial],
    ) -> tuple[ViT, float]:
        """Return the trained model of a pair and its metric, from a saved state where possible."""
        is_resumable = context.state is not None and self._epochs != 0
        for number, interrupted in enumerate(earlier if is_resumable else ()):
            try:
                resumed = self._resume_training(trial, pair, context, earlier[number:])
            except Exception as error:  # a framework raises many kinds for a damaged state
                is_resumed = "resumed_from" in trial.user_attrs
                if is_resumed or is_storage_error(error) or isinstance(error, RanksBroken):
                    raise
                assert context.state is not None
                remove(context.state)
                why = reason(error).replace(
                    str(context.state), f"the state of trial {interrupted.number}"
                )
                _logger.warning(f"Trial {trial.number} begins again: {why}")
                continue
            if resumed is not None:
                return resumed
        model, accuracy, parent = self._start(trial, pair, context)
        self._record_pruned(trial, model, parent)
        write_trial(trial, metric=self.trainer.metric, accuracy_pruned=accuracy)
        if self._epochs != 0:
            accuracy = self._train(trial, model, pair, context)
        return model, accuracy

    def _resume_training(
        self,
        trial: BaseTrial,
        pair: RatioPair,
        context: TrialContext,
        earlier: Sequence[FrozenTrial],
    ) -> tuple[ViT, float] | None:
        """Resume the first of the ``earlier`` trainings and remove the states of the others.

        Returns:
            The model and its metric; None without its state.
        """
        interrupted, *older = earlier
        artifact, store = state_artifact(interrupted), self.journal.store
        assert artifact is not None
        assert store is not None
        assert context.state is not None
        if not fetch_state(artifact, store, context.state):
            return None
        model = self.pruner.rebuild(pair, interrupted.user_attrs["blocks"])

        def report(epoch: int, value: float, loss: float | None = None, /) -> None:
            check_resumed(trial)  # before anything is recorded
            context.report(epoch, value, loss)

        def resumed() -> None:
            copy_progress(trial, interrupted, self.trainer.metric)
            self.journal.spend_states(*older)
            self.journal.discard_spent_states()

        resuming = replace(context, on_resume=resumed, report=report)
        accuracy = self._train(trial, model, pair, resuming, artifact)
        check_resumed(trial)
        return model, accuracy

    def _train(
        self,
        trial: BaseTrial,
        model: ViT,
        pair: RatioPair,
        context: TrialContext,
        artifact: str | None = None,
    ) -> float:
        """Train in place, with all ranks where there are several, and return the metric."""
        ranks = getattr(self.trainer, "ranks", None)
        job = job_of(self.trainer, pair, context, shape=shape_of(model), artifact=artifact)
        layers = layers_of(model.train())  # as a new model is, on which frameworks rely
        keeper = StateKeeper(self.journal, trial, context, self.state_every, self._epochs)
        try:
            if ranks is not None:
                ranks.broadcast(job)
            with context.clock("train"), exit_means_stop(context):
                value = self.trainer.train(model, keeper.context)
            check_layers(layers, model, self.trainer)
            return metric_value(value, self.trainer, "train")
        except TrainingStopped:
            keeper.keep()
            raise
        except (InputError, TrainingDiverged, optuna.TrialPruned):
            raise
        except Exception as error:
            if ranks is None:
                raise
            self.journal.fail(trial, error)  # the other ranks are in the middle of this training
            _logger.exception(f"Trial {trial.number} failed, and with it this group of processes.")
            raise RanksBroken(1) from error

    @property
    def _epochs(self) -> int | None:
        """Return the number of epochs of a training, where the trainer says so."""
        epochs: int | None = getattr(self.trainer, "epochs", None)
        return epochs

    def _start(
        self, trial: BaseTrial, pair: RatioPair, context: TrialContext
    ) -> tuple[ViT, float, FrozenTrial | None]:
        """Return the pruned model, its metric, and the trial that it started from, if any."""

        def evaluate(model: ViT) -> float:
            with context.clock("evaluate"):
                return self.evaluate(model)

        store, metric = self.journal.store if self.iterative else None, self.trainer.metric
        with context.clock("prune"):
            return best_start(trial, pair, self.pruner, store, evaluate=evaluate, metric=metric)

    def _record_pruned(self, trial: BaseTrial, model: ViT, parent: FrozenTrial | None) -> None:
        record_sizes(trial, shape_of(model))
        before = 0 if parent is None else parent.user_attrs.get("total_epochs", 0)
        epochs: dict[str, Any] = {}
        if self._epochs is not None:
            epochs["total_epochs"] = before + self._epochs
        number = "dense" if parent is None else parent.number
        write_trial(trial, parent_trial=number, losses=[], **epochs)

    def describe_model(self, pair: RatioPair, model: ViT, accuracy: float) -> dict[str, Any]:
        """Return the ratios, the size and the accuracy of a pruned model, for its manifest."""
        dense, shape = self.pruner.shape, shape_of(model)
        return {
            **pair._asdict(),
            "macs_ratio": shape.macs / dense.macs,
            "macs": shape.macs,
            "params": shape.params,
            "val_accuracy": accuracy,
        }
