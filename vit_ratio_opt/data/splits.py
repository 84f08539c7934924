"""Splits of a data set: batches of uint8 images, hashes, and stratified shares.

What fits in memory is decoded once and kept as uint8; everything else is decoded by ``DataLoader``
workers batch by batch. :mod:`~vit_ratio_opt.data.feed` brings batches to the device, where they
are augmented and normalised.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from vit_ratio_opt.data.feed import Feed, read_batches
from vit_ratio_opt.data.labels import NO_LABEL
from vit_ratio_opt.data.reading import AsUint8, paths_of
from vit_ratio_opt.errors import InputError

__all__ = [
    "TEST_FRACTION",
    "Split",
    "Validation",
    "add_drawn_test_split",
    "check_validation",
    "split_in_memory",
    "split_in_three",
    "split_stratified",
]

Validation = Literal["train", "val", "test"]
"""Images from which the validation split is taken."""

TEST_FRACTION = 0.2
"""Share of images without a test split that is drawn as one."""

# In memory, this many images are hashed at once; on disk, the contents of this many in total.
_HASHED = 256


@dataclass(frozen=True)
class Split:
    """Part of the images of a data set.

    Args:
        dataset: Yields ``(uint8 tensor (channels, height, width), label)``.
        indices: Positions in ``dataset`` of this split's images, ``(n,)``.
        labels: Labels of this split's images, ``(n,)`` in int64, all -1 if there are none; or
            several labels or a regression's targets, ``(n, k)`` in float32.
    """

    dataset: Dataset[Any]
    indices: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, positions: torch.Tensor) -> Split:
        """Return the images at these positions of the split."""
        return Split(self.dataset, self.indices[positions], self.labels[positions])

    def fingerprint(self, *, contents: bool = True) -> str:
        """Return a hash of the split's images: their positions, labels and contents.

        In memory, all pixels are hashed. On disk, the relative names and the sizes of all files
        are hashed, and the bytes of 256 files, drawn with a fixed seed. Of a data set of another
        kind, the pixels of 256 images are hashed, unless they differ from one reading to the next.

        Args:
            contents: Whether contents of images that are not in memory are hashed.
        """
        digest = hashlib.sha256()
        digest.update(self.indices.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        if isinstance(self.dataset, TensorDataset):
            for chunk in torch.split(self.indices, _HASHED):  # a copy of all may not fit
                digest.update(self.dataset.tensors[0][chunk].numpy().tobytes())
        elif contents:
            digest.update(_hash_contents(self.dataset, self.indices.tolist()))
        return digest.hexdigest()[:16]

    def batches(
        self, batch_size: int, *, generator: torch.Generator | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images ``(batch, channels, height, width)`` in uint8 and their labels.

        Args:
            batch_size: Images in a batch; the last one may be smaller.
            generator: Shuffles the images; without it they keep the split's order.
        """
        n = len(self)
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        positions = torch.split(order, batch_size)
        indices = [self.indices[batch] for batch in positions]
        if isinstance(self.dataset, TensorDataset):
            pixels = self.dataset.tensors[0]
            images: Iterator[torch.Tensor] = (pixels[batch] for batch in indices)
        else:
            images = read_batches(self.dataset, indices)
        yield from zip(images, (self.labels[batch] for batch in positions), strict=True)

    def feed(self, device: torch.device) -> Feed:
        """Return the split's way to a device, which yields batches there in any order."""
        return Feed(self.dataset, self.indices, self.labels, device)


def _hash_contents(dataset: Dataset[Any], indices: Sequence[int]) -> bytes:
    """Return a hash of the images at ``indices``, which are not in memory."""
    digest = hashlib.sha256()
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(indices), generator=draw)[:_HASHED].tolist()
    sample = sorted(indices[position] for position in order)
    source = dataset.dataset if isinstance(dataset, AsUint8) else dataset
    paths = paths_of(source)
    if paths:
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
        for index in indices:
            name = Path(os.path.relpath(paths[index], root)).as_posix()
            digest.update(f"{name} {os.stat(paths[index]).st_size}\n".encode())
        for index in sample:
            digest.update(Path(paths[index]).read_bytes())
    while isinstance(source, Subset):
        source = source.dataset
    if not paths or getattr(source, "transforms", None) is not None:

        def hash_pixels() -> bytes:
            images = (np.ascontiguousarray(dataset[index][0]) for index in sample)
            return hashlib.sha256(b"".join(image.tobytes() for image in images)).digest()

        with torch.random.fork_rng(devices=[]):
            first, second = hash_pixels(), hash_pixels()
        if first == second:  # no random augmentation
            digest.update(first)
    return digest.digest()


