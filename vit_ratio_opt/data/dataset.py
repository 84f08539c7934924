"""Images as uint8 tensors in three splits, and batches of them on a device.

Every source (an image folder, torchvision's CIFAR-10, scikit-learn's digits, any pair of data
sets) becomes the same :class:`ImageData`. What fits in memory is decoded once and kept as uint8;
what does not is decoded by ``DataLoader`` workers batch by batch. Either way, augmentation and
normalisation happen on whole batches on the device.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.datasets.folder import default_loader

from vit_ratio_opt.data.folders import (
    check_folder,
    class_folders,
    csv_tables,
    split_paths,
    visible_names,
)
from vit_ratio_opt.data.images import read_image
from vit_ratio_opt.data.items import check_classes, check_labels, shared_images
from vit_ratio_opt.data.preprocessing import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    Preprocessing,
    check_channels,
    floats,
    height_and_width,
    resolve_preprocessing,
)
from vit_ratio_opt.data.reading import WORKERS, AsUint8, Files, first_image, read_all
from vit_ratio_opt.data.reading import paths_of as _paths
from vit_ratio_opt.errors import InputError

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "ImageData",
    "Split",
    "Validation",
    "default_validation",
    "load_again",
    "load_cifar10",
    "load_csv_images",
    "load_datasets",
    "load_digits",
    "load_image_folder",
    "load_images",
]

Validation = Literal["train", "val", "test"]

_MEMORY_LIMIT = 4 * 2**30
# Images whose contents are hashed: at once in memory, altogether on disk.
_HASHED = 256
# Options of loaders that change no pixel, or are settings of their own.
_NO_PREPROCESSING = {
    *("loader", "root", "seed", "val_fraction", "test_fraction", "validation", "memory_limit"),
    *("image_size", "mean", "std"),
}
# Of the others, what version 0.1.0 did, whose sources have none of these.
_AS_BEFORE = {
    "interpolation": "bilinear", "crop": 1.0, "squash": False,
    "exif_rotation": False, "skip_damaged": False,
}  # fmt: skip
# Unreadable images whose names are said.
_SHOWN = 5
_TITLES = {"train": "training", "val": "validation", "test": "test"}


_logger = logging.getLogger(f"optuna.{__name__}")


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
            try:
                yield from DataLoader(part, batch_size, num_workers=WORKERS)
            except InputError as error:  # a worker process adds its traceback to the message
                message = str(error).rsplit(f"{type(error).__name__}: ", 1)[-1]
                raise InputError(message.strip()) from None


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
        validation: Whether ``val`` was taken from the training or the test images, or was given.
        source: How to load it again elsewhere, of JSON values, see :func:`load_again`; nothing
            where that is not known.

    Raises:
        InputError: ``mean`` or ``std`` are not of pixels in [0, 1].
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

    def __post_init__(self) -> None:
        Preprocessing(floats(self.mean), floats(self.std), (1, 1))

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width.

        Raises:
            InputError: ``mean`` and ``std`` are not of as many channels.
        """
        channels, height, width = next(self.train.batches(1))[0].shape[1:]
        check_channels(self.name, channels, self.mean, self.std)
        return channels, height, width

    @property
    def preprocess(self) -> Preprocessing:
        """How the images become a model's input."""
        _, *size = self.image_shape
        ways = {key: self.source.get(key, default) for key, default in _AS_BEFORE.items()}
        return Preprocessing(
            floats(self.mean),
            floats(self.std),
            (size[0], size[1]),
            interpolation=ways["interpolation"],
            crop=ways["crop"],
            squash=ways["squash"],
            origin=f"the data set {self.name}",
        )

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
            if name not in _NO_PREPROCESSING and value not in (None, _AS_BEFORE.get(name))
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
    download: bool | None = None,
    validation: Validation | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    preprocess: Preprocessing | None = None,
) -> ImageData:
    """CIFAR-10 as torchvision stores it below ``root``, downloaded there when it is missing.

    Args:
        root: Folder with ``cifar-10-batches-py``.
        download: Whether to fetch it when missing; by default only if ``root`` is there.
        validation: See :func:`load_image_folder`; ``"train"`` by default.
        val_fraction: See :func:`load_image_folder`.
        seed: Of the stratified split.
        mean: Normalisation; that of ``preprocess``, else the data set's own by default.
        std: As ``mean``.
        preprocess: The model's; only mean and standard deviation are used.

    Raises:
        InputError: The data set is not there and cannot be downloaded.
    """
    if not download:
        check_folder(root)
    validation = validation or "train"
    _check_split(validation, val_fraction, ("train", "test"))
    try:
        parts = [
            CIFAR10(root, train=train, download=download is not False) for train in (True, False)
        ]
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"CIFAR-10 is not below {root} and could not be downloaded: {error}"
        ) from None
    decoded = [
        _in_memory(torch.from_numpy(part.data).permute(0, 3, 1, 2), part.targets) for part in parts
    ]
    splits = dict(zip(("train", "test"), decoded, strict=True))
    train, val, test = _three_splits(splits, validation, val_fraction, seed)
    options: dict[str, Any] = {
        "validation": validation, "val_fraction": val_fraction, "seed": seed
    }  # fmt: skip
    own = Preprocessing(CIFAR10_MEAN, CIFAR10_STD, (32, 32), origin="CIFAR-10's own")
    if preprocess is None or (preprocess.mean, preprocess.std) == (own.mean, own.std):
        preprocess = own
    resolved = resolve_preprocessing("cifar10", (3, 32, 32), preprocess, mean=mean, std=std)
    options.update(mean=list(resolved.mean), std=list(resolved.std))
    return ImageData(
        "cifar10",
        train,
        val,
        test,
        tuple(parts[0].classes),
        resolved.mean,
        resolved.std,
        validation=validation,
        source={"loader": "cifar10", "root": str(Path(root).resolve()), **options},
    )


