"""``vit-ratio-opt search``: search the two pruning ratios of a model, or resume the search."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vit_ratio_opt.cli.command import (
    LIMIT,
    OUTPUT,
    PRUNING,
    STUDY,
    check_confidence,
    check_text,
    option,
)
from vit_ratio_opt.cli.config import config_text, save_config, use_config
from vit_ratio_opt.cli.files import load_dense_model, model_files, trackers
from vit_ratio_opt.cli.options import (
    DenseOptions,
    DeviceOption,
    EpochsOption,
    ImageOptions,
    JsonLogOption,
    LearningRateOption,
    PruningOptions,
    SeedOption,
    TensorBoardOption,
    chosen_pruning,
)
from vit_ratio_opt.cli.report import print_report
from vit_ratio_opt.data.folders import check_folder
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.runs.storage import (
    check_storage_url,
    database_files,
    open_storage,
)
from vit_ratio_opt.search.limits import Budget, Tolerance
from vit_ratio_opt.space.costs import CostName, cost_named
from vit_ratio_opt.space.curve import check_budget, fixed_ratio_pair
from vit_ratio_opt.utils.files import (
    check_outputs,
    check_writable_folder,
    file_name,
    is_plain,
    write_text,
)
from vit_ratio_opt.utils.redact import (
    redact,
)
from vit_ratio_opt.utils.text import plain

if TYPE_CHECKING:
    from vit_ratio_opt.composer import Search

__all__ = ["SearchCommandOptions", "StudyPlace", "make_search", "search"]

_DEFAULT_BUDGET = 0.6


def _use_config(ctx: typer.Context, value: Path | None) -> Path | None:
    return use_config(ctx, value, SearchCommandOptions)


@dataclass(frozen=True, kw_only=True)
class SearchCommandOptions(PruningOptions, ImageOptions, DenseOptions):
    """Options of ``vit-ratio-opt search``, and the keys of its ``--config``."""

    config: Annotated[
        Path | None,
        option(
            STUDY,
            "TOML file of options: its keys are the names of these options. Options on the "
            "command line override the file.",
            is_eager=True,
            callback=_use_config,
        ),
    ] = None
    budget: Annotated[
        float | None,
        option(
            LIMIT,
            "Largest share of the dense model's --cost, in (0, 1]. The pair with the best "
            f"accuracy wins. Default: {_DEFAULT_BUDGET}, unless --tolerance is given.",
        ),
    ] = None
    tolerance: Annotated[
        float | None,
        option(
            LIMIT,
            "Instead of --budget: largest loss of accuracy, in percentage points. The pair with "
            "the lowest --cost wins.",
        ),
    ] = None
    confidence: Annotated[
        float,
        option(
            LIMIT,
            "Probability with which the answer must keep the --tolerance, in (0.5, 1).",
            callback=check_confidence,
        ),
    ] = 0.8
    cost: Annotated[
        CostName,
        option(
            LIMIT,
            "Cost that is limited: FLOPs (macs), parameters (params), or the time on this device "
            "(latency), predicted from a table that is measured once.",
        ),
    ] = "macs"
    latency_batch: Annotated[
        int, option(LIMIT, "Number of images in a batch whose latency is limited.", min=1)
    ] = 1
    fixed_ratio: Annotated[
        bool,
        option(
            PRUNING,
            "Run the baseline instead of a search: one ratio for attention and FFN. With "
            "--strategy cascade this is CP-ViT.",
            "--fixed-ratio",
        ),
    ] = False
    iterative: Annotated[
        bool,
        option(
            PRUNING,
            "Start each trial from the nearest trained trial that pruned neither module more.",
        ),
    ] = False
    n_trials: Annotated[
        int,
        option(STUDY, "Number of trained trials of the study, earlier runs included.", min=1),
    ] = 8
    epochs: EpochsOption = 1
    lr: LearningRateOption = 1e-3
    seed: SeedOption = 0
    folder: Annotated[
        Path | None,
        option(STUDY, "Folder for models and the study. By default runs/NAME of the data folder."),
    ] = None
    storage: Annotated[
        str | None,
        option(
            STUDY,
            "Database URL of the study. By default a SQLite file in --folder.",
            callback=check_text,
            envvar="OPTUNA_STORAGE",
        ),
    ] = None
    study_name: Annotated[
        str | None,
        option(
            STUDY,
            "Name of the study. By default made from data folder, limit and strategy.",
            callback=check_text,
        ),
    ] = None
    device: DeviceOption = None
    output: Annotated[
        Path | None,
        option(
            OUTPUT,
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
        """Folder of the study's models; no two names share one."""
        return self.folder / "checkpoints" / file_name(self.study_name)


def search(options: SearchCommandOptions) -> None:
    """Search the pruning ratios of a Vision Transformer's attention and FFN modules.

    The limit is a --budget (the most accurate pair within it wins) or a --tolerance (the cheapest
    pair that keeps it wins). Run the same command again to resume the search.
    """
    check_folder(options.data)
    options, place = _fill_in(options)
    config = config_text(_without_password(options))
    settings_file = _settings_file(options)
    _check_files(options, place, settings_file)
    dense = load_dense_model(options.checkpoint, options.model, options.start, options.weights)
    _check_budget(options, dense)
    callbacks = trackers(options.json_log, options.tensorboard)
    made = make_search(options, place, dense)
    check_writable_folder(place.folder)
    study = made.create_study(place.study_name, storage=open_storage(place.storage))
    save_config(study, config)
    _introduce(options, made)
    made.run(study, options.n_trials, callbacks=callbacks)
    made.test(study)
    print_report([study], options.output)
    if settings_file is not None:
        write_text(config, settings_file)
        print(f"options written to {settings_file}: repeat the run with --config")


