"""Tests for running models as they would be deployed, with CUDA's events and graphs as fakes."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.latency import timing
from vit_ratio_opt.latency.deployed import cast_weights, deployed, time_runs
from vit_ratio_opt.latency.table import timing_conditions
from vit_ratio_opt.latency.timing import TimingEffort, share_weights, time_models
from vit_ratio_opt.space.shape import BlockShape

IMAGES = torch.zeros(1, 3, 32, 32)


@pytest.fixture
def cuda(monkeypatch):
    """Record, in order, what is asked of ``torch.cuda``."""
    log: list[object] = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, other):
            return 2.5  # milliseconds

    class Graph:
        def replay(self):
            log.append("replay")

    def named(name):
        @contextlib.contextmanager
        def entered(*args, **options):
            log.append((name, options.get("pool")))
            yield
            log.append(f"end of {name}")

        return entered

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, fake in {
        "Event": Event, "CUDAGraph": Graph, "Stream": lambda: stream,
        "current_stream": lambda: stream, "stream": named("warm-up"), "graph": named("capture"),
        "device": lambda device: contextlib.nullcontext(), "graph_pool_handle": lambda: "pool",
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    return log


def test_the_clock_of_cuda_are_its_events_and_each_run_is_waited_for(cuda):
    images = SimpleNamespace(device=torch.device("cuda"))
    assert time_runs(lambda images: cuda.append("run"), images, 2) == [0.0025, 0.0025]
    assert cuda == ["record", "run", "record", "wait"] * 2


def test_a_graph_is_captured_once_after_warming_up_and_replayed(cuda, tiny_vit):
    calls = []
    tiny_vit.register_forward_pre_hook(lambda module, images: calls.append(len(cuda)))
    with deployed([tiny_vit, tiny_vit], IMAGES, is_graph=True) as (first, second):
        first(IMAGES)
        second(IMAGES)
    begun = [("warm-up", None), "end of warm-up", ("capture", "pool"), "end of capture"]
    assert cuda == begun * 2 + ["replay"] * 2
    assert calls == [1, 1, 1, 3, 5, 5, 5, 7]  # three in each warm-up, one in each capture


def test_a_model_that_cannot_be_captured_is_refused_with_the_way_out(cuda, tiny_vit, monkeypatch):
    def fails(graph, pool):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", fails)
    with (
        pytest.raises(InputError, match="at least 2 images"),
        deployed([tiny_vit], IMAGES, is_graph=True),
    ):
        pass


def test_weights_are_cast_once_and_the_model_keeps_its_own(tiny_vit):
    assert cast_weights(tiny_vit, "float32") is tiny_vit
    half = cast_weights(tiny_vit, "bfloat16")
    assert cast_weights(half, "bfloat16") is half
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in tiny_vit.parameters()} == {torch.float32}
    smaller = share_weights(half, [BlockShape(1, 2, 8)] * 2)
    assert cast_weights(smaller, "bfloat16") is smaller  # so it needs no memory of its own


def test_models_are_timed_in_their_precision_without_autocast(tiny_vit, monkeypatch):
    seen = []

    def take(model, images, runs):
        outputs = model(images)
        seen.append((images.dtype, outputs.dtype, torch.is_autocast_enabled("cpu")))
        return [1.0] * runs

    monkeypatch.setattr(timing, "time_runs", take)
    time_models([tiny_vit.train()], precision="bfloat16", effort=TimingEffort(turns=1))
    assert set(seen) == {(torch.bfloat16, torch.bfloat16, False)}
    assert tiny_vit.training


def test_blocks_of_any_number_of_sizes_are_compiled_once_each(make_vit, monkeypatch):
    counter = CompileCounter()
    own = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **how: own(self, backend=counter, **how)
    )
    dense = make_vit(depth=3)
    sizes = [BlockShape(4, 8, 64 - n) for n in range(11)]  # PyTorch gives up after 8
    models = [share_weights(dense, [size] * 3) for size in sizes]
    images = torch.randn(2, 3, 32, 32)
    with deployed(models, images, is_compiled=True) as runs:
        outputs = [run(images) for run in runs for _ in range(2)]
    assert counter.frame_count == len(sizes)
    assert all(block._compiled_call_impl is None for model in models for block in model.blocks)
    torch.testing.assert_close(outputs[0], dense(images))


def test_how_models_are_run_is_a_condition_unless_it_is_as_it_ever_was(tiny_vit, monkeypatch):
    assert "run_as" not in timing_conditions(tiny_vit)
    assert timing_conditions(tiny_vit, precision="bfloat16")["run_as"] == ["cast weights"]
    assert timing_conditions(tiny_vit, engine="compiled")["run_as"] == ["compiled"]
    monkeypatch.setattr(
        "vit_ratio_opt.latency.table.model_device", lambda model: torch.device("cuda")
    )
    monkeypatch.setattr("vit_ratio_opt.latency.table.device_name", lambda device: "a GPU")
    known = timing_conditions(tiny_vit, precision="float32")
    assert known["run_as"] == ["events", "graph"]
    assert timing_conditions(tiny_vit, precision="float32", batch=2)["run_as"] == ["events"]
