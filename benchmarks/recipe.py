"""Does a learning rate that fits the model keep more accuracy than 1e-3 for every model?

Question: after pruning to 0.8, 0.6, 0.4 and 0.25 of the MACs and a short training, is the
recipe's automatic learning rate ever worse than the fixed recipe (learning rate
1e-3, half of the loss distillation), and is it better where pruning lost little? And is it better
still when the whole loss is distillation (``--recipe distilled``)?

Method: the pair of the budget's curve with the least expected loss is pruned and repaired, and
the same pruned model is trained by each recipe: the same seed, images, order and steps. A seed
draws calibration images, training images and their order, so differences are paired. Images of
the test split are measured, the same for all seeds, since the dense models have seen all training
images (for the digits, of validation and test split). The numbers of the rule were fitted to d64,
the digits and Mini-ImageNet, in part on the same images; d128 is the check.

Rows are written as they come: run the same command again and it goes on where it stopped.

    python benchmarks/recipe.py d64 --data DIR --checkpoint FILE --steps 80
    python benchmarks/recipe.py d128 --data DIR --checkpoint FILE --steps 50 --eval-images 2000
    python benchmarks/recipe.py mini-imagenet --data DIR --checkpoint FILE --steps 60
    python benchmarks/recipe.py digits --checkpoint FILE --steps 90
    python benchmarks/recipe.py digits --checkpoint FILE --steps 90 --recipe distilled --flops 0.8
    python benchmarks/recipe.py --show

Output: ``results/recipe-NAME.json`` and a table. Runtime on one core: 10 to 50 seconds a row.
"""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import replace
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
    header,
    joined,
    load_images,
)

from vit_ratio_opt.composer import Search
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.splits import Split
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.pruning.options import CalibrationOptions
from vit_ratio_opt.runs.options import RunOptions, SearchOptions
from vit_ratio_opt.runs.screening import likely_best
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.evaluate import evaluate, predict
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe

RESULTS = Path(__file__).parent / "results"
BUDGETS = (0.8, 0.6, 0.4, 0.25)
RECIPES = {
    "fixed": Recipe(lr=1e-3),
    "auto": Recipe(lr="auto"),
    "distilled": Recipe(lr="auto", distillation=1.0),
}


def main(
    name: NameArgument = None,
    checkpoint: DenseOption = None,
    data: DataOption = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a training.")] = 80,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a step.")] = 64,
    eval_images: Annotated[int, typer.Option(min=1, help="Images that are measured.")] = 3000,
    seeds: SeedsOption = 3,
    recipe: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Only this one: fixed, auto or distilled. Without it, fixed and auto."),
    ] = None,
    flops: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Only this share of the FLOPs."),
    ] = None,
    threads: ThreadsOption = 1,
    show: ShowOption = False,
) -> None:
    """Prune once, train by each recipe, measure, or go on with it, and print the table."""
    if show:
        for path in sorted(RESULTS.glob("recipe-*.json")):
            if name in (None, path.stem.split("-", 1)[1]):
                _show(json.loads(path.read_text()))
        return
    if name is None or checkpoint is None:
        raise InputError("Name the results and give --checkpoint, or use --show.")
    torch.set_num_threads(threads)
    dense, images = load_dense(checkpoint), joined(load_images(data, None))
    images = replace(images, val=_drawn(images.val, eval_images, seed=0))
    images = replace(images, test=images.val)

    def search(seed: int, macs_ratio: float) -> Search:
        return Search(
            dense,
            images,
            Budget(macs_ratio),
            training=Recipe(epochs=0, lr=1e-3),  # rows of both recipes have one header
            options=SearchOptions(seed=seed, calibration=CalibrationOptions(images=512)),
            run=RunOptions(progress=False),
        )

    more = {"benchmark": "recipe", "name": name, "steps": steps, "batch_size": batch_size}
    head = header(search(0, 0.9), **more, threads=threads)
    path = RESULTS / f"recipe-{name}.json"
    results = Results(path, ("recipe", "budget", "seed"), header=head)
    wanted = ("fixed", "auto") if recipe is None else (recipe,)
    for seed, macs_ratio in product(range(seeds), BUDGETS if flops is None else (flops,)):
        same = {"budget": macs_ratio, "seed": seed}
        names = [other for other in wanted if not results.has(recipe=other, **same)]
        if not names:
            continue
        few, epochs = _few(images, steps, batch_size, seed)
        own = search(seed, macs_ratio)
        pair = likely_best(own.pruner, own.curve)
        assert pair is not None
        pruned = own.pruner.prune(pair)
        logits = predict(dense, few, few.train)
        before = evaluate(pruned, few, few.val)
        for kind in names:
            model, chosen = copy.deepcopy(pruned), dict[str, Any]()
            context = TrialContext(seed=seed, progress=False, teacher=dense, record=chosen.update)
            how = replace(RECIPES[kind], epochs=epochs, batch_size=batch_size)
            started = time.perf_counter()
            accuracy = finetune(model, few, how, context, teacher=logits)
            row = {
                "recipe": kind, **same, "pair": list(pair),
                "accuracy_pruned": before, "accuracy": accuracy,
                **{"lr": how.lr, **chosen},
            }  # fmt: skip
            seconds = time.perf_counter() - started
            results.add(row, seconds=seconds)
            print(
                f"seed {seed}  {macs_ratio:.2f}  {kind:5s} lr {row['lr']:g}  "
                f"{before:.2f} -> {accuracy:.2f} %  {seconds:.0f} s",
                flush=True,
            )
    _show({**head, "rows": results.rows})


