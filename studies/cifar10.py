"""Search the two pruning ratios of a CIFAR-10 ViT, within a FLOPs budget or a tolerance.

``--data`` is a folder with ``train/<class>/*`` and ``test/<class>/*``, or one in which torchvision
keeps (or may download) CIFAR-10. ``--fixed-ratio`` runs the baseline, one ratio for both modules.

    python studies/cifar10.py --data DIR --checkpoint FILE --budget 0.7 --n-trials 8 --epochs 1
    python studies/cifar10.py --data DIR --checkpoint FILE --budget 0.7 --epochs 1 --fixed-ratio
    python studies/cifar10.py --data DIR --checkpoint FILE --tolerance 2 --n-trials 12 --epochs 1
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from vit_ratio_opt.checkpoint import create_model, load_dense
from vit_ratio_opt.cli import (
    BudgetOption,
    EpochsOption,
    IterativeOption,
    MhsaUnitOption,
    OutputOption,
    RepairOption,
    RoundToOption,
    SeedOption,
    StorageOption,
    ToleranceOption,
    TrialsOption,
    check_output,
    checkpoint_folder,
    make_folder,
    print_report,
    run_command,
)
from vit_ratio_opt.geometry import check_budget, fixed_ratio_pair
from vit_ratio_opt.objective import PruningObjective
from vit_ratio_opt.pruning import shape_of
from vit_ratio_opt.study import check_storage_url, create_study, open_storage, run_study
from vit_ratio_opt.training import Recipe, load_images


class ValidationSplit(str, Enum):
    """Where the images come from that ratios are chosen on."""

    train = "train"
    test = "test"


def main(
    data: Annotated[Path, typer.Option(help="Folder of the images.")],
    checkpoint: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="The dense model, safetensors or a .pth state dict.", show_default=False
        ),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="timm name, the checkpoint's by default; without one, timm's weights.",
            show_default=False,
        ),
    ] = None,
    budget: BudgetOption = 0.6,
    tolerance: ToleranceOption = None,
    n_trials: TrialsOption = 8,
    epochs: EpochsOption = 1,
    seed: SeedOption = 0,
    fixed_ratio: Annotated[
        bool, typer.Option("--fixed-ratio", help="Run the baseline: both ratios equal.")
    ] = False,
    mhsa_unit: MhsaUnitOption = "rank",
    repair: RepairOption = True,
    round_to: RoundToOption = 1,
    iterative: IterativeOption = False,
    validation: Annotated[
        ValidationSplit,
        typer.Option(
            help="'test': choose on half of the test split and report on the other, for a dense "
            "model that has seen all training images. 'train': hold out a tenth of them."
        ),
    ] = ValidationSplit.test,
    folder: Annotated[Path, typer.Option(help="Where models and the study are kept.")] = Path(
        "runs/cifar10"
    ),
    storage: StorageOption = None,
    study_name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The study's name; from budget and strategy by default."),
    ] = None,
    output: OutputOption = None,
) -> None:
    """Search the two pruning ratios of a CIFAR-10 ViT, within a FLOPs budget or a tolerance."""
    if checkpoint is not None:
        dense = load_dense(checkpoint, name=model)
    elif model is not None:
        dense = create_model(model, pretrained=True)
    else:
        raise typer.BadParameter("give --checkpoint, --model or both")
    if tolerance is None:
        shape = replace(shape_of(dense), mhsa_unit=mhsa_unit, round_to=round_to)
        check_budget(shape, budget)
        if fixed_ratio:
            fixed_ratio_pair(shape, budget)
    check_output(output)
    if storage is not None:
        check_storage_url(storage)
    images = load_images(data, validation=validation.value, seed=seed)

    limit = f"{budget}" if tolerance is None else f"drop{tolerance}"
    name = study_name or f"cifar10-{limit}{'-fixed' if fixed_ratio else ''}"
    objective = PruningObjective(
        dense,
        images,
        budget=budget if tolerance is None else None,
        tolerance=tolerance,
        recipe=Recipe(epochs=epochs),
        fixed_ratio=fixed_ratio,
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
        print(f"study {name!r}: the fewest FLOPs that lose at most {tolerance} points")
    run_study(study, objective, n_trials=n_trials)
    objective.test(study)
    print_report([study], output)


if __name__ == "__main__":
    run_command(main)
