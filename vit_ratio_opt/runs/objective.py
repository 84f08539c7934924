"""Where the two halves meet: a trial's ratios in, a pruned and fine-tuned model's accuracy out."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import optuna
import torch
import torch.nn.functional as F
from optuna.artifacts import upload_artifact
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.splits import Split
from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.latency.cache import cached_latency
from vit_ratio_opt.latency.timing import latency_curves, time_models
from vit_ratio_opt.model_files.described import check_saveable
from vit_ratio_opt.models.architecture import architecture_of
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.classifier import classes_of
from vit_ratio_opt.models.create import source_of
from vit_ratio_opt.models.device import (
    Precision,
    autocast,
    best_device,
    evaluating,
    is_out_of_memory,
    model_device,
    precision_of,
)
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.models.supported import check_supported, copy_for_training
from vit_ratio_opt.models.surgery import ALL_HEADS, check_all_tokens, shape_of, shrink_to
from vit_ratio_opt.pruning.cache import cached_calibration
from vit_ratio_opt.pruning.calibration import Calibration, calibrate
from vit_ratio_opt.pruning.cascade import (
    check_cascade,
    prune_tokens,
    reads_prefix_only,
    remove_cascade,
)
from vit_ratio_opt.pruning.importance import Importance, taylor_importance
from vit_ratio_opt.pruning.options import Allocation
from vit_ratio_opt.pruning.prune import prune_ranks, prune_to_macs, prune_units
from vit_ratio_opt.pruning.reconstruct import repair
from vit_ratio_opt.pruning.sizes import expected_losses
from vit_ratio_opt.pruning.survey import AttentionSurvey, keep_heads, survey_attention
from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.settings import StudySettings
from vit_ratio_opt.records.study import DenseRecord, StudyRecord
from vit_ratio_opt.records.trials import block_rows, finished_trials, tested_accuracy
from vit_ratio_opt.report.figures.training_curve import training_curve
from vit_ratio_opt.runs.admission import check_enqueued, check_study_of
from vit_ratio_opt.runs.artifacts import artifact_location, check_store, open_artifacts
from vit_ratio_opt.runs.heartbeats import record_heartbeats
from vit_ratio_opt.runs.lineage import (
    fetch_state,
    interrupted_trials,
    keep_state,
    nearest_parents,
    remove_states,
    state_artifact,
)
from vit_ratio_opt.runs.processes import process_name
from vit_ratio_opt.runs.signals import stop_on_signals
from vit_ratio_opt.runs.trial_models import (
    check_has_model,
    keep_model,
    read_artifact,
    read_model,
)
from vit_ratio_opt.runs.turns import own_turn
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.claims import refuse_surplus, requeue
from vit_ratio_opt.search.noise import Noise, accuracy_noise
from vit_ratio_opt.search.plan import Pair, run_plan
from vit_ratio_opt.search.space import ratio_distributions
from vit_ratio_opt.search.tolerance import ToleranceSearch
from vit_ratio_opt.space.both import Combined
from vit_ratio_opt.space.costs import Cost, Latency, cost_named
from vit_ratio_opt.space.curve import (
    budget_curve,
    curve_and_baseline,
    fixed_ratio_pair,
    pair_columns,
    smallest_cost_ratio,
)
from vit_ratio_opt.space.pairs import PairSpace, RatioPair, as_pair, check_pair
from vit_ratio_opt.space.shape import BlockShape
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.space.tokens import CP_VIT, LATE, CascadeRule, Strategy, TokenSpace
from vit_ratio_opt.space.units import MhsaUnit, StructuralUnits
from vit_ratio_opt.training.checks import warn_near_chance, warn_of_other_preprocessing
from vit_ratio_opt.training.context import (
    Stopwatch,
    TrainingDiverged,
    TrainingStopped,
    TrialContext,
)
from vit_ratio_opt.training.distributed import Ranks, RanksBroken
from vit_ratio_opt.training.evaluate import check_shape, evaluate, predict
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.progress import SearchProgress, show_waiting
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.utils.caching import default_cache
from vit_ratio_opt.utils.failures import is_storage_error, reason
from vit_ratio_opt.utils.files import check_place, check_writable_folder
from vit_ratio_opt.utils.text import csv_text
from vit_ratio_opt.utils.untrusted import mark_folder

if TYPE_CHECKING:
    from vit_ratio_opt._compat import ArtifactStore

__all__ = ["PruningObjective", "check_fit"]

# Of a teacher's logits, 256 MB are kept at most.
_MOST_LOGITS = 2**26

# Levels of cost at which a path is looked for, and pairs that it has.
_SCREENED_LEVELS, _PATH_PAIRS = 6, 64

# Images of the survey of the attention: the mean over so many does not move with more.
_SURVEYED = 128

# Settings on which the model depends that a training begins with.
_STARTS_FROM = (
    *("pruned", "rule", "by_cascade", "iterative", "mhsa_unit", "repair", "allocation"),
    *("round_to", "calibration_images", "seed"),
)

# What the user, the machine or the disk is to blame for.
_NO_FAILURE_OF_A_PAIR = (InputError, KeyboardInterrupt, OSError)

_logger = optuna.logging.get_logger(f"optuna.{__name__}")


class PruningObjective:
    """Prunes a ViT by a trial's two ratios and fine-tunes it, within a limit.

    Two limits, one of which is given:

    - ``budget``: returns the validation accuracy, to be maximised. A pair over the budget is
      pruned (in Optuna's sense) before any training.
    - ``tolerance``: returns the fraction of the cost that is left, to be minimised. A pair that
      loses more accuracy than the tolerance is pruned after its training, so that the cheapest
      complete trial is one that keeps it.

    Called by ``study.optimize`` in every trial. A trial's user attributes are ``macs_ratio``,
    ``macs``, ``cost_ratio`` (where the cost is not MACs), ``params``, ``accuracy_pruned`` (before
    fine-tuning), ``accuracy``,
    ``accuracy_drop`` (points against the dense model), ``parent_trial`` (what it started from:
    ``"dense"`` or a trial's number), ``epochs``, ``total_epochs`` (those of its parents included),
    ``seconds``, ``seed``, ``device``, ``checkpoint``, ``weights`` (hash of the model in the
    checkpoint), ``blocks`` (heads, their dimensions and
    hidden neurons of each), ``tokens`` (of a cascade: queries, keys and tokens in the FFN of each
    block), ``losses`` (of each epoch), for the report and for finding dead workers ``timing`` and
    ``worker``, and of a trial that failed, why: ``failure``. Accuracies are top-1 in per cent;
    1 FLOP is 1 multiply-add.

    Every pair is first trained with the same seed, so that pairs differ in nothing but the pair;
    a pair that is trained again, or the training of which diverged, takes the next seed.

    With ``checkpoints``, the state of the training goes into the artifact store after each epoch,
    and, when :attr:`stop` says so, in the middle of one. A trial of the same pair and seed goes on
    from there, on any machine, and ends as the interrupted one would have (``resumed_from`` names
    it, and its epoch).

    Attributes:
        stop: Asked before each step of a training; True ends the trial with KeyboardInterrupt, its
            pair handed back. :func:`~vit_ratio_opt.run_study` sets it.
        beat_seconds: How often a running trial gives a sign of life; the storage decides by
            default.

    Args:
        model: The dense, fine-tuned ViT. It is copied, not changed. The copy is in float32, and
            nothing of it is frozen: which weights ``model`` has frozen makes no difference.
        data: Its data set.
        budget: Largest fraction of the dense model's cost, in (0, 1].
        tolerance: Largest loss of accuracy against the dense model, in points, above 0.
        cost: ``"macs"``; ``"params"``, parameters; ``"latency"``, the time that a batch takes
            on this device, see :mod:`vit_ratio_opt.latency.timing`; or a
            :class:`~vit_ratio_opt.space.costs.Cost`. All but MACs are for structural pruning.
        latency_batch: Images at once whose latency counts.
        latency: What a study of latency stores, see
            :func:`~vit_ratio_opt.latency.timing.latency_curves`; measured by default.
        recipe: Fine-tuning of each trial.
        fixed_ratio: Search the baseline instead: one ratio for both modules.
        strategy: What is pruned. ``"structural"``: weights. ``"cascade"``: the tokens that pass
            through them, with ``fixed_ratio`` CP-ViT. ``"both"``: the ratios are then shares
            of the MACs of the two modules, see :class:`~vit_ratio_opt.space.both.Combined`.
        ranges: How far the attention of each block reaches, for a rule that minds it; measured on
            calibration images by default.
        rule: How tokens are left out; by default ``CP_VIT`` for a cascade alone and ``LATE``,
            which loses less, for both.
        noise: Standard deviation of the accuracy over seeds, in points, taken as it is. By
            default it is estimated: from half the standard error that the size of the validation
            split gives, and from pairs that were trained several times.
        confirmations: Times that the best pair is trained again before the search ends.
        confidence: Probability with which the answer of the search has to keep the limit, in
            (0.5, 1).
        mhsa_unit: What goes from the attention: ``"rank"``, dimensions of all heads after these
            were factorised, or ``"head"``, whole heads by Taylor scores, as the usual tools do.
            The first chooses neurons that the others can replace, the second by Taylor scores.
        repair: Whether ``proj`` and ``fc2`` are refitted after pruning, see
            :func:`vit_ratio_opt.repair`.
        allocation: How each ratio is spread over the blocks, see :func:`vit_ratio_opt.prune`.
        round_to: What ranks and neurons are multiples of, see there; the ratios go in such steps.
        checkpoints: Folder for the pruned models; none are kept without it.
        iterative: Start each trial from the nearest finished trial that pruned neither module
            more, and from the dense model where there is none. The pairs on the curve of one
            budget have no such parents: it is for studies that move from large models to small.
        artifact_store: Where the checkpoints and the states of interrupted trainings are uploaded
            to and read from: a folder, ``s3://bucket``, or any store of Optuna's. By default the
            folder ``artifacts`` of ``checkpoints``.
        calibration_images: Training images that importance, factors and repair are made from.
        cache: Folder of what was measured on them, shared by all trials and workers; the user's
            cache folder by default.
        seed: Of the calibration images and of fine-tuning.
        device: Chosen automatically by default.
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``, in which models are trained,
            evaluated and timed. By default that of the study, or for a new study the usual one of
            the device: mixed on a CUDA GPU, full elsewhere.
        progress: None shows bars in a terminal only.
        ranks: Processes that share the training of each trial. Rank 0 runs the study, the others
            :meth:`follow` it.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: Not one of budget and tolerance is given, it cannot be met, the data does not
            fit the model, or ``checkpoints`` are missing that ``iterative`` or ``artifact_store``
            need.
    """

    def __init__(
        self,
        model: ViT,
        data: ImageData,
        *,
        budget: float | None = None,
        tolerance: float | None = None,
        cost: Cost | str = "macs",
        latency_batch: int = 1,
        latency: dict[str, Any] | None = None,
        recipe: Recipe | None = None,
        fixed_ratio: bool = False,
        strategy: Strategy = "structural",
        rule: CascadeRule | None = None,
        ranges: Sequence[float] | None = None,
        noise: float | None = None,
        confirmations: int = 1,
        confidence: float = 0.8,
        mhsa_unit: MhsaUnit = "rank",
        repair: bool = True,
        allocation: Allocation = "global",
        round_to: int = 1,
        checkpoints: str | Path | None = None,
        iterative: bool = False,
        artifact_store: ArtifactStore | str | Path | None = None,
        calibration_images: int = 512,
        cache: str | Path | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        precision: Precision | None = None,
        progress: bool | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        if mhsa_unit not in ("head", "rank"):
            raise InputError(f"`mhsa_unit` must be 'head' or 'rank', but got {mhsa_unit!r}.")
        if strategy not in get_args(Strategy):
            raise InputError(
                f"`strategy` must be one of {get_args(Strategy)}, but got {strategy!r}."
            )
        if isinstance(cost, str):
            cost = cost_named(cost, latency_batch=latency_batch)
        cost.check(strategy=strategy, iterative=iterative)
        model = check_all_tokens(model)
        if strategy != "structural":
            check_cascade(model)
        self.shape = shape_of(model)
        self.units = StructuralUnits(self.shape, mhsa_unit, round_to)
        if self.shape.all_heads and mhsa_unit == "head":
            raise UnsupportedModelError(ALL_HEADS)
        check_fit(model, data)
        warn_of_other_preprocessing(model, data)
        if calibration_images < 1:
            raise InputError(
                f"`calibration_images` must be at least 1, but got {calibration_images!r}."
            )
        if (budget is None) == (tolerance is None):
            raise InputError(
                "Give either `budget` (a fraction of the cost) or `tolerance` (points of "
                f"accuracy), but got {budget=} and {tolerance=}."
            )
        if tolerance is not None and not 0 < tolerance < 100:
            raise InputError(
                f"The tolerance must be above 0 and below 100 points, but got {tolerance!r}."
            )
        if noise is not None and not noise >= 0:
            raise InputError(f"`noise` must be at least 0, but got {noise!r}.")
        if not 0.5 < confidence < 1:
            raise InputError(
                f"`confidence` must be above 0.5 and below 1, but got {confidence!r}: give a "
                "probability such as 0.8."
            )
        if precision is not None and precision not in get_args(Precision):
            raise InputError(
                f"`precision` must be one of {get_args(Precision)}, but got {precision!r}."
            )
        if strategy == "both" and (mhsa_unit == "head" or allocation != "global"):
            raise InputError(
                "`strategy='both'` needs ranks and allocation 'global', but got "
                f"{mhsa_unit=} and {allocation=}."
            )
        if strategy == "cascade" and round_to != 1:
            raise InputError("`round_to` is for structural pruning: a cascade cuts no weights.")
        if strategy == "structural" and rule is not None:
            raise InputError("`rule` (--cascade) is for the strategies 'cascade' and 'both'.")
        self.budget = budget
        self.tolerance = tolerance
        self.fixed_ratio = fixed_ratio
        self.noise = noise
        self.confirmations = confirmations
        self.confidence = confidence
        if checkpoints is not None:
            check_saveable(model)
        if device is None:
            device = best_device() if ranks is None else ranks.device
        # A copy, so that nothing the caller does later changes the teacher.
        self.model = copy_for_training(model)
        try:
            self.device = torch.device(device)
            self.model.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"`device` must be one of this machine, such as 'cuda:0' or 'cpu', but got "
                f"{str(device)!r}: {reason(error)}"
            ) from None
        check_logits(self.model, data)
        self._precision_given = precision is not None
        self.precision: Precision = precision or precision_of(self.device)
        self.data = data
        self.recipe = recipe or Recipe()
        self.calibration_images = calibration_images
        self.seed = seed
        self.strategy: Strategy = strategy
        self.rule = rule or (CP_VIT if strategy == "cascade" else LATE)
        self.repair = repair
        self.allocation: Allocation = allocation
        self.cache = default_cache() if cache is None else Path(cache)
        self.progress: SearchProgress | bool | None = progress
        self.cost = cost
        self.latency: dict[str, Any] | None = None
        self.curve: tuple[RatioPair, ...] = ()
        self.baseline: RatioPair | None = None
        self.space: PairSpace
        if isinstance(cost, Latency):
            latency = dict(cost.curves) if latency is None and cost.curves else latency
            self.search_latency(self._foretold(cost.batch) if latency is None else latency)
        else:
            self._search(self._space(ranges))
        self.checkpoints = None if checkpoints is None else Path(checkpoints)
        if self.checkpoints is not None:
            check_place(self.checkpoints)
        self.iterative = iterative
        if self.checkpoints is None and (iterative or artifact_store is not None):
            raise InputError("`iterative` and `artifact_store` need `checkpoints`: name a folder.")
        if self.checkpoints is not None and artifact_store is None:
            artifact_store = self.checkpoints / "artifacts"
        self.artifacts: str | None = None
        if isinstance(artifact_store, (str, Path)):
            self.artifacts = artifact_location(artifact_store)
            if not self.artifacts.startswith("s3://"):
                check_place(self.artifacts)
            artifact_store = open_artifacts(self.artifacts)
        if iterative and strategy != "structural" and self.rule.heads:
            raise InputError("`iterative` does not go with a rule that removes heads.")
        self.artifact_store = artifact_store
        self.ranks = ranks
        self.stop: Callable[[], bool] | None = None
        self.beat_seconds: float | None = None
        self._spent_states: list[str] = []
        self._store_is_checked = False

    def _search(self, space: PairSpace) -> None:
        self.space = space
        if self.budget is not None and self.fixed_ratio:
            self.curve = (fixed_ratio_pair(space, self.budget),)
        elif self.budget is not None:
            self.curve, self.baseline = curve_and_baseline(space, self.budget)

    def search_latency(self, latency: dict[str, Any]) -> None:
        """Search what takes so long, whatever it takes here: a study's workers agree on it.

        Args:
            latency: What the study stores.

        Raises:
            InputError: It is of another model, or the budget cannot be met.
        """
        self.cost = Latency(cast(Latency, self.cost).batch, latency)
        self._search(self._structural_space())
        self.latency = latency

    def settings_for(self, stored: StudySettings) -> StudySettings:
        """Return the settings that the objective has in a study with these.

        The study decides the precision where none was given, and which of the two hashes of the
        validation split is compared.
        """
        changes: dict[str, Any] = {}
        if stored.precision is not None and not self._precision_given:
            changes["precision"] = stored.precision
        if stored.validation and self.data.has_fingerprint(stored.validation):
            changes["validation"] = stored.validation
        return replace(self.settings, **changes)

    def adopt(self, record: StudyRecord) -> None:
        """Take over what a study has measured and the precision of its settings.

        Another machine may count an image more or less, or need another time for a pair, and
        would search in another way.

        Raises:
            InputError: The latency is of another model.
        """
        precision = self.settings_for(record.settings).precision
        if precision != self.precision:
            self.precision = cast(Precision, precision)
            self.__dict__.pop("_teacher", None)
        if record.latency is not None and record.latency != self.latency:
            self.search_latency(record.latency)
        self.dense_accuracy = float(record.dense.val_accuracy or 0.0)

    def _foretold(self, batch: int) -> dict[str, Any]:
        """The latency of this study's pairs on this device."""
        shown = None if self.progress is None else bool(self.progress)
        with show_waiting("measuring the latency of blocks", enabled=shown):
            table = cached_latency(
                self.model,
                self.cache,
                batch=batch,
                round_to=self.units.round_to,
                precision=self.precision,
            )
        guide = self.calibration if self.units.unit == "rank" else self.importance
        return latency_curves(
            table,
            self.model,
            self.units,
            guide,
            allocation=self.allocation,
            budget=self.budget,
        )

    def _structural_space(self) -> StructuralSpace:
        return StructuralSpace(self.shape, self.units.unit, self.units.round_to, self.cost)

    def _space(self, ranges: Sequence[float] | None) -> PairSpace:
        if self.strategy == "structural":
            return self._structural_space()
        if ranges is None:
            ranges = self.survey.ranges if self.rule.by_range else ()
        tokens = TokenSpace(self.shape, self.rule, tuple(ranges), reads_prefix_only(self.model))
        if self.strategy == "cascade":
            return tokens
        return Combined(tokens, round_to=self.units.round_to)

    @property
    def search_space(self) -> dict[str, FloatDistribution]:
        """What each trial suggests."""
        return ratio_distributions(self.space)

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Of the study: accuracy within a budget, or cost within a tolerance."""
        return "maximize" if self.tolerance is None else "minimize"

    def plan(
        self, start: Pair | None = None, path: Sequence[Pair] = ()
    ) -> BudgetSearch | ToleranceSearch:
        """The search that fits the limit, for :class:`~vit_ratio_opt.BinarySearchSampler`.

        Args:
            start: The pair that a search within a budget begins with, see :meth:`screen`.
            path: Where a search with a tolerance begins, see :attr:`path`.
        """
        guess = accuracy_noise(self.dense_accuracy, len(self.data.val))
        noise = Noise(guess, is_known=False) if self.noise is None else Noise(self.noise)
        if self.tolerance is None:
            if start is not None and start not in self.curve:
                # Version 0.1.0 had another pair for the units that the fixed ratio removes.
                units = self.space.removed(RatioPair(*start))
                start = next((p for p in self.curve if self.space.removed(p) == units), None)
            return BudgetSearch(
                self.curve,
                baseline=self.baseline,
                start=start,
                noise=noise,
                confirmations=self.confirmations,
                dense=self.dense_accuracy,
            )
        return ToleranceSearch(
            pair_columns(self.space, fixed_ratio=self.fixed_ratio),
            self.space.cost_ratio,
            self.tolerance,
            noise=noise,
            confirmations=self.confirmations,
            confidence=self.confidence,
            path=path,
        )

    def likely_best(self) -> Pair | None:
        """The pair of the budget's curve with the least expected loss, without pruning any.

        None with a tolerance, and for whole heads and tokens, for which nothing is foretold.
        """
        if not self.curve or self.units.unit == "head" or self.strategy != "structural":
            return None

        attention, ffn = expected_losses(self.calibration, round_to=self.units.round_to)

        def loss(pair: RatioPair) -> float:
            units, neurons = self.units.removed(pair)
            return float(attention[units * self.units.mhsa_unit_dims] + ffn[neurons])

        return min(self.curve, key=loss)

    @cached_property
    def path(self) -> tuple[Pair, ...]:
        """The likeliest pairs from the dense model down to the smallest, without training any.

        For a search with a tolerance. At some levels of cost the curve of pairs is searched, as
        :meth:`screen` does, for the pruned model whose predictions diverge least from the dense
        one's, on as many training images as calibrate, but other ones: a repair is at its best on
        those that it was made with. Between the levels the MHSA ratio is interpolated.

        Pairs of falling cost; none within a budget and for one fixed ratio.
        """
        if self.tolerance is None or self.fixed_ratio:
            return ()
        batches = [
            images for images, _ in self._seeded_batches(self.calibration_images, skip=True)
        ]
        with torch.inference_mode(), autocast(self.device, self.precision):
            dense = [self.model(images).log_softmax(dim=1) for images in batches]

        def agreement(pair: Pair) -> float:
            model = self.prune(RatioPair(*pair))
            with torch.inference_mode(), autocast(self.device, self.precision):
                losses = [
                    F.kl_div(
                        model(images).log_softmax(dim=1), target, log_target=True, reduction="sum"
                    )
                    for images, target in zip(batches, dense, strict=True)
                ]
            return -float(sum(losses)) / sum(len(images) for images in batches)

        smallest = smallest_cost_ratio(self.space)
        levels, ratios, start = [smallest], [self.space.max_pair.mhsa_ratio], None
        for level in np.linspace(smallest, 1.0, _SCREENED_LEVELS + 2)[1:-1]:
            curve = budget_curve(self.space, float(level))
            if start is not None:  # the optimum moves little from one level to the next
                start = min(curve, key=lambda pair: abs(pair.mhsa_ratio - ratios[-1]))
            seen = run_plan(BudgetSearch(curve, start=start), agreement)
            start = max(seen, key=seen.__getitem__)
            levels.append(float(level))
            ratios.append(start[0])
        levels.append(1.0)
        ratios.append(0.0)
        path = []
        for level in np.linspace(1.0, smallest, _PATH_PAIRS):
            wanted = np.interp(level, levels, ratios)
            curve = budget_curve(self.space, float(level))
            path.append(min(curve, key=lambda pair: abs(pair.mhsa_ratio - wanted)))
        return tuple(dict.fromkeys((pair.mhsa_ratio, pair.ffn_ratio) for pair in path))

    def screen(self) -> dict[Pair, float]:
        """A cheap look along the budget's curve: accuracies after pruning, without any training.

        The same bracketing and halving as of the trained trials, at some seconds a pair, begun at
        :meth:`likely_best`. On the recorded surfaces the order along a curve that it gives is
        nearly the order after fine-tuning, see ``benchmarks/screen.py``; so its best pair is where
        to begin.

        Returns:
            Accuracy in per cent of each pair that was looked at; none with a tolerance, or where
            there is nothing to choose.
        """
        if len(self.curve) < 2:
            return {}

        def accuracy(pair: Pair) -> float:
            return self._accuracy(self.prune(RatioPair(*pair)))

        seen = run_plan(BudgetSearch(self.curve, start=self.likely_best()), accuracy)
        return {pair: value for pair, (value,) in seen.items()}

    def manifest(self, pair: RatioPair, model: ViT, accuracy: float) -> dict[str, Any]:
        """What a file of the pair's model says about it, as JSON values."""
        shape, settings = shape_of(model), self.settings.to_json()
        del settings["architecture"]  # a file has its own, of the pruned model
        return {
            **pair._asdict(),
            "macs_ratio": shape.macs / self.shape.macs,
            "macs": shape.macs,
            "params": shape.params,
            "val_accuracy": accuracy,
            "dense": {
                "macs": self.shape.macs,
                "params": self.shape.params,
                "val_accuracy": self.dense_accuracy,
            },
            "classes": self.data.classes,
            "mean": self.data.mean,
            "std": self.data.std,
            # How to have the same splits elsewhere; where the images are is left open.
            "images": {
                key: None if key == "root" else value for key, value in self.data.source.items()
            },
            **settings,
        }

    @property
    def settings(self) -> StudySettings:
        """Everything on which the numbers of a trial depend; a study holds one such value."""
        space = self.space.cascade if isinstance(self.space, Combined) else self.space
        # As JSON gives it back.
        ranges = tuple(map(float, space.ranges)) if isinstance(space, TokenSpace) else None
        return StudySettings(
            strategy="fixed" if self.fixed_ratio else "searched",
            budget=self.budget,
            tolerance=self.tolerance,
            cost=self.cost.name,
            latency_batch=self.cost.batch if isinstance(self.cost, Latency) else 1,
            pruned=self.strategy,
            rule=None if self.strategy == "structural" else asdict(self.rule),
            ranges=ranges,
            by_cascade=self.space.by_cascade if isinstance(self.space, Combined) else None,
            dataset=self.data.name,
            training=self.data.training_fingerprint,
            validation=self.data.fingerprint,
            test=self.data.test_fingerprint,
            image_shape=self.data.image_shape,
            preprocessing=self.data.preprocessing,
            classes=self.data.classes,
            mean=self.data.mean,
            std=self.data.std,
            flip=self.data.flip,
            recipe=asdict(self.recipe),
            iterative=self.iterative,
            mhsa_unit=self.units.unit,
            repair=self.repair,
            allocation=self.allocation,
            round_to=self.units.round_to,
            calibration_images=self.calibration_images,
            seed=self.seed,
            noise=self.noise,
            confirmations=self.confirmations,
            confidence=self.confidence,
            precision=self.precision,
            **self._model_settings,
        )

    @cached_property
    def _model_settings(self) -> dict[str, Any]:
        """The settings that hash the dense model."""
        return {
            "model": str(getattr(self.model, "default_cfg", {}).get("architecture", "custom")),
            "weights": weights_hash(self.model),
            "architecture": architecture_of(self.model),
        }

    @property
    def origin(self) -> dict[str, Any]:
        """What :func:`vit_ratio_opt.load_objective` needs beside the settings, as JSON values."""
        return {
            "model": source_of(self.model),
            "data": self.data.source,
            "checkpoints": None if self.checkpoints is None else str(self.checkpoints.resolve()),
            "artifacts": self.artifacts,
        }

    def mark_folders(self) -> None:
        """Create the folders of models and artifacts, and mark them as this package's.

        Raises:
            InputError: One cannot be written.
        """
        for folder in (self.checkpoints, self.artifacts):
            if folder is not None and "://" not in str(folder):
                mark_folder(folder)

    @property
    def device_name(self) -> str:
        """What the trials run on."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return self.device.type

    @cached_property
    def dense_accuracy(self) -> float:
        """Validation accuracy of the dense model, in per cent."""
        accuracy = self._accuracy(self.model)
        warn_near_chance(accuracy, self.data)
        return accuracy

    def _accuracy(self, model: ViT, split: Split | None = None) -> float:
        """Accuracy of a model in per cent, on the validation split by default."""
        split = self.data.val if split is None else split
        return evaluate(model, self.data, split, precision=self.precision)

    @cached_property
    def _teacher(self) -> ViT | torch.Tensor | None:
        """What is distilled from: the same logits in every trial, or the dense model.

        Recomputing them takes longer than a small pruned model takes to train.
        """
        return self.teacher_for(self.recipe)

    def teacher_for(self, recipe: Recipe) -> ViT | torch.Tensor | None:
        """What a training by ``recipe`` is to be distilled from: logits where that is possible."""
        if recipe.distillation == 0:
            return None
        logits = len(self.data.train) * len(self.data.classes)
        if recipe.augment or logits > _MOST_LOGITS:
            return self.model
        return predict(self.model, self.data, self.data.train, precision=self.precision)

    @cached_property
    def importance(self) -> Importance:
        """Taylor scores of the dense model on seeded calibration images, computed once."""
        return self._taylor(self.model)

    def _taylor(self, model: ViT) -> Importance:
        return taylor_importance(model, self.calibration_batches)

    @cached_property
    def calibration(self) -> Calibration:
        """Factors of the dense model on the same images, computed once or read from the cache."""
        return cached_calibration(self.model, self._calibration_images, self.cache, seed=self.seed)

    @cached_property
    def calibration_batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Seeded training images, normalised and on the device, with their labels."""
        return self._seeded_batches(self.calibration_images)

    @cached_property
    def survey(self) -> AttentionSurvey:
        """What the dense model's attention does on some of the same images, computed once."""
        images = self._seeded_batches(min(self.calibration_images, _SURVEYED))
        return survey_attention(self.model, [batch for batch, _ in images])

    def _seeded_batches(
        self, images: int, *, skip: bool = False
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The first of the shuffled training images, or those after them, as far as they go."""
        train = self.data.train
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(train), generator=generator)
        if skip and len(order) > images:
            order = order[images:]
        chosen = order[:images]
        return list(self.data.batches(train.subset(chosen), 128, self.device))

    @property
    def _calibration_images(self) -> list[torch.Tensor]:
        return [images for images, _ in self.calibration_batches]

    def prune(self, pair: RatioPair, parent: ViT | None = None) -> ViT:
        """The pruned and repaired model of ``pair``, before fine-tuning.

        Args:
            pair: Ratios of the dense model, whatever it is pruned from.
            parent: A model that pruned neither module more, on the objective's device; the dense
                model by default.
        """
        pair = as_pair(pair)
        start = self.model if parent is None else remove_cascade(parent)
        if isinstance(self.space, TokenSpace):
            if self.rule.heads:
                start = keep_heads(start, self.space.heads(pair), self.survey)
            return prune_tokens(start, self.space.tokens(pair), scores=self.rule.scores)
        pruned = self._cut(start, pair)
        if self.repair:
            repair(pruned, self._calibration_images, self.calibration)
        if isinstance(self.space, Combined):
            pruned = prune_tokens(pruned, self.space.tokens(pair), scores=self.rule.scores)
        return pruned

    def _cut(self, start: ViT, pair: RatioPair) -> ViT:
        """``start`` with fewer heads, ranks and neurons."""
        dense, now, is_dense = self.units, shape_of(start), start is self.model
        if dense.unit == "rank":
            known = self.calibration
            if not is_dense:
                known = calibrate(start, self._calibration_images, seed=self.seed)
            if isinstance(self.space, Combined):
                limits, tokens = self.space.module_macs(pair), self.space.tokens(pair)
                return prune_to_macs(start, *limits, tokens, known, round_to=dense.round_to)
        units, neurons = dense.removed(pair)
        neurons -= dense.neurons - now.neurons
        spread: dict[str, Any] = {"allocation": self.allocation, "round_to": dense.round_to}
        if dense.unit == "rank":
            dims = units * dense.mhsa_unit_dims - (self.shape.attention_dims - now.attention_dims)
            return prune_ranks(start, dims, neurons, known, **spread)
        heads = units - (self.shape.heads - now.heads)
        scores = self.importance if is_dense else self._taylor(start)
        return prune_units(start, heads, neurons, scores, **spread)

    def _parent(
        self, trial: optuna.Trial, pair: RatioPair
    ) -> tuple[FrozenTrial | None, ViT | None]:
        """The trial to start from and its model; None for the dense model."""
        if not self.iterative or self.artifact_store is None or not hasattr(trial, "study"):
            return None, None
        by_number = {other.number: other for other in finished_trials(trial.study)}
        pairs = {number: _pair_of(other) for number, other in by_number.items()}
        for number in nearest_parents(self.space, pair, pairs):
            parent = by_number[number]
            if parent.user_attrs.get("checkpoint") is None:
                continue  # stopped by a pruner: it kept no model
            try:
                model = read_artifact(
                    parent,
                    trial.study.study_name,
                    trial.storage,
                    self.model,
                    self.artifact_store,
                )
                return parent, model.to(self.device)
            except Exception as error:  # a store raises whatever its client does
                if is_storage_error(error):
                    raise
                _logger.warning(
                    f"Trial {trial.number} cannot start from trial {number}, the model of which "
                    f"cannot be read: {type(error).__name__}: {reason(error)}"
                )
        return None, None

    def test(self, study: optuna.Study) -> float | None:
        """Return the test accuracy of the study's answer in per cent; None without an answer.

        The model of the answer's trial is tested, and that of the fixed ratio's trial where a
        search within a budget has trained it; with the dense model as the answer, only the dense
        model. Each model is tested once: the study keeps its accuracy in the attribute ``tested``.
        In a study of latency, ``tested`` also has the milliseconds that a batch takes here, for
        the dense model and the answer's.

        Raises:
            InputError: The objective keeps no checkpoints, or the file of a model is gone.
        """
        answer = answer_of(study)
        if answer is None:
            return None
        before = study.user_attrs.get("tested", {})
        dense = tested_accuracy(study, None)
        if dense is None:
            dense = self._accuracy(self.model, self.data.test)
        known: dict[str, Any] = {
            "dense": dense, "accuracies": dict(before.get("accuracies") or {}),
        }  # fmt: skip
        if before.get("trial") is not None:
            known["accuracies"][str(before["trial"])] = before["accuracy"]
        tested = dict(known)
        if answer.found is not None:
            trial = answer.found.trial
            tested |= {"trial": trial.number, "accuracy": self._tested(study, trial, known)}
            if isinstance(self.cost, Latency):
                tested |= self._measured_latency(study, trial, self.cost.batch)
        baseline = answer.baseline
        if baseline is not None and baseline.trial.state == optuna.trial.TrialState.COMPLETE:
            accuracy = self._tested(study, baseline.trial, known)
            tested["baseline"] = {"trial": baseline.trial.number, "accuracy": accuracy}
        if tested != before:
            study.set_user_attr("tested", tested)
            if self.data.validation == "test":
                sizes = len(self.data.val), len(self.data.test)
                whole = (sizes[0] * self.dense_accuracy + sizes[1] * dense) / sum(sizes)
                study.set_user_attr("dense_full_test_accuracy", round(whole, 4))
            if "dense" in study.user_attrs:  # not of a study that somebody else has made
                from vit_ratio_opt.report.explainer import Explainer

                Explainer(getattr(study.sampler, "n_trials", None)).refresh(study)
        return float(tested.get("accuracy", dense))

    def _tested(self, study: optuna.Study, trial: FrozenTrial, known: dict[str, Any]) -> float:
        """Return the test accuracy of a trial's model; measure it only where it is not known."""
        accuracies: dict[str, float] = known["accuracies"]
        number = str(trial.number)
        if number not in accuracies:
            model = self.model_of(trial, study).to(self.device)
            accuracies[number] = self._accuracy(model, self.data.test)
            # At once: the file of another model may be gone.
            study.set_user_attr("tested", {**study.user_attrs.get("tested", {}), **known})
        return accuracies[number]

    def _measured_latency(
        self, study: optuna.Study, trial: FrozenTrial, batch: int
    ) -> dict[str, Any]:
        """Return what a batch takes, in milliseconds, for the dense model and a trial's."""
        names, tested = ("dense_ms", "pruned_ms"), study.user_attrs.get("tested", {})
        if tested.get("trial") == trial.number and "pruned_ms" in tested:
            return {name: tested[name] for name in (*names, "device")}
        model = self.model_of(trial, study).to(self.device)
        taken = time_models([self.model, model], batch=batch, precision=self.precision)
        measured: dict[str, Any] = {
            name: round(1e3 * seconds, 4) for name, seconds in zip(names, taken, strict=True)
        }
        return {**measured, "device": self.device_name}

    def model_of(self, trial: FrozenTrial, study: optuna.Study) -> ViT:
        """A trial's pruned model, from this machine's folder or from the store of all.

        Raises:
            InputError: The trial left no model, neither place has it, or the objective has no
                ``checkpoints``.
        """
        check_has_model(trial, study.study_name)
        if self.checkpoints is None:
            raise InputError(
                f"The model of trial {trial.number} of study {study.study_name!r} is in a folder: "
                "name it with `checkpoints`."
            )
        return read_model(
            trial,
            study.study_name,
            study._storage,
            self.model,
            folder=self.checkpoints,
            store=self.artifact_store,
        )

    def __call__(self, trial: optuna.Trial) -> float:
        """One trial.

        Raises:
            TrialPruned: The pair is over the budget or loses more than the tolerance, Optuna's
                pruner says so after an epoch, or the sampler had nothing left to learn.
            TrainingStopped: :attr:`stop` said so.
        """
        trial.set_user_attr("worker", process_name())
        alive: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if hasattr(trial, "study"):  # a FixedTrial is in none
            alive = record_heartbeats(trial._trial_id, trial.storage, every=self.beat_seconds)
        with alive, own_turn(trial):
            self.discard_spent_states()
            try:
                self.prepare(getattr(trial, "study", None))
                return self._run(trial)
            except optuna.TrialPruned:
                self._spend_states(trial)
                raise
            except (Exception, KeyboardInterrupt) as error:
                is_stored = not is_storage_error(error)
                with contextlib.suppress(Exception):  # the storage may be what failed
                    text = f"{type(error).__name__}: {reason(error)}"
                    trial.set_user_attr("failure", text)
                    if not is_stored or isinstance(error, _NO_FAILURE_OF_A_PAIR):
                        requeue(trial)
                if is_stored and isinstance(error, OSError):
                    raise InputError(
                        f"Trial {trial.number} could not go on here, so its pair will be tried "
                        f"again: {reason(error)}"
                    ) from error
                raise

    def prepare(self, study: optuna.Study | None = None) -> None:
        """Check, before any work, that trials of ``study`` can be run and kept here.

        What the study has measured is adopted: an objective may serve one study after the other.

        Args:
            study: The study; None for a trial of none.

        Raises:
            InputError: The study has another direction or other settings.
            CannotWriteError: The folder of checkpoints or the artifact store cannot be written.
        """
        if study is not None:
            check_study_of(self, study)
        if self.checkpoints is not None:
            check_writable_folder(self.checkpoints)
        if self.artifacts is not None and not self.artifacts.startswith("s3://"):
            check_writable_folder(self.artifacts)
        elif self.artifact_store is not None and not self._store_is_checked:
            check_store(self.artifact_store)  # once, as it may cost seconds and money
            self._store_is_checked = True

    def _run(self, trial: optuna.Trial) -> float:
        started = time.perf_counter()
        clock = Stopwatch()
        check_enqueued(trial, self.search_space)
        pair = RatioPair(
            *(trial.suggest_float(n, d.low, d.high) for n, d in self.search_space.items())
        )
        refuse_surplus(trial)
        if self.fixed_ratio and pair.mhsa_ratio != pair.ffn_ratio:
            raise optuna.TrialPruned(f"One ratio for both modules is searched, not {tuple(pair)}.")
        try:
            check_pair(self.space, pair)
        except InputError as error:  # enqueued by hand: no reason to end the search
            raise optuna.TrialPruned(str(error)) from None
        macs = self.space.pruned_macs(pair)
        macs_ratio = macs / self.shape.macs
        cost_ratio = self.space.cost_ratio(*pair)
        _set_attributes(trial, macs_ratio=macs_ratio, macs=macs)
        if self.cost.name != "macs":
            trial.set_user_attr("cost_ratio", cost_ratio)
        if self.budget is not None:
            trial.set_constraint(self.cost.constraint, cost_ratio - self.budget)
            if cost_ratio > self.budget:
                raise optuna.TrialPruned(
                    f"{cost_ratio:.4f} of the {self.cost.word}, over {self.budget}."
                )
        in_study = hasattr(trial, "study")
        trials = trial.study.get_trials(deepcopy=False) if in_study else []
        finished = finished_trials(trial.study) if in_study else []
        seed = self.seed + sum(_pair_of(other) == pair for other in finished)
        seed += sum(_diverged(other) and _pair_of(other) == pair for other in trials)
        trial.set_user_attr("seed", seed)
        with clock("evaluate"):
            dense_accuracy = self.dense_accuracy

        with TemporaryDirectory() as folder:
            model, accuracy = self._trained(trial, pair, seed, trials, Path(folder), clock)

        realised = shape_of(model)
        if realised.macs != macs:  # not every size can be had; a model then comes out smaller
            macs_ratio = realised.macs / self.shape.macs
            # The search compares pairs by what they may cost.
            trial.set_user_attr("planned_cost_ratio", cost_ratio)
            _set_attributes(trial, macs_ratio=macs_ratio, macs=realised.macs)
            counted, dense = self.cost.count(realised), self.cost.count(self.shape)
            if counted is not None and dense is not None:
                cost_ratio = counted / dense
                if self.cost.name != "macs":
                    trial.set_user_attr("cost_ratio", cost_ratio)
        checkpoint = None
        if self.checkpoints is not None:
            with clock("checkpoint"):
                manifest = self.manifest(pair, model, accuracy)
                manifest["lineage"] = {
                    "study": trial.study.study_name if in_study else None,
                    "trial": trial.number,
                    "parent_trial": trial.user_attrs["parent_trial"],
                }
                if self.cost.name != "macs":
                    manifest["cost_ratio"] = cost_ratio
                store = self.artifact_store if in_study else None
                checkpoint = keep_model(model, self.checkpoints, manifest, trial, store)
                trial.set_user_attr("weights", weights_hash(model))
            if self.artifact_store is not None and in_study:
                with clock("explain"):
                    self._attach(trial, self.artifact_store)
        drop = dense_accuracy - accuracy
        _set_attributes(
            trial,
            accuracy=accuracy,
            accuracy_drop=drop,
            epochs=self.recipe.epochs,
            seconds=round(time.perf_counter() - started, 3),
            device=self.device_name,
            checkpoint=checkpoint,
            timing={name: round(seconds, 4) for name, seconds in clock.seconds.items()},
        )
        self._spend_states(trial, *interrupted_trials(trials, pair, seed))
        if self.tolerance is None:
            return accuracy
        trial.set_constraint("accuracy_drop", drop - self.tolerance)
        if drop > self.tolerance:
            raise optuna.TrialPruned(f"{drop:.2f} points lost, over {self.tolerance}.")
        return cost_ratio

    def _attach(self, trial: optuna.Trial, store: ArtifactStore) -> None:
        """The curve of the training and the table of the blocks, for who looks at the trial."""
        frozen = trial.study._storage.get_trial(trial._trial_id)
        sizes = tuple((heads, dim, neurons) for heads, dim, neurons in self.shape.block_sizes)
        dense = DenseRecord(blocks=sizes, tokens=self.shape.tokens)
        rows = block_rows(dense, frozen)
        try:
            with TemporaryDirectory() as folder:
                curve, table = Path(folder, "training-curve.png"), Path(folder, "blocks.csv")
                drops = self.tolerance is not None
                curve.write_bytes(training_curve(frozen, self.dense_accuracy, drops=drops))
                table.write_text(csv_text(rows))
                for path in (curve, table):
                    upload_artifact(
                        artifact_store=store, file_path=str(path), study_or_trial=trial
                    )
        except Exception as error:  # a store raises whatever its client does
            if is_storage_error(error):
                raise
            _logger.warning(f"Trial {trial.number} has no figures: {reason(error)}")

    def _trained(
        self,
        trial: optuna.Trial,
        pair: RatioPair,
        seed: int,
        trials: Sequence[FrozenTrial],
        folder: Path,
        clock: Stopwatch,
    ) -> tuple[ViT, float]:
        """The pair's model and accuracy: from where an interrupted training was left, or anew."""
        state = None if self.artifact_store is None else folder / "state.safetensors"
        if state is not None and self.artifact_store is not None and self.recipe.epochs:
            for earlier in interrupted_trials(trials, pair, seed):
                artifact = state_artifact(earlier)
                assert artifact is not None
                if not fetch_state(artifact, self.artifact_store, state):
                    continue
                try:
                    model = self._rebuilt(pair, earlier.user_attrs["blocks"])
                    accuracy = self._finetuned(trial, model, pair, seed, state, earlier, clock)
                    return model, accuracy
                except (LookupError, TypeError, ValueError) as error:
                    if "resumed_from" in trial.user_attrs:
                        raise
                    state.unlink(missing_ok=True)
                    why = reason(error).replace(str(state), f"the state of trial {earlier.number}")
                    _logger.warning(f"Trial {trial.number} begins again: {why}")
        with clock("prune"):
            parent, parent_model = self._parent(trial, pair)
            model = self.prune(pair, parent_model)
        shape = shape_of(model)
        earlier_epochs = 0 if parent is None else parent.user_attrs.get("total_epochs", 0)
        _set_attributes(
            trial,
            params=shape.params,
            blocks=shape.block_sizes,
            parent_trial="dense" if parent is None else parent.number,
            total_epochs=earlier_epochs + self.recipe.epochs,
            losses=[],
        )
        if shape.block_tokens:
            trial.set_user_attr("tokens", [list(counts) for counts in shape.block_tokens])
        with clock("evaluate"):
            accuracy = self._accuracy(model)
        trial.set_user_attr("accuracy_pruned", accuracy)
        if self.recipe.epochs:
            accuracy = self._finetuned(trial, model, pair, seed, state, None, clock)
        return model, accuracy

    def _finetuned(
        self,
        trial: optuna.Trial,
        model: ViT,
        pair: RatioPair,
        seed: int,
        state: Path | None,
        earlier: FrozenTrial | None,
        clock: Stopwatch,
    ) -> float:
        """Fine-tune in place, going on from an ``earlier`` trial's state; give the accuracy."""

        def on_resume() -> None:
            if earlier is not None:
                _take_over(trial, earlier)

        def put_by(epoch: int) -> None:
            if state is not None and self.artifact_store is not None:
                try:
                    keep_state(trial, state, self.artifact_store, epoch=epoch)
                except Exception as error:  # a store raises whatever its client does
                    if is_storage_error(error):
                        raise
                    text = f"{type(error).__name__}: {reason(error)}"
                    trial.set_user_attr("state_not_kept", text)
                    _logger.warning(f"The state of trial {trial.number} was not kept: {text}")

        def on_epoch(epoch: int, accuracy: float, loss: float | None = None, /) -> None:
            assert loss is not None
            trial.set_user_attr("losses", [*trial.user_attrs.get("losses", []), round(loss, 5)])
            put_by(epoch)
            # Pruners compare reports in the study's direction.
            drop = self.dense_accuracy - accuracy
            trial.report(accuracy if self.tolerance is None else drop, epoch)
            if trial.should_prune():
                if self.tolerance is not None:
                    trial.set_constraint("accuracy_drop", drop - self.tolerance)
                raise optuna.TrialPruned(f"{accuracy:.2f} % after epoch {epoch}.")

        if self.ranks is not None:
            blocks = shape_of(model).block_sizes
            artifact = None if earlier is None else state_artifact(earlier)
            job = {"pair": pair, "seed": seed, "blocks": blocks, "artifact": artifact}
            self.ranks.broadcast({**job, "precision": self.precision})
        try:
            with clock("train"):
                teacher = self._teacher  # at work in the first trial only
            context = TrialContext(
                seed=seed,
                report=on_epoch,
                on_resume=on_resume,
                state=state,
                identity=self.identity_of(pair),
                clock=clock,
                title=f"trial {trial.number}",
                progress=self.progress,
            )
            if self.stop is not None:
                context.should_stop = self.stop
            return finetune(
                model,
                self.data,
                self.recipe,
                context,
                teacher=teacher,
                precision=self.precision,
                ranks=self.ranks,
            )
        except TrainingStopped:
            put_by(len(trial.user_attrs["losses"]))
            raise
        except (InputError, TrainingDiverged, optuna.TrialPruned):
            raise
        except Exception as error:
            if self.ranks is None:
                raise
            # The other processes are in the middle of this training.
            trial.set_user_attr("failure", f"{type(error).__name__}: {reason(error)}")
            _logger.exception(f"Trial {trial.number} failed, and with it this group of processes.")
            raise RanksBroken(1) from error

    def follow(self) -> None:
        """Take part in what rank 0 trains, until it has no more; for every other rank.

        Raises:
            InputError: The objective has no ``ranks``, or this is rank 0.
        """
        if self.ranks is None or self.ranks.rank == 0:
            raise InputError("Only ranks other than 0 follow.")
        with stop_on_signals() as asked_to_stop:
            self._follow(self.ranks, asked_to_stop)

    def _follow(self, ranks: Ranks, stop: Callable[[], bool]) -> None:
        while (job := ranks.broadcast()) is not None:
            self.precision = job["precision"]  # rank 0 has it from the study
            pair = RatioPair(*job["pair"])
            model = self._rebuilt(pair, job["blocks"])
            with TemporaryDirectory() as folder:
                state = None
                if job["artifact"] is not None and self.artifact_store is not None:
                    state = Path(folder) / "state.safetensors"
                    fetch_state(job["artifact"], self.artifact_store, state)
                # What ends it in rank 0 ends it here.
                with contextlib.suppress(TrainingStopped, TrainingDiverged, InputError):
                    context = TrialContext(
                        seed=job["seed"],
                        should_stop=stop,
                        state=state,
                        identity=self.identity_of(pair),
                    )
                    finetune(
                        model,
                        self.data,
                        self.recipe,
                        context,
                        teacher=self._teacher,
                        precision=self.precision,
                        ranks=ranks,
                    )

    def _rebuilt(self, pair: RatioPair, blocks: Sequence[Sequence[int]]) -> ViT:
        """A model of the pair's shape, with weights that are yet to be read."""
        model = shrink_to(self.model, [BlockShape(*block) for block in blocks])
        if isinstance(self.space, (TokenSpace, Combined)):
            model = prune_tokens(model, self.space.tokens(pair), scores=self.rule.scores)
        return model.to(self.device)

    def identity_of(self, pair: RatioPair) -> dict[str, Any]:
        """Return what a training is of, as JSON values, for :func:`vit_ratio_opt.finetune`."""
        stored = self.settings.to_json()
        pruning = {name: stored.get(name) for name in _STARTS_FROM}
        return {"pair": list(pair), "dense": stored["weights"], "pruning": pruning}

    def _spend_states(self, *trials: optuna.Trial | FrozenTrial) -> None:
        """Let the states of these trials go, but not yet: until it is told, a trial may die."""
        states = map(state_artifact, trials)
        self._spent_states += [artifact for artifact in states if artifact is not None]

    def discard_spent_states(self) -> None:
        """Remove the states of trainings that have ended since."""
        if self.artifact_store is not None:
            remove_states(self._spent_states, self.artifact_store)
        self._spent_states = []


def _take_over(trial: optuna.Trial, earlier: FrozenTrial) -> None:
    """What the interrupted trial knew when its state was kept; later epochs are done again."""
    epoch = earlier.user_attrs["training_state"]["epoch"]
    known = ("params", "blocks", "tokens", "parent_trial", "total_epochs", "accuracy_pruned")
    for name in known:
        if name in earlier.user_attrs:
            trial.set_user_attr(name, earlier.user_attrs[name])
    trial.set_user_attr("losses", earlier.user_attrs["losses"][:epoch])
    trial.set_user_attr("resumed_from", {"trial": earlier.number, "epoch": epoch})
    for step, value in earlier.intermediate_values.items():
        if step <= epoch:
            trial.report(value, step)


def _diverged(trial: FrozenTrial) -> bool:
    return str(trial.user_attrs.get("failure", "")).startswith(TrainingDiverged.__name__)


def _pair_of(trial: FrozenTrial) -> RatioPair:
    # A trial of other makers may have none.
    return RatioPair(*(trial.params.get(name, math.nan) for name in RatioPair._fields))


def _set_attributes(trial: optuna.Trial, **attributes: Any) -> None:
    for name, value in attributes.items():
        trial.set_user_attr(name, value)


def check_fit(model: ViT, data: ImageData) -> None:
    """Refuse images or classes that the model was not made for.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: Channels, size or number of classes differ.
    """
    model = check_supported(model)
    channels, *size = data.image_shape
    wanted = model.patch_embed.proj.in_channels
    if channels != wanted:
        raise InputError(
            f"The model takes {wanted} channels, but {data.name} has images of {channels}."
        )
    if tuple(model.patch_embed.img_size) != tuple(size):  # FLOPs are those of this size
        hint = (
            " Call `model.set_input_size` first."
            if getattr(model, "dynamic_img_size", False)
            else ""
        )
        raise InputError(
            f"The model takes images of {tuple(model.patch_embed.img_size)} pixels, but "
            f"{data.name} has {tuple(size)}.{hint}"
        )
    classes = classes_of(model)
    if classes != len(data.classes):
        raise InputError(
            f"The model has {classes} classes, but {data.name} has {len(data.classes)}."
        )


def check_logits(model: ViT, data: ImageData) -> None:
    """Refuse a model that gives no finite logits for two images of the training split.

    Raises:
        InputError: With what is wrong with them.
    """
    two = data.train.subset(torch.arange(min(2, len(data.train))))
    images, _ = next(data.batches(two, 2, model_device(model)))
    try:
        with torch.inference_mode(), evaluating(model):
            logits = model(images)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"The model cannot classify images of {data.name}: {reason(error)}"
        ) from None
    check_shape(logits, len(images), data)
    if not bool(logits.isfinite().all()):
        raise InputError(
            f"The model gives NaN or infinite logits for images of {data.name}: look at its "
            "weights and at the normalisation of the images."
        )
