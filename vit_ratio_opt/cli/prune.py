"""``vit-ratio-opt prune``: prune by two given ratios, without a search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vit_ratio_opt.cli.command import OUTPUT, PRUNING, option
from vit_ratio_opt.cli.files import (
    check_model_output,
    files_with_card,
    load_dense_model,
    model_files,
)
from vit_ratio_opt.cli.final import make_model
from vit_ratio_opt.cli.options import (
    DenseOptions,
    EpochsOption,
    ImageOptions,
    LearningRateOption,
    PruningOptions,
    SeedOption,
    chosen_pruning,
)
from vit_ratio_opt.data.folders import check_folder
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.files import check_outputs

__all__ = ["PruneOptions", "prune"]


@dataclass(frozen=True, kw_only=True)
class PruneOptions(PruningOptions, ImageOptions, DenseOptions):
    """Options of ``vit-ratio-opt prune``."""

    mhsa_ratio: Annotated[float, option(PRUNING, "Share of the attention to remove, in [0, 1).")]
    ffn_ratio: Annotated[
        float, option(PRUNING, "Share of the feed-forward network to remove, in [0, 1).")
    ]
    epochs: EpochsOption = 0
    lr: LearningRateOption = 1e-3
    seed: SeedOption = 0
    output: Annotated[Path, option(OUTPUT, "Path of the pruned model's file.")] = Path(
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
    dense = load_dense_model(options.checkpoint, options.model, options.start, options.weights)

    from vit_ratio_opt.composer import Search
    from vit_ratio_opt.data.load import default_validation, load_images
    from vit_ratio_opt.data.options import LoadOptions
    from vit_ratio_opt.data.preprocessing import preprocess_or_assume
    from vit_ratio_opt.runs.final import finish
    from vit_ratio_opt.runs.options import SearchOptions
    from vit_ratio_opt.search.limits import Budget
    from vit_ratio_opt.space.pairs import RatioPair, check_pair
    from vit_ratio_opt.training.recipe import Recipe

    search = Search(
        dense,
        load_images(
            options.data,
            image_size=options.image_size,
            validation=options.validation or default_validation(options.data, "test"),
            seed=options.seed,
            preprocess=preprocess_or_assume(dense),
            options=LoadOptions(
                exif_rotation=options.exif_rotation, skip_damaged=options.skip_damaged
            ),
        ),
        Budget(1.0),
        pruning=chosen_pruning(options),
        training=Recipe(epochs=options.epochs, lr=options.lr),
        options=SearchOptions(seed=options.seed),
    )
    pair = RatioPair(options.mhsa_ratio, options.ffn_ratio)
    check_pair(search.space, pair)
    make_model(
        lambda: finish(
            search.objective,
            pair,
            search.pruner.prune(pair),
            output,
            trainer=search.trainer_for(Recipe(epochs=options.epochs, lr=options.lr)),
            seed=options.seed,
        ),
        output,
    )
