"""What does a pruned model weigh, know and take as a file for other programs?

Question: size, accuracy and images a second on one thread of a dense model and of a pruned one, in
PyTorch, in onnxruntime, and there in int8.

Method: the model is pruned and repaired at the pair of the budget's curve with the least expected
loss, without fine-tuning; both are exported as ``vit-ratio-opt export`` does it. Accuracy is top-1
on all test images. What is timed takes turns, batch by batch, so that what else the machine does
falls on all alike; medians over the turns.

    python benchmarks/export.py --data DIR --checkpoint FILE [--budget 0.5] [--turns 30]

Output: ``results/export.json``, two rows for each checkpoint; rows of the same are replaced.
Runtime on two cores: 3 minutes for ``vit_cifar10_d64``.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.checkpoint import load_dense
from vit_ratio_opt.cli import run_command
from vit_ratio_opt.export import (
    export_model,
    exported_accuracy,
    image_shape,
    load_exported,
    quantize,
)
from vit_ratio_opt.geometry import RatioPair
from vit_ratio_opt.objective import PruningObjective
from vit_ratio_opt.pruning import shape_of
from vit_ratio_opt.report import write_json
from vit_ratio_opt.training import ImageData, evaluate, load_images

RESULTS = Path(__file__).parent / "results" / "export.json"
BATCHES = (1, 64)


def main(
    data: Annotated[Path, typer.Option(help="Folder of the images.")],
    checkpoint: Annotated[Path, typer.Option(help="The dense model.")],
    budget: Annotated[float, typer.Option(min=0.05, max=0.95)] = 0.5,
    turns: Annotated[int, typer.Option(min=3)] = 30,
) -> None:
    """Export one model, dense and pruned, and measure what comes of it."""
    torch.set_num_threads(1)
    dense = load_dense(checkpoint)
    images = load_images(data)
    objective = PruningObjective(dense, images, budget=budget, device="cpu", progress=False)
    likely = objective.likely_best()
    assert likely is not None
    pair = RatioPair(*likely)
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = [row for row in rows if row["checkpoint"] != checkpoint.stem]
    for name, model in (("dense", dense), ("pruned", objective.prune(pair))):
        row = {
            "checkpoint": checkpoint.stem,
            "model": name,
            "mhsa_ratio": pair.mhsa_ratio if name == "pruned" else 0.0,
            "ffn_ratio": pair.ffn_ratio if name == "pruned" else 0.0,
            "macs_ratio": shape_of(model).macs / shape_of(dense).macs,
            **measured(model, images, turns),
            "test_images": len(images.test),
            "turns": turns,
            "device": "cpu",
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "versions": {p: version(p) for p in ("torch", "timm", "onnx", "onnxruntime")},
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    write_json({"benchmark": "export", "rows": rows}, RESULTS)


def measured(model: VisionTransformer, images: ImageData, turns: int) -> dict[str, Any]:
    """Sizes, accuracies and speeds of one model, by what runs it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        difference = export_model(model, path)
        smaller = quantize(path, Path(folder) / "model.int8.onnx")
        runs = {
            "pytorch": model.eval(),
            "onnxruntime": load_exported(path),
            "int8": load_exported(smaller),
        }
        accuracies = {
            "pytorch": evaluate(model, images, images.test),
            "onnxruntime": exported_accuracy(path, images),
            "int8": exported_accuracy(smaller, images),
        }
        return {
            "largest_difference": difference,
            "bytes": {"onnxruntime": path.stat().st_size, "int8": smaller.stat().st_size},
            "test_accuracy": {key: round(value, 2) for key, value in accuracies.items()},
            "images_per_second": {
                str(batch): speeds(runs, torch.randn(batch, *image_shape(model)), turns)
                for batch in BATCHES
            },
        }


def speeds(runs: dict[str, Any], images: torch.Tensor, turns: int) -> dict[str, float]:
    """Images a second, by what runs them."""
    repeats = max(1, 64 // len(images))  # until a turn is long enough to be timed
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for _ in range(turns + 1):
            for name, run in runs.items():
                started = time.perf_counter()
                for _ in range(repeats):
                    run(images)
                seconds[name].append((time.perf_counter() - started) / repeats)
    return {
        name: round(len(images) / statistics.median(times[1:]), 1)  # the first warms up
        for name, times in seconds.items()
    }


if __name__ == "__main__":
    run_command(main)
