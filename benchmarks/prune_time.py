"""How long does a trial wait for its pruned model, and how much memory does that take?

Question: seconds of calibration (once per dense model and data set), of surgery with factorisation
and of the repair (each trial), and the peak memory of the process.

Method: one process measures one model on random images, which cost what real ones do: once with an
empty cache and, ``--trials`` times, with the calibration read from it. Half of both modules goes.

    python benchmarks/prune_time.py --checkpoint FILE
    python benchmarks/prune_time.py --model deit_small_patch16_224

Output: ``results/prune_time.json``, a row a model. Runtime on two cores: seconds for the small
models, 3 to 5 minutes for DeiT-S at 224 pixels.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Optional

import timm
import torch
import typer
from command_line import run_command

from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.models.device import best_device
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.cache import cached_calibration
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.pruning.reconstruct import repair
from vit_ratio_opt.utils.files import write_json

RESULTS = Path(__file__).parent / "results" / "prune_time.json"


def main(
    model: Annotated[str, typer.Option(help="A timm ViT.")] = "deit_small_patch16_224",
    checkpoint: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A dense model in its place."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Calibration images.")] = 512,
    trials: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Time the making of one pruned model."""
    device = best_device()
    dense = timm.create_model(model) if checkpoint is None else load_dense(checkpoint)
    dense = dense.eval().to(device)
    size = dense.patch_embed.proj.in_channels, *dense.patch_embed.img_size
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(images, *size, generator=generator)
    batches = [batch.to(device) for batch in torch.split(drawn, 128)]
    stages: dict[str, list[float]] = {}

    def clocked(name: str, started: float) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        stages.setdefault(name, []).append(time.perf_counter() - started)

    with TemporaryDirectory() as folder:
        for trial in range(trials + 1):
            started = time.perf_counter()
            calibration = cached_calibration(dense, batches, Path(folder))
            clocked("read" if trial else "calibrate", started)
            started = time.perf_counter()
            pruned = prune(dense, (0.5, 0.5), calibration)
            clocked("prune", started)
            started = time.perf_counter()
            repair(pruned, batches, calibration)
            clocked("repair", started)
    seconds = {name: round(statistics.median(values), 3) for name, values in stages.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB
    row = {
        "model": model if checkpoint is None else checkpoint.stem,
        "macs_ratio": shape_of(pruned).macs / shape_of(dense).macs,
        "images": images,
        "trials": trials,
        "seconds": seconds,
        "first_trial_seconds": seconds["calibrate"] + seconds["prune"] + seconds["repair"],
        "later_trial_seconds": seconds["read"] + seconds["prune"] + seconds["repair"],
        "peak_gib": round(peak / 2**30, 2),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in ("torch", "timm")},
    }
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    same = ("model", "images", "device", "threads")
    rows = [r for r in rows if any(r[key] != row[key] for key in same)] + [row]
    write_json({"benchmark": "prune_time", "rows": rows}, RESULTS)
    print(
        f"{row['model']}: first trial {row['first_trial_seconds']:.1f} s, later ones "
        f"{row['later_trial_seconds']:.2f} s, peak {row['peak_gib']} GiB; {seconds}"
    )


if __name__ == "__main__":
    run_command(main)
