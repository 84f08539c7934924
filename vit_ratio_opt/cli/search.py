"""``vit-ratio-opt search``: search the two pruning ratios of a model, or resume the search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_ratio_opt.cli.config import config_text, save_config
from vit_ratio_opt.cli.files import load_dense_model, load_option_images, model_files, trackers
from vit_ratio_opt.cli.pruning_options import chosen_pruning
from vit_ratio_opt.cli.report import print_report
from vit_ratio_opt.cli.search_options import SearchCommandOptions, StudyPlace, fill_in, limit_of
from vit_ratio_opt.data.folders import check_folder
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.runs.storage_url import check_storage_url, database_files
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.space.costs import Cost, cost_named
from vit_ratio_opt.space.curve import check_budget, fixed_ratio_pair
from vit_ratio_opt.utils.cache_files import cache_limit
from vit_ratio_opt.utils.files import check_outputs, check_writable_folder, is_plain, write_text
from vit_ratio_opt.utils.redact import redact

if TYPE_CHECKING:
    from vit_ratio_opt.composer import Search

__all__ = ["make_search", "search"]


def search(options: SearchCommandOptions) -> None:
    """Search the pruning ratios of a Vision Transformer's attention and FFN modules.

    The limit is a --budget (the most accurate pair within it wins), a --tolerance (the cheapest
    pair that keeps it wins) or a --frontier (the best pair at every cost). Run the same command
    again to resume the search.
    """
    cache_limit()  # refused before anything is written
    check_folder(options.data)
    options, place = fill_in(options)
    config = config_text(_without_password(options))
    settings_file = _settings_file(options)
    _check_files(options, place, settings_file)
    dense = load_dense_model(options)
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
    from vit_ratio_opt.pruning.options import CalibrationOptions
    from vit_ratio_opt.runs.options import RunOptions, SearchOptions
    from vit_ratio_opt.training.recipe import Recipe

    return Search(
        dense,
        load_option_images(options, dense, options.seed),
        limit_of(options),
        cost=_cost_of(options),
        pruning=chosen_pruning(options),
        training=Recipe(
            epochs=options.epochs,
            lr="auto" if options.lr is None else options.lr,
            metric=options.metric,
            label_smoothing=options.label_smoothing,
            class_weights="balanced" if options.balance_classes else None,
        ),
        options=SearchOptions(
            fixed_ratio=options.fixed_ratio,
            iterative=options.iterative,
            seed=options.seed,
            calibration=CalibrationOptions(memory=options.calibration_memory),
        ),
        run=RunOptions(
            checkpoints=place.checkpoints,
            device=options.device,
            precision=options.precision,
            state_every=options.state_every,
        ),
    )


def _cost_of(options: SearchCommandOptions) -> Cost:
    return cost_named(
        options.cost,
        latency_batch=options.latency_batch,
        latency_engine=options.latency_engine,
    )


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
    """Raise unless the options go together and all outputs can be written, before any work.

    Raises:
        InputError: Options do not go together, a file cannot be written, or an output would
            overwrite an input.
    """
    cost = _cost_of(options)
    cost.check(strategy=chosen_pruning(options).name, iterative=options.iterative)
    limit_of(options)
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
    """Raise if no pair meets a budget, where that is known without the images.

    Raises:
        InputError: A budget is out of range or cannot be met.
    """
    limit = limit_of(options)
    budgets = [limit.share] if isinstance(limit, Budget) else getattr(limit, "budgets", None)
    if not budgets or options.strategy != "structural" or options.cost == "latency":
        return
    from vit_ratio_opt.models.shape import shape_of
    from vit_ratio_opt.pruning.bounds import resolve_bounds
    from vit_ratio_opt.pruning.options import Structural
    from vit_ratio_opt.space.structural import StructuralSpace

    cost, pruning = cost_named(options.cost), chosen_pruning(options)
    assert isinstance(pruning, Structural)
    bounds = resolve_bounds(dense, pruning.skip, pruning.bounds)
    round_to = 1 if pruning.round_to == "auto" else pruning.round_to  # not known yet
    space = StructuralSpace(shape_of(dense), pruning.unit, round_to, cost, bounds=bounds)
    for budget in budgets:
        check_budget(space, budget)
        if options.fixed_ratio:
            fixed_ratio_pair(space, budget)


def _introduce(options: SearchCommandOptions, made: Search) -> None:
    """Print what is searched."""
    word = cost_named(options.cost).word
    if options.frontier is not None:
        aim = f"the frontier of {made.trainer.metric.name} and {word}"
    elif options.tolerance is None:
        aim = f"{len(made.curve)} pair(s) meet the budget {options.budget}"
    else:
        limit = made.trainer.metric.lost(options.tolerance, "at most ")
        aim = f"the lowest {word} with {limit}"
    print(f"study {options.study_name!r}: {aim}")
