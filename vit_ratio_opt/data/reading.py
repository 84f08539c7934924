"""Reading of data sets and image files: uint8 tensors of one size, labels, and damaged items.

Items that cannot be read are collected, so that one message names all of them; an item that is no
image with a label is refused immediately.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import DatasetFolder
from torchvision.datasets.folder import default_loader

from vit_ratio_opt.data.images import read_image, resize, to_uint8
from vit_ratio_opt.data.items import ItemFormat
from vit_ratio_opt.data.labels import NO_LABEL
from vit_ratio_opt.data.preprocessing import Preprocessing
from vit_ratio_opt.errors import InputError

__all__ = [
    "AsUint8",
    "Files",
    "ReadItems",
    "find_first_image",
    "paths_of",
    "read_all",
    "worker_count",
]

_MOST_WORKERS = 16
# Items that are read of torchvision's folders on disk, whose images are all RGB.
_TRIED = 64


def worker_count() -> int:
    """Return how many processes read images, by the CPUs that this process may use.

    Processes that share a training on one machine share its CPUs.
    """
    count = getattr(os, "process_cpu_count", os.cpu_count)  # Python 3.13
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count() or 1
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's
    return max(1, min(_MOST_WORKERS, cpus // sharing))


class UnreadableError(InputError):
    """An image that cannot be read."""


class Files(Dataset[tuple[Any, Any]]):
    """Image files and their labels: a list of numbers, or float32 ``(files, classes)``."""

    def __init__(
        self,
        paths: Sequence[Path],
        targets: Sequence[int] | torch.Tensor,
        read: Callable[..., Any] = read_image,
    ) -> None:
        self.paths, self.read = list(paths), read
        self.targets = targets if isinstance(targets, torch.Tensor) else list(targets)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self._read(index), self.targets[index]

    def check(self, index: int) -> None:
        """Raise the error that reading the image raises, in less time."""
        self._read(index, fast=True)

    def _read(self, index: int, **options: bool) -> Any:
        path = self.paths[index]
        try:
            if self.read is default_loader:
                return default_loader(str(path))
            return self.read(path, **options)
        except InputError as error:
            raise UnreadableError(str(error)) from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UnreadableError(f"{path} cannot be read: {error}") from None


class AsUint8(Dataset[tuple[torch.Tensor, Any]]):
    """A data set with every image of ``dataset`` as a uint8 tensor of one size, and its label.

    Args:
        dataset: Yields images and labels of any kind.
        to: Size, crop and interpolation of the images.
        channels: Number of channels that every image must have.
        title: Title of the images, for messages.
        form: Form of the items and their labels.
    """

    def __init__(
        self, dataset: Dataset[Any], to: Preprocessing, channels: int, title: str, form: ItemFormat
    ) -> None:
        self.dataset, self.to, self.channels, self.title = dataset, to, channels, title
        self.form = form

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        tensor, label = _item(self.dataset, index, self.title, self.form)
        if tensor.shape[0] != self.channels:
            where = f"{self.title}, item {index}{_path(self.dataset, index)}"
            raise InputError(
                f"{where}: it has {tensor.shape[0]} channel(s), but the first image has "
                f"{self.channels}: convert all to the same mode."
            )
        try:
            return resize(tensor, self.to), label
        except InputError as error:
            where = f"{self.title}, item {index}{_path(self.dataset, index)}"
            raise InputError(f"{where}: {error}") from None


class _Attempts(Dataset[tuple[torch.Tensor, Any, str, bool]]):
    """Images and labels, each with an error message, if any, and whether the item is unreadable.

    Args:
        dataset: Yields the images and labels.
        keep: Whether the images are needed, or only tested.
    """

    def __init__(self, dataset: AsUint8, keep: bool) -> None:
        self.dataset, self.keep = dataset, keep
        shape = (dataset.channels, *dataset.to.image_size) if keep else (0,)
        self.blank = torch.zeros(shape, dtype=torch.uint8)
        self.no_label = dataset.form.empty_labels(1)[0]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any, str, bool]:
        files = self.dataset.dataset
        try:
            if not self.keep and isinstance(files, Files):
                files.check(index)
                return self.blank, torch.as_tensor(files.targets[index]), "", False
            image, label = self.dataset[index]
        except InputError as error:
            return self.blank, self.no_label, str(error), isinstance(error, UnreadableError)
        return image if self.keep else self.blank, torch.as_tensor(label), "", False


def _item(
    dataset: Dataset[Any], index: int, title: str, form: ItemFormat
) -> tuple[torch.Tensor, Any]:
    """Return an item as a uint8 tensor and its label.

    Raises:
        InputError: It is no image with a label; :class:`UnreadableError` if it cannot be read.
    """
    try:
        item = dataset[index]
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # of Pillow
        where = f"{title}, item {index}{_path(dataset, index)}"
        raise UnreadableError(f"{where} cannot be read: {error}.") from None
    try:
        image, label = form.split(item)
        return to_uint8(image), form.parse_label(label)
    except InputError as error:
        raise InputError(f"{title}, item {index}{_path(dataset, index)}: {error}") from None


def _path(dataset: Dataset[Any], index: int) -> str:
    paths = paths_of(dataset)
    return f" ({paths[index]})" if paths else ""


def find_first_image(dataset: Dataset[Any], name: str, form: ItemFormat) -> torch.Tensor:
    """Return the first image that can be read.

    Raises:
        InputError: No image can be read.
    """
    broken = ""
    for index in range(len(cast(Sized, dataset))):
        try:
            return _item(dataset, index, f"{name}, training images", form)[0]
        except UnreadableError as error:
            broken = broken or str(error)
    raise InputError(f"{name}: no training image can be read, such as {broken}")


@dataclass(frozen=True)
class ReadItems:
    """The usable items of a data set.

    Args:
        images: Usable images, uint8 ``(n, channels, height, width)``; None if they are not kept.
        labels: Labels of the usable images, ``(n,)``, int64, or ``(n, classes)``, float32. For
            features, an image without a label has -1.
        indices: Positions of the usable images in the data set, ``(n,)``.
        unreadable: One sentence for each item that cannot be read.
    """

    images: torch.Tensor | None
    labels: torch.Tensor
    indices: torch.Tensor
    unreadable: list[str]


def read_all(dataset: AsUint8, *, keep: bool) -> ReadItems:
    """Read a data set once and return its usable items.

    Every item is read, with two exceptions if images are not kept: a JPEG file is decoded at an
    eighth of its size, and of torchvision's folders, whose images are all RGB, only some items
    are read.

    Args:
        dataset: Yields the images and labels.
        keep: Whether the images are needed, or only tested.

    Raises:
        InputError: A readable item is no image with a label, has another number of channels, or
            has a label that is out of range.
    """
    files, count = dataset.dataset, len(dataset)
    targets = _targets(files, dataset.form)
    if keep or targets is None or not _is_folder_of_rgb(files):
        indices = list(range(count))
    else:
        draw = torch.Generator().manual_seed(0)
        indices = sorted({0, *torch.randperm(count, generator=draw)[:_TRIED].tolist()})
    attempts = _Attempts(dataset, keep)
    images = torch.empty((count if keep else 0, *attempts.blank.shape), dtype=torch.uint8)
    labels = dataset.form.empty_labels(count) if targets is None else targets.clone()
    kept = torch.ones(count, dtype=torch.bool)
    done, position, unreadable = 0, 0, []
    # A worker process costs more than it saves on a few images.
    workers = worker_count() if len(indices) > 5_000 else 0
    for batch, batch_labels, messages, broken in DataLoader(
        Subset(attempts, indices), 256, num_workers=workers
    ):
        numbers = torch.tensor(indices[position : position + len(messages)])
        position += len(messages)
        for index, message, is_broken in zip(numbers.tolist(), messages, broken, strict=True):
            if message and not is_broken:
                raise InputError(message)
            if message:
                kept[index] = False
                unreadable.append(message)
        usable = ~broken
        if targets is not None:
            _check_targets(dataset, numbers[usable], targets, batch_labels[usable])
        labels[numbers] = batch_labels
        if keep:
            good = batch if usable.all() else batch[usable]
            images[done : done + len(good)] = good
            done += len(good)
    read = ReadItems(
        images[:done] if keep else None, labels[kept], kept.nonzero()[:, 0], unreadable
    )
    if dataset.form.task in ("single-label", "features"):
        _check_range(dataset, read)
    return read


def _is_folder_of_rgb(dataset: Dataset[Any]) -> bool:
    return isinstance(dataset, DatasetFolder) and dataset.loader is default_loader


def _check_range(dataset: AsUint8, read: ReadItems) -> None:
    """Refuse labels of no class, and name the first image that has one."""
    labels, count = read.labels, len(dataset.form.classes)
    is_wrong = (labels < 0) | (labels >= count)
    if dataset.form.task == "features":
        is_wrong &= labels != NO_LABEL
    wrong = is_wrong.nonzero()[:, 0]
    if len(wrong):
        index, label = int(read.indices[wrong[0]]), int(labels[wrong[0]])
        hint = " Subtract 1." if (int(labels.min()), int(labels.max())) == (1, count) else ""
        raise InputError(
            f"{dataset.title}, item {index}{_path(dataset.dataset, index)}: its label is {label}, "
            f"but must be 0 to {count - 1}, one for each of the {count} classes.{hint}"
        )


def _targets(dataset: Dataset[Any], form: ItemFormat) -> torch.Tensor | None:
    """Return the labels of all items if the data set has a list of them, else None."""
    targets = getattr(dataset, "targets", None) if form.classes else None
    if targets is None or getattr(dataset, "target_transform", None) is not None:
        return None
    try:
        labels = torch.as_tensor(targets)
    except (RuntimeError, TypeError, ValueError):
        return None
    wanted = form.empty_labels(len(cast(Sized, dataset)))
    if form.task in ("single-label", "features") and labels.is_floating_point():
        return None
    return labels.to(wanted.dtype) if labels.shape == wanted.shape else None


def _check_targets(
    dataset: AsUint8, indices: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor
) -> None:
    """Refuse a list of labels that differs from the labels of the items."""
    differs = targets[indices] != labels
    if dataset.form.task == "features":  # an item may be an image alone
        differs &= labels != NO_LABEL
    wrong = differs.nonzero()
    if len(wrong):
        index = int(indices[wrong[0, 0]])
        raise InputError(
            f"{dataset.title}, item {index}: its label is {labels[wrong[0, 0]].tolist()}, but "
            f"`dataset.targets` says {targets[index].tolist()}: set `targets` to the items' "
            "labels."
        )


def paths_of(dataset: Dataset[Any]) -> list[str]:
    """Return the files of a data set's images; an empty list if it does not name them."""
    if isinstance(dataset, Subset):
        paths = paths_of(dataset.dataset)
        return [paths[index] for index in dataset.indices] if paths else []
    if isinstance(dataset, Files):
        return [str(path) for path in dataset.paths]
    return [path for path, _ in dataset.samples] if isinstance(dataset, DatasetFolder) else []