def _drawn(split: Split, images: int, seed: int) -> Split:
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return split.subset(order[:images])


def _few(images: ImageData, steps: int, batch_size: int, seed: int) -> tuple[ImageData, int]:
    """Return the training images of one epoch of ``steps``; all of few, in several epochs."""
    few = replace(images, train=_drawn(images.train, steps * batch_size, seed))
    return few, max(1, round(steps / math.ceil(len(few.train) / batch_size)))


def _show(results: dict[str, Any]) -> None:
    """Print means over the seeds, and paired differences with their standard errors."""
    print(
        f"\n{results['name']}: dense {results['dense_accuracy']:.2f} %, on "
        f"{results['eval_images']} images, {results['steps']} steps of {results['batch_size']}"
    )
    for recipe, other in (("auto", "fixed"), ("distilled", "auto")):
        lines = [_line(results["rows"], budget, recipe, other) for budget in BUDGETS]
        if any(lines):
            print(
                f"\n| FLOPs | not trained | {other} | {recipe} | {recipe} - {other} "
                f"| learning rates | seeds |\n|{' --- |' * 7}"
            )
            print("\n".join(filter(None, lines)))


def _line(rows: list[dict[str, Any]], budget: float, recipe: str, other: str) -> str:
    """Return the line of a table that compares two recipes; empty where nothing was measured."""
    one, base = (
        {row["seed"]: row for row in rows if (row["recipe"], row["budget"]) == (kind, budget)}
        for kind in (recipe, other)
    )
    pairs = [(one[seed], base[seed]) for seed in sorted(one.keys() & base.keys())]
    if not pairs:
        return ""
    gains = [row["accuracy"] - against["accuracy"] for row, against in pairs]
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    means = (
        mean(against["accuracy_pruned"] for _, against in pairs),
        mean(against["accuracy"] for _, against in pairs),
        mean(row["accuracy"] for row, _ in pairs),
    )
    cells = " | ".join(f"{value:.2f}" for value in means)
    rates = ", ".join(f"{row['lr']:g}" for row, _ in pairs)
    return f"| {budget} | {cells} | {mean(gains):+.2f} ± {error:.2f} | {rates} | {len(gains)} |"


if __name__ == "__main__":
    run_command(main)
