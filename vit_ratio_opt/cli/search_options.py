"""Options of ``vit-ratio-opt search``, and the defaults that depend on other options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from vit_ratio_opt.cli.command import (
    Numbers,
    Panel,
    check_confidence,
    check_text,
    option,
    split_numbers,
)
from vit_ratio_opt.cli.config import use_config
from vit_ratio_opt.cli.options import (
    DenseOptions,
    DeviceOption,
    EpochsOption,
    ImageOptions,
    JsonLogOption,
    LearningRateOption,
    PrecisionOption,
    SeedOption,
    StateEveryOption,
    TensorBoardOption,
)
from vit_ratio_opt.cli.pruning_options import PruningOptions
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.limits import Budget, Frontier, Tolerance
from vit_ratio_opt.space.costs import CostName, Engine
from vit_ratio_opt.training.save_clock import STATE_SECONDS
from vit_ratio_opt.utils.files import named_folder
from vit_ratio_opt.utils.text import shorten, strip_escapes

__all__ = ["SearchCommandOptions", "StudyPlace", "fill_in", "limit_of"]

_DEFAULT_BUDGET = 0.6


def _use_config(ctx: typer.Context, value: Path | None) -> Path | None:
    return use_config(ctx, value, SearchCommandOptions)


def _parse_frontier(text: object) -> Numbers:
    """Return the levels or shares of a frontier as a text; a TOML file may have a number.

    Raises:
        typer.BadParameter: The text is neither.
    """
    found = Numbers(text)
    try:
        _frontier_of(found)
    except ValueError:  # of which InputError is one
        raise typer.BadParameter(
            f"{shorten(found)!r} is neither a number of levels from 2 to 100, nor shares of the "
            "cost between 0 and 1 with commas, such as 0.8,0.65,0.5."
        ) from None
    return found


@dataclass(frozen=True, kw_only=True)
class SearchCommandOptions(PruningOptions, ImageOptions, DenseOptions):
    """Options of ``vit-ratio-opt search``, and the keys of its ``--config``."""

    config: Annotated[
        Path | None,
        option(
            Panel.STUDY,
            "TOML file of options: its keys are the names of these options. Options on the "
            "command line override the file.",
            is_eager=True,
            callback=_use_config,
        ),
    ] = None
    budget: Annotated[
        float | None,
        option(
            Panel.LIMIT,
            "Largest share of the dense model's --cost, in (0, 1]. The pair with the best "
            f"accuracy wins. Default: {_DEFAULT_BUDGET}, unless --tolerance or --frontier is "
            "given.",
        ),
    ] = None
    tolerance: Annotated[
        float | None,
        option(
            Panel.LIMIT,
            "Instead of --budget: largest loss of the metric, percentage points of accuracy by "
            "default. The pair with the lowest --cost wins.",
        ),
    ] = None
    frontier: Annotated[
        Numbers | None,
        option(
            Panel.LIMIT,
            "Instead of --budget: search the best pair at every --cost. A number of levels, such "
            "as 8, or the shares of the cost, such as 0.8,0.65,0.5.",
            parser=_parse_frontier,
            metavar="LEVELS|SHARES",
        ),
    ] = None
    confidence: Annotated[
        float,
        option(
            Panel.LIMIT,
            "Probability with which the answer must keep the --tolerance, in (0.5, 1).",
            callback=check_confidence,
        ),
    ] = Tolerance.confidence
    cost: Annotated[
        CostName,
        option(
            Panel.LIMIT,
            "Cost that is limited: FLOPs (macs), parameters (params), or the time on this device "
            "(latency), predicted from a table that is measured once.",
        ),
    ] = "macs"
    latency_batch: Annotated[
        int, option(Panel.LIMIT, "Number of images in a batch whose latency is limited.", min=1)
    ] = 1
    latency_engine: Annotated[
        Engine,
        option(
            Panel.LIMIT,
            "What runs the models whose latency is limited: PyTorch (eager), PyTorch with blocks "
            "compiled by torch.compile (compiled), or exported files in ONNX Runtime "
            "(onnxruntime).",
        ),
    ] = "eager"
    fixed_ratio: Annotated[
        bool,
        option(
            Panel.PRUNING,
            "Run the baseline instead of a search: one ratio for attention and FFN. With "
            "--strategy cascade this is CP-ViT.",
            "--fixed-ratio",
        ),
    ] = False
    iterative: Annotated[
        bool,
        option(
            Panel.PRUNING,
            "Start a trial from the nearest trained one that pruned neither module more, where "
            "that is no worse before the training than to start from the dense model.",
        ),
    ] = False
    n_trials: Annotated[
        int,
        option(
            Panel.STUDY, "Number of trained trials of the study, earlier runs included.", min=1
        ),
    ] = 8
    epochs: EpochsOption = 1
    lr: LearningRateOption = None
    metric: Annotated[
        str | None,
        option(
            Panel.TRAINING,
            "Metric on the validation images: accuracy, top5, balanced_accuracy, macro_f1, auroc, "
            "map, r2, mae or loss; without labels cosine, agreement or kl. By default the usual "
            "one of the labels or outputs.",
            callback=check_text,
        ),
    ] = None
    label_smoothing: Annotated[
        float,
        option(
            Panel.TRAINING,
            "Share of each true label that is spread over all classes.",
            min=0.0,
            max=0.999,
        ),
    ] = 0.0
    balance_classes: Annotated[
        bool,
        option(
            Panel.TRAINING,
            "Weight each class in the loss by the inverse of its share of the training images.",
            "--balance-classes",
        ),
    ] = False
    seed: SeedOption = 0
    folder: Annotated[
        Path | None,
        option(
            Panel.STUDY,
            "Folder for models and the study. By default runs/NAME of the data folder.",
        ),
    ] = None
    storage: Annotated[
        str | None,
        option(
            Panel.STUDY,
            "Database URL of the study. By default a SQLite file in --folder.",
            callback=check_text,
            envvar="OPTUNA_STORAGE",
        ),
    ] = None
    study_name: Annotated[
        str | None,
        option(
            Panel.STUDY,
            "Name of the study. By default made from data folder, limit and strategy.",
            callback=check_text,
        ),
    ] = None
    device: DeviceOption = None
    precision: PrecisionOption = None
    state_every: StateEveryOption = STATE_SECONDS
    output: Annotated[
        Path | None,
        option(
            Panel.OUTPUT,
            "File for the rows of the results table as JSON. The options go into a TOML file "
            "beside it, which repeats the run with --config.",
        ),
    ] = None
    json_log: JsonLogOption = None
    tensorboard: TensorBoardOption = None


@dataclass(frozen=True)
class StudyPlace:
    """Where a study and its models are kept.

    Args:
        folder: Folder of the models, and of the study if the storage is a file there.
        storage: Database URL.
        study_name: Name of the study in the storage.
    """

    folder: Path
    storage: str
    study_name: str

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the study's models; no two names share one."""
        return named_folder(self.folder / "checkpoints", self.study_name)


