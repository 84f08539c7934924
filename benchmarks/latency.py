"""How well does the table predict the time of a pruned model, and does a search keep a budget?

Question: by how much is the predicted latency of a pruned model off, as a share of the dense
one's, which is what a budget is about? And does the best model of a search with a latency budget
take no longer than that?

Method: a table as ``Search(..., cost="latency")`` measures it, then models of random shapes,
different heads, ranks and neurons in every block, at several levels of MACs, timed afterwards,
each between two runs of the dense model, the median of seven to ten turns. The error of a model is
that of its share of the dense model's time. The search is of ``--budget`` on CIFAR-10, without
fine-tuning; its best model and the dense one are timed in turns again.

    python benchmarks/latency.py predict [--checkpoint FILE] [--batch 1] [--threads 1]
    python benchmarks/latency.py predict --checkpoint FILE --engine onnxruntime
    python benchmarks/latency.py search --data DIR --checkpoint FILE [--budget 0.7] [--batch 1]
    python benchmarks/latency.py show

Output: ``results/latency.json``, a row for each model, engine, batch and number of threads (and
budget); rows of the same are replaced. Runtime on one core: a minute for a CIFAR-10 model at batch
1, three for DeiT-S at 224 pixels; two or three for the search. Each model that ONNX Runtime runs
is exported, which takes some 4 seconds for a CIFAR-10 model: seven minutes in all.
"""

from __future__ import annotations

import json
import platform
import random
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Optional

import timm
import torch
import typer
from command_line import run_command
from recording import Results

from vit_ratio_opt.composer import Search
from vit_ratio_opt.data.load import load_images
from vit_ratio_opt.latency.table import measure_latency, random_blocks
from vit_ratio_opt.latency.timing import share_weights, time_models
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.models.device import best_device
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.options import CalibrationOptions
from vit_ratio_opt.records.answer import answer_trial
from vit_ratio_opt.runs.options import RunOptions, SearchOptions
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.space.costs import Engine, Latency
from vit_ratio_opt.training.recipe import Recipe

RESULTS = Results(
    Path(__file__).parent / "results" / "latency.json",
    ("kind", "model", "batch", "engine", "device", "threads", "budget"),
)

Checkpoint = Annotated[Optional[Path], typer.Option(help="A dense model.")]  # noqa: UP045
Batch = Annotated[int, typer.Option(min=1, help="Images at once.")]
Threads = Annotated[int, typer.Option(min=1, help="Of torch, on a CPU.")]
RunBy = Annotated[Engine, typer.Option("--engine", help="What runs the models.")]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def predict(
    model: Annotated[str, typer.Option(help="A timm ViT.")] = "deit_small_patch16_224",
    checkpoint: Checkpoint = None,
    batch: Batch = 1,
    threads: Threads = 1,
    engine: RunBy = "eager",
    shapes: Annotated[int, typer.Option(min=1, help="Random shapes that are timed.")] = 30,
) -> None:
    """Predicted against measured, for random shapes."""
    torch.set_num_threads(threads)
    dense = timm.create_model(model) if checkpoint is None else load_dense(checkpoint)
    dense = dense.eval().to(best_device())
    started = time.perf_counter()
    table = measure_latency(dense, batch=batch, engine=engine)
    table_seconds = time.perf_counter() - started
    shape, draw = shape_of(dense), random.Random(1)
    drawn = [random_blocks(shape, draw) for _ in range(shapes)]
    pruned = [share_weights(dense, blocks) for blocks in drawn]
    dense_seconds, *seconds = time_models([dense, *pruned], batch=batch, engine=engine)
    whole = table.predict(shape.blocks)
    rows = [
        {
            "macs_ratio": round(shape_of(smaller).macs / shape.macs, 4),
            "predicted": round(table.predict(blocks) / whole, 4),
            "measured": round(taken / dense_seconds, 4),
        }
        for blocks, smaller, taken in zip(drawn, pruned, seconds, strict=True)
    ]
    errors = sorted(abs(row["predicted"] / row["measured"] - 1) for row in rows)
    _keep(
        {
            "kind": "predict",
            "model": model if checkpoint is None else checkpoint.stem,
            "batch": batch,
            "engine": engine,
            **_machine(table.conditions),
            "table_seconds": round(table_seconds, 1),
            "table_error": round(table.error, 4),
            "dense_ms": round(1e3 * dense_seconds, 3),
            "dense_predicted_ms": round(whole / 1e6, 3),
            "median_error": round(statistics.median(errors), 4),
            "p90_error": round(errors[int(0.9 * (len(errors) - 1) + 0.5)], 4),
            "shapes": rows,
        },
        time.perf_counter() - started,
    )


