"""Map-style data sets: torchvision's, Hugging Face's, or any object with a length and an index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import Dataset

from vit_ratio_opt.data.assembly import assemble
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.options import LoadOptions
from vit_ratio_opt.data.preprocessing import Preprocessing
from vit_ratio_opt.data.splits import Validation
from vit_ratio_opt.errors import InputError

__all__ = ["load_datasets"]


def load_datasets(
    splits: Mapping[str, Dataset[Any]],
    *,
    name: str,
    classes: Sequence[str],
    preprocess: Preprocessing | None = None,
    image_size: int | Sequence[int] | None = None,
    validation: Validation | None = None,
    seed: int = 0,
    options: LoadOptions | None = None,
) -> ImageData:
    """Load map-style data sets that yield ``(image, label)``.

    An item is a pair, or a dictionary such as ``{"image": ..., "label": ...}``. An image is
    anything that :func:`vit_ratio_opt.data.images.to_uint8` accepts; a label is a whole number
    from 0. In memory, every item is read once and compared with ``dataset.targets``. On disk, some
    items are read, and labels come from ``dataset.targets`` if there is such a list, else from
    reading the data set once.

    Args:
        splits: Data sets by split: ``"train"``, ``"test"`` and perhaps ``"val"``.
        name: Name of the data set in studies and reports.
        classes: Class names, by label.
        preprocess: The model's preprocessing, see
            :func:`vit_ratio_opt.data.preprocessing.preprocess_of`. Without it, CIFAR-10's
            normalisation is assumed for RGB images, with a warning.
        image_size: Pixels of a side, or height and width, to which images are resized and
            cropped; by default that of ``preprocess``, else the shorter side of the first image.
        validation: Images from which the validation split is taken; ``"val"`` by default if
            ``splits`` has it, else ``"train"``.
        seed: Random seed of the stratified split.
        options: Normalisation, share of validation images, and other options.

    Raises:
        InputError: A data set is missing or empty, an item is no image with a class or cannot be
            read, the classes do not fit, or the split cannot be made.
    """
    options = options or LoadOptions()
    if not {"train", "test"} <= set(splits) <= {"train", "test", "val"}:
        raise InputError(
            f"`splits` must have 'train', 'test' and perhaps 'val', but has {list(splits)!r:.80}."
        )
    if options.exif_rotation:
        raise InputError(
            "`exif_rotation` is for image files: turn the images of a data set in its transform."
        )
    data = assemble(
        splits,
        name=name,
        classes=classes,
        preprocess=preprocess,
        image_size=image_size,
        validation=validation or ("val" if "val" in splits else "train"),
        seed=seed,
        options=options,
    )
    return replace(data, source={})  # these data sets exist in this process only
