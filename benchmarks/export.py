"""What does a pruned model weigh, know and take as a file for other programs?

Question: size, accuracy and images a second on one thread of a dense model and of a pruned one, in
PyTorch, in onnxruntime, and there in int8.

Method: the model is pruned and repaired at the pair of the budget's curve with the least expected
loss, without fine-tuning; both are exported as ``vit-ratio-opt export`` does it. Accuracy is top-1
on all test images. What is timed takes turns, batch by batch, so that what else the machine does
falls on all alike; medians over the turns.

    python benchmarks/export.py --data DIR --checkpoint FILE [--budget 0.5] [--turns 30]

Output: ``results/export.json``, two rows for each checkpoint; rows of the same are replaced.
Runtime on one core: 3 minutes for ``vit_cifar10_d64``, 10 for ``vit_cifar10_d128``.
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
from command_line import run_command
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.composer import Search
from vit_ratio_opt.data.load import load_images
from vit_ratio_opt.model_files.export import export_model, image_shape, quantize
from vit_ratio_opt.model_files.exported import exported_accuracy, load_exported
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.runs.options import RunOptions
from vit_ratio_opt.runs.screening import likely_best
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.utils.files import write_json

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
    run = RunOptions(device="cpu", progress=False)
    search = Search(dense, images, Budget(budget), run=run)
    pair = likely_best(search.pruner, search.curve)
    assert pair is not None
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = [row for row in rows if row["checkpoint"] != checkpoint.stem]
    models = {"dense": dense, "pruned": search.pruner.prune(pair)}
    runs: dict[tuple[str, str], Any] = {}
    with TemporaryDirectory() as folder:
        written = {
            name: exported(model, name, Path(folder), runs) for name, model in models.items()
        }
        shape = image_shape(dense)
        speeds = {batch: raced(runs, torch.randn(batch, *shape), turns) for batch in BATCHES}
        for name, model in models.items():
            onnx, smaller, difference = written[name]
            accuracies = {
                "pytorch": evaluate(model, images, images.test),
                "onnxruntime": exported_accuracy(onnx, images),
                "int8": exported_accuracy(smaller, images),
            }
            row = {
                "checkpoint": checkpoint.stem,
                "model": name,
                "mhsa_ratio": pair.mhsa_ratio if name == "pruned" else 0.0,
                "ffn_ratio": pair.ffn_ratio if name == "pruned" else 0.0,
                "macs_ratio": shape_of(model).macs / shape_of(dense).macs,
                "largest_difference": difference,
                "bytes": {"onnxruntime": onnx.stat().st_size, "int8": smaller.stat().st_size},
                "test_accuracy": {key: round(value, 2) for key, value in accuracies.items()},
                "images_per_second": {
                    f"batch {batch}": {what: each[name, what] for what in accuracies}
                    for batch, each in speeds.items()
                },
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


def exported(
    model: VisionTransformer, name: str, folder: Path, runs: dict[tuple[str, str], Any]
) -> tuple[Path, Path, float]:
    """The ONNX file, that in int8, and the largest difference; what runs them goes to ``runs``."""
    path = folder / f"{name}.onnx"
    difference = export_model(model, path)
    smaller = quantize(path, folder / f"{name}.int8.onnx")
    runs[name, "pytorch"] = model.eval()
    runs[name, "onnxruntime"] = load_exported(path)
    runs[name, "int8"] = load_exported(smaller)
    return path, smaller, difference


def raced(
    runs: dict[tuple[str, str], Any], images: torch.Tensor, turns: int
) -> dict[tuple[str, str], float]:
    """Images a second of each."""
    repeats = max(1, 64 // len(images))  # until a turn is long enough to be timed
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    with torch.inference_mode():
        for _ in range(turns + 1):
            for key, run in runs.items():
                started = time.perf_counter()
                for _ in range(repeats):
                    run(images)
                seconds[key].append((time.perf_counter() - started) / repeats)
    return {
        key: round(len(images) / statistics.median(times[1:]), 1)  # the first warms up
        for key, times in seconds.items()
    }


if __name__ == "__main__":
    run_command(main)