def limit_of(options: SearchCommandOptions) -> Budget | Tolerance | Frontier:
    """Return the limit that the options give.

    Raises:
        InputError: The limit is out of range.
    """
    if options.tolerance is not None:
        return Tolerance(options.tolerance, options.confidence)
    if options.frontier is not None:
        return _frontier_of(options.frontier)
    return Budget(_DEFAULT_BUDGET if options.budget is None else options.budget)


def _frontier_of(text: str) -> Frontier:
    """Return the frontier of a number of levels, or of the shares of the cost.

    Raises:
        ValueError: The text is neither.
    """
    if text.strip().isdecimal():
        return Frontier(int(text))
    return Frontier(budgets=split_numbers(text))


def fill_in(options: SearchCommandOptions) -> tuple[SearchCommandOptions, StudyPlace]:
    """Return the options with all defaults that depend on others, and the place of the study.

    Raises:
        InputError: Several limits are given, or --confidence without --tolerance.
    """
    limits = (options.budget, options.tolerance, options.frontier)
    if limits.count(None) < 2:
        raise InputError("Give --budget, --tolerance or --frontier, only one of them.")
    if options.tolerance is None and options.confidence != Tolerance.confidence:
        raise InputError(
            f"--confidence {options.confidence:g} is for a --tolerance, which this search does "
            "not have: leave it out, or give --tolerance instead of --budget and --frontier."
        )
    if limits.count(None) == 3:
        options = replace(options, budget=_DEFAULT_BUDGET)
    dataset = strip_escapes(options.data.resolve().name) or "search"
    kinds = [
        "" if options.strategy == "structural" else f"-{options.strategy}",
        "" if options.cost == "macs" else f"-{options.cost}",
        "-fixed" if options.fixed_ratio else "",
    ]
    folder = options.folder or Path("runs") / dataset
    place = StudyPlace(
        folder=folder,
        storage=options.storage or f"sqlite:///{folder / 'study.db'}",
        study_name=options.study_name or f"{dataset}-{_limit_name(options)}{''.join(kinds)}",
    )
    return replace(options, folder=folder, study_name=place.study_name), place


def _limit_name(options: SearchCommandOptions) -> str:
    """Return the limit as a part of the default name of a study."""
    if options.frontier is not None:
        limit = _frontier_of(options.frontier)
        levels = [limit.levels] if limit.budgets is None else limit.budgets
        return f"frontier{'-'.join(map(str, levels))}"
    return f"{options.budget}" if options.tolerance is None else f"drop{options.tolerance}"
