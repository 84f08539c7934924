"""``vit-ratio-opt prune``: prune by two given ratios, without a search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vit_ratio_opt.cli.command import Panel, option
from vit_ratio_opt.cli.files import (
    check_model_output,
    files_with_card,
    load_dense_model,
    load_option_images,
    model_files,
)
from vit_ratio_opt.cli.final import make_model
from vit_ratio_opt.cli.options import (
    DenseOptions,
    EpochsOption,
    ImageOptions,
    LearningRateOption,
    SeedOption,
)
from vit_ratio_opt.cli.pruning_options import PruningOptions, chosen_pruning
from vit_ratio_opt.data.folders import check_folder
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.files import check_outputs

__all__ = ["PruneOptions", "prune"]


@dataclass(frozen=True, kw_only=True)
class PruneOptions(PruningOptions, ImageOptions, DenseOptions):
    """Options of ``vit-ratio-opt prune``."""

    mhsa_ratio: Annotated[
        float, option(Panel.PRUNING, "Share of the attention to remove, in [0, 1).")
    ]
    ffn_ratio: Annotated[
        float, option(Panel.PRUNING, "Share of the feed-forward network to remove, in [0, 1).")
    ]
    epochs: EpochsOption = 0
    lr: LearningRateOption = None
    seed: SeedOption = 0
    output: Annotated[Path, option(Panel.OUTPUT, "Path of the pruned model's file.")] = Path(
        "pruned.safetensors"
    )


def prune(options: PruneOptions) -> None:
    """Prune by two given ratios, fine-tune, test once, and write the model with a card."""
    output = options.output
    check_model_output(output)
    check_folder(options.data)
    for name in ("mhsa_ratio", "ffn_ratio"):
        ratio = getattr(options, name)
        if not 0 <= ratio < 1:
            raise InputError(f"`{name}` must be in [0, 1), but got {ratio!r}.")
    check_outputs(
        files_with_card(output), [*model_files(options.checkpoint), *model_files(options.start)]
    )
    pruning = chosen_pruning(options)
    dense = load_dense_model(options)

    from vit_ratio_opt.composer import Search
    from vit_ratio_opt.pruning.options import CalibrationOptions
    from vit_ratio_opt.runs.final import finish
    from vit_ratio_opt.runs.options import SearchOptions
    from vit_ratio_opt.search.limits import Budget
    from vit_ratio_opt.space.pairs import RatioPair, check_pair
    from vit_ratio_opt.training.recipe import Recipe

    recipe = Recipe(epochs=options.epochs, lr="auto" if options.lr is None else options.lr)
    search = Search(
        dense,
        load_option_images(options, dense, options.seed),
        Budget(1.0),
        pruning=pruning,
        training=recipe,
        options=SearchOptions(
            seed=options.seed, calibration=CalibrationOptions(memory=options.calibration_memory)
        ),
    )
    pair = RatioPair(options.mhsa_ratio, options.ffn_ratio)
    check_pair(search.space, pair)
    make_model(
        lambda: finish(
            search.objective,
            pair,
            search.pruner.prune(pair),
            output,
            trainer=search.trainer_for(recipe),
            seed=options.seed,
        ),
        output,
    )
