"""Records how accurate a ViT is after pruning each pair of a grid: what searches are compared on.

Question: what does the surface (MHSA ratio, FFN ratio) -> accuracy look like, and how noisy is it?

Method: every pair of a grid over the whole range of both ratios is pruned as a search prunes by
default (ranks, repair) but for sizes that are multiples of 1 on every device, and trained by the
default recipe. So are the pairs of a thinner grid with each further seed. With ``--budget``, the
grid is one of pairs on the curves of these budgets. A seed moves the calibration images and the
order of the training images. A row also has what is known before any training: the accuracy, the
divergence from the dense model on training images, and the loss that the calibration predicts.

Accuracy is on validation and test images together, since nothing is chosen on one and reported on
the other. Rows are written as they come, by any number of processes: run the same command again
and it goes on where it stopped.

    python benchmarks/record_surface.py digits --grid 11 --epochs 10 \
        --checkpoint studies/results/quickstart_dense.safetensors
    python benchmarks/record_surface.py d64-untrained --grid 21 --epochs 0 \
        --data DIR --checkpoint vit_cifar10_d64.safetensors
    python benchmarks/record_surface.py d64 --grid 9 --epochs 1 --train-images 6400 \
        --seed-stride 4 --data DIR --checkpoint vit_cifar10_d64.safetensors
    python benchmarks/record_surface.py d128-untrained --grid 15 --epochs 0 \
        --data DIR --checkpoint vit_cifar10_d128.safetensors
    python benchmarks/record_surface.py d128-budgets --budget 0.6 --budget 0.4 --budget 0.25 \
        --grid 9 --epochs 1 --data DIR --checkpoint vit_cifar10_d128.safetensors

Output: ``surfaces/ranks/NAME.json``. The files beside ``ranks`` are of whole heads without
repair, recorded by the versions of this file at d567b3f and 26e640f.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import cache
from itertools import product
from math import inf
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Optional

import torch
import typer
from command_line import run_command
from recording import (
    CheckpointOption,
    DataOption,
    MinutesOption,
    ProcessesOption,
    Results,
    SeedsOption,
    ThreadsOption,
    TrainImagesOption,
    joined,
    load_images,
    part_of,
    share_work,
)

from vit_ratio_opt.composer import Search
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.models.device import best_device
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.options import Structural
from vit_ratio_opt.runs.options import RunOptions, SearchOptions
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.space.curve import budget_curve
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.fitting import divergence
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.trainer import ImageTrainer

SURFACES = Path(__file__).parent / "surfaces" / "ranks"


Place = tuple[tuple[int, ...], RatioPair]
"""Where a pair is on the grid, and the pair."""


class Task(NamedTuple):
    """A row: which pair is pruned and trained with which seed."""

    seed: int
    pair: RatioPair


def main(
    name: Annotated[str, typer.Argument(help="Of the surface and its file.")],
    checkpoint: CheckpointOption,
    data: DataOption = None,
    grid: Annotated[int, typer.Option(min=2, help="Values of either ratio, or of a curve.")] = 11,
    budget: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option(help="Pairs on this budget's curve instead; may be repeated."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=0, help="Of each training.")] = 1,
    train_images: TrainImagesOption = None,
    seeds: SeedsOption = 3,
    seed_stride: Annotated[
        int, typer.Option(min=1, help="Seeds above 0 on every n-th value only.")
    ] = 2,
    threads: ThreadsOption = 1,
    processes: ProcessesOption = 1,
    minutes: MinutesOption = inf,
) -> None:
    """Record a surface, or go on with one."""
    torch.set_num_threads(threads)
    deadline = time.perf_counter() + 60 * minutes
    dense, images = load_dense(checkpoint), joined(load_images(data, None))
    if train_images is not None:
        images = part_of(images, train_images)
    recipe, pruning = Recipe(epochs=epochs), Structural(round_to=1)
    space = StructuralSpace(shape_of(dense))
    listed = (
        [pair for one in budget for pair in pairs_on_curve(space, one, grid)]
        if budget
        else pairs_on_grid(space, grid)
    )
    results = Results(
        SURFACES / f"{name}.json",
        ("mhsa_ratio", "ffn_ratio", "seed"),
        header={
            "checkpoint": checkpoint.name,
            "shape": asdict(space.shape),
            "mhsa_unit": space.mhsa_unit,
            "recipe": recipe.to_json(),
            "budgets": budget,
            "train_images": len(images.train),
            "eval_images": len(images.val),
        },
    )

    @cache
    def search(seed: int) -> Search:
        return Search(
            dense.to(best_device()),
            images,
            Budget(1.0),
            pruning=pruning,
            training=recipe,
            options=SearchOptions(seed=seed),
            run=RunOptions(progress=False),
        )

    def measure(task: Task) -> None:
        same = {**task.pair._asdict(), "seed": task.seed}
        if results.has(**same):
            return
        one = search(task.seed)
        started = time.perf_counter()
        row = {**same, **measure_pair(one, task), "threads": threads, "processes": processes}
        results.add(row, seconds=time.perf_counter() - started)
        print(row, flush=True)

    tasks = [
        Task(seed, pair)
        for seed in range(seeds)
        for places, pair in listed
        if not seed or all(place % seed_stride == 0 for place in places)
    ]
    share_work(tasks, measure, processes, deadline=deadline)


def pairs_on_grid(space: StructuralSpace, grid: int) -> list[Place]:
    """Return pairs over the whole range of both ratios."""
    units, neurons = space.removed(space.max_pair)

    def pair(row: int, column: int) -> RatioPair:
        removed = round(row / (grid - 1) * units), round(column / (grid - 1) * neurons)
        return RatioPair(removed[0] / space.mhsa_units, removed[1] / space.neurons)

    return [(places, pair(*places)) for places in product(range(grid), repeat=2)]


def pairs_on_curve(space: StructuralSpace, budget: float, grid: int) -> list[Place]:
    """Return pairs on the curve of a budget."""
    curve = budget_curve(space, budget)
    chosen = [curve[round(place / (grid - 1) * (len(curve) - 1))] for place in range(grid)]
    return [((place,), pair) for place, pair in enumerate(chosen)]


def measure_pair(search: Search, task: Task) -> dict[str, Any]:
    """Return what is known of a pair before a training, and its accuracy after one."""
    trainer, images = search.trainer, search.data
    assert isinstance(trainer, ImageTrainer)
    assert images is not None
    model = search.pruner.prune(task.pair)
    row = {
        "macs_ratio": search.space.macs_ratio(*task.pair),
        "dense_accuracy": search.dense_accuracy,
        "expected_loss": search.pruner.expected_loss(task.pair),
        "divergence": divergence(model, images, search.dense, trainer.precision)[0],
        "accuracy_pruned": trainer.evaluate(model),
    }
    if trainer.epochs:
        context = TrialContext(seed=task.seed, teacher=search.dense, progress=False)
        row["accuracy"] = trainer.train(model, context)
    return row


if __name__ == "__main__":
    run_command(main)
