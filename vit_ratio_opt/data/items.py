"""Checks of data sets: items with an image and a label, class names, images in two splits."""

from __future__ import annotations

import hashlib
import logging
import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from vit_ratio_opt.errors import InputError

__all__ = ["check_classes", "check_labels", "split_item", "count_shared_images"]

_IMAGE_KEYS = ("image", "img", "pixel_values")
_LABEL_KEYS = ("label", "labels", "target", "fine_label")
_SHOWN = 5
_MANY = 2**31  # above all labels

_logger = logging.getLogger(f"optuna.{__name__}")


def split_item(item: Any) -> tuple[Any, int]:
    """Return the image and the label of an item.

    Args:
        item: A pair, or a dictionary with one key for each, as Hugging Face's data sets have it.

    Raises:
        InputError: The item is something else, or its label is no whole number.
    """
    if isinstance(item, Mapping):
        image, label = (
            _only(item, keys, what)
            for keys, what in ((_IMAGE_KEYS, "image"), (_LABEL_KEYS, "label"))
        )
    elif isinstance(item, (tuple, list)) and len(item) == 2:
        image, label = item
    else:
        size = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        raise InputError(
            f"it is a {type(item).__name__}{size}, but must be a pair (image, label) or a "
            'dictionary {"image": ..., "label": ...}.'
        )
    return image, _whole_number(label)


def _only(item: Mapping[Any, Any], keys: Sequence[str], what: str) -> Any:
    found = [key for key in keys if key in item]
    if len(found) != 1:
        raise InputError(
            f"it has the keys {[*item][:_SHOWN]} but must have one of {list(keys)} for the {what}."
        )
    return item[found[0]]


def _whole_number(label: Any) -> int:
    value = label
    if getattr(value, "ndim", 0) and getattr(value, "size", None) is not None:
        count = value.numel() if isinstance(value, torch.Tensor) else value.size
        value = value.reshape(()) if count == 1 else None
    try:
        number = operator.index(value.item() if hasattr(value, "item") else value)
        return min(max(number, -_MANY), _MANY)  # is out of range either way
    except TypeError:
        shown = " ".join(repr(label).split())
        raise InputError(
            f"its label is {shown:.80}, but must be a whole number, the place of its class in "
            "`classes`."
        ) from None


def check_classes(name: str, classes: Sequence[str], parts: Mapping[str, Any]) -> None:
    """Refuse class names in another order than that of a data set that knows its own.

    Args:
        name: Name of the data set, for messages.
        classes: Class names, by label.
        parts: Data sets, by split; a subset has the classes of its whole data set.

    Raises:
        InputError: The orders differ, or names are missing or appear twice.
    """
    # a set has no order
    are_listed = isinstance(classes, Collection) and not isinstance(classes, (str, set, frozenset))
    if not are_listed or len(set(classes)) != len(classes) or not len(classes):
        raise InputError(
            f"{name}: `classes` must be a list of different names, but got {classes!r:.80}."
        )
    known: list[tuple[str, list[str]]] = [("`classes`", list(classes))]
    for split, dataset in parts.items():
        while hasattr(dataset, "dataset"):
            dataset = dataset.dataset
        own = getattr(dataset, "classes", None)
        if isinstance(own, (list, tuple)) and getattr(dataset, "target_transform", None) is None:
            known.append((f"the {split} data set", list(own)))
    for position, (title, names) in enumerate(known):
        for other, others in known[:position]:
            if set(names) == set(others) and names != others:
                pairs = enumerate(zip(names, others, strict=True))
                label = next(label for label, (one, two) in pairs if one != two)
                raise InputError(
                    f"{name}: the classes have another order in {other} than in {title}: label "
                    f"{label} is {others[label]!r:.80} or {names[label]!r:.80}."
                )


def check_labels(name: str, classes: Sequence[str], parts: Mapping[str, torch.Tensor]) -> None:
    """Refuse labels that name no class, and classes without any image.

    Args:
        name: Name of the data set, for messages.
        classes: Class names, by label.
        parts: Labels ``(n,)`` of each split, by its title.

    Raises:
        InputError: A label is out of range, or a class has no image.
    """
    for title, labels in parts.items():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(classes):
            hint = " Subtract 1." if (low, high) == (1, len(classes)) else ""
            raise InputError(
                f"{name}: labels must be 0 to {len(classes) - 1}, one for each of the "
                f"{len(classes)} classes, but those of the {title} images are {low} to {high}."
                f"{hint}"
            )
    counts = {title: labels.bincount(minlength=len(classes)) for title, labels in parts.items()}
    without = {title: (part == 0).nonzero()[:, 0].tolist() for title, part in counts.items()}
    nowhere = set.intersection(*(set(part) for part in without.values()))
    if nowhere:
        raise InputError(
            f"{name}: `classes` has {len(classes)} names, but no image belongs to "
            f"{[classes[label] for label in sorted(nowhere)[:_SHOWN]]}."
        )
    for title, part in without.items():
        if part:
            _logger.warning(
                f"{name}: no {title} image belongs to {len(part)} of the {len(classes)} classes, "
                f"such as {classes[part[0]]!r:.80}."
            )


def count_shared_images(images: torch.Tensor, others: torch.Tensor) -> int:
    """Return how many of ``others`` are among ``images``, pixel by pixel.

    Args:
        images: uint8, ``(n, channels, height, width)``.
        others: uint8, ``(m, channels, height, width)``, of the same size.
    """
    known = set(map(_hash, images.numpy()))
    return sum(_hash(image) in known for image in others.numpy())


def _hash(image: Any) -> bytes:
    return hashlib.sha1(image, usedforsecurity=False).digest()
