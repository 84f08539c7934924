"""What is left at every cost? Whole frontiers of real models, and what they cost to find.

Questions: how accurate is a model at each share of its FLOPs, and how much of that do two ratios
give? Does it pay that trials start from earlier trials? What does one study of a few budgets save
against a study for each?

Method: studies of one dense model that differ in one thing each, the ``arms``:

- ``two``: a frontier of 8 levels, both ratios are searched;
- ``one``: the same with one fixed ratio for both modules, and half of the trials;
- ``parents``: as ``two``, but a trial may start from the model of an earlier one (``iterative``);
- ``budgets``, ``budgets-parents``: a frontier of the budgets 0.6, 0.4 and 0.25 alone, half of the
  trials of ``separate``;
- ``separate``: a study for each of these budgets, a third of ``--trials`` each.

Every trial trains for as many epochs. Pairs are chosen by validation images only. At each budget
the answer's model, as its trial has trained it, reads the test images once. The studies are kept
in an SQLite file, which optuna-dashboard, the report and the figures read. A study that was killed
goes on where it stopped, and a row that is there is not made again. Models lie in ``--folder``.

    python benchmarks/whole_frontier.py digits --epochs 5 --seeds 5 \
        --checkpoint studies/results/quickstart_dense.safetensors
    python benchmarks/whole_frontier.py cifar10-d64 --data DIR --validation test --seeds 3 \
        --train-images 12800 --checkpoint vit_cifar10_d64.safetensors
    python benchmarks/whole_frontier.py --show

Output: ``results/whole_frontier.json`` and ``studies/results/frontier-NAME.db`` with the arms
``two`` and ``one`` of seed 0. On a GPU: stage ``frontier`` of ``gpu.py``.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import product
from math import inf
from pathlib import Path
from shutil import copyfile
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, Optional

import optuna
import torch
import typer
from command_line import run_command
from optuna.study import Study
from recording import (
    DataOption,
    DenseOption,
    MinutesOption,
    NameArgument,
    ProcessesOption,
    Results,
    SeedsOption,
    ShowOption,
    ThreadsOption,
    TrainImagesOption,
    part_of,
    share_work,
)

from vit_ratio_opt.composer import Search
from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.load import load_images
from vit_ratio_opt.data.splits import Validation
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.device import best_device
from vit_ratio_opt.records.trial import attribute
from vit_ratio_opt.records.trials import finished_trials, pair_of
from vit_ratio_opt.runs.options import RunOptions, SearchOptions
from vit_ratio_opt.search.limits import Budget, Frontier
from vit_ratio_opt.training.recipe import Recipe

HERE = Path(__file__).parent
RESULTS = Results(HERE / "results" / "whole_frontier.json", ("name", "arm", "seed"))
STUDIES = HERE.parent / "studies" / "results"
COMPARED = (
    ("two", "one"),
    ("parents", "two"),
    ("budgets", "separate"),
    ("budgets-parents", "separate"),
    ("budgets-parents", "budgets"),
)
BUDGETS = (0.8, 0.6, 0.4, 0.25)
FEW = BUDGETS[1:]
SHOWN = ("two-0", "one-0")  # studies that are committed


class Arm(NamedTuple):
    """Limits, one for each study, trials of each as a share of ``--trials``, and options."""

    limits: tuple[Budget | Frontier, ...]
    share: float = 1.0
    options: Mapping[str, Any] = MappingProxyType({})


ARMS = {
    "two": Arm((Frontier(8),)),
    "one": Arm((Frontier(8),), 1 / 2, {"fixed_ratio": True}),
    "parents": Arm((Frontier(8),), 1.0, {"iterative": True}),
    "budgets": Arm((Frontier(budgets=FEW),), 1 / 2),
    "budgets-parents": Arm((Frontier(budgets=FEW),), 1 / 2, {"iterative": True}),
    "separate": Arm(tuple(Budget(budget) for budget in FEW), 1 / 3),
}


def main(
    name: NameArgument = None,
    checkpoint: DenseOption = None,
    data: DataOption = None,
    arm: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help=f"Of {', '.join(ARMS)}; may be repeated.", show_default="all"),
    ] = None,
    trials: Annotated[int, typer.Option(min=2, help="Trained trials of a share of 1.")] = 24,
    epochs: Annotated[int, typer.Option(min=1, help="Of each trial.")] = 1,
    train_images: TrainImagesOption = None,
    validation: Annotated[
        Literal["train", "test"], typer.Option(help="Which images pairs are chosen on.")
    ] = "train",
    seeds: SeedsOption = 1,
    threads: ThreadsOption = 1,
    processes: ProcessesOption = 1,
    minutes: MinutesOption = inf,
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
    deadline = time.perf_counter() + 60 * minutes
    unknown = sorted(set(arm or ()) - set(ARMS))
    if unknown:
        raise InputError(f"`--arm` must be one of {tuple(ARMS)}, but got {unknown}.")
    dense, images = load_dense(checkpoint), _images(data, validation, train_images)
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)

    def measure(task: tuple[int, str]) -> None:
        seed, arm_ = task
        same = {"name": name, "arm": arm_, "seed": seed}
        if RESULTS.has(**same):
            return
        started = time.perf_counter()
        on_device, recipe = dense.to(best_device()), Recipe(epochs=epochs)
        found = measure_arm(
            arm_, on_device, images, recipe, seed, trials, place, deadline=deadline
        )
        if found is None:  # no time is left: the next run goes on with it
            return
        row = {**same, "threads": threads, "processes": processes, **found}
        RESULTS.add(row, seconds=time.perf_counter() - started)
        if f"{arm_}-{seed}" in SHOWN:
            publish(place / "study.db", STUDIES / f"frontier-{name}.db")

    tasks = list(product(range(seeds), arm or ARMS))
    share_work(tasks, measure, processes, deadline=deadline)
    show_rows()


def measure_arm(
    name: str,
    dense: ViT,
    images: ImageData,
    recipe: Recipe,
    seed: int,
    trials: int,
    folder: Path,
    *,
    deadline: float = float("inf"),
) -> dict[str, Any] | None:
    """Run the studies of an arm to their end, and test their models at each budget.

    Args:
        name: Name of the arm.
        dense: The dense model, on its device.
        images: Images of training, validation and test.
        recipe: Of every trial.
        seed: Seed of the studies.
        trials: Trained trials of an arm with a share of 1.
        folder: Folder of ``study.db`` and the models.
        deadline: Time of :func:`time.perf_counter` after which no trial begins.

    Returns:
        What the row says; None if the deadline came first.
    """
    arm, tested, studies = ARMS[name], [], []
    for limit in arm.limits:
        budget = f"-{limit.share:g}" if isinstance(limit, Budget) else ""
        study_name = f"{name}{budget}-{seed}"
        search = Search(
            dense,
            images,
            limit,
            training=recipe,
            options=SearchOptions(seed=seed, **arm.options),
            run=RunOptions(checkpoints=folder / study_name, progress=False),
        )
        study = search.create_study(study_name, storage=f"sqlite:///{folder / 'study.db'}")
        if not _run(search, study, round(trials * arm.share), deadline):
            return None
        tested += _test(search, study, limit)
        studies.append(_study(search, study))
    return {
        "dense_accuracy": search.dense_accuracy,
        "dense_test_accuracy": study.user_attrs["tested"]["dense"],
        "recipe": search.recipe.to_json(),
        "train_images": len(images.train),
        "tested": tested,
        "studies": studies,
    }


def _run(search: Search, study: Study, n_trials: int, deadline: float) -> bool:
    """Run trials, and return whether the study has all of them before the deadline."""
    done = -1
    while done < len(finished_trials(study)) < n_trials:  # else nothing is left to learn
        if time.perf_counter() > deadline:
            return False
        done = len(finished_trials(study))
        search.run(study, done + 1, explain=False)
    return True


def _test(search: Search, study: Study, limit: Budget | Frontier) -> list[dict[str, Any]]:
    """Return the answers of a study at the budgets that it can meet, with their test accuracy."""
    answer, tested = search.answer(study), []
    assert answer is not None
    for budget in [limit.share] if isinstance(limit, Budget) else BUDGETS:
        if isinstance(limit, Frontier):
            if answer.front[0].cost_ratio > budget:
                continue
            answer = answer.at(budget=budget)
        found = answer.found
        assert found is not None
        tested.append(
            {
                "budget": budget,
                "pair": list(found.pair),
                "macs_ratio": found.cost_ratio,
                "accuracy": round(found.accuracy, 3),
                "error": round(found.error, 3),
                "trained": found.trained,
                "test_accuracy": search.test(answer),
            }
        )
    return tested


def _study(search: Search, study: Study) -> dict[str, Any]:
    """Return the trained trials of a study and its frontier."""
    answer = search.answer(study)
    kept = ("macs_ratio", "accuracy_pruned", "accuracy", "parent_trial", "epochs", "seconds")
    return {
        "name": study.study_name,
        "trials": [
            {"pair": list(pair_of(trial)), **{key: attribute(trial, key) for key in kept}}
            for trial in finished_trials(study)
        ],
        "front": [
            [*one.pair, one.cost_ratio, round(one.accuracy, 3), round(one.error, 3)]
            for one in (answer.front if answer else ())
        ],
    }


def publish(file: Path, to: Path) -> None:
    """Copy the studies that are shown, without what names their machine: places, pictures."""
    with TemporaryDirectory() as folder:
        copy = Path(folder, "study.db")
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)  # other processes may write
        url = f"sqlite:///{copy}"
        for name in set(optuna.get_all_study_names(url)) - set(SHOWN):
            optuna.delete_study(study_name=name, storage=url)
        with closing(sqlite3.connect(copy)) as connection:
            with connection:
                connection.execute("DELETE FROM study_user_attributes WHERE key = 'origin'")
                notes = "DELETE FROM study_system_attributes WHERE key LIKE 'dashboard:note%'"
                connection.execute(notes)
                for table in ("study_system_attributes", "trial_system_attributes"):
                    connection.execute(f"DELETE FROM {table} WHERE key LIKE 'artifacts:%'")
            connection.execute("VACUUM")
        copyfile(copy, to)


def show_rows() -> None:
    """Print the accuracy on the test images at each budget, and what the arms differ by."""
    rows = RESULTS.rows
    for name in dict.fromkeys(row["name"] for row in rows):
        found: dict[str, dict[int, dict[float, float]]] = {}
        epochs: dict[str, list[float]] = {}
        for row in rows:
            if row["name"] == name:
                at = {one["budget"]: one["test_accuracy"] for one in row["tested"]}
                found.setdefault(row["arm"], {})[row["seed"]] = at
                each = [trial["epochs"] for study in row["studies"] for trial in study["trials"]]
                epochs.setdefault(row["arm"], []).append(sum(each))
        dense = next(row["dense_test_accuracy"] for row in rows if row["name"] == name)
        print(f"\n{name}, dense {dense:.2f} % of the test images")
        print(f"{'':24}{'seeds':>6}{'epochs':>8}" + "".join(f"{b:>15g}" for b in BUDGETS))
        for arm, seeds in found.items():
            cells = [_cell([at.get(budget) for at in seeds.values()]) for budget in BUDGETS]
            print(f"{arm:24}{len(seeds):6d}{mean(epochs[arm]):8.0f}" + "".join(cells))
        for better, than in COMPARED:
            both = sorted(found.get(better, {}).keys() & found.get(than, {}).keys())
            if both:
                cells = [
                    _cell([_less(found[better][s].get(b), found[than][s].get(b)) for s in both])
                    for b in BUDGETS
                ]
                print(f"{better + ' - ' + than:38}" + "".join(cells))


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _cell(values: Sequence[float | None]) -> str:
    """Return the mean of values and its standard error."""
    known = [value for value in values if value is not None]
    if not known:
        return f"{'-':>15}"
    error = f" ± {stdev(known) / len(known) ** 0.5:.2f}" if len(known) > 1 else ""
    return f"{f'{mean(known):.2f}{error}':>15}"


def _images(data: Path | None, validation: Validation, train_images: int | None) -> ImageData:
    """Return the images of a folder, or the digits, with a seeded part of the training images."""
    images = load_digits() if data is None else load_images(data, validation=validation)
    return images if train_images is None else part_of(images, train_images)


if __name__ == "__main__":
    run_command(main)
