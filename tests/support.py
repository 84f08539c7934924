"""What many tests compose: searches from options by their names in settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from optuna.study import Study

from vit_ratio_opt.composer import Search
from vit_ratio_opt.pruning.options import CalibrationOptions, pruning_options
from vit_ratio_opt.restore import load_search
from vit_ratio_opt.runs.options import Places, RunOptions, SearchOptions
from vit_ratio_opt.search.limits import Budget, Frontier, Tolerance
from vit_ratio_opt.space.costs import cost_named

__all__ = ["load_again", "make_search", "new_study"]

_PRUNING = ("rule", "repair", "allocation", "round_to", "by_cascade", "criterion")
_SEARCH = ("fixed_ratio", "noise", "confirmations", "screen", "iterative", "seed")
_RUN = ("checkpoints", "artifacts", "device", "precision", "progress", "ranks", "state_every")


def make_search(model: Any, data: Any, **options: Any) -> Search:
    """Compose a search; options have their names in settings and on the command line."""

    def take(*names: str) -> dict[str, Any]:
        return {name: options.pop(name) for name in names if options.get(name) is not None}

    if "mhsa_unit" in options:
        options["unit"] = options.pop("mhsa_unit")
    if "calibration_images" in options:
        options["images"] = options.pop("calibration_images")
    cost = cost_named(
        options.pop("cost", "macs"),
        latency_batch=options.pop("latency_batch", 1),
        latency_engine=options.pop("latency_engine", "eager"),
    )
    if "latency" in options:
        cost = replace(cost, curves=options.pop("latency"))
    pruning = pruning_options(options.pop("strategy", "structural"), **take("unit", *_PRUNING))
    calibration = CalibrationOptions(**take("images", "cache"))
    searched = SearchOptions(calibration=calibration, **take(*_SEARCH))
    budget, tolerance = options.pop("budget", None), options.pop("tolerance", None)
    confidence = take("confidence")
    limit: Budget | Tolerance | Frontier
    if "frontier" in options:
        limit = Frontier(levels=options.pop("frontier"))
    else:
        limit = Budget(budget) if tolerance is None else Tolerance(tolerance, **confidence)
    recipe, run = options.pop("recipe", None), RunOptions(**take(*_RUN))
    assert not any(value is not None for value in options.values()), options
    return Search(
        model, data, limit, cost=cost, pruning=pruning, training=recipe, options=searched, run=run
    )


def load_again(
    study_name: str, storage: Any, *, run: RunOptions | None = None, **places: Any
) -> Search:
    """Load the search of a study, with its files where ``places`` say."""
    return load_search(study_name, storage, Places(**places), run)


def new_study(search: Search, study_name: str, *, screen: bool = True, **options: Any) -> Study:
    """Create or resume the study of a search, by default with a look before any training."""
    search.options = replace(search.options, screen=screen)
    return search.create_study(study_name, **options)