def make_search(options: SearchCommandOptions, place: StudyPlace, dense: Any) -> Search:
    """Return the search that the options describe.

    Args:
        options: Options of the command.
        place: Where the study and its models are kept.
        dense: The dense model.

    Raises:
        InputError: The images cannot be loaded, or an option does not fit them or the model.
    """
    from vit_ratio_opt.composer import Search
    from vit_ratio_opt.data.load import default_validation, load_images
    from vit_ratio_opt.data.options import LoadOptions
    from vit_ratio_opt.data.preprocessing import preprocess_or_assume
    from vit_ratio_opt.runs.options import RunOptions, SearchOptions
    from vit_ratio_opt.training.recipe import Recipe

    images = load_images(
        options.data,
        image_size=options.image_size,
        validation=options.validation or default_validation(options.data, "test"),
        seed=options.seed,
        preprocess=preprocess_or_assume(dense),
        options=LoadOptions(
            exif_rotation=options.exif_rotation, skip_damaged=options.skip_damaged
        ),
    )
    limit: Budget | Tolerance
    if options.tolerance is not None:
        limit = Tolerance(options.tolerance, options.confidence)
    else:
        assert options.budget is not None
        limit = Budget(options.budget)
    return Search(
        dense,
        images,
        limit,
        cost=cost_named(options.cost, latency_batch=options.latency_batch),
        pruning=chosen_pruning(options),
        training=Recipe(epochs=options.epochs, lr=options.lr),
        options=SearchOptions(
            fixed_ratio=options.fixed_ratio, iterative=options.iterative, seed=options.seed
        ),
        run=RunOptions(checkpoints=place.checkpoints, device=options.device),
    )


def _fill_in(options: SearchCommandOptions) -> tuple[SearchCommandOptions, StudyPlace]:
    """Return the options with all defaults that depend on others, and the place of the study.

    Raises:
        InputError: Both limits are given.
    """
    if options.budget is not None and options.tolerance is not None:
        raise InputError("Give --budget or --tolerance, not both.")
    if options.budget is None and options.tolerance is None:
        options = replace(options, budget=_DEFAULT_BUDGET)
    dataset = plain(options.data.resolve().name) or "search"
    limit = f"{options.budget}" if options.tolerance is None else f"drop{options.tolerance}"
    kinds = [
        "" if options.strategy == "structural" else f"-{options.strategy}",
        "" if options.cost == "macs" else f"-{options.cost}",
        "-fixed" if options.fixed_ratio else "",
    ]
    folder = options.folder or Path("runs") / dataset
    place = StudyPlace(
        folder=folder,
        storage=options.storage or f"sqlite:///{folder / 'study.db'}",
        study_name=options.study_name or f"{dataset}-{limit}{''.join(kinds)}",
    )
    return replace(options, folder=folder, study_name=place.study_name), place


def _without_password(options: SearchCommandOptions) -> SearchCommandOptions:
    """Return the options without a storage whose URL contains a password."""
    has_password = options.storage is not None and redact(options.storage) != options.storage
    return replace(options, storage=None) if has_password else options


def _settings_file(options: SearchCommandOptions) -> Path | None:
    """Return the TOML file beside ``--output``; None if there is none, or it is ``--config``."""
    if options.output is None or not is_plain(options.output):
        return None
    path = options.output.with_suffix(".toml")
    is_read = options.config is not None and path.resolve() == options.config.resolve()
    return None if is_read else path


def _check_files(
    options: SearchCommandOptions, place: StudyPlace, settings_file: Path | None
) -> None:
    """Raise unless the cost fits and all outputs can be written, before any work.

    Raises:
        InputError: The cost does not fit, or a file cannot be written, or would be overwritten.
    """
    cost = cost_named(options.cost, latency_batch=options.latency_batch)
    cost.check(strategy=options.strategy, iterative=options.iterative)
    if options.storage is not None:
        check_storage_url(options.storage)
    written = [options.output, settings_file, options.json_log]
    check_outputs(
        [path for path in written if path is not None],
        [
            *model_files(options.checkpoint),
            *model_files(options.start),
            *([] if options.config is None else [options.config]),
            *database_files(place.storage),
        ],
    )


def _check_budget(options: SearchCommandOptions, dense: Any) -> None:
    """Raise if no pair meets the budget, where that is known without the images.

    Raises:
        InputError: The budget is out of range or cannot be met.
    """
    if options.budget is None or options.strategy != "structural" or options.cost == "latency":
        return
    from vit_ratio_opt.models.surgery import shape_of
    from vit_ratio_opt.space.structural import StructuralSpace

    cost = cost_named(options.cost)
    space = StructuralSpace(shape_of(dense), options.mhsa_unit, options.round_to, cost)
    check_budget(space, options.budget)
    if options.fixed_ratio:
        fixed_ratio_pair(space, options.budget)


def _introduce(options: SearchCommandOptions, made: Search) -> None:
    """Print what is searched."""
    if options.tolerance is None:
        aim = f"{len(made.curve)} pair(s) meet the budget {options.budget}"
    else:
        word = cost_named(options.cost).word
        aim = f"the lowest {word} that loses at most {options.tolerance} points"
    print(f"study {options.study_name!r}: {aim}")
