"""CIFAR-10, as torchvision stores it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import CIFAR10

from vit_ratio_opt.data.folders import check_folder
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.options import LoadOptions, check_class_folders, label_arguments
from vit_ratio_opt.data.preprocessing import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    Preprocessing,
    resolve_preprocessing,
    warn_if_assumed,
)
from vit_ratio_opt.data.splits import (
    Split,
    Validation,
    check_validation,
    split_in_memory,
    split_in_three,
)
from vit_ratio_opt.errors import InputError

__all__ = ["load_cifar10"]

_OWN = Preprocessing(CIFAR10_MEAN, CIFAR10_STD, (32, 32), origin="CIFAR-10's own")


def load_cifar10(
    root: str | Path,
    *,
    preprocess: Preprocessing | None = None,
    validation: Validation | None = None,
    seed: int = 0,
    download: bool | None = None,
    options: LoadOptions | None = None,
) -> ImageData:
    """Load CIFAR-10 from below ``root``; download it there if it is missing.

    Args:
        root: Folder with ``cifar-10-batches-py``.
        preprocess: Mean and standard deviation of the model; CIFAR-10's own by default.
        validation: Origin of the validation split: a fraction of the training images
            (``"train"``, the default), or half of the test images (``"test"``).
        seed: Random seed of the stratified split.
        download: Whether to download missing images; by default if the folder ``root`` exists.
        options: Mean, standard deviation, share of validation images, and the task of features.

    Raises:
        InputError: The data set is not there and cannot be downloaded, or an option is for files.
    """
    options = options or LoadOptions()
    if options.exif_rotation or options.skip_damaged:
        raise InputError(
            "`exif_rotation` and `skip_damaged` are for image files, but CIFAR-10 has none: leave "
            "them out."
        )
    check_class_folders(options, "CIFAR-10")
    if not download:
        check_folder(root)
    validation = validation or "train"
    check_validation(validation, options.val_fraction, ("train", "test"))
    classes, parts = _read(root, download=download is not False)
    splits = split_in_three(parts, validation, options.val_fraction, seed)
    if preprocess is None or (preprocess.mean, preprocess.std) == (_OWN.mean, _OWN.std):
        preprocess = _OWN
    resolved = resolve_preprocessing(
        "cifar10", (3, 32, 32), preprocess, mean=options.mean, std=options.std
    )
    warn_if_assumed("cifar10", resolved)
    source: dict[str, Any] = {
        "loader": "cifar10",
        "root": str(Path(root).resolve()),
        "validation": validation,
        "val_fraction": options.val_fraction,
        "seed": seed,
        "mean": list(resolved.mean),
        "std": list(resolved.std),
        **label_arguments(options),
    }
    if not options.flip:
        source["flip"] = False
    return ImageData(
        *("cifar10", *splits, classes, resolved.mean, resolved.std, options.flip),
        validation=validation,
        source=source,
        task=options.task,
    )


def _read(root: str | Path, *, download: bool) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Return the class names, and the splits ``"train"`` and ``"test"`` in memory."""
    try:
        train, test = (
            CIFAR10(root, train=is_train, download=download) for is_train in (True, False)
        )
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"CIFAR-10 is not below {root} and could not be downloaded: {error}"
        ) from None
    return tuple(train.classes), {
        split: split_in_memory(torch.from_numpy(part.data).permute(0, 3, 1, 2), part.targets)
        for split, part in (("train", train), ("test", test))
    }
