"""The way of images to the device."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from vit_ratio_opt.data import feed
from vit_ratio_opt.data.reading import worker_count
from vit_ratio_opt.data.splits import Split, split_in_memory
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe

CPU = torch.device("cpu")


class OnDisk(Dataset[Any]):
    """Images that are read one by one."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.images[index], self.labels[index]


def split_of(count: int = 40) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)
    whole = split_in_memory(images, torch.arange(count))
    return whole.subset(torch.arange(count).flip(0)[: count - 3])


def on_disk(split: Split) -> Split:
    return Split(OnDisk(*split.dataset.tensors), split.indices, split.labels)


def epochs_of(split: Split, device: torch.device = CPU) -> list[torch.Tensor]:
    """Two epochs of one feed, in other orders and batches; the second begins late."""
    source = split.feed(device)
    generator = torch.Generator().manual_seed(1)
    parts: list[torch.Tensor] = []
    for size, skipped in ((7, 0), (5, 3)):
        positions = torch.randperm(len(split), generator=generator).split(size)[skipped:]
        batches = list(source.batches(positions))
        assert [len(images) for images, _ in batches] == [len(batch) for batch in positions]
        parts += [part.flatten() for batch in batches for part in batch]
    return parts


def test_images_and_order_are_the_same_on_every_way(monkeypatch):
    split = split_of()
    where_they_are = epochs_of(split)
    monkeypatch.setattr(feed.Feed, "_images_on_device", lambda self: None)
    copied = epochs_of(split)
    read = epochs_of(on_disk(split))
    for other in (copied, read):
        assert all(map(torch.equal, where_they_are, other))


def test_a_training_is_the_same_from_memory_and_from_disk(digits, dense):
    few = replace(digits, train=digits.train.subset(torch.arange(90)))
    few = replace(few, val=few.val.subset(torch.arange(20)))
    stored = replace(few, train=on_disk(few.train), val=on_disk(few.val))
    recipe = Recipe(epochs=2, batch_size=32, augment="strong", drop_path=0.2)
    models = [copy.deepcopy(dense) for _ in range(2)]
    for model, data in zip(models, (few, stored), strict=True):
        finetune(model, data, recipe, TrialContext(seed=5))
    for own, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(own, other)


def test_workers_start_once_for_all_epochs():
    split = on_disk(split_of())
    source = split.feed(CPU)
    workers = []
    for _ in range(2):
        list(source.batches(torch.arange(len(split)).split(8)))
        workers.append([worker.pid for worker in source._loader._iterator._workers])
    assert workers[0] == workers[1]


def test_reading_from_disk_leaves_the_global_random_state():
    state = torch.get_rng_state()
    split = on_disk(split_of())
    list(split.batches(16))
    list(split.feed(CPU).batches([torch.arange(4)]))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("free", "fits"), [(4 * 40 * 48, True), (4 * 40 * 48 - 1, False)])
def test_at_most_a_quarter_of_the_free_memory_is_taken_once_for_all_splits(
    monkeypatch, free, fits
):
    monkeypatch.setattr(feed, "_free_bytes", lambda device: free)
    split, device = split_of(), torch.device("meta")
    images = split.feed(device)._images_on_device()
    other = split.subset(torch.arange(3)).feed(device)._images_on_device()
    assert (images is not None) == fits
    assert images is other
    if fits:
        assert (images.device, images.shape) == (device, (40, 3, 4, 4))


def test_copies_on_a_device_go_with_their_images(monkeypatch):
    monkeypatch.setattr(feed, "_free_bytes", lambda device: 10**9)
    before = len(feed._resident)
    split = split_of()
    split.feed(torch.device("meta"))._images_on_device()
    assert len(feed._resident) == before + 1
    del split
    gc.collect()
    assert len(feed._resident) == before


def test_a_device_that_does_not_tell_its_free_memory_keeps_no_images(monkeypatch):
    monkeypatch.setattr(torch, "get_device_module", lambda device: object())
    assert feed._free_bytes(torch.device("xpu")) == 0


@dataclass
class Part:
    """A tensor that notes what happens to it."""

    name: str
    log: list[str]

    def to(self, device: Any, *, non_blocking: bool) -> Part:
        assert non_blocking
        self.log.append(f"copy {self.name} on {self.streams[-1]}")
        return self

    def record_stream(self, stream: Any) -> None:
        self.log.append(f"{stream.name} owns {self.name}")

    streams = ["main"]  # noqa: RUF012  the current one is the last


class Streams:
    """A device module whose streams note what they wait for."""

    def __init__(self, log: list[str]) -> None:
        self.log, self.copies = log, 0

    def named(self, name: str) -> Any:
        streams, log = self, self.log

        class Stream:
            def __init__(self, device: Any = None) -> None:
                self.name = name

            def record_event(self) -> int:
                streams.copies += 1
                return streams.copies

            def wait_event(self, event: int) -> None:
                log.append(f"{name} waits for copy {event}")

        return Stream

    @property
    def Stream(self) -> Any:
        return self.named("side")

    def current_stream(self, device: Any) -> Any:
        return self.named("main")()

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Any:
        Part.streams.append(stream.name)
        yield
        Part.streams.pop()


def test_each_batch_is_copied_while_the_one_before_is_used(monkeypatch):
    log: list[str] = []
    streams = Streams(log)
    monkeypatch.setattr(torch, "get_device_module", lambda device: streams)
    batches: Any = ((Part(f"images {n}", log), Part(f"labels {n}", log)) for n in (1, 2, 3))
    for images, _ in feed._copied_ahead(batches, torch.device("cuda")):
        log.append(f"use {images.name}")
    steps = [entry for entry in log if "labels" not in entry]
    assert steps == [
        "copy images 1 on side",
        "copy images 2 on side",
        *("main waits for copy 1", "main owns images 1", "use images 1"),
        "copy images 3 on side",
        *("main waits for copy 2", "main owns images 2", "use images 2"),
        *("main waits for copy 3", "main owns images 3", "use images 3"),
    ]
    assert log.count("main owns labels 2") == 1


def test_images_that_do_not_fit_are_gathered_in_pinned_memory(monkeypatch):
    asked = []
    empty = torch.empty

    def noted(*size: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        asked.append(pin_memory)
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", noted)
    monkeypatch.setattr(feed, "_free_bytes", lambda device: 0)
    monkeypatch.setattr(feed, "_copied_ahead", lambda batches, device: batches)
    split = split_of()
    (images, labels), *_ = split.feed(torch.device("cuda")).batches([torch.tensor([4, 2])])
    assert asked == [True]
    assert torch.equal(images, split.dataset.tensors[0][split.indices[[4, 2]]])
    assert torch.equal(labels, split.labels[[4, 2]])


def test_only_devices_with_streams_copy_without_waiting(monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, non_blocking=False: asked.append(non_blocking)
    )
    for kind in ("cuda", "xpu", "mps", "cpu"):
        feed.to_device(torch.zeros(1), torch.device(kind))
    assert asked == [True, True, False, False]


def test_workers_are_counted_by_the_cpus_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert worker_count() == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert worker_count() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert worker_count() == 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(96)), raising=False)
    assert worker_count() == 16


def test_images_in_memory_are_not_copied_to_a_cpu():
    split = split_of()
    assert isinstance(split.dataset, TensorDataset)
    assert split.feed(CPU)._images_on_device() is split.dataset.tensors[0]
