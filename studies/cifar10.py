"""Search the two pruning ratios of a CIFAR-10 ViT, within a FLOPs budget or a tolerance.

``--data`` is a folder with ``train/<class>/*`` and ``test/<class>/*``, or one in which torchvision
keeps (or may download) CIFAR-10. ``--strategy`` says what is pruned: weights, the tokens that pass
through them, or both. ``--fixed-ratio`` runs the baseline, one ratio for both modules; with
``--strategy cascade`` that is CP-ViT.

    python studies/cifar10.py --data DIR --checkpoint FILE --budget 0.7 --n-trials 8 --epochs 1
    python studies/cifar10.py --data DIR --checkpoint FILE --budget 0.7 --epochs 1 --fixed-ratio
    python studies/cifar10.py --data DIR --checkpoint FILE --tolerance 2 --n-trials 12 --epochs 1
    python studies/cifar10.py --data DIR --checkpoint FILE --tolerance 1 --strategy both
    python studies/cifar10.py --data DIR --checkpoint FILE --tolerance 0.5 --strategy cascade \
        --cascade late --start runs/cifar10/checkpoints/cifar10-0%2e7/trial-0003.safetensors
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
    validation: ValidationOption = "test",
    folder: Annotated[Path, typer.Option(help="Where models and the study are kept.")] = Path(
        "runs/cifar10"
    ),
    storage: StorageOption = None,
    study_name: SearchNameOption = None,
    output: OutputOption = None,
) -> None:
    """Search the two pruning ratios of a CIFAR-10 ViT, within a FLOPs budget or a tolerance."""
    search(
        "cifar10",
        partial(load_images, data, validation=validation, seed=seed),
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
