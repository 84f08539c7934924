"""From data sets of any kind to an :class:`ImageData`: the part that all sources share."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from vit_ratio_opt.data.folders import SPLIT_NAMES
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.items import ItemFormat, check_classes, count_shared_images
from vit_ratio_opt.data.labels import NO_LABEL, check_labels
from vit_ratio_opt.data.options import LoadOptions, label_arguments
from vit_ratio_opt.data.preprocessing import (
    Preprocessing,
    resolve_preprocessing,
    warn_if_assumed,
)
from vit_ratio_opt.data.reading import AsUint8, Files, find_first_image, read_all
from vit_ratio_opt.data.splits import (
    Split,
    Validation,
    add_drawn_test_split,
    check_validation,
    split_in_memory,
    split_in_three,
)
from vit_ratio_opt.errors import InputError

__all__ = ["assemble", "add_source", "add_test_split"]

# Unreadable images that a message names.
_SHOWN = 5
_READ_ONCE = "read a stream that ends into memory once, with `list(stream)`"
_TITLES = {"train": "training", "val": "validation", "test": "test"}

_logger = logging.getLogger(f"optuna.{__name__}")


def assemble(
    parts: Mapping[str, Dataset[Any]],
    *,
    name: str,
    form: ItemFormat,
    preprocess: Preprocessing | None,
    image_size: int | Sequence[int] | None,
    validation: Validation,
    seed: int,
    options: LoadOptions,
) -> ImageData:
    """Read, check and split data sets of images.

    Args:
        parts: Map-style data sets ``"train"``, ``"test"`` and perhaps ``"val"``; for features,
            ``"test"`` may be missing, and is then drawn from ``"train"``.
        name: Name of the data set.
        form: Class names, task of the labels, and form of the items.
        preprocess: The model's preprocessing, if it is known.
        image_size: Pixels of a side, or height and width; replaces that of ``preprocess``.
        validation: Images from which the validation split is taken.
        seed: Random seed of the split, which is stratified where an image has one class.
        options: The loader's other options.

    Returns:
        The data set. Its ``source`` has the values with which a loader makes it again; the loader
        adds its name, see :func:`with_source`.

    Raises:
        InputError: A data set is empty, an item is no image with a label or cannot be read, images
            differ in channels, labels are out of range, the classes do not fit, or the split
            cannot be made.
    """
    _check_parts(name, form, parts, validation, seed, options)
    shape = find_first_image(parts["train"], name, form).shape
    resolved = resolve_preprocessing(
        name, shape, preprocess, mean=options.mean, std=options.std, image_size=image_size
    )
    read = _read(parts, name, form, resolved, channels=shape[0], options=options)
    if form.task == "single-label":
        check_labels(name, form.classes, _labels(read))
    if form.task == "features":
        read, form = _keep_complete_labels(name, read, form)
    read = add_drawn_test_split(read)
    splits = _split(read, form, validation, seed, options)
    if form.task == "multi-label":  # a split that is not stratified may lack a class
        check_labels(name, form.classes, _labels(dict(zip(SPLIT_NAMES, splits, strict=True))))
    _warn_of_shared_images(name, read)
    warn_if_assumed(name, resolved)  # after all errors, which it would only obscure
    return ImageData(
        name,
        *splits,
        tuple(form.classes),
        resolved.mean,
        resolved.std,
        options.flip,
        validation,
        _arguments(resolved, validation, seed, options),
        form.task,
    )


def _split(
    parts: Mapping[str, Split],
    form: ItemFormat,
    validation: Validation,
    seed: int,
    options: LoadOptions,
) -> tuple[Split, Split, Split]:
    must_stratify = form.task != "features"
    return split_in_three(
        parts, validation, options.val_fraction, seed, must_stratify=must_stratify
    )


def _keep_complete_labels(
    name: str, parts: dict[str, Split], form: ItemFormat
) -> tuple[dict[str, Split], ItemFormat]:
    """Return images for features without labels and classes, unless each image has a label."""
    total = sum(map(len, parts.values()))
    lacking = sum(int((part.labels == NO_LABEL).sum()) for part in parts.values())
    if not form.classes or not lacking:
        return parts, form
    _logger.warning(
        f"{name}: {lacking:,} of {total:,} images have no label, so no labels are used."
    )
    unlabelled = {split: _without_labels(part) for split, part in parts.items()}
    return unlabelled, replace(form, classes=())


def _without_labels(split: Split) -> Split:
    labels, dataset = torch.full_like(split.labels, NO_LABEL), split.dataset
    if isinstance(dataset, TensorDataset):
        return Split(TensorDataset(dataset.tensors[0], labels), split.indices, labels)
    assert isinstance(dataset, AsUint8)
    form = replace(dataset.form, classes=())
    files = AsUint8(dataset.dataset, dataset.to, dataset.channels, dataset.title, form)
    return Split(files, split.indices, labels)


def _labels(parts: Mapping[str, Split]) -> dict[str, torch.Tensor]:
    return {_TITLES[split]: part.labels for split, part in parts.items()}


def add_test_split(parts: Mapping[str, Files]) -> dict[str, Dataset[Any]]:
    """Return the parts, with the validation images as test images if there are no others."""
    if "test" in parts or "val" not in parts:
        return dict(parts)
    return {"train": parts["train"], "test": parts["val"]}


def add_source(data: ImageData, loader: str, root: Path, **more: Any) -> ImageData:
    """Return ``data`` with the source that its loader makes it from.

    Args:
        data: A result of :func:`assemble`.
        loader: Name of the loader in :data:`vit_ratio_opt.data.load.SOURCES`.
        root: Folder or file of the images.
        more: Other arguments of the loader, as JSON values.
    """
    source = {"loader": loader, "root": str(root.resolve()), **data.source, **more}
    return replace(data, source=source)


def _arguments(
    resolved: Preprocessing, validation: Validation, seed: int, options: LoadOptions
) -> dict[str, Any]:
    """Return the arguments that make the same data set again, as JSON values."""
    height, width = resolved.image_size
    values = resolved.to_json()
    del values["origin"], values["is_assumed"]
    arguments = {
        **{
            key: list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
        },
        "image_size": height if height == width else [height, width],
        "validation": validation,
        "val_fraction": options.val_fraction,
        "seed": seed,
        "skip_damaged": options.skip_damaged,
        "memory_limit": options.memory_limit,
        **label_arguments(options),
    }
    return arguments if options.flip else {**arguments, "flip": False}


def _check_parts(
    name: str,
    form: ItemFormat,
    parts: Mapping[str, Dataset[Any]],
    validation: Validation,
    seed: int,
    options: LoadOptions,
) -> None:
    """Refuse data sets before any of their images is read."""
    for split, dataset in parts.items():
        is_indexed = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if isinstance(dataset, IterableDataset) or not is_indexed:
            fix = "give its `dataset`" if hasattr(dataset, "dataset") else _READ_ONCE
            raise InputError(
                f"{name}: the {_TITLES[split]} images must be a map-style data set, with a length "
                f"and an index, but are {type(dataset).__name__}: {fix}."
            )
        if not _count(dataset):
            raise InputError(f"{name}: the training and the test set must have images.")
    check_classes(name, form, parts)
    check_validation(validation, options.val_fraction, parts)
    if all(isinstance(dataset, Files) for dataset in parts.values()):
        # Refuse classes that cannot be split before thousands of images are read.
        listed = {
            split: Split(files, torch.arange(len(files)), torch.as_tensor(files.targets))
            for split, files in cast("Mapping[str, Files]", parts).items()
        }
        _split(add_drawn_test_split(listed), form, validation, seed, options)


def _count(dataset: Any) -> int:
    return len(dataset)


def _read(
    parts: Mapping[str, Dataset[Any]],
    name: str,
    form: ItemFormat,
    resolved: Preprocessing,
    *,
    channels: int,
    options: LoadOptions,
) -> dict[str, Split]:
    """Read every part once; keep its images if all of them fit in memory."""
    pixels = resolved.image_size[0] * resolved.image_size[1]
    total = sum(map(_count, parts.values()))
    keep = total * channels * pixels <= options.memory_limit
    read: dict[str, Split] = {}
    unreadable: list[str] = []
    for split, dataset in parts.items():
        uint8 = AsUint8(dataset, resolved, channels, f"{name}, {_TITLES[split]} images", form)
        items = read_all(uint8, keep=keep)
        unreadable += items.unreadable
        if not len(items.labels):
            raise InputError(
                f"{name}: no {_TITLES[split]} image can be read, such as {items.unreadable[0]}"
            )
        if items.images is None:
            read[split] = Split(uint8, items.indices, items.labels)
        else:
            read[split] = split_in_memory(items.images, items.labels)
    if unreadable:
        shown = " ".join(unreadable[:_SHOWN])
        more = len(unreadable) - _SHOWN
        shown += f" And {more:,} more." if more > 0 else ""
        if not options.skip_damaged:
            raise InputError(
                f"{name}: {len(unreadable):,} of {total:,} images cannot be read. {shown} Mend or "
                "remove them, or leave them out with `skip_damaged=True` (--skip-damaged)."
            )
        _logger.warning(f"{name}: {len(unreadable):,} of {total:,} images are left out. {shown}")
    return read


def _warn_of_shared_images(name: str, parts: Mapping[str, Split]) -> None:
    """Warn of images in two splits, if the images are in memory."""
    tensors = {
        split: _pixels(part.dataset.tensors[0], part.indices)
        for split, part in parts.items()
        if isinstance(part.dataset, TensorDataset)
    }
    for split in ("test", "val"):
        if split in tensors:
            count = count_shared_images(tensors["train"], tensors[split])
            if count:
                _logger.warning(
                    f"{name}: {count:,} of {len(tensors[split]):,} {_TITLES[split]} images are "
                    "training images too, pixel by pixel: what is measured on them says little."
                )


def _pixels(images: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return images if len(images) == len(indices) else images[indices]  # a copy only of a part