def split_in_memory(images: torch.Tensor, labels: Any) -> Split:
    """Return a split of all ``images``, uint8 ``(n, channels, height, width)``.

    Args:
        images: The images.
        labels: Their labels, ``(n,)``, or ``(n, k)`` for several labels or targets.
    """
    labels = torch.as_tensor(labels)
    labels = labels.to(torch.float32 if labels.is_floating_point() else torch.int64)
    return Split(TensorDataset(images.contiguous(), labels), torch.arange(len(labels)), labels)


def check_validation(validation: str, val_fraction: float, splits: Collection[str]) -> None:
    """Refuse, before any image is read, a validation split that cannot be made of ``splits``.

    Raises:
        InputError: ``validation`` or ``val_fraction`` is out of range, or there are no validation
            images.
    """
    if validation not in get_args(Validation):
        raise InputError(
            f"`validation` must be 'val', 'train' or 'test', but got {validation!r:.80}."
        )
    if validation == "val" and "val" not in splits:
        raise InputError(
            "`validation='val'` needs validation images beside training and test images: use "
            "'train' or 'test'."
        )
    _check_share(val_fraction)


def _check_share(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise InputError(f"The share of held-out images must be in (0, 1), but got {fraction!r}.")


def add_drawn_test_split(parts: Mapping[str, Split]) -> dict[str, Split]:
    """Return the parts, with a share of the training images as test images if there are none.

    The share does not depend on the seed of other splits, and on classes only where it can.
    """
    if "test" in parts:
        return dict(parts)
    train, test = split_stratified(parts["train"], TEST_FRACTION, seed=0, must_stratify=False)
    return {**parts, "train": train, "test": test}


def split_in_three(
    parts: Mapping[str, Split],
    validation: Validation,
    val_fraction: float,
    seed: int,
    *,
    must_stratify: bool = True,
) -> tuple[Split, Split, Split]:
    """Return the training, the validation and the test split.

    Args:
        parts: ``"train"``, ``"test"`` and perhaps ``"val"``.
        validation: Images from which the validation split is taken: a fraction of ``"train"``,
            half of ``"test"``, or all of ``"val"``.
        val_fraction: Share of the training images that validates if ``validation`` is ``"train"``.
        seed: Random seed of the stratified split.
        must_stratify: See :func:`split_stratified`.
    """
    train, test = parts["train"], parts["test"]
    if validation == "train":
        train, val = split_stratified(train, val_fraction, seed=seed, must_stratify=must_stratify)
    elif validation == "test":
        test, val = split_stratified(test, 0.5, seed=seed, must_stratify=must_stratify)
    else:
        val = parts["val"]
    return train, val, test


def split_stratified(
    split: Split, fraction: float, *, seed: int, must_stratify: bool = True
) -> tuple[Split, Split]:
    """Return ``split`` without a share of each class, and that share; both keep their order.

    Images without labels, with several, or with a regression's targets are drawn at random.

    Args:
        split: The images.
        fraction: The share, in (0, 1).
        seed: Random seed.
        must_stratify: Whether a class with too few images is refused; otherwise all images are
            then drawn without regard to their classes.

    Raises:
        InputError: The share is out of range, or there are too few images.
    """
    _check_share(fraction)
    from sklearn import model_selection  # slow to import

    is_by_class = split.labels.ndim == 1 and not bool((split.labels == NO_LABEL).any())
    if is_by_class and not must_stratify:
        is_by_class = _can_be_stratified(split.labels, fraction)
    try:
        rest, held = model_selection.train_test_split(
            np.arange(len(split)),
            test_size=fraction,
            stratify=split.labels if is_by_class else None,
            random_state=seed,
        )
    except (TypeError, ValueError) as error:  # the first: scikit-learn 1.3, of a seed of 70 bits
        by_class, of_each = (" by class", " of each class") if is_by_class else ("", "")
        raise InputError(
            f"{len(split)} images cannot be split{by_class}, {fraction:g} of them held out with "
            f"the seed {seed!r:.40}: {error}. Give more images{of_each}, another share, or a "
            "validation split of its own (a folder `val`)."
        ) from None
    rest, held = (torch.from_numpy(np.sort(part)) for part in (rest, held))
    return split.subset(rest), split.subset(held)


def _can_be_stratified(labels: torch.Tensor, fraction: float) -> bool:
    """Return whether each class has two images, and each share an image for every class."""
    _, counts = np.unique(labels.numpy(), return_counts=True)
    held = math.ceil(fraction * len(labels))  # as scikit-learn rounds it
    return int(counts.min()) > 1 and len(counts) <= min(held, len(labels) - held)
