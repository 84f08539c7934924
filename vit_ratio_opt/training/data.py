"""Images as uint8 tensors in three splits, and batches of them on a device.

Every source (an image folder, torchvision's CIFAR-10, scikit-learn's digits, any pair of data
sets) becomes the same :class:`ImageData`. What fits in memory is decoded once and kept as uint8;
what does not is decoded by ``DataLoader`` workers batch by batch. Either way, augmentation and
normalisation happen on whole batches on the device.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision.datasets import CIFAR10, DatasetFolder, ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from vit_ratio_opt.errors import InputError

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "ImageData",
    "Split",
    "Validation",
    "load_again",
    "load_cifar10",
    "load_csv_images",
    "load_datasets",
    "load_digits",
    "load_image_folder",
    "load_images",
]

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)

Validation = Literal["train", "test"]

_MEMORY_LIMIT = 4 * 2**30
# Images whose contents are hashed: at once in memory, altogether on disk.
_HASHED = 256
# Options of loaders that change no pixel, or are settings of their own.
_NO_PREPROCESSING = {
    *("loader", "root", "seed", "val_fraction", "test_fraction", "validation", "memory_limit"),
    *("image_size", "mean", "std"),
}
_WORKERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Split:
    """Some images of a data set.

    Args:
        dataset: Yields ``(uint8 tensor (channels, height, width), label)``.
        indices: The images of ``dataset`` that belong to this split, ``(n,)``.
        labels: Their labels, ``(n,)``, int64.
    """

    dataset: Dataset[Any]
    indices: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, positions: torch.Tensor) -> Split:
        """The images at these positions of the split."""
        return Split(self.dataset, self.indices[positions], self.labels[positions])

    def fingerprint(self, *, contents: bool = True) -> str:
        """Return a hash of the split's images: their positions, labels and contents.

        In memory, all pixels are hashed. On disk, the relative names and the sizes of all files
        and the bytes of some of them, drawn with a fixed seed. Of a data set of another kind, the
        pixels of as many images, unless they differ from one reading to the next.

        Args:
            contents: Whether contents of images that are not in memory are hashed.
        """
        digest = hashlib.sha256()
        digest.update(self.indices.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        if isinstance(self.dataset, TensorDataset):
            for chunk in torch.split(self.indices, _HASHED):  # a copy of all may not fit
                digest.update(self.dataset.tensors[0][chunk].numpy().tobytes())
        elif contents:
            digest.update(_contents(self.dataset, self.indices.tolist()))
        return digest.hexdigest()[:16]

    def batches(
        self, batch_size: int, *, generator: torch.Generator | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images ``(batch, channels, height, width)`` in uint8 and labels ``(batch,)``.

        Args:
            batch_size: Images in a batch; the last one may be smaller.
            generator: Shuffles with it; without it the order is the split's.
        """
        n = len(self)
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        if isinstance(self.dataset, TensorDataset):
            images = self.dataset.tensors[0]
            for positions in torch.split(order, batch_size):
                yield images[self.indices[positions]], self.labels[positions]
        else:
            part = Subset(self.dataset, self.indices[order].tolist())
            yield from DataLoader(part, batch_size, num_workers=_WORKERS)


