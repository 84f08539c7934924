"""The paper's comparison: how few MACs keep the accuracy, with one ratio and with two?

Question: within the same loss of accuracy, what share of the MACs does each method need, and how
much is that of what CP-ViT needs with its one fixed ratio? (The paper says 56.91 % at nearly equal
accuracy on CIFAR-10.)

Method: one dense model, one search for each method, seed and tolerance (points of validation
accuracy), all with the same number of trained trials at most, the same short fine-tuning in each
trial and the same longer one of the answer. A search ends earlier where nothing is left to learn.

- ``cp-vit``: the cascade with one fixed ratio for both modules, the baseline (a).
- ``cascade``: the same cascade with two searched ratios (b).
- ``structural-fixed``, ``structural``: factorised heads, fewer neurons, repair (c), (d).
- ``both-fixed``, ``both``: these and a cascade that leaves out late and queries only (e).

``--epochs 0`` searches and reports without any training. Ratios are chosen on validation images
only: half of the test images where the dense model has seen all training images (``--validation
test``), else a tenth of the training images. The test images are read once a row, by the final
model. A seed draws the calibration images and shuffles the fine-tuning; the splits stay the same.
Rows are written as they come: run the same command again and it goes on where it stopped.

    python benchmarks/paper.py cifar10-d64 --data DIR --checkpoint FILE
    python benchmarks/paper.py cifar10-d64-untrained --data DIR --checkpoint FILE --epochs 0
    python benchmarks/paper.py cifar10-d128 --data DIR --checkpoint FILE --seeds 1 \
        --val-images 2500 --distillation 1 --lr 3e-4
    python benchmarks/paper.py cifar10-d128-untrained --data DIR --checkpoint FILE --epochs 0 \
        --val-images 2500
    python benchmarks/paper.py mini-imagenet --data DIR --checkpoint FILE --validation train \
        --seeds 1
    python benchmarks/paper.py digits --seeds 5 --tolerance 0.5 --tolerance 1 --tolerance 2 \
        --checkpoint studies/results/quickstart_dense.safetensors --epochs 5 --final-epochs 10
    python benchmarks/paper.py cifar10-d128-untrained-class --data DIR --checkpoint FILE \
        --epochs 0 --val-images 2500 --seeds 1 --tolerance 1 --method cp-vit --method cascade \
        --scores class
    python benchmarks/paper.py --show
    python benchmarks/paper.py --plot

A ViT of DeiT-S size wants a GPU, which all scripts take where there is one; killed, each goes on:

    vit-ratio-opt train FILE --data DIR --patch-size 4 --embed-dim 384 --depth 12 \
        --num-heads 6 --mlp-ratio 4 --drop-path 0.1 --batch-size 512 --epochs 200
    python benchmarks/paper.py cifar10-small --data DIR --checkpoint FILE --validation train \
        --seeds 1 --distillation 1 --lr 3e-4
    python benchmarks/speed.py --compile

Output: ``results/paper-NAME.json``, a table, and with ``--plot`` ``figures/paper.png``. Runtime on
one thread of a 2-core CPU: 4 minutes a row for ``cifar10-d64``, 1 without training, 5 to 15 for
``cifar10-d128``, 5 for Mini-ImageNet, half a minute for the digits.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import defaultdict
from dataclasses import asdict, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, Optional

import matplotlib as mpl
import optuna
import torch
import typer
from command_line import run_command
from matplotlib import pyplot as plt
from optuna.storages import InMemoryStorage
from recording import (
    DataOption,
    DenseOption,
    NameArgument,
    Results,
    SeedsOption,
    ShowOption,
    ThreadsOption,
    header,
    spread,
)

from vit_ratio_opt.composer import Search
from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.load import load_images
from vit_ratio_opt.data.splits import Split
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.device import best_device
from vit_ratio_opt.pruning.options import Both, pruning_options
from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.trials import finished_trials
from vit_ratio_opt.runs.options import RunOptions, SearchOptions
from vit_ratio_opt.search.limits import Tolerance
from vit_ratio_opt.space.tokens import CP_VIT, LATE, CascadeRule, Scores
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.evaluate import evaluate, predict
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe

RESULTS = Path(__file__).parent / "results"
FIGURE = Path(__file__).parent / "figures" / "paper.png"
METHODS: dict[str, dict[str, Any]] = {
    "cp-vit": {"strategy": "cascade", "fixed_ratio": True},
    "cascade": {"strategy": "cascade"},
    "structural-fixed": {"fixed_ratio": True},
    "structural": {},
    "both-fixed": {"strategy": "both", "fixed_ratio": True},
    "both": {"strategy": "both"},
}


def main(
    name: NameArgument = None,
    checkpoint: DenseOption = None,
    data: DataOption = None,
    image_size: Annotated[Optional[int], typer.Option(min=1, help="Pixels.")] = None,  # noqa: UP045
    validation: Annotated[
        Literal["train", "test"], typer.Option(help="Which images ratios are chosen on.")
    ] = "test",
    tolerance: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option(help="Points; may be repeated.", show_default="1 2"),
    ] = None,
    seeds: SeedsOption = 3,
    n_trials: Annotated[int, typer.Option(min=1, help="Trained trials of a search.")] = 8,
    epochs: Annotated[int, typer.Option(min=0, help="Of each trial; 0: no training.")] = 1,
    train_images: Annotated[
        int, typer.Option(min=1, help="Training images of an epoch of the search.")
    ] = 6400,
    final_epochs: Annotated[int, typer.Option(min=1, help="Of the answer.")] = 1,
    final_images: Annotated[
        int, typer.Option(min=1, help="Training images of an epoch of the answer.")
    ] = 25_600,
    lr: Annotated[float, typer.Option(help="Peak learning rate of both.")] = 1e-3,
    distillation: Annotated[
        float, typer.Option(min=0, max=1, help="Weight of the dense model's labels in both.")
    ] = Recipe.distillation,
    val_images: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Validation images; all of them by default."),
    ] = None,
    method: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Only this one; may be repeated."),
    ] = None,
    scores: Annotated[Scores, typer.Option(help="Of the two cascades alone.")] = CP_VIT.scores,
    by_range: Annotated[bool, typer.Option(help="Of the two cascades alone.")] = CP_VIT.by_range,
    threads: ThreadsOption = 1,
    show: ShowOption = False,
    plot: Annotated[bool, typer.Option("--plot", help="Only draw what was recorded.")] = False,
) -> None:
    """Search, fine-tune, test, or go on with it, and print the table."""
    recorded = sorted(RESULTS.glob("paper-*.json"))
    if show or plot:
        chosen = [path for path in recorded if name in (None, path.stem.split("-", 1)[1])]
        results = [json.loads(path.read_text()) for path in chosen]
        for result in results:
            _show(result)
        if plot:
            _plot([one for one in results if one["rules"]["cascade"] == asdict(CP_VIT)])
        return
    if name is None or checkpoint is None:
        raise InputError("Name the results and give --checkpoint, or use --show or --plot.")
    methods = method or list(METHODS)
    unknown = sorted(set(methods) - set(METHODS))
    if unknown:
        raise InputError(f"`--method` must be one of {list(METHODS)}, not {unknown}.")
    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(logging.ERROR)
    dense = load_dense(checkpoint).to(best_device())
    images = _images(data, image_size, validation, val_images)
    batch_size = 128 if data else 64
    recipe = Recipe(epochs=epochs, batch_size=batch_size, lr=lr, distillation=distillation)
    rule = replace(CP_VIT, scores=scores, by_range=by_range)
    comparison = Comparison(
        dense,
        replace(images, train=_first(images.train, train_images)),
        replace(images, train=_first(images.train, final_images)),
        recipe,
        replace(recipe, epochs=final_epochs if epochs else 0),
        n_trials=n_trials,
        rule=rule,
    )
    longer, final = comparison.longer, comparison.final
    head = header(
        comparison.search("structural", 0, 1.0),
        benchmark="paper",
        name=name,
        threads=threads,
        trials=n_trials,
        final_epochs=longer.epochs,
        final_images=len(final.train),
        rules={"cascade": asdict(rule), "both": asdict(LATE)},
        by_cascade=Both().by_cascade,
        dense_test_accuracy=evaluate(dense, images, images.test),
    )
    path = RESULTS / f"paper-{name}.json"
    known = Results(path, ("method", "tolerance", "seed"), header=head)
    for seed, points, method_name in product(range(seeds), tolerance or (1.0, 2.0), methods):
        if known.has(method=method_name, tolerance=points, seed=seed):
            continue
        row = comparison.row(method_name, points, seed)
        known.add(row, seconds=row["seconds"])
        note = ", the dense model" if row["is_dense"] else ""
        print(
            f"seed {seed}  {points}  {method_name:16s}  MACs {row['macs_ratio']:.4f}  "
            f"{tuple(round(ratio, 3) for ratio in row['pair'])}  test {row['test_accuracy']:.2f} "
            f"({row['test_accuracy'] - head['dense_test_accuracy']:+.2f})  {row['seconds']:.0f} s"
            f"{note}",
            flush=True,
        )
    _show({**head, "rows": known.rows})


class Comparison:
    """Searches of each method over one dense model.

    Args:
        dense: The dense model, on its device.
        images: Images of the searches.
        final: The same with the training images of the answers.
        recipe: Training of each trial; 0 epochs for none.
        longer: Training of each answer; 0 epochs for none.
        n_trials: Trained trials of a search.
        rule: How the two cascades alone leave out tokens.
    """

    def __init__(
        self,
        dense: ViT,
        images: ImageData,
        final: ImageData,
        recipe: Recipe,
        longer: Recipe,
        *,
        n_trials: int = 8,
        rule: CascadeRule = CP_VIT,
    ) -> None:
        self.dense, self.images, self.final = dense, images, final
        self.recipe, self.longer = recipe, longer
        self.n_trials, self.rule = n_trials, rule
        self._begins: dict[tuple[str, int], tuple[dict[str, Any], float]] = {}

    def search(self, method: str, seed: int, points: float, folder: str | None = None) -> _Search:
        """Return the search of a method within a tolerance; models are kept in ``folder``."""
        strategy = METHODS[method].get("strategy", "structural")
        return _Search(
            self.dense,
            self.images,
            Tolerance(points),
            pruning=pruning_options(strategy, rule=self.rule if strategy == "cascade" else None),
            training=self.recipe,
            options=SearchOptions(
                fixed_ratio=METHODS[method].get("fixed_ratio", False),
                seed=seed,
                # Without training it is the same again.
                confirmations=1 if self.recipe.epochs else 0,
            ),
            run=RunOptions(checkpoints=folder, progress=False),
        )

    def row(self, method: str, points: float, seed: int) -> dict[str, Any]:
        """Search, train the answer and test it once."""
        started = time.perf_counter()
        if (method, seed) not in self._begins:  # the same for every tolerance
            first = self.search(method, seed, 1.0)
            self._begins[method, seed] = first.first_pairs(), first.dense_accuracy
        with TemporaryDirectory() as folder:
            composed = self.search(method, seed, points, folder)
            composed.begins, composed.objective.dense_accuracy = self._begins[method, seed]
            found, model = _search(composed, self.n_trials)
        row = {"method": method, "tolerance": points, "seed": seed, **found}
        if self.longer.epochs and not row["is_dense"]:
            context = TrialContext(seed=seed, progress=False)
            row["val_accuracy"] = finetune(
                model, self.final, self.longer, context, teacher=self._taught
            )
        row["test_accuracy"] = evaluate(model, self.images, self.images.test)
        row["seconds"] = round(time.perf_counter() - started, 1)
        return row

    @cached_property
    def _taught(self) -> torch.Tensor:
        return predict(self.dense, self.final, self.final.train)


def _images(
    folder: Path | None, image_size: int | None, validation: Any, val_images: int | None
) -> ImageData:
    if folder is None:
        images = load_digits()
    else:
        images = load_images(folder, image_size=image_size, validation=validation)
    return images if val_images is None else replace(images, val=_first(images.val, val_images))


def _first(split: Split, count: int) -> Split:
    """So many images, the same for every row."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return split.subset(order[:count].sort().values)


