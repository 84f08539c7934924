"""Options that all loaders of images share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vit_ratio_opt.data.preprocessing import Preprocessing, to_height_and_width
from vit_ratio_opt.data.task import Task, check_task
from vit_ratio_opt.errors import InputError

__all__ = [
    "NO_LABELS_HINT",
    "LoadOptions",
    "check_class_folders",
    "label_arguments",
    "read_arguments",
]

NO_LABELS_HINT = " To prune on images without labels, use `task='features'` (--task features)."
"""Advice for images without labels that are loaded for another task."""


_MEMORY_LIMIT = 4 * 2**30
_PREPROCESSING = ("mean", "std", "image_size", "interpolation", "crop", "squash")
_OF_LABELS = ("task", "image_key", "label_key", "label_separator")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of a loader of images that are rarely needed.

    Args:
        mean: Mean of each channel, for pixels in [0, 1]; that of ``preprocess`` by default.
        std: Standard deviation of each channel; that of ``preprocess`` by default.
        val_fraction: Share of the training images that validates if the validation split is taken
            from them, in (0, 1).
        flip: Whether a mirrored image keeps its label.
        exif_rotation: Whether photographs are rotated by their EXIF orientation; torchvision and
            timm do not rotate them.
        skip_damaged: Whether images that cannot be read are left out, instead of refusing all.
        memory_limit: Decoded images above this many bytes stay on disk.
        task: ``"single-label"``, ``"multi-label"`` or ``"regression"``: what the labels are; or
            ``"features"``: labels are not needed, and kept for reports where all images have one.
        image_key: Column of a table that has the image files, or key of the image in an item that
            is a dictionary. By default ``filename``, or the usual key of an item.
        label_key: Column of a table, or key of an item, that has the label; or a list of them,
            one for each class (0 or 1) or each target of a regression. By default ``label``, or
            the usual key of an item.
        label_separator: Character between the classes of an image where one column of a table has
            all of them, such as ``";"``.

    Raises:
        InputError: The task is unknown, a key is no text, or the separator does not fit the task.
    """

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    val_fraction: float = 0.1
    flip: bool = True
    exif_rotation: bool = False
    skip_damaged: bool = False
    memory_limit: int = _MEMORY_LIMIT
    task: Task = "single-label"
    image_key: str | None = None
    label_key: str | Sequence[str] | None = None
    label_separator: str | None = None

    def __post_init__(self) -> None:
        check_task(self.task)
        is_listed = self.label_key is None or isinstance(self.label_key, (str, list, tuple))
        keys = self.label_keys if is_listed else ()
        names = keys if self.image_key is None else (*keys, self.image_key)
        is_text = is_listed and all(isinstance(name, str) and name for name in names)
        if not is_text or len(set(keys)) != len(keys) or (not keys and self.label_key is not None):
            raise InputError(
                "`image_key` must be a text, and `label_key` a text or a list of different ones, "
                f"but got {self.image_key!r:.80} and {self.label_key!r:.80}."
            )
        if len(keys) > 1 and self.task in ("single-label", "features"):
            raise InputError(
                f"`label_key` has the {len(keys)} keys {list(keys)!r:.80}, but an image has one "
                "label: give one key, or `task='multi-label'` or `task='regression'`."
            )
        if self.label_separator is not None:
            is_for_one = self.task == "multi-label" and len(keys) < 2
            if not (is_for_one and isinstance(self.label_separator, str) and self.label_separator):
                raise InputError(
                    "`label_separator` is for `task='multi-label'` with one `label_key`, whose "
                    f"column has all classes of an image, but got {self.label_separator!r:.80}."
                )

    @property
    def label_keys(self) -> tuple[str, ...]:
        """Return the given columns or keys of the label."""
        given = self.label_key
        return () if given is None else (given,) if isinstance(given, str) else tuple(given)


def label_arguments(options: LoadOptions) -> dict[str, Any]:
    """Return the options of labels that differ from the usual ones, as JSON values."""
    usual, found = LoadOptions(), {}
    for name in _OF_LABELS:
        value = getattr(options, name)
        if value != getattr(usual, name):
            found[name] = value if isinstance(value, str) else list(value)
    return found


def check_class_folders(options: LoadOptions, what: str) -> None:
    """Refuse options of labels, except the task of features, for images with one class each.

    Args:
        options: The options.
        what: Words for the images.

    Raises:
        InputError: An option of labels is given.
    """
    given = label_arguments(options)
    if options.task == "features":
        del given["task"]
    if given:
        raise InputError(
            f"{what} gives each image one class, but got {given}: leave `{next(iter(given))}` "
            "out, or give the labels in .csv files."
        )


def read_arguments(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a loader that stored this ``ImageData.source``.

    Args:
        stored: The source, without its ``loader``.

    Raises:
        KeyError: The preprocessing is incomplete.
    """
    arguments = dict(stored)
    if "interpolation" in arguments:
        values = {key: arguments.pop(key) for key in _PREPROCESSING if key in arguments}
        values["image_size"] = to_height_and_width(values["image_size"])
        arguments["preprocess"] = Preprocessing(**values, origin="the study")
    names = {field.name for field in fields(LoadOptions)}
    options = {name: arguments.pop(name) for name in names if name in arguments}
    return {**arguments, "options": LoadOptions(**options)}