def load_images(
    root: str | Path,
    *,
    image_size: int | Sequence[int] | None = None,
    validation: Validation | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    preprocess: Preprocessing | None = None,
    exif_rotation: bool = False,
    skip_damaged: bool = False,
) -> ImageData:
    """The images below ``root``, whichever way they are kept.

    :func:`load_image_folder` where there is a folder ``train``, :func:`load_csv_images` where
    there is a ``train.csv``, else :func:`load_cifar10`, which is downloaded into an empty folder.

    Raises:
        InputError: There is no folder ``root`` or it has something else, as these functions say,
            or ``image_size``, ``exif_rotation`` or ``skip_damaged`` are given for CIFAR-10.
    """
    root = check_folder(root)
    options: dict[str, Any] = {
        "validation": validation, "seed": seed, "mean": mean, "std": std, "preprocess": preprocess
    }  # fmt: skip
    for name, load in (("train", load_image_folder), ("train.csv", load_csv_images)):
        if (root / name).exists():
            return load(
                root,
                image_size=image_size,
                exif_rotation=exif_rotation,
                skip_damaged=skip_damaged,
                **options,
            )
    if image_size is not None or exif_rotation or skip_damaged:
        raise InputError(
            "`image_size`, `exif_rotation` and `skip_damaged` are for a folder with "
            f"train/<class>/* or train.csv, but {root} has neither."
        )
    names = visible_names(root)
    if names and not any(name.startswith("cifar-10-") for name in names):
        raise InputError(
            f"{root} has neither train/<class>/* nor train.csv nor CIFAR-10, which is downloaded "
            f"into an empty folder only; it has {', '.join(names[:_SHOWN])}."
        )
    return load_cifar10(root, **options)