class _Search(Search):
    """A search that may begin as one with another tolerance did."""

    begins: dict[str, Any] | None = None

    def first_pairs(self) -> dict[str, Any]:
        """Return where a new study begins, without looking again where that is known."""
        return super().first_pairs() if self.begins is None else self.begins


def _search(search: Search, n_trials: int) -> tuple[dict[str, Any], ViT]:
    """Return the row of a search and the model of its answer.

    ``search_accuracy`` and ``search_error`` are expected of the answer's pair in the search. Where
    no pair keeps the tolerance yet, the answer is the dense model: ``is_dense`` is True.
    """
    study = search.create_study("row", storage=InMemoryStorage())
    search.run(study, n_trials=n_trials, say=lambda _: None)
    trials = finished_trials(study)
    row: dict[str, Any] = {
        "pair": [0.0, 0.0],
        "macs_ratio": 1.0,
        "params": search.pruner.shape.params,
        "val_accuracy": search.dense_accuracy,
        "is_dense": True,
        "trials": [
            [
                *(round(ratio, 4) for ratio in trial.params.values()),
                round(trial.user_attrs["macs_ratio"], 4),
                round(trial.user_attrs["accuracy"], 2),
            ]
            for trial in trials
        ],
    }
    answer = answer_of(study)
    if answer is None or answer.found is None:
        return row, search.dense
    found = answer.found
    attributes = found.trial.user_attrs
    row |= {
        "pair": list(found.pair),
        "macs_ratio": attributes["macs_ratio"],
        "params": attributes["params"],
        "val_accuracy": attributes["accuracy"],  # of the model, which is trained longer later
        "is_dense": False,
        "search_trial": found.trial.number,
        "search_accuracy": found.accuracy,
        "search_error": found.error,
        "search_trainings": found.trained,
    }
    return row, search.model_of(study, found.trial)


