"""Search the two pruning ratios of a Mini-ImageNet ViT, within a FLOPs budget or a tolerance.

``--data`` is a folder with ``train/<class>/*`` and ``val/<class>/*`` (or ``test``), or one with
``images/*`` and ``train.csv``, ``val.csv``, ``test.csv`` as the data set is usually passed on.
Those three have different classes, for few-shot learning; here all images are put together and a
fifth of each class is held out for the test.

The dense model is one of ``studies/train_dense.py`` at 84 pixels, or any timm ViT that was
fine-tuned on these classes, at its own size, such as ``--image-size 224``.

    python studies/train_dense.py dense.safetensors --data DIR --image-size 84 --patch-size 12 \
        --embed-dim 96 --num-heads 6 --mlp-ratio 3 --epochs 40 --cutmix 1 --drop-path 0.05 \
        --ema 0.998
    python studies/mini_imagenet.py --data DIR --checkpoint dense.safetensors --tolerance 1
    python studies/mini_imagenet.py --data DIR --checkpoint dense.safetensors --tolerance 1 \
        --strategy cascade --fixed-ratio
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from image_search import search

from vit_ratio_opt.cli import (
    BudgetOption,
    CascadeOption,
    CheckpointOption,
    EpochsOption,
    FixedRatioOption,
    IterativeOption,
    MhsaUnitOption,
    ModelOption,
    OutputOption,
    RepairOption,
    RoundToOption,
    SearchNameOption,
    SeedOption,
    StartOption,
    StorageOption,
    StrategyOption,
    ToleranceOption,
    TrialsOption,
    ValidationOption,
    cascade_rule,
    run_command,
)
from vit_ratio_opt.training import Recipe, load_images


def main(
    data: Annotated[Path, typer.Option(help="Folder of the images.")],
    image_size: Annotated[
        int, typer.Option(min=1, help="Pixels that the images are resized and cropped to.")
    ] = 84,
    checkpoint: CheckpointOption = None,
    model: ModelOption = None,
    start: StartOption = None,
    budget: BudgetOption = 0.6,
    tolerance: ToleranceOption = None,
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
    validation: ValidationOption = "train",
    folder: Annotated[Path, typer.Option(help="Where models and the study are kept.")] = Path(
        "runs/mini-imagenet"
    ),
    storage: StorageOption = None,
    study_name: SearchNameOption = None,
    output: OutputOption = None,
) -> None:
    """Search the two pruning ratios of a Mini-ImageNet ViT, within a budget or a tolerance."""
    search(
        "mini-imagenet",
        partial(load_images, data, image_size=image_size, validation=validation, seed=seed),
        checkpoint=checkpoint,
        model=model,
        start=start,
        budget=budget,
        tolerance=tolerance,
        n_trials=n_trials,
        folder=folder,
        storage=storage,
        study_name=study_name,
        output=output,
        recipe=Recipe(epochs=epochs),
        fixed_ratio=fixed_ratio,
        strategy=strategy,
        rule=cascade_rule(cascade),
        mhsa_unit=mhsa_unit,
        repair=repair,
        round_to=round_to,
        iterative=iterative,
        seed=seed,
    )


if __name__ == "__main__":
    run_command(main)
