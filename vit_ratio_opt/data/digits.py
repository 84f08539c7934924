"""scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

import numpy as np
import torch

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.options import LoadOptions, check_class_folders, label_arguments
from vit_ratio_opt.data.splits import split_in_memory, split_stratified
from vit_ratio_opt.data.task import Task

__all__ = ["load_digits"]

_TEST_FRACTION = 0.2
_MEAN, _STD = (0.287,), (0.354,)


def load_digits(
    *, seed: int = 0, val_fraction: float = 0.2, task: Task = "single-label"
) -> ImageData:
    """Load scikit-learn's 1,797 digits, 8x8, one channel; a fifth of them is the test split.

    Args:
        seed: Random seed of the two stratified splits.
        val_fraction: Share of the other images that validates.
        task: ``"single-label"``, or ``"features"``, which keeps the labels for reports.

    Raises:
        InputError: The task is another one.
    """
    options = LoadOptions(task=task)
    check_class_folders(options, "The data set of digits")
    from sklearn import datasets  # slow to import, and most commands need none of it

    digits = datasets.load_digits()
    # Pixels are 0 to 16; a factor of 15 spreads them over a byte exactly.
    images = torch.from_numpy((digits.images * 15).astype(np.uint8))[:, None]
    everything = split_in_memory(images, digits.target)
    train, test = split_stratified(everything, _TEST_FRACTION, seed=seed)
    train, val = split_stratified(train, val_fraction, seed=seed)
    classes = tuple(str(digit) for digit in range(10))
    source = {
        "loader": "digits",
        "seed": seed,
        "val_fraction": val_fraction,
        **label_arguments(options),
    }
    return ImageData(
        *("digits", train, val, test, classes, _MEAN, _STD),
        flip=False,
        source=source,
        task=task,
    )
