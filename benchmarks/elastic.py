"""Do slices of one set of weights keep up with models of their own?

Question: how accurate are the levels of an `ElasticViT` that are trained together, against models
of the same pairs that are pruned, repaired and trained each by itself?

Method: one dense model, one calibration, the pairs of one fixed ratio at each of four budgets, so
that they are nested. The arms:

- ``separate``: a model for each pair, ``--epochs`` each;
- ``joint``: all levels together for ``--epochs``: each level is trained in as many steps, and
  there are as many forward and backward passes in all;
- ``joint-long``: all levels together for as many epochs as all separate models have in sum;
- ``not-repaired``: as ``joint``, without the common repair of the levels;
- ``one-vector``: as ``joint``, but biases and norms are those of the largest level for all.

All are taught by the dense model, at the automatic learning rate. Nothing is chosen by the
validation images, so they and the test images are evaluated together, once before and once after
the training. A row that is there is not made again.

    python benchmarks/elastic.py digits --epochs 5 --seeds 3 \
        --checkpoint studies/results/quickstart_dense.safetensors
    python benchmarks/elastic.py cifar10-d64 --data DIR --seeds 3 --train-images 6400 \
        --checkpoint vit_cifar10_d64.safetensors
    python benchmarks/elastic.py --show

Output: ``results/elastic.json``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, Optional

import torch
import typer
from command_line import run_command
from recording import (
    DataOption,
    DenseOption,
    NameArgument,
    Results,
    SeedsOption,
    ShowOption,
    ThreadsOption,
    TrainImagesOption,
    joined,
    load_images,
)
from torch import nn

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.elastic import ElasticViT
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.calibration import Calibration, calibrate
from vit_ratio_opt.pruning.elastic import build_elastic
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.pruning.reconstruct import repair
from vit_ratio_opt.space.curve import curve_and_baseline
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe

RESULTS = Results(
    Path(__file__).parent / "results" / "elastic.json", ("name", "arm", "seed", "epochs")
)
BUDGETS = (0.8, 0.6, 0.4, 0.25)
ARMS = ("separate", "joint", "joint-long", "not-repaired", "one-vector")
CALIBRATION_IMAGES, BATCH = 512, 128


def main(
    name: NameArgument = None,
    checkpoint: DenseOption = None,
    data: DataOption = None,
    arm: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help=f"Of {', '.join(ARMS)}; may be repeated.", show_default="all"),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of each separate model.")] = 1,
    train_images: TrainImagesOption = None,
    seeds: SeedsOption = 1,
    threads: ThreadsOption = 1,
    show: ShowOption = False,
) -> None:
    """Train the arms of each seed, and print how accurate their levels are."""
    if show:
        show_rows()
        return
    if name is None or checkpoint is None:
        raise InputError("Give a name and a --checkpoint, or --show.")
    unknown = sorted(set(arm or ()) - set(ARMS))
    if unknown:
        raise InputError(f"`--arm` must be one of {ARMS}, but got {unknown}.")
    torch.set_num_threads(threads)
    dense, images = load_dense(checkpoint), joined(load_images(data, train_images))
    batches = calibration_batches(images)
    calibration = calibrate(dense, batches)
    space = StructuralSpace(shape_of(dense))
    pairs = [fixed_pair(space, budget) for budget in BUDGETS]
    for seed, arm_ in product(range(seeds), arm or ARMS):
        same = {"name": name, "arm": arm_, "seed": seed, "epochs": epochs}
        if RESULTS.has(**same):
            continue
        started = time.perf_counter()
        found = measure(arm_, dense, images, pairs, batches, calibration, epochs, seed)
        row = {
            **same,
            "budgets": BUDGETS,
            "pairs": pairs,
            **found,
            "dense_accuracy": evaluate(dense, images, images.test),
            "train_images": len(images.train),
            "evaluated_images": len(images.test),
            "threads": threads,
        }
        RESULTS.add(row, seconds=time.perf_counter() - started)
    show_rows()


def fixed_pair(space: StructuralSpace, budget: float) -> RatioPair:
    """Return the pair of one ratio for both modules within a budget."""
    _, pair = curve_and_baseline(space, budget)
    assert pair is not None
    return pair


def calibration_batches(data: ImageData) -> list[torch.Tensor]:
    """Return normalised training images for the calibration."""
    chosen = data.train.subset(torch.arange(min(CALIBRATION_IMAGES, len(data.train))))
    return [data.normalise(images) for images, _ in chosen.batches(BATCH)]


def measure(
    arm: str,
    dense: ViT,
    data: ImageData,
    pairs: Sequence[RatioPair],
    batches: Sequence[torch.Tensor],
    calibration: Calibration,
    epochs: int,
    seed: int,
) -> dict[str, Any]:
    """Return the accuracies of an arm's levels before and after the training."""
    batch_size = 64 if len(data.train) < 2000 else 128
    if arm == "joint-long":
        epochs *= len(pairs)
    recipe = Recipe(epochs=epochs, batch_size=batch_size)
    models: list[nn.Module] = []
    if arm == "separate":
        for pair in pairs:
            pruned = prune(dense, pair, calibration)
            repair(pruned, batches, calibration)
            models.append(pruned)
    else:
        images = None if arm == "not-repaired" else batches
        elastic = build_elastic(dense, pairs, calibration, images)
        if arm == "one-vector":
            share_vectors(elastic)
        models = [elastic]
    before, rates = accuracies(models, data), []
    for model in models:
        chosen: dict[str, Any] = {}
        context = TrialContext(seed=seed, record=chosen.update, progress=False)
        finetune(model, data, recipe, context, teacher=dense)
        rates.append(chosen["lr"])
    return {
        "lr": rates,
        "macs_ratio": [shape_of(one).macs / shape_of(dense).macs for one in levels_of(models)],
        "accuracy_pruned": before,
        "accuracy": accuracies(models, data),
        "weights": sum(p.numel() for model in models for p in set(model.parameters())),
    }


