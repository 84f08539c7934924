"""Run models in PyTorch as they would be deployed, and time their runs.

Weights are cast to the precision once, instead of at every call as ``autocast`` does. On CUDA a
batch of one image is a CUDA graph, since launching its kernels takes longer than running them, and
the device's own events are the clock. Compiled are the blocks, one by one, so that blocks of equal
sizes are compiled once; the few kernels around them stay as they are.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.device import (
    Precision,
    evaluating,
    model_device,
    precision_of,
    synchronize,
)
from vit_ratio_opt.utils.failures import reason

__all__ = ["Run", "cast_weights", "clock_runs", "deployed", "is_graph", "time_runs"]

Run: TypeAlias = Callable[[torch.Tensor], object]
"""A forward pass of images: a model, or a CUDA graph of one."""

Model = TypeVar("Model", bound=nn.Module)

_WARM_UPS = 3  # runs before a capture, as PyTorch asks for
_MOST_SHAPES = 10_000  # of blocks, each compiled once; PyTorch's own limit is 8


def cast_weights(model: Model, precision: Precision | None = None) -> Model:
    """Return ``model`` with weights and buffers in a precision, the model itself where they are.

    Args:
        model: Model, which is not changed.
        precision: Precision of weights and activations; the usual one of the device by default.
    """
    dtype = getattr(torch, precision or precision_of(model_device(model)))
    if all(not t.is_floating_point() or t.dtype == dtype for t in _tensors(model)):
        return model
    return copy.deepcopy(model).to(dtype)


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def is_graph(device: torch.device, batch: int) -> bool:
    """Return whether a batch is timed as a CUDA graph: one image, on CUDA."""
    return device.type == "cuda" and batch == 1


@contextlib.contextmanager
def deployed(
    models: Sequence[nn.Module],
    images: torch.Tensor,
    *,
    is_compiled: bool = False,
    is_graph: bool = False,
) -> Iterator[list[Run]]:
    """Enter inference mode and yield a run of each model; models are as before afterwards.

    All graphs share one pool of memory, so they hold the activations of one model.

    Args:
        models: Models on the device, with weights in the precision of ``images``.
        images: Batch ``(batch, channels, height, width)`` that is run.
        is_compiled: Whether blocks are compiled, at their first run.
        is_graph: Whether each model becomes a CUDA graph.

    Raises:
        InputError: A model cannot be captured as a CUDA graph.
    """
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        if is_compiled:
            stack.enter_context(_compiled_blocks(models))
        stack.enter_context(torch.inference_mode())
        if is_graph:
            stack.enter_context(torch.cuda.device(images.device))
            pool = torch.cuda.graph_pool_handle()
            yield [_capture(model, images, pool) for model in models]
        else:
            yield list(models)


@contextlib.contextmanager
def _compiled_blocks(models: Sequence[nn.Module]) -> Iterator[None]:
    """Compile the blocks of each model, without a limit on how many shapes there are.

    PyTorch gives up compiling a function after some shapes and goes on without a word: here it
    raises instead, by ``fullgraph``.
    """
    blocks: list[Any] = [block for model in models for block in _blocks(model)]
    limits = torch._dynamo.config.patch(
        recompile_limit=_MOST_SHAPES, accumulated_recompile_limit=_MOST_SHAPES
    )
    try:
        for block in blocks:
            block.compile(fullgraph=True, dynamic=False)
        with limits:
            yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
        torch.compiler.reset()  # these shapes would use up the limit of other compiled models


def _blocks(model: Any) -> Iterator[nn.Module]:
    yield from model.blocks


def _capture(model: nn.Module, images: torch.Tensor, pool: Any) -> Run:
    """Return a run that replays the kernels of one forward pass."""
    cuda: Any = torch.cuda
    graph, side = cuda.CUDAGraph(), cuda.Stream()
    try:
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            for _ in range(_WARM_UPS):
                model(images)
        cuda.current_stream().wait_stream(side)
        with cuda.graph(graph, pool=pool):
            model(images)
    except RuntimeError as error:
        raise InputError(
            "One image on CUDA is timed as a CUDA graph, which this model cannot become: "
            f"{reason(error)} Time batches of at least 2 images."
        ) from None

    def replay(images: torch.Tensor) -> None:
        graph.replay()

    return replay


def time_runs(run: Run, images: torch.Tensor, runs: int) -> list[float]:
    """Return the seconds of each forward pass of ``images``, one after the other."""
    device = images.device
    if device.type == "cuda":
        with torch.cuda.device(device):
            return [_event_seconds(run, images) for _ in range(runs)]
    return clock_runs(run, images, runs)


def clock_runs(run: Run, images: torch.Tensor, runs: int) -> list[float]:
    """Return the seconds of each forward pass of ``images`` by the clock of the host."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        run(images)
        synchronize(images.device)
        seconds.append(time.perf_counter() - started)
    return seconds


def _event_seconds(run: Run, images: torch.Tensor) -> float:
    """Return the seconds on CUDA from an idle device to the end of the last kernel."""
    cuda: Any = torch.cuda
    first, last = (cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run(images)
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3
