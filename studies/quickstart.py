"""The whole path in a few minutes: a small ViT on scikit-learn's digits.

Trains the dense model once and keeps it, and searches the pair of ratios within the budget. The
search trains the one fixed ratio that meets the same budget first; dense model, fixed ratio and
answer are printed side by side. The same command resumes it.

    python studies/quickstart.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.cli.app import (
    BudgetOption,
    CostOption,
    EpochsOption,
    IterativeOption,
    JsonLogOption,
    LatencyBatchOption,
    MhsaUnitOption,
    OutputOption,
    RepairOption,
    RoundToOption,
    SeedOption,
    StorageOption,
    StrategyOption,
    StudyNameOption,
    TensorBoardOption,
    TrialsOption,
    checkpoint_folder,
    make_folder,
    print_report,
    run_command,
    trackers,
)
from vit_ratio_opt.data.dataset import ImageData, load_digits
from vit_ratio_opt.data.preprocessing import remember_preprocessing
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.models.device import best_device
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.runs.objective import PruningObjective
from vit_ratio_opt.runs.storage import check_storage_url, database_files, open_storage
from vit_ratio_opt.runs.study import create_study, run_study
from vit_ratio_opt.space.costs import check_cost, params_space
from vit_ratio_opt.space.geometry import check_budget
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.utils.files import check_outputs

MODEL = "vit_tiny_patch16_224"
ARGUMENTS: dict[str, Any] = {
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 64,
    "depth": 4,
    "num_heads": 8,
    "mlp_ratio": 2.0,
}
DENSE_RECIPE = Recipe(
    epochs=60,
    batch_size=64,
    lr=3e-3,
    weight_decay=0.05,
    warmup=0.15,
    distillation=0.0,
    augment=True,
)


def main(
    budget: BudgetOption = 0.2,
    cost: CostOption = "macs",
    latency_batch: LatencyBatchOption = 1,
    n_trials: TrialsOption = 8,
    epochs: EpochsOption = 10,
    seed: SeedOption = 0,
    strategy: StrategyOption = "structural",
    mhsa_unit: MhsaUnitOption = "rank",
    repair: RepairOption = True,
    round_to: RoundToOption = 1,
    iterative: IterativeOption = False,
    folder: Annotated[Path, typer.Option(help="Where models and the study are kept.")] = Path(
        "runs/quickstart"
    ),
    storage: StorageOption = None,
    study_name: StudyNameOption = "quickstart",
    json_log: JsonLogOption = None,
    tensorboard: TensorBoardOption = None,
    output: OutputOption = None,
) -> None:
    """Search the two pruning ratios of a small ViT on scikit-learn's digits."""
    check_cost(cost, strategy=strategy, iterative=iterative, latency_batch=latency_batch)
    shape = replace(
        shape_of(create_model(MODEL, **ARGUMENTS)), mhsa_unit=mhsa_unit, round_to=round_to
    )
    if strategy == "structural" and cost != "latency":
        # What the others cost depends on the dense model.
        space = params_space(shape) if cost == "params" else shape
        check_budget(space, budget)
    if storage is not None:
        check_storage_url(storage)
    check_outputs(
        [path for path in (output, json_log) if path is not None],
        database_files(storage) if storage else (),
    )
    callbacks = trackers(json_log, tensorboard)
    make_folder(folder)

    data = load_digits(seed=seed)
    backend = open_storage(storage or f"sqlite:///{folder / 'study.db'}")
    model = _dense_model(folder / f"dense-seed{seed}.safetensors", data, seed)
    objective = PruningObjective(
        model,
        data,
        budget=budget,
        cost=cost,
        latency_batch=latency_batch,
        recipe=Recipe(epochs=epochs, batch_size=64),
        strategy=strategy,
        checkpoints=checkpoint_folder(folder, study_name),
        mhsa_unit=mhsa_unit,
        repair=repair,
        round_to=round_to,
        iterative=iterative,
        seed=seed,
    )
    study = create_study(objective, study_name=study_name, storage=backend)
    print(f"study {study_name!r}: {len(objective.curve)} pair(s) meet the budget {budget}")
    run_study(study, objective, n_trials=n_trials, callbacks=callbacks)
    objective.test(study)
    print_report([study], output)


def _dense_model(path: Path, data: ImageData, seed: int) -> VisionTransformer:
    if path.is_file():
        print(f"dense model: {path}")
        return load_dense(path)
    print(f"training the dense model once, {DENSE_RECIPE.epochs} epochs; kept in {path}")
    torch.manual_seed(seed)
    model = create_model(MODEL, **ARGUMENTS).to(best_device())
    remember_preprocessing(model, data.preprocess)
    accuracy = finetune(model, data, DENSE_RECIPE, TrialContext(seed=seed, title="dense"))
    print(f"dense model: {accuracy:.2f} % on the validation split")
    save_dense(model, path, name=MODEL, arguments=ARGUMENTS)
    return model


if __name__ == "__main__":
    run_command(main)
