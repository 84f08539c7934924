"""Images of each source in memory and on disk, and again from what a study stores of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_ratio_opt.data.cifar10 import load_cifar10
from vit_ratio_opt.data.csv_images import are_splits, load_csv_images
from vit_ratio_opt.data.csv_tables import read_csv_tables
from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.data.earlier import load_as_version_0_1_0
from vit_ratio_opt.data.folders import check_folder, find_split_paths, list_visible_names
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.image_folder import hint_of_no_labels, load_image_folder
from vit_ratio_opt.data.options import LoadOptions, read_arguments
from vit_ratio_opt.data.preprocessing import Preprocessing
from vit_ratio_opt.data.splits import Validation
from vit_ratio_opt.errors import InputError

__all__ = ["SOURCES", "default_validation", "load_again", "load_images"]

# Names in a folder that a message lists.
_SHOWN = 5


def load_images(
    root: str | Path,
    *,
    preprocess: Preprocessing | None = None,
    image_size: int | Sequence[int] | None = None,
    validation: Validation | None = None,
    seed: int = 0,
    options: LoadOptions | None = None,
) -> ImageData:
    """Load the images below ``root``, in any form that this package knows.

    :func:`~vit_ratio_opt.data.image_folder.load_image_folder` loads them if there is a folder
    ``train``, :func:`~vit_ratio_opt.data.csv_images.load_csv_images` if there is a ``train.csv``,
    else :func:`~vit_ratio_opt.data.cifar10.load_cifar10`, which downloads into an empty folder.
    For features, any other folder with images is one of images without labels.

    Args:
        root: Folder of the images.
        preprocess: Preprocessing of the model's images: size, crop and normalisation.
        image_size: Pixels of a side, or height and width; by default that of ``preprocess``, else
            the shorter side of the first image.
        validation: Images from which the validation split is taken; see
            :func:`default_validation` for the default.
        seed: Random seed of the stratified split.
        options: Normalisation, share of validation images, EXIF rotation, damaged images, task.

    Raises:
        InputError: There is no folder ``root``, its images are in another form or cannot be
            loaded, or options for image files are given for CIFAR-10.
    """
    root, options = check_folder(root), options or LoadOptions()
    arguments: dict[str, Any] = {
        "preprocess": preprocess, "validation": validation, "seed": seed, "options": options
    }  # fmt: skip
    if (root / "train").exists():
        return load_image_folder(root, image_size=image_size, **arguments)
    if (root / "train.csv").exists():
        return load_csv_images(root, image_size=image_size, **arguments)
    names = list_visible_names(root)
    is_other = bool(names) and not any(name.startswith("cifar-10-") for name in names)
    if is_other and options.task == "features":
        return load_image_folder(root, image_size=image_size, **arguments)
    hint = hint_of_no_labels(root) if is_other else ""
    if image_size is not None or options.exif_rotation or options.skip_damaged:
        raise InputError(
            "`image_size`, `exif_rotation` and `skip_damaged` are for a folder with "
            f"train/<class>/* or train.csv, but {root} has neither.{hint}"
        )
    if is_other:
        raise InputError(
            f"{root} has neither train/<class>/* nor train.csv nor CIFAR-10, which is downloaded "
            f"into an empty folder only; it has {', '.join(names[:_SHOWN])}.{hint}"
        )
    return load_cifar10(root, **arguments)


def default_validation(
    root: str | Path, otherwise: Validation = "train", options: LoadOptions | None = None
) -> Validation:
    """Return the images from which the validation split of a folder is taken by default.

    Args:
        root: Folder of :func:`load_images`.
        otherwise: Returned if training, validation and test images are not kept apart.
        options: Options of the loader, which name the columns of tables.

    Raises:
        InputError: There is no such folder, or two folders could be one split.
    """
    root, options = check_folder(root), options or LoadOptions()
    if (root / "train").exists():
        return "val" if len(find_split_paths(root)) == 3 else otherwise
    if not (root / "train.csv").exists():
        is_split = options.task == "features" and {"val", "test"} <= set(find_split_paths(root))
        return "val" if is_split else otherwise
    tables = read_csv_tables(root, options)
    return "val" if len(tables) == 3 and are_splits(root, tables, options.task) else otherwise


def load_again(source: Mapping[str, Any], *, root: str | Path | None = None) -> ImageData:
    """Load the data set of an ``ImageData.source``, perhaps from another folder.

    Args:
        source: ``loader``, one of :data:`SOURCES`, and its arguments.
        root: Folder of the images on this machine; by default the folder that ``source`` names.

    Raises:
        InputError: ``source`` names no loader of this process or wrong arguments, the data set has
            no folder but ``root`` is given, or the images cannot be loaded.
    """
    stored = dict(source)
    name = stored.pop("loader", None)
    if name not in SOURCES:
        raise InputError(f"Images come from one of {sorted(SOURCES)}, not from {name!r}.")
    if root is not None:
        if "root" not in stored:
            raise InputError(f"The data set {name!r} is in no folder: leave --data out.")
        stored["root"] = root
    if name == "cifar10":  # a study may not choose where something is downloaded to
        stored["download"] = False if root is None else None
    try:
        return SOURCES[name](**stored)
    except (KeyError, TypeError) as error:  # an option of another version
        raise InputError(
            f"The images of the study cannot be loaded from its stored source: {error}."
        ) from None


def _cifar10(**stored: Any) -> ImageData:
    return load_cifar10(**read_arguments(stored))


def _image_folder(**stored: Any) -> ImageData:
    if "interpolation" not in stored:  # of version 0.1.0
        return load_as_version_0_1_0("image_folder", **stored)
    return load_image_folder(**read_arguments(stored))


def _csv_images(**stored: Any) -> ImageData:
    if "interpolation" not in stored:  # of version 0.1.0
        return load_as_version_0_1_0("csv_images", **stored)
    return load_csv_images(**read_arguments(stored))


SOURCES: dict[str, Callable[..., ImageData]] = {
    "digits": load_digits,
    "cifar10": _cifar10,
    "image_folder": _image_folder,
    "csv_images": _csv_images,
}
"""Loaders that a study may name, called with the other values of ``ImageData.source``.

Add a custom loader in every process that loads its images again. Nothing else that a study stores
is called or imported.
"""