def load_image_folder(
    root: str | Path,
    *,
    image_size: int | Sequence[int] | None = None,
    validation: Validation | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    preprocess: Preprocessing | None = None,
    exif_rotation: bool = False,
    skip_damaged: bool = False,
    memory_limit: int = _MEMORY_LIMIT,
) -> ImageData:
    """``root/train/<class>/*`` and ``root/test/<class>/*`` (or ``val`` for ``test``), as RGB.

    Every image is decoded once before anything is trained: those that fit in memory to be kept,
    others to see that they can be (a JPEG at an eighth of its size, which is faster).

    Args:
        root: The folder.
        image_size: Pixels of a side, or height and width, to which images are resized and
            cropped; that of ``preprocess``, else the shorter side of the first image by default.
        validation: Where the validation split is taken from. ``"val"``: the folder ``val``, the
            default where there are ``val`` and ``test``. ``"train"``: a fraction of the training
            images, else the default. ``"test"``: one half of the test images, for a dense model
            that has seen all the training images; the other half remains the test split.
        val_fraction: Share of the training images that validates when ``validation="train"``.
        seed: Of the stratified split.
        mean: Normalisation, of pixels in [0, 1]; that of ``preprocess`` by default.
        std: As ``mean``.
        preprocess: How the model's images are resized, cropped and normalised, see
            :func:`vit_ratio_opt.data.preprocessing.preprocess_of`. Without it, and without
            ``mean`` and ``std``, CIFAR-10's are assumed, with which version 0.1.0 trained; a
            warning says so.
        exif_rotation: Whether photographs are turned as their EXIF data says; torchvision and
            timm do not.
        skip_damaged: Leave out images that cannot be read, instead of refusing the folder.
        memory_limit: Decoded images above this many bytes stay on disk.

    Raises:
        InputError: A folder or its classes are missing, differ, or are too small to split, or
            images cannot be read.
    """
    root = check_folder(root)
    classes, files = class_folders(root)
    read = partial(read_image, exif_rotation=exif_rotation)
    parts = {split: Files(*listed, read) for split, listed in files.items()}
    options: dict[str, Any] = {
        "validation": validation or default_validation(root),
        "val_fraction": val_fraction,
        "seed": seed,
        "skip_damaged": skip_damaged,
        "memory_limit": memory_limit,
    }
    data, resolved = _load(
        _with_test(parts), name=root.name, classes=classes, preprocess=preprocess, mean=mean,
        std=std, image_size=image_size, **options,
    )  # fmt: skip
    options["exif_rotation"] = exif_rotation
    return _with_source(data, "image_folder", root, {**_stored(resolved), **options})


def load_csv_images(
    root: str | Path,
    *,
    image_size: int | Sequence[int] | None = None,
    validation: Validation | None = None,
    val_fraction: float = 0.1,
    test_fraction: float | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    preprocess: Preprocessing | None = None,
    exif_rotation: bool = False,
    skip_damaged: bool = False,
    memory_limit: int = _MEMORY_LIMIT,
) -> ImageData:
    """``root/images/*`` with ``train.csv``, ``val.csv``, ``test.csv``.

    Each row has a ``filename`` and a ``label``. Files with the same classes are the splits that
    they are named for. Files that have no class in common were made for few-shot learning, such
    as Mini-ImageNet's (Vinyals 2016): for classification all images are put together and split by
    class.

    Args:
        root: The folder; of the three files those that are there are read.
        image_size: See :func:`load_image_folder`.
        validation: See :func:`load_image_folder`.
        val_fraction: See :func:`load_image_folder`.
        test_fraction: Put all images together whatever the files say, and take this share as the
            test split, by class, always the same; a fifth where they have to be put together.
        seed: Of the validation split.
        mean: See :func:`load_image_folder`.
        std: See :func:`load_image_folder`.
        preprocess: See :func:`load_image_folder`.
        exif_rotation: See :func:`load_image_folder`.
        skip_damaged: See :func:`load_image_folder`.
        memory_limit: See :func:`load_image_folder`.

    Raises:
        InputError: A file is missing, empty or has other columns or other classes, names an
            image outside of ``root/images``, or cannot be split; or images cannot be read.
    """
    root = check_folder(root)
    tables = csv_tables(root)
    is_pooled = test_fraction is not None or not _are_splits(root, tables)
    read = partial(read_image, exif_rotation=exif_rotation)
    if validation is None:
        validation = "val" if not is_pooled and len(tables) == 3 else "train"
    if is_pooled:
        rows = [row for table in tables.values() for row in table.items()]
        test_fraction = 0.2 if test_fraction is None else test_fraction
        classes, parts = _pooled(root, list(dict.fromkeys(rows)), read, test_fraction)
    else:
        classes = sorted(set(tables["train"].values()))
        parts = _with_test(
            {
                split: Files(
                    [root / "images" / name for name in table],
                    [classes.index(label) for label in table.values()],
                    read,
                )
                for split, table in tables.items()
            }
        )
    options: dict[str, Any] = {
        "validation": validation,
        "val_fraction": val_fraction,
        "seed": seed,
        "skip_damaged": skip_damaged,
        "memory_limit": memory_limit,
    }
    data, resolved = _load(
        parts, name=root.name, classes=classes, preprocess=preprocess, mean=mean, std=std,
        image_size=image_size, **options,
    )  # fmt: skip
    options.update(exif_rotation=exif_rotation, test_fraction=test_fraction)
    return _with_source(data, "csv_images", root, {**_stored(resolved), **options})


