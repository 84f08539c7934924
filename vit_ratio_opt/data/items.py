"""Items of data sets: pairs and dictionaries, names of classes, images in two splits."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vit_ratio_opt.data.labels import NO_LABEL, parse_label
from vit_ratio_opt.data.options import NO_LABELS_HINT
from vit_ratio_opt.data.task import Task
from vit_ratio_opt.errors import InputError

__all__ = ["ItemFormat", "check_classes", "count_shared_images", "find_label_format"]

_IMAGE_KEYS = ("image", "img", "pixel_values", "jpg", "jpeg", "png", "webp")
_LABEL_KEYS = ("label", "labels", "target", "fine_label", "cls")
_SHOWN = 5


@dataclass(frozen=True)
class ItemFormat:
    """Form of the items of a data set, and what their labels mean.

    Args:
        classes: Names of the classes, by label, or of a regression's targets. They may be empty
            if the task is that of features, and labels are then ignored.
        task: Task of the labels.
        image_key: Key of the image in an item that is a dictionary; a usual one by default.
        label_keys: Keys of the label in such an item, one for each class or target if there are
            several; a usual one by default.
        are_positions: Whether several labels are the positions of an image's classes.
    """

    classes: Sequence[str]
    task: Task = "single-label"
    image_key: str | None = None
    label_keys: tuple[str, ...] = ()
    are_positions: bool = False

    def split(self, item: Any) -> tuple[Any, Any]:
        """Return the image and the label of an item, as the item has them.

        Args:
            item: A pair, or a dictionary, as data sets of Hugging Face and WebDataset have it.
                For features, it may lack a label, which is then None, and be an image alone.

        Raises:
            InputError: The item is something else.
        """
        needs_label = self.task != "features"
        if isinstance(item, Mapping):
            image = item[_only(item, self.image_key, _IMAGE_KEYS, "image")]
            if len(self.label_keys) > 1:
                keys = [_only(item, key, (), "label") for key in self.label_keys]
                return image, [item[key] for key in keys]
            label_key = self.label_keys[0] if self.label_keys else None
            if not needs_label and label_key is None:
                found = [key for key in _LABEL_KEYS if key in item]
                return image, item[found[0]] if len(found) == 1 else None
            return image, item[_only(item, label_key, _LABEL_KEYS, "label")]
        is_listed = isinstance(item, (tuple, list))
        if is_listed and len(item) == 2:
            if self.image_key is not None or self.label_keys:
                raise InputError(
                    "it is a pair (image, label), but `image_key` and `label_key` are for "
                    "dictionaries: leave them out."
                )
            return item[0], item[1]
        if not needs_label and (not is_listed or len(item) == 1):
            return item[0] if is_listed else item, None
        size = f" of {len(item)}" if is_listed else ""
        hint = "" if is_listed and len(item) != 1 else NO_LABELS_HINT
        raise InputError(
            f"it is a {type(item).__name__}{size}, but must be a pair (image, label) or a "
            f'dictionary {{"image": ..., "label": ...}}.{hint}'
        )

    def parse_label(self, label: Any) -> int | torch.Tensor:
        """Return a label as a whole number, or float32 ``(classes,)``.

        Raises:
            InputError: The label does not fit the task.
        """
        return parse_label(label, self.task, self.classes, are_positions=self.are_positions)

    def empty_labels(self, count: int) -> torch.Tensor:
        """Return memory for the labels of ``count`` images."""
        if self.task == "features":
            return torch.full((count,), NO_LABEL)
        if self.task == "single-label":
            return torch.zeros(count, dtype=torch.int64)
        return torch.zeros(count, len(self.classes))


def _only(item: Mapping[Any, Any], given: str | None, usual: Sequence[str], what: str) -> Any:
    """Return the given key, or the only usual one that an item has."""
    found = [key for key in ((given,) if given is not None else usual) if key in item]
    if len(found) != 1:
        wanted = f"the key {given!r}" if given is not None else f"one of {list(usual)}"
        hint = NO_LABELS_HINT if what == "label" and given is None and not found else ""
        raise InputError(
            f"it has the keys {[*item][:_SHOWN]} but must have {wanted} for the {what}: name its "
            f"key with `{what}_key`.{hint}"
        )
    return found[0]


def find_label_format(
    parts: Mapping[str, Any], label_keys: tuple[str, ...], task: Task
) -> tuple[list[str] | None, bool]:
    """Return the names of the classes that data sets know, and whether labels are positions.

    Args:
        parts: Data sets by split: Hugging Face's know the classes as ``features``, torchvision's
            as ``classes``.
        label_keys: Keys of the label.
        task: The task.

    Returns:
        The names, None if no data set has any, and whether each label is a list of positions of
        classes.
    """
    if len(label_keys) > 1:
        return list(label_keys), False
    for dataset in parts.values():
        names, are_lists = _own_classes(dataset, label_keys)
        if names is not None and not (are_lists and task == "features"):
            return names, are_lists and task == "multi-label"
    return None, False


def _own_classes(dataset: Any, label_keys: Sequence[str]) -> tuple[list[str] | None, bool]:
    """Return the class names that a data set knows, and whether each of its labels is a list."""
    while hasattr(dataset, "dataset"):  # a subset has the classes of its whole data set
        dataset = dataset.dataset
    own, features = getattr(dataset, "classes", None), getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        keys = [key for key in (label_keys or _LABEL_KEYS) if key in features]
        feature = features[keys[0]] if len(keys) == 1 else None
        own = getattr(getattr(feature, "feature", feature), "names", None)
        if isinstance(own, (list, tuple)):
            return list(own), hasattr(feature, "feature")
    if isinstance(own, (list, tuple)) and getattr(dataset, "target_transform", None) is None:
        return list(own), False
    return None, False


def check_classes(name: str, form: ItemFormat, parts: Mapping[str, Any]) -> None:
    """Refuse class names in another order than that of a data set that knows its own.

    Args:
        name: Name of the data set, for messages.
        form: Has the class names, by label, and the keys of the label.
        parts: Data sets, by split.

    Raises:
        InputError: The orders differ, or names are missing or appear twice.
    """
    classes = form.classes
    # a set has no order
    are_listed = isinstance(classes, Collection) and not isinstance(classes, (str, set, frozenset))
    may_be_empty = form.task == "features"
    if not are_listed or len(set(classes)) != len(classes) or not (len(classes) or may_be_empty):
        raise InputError(
            f"{name}: `classes` must be a list of different names, but got {classes!r:.80}."
        )
    known: list[tuple[str, list[str]]] = [("`classes`", list(classes))]
    if len(form.label_keys) > 1:
        known.append(("`label_key`", list(form.label_keys)))
    for split, dataset in parts.items():
        own, _ = _own_classes(dataset, form.label_keys)
        if own is not None:
            known.append((f"the {split} data set", own))
    for position, (title, names) in enumerate(known):
        for other, others in known[:position]:
            if set(names) == set(others) and names != others:
                pairs = enumerate(zip(names, others, strict=True))
                label = next(label for label, (one, two) in pairs if one != two)
                raise InputError(
                    f"{name}: the classes have another order in {other} than in {title}: label "
                    f"{label} is {others[label]!r:.80} or {names[label]!r:.80}."
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
