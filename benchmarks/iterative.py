"""What does a trial gain from starting at a parent instead of at the dense model?

Question: at an equal fine-tuning budget, is a pair more accurate when it is pruned from a finished
trial that pruned neither module more, or from the dense model? And if so, is that what the two
steps are worth, or only that the weights were trained for longer?

Method: each pair, called the child, has three arms, with E epochs of fine-tuning a step:

- ``dense``: dense -> child, E epochs;
- ``parent``: dense -> parent, E epochs -> child, E epochs: what a study gets for the price of
  ``dense``, since it had trained the parent anyway;
- ``double``: dense -> child, 2E epochs: as much training as ``parent``, without the step between.

All arms go through the objective of a study; ``parent`` is a study of two trials. A seed moves the
calibration images, the order of the training images and the augmentation; the arms of one seed
share them, so their differences are taken seed by seed. Rows are written as they come: run the
same command again and it goes on where it stopped.

Accuracy is on the validation split of a study; for the digits, whose validation split is only 288
images, on validation and test images together (nothing is chosen and then reported on them here).

    python benchmarks/iterative.py digits --epochs 10 --seeds 5 \
        --checkpoint studies/results/quickstart_dense.safetensors
    python benchmarks/iterative.py cifar10 --data DIR --checkpoint FILE --epochs 1 \
        --train-images 12800 --seeds 3

Output: ``benchmarks/results/iterative-NAME.json``. Runtime on one core of a 2-core CPU: about 15
and 50 minutes, judging by the first rows.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Optional

import optuna
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
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.runs.options import RunOptions, SearchOptions
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.utils.files import write_json

RESULTS = Path(__file__).parent / "results"
# Parent and child: a small and a large step, at light and at heavy pruning, one of them in the FFN
# alone, as in a search that goes from large models to small.
STEPS = (
    "0.125,0.25:0.25,0.375",
    "0.125,0.25:0.5,0.625",
    "0.25,0.5:0.25,0.75",
    "0.5,0.5:0.625,0.75",
    "0.5,0.75:0.75,0.875",
)
ARMS = ("dense", "parent", "double")


def main(
    name: Annotated[str, typer.Argument(help="Of the data set, and so of the file.")],
    checkpoint: CheckpointOption,
    data: DataOption = None,
    step: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="PARENT:CHILD, each MHSA,FFN; may be repeated.", show_default=False),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="E, of each step.")] = 1,
    train_images: TrainImagesOption = None,
    seeds: SeedsOption = 3,
    threads: ThreadsOption = 1,
) -> None:
    """Measure the arms, or go on with them, and print them."""
    torch.set_num_threads(threads)
    steps = [_step(text) for text in step or STEPS]
    model = load_dense(checkpoint)
    images = load_images(data, train_images)
    recipe = recipe_for(data, epochs)
    path = RESULTS / f"iterative-{name}.json"
    with TemporaryDirectory() as folder:

        @cache  # so that a seed's importance and the dense accuracy are computed once
        def search(arm: str, seed: int) -> Search:
            return Search(
                model,
                images,
                Budget(1.0),
                pruning=PRUNING,
                training=replace(recipe, epochs=2 * epochs) if arm == "double" else recipe,
                options=SearchOptions(iterative=arm == "parent", seed=seed),
                run=RunOptions(checkpoints=folder if arm == "parent" else None, progress=False),
            )

        head = header(search("dense", 0), benchmark="iterative", name=name, threads=threads)
        rows = rows_so_far(path, head)
        done = [(row["parent"], row["child"], row["seed"], row["arm"]) for row in rows]
        for seed, (parent, child), arm in product(range(seeds), steps, ARMS):
            if (list(parent), list(child), seed, arm) in done:
                continue
            started = time.perf_counter()
            measured = _measure(search(arm, seed), parent if arm == "parent" else None, child)
            row = {
                "parent": list(parent),
                "child": list(child),
                "seed": seed,
                "arm": arm,
                **measured,
                "seconds": round(time.perf_counter() - started, 3),
            }
            rows.append(row)
            write_json({**head, "rows": rows}, path)
            print(
                f"seed {seed}  {_show(row)}  {arm:6s}  {row['accuracy_pruned']:.2f} -> "
                f"{row['accuracy']:.2f} %  {row['seconds']:.1f} s",
                flush=True,
            )
    _summarise(rows)


def _measure(search: Search, parent: RatioPair | None, child: RatioPair) -> dict[str, Any]:
    parent_accuracy = None
    if parent is None:
        trial: Any = FixedTrial(child._asdict())
        accuracy = search.objective(trial)
        assert isinstance(accuracy, float)
    else:
        study = optuna.create_study(direction="maximize")
        for pair in (parent, child):
            study.enqueue_trial(pair._asdict())
        study.optimize(search.objective, n_trials=2)
        trial = study.trials[1]
        parent_accuracy, accuracy = (t.values[0] for t in study.trials)
        assert trial.user_attrs["parent_trial"] == 0
    kept = ("macs_ratio", "accuracy_pruned", "parent_trial", "total_epochs")
    return {
        **{key: trial.user_attrs[key] for key in kept},
        "parent_accuracy": parent_accuracy,
        "accuracy": accuracy,
    }


def _summarise(rows: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over the seeds, in per cent and in points."""
    by_step: defaultdict[str, defaultdict[str, dict[int, float]]]
    by_step = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        by_step[_show(row)][row["arm"]][row["seed"]] = row["accuracy"]
    differences: defaultdict[str, list[float]] = defaultdict(list)
    for shown, arms in by_step.items():
        print(f"\n{shown}")
        for arm, values in arms.items():
            print(f"  {arm:15s} {_spread(list(values.values()))}")
        for other in ("dense", "double"):
            seeds = sorted(arms["parent"].keys() & arms[other].keys())
            paired = [arms["parent"][seed] - arms[other][seed] for seed in seeds]
            differences[other] += paired
            print(f"  parent - {other:6s} {_spread(paired)}")
    print("\nall steps and seeds")
    for other, paired in differences.items():
        print(f"  parent - {other:6s} {_spread(paired)}")


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f"+- {stdev(values):.2f}" if len(values) > 1 else "      "
    return f"{mean(values):6.2f} {spread}  (n = {len(values)})"


def _show(row: dict[str, Any]) -> str:
    parent, child = (" ".join(f"{r:.3f}" for r in row[key]) for key in ("parent", "child"))
    return f"{parent} -> {child} (FLOPs {row['macs_ratio']:.3f})"


def _step(text: str) -> tuple[RatioPair, RatioPair]:
    try:
        parent, child = (
            RatioPair(*(float(ratio) for ratio in pair.split(","))) for pair in text.split(":")
        )
    except (TypeError, ValueError):
        raise InputError(
            f"`--step` must be PARENT:CHILD, such as 0.25,0.5:0.5,0.5, but got {text!r}."
        ) from None
    if parent == child or any(p > c for p, c in zip(parent, child, strict=True)):
        raise InputError(f"The parent must prune neither module more, but got {text!r}.")
    return parent, child


if __name__ == "__main__":
    run_command(main)