def share_vectors(elastic: ElasticViT) -> None:
    """Let all levels have the vectors of the largest one."""
    largest = dict(elastic.largest.named_parameters())
    for vectors in elastic.vectors:
        assert isinstance(vectors, nn.ParameterList)
        for index, name in enumerate(elastic.vector_names):
            vectors[index] = largest[name]


def levels_of(models: Sequence[nn.Module]) -> list[Any]:
    """Return the separate models, or the models of an elastic one's levels."""
    (first, *_) = models
    if isinstance(first, ElasticViT):
        return [first.extract(level) for level in range(len(first.levels))]
    return list(models)


def accuracies(models: Sequence[nn.Module], data: ImageData) -> list[float]:
    """Return the accuracy of each level in per cent."""
    return [round(evaluate(model, data, data.test), 3) for model in levels_of(models)]


def show_rows() -> None:
    """Print the accuracy of each level before and after, and what the arms differ by."""
    rows = RESULTS.rows
    for name, epochs in dict.fromkeys((row["name"], row["epochs"]) for row in rows):
        own = [row for row in rows if (row["name"], row["epochs"]) == (name, epochs)]
        dense = own[0]["dense_accuracy"]
        print(f"\n{name}, {epochs} epochs, dense {dense:.2f} %")
        print(f"{'':28}{'seeds':>6}{'s':>7}" + "".join(f"{b:>15g}" for b in own[0]["budgets"]))
        found = {arm: [row for row in own if row["arm"] == arm] for arm in ARMS}
        for arm, several in found.items():
            if several:
                seconds = mean(row["seconds"] for row in several)
                cells = [cell(values) for values in by_level(several, "accuracy")]
                print(f"{arm:28}{len(several):6d}{seconds:7.0f}" + "".join(cells))
                cells = [cell(values) for values in by_level(several, "accuracy_pruned")]
                print(f"{'  before the training':41}" + "".join(cells))
        base = {row["seed"]: row["accuracy"] for row in found["separate"]}
        for arm in ARMS[1:]:
            pairs = [(row["accuracy"], base.get(row["seed"])) for row in found[arm]]
            gains = [
                [a - b for a, b in zip(ours, theirs, strict=True)]
                for ours, theirs in pairs
                if theirs is not None
            ]
            if gains:
                cells = [cell(list(level)) for level in zip(*gains, strict=True)]
                print(f"{arm + ' - separate':41}" + "".join(cells))


def by_level(rows: Sequence[dict[str, Any]], key: str) -> list[list[float]]:
    """Return the values of all rows, level by level."""
    return [list(values) for values in zip(*(row[key] for row in rows), strict=True)]


def cell(values: Sequence[float]) -> str:
    """Return the mean of values and its standard error."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{f'{mean(values):.2f}{error}':>15}"


if __name__ == "__main__":
    run_command(main)
