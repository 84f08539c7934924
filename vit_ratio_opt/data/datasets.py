"""Map-style data sets of torchvision, Hugging Face, or any object with a length and an index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import Dataset

from vit_ratio_opt.data.assembly import assemble
from vit_ratio_opt.data.folders import SPLIT_NAMES
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.items import ItemFormat, find_label_format
from vit_ratio_opt.data.options import NO_LABELS_HINT, LoadOptions
from vit_ratio_opt.data.preprocessing import Preprocessing
from vit_ratio_opt.data.splits import Validation
from vit_ratio_opt.errors import InputError

__all__ = ["load_datasets"]


def load_datasets(
    splits: Mapping[str, Dataset[Any]],
    *,
    name: str,
    classes: Sequence[str] | None = None,
    preprocess: Preprocessing | None = None,
    image_size: int | Sequence[int] | None = None,
    validation: Validation | None = None,
    seed: int = 0,
    options: LoadOptions | None = None,
) -> ImageData:
    """Load map-style data sets that yield ``(image, label)``, or images alone for features.

    An item is a pair, or a dictionary such as ``{"image": ..., "label": ...}`` of Hugging Face
    or ``{"jpg": ..., "cls": ...}`` of WebDataset, whose streams are read into a list first. An
    image is anything that :func:`vit_ratio_opt.data.images.to_uint8` accepts. A label is a whole
    number from 0; of several labels, a 0 or 1 for each class, or a list of ``ClassLabel``; of a
    regression, a number for each target. For features an item may be an image alone; labels are
    kept where the names of the classes are known and every image has a label. Every item is read
    once, but only some of torchvision's folders that do not fit in memory.

    Args:
        splits: Data sets by split: ``"train"``, ``"test"`` and perhaps ``"val"``, also called
            ``"validation"``. For features, a fifth of ``"train"`` is drawn where it is alone.
        name: Name of the data set in studies and reports.
        classes: Names of the classes, by label, or of a regression's targets; by default those
            that the data sets know, or the keys of ``options.label_key`` if there are several.
        preprocess: The model's preprocessing, see
            :func:`vit_ratio_opt.data.preprocessing.preprocess_of`. Without it, CIFAR-10's
            normalisation is assumed for RGB images, with a warning.
        image_size: Pixels of a side, or height and width, to which images are resized and
            cropped; by default that of ``preprocess``, else the shorter side of the first image.
        validation: Images from which the validation split is taken; ``"val"`` by default if
            ``splits`` has it, else ``"train"``.
        seed: Random seed of the split, which is stratified where an image has one class.
        options: Normalisation, share of validation images, task, keys of image and label, and
            other options.

    Raises:
        InputError: A data set is missing, empty or a stream, an item is no image with a label or
            cannot be read, images differ in channels, a label is out of range, the classes do not
            fit or are not known, or the split cannot be made.
    """
    options = options or LoadOptions()
    splits = _with_usual_names(splits, options)
    _check(options)
    data = assemble(
        splits,
        name=name,
        form=_format(name, splits, classes, options),
        preprocess=preprocess,
        image_size=image_size,
        validation=validation or ("val" if "val" in splits else "train"),
        seed=seed,
        options=options,
    )
    return replace(data, source={})  # these data sets exist in this process only


def _check(options: LoadOptions) -> None:
    """Refuse options for files and tables."""
    if options.label_separator is not None:
        raise InputError(
            "`label_separator` is for tables: give each item of a data set a 0 or 1 for each "
            "class."
        )
    if options.exif_rotation:
        raise InputError(
            "`exif_rotation` is for image files: turn the images of a data set in its transform."
        )


def _format(
    name: str,
    splits: Mapping[str, Dataset[Any]],
    classes: Sequence[str] | None,
    options: LoadOptions,
) -> ItemFormat:
    """Return the form of the items, with the given names of classes or those of a data set."""
    known, are_positions = find_label_format(splits, options.label_keys, options.task)
    if classes is None:
        if known is None and (options.task != "features" or options.label_keys):
            hint = NO_LABELS_HINT if options.task == "single-label" else ""
            raise InputError(
                f"{name}: the data sets know no names of classes: give them, in the order of the "
                f"labels, as `classes`.{hint}"
            )
        classes = known if known is not None else ()
    return ItemFormat(classes, options.task, options.image_key, options.label_keys, are_positions)


def _with_usual_names(
    splits: Mapping[str, Dataset[Any]], options: LoadOptions
) -> dict[str, Dataset[Any]]:
    """Return data sets with the names of splits that this package uses.

    Raises:
        InputError: A split is missing, unknown, or there twice.
    """
    usual = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    renamed = [usual.get(name, name) for name in splits]
    if len(set(renamed)) < len(renamed):
        raise InputError(f"`splits` has one split twice: {list(splits)!r:.80}.")
    is_alone = options.task == "features" and renamed == ["train"]
    if not {"train", "test"} <= set(renamed) <= {"train", "test", "val"} and not is_alone:
        raise InputError(
            f"`splits` must have 'train', 'test' and perhaps 'val', but has {list(splits)!r:.80}."
        )
    return dict(zip(renamed, splits.values(), strict=True))
