"""What the studies of image folders share: their command line, and the search behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from vit_ratio_opt.cli.app import (
    BudgetOption,
    CascadeOption,
    CheckpointOption,
    ConfidenceOption,
    CostOption,
    EpochsOption,
    ExifRotationOption,
    FixedRatioOption,
    ImageSizeOption,
    IterativeOption,
    JsonLogOption,
    LatencyBatchOption,
    MhsaUnitOption,
    ModelOption,
    OutputOption,
    RepairOption,
    RoundToOption,
    SearchNameOption,
    SeedOption,
    SkipDamagedOption,
    StartOption,
    StorageOption,
    StrategyOption,
    TensorBoardOption,
    ToleranceOption,
    TrialsOption,
    ValidationOption,
    WeightsOption,
    cascade_rule,
    checkpoint_folder,
    dense_model,
    make_folder,
    print_report,
    trackers,
)
from vit_ratio_opt.data.dataset import default_validation, load_images
from vit_ratio_opt.data.folders import check_folder
from vit_ratio_opt.data.preprocessing import preprocess_or_assume
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.runs.objective import PruningObjective
from vit_ratio_opt.runs.storage import check_storage_url, database_files, open_storage
from vit_ratio_opt.runs.study import create_study, run_study
from vit_ratio_opt.space.costs import check_cost, params_space
from vit_ratio_opt.space.geometry import COST_WORDS, check_budget, fixed_ratio_pair
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.utils.files import check_outputs


def study_of(
    dataset: str, title: str, *, validation: Literal["train", "test"]
) -> Callable[..., None]:
    """The command line of a data set's study.

    Args:
        dataset: Begins the study's name, and names its folder below ``runs``.
        title: What ``--help`` begins with.
        validation: Of ``--validation`` by default, where there is no folder ``val``.
    """
    otherwise, runs = validation, Path("runs") / dataset

    def main(
        data: Annotated[Path, typer.Option(help="Folder of the images.")],
        image_size: ImageSizeOption = None,
        exif_rotation: ExifRotationOption = False,
        skip_damaged: SkipDamagedOption = False,
        checkpoint: CheckpointOption = None,
        weights: WeightsOption = None,
        model: ModelOption = None,
        start: StartOption = None,
        budget: BudgetOption = 0.6,
        tolerance: ToleranceOption = None,
        confidence: ConfidenceOption = 0.8,
        cost: CostOption = "macs",
        latency_batch: LatencyBatchOption = 1,
        n_trials: TrialsOption = 8,
        epochs: EpochsOption = 1,
        seed: SeedOption = 0,
        fixed_ratio: FixedRatioOption = False,
        strategy: StrategyOption = "structural",
        cascade: CascadeOption = None,
        mhsa_unit: MhsaUnitOption = "rank",
        repair: RepairOption = True,
        round_to: RoundToOption = 1,
        iterative: IterativeOption = False,
        validation: ValidationOption = None,
        folder: Annotated[Path, typer.Option(help="Where models and the study are kept.")] = runs,
        storage: StorageOption = None,
        study_name: SearchNameOption = None,
        json_log: JsonLogOption = None,
        tensorboard: TensorBoardOption = None,
        output: OutputOption = None,
    ) -> None:
        check_cost(cost, strategy=strategy, iterative=iterative, latency_batch=latency_batch)
        check_folder(data)
        if storage is not None:
            check_storage_url(storage)
        read = [path for path in (checkpoint, start) if path is not None]
        check_outputs(
            [path for path in (output, json_log) if path is not None],
            [*read, *(database_files(storage) if storage else ())],
        )
        dense = dense_model(checkpoint, model, start, weights)
        if tolerance is None and strategy == "structural" and cost != "latency":
            # The others see the images first.
            shape = replace(shape_of(dense), mhsa_unit=mhsa_unit, round_to=round_to)
            space = params_space(shape) if cost == "params" else shape
            check_budget(space, budget)
            if fixed_ratio:
                fixed_ratio_pair(space, budget)
        callbacks = trackers(json_log, tensorboard)
        images = load_images(
            data,
            image_size=image_size,
            validation=validation or default_validation(data, otherwise),
            seed=seed,
            preprocess=preprocess_or_assume(dense),
            exif_rotation=exif_rotation,
            skip_damaged=skip_damaged,
        )

        limit = f"{budget}" if tolerance is None else f"drop{tolerance}"
        kind = "" if strategy == "structural" else f"-{strategy}"
        kind += "" if cost == "macs" else f"-{cost}"
        name = study_name or f"{dataset}-{limit}{kind}{'-fixed' if fixed_ratio else ''}"
        objective = PruningObjective(
            dense,
            images,
            budget=budget if tolerance is None else None,
            tolerance=tolerance,
            confidence=confidence,
            cost=cost,
            latency_batch=latency_batch,
            recipe=Recipe(epochs=epochs),
            fixed_ratio=fixed_ratio,
            strategy=strategy,
            rule=cascade_rule(cascade),
            checkpoints=checkpoint_folder(folder, name),
            mhsa_unit=mhsa_unit,
            repair=repair,
            round_to=round_to,
            iterative=iterative,
            seed=seed,
        )
        if storage is None:
            make_folder(folder)
        backend = open_storage(storage or f"sqlite:///{folder / 'study.db'}")
        study = create_study(objective, study_name=name, storage=backend)
        if tolerance is None:
            print(f"study {name!r}: {len(objective.curve)} pair(s) meet the budget {budget}")
        else:
            print(
                f"study {name!r}: the least of the {COST_WORDS[cost]} that loses at most "
                f"{tolerance} points"
            )
        run_study(study, objective, n_trials=n_trials, callbacks=callbacks)
        objective.test(study)
        print_report([study], output)

    main.__doc__ = title
    return main
