"""How long does a trial wait for its pruned model, and how much memory does that take?

Question: seconds of calibration (once per dense model and data set), of surgery with factorisation
and of the repair (each trial), and the peak memory of the process.

Method: one process measures one model on random images, which cost what real ones do: once with an
empty cache and, ``--trials`` times, with the calibration read from it. Half of both modules goes.
``--against`` measures a checkout of another commit too, in processes that take turns with those of
this one. The precision is that of a study: the faster one.

    python benchmarks/prune_time.py --checkpoint FILE
    python benchmarks/prune_time.py --model deit_small_patch16_224 --against CHECKOUT

Output: ``results/prune_time.json``, a row a model. ``cpu_seconds`` are those of all threads: on a
machine with other work they tell more than ``seconds``. Runtime on two cores: seconds for the
small models, 2 minutes for DeiT-S at 224 pixels.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Optional

import timm
import torch
import typer
from command_line import run_command

from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.device import best_device, device_name, synchronize
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.cache import cached_calibration
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.pruning.reconstruct import repair
from vit_ratio_opt.utils.files import write_json

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "prune_time.json"


def main(
    model: Annotated[str, typer.Option(help="A timm ViT.")] = "deit_small_patch16_224",
    checkpoint: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A dense model in its place."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Calibration images.")] = 512,
    trials: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    precision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Precision of the passes; the faster one by default."),
    ] = None,
    against: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A checkout of another commit, measured in the same run."),
    ] = None,
    measure: Annotated[bool, typer.Option(hidden=True, help="Measure in this process.")] = False,
) -> None:
    """Time the making of one pruned model."""
    torch.set_num_threads(threads)
    dense = timm.create_model(model) if checkpoint is None else load_dense(checkpoint)
    dense = dense.eval().to(best_device())
    if measure:
        print(json.dumps(measure_trials(dense, images, precision)))
        return
    precision = precision or _faster_precision(dense)
    del dense
    command = [sys.executable, __file__, "--measure", f"--model={model}", f"--images={images}"]
    command += [f"--threads={threads}"] + [f"--checkpoint={checkpoint}"] * bool(checkpoint)
    own, others = [], []
    for _ in range(trials):
        own.append(_in_process(ROOT, [*command, f"--precision={precision}"]))
        if against is not None:
            others.append(_in_process(against.resolve(), command))
    given = ["CHECKOUT" if word == str(against) else word for word in sys.argv[1:]]
    row = {
        "model": model if checkpoint is None else checkpoint.stem,
        "images": images,
        "trials": trials,
        "precision": precision,
        **_medians(own),
        "threads": threads,
        "versions": {package: version(package) for package in ("torch", "timm")},
        "commit": _commit(ROOT),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/prune_time.py", *given]),
    }
    if against is not None:
        row["against"] = {"commit": _commit(against), **_medians(others)}
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    same = ("model", "images", "device", "threads")
    rows = [r for r in rows if any(r[key] != row[key] for key in same)] + [row]
    write_json({"benchmark": "prune_time", "rows": rows}, RESULTS)
    for values in (row, row.get("against")):
        if isinstance(values, dict):
            print(
                f"{row['model']}, commit {values['commit']}: first trial "
                f"{values['first_trial_seconds']:.1f} s, later ones "
                f"{values['later_trial_seconds']:.2f} s, peak {values['peak_gib']} GiB"
            )


def measure_trials(dense: ViT, images: int, precision: str | None) -> dict[str, Any]:
    """Return the seconds of each stage of the first trial and of a later one, and the peak."""
    device = best_device()
    size = dense.patch_embed.proj.in_channels, *dense.patch_embed.img_size
    drawn = torch.randn(images, *size, generator=torch.Generator().manual_seed(0))
    batches = [batch.to(device) for batch in torch.split(drawn, 128)]
    del drawn
    # Earlier commits know no other precision.
    options: dict[str, Any] = {} if precision is None else {"precision": precision}
    seconds: dict[str, float] = {}
    cpu: dict[str, float] = {}

    def clocked(name: str, compute: Callable[[], Any]) -> Any:
        started, cpu_started = time.perf_counter(), time.process_time()
        result = compute()
        synchronize(device)
        seconds[name] = time.perf_counter() - started
        cpu[name] = time.process_time() - cpu_started
        return result

    with TemporaryDirectory() as folder:
        read = partial(cached_calibration, dense, batches, Path(folder), **options)
        calibration = clocked("calibrate", read)
        pruned = clocked("prune", lambda: prune(dense, (0.5, 0.5), calibration))
        clocked("repair", lambda: repair(pruned, batches, calibration))
        clocked("read", read)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_gib": peak / 2**30,
        "macs_ratio": shape_of(pruned).macs / shape_of(dense).macs,
        "device": device_name(device),
    }


def _faster_precision(dense: ViT) -> str:
    from vit_ratio_opt.models.precision import faster_precision  # not in earlier commits

    shape = dense.patch_embed.proj.in_channels, *dense.patch_embed.img_size
    timed = [faster_precision(dense, shape, training=training) for training in (False, True)]
    return "bfloat16" if all(one.precision == "bfloat16" for one in timed) else "float32"


def _in_process(tree: Path, command: list[str]) -> dict[str, Any]:
    """Return what a process with the package of a tree measures."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _medians(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of several processes, and what a first and a later trial take."""

    def median(key: str) -> dict[str, float]:
        names = measured[0][key]
        return {n: round(statistics.median(m[key][n] for m in measured), 3) for n in names}

    seconds = median("seconds")
    each = seconds["prune"] + seconds["repair"]
    return {
        "macs_ratio": measured[0]["macs_ratio"],
        "device": measured[0]["device"],
        "seconds": seconds,
        "cpu_seconds": median("cpu_seconds"),
        "first_trial_seconds": round(seconds["calibrate"] + each, 3),
        "later_trial_seconds": round(seconds["read"] + each, 3),
        "peak_gib": round(max(m["peak_gib"] for m in measured), 2),
    }


def _commit(tree: Path) -> str:
    command = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    run_command(main)