def default_validation(root: str | Path, otherwise: Validation = "train") -> Validation:
    """Return where the validation images of a folder are by default.

    Args:
        root: The folder, of :func:`load_images`.
        otherwise: What to return where training, validation and test images are not kept apart.

    Raises:
        InputError: There is no such folder, or two could be one split.
    """
    root = check_folder(root)
    if (root / "train").exists():
        return "val" if len(split_paths(root)) == 3 else otherwise
    if not (root / "train.csv").exists():
        return otherwise
    tables = csv_tables(root)
    return "val" if len(tables) == 3 and _are_splits(root, tables) else otherwise


def _are_splits(root: Path, tables: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether tables have the same classes; they are to be put together if they have none."""
    classes = [set(table.values()) for table in tables.values()]
    if len(classes) > 1 and all(part == classes[0] for part in classes):
        return "train" in tables
    every = set().union(*classes)
    if len(every) < sum(map(len, classes)):
        odd = sorted(every - set(classes[0]).intersection(*classes))
        raise InputError(
            f"The .csv files of {root} must have the same classes, or no class in common; in some "
            f"only: {odd[:_SHOWN]}. `test_fraction` puts all images together."
        )
    return False


def _pooled(
    root: Path, rows: Sequence[tuple[str, str]], read: Callable[..., Any], test_fraction: float
) -> tuple[list[str], dict[str, Files]]:
    """Return the classes, and all images of a folder split by class."""
    classes = sorted({label for _, label in rows})
    number = {label: index for index, label in enumerate(classes)}
    paths = [root / "images" / name for name, _ in rows]
    labels = torch.tensor([number[label] for _, label in rows])
    files = Files(paths, labels.tolist(), read)
    parts = _stratified(Split(files, torch.arange(len(files)), labels), test_fraction, seed=0)
    return classes, {
        name: Files(
            [paths[index] for index in part.indices], [int(label) for label in part.labels], read
        )
        for name, part in zip(("train", "test"), parts, strict=True)
    }


def _with_test(parts: dict[str, Files]) -> dict[str, Files]:
    """Return the parts, the validation images being the test images where there are no others."""
    return parts if "test" in parts else {"train": parts["train"], "test": parts["val"]}


def _stored(resolved: Preprocessing) -> dict[str, Any]:
    """Return what a source says of the preprocessing."""
    height, width = resolved.image_size
    values = resolved.to_json()
    del values["origin"], values["is_assumed"]
    return {**values, "image_size": height if height == width else [height, width]}


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
    load = loaders[name]
    try:
        if name == "cifar10":  # a study may not choose where something is fetched to
            options["download"] = False if root is None else None
        elif "root" in options:
            if "interpolation" in options:
                keys = ("mean", "std", "image_size", "interpolation", "crop", "squash")
                values = {key: options.pop(key) for key in keys if key in options}
                values["image_size"] = height_and_width(values["image_size"])
                options["preprocess"] = Preprocessing(**values, origin="the study")
            else:
                load = partial(_load_as_before, name)
        return load(**options)
    except (KeyError, TypeError) as error:  # an option of another version
        raise InputError(f"The images cannot be loaded as the study says: {error}.") from None


def _load_as_before(
    loader: str, root: str | Path, *, test_fraction: float = 0.2, **options: Any
) -> ImageData:
    """Return what version 0.1.0 loaded, image by image: the numbers of its studies depend on it.

    It listed hidden files and folders, put all .csv files together, cut off transparency and
    lower bits, and normalised as CIFAR-10 by default.
    """
    root = check_folder(root)
    if loader == "image_folder":
        found: dict[str, Path] = split_paths(root)
        try:
            folders = {split: ImageFolder(str(path)) for split, path in found.items()}
        except FileNotFoundError as error:
            raise InputError(f"{root} must have one folder a class: {error}") from None
        if not {"train"} < set(folders):
            raise InputError(f"{root} must have folders `train` and `test` or `val`.")
        classes = folders["train"].classes
        parts = _with_test(
            {
                split: Files(
                    [Path(path) for path, _ in part.samples], part.targets, default_loader
                )
                for split, part in folders.items()
            }
        )
    else:
        rows = [row for table in csv_tables(root).values() for row in table.items()]
        classes, parts = _pooled(root, rows, default_loader, test_fraction)
    stored = dict(options)
    options.setdefault("validation", "train")
    for name, value in (("mean", CIFAR10_MEAN), ("std", CIFAR10_STD)):
        options[name] = options.get(name) or value
    data, _ = _load(parts, name=root.name, classes=classes, **options)
    if loader == "csv_images":
        stored["test_fraction"] = test_fraction
    return _with_source(data, loader, root, stored)


def load_datasets(
    train: Dataset[Any],
    test: Dataset[Any],
    *,
    name: str,
    classes: Sequence[str],
    val: Dataset[Any] | None = None,
    image_size: int | Sequence[int] | None = None,
    validation: Validation | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    preprocess: Preprocessing | None = None,
    flip: bool = True,
    skip_damaged: bool = False,
    memory_limit: int = _MEMORY_LIMIT,
) -> ImageData:
    """Map-style data sets that yield ``(image, label)``.

    An item is a pair, or a dictionary such as ``{"image": ..., "label": ...}``; what an image may
    be says :func:`vit_ratio_opt.data.images.to_uint8`. A label is a whole number from 0. In
    memory, every item is read once and compared with ``dataset.targets``. On disk, some items
    are, and labels are read from ``dataset.targets`` where there is such a list, else by going
    through the data set once.

    Args:
        train: Training images.
        test: Test images.
        name: What the study calls the data set.
        classes: Class names, by label.
        val: Validation images, if they are kept apart.
        image_size: See :func:`load_image_folder`.
        validation: See :func:`load_image_folder`; ``"val"`` by default where there is ``val``.
        val_fraction: See :func:`load_image_folder`.
        seed: Of the stratified split.
        mean: Normalisation, one value a channel, of pixels in [0, 1]; by default that of
            ``preprocess``, else CIFAR-10's for RGB, with a warning.
        std: As ``mean``.
        preprocess: See :func:`load_image_folder`.
        flip: Whether a mirrored image keeps its label.
        skip_damaged: Leave out items that cannot be read.
        memory_limit: Decoded images above this many bytes stay on disk.

    Raises:
        InputError: A data set is empty, an item is no image with a class or cannot be read, the
            classes do not fit, or the split cannot be made.
    """
    parts = {"train": train, "test": test, **({} if val is None else {"val": val})}
    validation = validation or ("train" if val is None else "val")
    data, _ = _load(
        parts, name=name, classes=classes, image_size=image_size,
        validation=validation, val_fraction=val_fraction, seed=seed, mean=mean, std=std,
        preprocess=preprocess, flip=flip, skip_damaged=skip_damaged, memory_limit=memory_limit,
    )  # fmt: skip
    return data


def _load(
    parts: Mapping[str, Dataset[Any]],
    *,
    name: str,
    classes: Sequence[str],
    validation: Validation,
    val_fraction: float = 0.1,
    seed: int = 0,
    image_size: int | Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    preprocess: Preprocessing | None = None,
    flip: bool = True,
    skip_damaged: bool = False,
    memory_limit: int = _MEMORY_LIMIT,
) -> tuple[ImageData, Preprocessing]:
    """Return the data set of ``parts``, by split, and how its images are made a model's input."""
    for split, dataset in parts.items():
        is_indexed = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if isinstance(dataset, IterableDataset) or not is_indexed:
            raise InputError(
                f"{name}: the {_TITLES[split]} images must be a map-style data set, with a length "
                f"and an index, but are {type(dataset).__name__}."
            )
        if not len(cast(Sized, dataset)):
            raise InputError(f"{name}: the training and the test set must have images.")
    check_classes(name, classes, parts)
    _check_split(validation, val_fraction, parts)
    if all(isinstance(dataset, Files) for dataset in parts.values()):
        # Classes that cannot be split are said before thousands of images are read.
        listed = {
            split: Split(files, torch.arange(len(files)), torch.tensor(files.targets))
            for split, files in cast("Mapping[str, Files]", parts).items()
        }
        _three_splits(listed, validation, val_fraction, seed)
    shape = first_image(parts["train"], name).shape
    resolved = resolve_preprocessing(
        name, shape, preprocess, mean=mean, std=std, image_size=image_size
    )
    channels, pixels = shape[0], resolved.image_size[0] * resolved.image_size[1]
    total = sum(len(cast(Sized, dataset)) for dataset in parts.values())
    keep = total * channels * pixels <= memory_limit
    read, unreadable = {}, []
    for split, dataset in parts.items():
        uint8 = AsUint8(dataset, resolved, channels, f"{name}, {_TITLES[split]} images")
        items = read_all(uint8, keep=keep)
        unreadable += items.unreadable
        if not len(items.labels):
            raise InputError(
                f"{name}: no {_TITLES[split]} image can be read, such as {items.unreadable[0]}"
            )
        if items.images is None:
            read[split] = Split(uint8, items.indices, items.labels)
        else:
            read[split] = _in_memory(items.images, items.labels)
    if unreadable:
        shown = " ".join(unreadable[:_SHOWN])
        more = len(unreadable) - _SHOWN
        shown += f" And {more:,} more." if more > 0 else ""
        if not skip_damaged:
            raise InputError(
                f"{name}: {len(unreadable):,} of {total:,} images cannot be read. {shown} Mend or "
                "remove them, or leave them out with `skip_damaged=True` (--skip-damaged)."
            )
        _logger.warning(f"{name}: {len(unreadable):,} of {total:,} images are left out. {shown}")
    check_labels(name, classes, {_TITLES[split]: part.labels for split, part in read.items()})
    train, val, test = _three_splits(read, validation, val_fraction, seed)
    data = ImageData(
        name, train, val, test, tuple(classes), resolved.mean, resolved.std, flip, validation
    )
    if keep:
        _warn_of_shared_images(name, read)
    return data, resolved


def _warn_of_shared_images(name: str, parts: Mapping[str, Split]) -> None:
    """Say that images are in two splits, of which one should tell nothing of the other."""
    tensors = {
        split: cast(TensorDataset, part.dataset).tensors[0] for split, part in parts.items()
    }
    for split in ("test", "val"):
        if split in tensors:
            count = shared_images(tensors["train"], tensors[split])
            if count:
                _logger.warning(
                    f"{name}: {count:,} of {len(tensors[split]):,} {_TITLES[split]} images are "
                    "training images too, pixel by pixel: the accuracy on them says little."
                )


def _contents(dataset: Dataset[Any], indices: Sequence[int]) -> bytes:
    """Return a hash of the images at ``indices``, which are not in memory."""
    digest = hashlib.sha256()
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(indices), generator=draw)[:_HASHED].tolist()
    sample = sorted(indices[position] for position in order)
    source = dataset.dataset if isinstance(dataset, AsUint8) else dataset
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


