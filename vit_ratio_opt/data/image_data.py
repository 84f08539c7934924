"""A data set that is ready for pruning: three splits, class names and normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch

from vit_ratio_opt.data.augmentation import augment_images
from vit_ratio_opt.data.preprocessing import Preprocessing, check_channels, to_floats
from vit_ratio_opt.data.splits import Split, Validation
from vit_ratio_opt.data.task import Augmentation, Task

__all__ = ["ImageData"]

# Keys of `ImageData.source` that change no pixel, or are settings of their own.
_NO_PREPROCESSING = {
    *("loader", "root", "seed", "val_fraction", "test_fraction", "validation", "memory_limit"),
    *("image_size", "mean", "std", "flip", "task", "image_key", "label_key", "label_separator"),
}
# Of the other keys, what version 0.1.0 did: its sources have none of them.
_DEFAULTS_OF_0_1_0 = {
    "interpolation": "bilinear", "crop": 1.0, "squash": False,
    "exif_rotation": False, "skip_damaged": False,
}  # fmt: skip


@dataclass(frozen=True)
class ImageData:
    """Training, validation and test split, with the normalisation of their images.

    Args:
        name: Name of the data set in studies and reports.
        train: Images for calibration and fine-tuning.
        val: Images for choosing ratios.
        test: Images that are read once, for the final model.
        classes: Class names, by label; empty for images without labels.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        flip: Whether a mirrored image keeps its label; digits do not.
        validation: Origin of ``val``: ``"train"`` or ``"test"`` images, or given ``"val"`` images.
        source: JSON values from which :func:`~vit_ratio_opt.data.load.load_again` loads the data
            set elsewhere: ``loader`` and its arguments. Empty if that is not possible.
        task: Task of the labels: ``"single-label"`` has int64 labels ``(images,)``,
            ``"multi-label"`` float32 labels ``(images, classes)`` of 0 and 1,
            ``"regression"`` float32 targets ``(images, targets)``, which ``classes`` names, and
            ``"features"`` int64 labels ``(images,)`` for reports, all -1 without classes.

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
    task: Task = "single-label"

    def __post_init__(self) -> None:
        Preprocessing(to_floats(self.mean), to_floats(self.std), (1, 1))

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width.

        Raises:
            InputError: ``mean`` and ``std`` have another number of channels.
        """
        channels, height, width = next(self.train.batches(1))[0].shape[1:]
        check_channels(self.name, channels, self.mean, self.std)
        return channels, height, width

    @property
    def has_labels(self) -> bool:
        """Return whether images have labels; only images for features may have none."""
        return bool(self.classes)

    @property
    def preprocess(self) -> Preprocessing:
        """Return the preprocessing of the images."""
        _, *size = self.image_shape
        options = {key: self.source.get(key, value) for key, value in _DEFAULTS_OF_0_1_0.items()}
        return Preprocessing(
            to_floats(self.mean),
            to_floats(self.std),
            (size[0], size[1]),
            interpolation=options["interpolation"],
            crop=options["crop"],
            squash=options["squash"],
            origin=f"the data set {self.name}",
        )

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Return the options of the loader that change pixels, except size and normalisation."""
        return {
            name: value
            for name, value in self.source.items()
            if name not in _NO_PREPROCESSING and value not in (None, _DEFAULTS_OF_0_1_0.get(name))
        }

    @cached_property
    def fingerprint(self) -> str:
        """Return the hash of the validation split, see :meth:`Split.fingerprint`."""
        return self.val.fingerprint()

    @cached_property
    def training_fingerprint(self) -> str:
        """Return the hash of the training split."""
        return self.train.fingerprint()

    @cached_property
    def test_fingerprint(self) -> str:
        """Return the hash of the test split."""
        return self.test.fingerprint()

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Return whether the validation split has this hash.

        Version 0.1.0 hashed no contents of images on disk; its hash is recognised too.
        """
        if fingerprint == self.fingerprint:
            return True
        return fingerprint == self.val.fingerprint(contents=False)

    def batches(
        self, split: Split, batch_size: int, device: torch.device
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield normalised images and labels on ``device``, in order, without augmentation.

        Args:
            split: The images, of this data set.
            batch_size: Images in a batch; the last one may be smaller.
            device: Device of the batches.
        """
        positions = torch.split(torch.arange(len(split)), batch_size)
        for images, labels in split.feed(device).batches(positions):
            yield self.normalise(images), labels

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Return uint8 images as float32 with the data set's mean and standard deviation."""
        mean, std = _channel_values(tuple(self.mean), tuple(self.std), images.device)
        return images.float().div_(255).sub_(mean).div_(std)

    def augment(
        self,
        images: torch.Tensor,
        generator: torch.Generator,
        how: Augmentation | bool = True,
    ) -> torch.Tensor:
        """Return randomly changed images; mirrored ones only if :attr:`flip`.

        Args:
            images: uint8, ``(batch, channels, height, width)``.
            generator: On the CPU, so that a seed gives the same images on every device.
            how: The augmentation, as :class:`~vit_ratio_opt.Recipe` describes it.
        """
        return augment_images(images, generator, how, flip=self.flip, mean=self.mean)


@lru_cache(maxsize=16)
def _channel_values(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation on a device: a copy a batch would wait for a GPU."""
    with torch.inference_mode(False):
        values = torch.tensor([mean, std], dtype=torch.float32, device=device).view(2, -1, 1, 1)
    return values[0], values[1]