def _show(results: dict[str, Any]) -> None:
    """Means over the seeds, and the share of CP-ViT's MACs, seed by seed."""
    by_key: defaultdict[tuple[float, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in results["rows"]:
        by_key[row["tolerance"], row["method"]][row["seed"]] = row
    print(
        f"\n{results['name']}: dense {results['dense_accuracy']:.2f} % on validation, "
        f"{results['dense_test_accuracy']:.2f} % on test images\n\n"
        "| points | method | FLOPs | of CP-ViT's | test % | drop | ratios | seeds |\n"
        f"|{' --- |' * 8}"
    )
    for (points, method), rows in sorted(
        by_key.items(), key=lambda item: (item[0][0], list(METHODS).index(item[0][1]))
    ):
        baseline = by_key[points, "cp-vit"]
        shares = [
            row["macs_ratio"] / baseline[seed]["macs_ratio"]
            for seed, row in rows.items()
            if seed in baseline
        ]
        tests = [row["test_accuracy"] for row in rows.values()]
        pairs = [row["pair"] for row in rows.values()]
        ratios = ", ".join(f"{mean(side):.2f}" for side in zip(*pairs, strict=True))
        print(
            f"| {points} | {method} | {spread([row['macs_ratio'] for row in rows.values()], 3)} "
            f"| {spread(shares, 2)} | {spread(tests, 2)} "
            f"| {results['dense_test_accuracy'] - mean(tests):.2f} | {ratios} | {len(rows)} |"
        )


def _plot(results: list[dict[str, Any]]) -> None:
    """Validation accuracy against MACs of all trials, and the frontier of each method."""
    mpl.use("Agg")
    columns = min(3, len(results))
    rows = math.ceil(len(results) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(5 * columns, 4 * rows), squeeze=False, layout="constrained"
    )
    colours = {method: f"C{index}" for index, method in enumerate(METHODS)}
    for axis in axes.flat[len(results) :]:
        axis.set_visible(False)
    for axis, result in zip(axes.flat, results, strict=False):
        dense = result["dense_accuracy"]
        axis.axhline(0, color="0.6", linewidth=0.8)
        for method, colour in colours.items():
            points = sorted(
                (macs_ratio, accuracy - dense)
                for row in result["rows"]
                if row["method"] == method
                for *_, macs_ratio, accuracy in row["trials"]
            )
            if not points:
                continue
            frontier = [
                point
                for index, point in enumerate(points)
                if all(point[1] > earlier[1] for earlier in points[:index])
            ]
            axis.scatter(*zip(*points, strict=True), s=6, color=colour, alpha=0.25)
            axis.plot(
                *zip(*frontier, strict=True),
                color=colour,
                label=method,
                linestyle="--" if method.endswith("fixed") or method == "cp-vit" else "-",
            )
        axis.set(
            title=result["name"],
            xlabel="FLOPs, share of the dense model's",
            xlim=(0, 1.02),
            ylim=(-6, 2),
        )
    for axis in axes[:, 0]:
        axis.set_ylabel("validation accuracy against dense, points")
    axes[0][-1].legend(fontsize=8)
    figure.savefig(FIGURE, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    run_command(main)