@app.command()
def search(
    data: Annotated[Path, typer.Option(help="Folder of CIFAR-10.")],
    checkpoint: Annotated[Path, typer.Option(help="A dense model.")],
    budget: Annotated[float, typer.Option(help="Share of the dense model's latency.")] = 0.7,
    batch: Batch = 1,
    threads: Threads = 1,
    engine: RunBy = "eager",
    n_trials: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """A search with a latency budget, and what its best model takes."""
    torch.set_num_threads(threads)
    images = load_images(data, validation="test", seed=0)
    dense = load_dense(checkpoint)
    with TemporaryDirectory() as folder:
        calibration = CalibrationOptions(images=128, cache=Path(folder) / "cache")
        composed = Search(
            dense,
            images,
            Budget(budget),
            cost=Latency(batch=batch, engine=engine),
            training=Recipe(epochs=0),
            options=SearchOptions(screen=False, calibration=calibration),
            run=RunOptions(checkpoints=folder),
        )
        started = time.perf_counter()
        study = composed.create_study("latency", storage=f"sqlite:///{folder}/study.db")
        composed.run(study, n_trials=n_trials, explain=False)
        seconds = time.perf_counter() - started
        accuracy, best = composed.test(study), answer_trial(study)
        assert best is not None
        tested, known = study.user_attrs["tested"], study.user_attrs["latency"]
    _keep(
        {
            "kind": "search",
            "model": checkpoint.stem,
            "batch": batch,
            "engine": engine,
            **_machine(known),
            "budget": budget,
            "trials": n_trials,
            "table_error": round(known["error"], 4),
            "mhsa_ratio": best.params["mhsa_ratio"],
            "ffn_ratio": best.params["ffn_ratio"],
            "macs_ratio": round(best.user_attrs["macs_ratio"], 4),
            "predicted": round(best.user_attrs["cost_ratio"], 4),
            "measured": round(tested["pruned_ms"] / tested["dense_ms"], 4),
            "dense_ms": tested["dense_ms"],
            "pruned_ms": tested["pruned_ms"],
            "test_accuracy": accuracy,
            "dense_test_accuracy": tested["dense"],
        },
        seconds,
    )


@app.command()
def show() -> None:
    """Print the tables of what was recorded."""
    rows = RESULTS.rows
    print(
        "| model | engine | batch | threads | table, s | median error | 90th percentile "
        "| dense, ms |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        if row["kind"] == "predict":
            print(
                f"| {row['model']} | {row['engine']} | {row['batch']} | {row['threads']} "
                f"| {row['table_seconds']} | {100 * row['median_error']:.1f} % "
                f"| {100 * row['p90_error']:.1f} % "
                f"| {row['dense_ms']:.1f} |"
            )
    print(
        "\n| model | engine | batch | budget | predicted | measured | FLOPs | test % | dense % |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        if row["kind"] == "search":
            print(
                f"| {row['model']} | {row['engine']} | {row['batch']} | {row['budget']} "
                f"| {row['predicted']:.3f} | {row['measured']:.3f} | {row['macs_ratio']:.3f} "
                f"| {row['test_accuracy']:.2f} "
                f"| {row['dense_test_accuracy']:.2f} |"
            )


def _machine(known: dict[str, Any]) -> dict[str, Any]:
    names = ("device", "threads", "precision", "provider", "onnxruntime")
    return {key: known[key] for key in names if key in known}


def _keep(row: dict[str, Any], seconds: float) -> None:
    RESULTS.add({**row, "machine": platform.machine()}, seconds=seconds)
    print(json.dumps({key: value for key, value in row.items() if key != "shapes"}, indent=2))


if __name__ == "__main__":
    run_command(app)
