"""What the recorders share: options, images, their file's header, and going on with a file."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, Optional, TypeVar

import torch
import typer
from torch.utils.data import TensorDataset

from vit_ratio_opt.composer import Search
from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.image_folder import load_image_folder
from vit_ratio_opt.data.splits import Split
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.device import best_device, device_name
from vit_ratio_opt.pruning.options import Structural
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.trainer import ImageTrainer
from vit_ratio_opt.utils.files import replacing
from vit_ratio_opt.utils.locks import try_lock, unlock

CheckpointOption = Annotated[Path, typer.Option(help="The dense model, safetensors.")]
NameArgument = Annotated[Optional[str], typer.Argument(help="Of the results.")]  # noqa: UP045
DenseOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--checkpoint", help="The dense model, safetensors."),
]
ShowOption = Annotated[bool, typer.Option("--show", help="Only print what was recorded.")]
DataOption = Annotated[
    Optional[Path],  # noqa: UP045  typer evaluates it, also on Python 3.10
    typer.Option(help="An image folder; scikit-learn's digits without one."),
]
TrainImagesOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="Only this many training images; all without it."),
]
SeedsOption = Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="CPU threads of a process.")]
ProcessesOption = Annotated[
    int, typer.Option(min=1, help="Processes that share the work, and the GPU.")
]
MinutesOption = Annotated[
    float, typer.Option(min=0.01, help="Time after which nothing new begins.", show_default="none")
]

_Task = TypeVar("_Task")

# What is recorded are searches over whole heads chosen by Taylor scores, without repair.
PRUNING = Structural(unit="head", repair=False)

_SETTINGS = (
    "model", "weights", "dataset", "validation", "recipe", "mhsa_unit", "repair",
    "calibration_images", "allocation",
)  # fmt: skip


def load_images(folder: Path | None, train_images: int | None) -> ImageData:
    """An image folder, or the digits, with a seeded part of the training images.

    The dense CIFAR-10 models have seen every training image, so half of the test images validate.
    The digits' validation split is only 288 images: here it is joined by the test images, since
    nothing is chosen on one and reported on the other.
    """
    data = (
        joined(load_digits()) if folder is None else load_image_folder(folder, validation="test")
    )
    return data if train_images is None else part_of(data, train_images)


def part_of(data: ImageData, train_images: int) -> ImageData:
    """Return images with a seeded part of the training images."""
    if train_images > len(data.train):
        raise InputError(
            f"`--train-images` must be at most {len(data.train)}, but got {train_images}."
        )
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    return replace(data, train=data.train.subset(chosen[:train_images]))


def joined(data: ImageData) -> ImageData:
    """Validates on validation and test images together: for reports on which nothing is chosen."""
    if data.val is data.test:
        return data
    held = (data.val, data.test)
    labels = torch.cat([split.labels for split in held])
    if data.val.dataset is data.test.dataset:
        both = Split(data.val.dataset, torch.cat([split.indices for split in held]), labels)
    else:  # the positions in either begin at 0
        images = torch.cat([batch for split in held for batch, _ in split.batches(256)])
        both = Split(TensorDataset(images, labels), torch.arange(len(labels)), labels)
    return replace(data, val=both, test=both)


def recipe_for(folder: Path | None, epochs: int) -> Recipe:
    """That of the recorded surfaces and what is compared with them."""
    if folder:
        return Recipe(epochs=epochs, lr=5e-4, augment=True)
    return Recipe(epochs=epochs, batch_size=64, lr=1e-3, augment=True)


def header(search: Search, **more: Any) -> dict[str, Any]:
    """Return what makes rows comparable, as JSON gives it back."""
    settings, trainer = search.settings.to_json(), search.trainer
    assert isinstance(trainer, ImageTrainer)
    whole = {
        **more,
        **{key: settings[key] for key in _SETTINGS},
        "train_images": len(trainer.data.train),
        "eval_images": len(trainer.data.val),
        "dense_accuracy": search.dense_accuracy,
        "device": trainer.device_name,
        "versions": {package: version(package) for package in ("torch", "timm")},
    }
    stored: dict[str, Any] = json.loads(json.dumps(whole))
    return stored


class Results:
    """The rows of one file, one a line, to which several processes may add.

    A row that is added takes the place of one with the same values of ``key``, so that a benchmark
    which was stopped, or run again, goes on with the rows that are missing.

    Args:
        path: JSON file with ``{"benchmark": name, "rows": [...]}``.
        key: Names of the values by which a row is known.
        packages: Packages whose versions a row records.
        header: What holds for all rows; stored once.

    Raises:
        InputError: The file was recorded with another header.
    """

    def __init__(
        self,
        path: Path,
        key: Sequence[str],
        packages: Sequence[str] = ("torch", "timm"),
        *,
        header: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self._key, self._packages = path, tuple(key), tuple(packages)
        self._header = json.loads(json.dumps(dict(header or {})))
        if header and path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            differing = [name for name, value in self._header.items() if stored.get(name) != value]
            if differing:
                raise InputError(
                    f"{path} was recorded with other {', '.join(differing)}: name another."
                )

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Return all rows of the file; none without it."""
        rows: list[dict[str, Any]] = []
        if self.path.exists():
            rows = json.loads(self.path.read_text(encoding="utf-8"))["rows"]
        return rows

    def has(self, **values: Any) -> bool:
        """Return whether a row has these values."""
        return any(values.items() <= row.items() for row in self.rows)

    def add(self, row: Mapping[str, Any], *, seconds: float) -> None:
        """Add a row with its provenance: date, commit, command, versions; a device if it has none.

        Args:
            row: The values.
            seconds: Time that they took.
        """
        about = {
            "seconds": round(seconds, 1),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": head_commit(),
            "command": command(),
            "versions": {name: version(name) for name in self._packages},
        }
        full = {"device": device_name(best_device()), **row, **about}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path.with_suffix(".lock")), replacing(self.path) as partial:
            kept = [row for row in self.rows if any(row.get(k) != full.get(k) for k in self._key)]
            lines = ",\n".join(json.dumps(row) for row in [*kept, full])
            head = json.dumps({"benchmark": self.path.stem, **self._header})
            text = f'{head[:-1]}, "rows": [\n{lines}\n]}}\n'
            partial.write_text(text, encoding="utf-8")


