"""How accurate is a model pruned here, against one pruned by the tools that people use now?

Question: at the same MACs and the same fine-tuning, which method keeps most of the accuracy? And
what does each part of ours contribute?

Method: every method prunes the same dense model to at most the same share of its MACs, counted by
``shape_of``, looking at the same training images (a seed draws them); then every model gets the
same fine-tuning, distillation from the dense model included. Methods:

- ``ours``: factorised heads, elimination of neurons, repair; of the pairs on the budget's curve
  the one with the least expected loss. Nothing is chosen on the images that are reported.
- ``torch-pruning``: global Taylor importance with head pruning, with the options that served it
  best, see ``peers.py``.
- ``uniform-l1``: one ratio for both modules, L1 magnitude, the same share from every block.

``--ablation`` has ours with one part off or changed at a time: ``whole-heads`` removes heads by
Taylor scores (its pair chosen on training images); ``taylor-neurons`` and ``leverage-neurons``
(MoDeGPT's) remove others; ``no-repair``; ``energy``, ``uniform`` and ``influence`` (MoDeGPT's)
spread a ratio otherwise over the blocks; ``one-ratio``; and in the fine-tuning
``no-distillation``, ``all-distillation``, ``ema``, ``layer-decay``, ``half-lr``, ``double-lr``,
``augmentation``.

Accuracy is on the whole test split (for the digits, on validation and test images together), once
before and once after the fine-tuning of a row. Rows are written as they come: run the same command
again and it goes on where it stopped.

    python benchmarks/pruning_quality.py cifar10-d64 --data DIR --checkpoint FILE --seeds 3
    python benchmarks/pruning_quality.py cifar10-d64-ablation --data DIR --checkpoint FILE \
        --ablation --budget 0.6 --seeds 1
    python benchmarks/pruning_quality.py cifar10-d128 --data DIR --checkpoint FILE --seeds 1 \
        --budget 0.6 --budget 0.4 --budget 0.25 --train-images 25000
    python benchmarks/pruning_quality.py digits --checkpoint FILE --epochs 10 --seeds 5
    python benchmarks/pruning_quality.py digits-ablation --checkpoint FILE --ablation \
        --budget 0.2 --epochs 10 --seeds 5
    python benchmarks/pruning_quality.py --show

Output: ``results/pruning_quality-NAME.json`` and a table. Runtime on two cores: about 90 seconds a
row for ``cifar10-d64``, 120 for ``cifar10-d128`` (half an epoch), 10 for the digits.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Optional

import torch
import typer
from command_line import run_command
from peers import influence_blocks, leverage_neurons, torch_pruning, uniform_l1
from recording import (
    DataOption,
    DenseOption,
    NameArgument,
    Results,
    SeedsOption,
    ShowOption,
    ThreadsOption,
    TrainImagesOption,
    header,
    joined,
    load_images,
    spread,
)

from vit_ratio_opt.composer import Search
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.options import CalibrationOptions, Structural
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.pruning.reconstruct import repair
from vit_ratio_opt.runs.options import RunOptions, SearchOptions
from vit_ratio_opt.runs.screening import likely_best, screen
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.space.curve import fixed_ratio_pair
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe

RESULTS = Path(__file__).parent / "results"
METHODS = ("ours", "torch-pruning", "uniform-l1")
PARTS = (
    "whole-heads", "taylor-neurons", "leverage-neurons", "no-repair", "energy", "uniform",
    "influence", "one-ratio",
)  # fmt: skip
SMOOTHING = 1.0  # of "influence"; of 0.03, 0.1, 0.3, 1 and 10 the best right after pruning
RECIPES: dict[str, Callable[[Recipe], Recipe]] = {
    "no-distillation": lambda recipe: replace(recipe, distillation=0.0),
    "all-distillation": lambda recipe: replace(recipe, distillation=1.0),
    "ema": lambda recipe: replace(recipe, ema=0.99),
    "layer-decay": lambda recipe: replace(recipe, layer_decay=0.8),
    "half-lr": lambda recipe: replace(recipe, lr=recipe.peak_lr / 2),
    "double-lr": lambda recipe: replace(recipe, lr=recipe.peak_lr * 2),
    "augmentation": lambda recipe: replace(recipe, augment=True),
}


def main(
    name: NameArgument = None,
    checkpoint: DenseOption = None,
    data: DataOption = None,
    budget: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option(help="Share of the MACs; may be repeated.", show_default="0.8 0.6 0.4"),
    ] = None,
    epochs: Annotated[int, typer.Option(min=0, help="Of fine-tuning.")] = 1,
    train_images: TrainImagesOption = None,
    calibration_images: Annotated[int, typer.Option(min=1)] = 1024,
    seeds: SeedsOption = 3,
    ablation: Annotated[bool, typer.Option(help="Ours with one part off at a time.")] = False,
    method: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Only this one; may be repeated."),
    ] = None,
    threads: ThreadsOption = 1,
    show: ShowOption = False,
) -> None:
    """Prune, fine-tune, measure, or go on with it, and print the table."""
    if show:
        for path in sorted(RESULTS.glob("pruning_quality-*.json")):
            if name in (None, path.stem.split("-", 1)[1]):
                _show(json.loads(path.read_text()))
        return
    if name is None or checkpoint is None:
        raise InputError("Name the results and give --checkpoint, or use --show.")
    torch.set_num_threads(threads)
    model = load_dense(checkpoint)
    images = joined(load_images(data, train_images))
    # That of the study on the same images.
    recipe = Recipe(epochs=epochs, batch_size=128 if data else 64, lr=1e-3)
    methods = method or (["ours", *PARTS, *RECIPES] if ablation else list(METHODS))
    unknown = sorted(set(methods) - {*METHODS, *PARTS, *RECIPES})
    if unknown:
        raise InputError(
            f"`--method` must be one of {[*METHODS, *PARTS, *RECIPES]}, not {unknown}."
        )

    @cache
    def search(seed: int, macs_ratio: float) -> Search:
        calibration = CalibrationOptions(images=calibration_images)
        return Search(
            model,
            images,
            Budget(macs_ratio),
            training=recipe,
            options=SearchOptions(seed=seed, calibration=calibration),
            run=RunOptions(progress=False),
        )

    head = header(search(0, 0.9), benchmark="pruning_quality", name=name, threads=threads)
    path = RESULTS / f"pruning_quality-{name}.json"
    results = Results(path, ("method", "budget", "seed"), header=head)
    for seed, macs_ratio, method_name in product(range(seeds), budget or (0.8, 0.6, 0.4), methods):
        if results.has(method=method_name, budget=macs_ratio, seed=seed):
            continue
        started = time.perf_counter()
        smaller = pruned_by(method_name, search(seed, macs_ratio), images)
        seconds = time.perf_counter() - started
        shape = shape_of(smaller)
        accuracy_pruned = evaluate(smaller, images, images.val)
        started = time.perf_counter()
        tuned = RECIPES[method_name](recipe) if method_name in RECIPES else recipe
        accuracy = accuracy_pruned
        if epochs:
            context = TrialContext(seed=seed, progress=False)
            accuracy = finetune(
                smaller, images, tuned, context, teacher=search(seed, macs_ratio).dense
            )
        row = {
            "method": method_name,
            "budget": macs_ratio,
            "seed": seed,
            "macs_ratio": shape.macs / shape_of(model).macs,
            "params": shape.params,
            "blocks": [[b.num_heads, b.head_dim, b.hidden_dim] for b in shape.blocks],
            "accuracy_pruned": accuracy_pruned,
            "accuracy": accuracy,
            "prune_seconds": round(seconds, 2),
            "finetune_seconds": round(time.perf_counter() - started, 2),
        }
        results.add(row, seconds=seconds + time.perf_counter() - started)
        print(
            f"seed {seed}  {macs_ratio:.2f}  {method_name:20s} MACs {row['macs_ratio']:.4f}  "
            f"{accuracy_pruned:.2f} -> {accuracy:.2f} %  {seconds:.0f} s, "
            f"{row['finetune_seconds']:.0f} s",
            flush=True,
        )
    _show({**head, "rows": results.rows})


def pruned_by(method: str, ours: Search, images: ImageData) -> ViT:
    """Return what a method makes of the dense model within the budget of a search.

    Args:
        method: One of ``METHODS`` or ``PARTS``; any other name is ours as it is.
        ours: The search, which has the dense model and the images that every method looks at.
        images: Its data set.
    """
    assert isinstance(ours.limit, Budget)
    model, macs_ratio, pruner = ours.dense, ours.limit.share, ours.pruner
    labelled: list[Any] = pruner.batches
    if method == "torch-pruning":
        return torch_pruning(model, labelled, macs_ratio)
    if method == "uniform-l1":
        return uniform_l1(model, macs_ratio)
    if method == "whole-heads":
        return _whole_heads(ours, images, ours.limit)
    pair = likely_best(pruner, ours.curve)
    if method == "one-ratio":
        pair = fixed_ratio_pair(ours.space, macs_ratio)
    assert pair is not None
    calibration = pruner.calibration
    batches = [batch for batch, _ in labelled]
    if method == "taylor-neurons":
        blocks = [
            replace(block, neuron_order=score.argsort(), neuron_losses=score.sort().values)
            for block, score in zip(calibration.blocks, pruner.importance.neurons, strict=True)
        ]
        calibration = replace(calibration, blocks=tuple(blocks))
    if method == "leverage-neurons":
        calibration = leverage_neurons(calibration, model, batches)
    if method == "influence":
        smaller = influence_blocks(RatioPair(*pair), calibration, model, batches, SMOOTHING)
    else:
        allocation: Any = method if method in ("energy", "uniform") else "global"
        smaller = prune(model, pair, calibration, allocation=allocation)
    if method != "no-repair":
        repair(smaller, batches, calibration)
    return smaller


def _whole_heads(ours: Search, images: ImageData, limit: Budget) -> ViT:
    """Remove heads by Taylor scores, at the best pair of a screen on training images."""
    chosen = torch.arange(min(2000, len(images.train)))
    data = replace(images, val=images.train.subset(chosen))
    search = Search(ours.dense, data, limit, pruning=Structural(unit="head"), options=ours.options)
    seen = screen(search.pruner, search.trainer.evaluate, search.curve)
    return search.pruner.prune(RatioPair(*max(seen, key=seen.__getitem__)))


def _show(results: dict[str, Any]) -> None:
    """Mean and standard deviation over the seeds, in per cent, for each method and budget."""
    values: defaultdict[tuple[float, str], list[tuple[float, float]]] = defaultdict(list)
    for row in results["rows"]:
        key = (-row["budget"], row["method"])
        values[key].append((row["accuracy_pruned"], row["accuracy"]))
    epochs, images = results["recipe"]["epochs"], results["train_images"]
    columns = ["no training", f"{epochs} epoch(s) of {images} images"][: 2 if epochs else 1]
    print(
        f"\n{results['name']}: dense {results['dense_accuracy']:.2f} %, on "
        f"{results['eval_images']} images\n\n"
        f"| FLOPs | method | {' | '.join(columns)} | seeds |\n"
        f"|{' --- |' * (3 + len(columns))}"
    )
    for (macs_ratio, name), pairs in sorted(values.items(), key=lambda item: item[0][0]):
        measured = list(zip(*pairs, strict=True))[: len(columns)]
        spreads = " | ".join(spread(list(column)) for column in measured)
        print(f"| {-macs_ratio} | {name} | {spreads} | {len(pairs)} |")


if __name__ == "__main__":
    run_command(main)
