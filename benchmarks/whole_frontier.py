"""What is left at every cost? Whole frontiers of real models, by two ratios and by one.

Question: how accurate is a model at each share of its FLOPs, found by one study, and how much of
that do two ratios give?

Method: frontier studies of one dense model, which differ in one thing each:

- ``two``: both ratios are searched, each trial starts from the dense model;
- ``one``: one fixed ratio for both modules, with half of the trials;
- ``parents``: as ``two``, but a trial may start from the model of a trial that was pruned less.

Pairs are chosen by validation images only. At each of some budgets the answer's model, as its
trial has trained it, reads the test images once. The study itself is kept in an SQLite file, which
optuna-dashboard, the report and the figures read. A study that was killed goes on where it
stopped, and a row that is there is not made again. Models lie in ``--folder``.

    python benchmarks/whole_frontier.py digits --epochs 5 --lr 1e-3 \
        --checkpoint studies/results/quickstart_dense.safetensors
    python benchmarks/whole_frontier.py cifar10-d64 --data DIR --checkpoint FILE
    python benchmarks/whole_frontier.py --show

Output: ``results/whole_frontier.json`` and ``studies/results/frontier-NAME.db``. On a GPU: stage
``frontier`` of ``gpu.py``.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
import time
from contextlib import closing
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import torch
import typer
from command_line import run_command
from recording import (
    DataOption,
    DenseOption,
    NameArgument,
    ShowOption,
    ThreadsOption,
    TrainImagesOption,
    head_commit,
    part_of,
    write_row,
)

from vit_ratio_opt.composer import Search
from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.load import load_images
from vit_ratio_opt.data.splits import Validation
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.device import best_device, device_name
from vit_ratio_opt.records.trial import attribute
from vit_ratio_opt.records.trials import finished_trials, pair_of
from vit_ratio_opt.runs.options import RunOptions, SearchOptions
from vit_ratio_opt.search.limits import Frontier
from vit_ratio_opt.training.recipe import Recipe

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "whole_frontier.json"
STUDIES = HERE.parent / "studies" / "results"
SAME = ("name", "arm", "seed")
ARMS: dict[str, dict[str, Any]] = {
    "two": {},
    "one": {"fixed_ratio": True},
    "parents": {"iterative": True},
}
BUDGETS = (0.8, 0.6, 0.4, 0.25)
LEVELS = 8


def main(
    name: NameArgument = None,
    checkpoint: DenseOption = None,
    data: DataOption = None,
    arm: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help=f"Of {', '.join(ARMS)}; may be repeated.", show_default="two one"),
    ] = None,
    trials: Annotated[int, typer.Option(min=2, help="Trained trials of ``two``.")] = 20,
    epochs: Annotated[int, typer.Option(min=1, help="Of each trial.")] = 1,
    train_images: TrainImagesOption = None,
    validation: Annotated[
        Literal["train", "test"], typer.Option(help="Which images pairs are chosen on.")
    ] = "train",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: ThreadsOption = 1,
    folder: Annotated[Path, typer.Option(help="For the models, outside the repository.")] = Path(
        "runs/frontier"
    ),
    show: ShowOption = False,
) -> None:
    """Run the studies of some arms, or go on with them, and print what they found."""
    if show:
        show_rows()
        return
    if name is None or checkpoint is None:
        raise InputError("Give a name and a --checkpoint, or --show.")
    torch.set_num_threads(threads)
    dense, images = load_dense(checkpoint), _images(data, validation, train_images)
    recipe = Recipe(epochs=epochs)
    for arm_ in arm or ("two", "one"):
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        search = make_search(dense, images, recipe, arm_, seed, place)
        started = time.perf_counter()
        found = measure_frontier(search, arm_, seed, trials, place)
        assert found is not None
        row = {
            "name": name,
            "arm": arm_,
            "seed": seed,
            "threads": threads,
            **found,
            "seconds": round(time.perf_counter() - started, 1),
            "device": device_name(best_device()),
            "versions": {package: version(package) for package in ("torch", "timm")},
            "commit": head_commit(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": " ".join(["python benchmarks/whole_frontier.py", *sys.argv[1:]]),
        }
        write_row("whole_frontier", row, SAME, RESULTS)
        publish(place / "study.db", STUDIES / f"frontier-{name}.db")
    show_rows()


def make_search(
    dense: ViT, images: ImageData, recipe: Recipe, arm: str, seed: int, folder: Path
) -> Search:
    """Return the search of one arm, whose models lie in a folder."""
    if arm not in ARMS:
        raise InputError(f"`--arm` must be one of {tuple(ARMS)}, but got {arm!r}.")
    return Search(
        dense,
        images,
        Frontier(LEVELS),
        training=recipe,
        options=SearchOptions(seed=seed, **ARMS[arm]),
        run=RunOptions(checkpoints=folder / f"{arm}-{seed}", progress=False),
    )


def measure_frontier(
    search: Search,
    arm: str,
    seed: int,
    n_trials: int,
    folder: Path,
    *,
    deadline: float = float("inf"),
) -> dict[str, Any] | None:
    """Run a frontier study to its end, and test its models at each budget.

    Args:
        search: Search of the arm.
        arm: Name of the arm.
        seed: Seed of the search.
        n_trials: Trained trials with two ratios; half of them with one.
        folder: Folder of ``study.db``.
        deadline: Time of :func:`time.perf_counter` after which no trial begins.

    Returns:
        The row; None if the deadline came first.
    """
    study = search.create_study(f"{arm}-{seed}", storage=f"sqlite:///{folder / 'study.db'}")
    wanted = n_trials // 2 if arm == "one" else n_trials
    while len(finished_trials(study)) < wanted:
        if time.perf_counter() > deadline:
            return None
        before = len(finished_trials(study))
        search.run(study, before + 1, explain=False)  # ``test`` writes notes and figures
        if len(finished_trials(study)) == before:
            break  # nothing is left to learn
    answer = search.answer(study)
    assert answer is not None
    tested = []
    for budget in BUDGETS:
        if answer.front[0].cost_ratio > budget:
            continue
        found = answer.at(budget=budget).found
        assert found is not None
        tested.append(
            {
                "budget": budget,
                "pair": list(found.pair),
                "macs_ratio": found.cost_ratio,
                "accuracy": round(found.accuracy, 3),
                "error": round(found.error, 3),
                "trained": found.trained,
                "test_accuracy": search.test(answer.at(budget=budget)),
            }
        )
    trials = finished_trials(study)
    return {
        "dense_accuracy": search.dense_accuracy,
        "dense_test_accuracy": study.user_attrs["tested"]["dense"],
        "recipe": search.recipe.to_json(),
        "train_images": None if search.data is None else len(search.data.train),
        "trials": [
            {
                "pair": list(pair_of(trial)),
                "macs_ratio": attribute(trial, "macs_ratio"),
                "accuracy": attribute(trial, "accuracy"),
                "accuracy_pruned": attribute(trial, "accuracy_pruned"),
                "parent": attribute(trial, "parent_trial"),
                "seconds": attribute(trial, "seconds"),
            }
            for trial in trials
        ],
        "front": [
            [*one.pair, one.cost_ratio, round(one.accuracy, 3), round(one.error, 3)]
            for one in answer.front
        ],
        "tested": tested,
    }


def publish(file: Path, to: Path) -> None:
    """Copy a database of studies without what only its own machine has: places and pictures."""
    shutil.copy(file, to)
    with closing(sqlite3.connect(to)) as connection:
        with connection:
            connection.execute("DELETE FROM study_user_attributes WHERE key = 'origin'")
            for table in ("study_system_attributes", "trial_system_attributes"):
                connection.execute(f"DELETE FROM {table} WHERE key LIKE 'artifacts:%'")
        connection.execute("VACUUM")


def show_rows() -> None:
    """Print the accuracy of each study on the test images at each budget."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []
    print(f"{'study':28}{'dense':>7}" + "".join(f"{budget:>8g}" for budget in BUDGETS))
    for row in rows:
        at = {one["budget"]: f"{one['test_accuracy']:8.2f}" for one in row["tested"]}
        shown = "".join(at.get(budget, f"{'-':>8}") for budget in BUDGETS)
        title = f"{row['name']}, {row['arm']}, {row['seed']}"
        print(f"{title:28}{row['dense_test_accuracy']:7.2f}{shown}")


def _images(data: Path | None, validation: Validation, train_images: int | None) -> ImageData:
    """Return the images of a folder, or the digits, with a seeded part of the training images."""
    images = load_digits() if data is None else load_images(data, validation=validation)
    return images if train_images is None else part_of(images, train_images)


if __name__ == "__main__":
    run_command(main)
