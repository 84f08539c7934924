"""The way of a split's images to the device that uses them.

- Images in memory that take at most a quarter of the device's free memory are copied once, for
  all splits, trainings and evaluations. A CPU uses them where they are.
- Other images in memory are copied batch by batch, while the device uses the batch before.
- Images on disk are read by worker processes, a few batches ahead, and copied in the same way.

The order of the images, and their pixels, are the same on every way.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from vit_ratio_opt.data.reading import worker_count
from vit_ratio_opt.errors import InputError

__all__ = ["Feed", "read_batches", "to_device"]

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images and labels."""

# Share of the device's free memory that a data set may take for as long as it is used.
_SHARE = 0.25
# Devices that copy from pinned memory while they compute.
_COPYING = ("cuda", "xpu")

_resident: WeakKeyDictionary[Dataset[Any], dict[torch.device, torch.Tensor]] = WeakKeyDictionary()


class Feed:
    """Images and labels of a split, batch by batch, on a device.

    Worker processes live as long as the feed, so that they start once for all epochs.

    Args:
        dataset: Yields uint8 images and labels, as a split's data set.
        indices: Positions in ``dataset`` of the split's images, ``(n,)``.
        labels: Labels of the split's images, ``(n, ...)``.
        device: Device of the batches.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        indices: torch.Tensor,
        labels: torch.Tensor,
        device: torch.device,
    ) -> None:
        self._dataset, self._indices, self._labels = dataset, indices, labels
        self._device = device
        self._order: list[list[int]] = []
        self._loader: DataLoader[Any] | None = None

    def batches(self, positions: Sequence[torch.Tensor]) -> Iterator[Batch]:
        """Yield a batch of uint8 images, and their labels, for each tensor of positions.

        Args:
            positions: Positions in the split of each batch's images.
        """
        sizes = [len(batch) for batch in positions]
        order = torch.cat(list(positions))
        indices, labels = self._indices[order], self._labels[order]
        images = self._images_on_device()
        if images is not None:
            # One copy an epoch, and none a batch.
            indices, labels = (to_device(part, self._device) for part in (indices, labels))
            chosen = (images[batch] for batch in torch.split(indices, sizes))
            yield from zip(chosen, torch.split(labels, sizes), strict=True)
            return
        read = self._read(torch.split(indices, sizes))
        batches = zip(read, torch.split(labels, sizes), strict=True)
        if self._device.type in _COPYING:
            yield from _copied_ahead(batches, self._device)
        else:
            for batch in batches:
                yield batch[0].to(self._device), batch[1].to(self._device)

    def _images_on_device(self) -> torch.Tensor | None:
        """Return all images of the data set on the device; None if they do not fit there."""
        if not isinstance(self._dataset, TensorDataset):
            return None
        images, device = self._dataset.tensors[0], self._device
        if images.device == device:
            return images
        known = _resident.setdefault(self._dataset, {})
        if device not in known:
            if images.numel() > _SHARE * _free_bytes(device):
                return None
            known[device] = images.to(device)
        return known[device]

    def _read(self, indices: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield images of the data set, batch by batch, in memory that the device copies fast."""
        is_pinned = self._device.type in _COPYING
        if isinstance(self._dataset, TensorDataset):
            images = self._dataset.tensors[0]
            for batch in indices:
                pinned = torch.empty(
                    (len(batch), *images.shape[1:]), dtype=images.dtype, pin_memory=is_pinned
                )
                yield torch.index_select(images, 0, batch, out=pinned)
            return
        self._order[:] = [batch.tolist() for batch in indices]
        if self._loader is None:
            self._loader = _loader(
                self._dataset, self._order, workers=worker_count(), pin=is_pinned, persistent=True
            )
        yield from _read(self._loader)


def read_batches(dataset: Dataset[Any], indices: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield images of a data set that is not in memory, batch by batch.

    Args:
        dataset: Yields uint8 images and labels.
        indices: Positions in ``dataset`` of each batch's images.
    """
    order = [batch.tolist() for batch in indices]
    workers = min(worker_count(), len(order))
    yield from _read(_loader(dataset, order, workers=workers, pin=False, persistent=False))


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on the device; the CPU does not wait for a GPU that is computing.

    Apple's GPUs may read the CPU's memory after it has changed, so these copies wait.
    """
    return tensor.to(device, non_blocking=device.type in _COPYING)


def _loader(
    dataset: Dataset[Any], order: list[list[int]], *, workers: int, pin: bool, persistent: bool
) -> DataLoader[Any]:
    # A generator of its own: a loader draws the seed of its workers.
    seed = zlib.crc32(str(order[0]).encode())
    return DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=persistent,
        generator=torch.Generator().manual_seed(seed),
    )


def _read(loader: DataLoader[Any]) -> Iterator[torch.Tensor]:
    try:
        for images, _ in loader:
            yield images
    except InputError as error:  # a worker process adds its traceback to the message
        message = str(error).rsplit(f"{type(error).__name__}: ", 1)[-1]
        raise InputError(message.strip()) from None


def _copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches on the device, each copied while the one before it is used."""
    module = torch.get_device_module(device)
    side, ready = module.Stream(device), None
    for batch in batches:
        with module.stream(side):
            copied = tuple(part.to(device, non_blocking=True) for part in batch)
        following = copied, side.record_event()
        if ready is not None:
            yield _hand_over(*ready, module.current_stream(device))
        ready = following
    if ready is not None:
        yield _hand_over(*ready, module.current_stream(device))


def _hand_over(batch: Any, copied: Any, stream: Any) -> Batch:
    """Let the stream that computes wait for the copy, and own its memory."""
    stream.wait_event(copied)
    for part in batch:
        part.record_stream(stream)
    images, labels = batch
    return images, labels


def _free_bytes(device: torch.device) -> int:
    """Return the bytes that are free on a device; 0 if it does not tell."""
    module = torch.get_device_module(device)
    try:
        if device.type == "mps":
            return int(module.recommended_max_memory() - module.driver_allocated_memory())
        return int(module.mem_get_info(device)[0])
    except (AttributeError, RuntimeError):
        return 0
