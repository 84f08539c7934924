"""What a GPU can tell within minutes: one command, one stage a call, resumed where it stopped.

- ``dense``: how accurate is a ViT of 6 million parameters that is trained on CIFAR-10 alone? See
  ``gpu_dense.py``. It is the dense model of the other stages, ``models/vit_cifar10_d256``.
- ``paper``: the paper's comparison on it, see ``paper.py``: all methods at 1, 2 and 0.5 points,
  5 epochs of all training images a trial, 10 of the answer.
- ``quality``: ours, Torch-Pruning and one ratio by magnitude at 0.6, 0.4 and 0.25 of the FLOPs,
  after 0, 1, 5 and 20 epochs, on validation and test images together, on which nothing is chosen.
- ``frontier``: the whole frontier by two ratios and by one, 3 epochs a trial, see
  ``whole_frontier.py``. Its studies are in ``OUT/study.db``.
- ``speed``: DeiT-S and ViT-B at 224 pixels, dense and pruned in multiples of 1, 8 and 16, and
  with ToMe, see ``speed.py``.
- ``loop``: the built-in training loop against a bare one, and the time that pruning takes.

A stage makes its rows one by one until the time is used up; run again, it goes on with those that
are missing in ``results/gpu.json`` and in OUT, so that calls of a few minutes make a whole table.

    python benchmarks/gpu.py --minutes 9 --stage dense --data DIR --out OUT
    python benchmarks/gpu.py --minutes 9 --stage paper --stage quality --data DIR --out OUT
    python benchmarks/gpu.py --rehearse --out OUT  # every stage, tiny, on noise, on any device

Output: ``OUT/gpu.json``, which is ``results/gpu.json`` with the new rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Optional

import gpu_pruned
import gpu_speed
import typer
from command_line import run_command
from gpu_dense import REHEARSAL, Training, train_dense
from gpu_pruned import Task
from recording import head_commit
from torchvision.datasets import FakeData

from vit_ratio_opt.data.datasets import load_datasets
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.load import load_images
from vit_ratio_opt.data.preprocessing import CIFAR10_MEAN, CIFAR10_STD, Preprocessing
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.device import best_device, device_name
from vit_ratio_opt.utils.files import check_writable_folder, write_json

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "gpu.json"
DENSE = HERE / "models" / "vit_cifar10_d256.safetensors"
CIFAR10 = Preprocessing(CIFAR10_MEAN, CIFAR10_STD, (32, 32))
REHEARSED_SECONDS = 4  # of stage dense
NEED_IMAGES = {"dense", "paper", "quality", "frontier"}
STAGES = ("dense", "paper", "quality", "frontier", "speed", "loop")


def main(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    stage: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help=f"One of {', '.join(STAGES)}; may be repeated.", show_default="all"),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="Of all, loading included.")] = 9.0,
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of CIFAR-10, see `vit-ratio-opt train --help`."),
    ] = None,
    dense: Annotated[Path, typer.Option(help="The dense model of paper and quality.")] = DENSE,
    rehearse: Annotated[
        bool, typer.Option(help="Run all of it on a tiny model and noise, in seconds.")
    ] = False,
    compile_model: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Whether models are compiled too.")
    ] = True,
    commit: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Recorded; git's by default, which a copied tree may lack."),
    ] = None,
) -> None:
    """Measure the rows of some stages that are not there yet, until the time is used up."""
    deadline = time.perf_counter() + 60 * minutes
    stages = stage or list(STAGES)
    unknown = sorted(set(stages) - set(STAGES))
    if unknown:
        raise InputError(f"`--stage` must be one of {STAGES}, not {unknown}.")
    if data is None and not rehearse and set(stages) & NEED_IMAGES:
        raise InputError(f"{sorted(NEED_IMAGES)} need images: give --data, or --rehearse.")
    check_writable_folder(out)
    path = out / "gpu.json"
    known = [path] if path.exists() else [RESULTS] * (not rehearse)
    rows = [row for file in known for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]
    about = {
        "commit": commit or head_commit(),
        "device": device_name(best_device()),
        "versions": {name: version(name) for name in ("vit_ratio_opt", "torch", "timm")},
    }
    images = cache(noise_images if data is None else partial(load_images, data))
    for name in stages:
        command = f"python benchmarks/gpu.py --minutes {minutes:g} --stage {name} --out OUT"
        command += " --rehearse" if rehearse else " --data DIR"
        end = deadline
        if rehearse and name == "dense":
            end = min(deadline, time.perf_counter() + REHEARSED_SECONDS)
        for key, measure in _tasks(
            name, images, dense, out, end, rehearse=rehearse, compiles=compile_model
        ):
            key = {"stage": name, **key}
            if any(key.items() <= row.items() for row in rows):
                continue
            if time.perf_counter() > deadline:
                print(f"The time is used up before {key}: run it again.", flush=True)
                return
            started = time.perf_counter()
            found = measure()
            if found is None:
                print(f"The time is used up within {key}: run it again.", flush=True)
                return
            taken = {
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "seconds": round(time.perf_counter() - started, 1),
            }
            rows.append({**key, **about, "command": command, **taken, **found})
            write_json({"benchmark": "gpu", "rows": rows}, path)
            print(json.dumps({**key, **taken, **found}), flush=True)


def _tasks(
    stage: str,
    images: Callable[[], ImageData],
    dense: Path,
    out: Path,
    deadline: float,
    *,
    rehearse: bool,
    compiles: bool,
) -> Iterator[Task]:
    """Yield the tasks of a stage in the order in which they are worth most."""
    if stage == "dense":
        training = REHEARSAL if rehearse else Training()
        key = {"dataset": images().name, "recipe": asdict(training)}
        yield key, partial(train_dense, images(), training, out, deadline, compiles=compiles)
    elif stage == "paper":
        yield from gpu_pruned.paper(images(), None if rehearse else dense)
    elif stage == "quality":
        yield from gpu_pruned.quality(images(), None if rehearse else dense)
    elif stage == "frontier":
        yield from gpu_pruned.frontier(images(), None if rehearse else dense, out, deadline)
    elif stage == "speed":
        yield from gpu_speed.speed(rehearse=rehearse, compiles=compiles)
    else:
        yield from gpu_speed.loop(rehearse=rehearse)


def noise_images() -> ImageData:
    """Return random images of CIFAR-10's shape, to rehearse with."""
    sizes = {"train": 600, "test": 200}
    parts = {name: FakeData(n, (3, 32, 32), random_offset=n) for name, n in sizes.items()}
    names = [str(label) for label in range(10)]
    return load_datasets(parts, name="noise", classes=names, preprocess=CIFAR10)


if __name__ == "__main__":
    run_command(main)
