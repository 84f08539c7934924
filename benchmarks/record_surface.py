"""Records how accurate a ViT is on a grid of pairs: what the searches are compared on.

Question: what does the surface (MHSA ratio, FFN ratio) -> accuracy look like, and how noisy is it?

Method: every pair of a grid over the whole range of both ratios goes through the objective that a
study uses (Taylor importance, exact surgery, fine-tuning with distillation), once with seed 0 and
once with each further seed; ``--seed-stride`` thins the grid for the further seeds. A seed moves
the calibration images, the order of the training images and the augmentation. Rows are written as
they come: run the same command again and it goes on where it stopped.

Accuracy is on the validation split of a study; for the digits, whose validation split is only 288
images, on validation and test images together (nothing is chosen and then reported on them here).

    python benchmarks/record_surface.py digits --grid 11 --epochs 10 --seeds 3 \
        --checkpoint studies/results/quickstart_dense.safetensors
    python benchmarks/record_surface.py cifar10-d64-pruned --grid 21 --epochs 0 --seeds 3 \
        --seed-stride 5 --data DIR --checkpoint vit_cifar10_d64.safetensors
    python benchmarks/record_surface.py cifar10-d64-short --grid 9 --epochs 1 --seeds 3 \
        --seed-stride 4 --train-images 6400 --data DIR --checkpoint vit_cifar10_d64.safetensors

Output: ``benchmarks/surfaces/NAME.json``. Runtime on one core of a 2-core CPU: about 40, 30 and 30
minutes.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer
from command_line import run_command
from optuna.trial import FixedTrial
from recording import (
    PRUNING,
    CheckpointOption,
    DataOption,
    SeedsOption,
    ThreadsOption,
    TrainImagesOption,
    header,
    load_images,
    recipe_for,
    rows_so_far,
)

from vit_ratio_opt.composer import Search
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.runs.options import RunOptions, SearchOptions
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.utils.files import write_json

SURFACES = Path(__file__).parent / "surfaces"


def main(
    name: Annotated[str, typer.Argument(help="Of the surface and its file.")],
    checkpoint: CheckpointOption,
    data: DataOption = None,
    grid: Annotated[int, typer.Option(min=2, help="Values of either ratio.")] = 11,
    epochs: Annotated[int, typer.Option(min=0, help="Fine-tuning of each pair.")] = 1,
    train_images: TrainImagesOption = None,
    seeds: SeedsOption = 3,
    seed_stride: Annotated[
        int, typer.Option(min=1, help="Seeds above 0 on every n-th value of either ratio.")
    ] = 1,
    threads: ThreadsOption = 1,
) -> None:
    """Record a surface, or go on with one."""
    torch.set_num_threads(threads)
    model = load_dense(checkpoint)
    images = load_images(data, train_images)
    recipe = recipe_for(data, epochs)
    searches = [
        Search(
            model,
            images,
            Budget(1.0),
            pruning=PRUNING,
            training=recipe,
            options=SearchOptions(seed=seed),
            run=RunOptions(progress=False),
        )
        for seed in range(seeds)
    ]
    shape, space = searches[0].pruner.shape, searches[0].space
    assert isinstance(space, StructuralSpace)
    heads, neurons = space.removed(space.max_pair)
    head = header(
        searches[0],
        surface=name,
        shape={**asdict(shape), "mhsa_unit": space.unit},
        mhsa_ratios=[round(i * heads / (grid - 1)) / space.mhsa_units for i in range(grid)],
        ffn_ratios=[round(i * neurons / (grid - 1)) / space.neurons for i in range(grid)],
        seeds=seeds,
        threads=threads,
    )
    path = SURFACES / f"{name}.json"
    rows = rows_so_far(path, head)
    done = {(row["mhsa_ratio"], row["ffn_ratio"], row["seed"]) for row in rows}
    wanted = [
        (mhsa_ratio, ffn_ratio, seed)
        for seed in range(seeds)
        for mhsa_ratio, ffn_ratio in product(
            head["mhsa_ratios"][:: seed_stride if seed else 1],
            head["ffn_ratios"][:: seed_stride if seed else 1],
        )
    ]
    for mhsa_ratio, ffn_ratio, seed in wanted:
        if (mhsa_ratio, ffn_ratio, seed) in done:
            continue
        started = time.perf_counter()
        trial = FixedTrial({"mhsa_ratio": mhsa_ratio, "ffn_ratio": ffn_ratio})
        searches[seed].objective(trial)
        row = {
            "mhsa_ratio": mhsa_ratio,
            "ffn_ratio": ffn_ratio,
            "seed": seed,
            "macs_ratio": trial.user_attrs["macs_ratio"],
            "accuracy_pruned": trial.user_attrs["accuracy_pruned"],
            "accuracy": trial.user_attrs["accuracy"],
            "seconds": round(time.perf_counter() - started, 3),
        }
        rows.append(row)
        write_json({**head, "rows": rows}, path)
        print(
            f"{len(rows)} of {len(wanted)}  mhsa {mhsa_ratio:.3f}  ffn {ffn_ratio:.3f}  "
            f"seed {seed}  {row['accuracy_pruned']:.2f} -> {row['accuracy']:.2f} %  "
            f"{row['seconds']:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    run_command(main)
