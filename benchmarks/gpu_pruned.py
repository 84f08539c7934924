"""The stages of ``gpu.py`` that prune the dense model: ``paper``, ``quality``, ``frontier``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from paper import METHODS, Comparison
from pruning_quality import METHODS as PRUNERS
from pruning_quality import pruned_by
from recording import joined
from whole_frontier import measure_arm, publish

from vit_ratio_opt.composer import Search
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.models.device import best_device
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.runs.options import RunOptions, SearchOptions
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe

__all__ = ["Task", "frontier", "paper", "quality"]

Task = tuple[dict[str, Any], Callable[[], "dict[str, Any] | None"]]
"""What a row is of, by which it is known to be there, and how it is measured; None in no time."""


@dataclass(frozen=True)
class Plan:
    """What the stages measure, in full by default.

    Args:
        recipe: Of each trial, and of each model of ``quality`` but for the epochs.
        final_epochs: Epochs of an answer.
        n_trials: Trained trials of a search.
        tolerances: Points of validation accuracy.
        methods: Methods of the paper's comparison.
        budgets: Shares of the FLOPs.
        epochs: Epochs after which the quality of pruning is measured, each training by itself.
        frontier_trials: Trained trials of a frontier.
        frontier_epochs: Epochs of each of them.
        seeds: Random seeds.
    """

    recipe: Recipe
    final_epochs: int = 10
    n_trials: int = 8
    tolerances: tuple[float, ...] = (1.0, 2.0, 0.5)
    methods: tuple[str, ...] = tuple(METHODS)
    budgets: tuple[float, ...] = (0.6, 0.4, 0.25)
    epochs: tuple[int, ...] = (0, 1, 5, 20)
    frontier_trials: int = 20
    frontier_epochs: int = 3
    seeds: tuple[int, ...] = (0, 1, 2)


FULL = Plan(recipe=Recipe(epochs=5, batch_size=512))
REHEARSAL = Plan(
    recipe=Recipe(epochs=1, batch_size=256),
    final_epochs=1,
    n_trials=1,
    tolerances=(50.0,),
    methods=("cp-vit", "structural-fixed"),
    budgets=(0.7,),
    epochs=(0, 1),
    frontier_trials=4,
    frontier_epochs=1,
    seeds=(0,),
)


def paper(images: ImageData, dense: Path | None) -> Iterator[Task]:
    """Yield the searches of all methods, tolerance by tolerance, seed by seed.

    Args:
        images: CIFAR-10; its validation images choose, its test images are read once a row.
        dense: The dense model; a tiny untrained one for a rehearsal if None.
    """
    plan = REHEARSAL if dense is None else FULL
    longer = replace(plan.recipe, epochs=plan.final_epochs)

    @cache
    def comparison() -> Comparison:
        model = _dense(dense)
        return Comparison(model, images, images, plan.recipe, longer, n_trials=plan.n_trials)

    def measure(method: str, points: float, seed: int) -> dict[str, Any]:
        compared = comparison()
        first = compared.search(method, seed, points)
        return {
            "model": None if dense is None else dense.stem,
            "recipe": plan.recipe.to_json(),
            "final_epochs": plan.final_epochs,
            "precision": first.precision,
            "dense_accuracy": first.dense_accuracy,
            "dense_test_accuracy": evaluate(compared.dense, images, images.test),
            **compared.row(method, points, seed),
        }

    for points, seed, method in product(plan.tolerances, plan.seeds, plan.methods):
        key = {"dataset": images.name, "method": method, "tolerance": points, "seed": seed}
        yield key, partial(measure, method, points, seed)


def quality(images: ImageData, dense: Path | None) -> Iterator[Task]:
    """Yield the models of each method at each budget, before and after trainings.

    Args:
        images: CIFAR-10; validation and test images together are what is reported.
        dense: The dense model; a tiny untrained one for a rehearsal if None.
    """
    plan, held = REHEARSAL if dense is None else FULL, joined(images)
    model = cache(partial(_dense, dense))

    @cache
    def search(budget: float, seed: int) -> Search:
        options, run = SearchOptions(seed=seed), RunOptions(progress=False)
        return Search(model(), held, Budget(budget), options=options, run=run)

    @cache
    def pruned(method: str, budget: float, seed: int) -> tuple[ViT, float]:
        smaller = pruned_by(method, search(budget, seed), held)
        return smaller, evaluate(smaller, held, held.val)

    def measure(method: str, budget: float, seed: int, epochs: int) -> dict[str, Any]:
        smaller, accuracy = pruned(method, budget, seed)
        teacher, shape = search(budget, seed).dense, shape_of(smaller)
        recipe = replace(plan.recipe, epochs=epochs)
        row = {
            "model": None if dense is None else dense.stem,
            "recipe": recipe.to_json(),
            "images": len(held.val),
            "dense_accuracy": evaluate(teacher, held, held.val),
            "macs_ratio": shape.macs / shape_of(teacher).macs,
            "params": shape.params,
            "accuracy_pruned": accuracy,
        }
        if epochs:
            trained, context = copy.deepcopy(smaller), TrialContext(seed=seed, progress=False)
            accuracy = finetune(trained, held, recipe, context, teacher=teacher)
        return {**row, "accuracy": accuracy}

    for seed, budget, epochs, method in product(plan.seeds, plan.budgets, plan.epochs, PRUNERS):
        key = {"dataset": images.name, "method": method, "budget": budget}
        yield (
            {**key, "epochs": epochs, "seed": seed},
            partial(measure, method, budget, seed, epochs),
        )


def frontier(images: ImageData, dense: Path | None, out: Path, deadline: float) -> Iterator[Task]:
    """Yield the frontiers by two ratios and by one; their studies are in ``out/study.db``.

    Args:
        images: CIFAR-10; its test images are read once by each model of a budget.
        dense: The dense model; a tiny untrained one for a rehearsal if None.
        out: Folder for the studies.
        deadline: Time of ``perf_counter`` after which no trial begins.
    """
    plan = REHEARSAL if dense is None else FULL
    recipe, n_trials = replace(plan.recipe, epochs=plan.frontier_epochs), plan.frontier_trials
    model = cache(partial(_dense, dense))

    def measure(arm: str, seed: int, folder: Path) -> dict[str, Any] | None:
        found = measure_arm(
            arm, model(), images, recipe, seed, n_trials, folder, deadline=deadline
        )
        publish(folder / "study.db", out / "study.db")
        return found and {"model": None if dense is None else dense.stem, **found}

    with TemporaryDirectory() as folder:
        for seed, arm in product(plan.seeds, ("two", "one")):
            key = {"dataset": images.name, "arm": arm, "seed": seed}
            yield key, partial(measure, arm, seed, Path(folder))


def _dense(path: Path | None) -> ViT:
    """Return the dense model on the best device, or a tiny untrained one."""
    if path is not None:
        return load_dense(path).to(best_device())
    model = create_model(
        "vit_tiny_patch16_224",
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10,
    )  # fmt: skip
    return model.eval().to(best_device())