def share_work(
    tasks: Sequence[_Task],
    run: Callable[[_Task], None],
    processes: int = 1,
    *,
    deadline: float = math.inf,
) -> None:
    """Run tasks in their order, each by the next process that is free.

    Processes are forked, so they share the images that are loaded; nothing may have used the GPU
    before.

    Args:
        tasks: Arguments of ``run``.
        run: Function that does a task, and says what it found through files.
        processes: Number of processes.
        deadline: Time of :func:`time.perf_counter` after which no task begins.

    Raises:
        SystemExit: A process failed; the others went on to the end.
    """
    if processes == 1:
        for task in tasks:
            if time.perf_counter() < deadline:
                run(task)
        return
    context = get_context("fork")
    begun = context.Value("i", 0)

    def work() -> None:
        while True:
            with begun.get_lock():
                number = begun.value
                begun.value += 1
            if number >= len(tasks) or time.perf_counter() > deadline:
                return
            run(tasks[number])

    workers = [context.Process(target=work) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    failed = sum(worker.exitcode != 0 for worker in workers)
    if failed:
        raise SystemExit(f"{failed} of {processes} processes failed.")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock, waiting for it."""
    while (handle := try_lock(path)) is None:
        time.sleep(0.05)
    try:
        yield
    finally:
        unlock(handle)


def command() -> str:
    """Return the command of this process, with names of files in place of their paths."""
    script, *words = sys.argv
    names = [os.path.basename(word.rstrip(os.sep)) if os.sep in word else word for word in words]
    return " ".join(["python", f"benchmarks/{os.path.basename(script)}", *names])


def head_commit() -> str:
    """Return the commit of the working tree.

    A copy of a tree without its repository names it in ``COMMIT``; else it is empty.
    """
    if os.environ.get("COMMIT"):
        return os.environ["COMMIT"]
    try:
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
        ).stdout.strip()  # fmt: skip
    except OSError:
        return ""


def spread(values: list[float], digits: int = 2) -> str:
    """Mean and standard deviation, for a table."""
    if not values:
        return "-"
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"