def _in_memory(images: torch.Tensor, labels: Any) -> Split:
    labels = torch.as_tensor(labels, dtype=torch.int64)
    return Split(TensorDataset(images.contiguous(), labels), torch.arange(len(labels)), labels)


def _check_split(validation: str, val_fraction: float, splits: Collection[str]) -> None:
    """Refuse, before any image is read, a validation split that cannot be made of ``splits``."""
    if validation not in get_args(Validation):
        raise InputError(
            f"`validation` must be 'val', 'train' or 'test', but got {validation!r:.80}."
        )
    if validation == "val" and "val" not in splits:
        raise InputError(
            "`validation='val'` needs validation images beside training and test images: use "
            "'train' or 'test'."
        )
    _check_share(val_fraction)


def _check_share(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise InputError(f"The share of held-out images must be in (0, 1), but got {fraction!r}.")


def _three_splits(
    parts: Mapping[str, Split], validation: Validation, val_fraction: float, seed: int
) -> tuple[Split, Split, Split]:
    train, test = parts["train"], parts["test"]
    if validation == "train":
        train, val = _stratified(train, val_fraction, seed=seed)
    elif validation == "test":
        test, val = _stratified(test, 0.5, seed=seed)
    else:
        val = parts["val"]
    return train, val, test


def _stratified(split: Split, fraction: float, *, seed: int) -> tuple[Split, Split]:
    """``split`` without and with a stratified share of it, both in the old order."""
    _check_share(fraction)
    from sklearn import model_selection  # slow to import

    try:
        rest, held = model_selection.train_test_split(
            np.arange(len(split)), test_size=fraction, stratify=split.labels, random_state=seed
        )
    except (TypeError, ValueError) as error:  # the first: scikit-learn 1.3, of a seed of 70 bits
        raise InputError(
            f"{len(split)} images cannot be split by class, {fraction:g} of them held out with "
            f"the seed {seed!r:.40}: {error}. Give more images of each class, another share, or a "
            "validation split of its own (a folder `val`)."
        ) from None
    rest, held = (torch.from_numpy(np.sort(part)) for part in (rest, held))
    return split.subset(rest), split.subset(held)