@dataclass(frozen=True)
class ImageData:
    """A data set ready for pruning: training, validation and test split.

    Args:
        name: What the study calls it.
        train: For importance and fine-tuning.
        val: For choosing ratios.
        test: Read once, for the final model.
        classes: Class names, by label.
        mean: Normalisation, one value a channel, for pixels in [0, 1].
        std: As ``mean``.
        flip: Whether a mirrored image keeps its label; digits do not.
        validation: Whether ``val`` was taken from the training or the test images.
        source: How to load it again elsewhere, of JSON values, see :func:`load_again`; nothing
            where that is not known.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True
    validation: Validation = "train"
    source: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = next(self.train.batches(1))[0].shape[1:]
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the validation split, see :meth:`Split.fingerprint`."""
        return self.val.fingerprint()

    @cached_property
    def training_fingerprint(self) -> str:
        """Hash of the training split."""
        return self.train.fingerprint()

    @cached_property
    def test_fingerprint(self) -> str:
        """Hash of the test split."""
        return self.test.fingerprint()

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Whether the validation split is the one of this hash.

        Version 0.1.0 hashed no contents of images on disk; its hash is recognised too.
        """
        if fingerprint == self.fingerprint:
            return True
        return fingerprint == self.val.fingerprint(contents=False)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Options of the loader that change pixels, beside the size and the normalisation."""
        return {
            name: value
            for name, value in self.source.items()
            if name not in _NO_PREPROCESSING and value is not None
        }

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """float32 images with the data set's mean and standard deviation, from uint8."""
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return images.float().div_(255).sub_(mean).div_(std)

    def augment(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Every image shifted by up to an eighth of its size and, where harmless, mirrored.

        torchvision's transforms draw once for a whole batch, or run image by image on the CPU;
        this draws for each image and moves the batch with one gather.

        Args:
            images: uint8, ``(batch, channels, height, width)``.
            generator: On the CPU, so that a seed gives the same images on every device.
        """
        n, _, height, width = images.shape
        pad = max(1, height // 8)
        padded = F.pad(images, (pad, pad, pad, pad))
        shift = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=generator)
        rows = shift[0] + torch.arange(height)
        columns = shift[1] + torch.arange(width)
        if self.flip:
            mirrored = torch.rand((n, 1), generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        index = torch.arange(n)[:, None, None]
        rows, columns = rows[:, :, None], columns[:, None, :]
        device = images.device
        # Advanced indices around a slice put the channels last; moving them back is free.
        moved = padded[index.to(device), :, rows.to(device), columns.to(device)]
        return moved.movedim(-1, 1).contiguous()


def load_digits(*, seed: int = 0, val_fraction: float = 0.2) -> ImageData:
    """scikit-learn's 1,797 handwritten digits, 8x8, one channel; a fifth is the test split.

    Args:
        seed: Of the two stratified splits.
        val_fraction: Share of the rest that validates.
    """
    from sklearn import datasets  # slow to import, and most commands need none of it

    digits = datasets.load_digits()
    # Pixels are 0 to 16; 15 spreads them over a byte exactly.
    images = torch.from_numpy((digits.images * 15).astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    everything = Split(TensorDataset(images, labels), torch.arange(len(labels)), labels)
    train, test = _stratified(everything, 0.2, seed=seed)
    train, val = _stratified(train, val_fraction, seed=seed)
    classes = tuple(str(digit) for digit in range(10))
    source = {"loader": "digits", "seed": seed, "val_fraction": val_fraction}
    return ImageData(
        "digits", train, val, test, classes, (0.287,), (0.354,), flip=False, source=source
    )


def load_cifar10(
    root: str | Path,
    *,
    download: bool = True,
    validation: Validation = "train",
    val_fraction: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """CIFAR-10 as torchvision stores it below ``root``, downloaded there when it is missing.

    Args:
        root: Folder with ``cifar-10-batches-py``.
        download: Whether to fetch it when missing.
        validation: See :func:`load_image_folder`.
        val_fraction: See :func:`load_image_folder`.
        seed: Of the stratified split.

    Raises:
        InputError: The data set is not there and cannot be downloaded.
    """
    try:
        parts = [CIFAR10(root, train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"CIFAR-10 is not below {root} and could not be downloaded: {error}"
        ) from None
    decoded = [
        _in_memory(torch.from_numpy(part.data).permute(0, 3, 1, 2), part.targets) for part in parts
    ]
    train, val, test = _three_splits(decoded[0], decoded[1], validation, val_fraction, seed)
    classes = tuple(parts[0].classes)
    options = {"validation": validation, "val_fraction": val_fraction, "seed": seed}
    return ImageData(
        "cifar10",
        train,
        val,
        test,
        classes,
        CIFAR10_MEAN,
        CIFAR10_STD,
        validation=validation,
        source={"loader": "cifar10", "root": str(Path(root).resolve()), **options},
    )


def load_images(
    root: str | Path,
    *,
    image_size: int | None = None,
    validation: Validation = "train",
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ImageData:
    """The images below ``root``, whichever way they are kept.

    :func:`load_image_folder` where there is a folder ``train``, :func:`load_csv_images` where
    there is a ``train.csv``, else :func:`load_cifar10`.

    Raises:
        InputError: As there, or ``image_size``, ``mean`` or ``std`` are given for CIFAR-10.
    """
    for name, load in (("train", load_image_folder), ("train.csv", load_csv_images)):
        if (Path(root) / name).exists():
            return load(
                root,
                image_size=image_size,
                validation=validation,
                seed=seed,
                mean=mean,
                std=std,
            )
    if image_size is not None or mean is not None or std is not None:
        raise InputError(
            "`image_size`, `mean` and `std` are for a folder with train/<class>/* or train.csv, "
            f"but {root} has neither."
        )
    return load_cifar10(root, validation=validation, seed=seed)


def load_image_folder(
    root: str | Path,
    *,
    image_size: int | None = None,
    validation: Validation = "train",
    val_fraction: float = 0.1,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    memory_limit: int = _MEMORY_LIMIT,
) -> ImageData:
    """``root/train/<class>/*`` and ``root/test/<class>/*`` (or ``val`` for ``test``), as RGB.

    Args:
        root: The folder.
        image_size: Images are resized on the shorter side and cropped to this many pixels; the
            size of the first image by default.
        validation: Where the validation split is taken from. ``"train"``: a fraction of the
            training images. ``"test"``: one half of the test images, for a dense model that has
            seen all the training images; the other half remains the test split.
        val_fraction: Share of the training images that validates when ``validation="train"``.
        seed: Of the stratified split.
        mean: Normalisation; CIFAR-10's by default.
        std: As ``mean``.
        memory_limit: Decoded images above this many bytes stay on disk.

    Raises:
        InputError: A folder or its classes are missing, differ, or are too small to split.
    """
    root = Path(root)
    train_folder = _image_folder(root / "train")
    test_root = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if test_root is None:
        raise InputError(f"{root} must have a folder `test` or `val` beside `train`.")
    test_folder = _image_folder(test_root)
    if train_folder.classes != test_folder.classes:
        odd = sorted(set(train_folder.classes) ^ set(test_folder.classes))
        raise InputError(
            f"{root / 'train'} and {test_root} must have the same classes; differing: {odd[:5]}."
        )
    options: dict[str, Any] = {
        "image_size": image_size,
        "validation": validation,
        "val_fraction": val_fraction,
        "seed": seed,
        "mean": mean,
        "std": std,
        "memory_limit": memory_limit,
    }
    data = load_datasets(
        train_folder, test_folder, name=root.name, classes=train_folder.classes, **options
    )
    return _with_source(data, "image_folder", root, options)


def load_csv_images(
    root: str | Path,
    *,
    image_size: int | None = None,
    validation: Validation = "train",
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    memory_limit: int = _MEMORY_LIMIT,
) -> ImageData:
    """``root/images/*`` with ``train.csv``, ``val.csv``, ``test.csv``: Mini-ImageNet as passed on.

    Each row has a ``filename`` and a ``label``. The three files have different classes, since the
    data set was made for few-shot learning (Vinyals 2016); for classification all images are put
    together and split by class.

    Args:
        root: The folder; of the three files those that are there are read.
        image_size: See :func:`load_image_folder`.
        validation: See :func:`load_image_folder`.
        val_fraction: See :func:`load_image_folder`.
        test_fraction: Share of the images that is the test split, taken by class, always the same.
        seed: Of the validation split.
        mean: See :func:`load_image_folder`.
        std: See :func:`load_image_folder`.
        memory_limit: See :func:`load_image_folder`.

    Raises:
        InputError: A file is missing, empty or has other columns, or cannot be split.
    """
    root = Path(root)
    rows: list[tuple[str, str]] = []
    for name in ("train.csv", "val.csv", "test.csv"):
        if (root / name).is_file():
            with (root / name).open(newline="", encoding="utf-8") as file:
                table = csv.DictReader(file)
                rows += [(row.get("filename") or "", row.get("label") or "") for row in table]
    if not rows or not all(name and label for name, label in rows):
        raise InputError(f"{root}: the .csv files must have rows with `filename` and `label`.")
    classes = sorted({label for _, label in rows})
    number = {label: index for index, label in enumerate(classes)}
    files = _Files(
        [root / "images" / name for name, _ in rows], [number[label] for _, label in rows]
    )
    missing = next((path for path in files.paths if not path.is_file()), None)
    if missing is not None:
        raise InputError(f"{root}: a .csv file names {missing}, which is not there.")
    everything = Split(files, torch.arange(len(files)), torch.tensor(files.targets))
    parts = _stratified(everything, test_fraction, seed=0)
    train, test = (
        _Files(
            [files.paths[index] for index in part.indices], [int(label) for label in part.labels]
        )
        for part in parts
    )
    options: dict[str, Any] = {
        "image_size": image_size,
        "validation": validation,
        "val_fraction": val_fraction,
        "seed": seed,
        "mean": mean,
        "std": std,
        "memory_limit": memory_limit,
    }
    data = load_datasets(train, test, name=root.name, classes=classes, **options)
    return _with_source(data, "csv_images", root, {**options, "test_fraction": test_fraction})


def _with_source(data: ImageData, loader: str, root: Path, options: dict[str, Any]) -> ImageData:
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in options.items()}
    source = {"loader": loader, "root": str(root.resolve()), **plain}
    return replace(data, source=source)


def load_again(source: Mapping[str, Any], *, root: str | Path | None = None) -> ImageData:
    """The data set of ``ImageData.source``, perhaps from another folder.

    Args:
        source: ``loader`` and what it is called with.
        root: Where the images are here; where they were by default.

    Raises:
        InputError: ``source`` names no loader of this package, the data set has no folder but
            ``root`` is given, or as the loader says.
    """
    loaders: dict[str, Callable[..., ImageData]] = {
        "digits": load_digits,
        "cifar10": load_cifar10,
        "image_folder": load_image_folder,
        "csv_images": load_csv_images,
    }
    options = dict(source)
    name = options.pop("loader", None)
    if name not in loaders:
        raise InputError(f"Images come from one of {sorted(loaders)}, not from {name!r}.")
    if root is not None:
        if "root" not in options:
            raise InputError(f"The data set {name!r} is in no folder: leave --data out.")
        options["root"] = root
    try:
        return loaders[name](**options)
    except TypeError as error:  # an option of another version
        raise InputError(f"The images cannot be loaded as the study says: {error}.") from None


class _Files(Dataset[tuple[Any, int]]):
    """Image files and their labels."""

    def __init__(self, paths: Sequence[Path], targets: Sequence[int]) -> None:
        self.paths, self.targets = list(paths), list(targets)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return default_loader(str(self.paths[index])), self.targets[index]


def load_datasets(
    train: Dataset[Any],
    test: Dataset[Any],
    *,
    name: str,
    classes: Sequence[str],
    image_size: int | None = None,
    validation: Validation = "train",
    val_fraction: float = 0.1,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    flip: bool = True,
    memory_limit: int = _MEMORY_LIMIT,
) -> ImageData:
    """Any two map-style data sets that yield ``(image, label)``.

    An image is a PIL image, a uint8 array ``(height, width, channels)`` or a uint8 tensor
    ``(channels, height, width)``. Labels are read from ``dataset.targets`` where there is such a
    list, else by going through the data set once.

    Args:
        train: Training images.
        test: Test images.
        name: What the study calls the data set.
        classes: Class names, by label.
        image_size: See :func:`load_image_folder`.
        validation: See :func:`load_image_folder`.
        val_fraction: See :func:`load_image_folder`.
        seed: Of the stratified split.
        mean: Normalisation, one value a channel; CIFAR-10's for RGB by default.
        std: As ``mean``.
        flip: Whether a mirrored image keeps its label.
        memory_limit: Decoded images above this many bytes stay on disk.

    Raises:
        InputError: A data set is empty or the split cannot be made.
    """
    if not len(cast(Sized, train)) or not len(cast(Sized, test)):
        raise InputError(f"{name}: the training and the test set must have images.")
    size = image_size or min(v2.functional.get_size(_to_image(train[0][0])))
    channels = _AsUint8(train, size)[0][0].shape[0]
    mean = tuple(mean or (CIFAR10_MEAN if channels == 3 else (0.5,) * channels))
    std = tuple(std or (CIFAR10_STD if channels == 3 else (0.5,) * channels))
    if len(mean) != channels or len(std) != channels:
        raise InputError(f"{name}: `mean` and `std` must have {channels} values, one a channel.")
    total = len(cast(Sized, train)) + len(cast(Sized, test))
    keep = total * channels * size * size <= memory_limit
    parts = []
    for dataset in (train, test):
        uint8 = _AsUint8(dataset, size)
        if keep:
            parts.append(_in_memory(*_decode(uint8)))
        else:
            labels = _labels(dataset)
            parts.append(Split(uint8, torch.arange(len(labels)), labels))
    splits = _three_splits(parts[0], parts[1], validation, val_fraction, seed)
    return ImageData(name, *splits, tuple(classes), mean, std, flip, validation)


class _AsUint8(Dataset[tuple[torch.Tensor, int]]):
    """``dataset`` with every image as a uint8 tensor of one size."""

    def __init__(self, dataset: Dataset[Any], size: int) -> None:
        self.dataset = dataset
        self.size = size

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.dataset[index]
        tensor = _to_image(image)
        if tuple(tensor.shape[-2:]) != (self.size, self.size):
            tensor = v2.functional.resize(tensor, [self.size], antialias=True)
            tensor = v2.functional.center_crop(tensor, [self.size, self.size])
        return tensor, int(label)


def _to_image(image: Any) -> torch.Tensor:
    tensor = image if isinstance(image, torch.Tensor) else v2.functional.to_image(image)
    if tensor.dtype != torch.uint8:
        raise InputError(f"Images must be 8 bits a channel, but got {tensor.dtype}.")
    plain: torch.Tensor = tensor.as_subclass(torch.Tensor)
    return plain


def _decode(dataset: _AsUint8) -> tuple[torch.Tensor, torch.Tensor]:
    """All images and labels of ``dataset``, each written once into one tensor."""
    images = torch.empty((len(dataset), *dataset[0][0].shape), dtype=torch.uint8)
    labels = torch.empty(len(dataset), dtype=torch.int64)
    done = 0
    # A worker process costs more than it saves on a few images.
    workers = _WORKERS if len(dataset) > 5_000 else 0
    for batch, batch_labels in DataLoader(dataset, 256, num_workers=workers):
        images[done : done + len(batch)] = batch
        labels[done : done + len(batch)] = batch_labels
        done += len(batch)
    return images, labels


def _labels(dataset: Dataset[Any]) -> torch.Tensor:
    targets = getattr(dataset, "targets", None)
    if targets is None:
        targets = [dataset[index][1] for index in range(len(cast(Sized, dataset)))]
    return torch.as_tensor(targets, dtype=torch.int64)


def _contents(dataset: Dataset[Any], indices: Sequence[int]) -> bytes:
    """Return a hash of the images at ``indices``, which are not in memory."""
    digest = hashlib.sha256()
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(indices), generator=draw)[:_HASHED].tolist()
    sample = sorted(indices[position] for position in order)
    source = dataset.dataset if isinstance(dataset, _AsUint8) else dataset
    paths = _paths(source)
    if paths:
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
        for index in indices:
            name = Path(os.path.relpath(paths[index], root)).as_posix()
            digest.update(f"{name} {os.stat(paths[index]).st_size}\n".encode())
        for index in sample:
            digest.update(Path(paths[index]).read_bytes())
    while isinstance(source, Subset):
        source = source.dataset
    if not paths or getattr(source, "transforms", None) is not None:

        def pixels() -> bytes:
            images = (np.ascontiguousarray(dataset[index][0]) for index in sample)
            return hashlib.sha256(b"".join(image.tobytes() for image in images)).digest()

        with torch.random.fork_rng(devices=[]):
            first, second = pixels(), pixels()
        if first == second:  # no random augmentation
            digest.update(first)
    return digest.digest()


def _paths(dataset: Dataset[Any]) -> list[str]:
    """Return the files of a data set's images; none where it does not name them."""
    if isinstance(dataset, Subset):
        paths = _paths(dataset.dataset)
        return [paths[index] for index in dataset.indices] if paths else []
    if isinstance(dataset, _Files):
        return [str(path) for path in dataset.paths]
    return [path for path, _ in dataset.samples] if isinstance(dataset, DatasetFolder) else []


def _in_memory(images: torch.Tensor, labels: Any) -> Split:
    labels = torch.as_tensor(labels, dtype=torch.int64)
    return Split(TensorDataset(images.contiguous(), labels), torch.arange(len(labels)), labels)


def _image_folder(path: Path) -> ImageFolder:
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; expected one folder a class below it.")
    try:
        return ImageFolder(str(path))
    except FileNotFoundError as error:  # no classes, or a class without images
        raise InputError(f"{path} must have one folder a class: {error}") from None


def _three_splits(
    train: Split, test: Split, validation: Validation, val_fraction: float, seed: int
) -> tuple[Split, Split, Split]:
    if validation == "train":
        train, val = _stratified(train, val_fraction, seed=seed)
    elif validation == "test":
        test, val = _stratified(test, 0.5, seed=seed)
    else:
        raise InputError(f"`validation` must be 'train' or 'test', but got {validation!r}.")
    return train, val, test


def _stratified(split: Split, fraction: float, *, seed: int) -> tuple[Split, Split]:
    """``split`` without and with a stratified share of it, both in the old order."""
    if not 0 < fraction < 1:
        raise InputError(f"The share of held-out images must be in (0, 1), but got {fraction!r}.")
    from sklearn import model_selection  # slow to import

    try:
        rest, held = model_selection.train_test_split(
            np.arange(len(split)), test_size=fraction, stratify=split.labels, random_state=seed
        )
    except ValueError as error:
        raise InputError(f"{len(split)} images cannot be split by class: {error}") from None
    rest, held = (torch.from_numpy(np.sort(part)) for part in (rest, held))
    return split.subset(rest), split.subset(held)
