"""Predict how long a pruned model takes, from a table that is measured once on a device.

Models of equal blocks are timed, once over numbers of heads and ranks and once over numbers of
hidden neurons. A block's attention and its FFN run one after the other, so their times add up: the
table holds, for each size, the additional time of a block's branch over its smallest size, and
``rest``, the time of a model with the smallest sizes everywhere. Other sizes are interpolated.

Whole models are timed, not single blocks, whose weights would never leave the caches. All of them
use the memory of the dense model's weights, so none needs its own; the time of a product does not
depend on its values.
"""

from __future__ import annotations

import bisect
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from vit_ratio_opt.latency.deployed import cast_weights, is_graph
from vit_ratio_opt.latency.sessions import runtime_conditions
from vit_ratio_opt.latency.timing import (
    image_shape,
    share_weights,
    time_models,
    timed_precision,
)
from vit_ratio_opt.models.architecture import architecture_of
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.device import Precision, device_name, model_device, precision_of
from vit_ratio_opt.models.shape import read_shape
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.models.surgery import resize_model
from vit_ratio_opt.models.weights import check_weights
from vit_ratio_opt.space.costs import Engine
from vit_ratio_opt.space.shape import BlockShape, ViTShape
from vit_ratio_opt.space.units import StructuralUnits, least_neurons

__all__ = ["LatencyTable", "measure_latency", "random_blocks", "size_grid", "timing_conditions"]

# Largest numbers of sizes that are timed: of heads, of their ranks, of neurons.
_HEADS, _RANKS, _NEURONS = 6, 8, 8
_CHECKED = 5  # models of random sizes that give the table's error


@dataclass(frozen=True)
class LatencyTable:
    """Latency of a model by the sizes of its blocks, in nanoseconds a batch.

    Args:
        heads: Numbers of heads that were timed, rising.
        ranks: Ranks of the heads that were timed, rising.
        hidden: Numbers of hidden neurons that were timed, rising.
        attention: Additional time of a block's attention over the smallest size, by heads and
            ranks.
        ffn: Additional time of a block's FFN over the smallest size, by hidden neurons.
        rest: Time of a model with the smallest sizes in every block.
        conditions: Everything that the latency depends on but sizes, see
            :func:`timing_conditions`.
        error: Median relative error of predictions for some models that were timed after the
            table, as shares of the dense model's time.
    """

    heads: tuple[int, ...]
    ranks: tuple[int, ...]
    hidden: tuple[int, ...]
    attention: tuple[tuple[float, ...], ...]
    ffn: tuple[float, ...]
    rest: float
    conditions: dict[str, Any]
    error: float = math.nan

    def attention_of(self, num_heads: int, head_dim: int) -> float:
        """Return the additional time of one block's attention over the smallest size."""
        (low, high), share = _neighbours(self.heads, num_heads)
        below, above = (_interpolate(self.ranks, self.attention[i], head_dim) for i in (low, high))
        return below + share * (above - below)

    def ffn_of(self, hidden_dim: int) -> float:
        """Return the additional time of one block's FFN over the smallest size."""
        return _interpolate(self.hidden, self.ffn, hidden_dim)

    def predict(self, blocks: Sequence[BlockShape]) -> float:
        """Return the predicted latency of a model with ``blocks``."""
        return self.rest + sum(
            self.attention_of(block.num_heads, block.head_dim) + self.ffn_of(block.hidden_dim)
            for block in blocks
        )

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LatencyTable:
        """Return the table whose :meth:`to_json` gave ``values``.

        Raises:
            KeyError: A value is missing.
            TypeError: A value is of another type.
        """
        rows = tuple(tuple(map(float, row)) for row in values["attention"])
        sizes = {name: tuple(map(int, values[name])) for name in ("heads", "ranks", "hidden")}
        ffn = tuple(map(float, values["ffn"]))
        return cls(**(values | sizes | {"attention": rows, "ffn": ffn}))


def timing_conditions(
    model: ViT,
    *,
    batch: int = 1,
    round_to: int = 1,
    precision: Precision | None = None,
    engine: Engine = "eager",
) -> dict[str, Any]:
    """Return everything that a model's latency depends on but its weights, as JSON values.

    ``run_as`` names what eager runs in float32 by the clock of the host have not, and is absent
    where there is none of it: ``"cast weights"``, ``"events"``, ``"graph"``, ``"compiled"``,
    ``"onnxruntime"``. With the last there are the entries of
    :func:`vit_ratio_opt.latency.sessions.runtime_conditions` too.

    Args:
        model: Model on the device.
        batch: Images in a batch.
        round_to: Ranks and neurons left in a block are multiples of this.
        precision: Precision in which the model is timed; the usual one of the device by default.
        engine: What runs the models.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: ONNX Runtime is not installed, or cannot use the device.
    """
    model = check_supported(model)
    device = model_device(model)
    precision = timed_precision(precision, engine) or precision_of(device)
    is_torch = engine != "onnxruntime"
    run_as = {
        "cast weights": precision != "float32",
        "events": is_torch and device.type == "cuda",
        "graph": is_torch and is_graph(device, batch),
        engine: engine != "eager",
    }
    known = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": precision,
        "batch": batch,
        "round_to": round_to,
        "image": list(image_shape(model)),
        "model": architecture_of(model)["modules"],
        **({} if is_torch else runtime_conditions(device)),
    }
    words = [word for word, is_so in run_as.items() if is_so]
    return {**known, "run_as": words} if words else known


def measure_latency(
    model: ViT,
    *,
    batch: int = 1,
    round_to: int = 1,
    precision: Precision | None = None,
    engine: Engine = "eager",
) -> LatencyTable:
    """Time models with smaller blocks than ``model`` has, on its device, and return the table.

    It takes seconds for a small model, a minute or two for DeiT-S at 224 pixels on two cores.

    Args:
        model: Dense or pruned model without a cascade.
        batch: Images in a batch.
        round_to: Ranks and neurons left in a block are multiples of this.
        precision: Precision in which models are timed; the usual one of the device by default.
        engine: What runs the models. Compiling or exporting takes seconds for each size.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: ``batch`` is below 1, a model cannot be captured as a CUDA graph, or ONNX
            Runtime cannot run one on its device.
    """
    model = check_supported(model)
    check_weights(model)
    how: dict[str, Any] = {"batch": batch, "precision": precision, "engine": engine}
    known = timing_conditions(model, round_to=round_to, **how)
    model = cast_weights(model, known["precision"])  # once, so that smaller models need no memory
    dense = StructuralUnits(read_shape(model), round_to=round_to)
    blocks = dense.shape.blocks
    depth, most = len(blocks), _largest(blocks)
    heads = size_grid(most.num_heads if dense.shape.all_heads else 1, most.num_heads, _HEADS)
    ranks = size_grid(dense.least_dims(most), most.head_dim, _RANKS, round_to)
    least = min(least_neurons(round_to), most.hidden_dim)
    hidden = size_grid(least, most.hidden_dim, _NEURONS, round_to)
    # Around the middle, so that times that do not quite add up err little at either end.
    middle = BlockShape(*(sizes[len(sizes) // 2] for sizes in (heads, ranks, hidden)))
    attention = [replace(middle, num_heads=h, head_dim=r) for h in heads for r in ranks]
    ffn = [replace(middle, hidden_dim=size) for size in hidden]
    shapes = list(dict.fromkeys([middle, *attention, *ffn]))
    # Blocks of a pruned model differ in size, and none may be the largest in every dimension.
    even = model if set(blocks) == {most} else resize_model(model, most)
    models = [share_weights(even, [shape] * depth) for shape in shapes]
    timed = time_models(models, **how)
    taken = {shape: seconds * 1e9 for shape, seconds in zip(shapes, timed, strict=True)}
    by_heads = [taken[shape] for shape in attention]
    by_hidden = [taken[shape] for shape in ffn]
    rows = [by_heads[i : i + len(ranks)] for i in range(0, len(by_heads), len(ranks))]
    table = LatencyTable(
        heads,
        ranks,
        hidden,
        tuple(tuple((cost - rows[0][0]) / depth for cost in row) for row in rows),
        tuple((cost - by_hidden[0]) / depth for cost in by_hidden),
        rest=rows[0][0] + by_hidden[0] - taken[middle],
        conditions=known,
    )
    return replace(table, error=_error_of(table, model, round_to, how))


def _largest(blocks: Sequence[BlockShape]) -> BlockShape:
    """Return the largest of each size."""
    names = BlockShape.__dataclass_fields__
    return BlockShape(*(max(getattr(block, name) for block in blocks) for name in names))


def _error_of(table: LatencyTable, model: ViT, round_to: int, how: dict[str, Any]) -> float:
    """Return the median relative error of predictions for some random blocks."""
    shape, draw = read_shape(model), random.Random(0)
    checked = [random_blocks(shape, draw, round_to=round_to) for _ in range(_CHECKED)]
    models = [share_weights(model, blocks) for blocks in [shape.blocks, *checked]]
    dense, *pruned = time_models(models, **how)
    whole = table.predict(shape.blocks)
    return statistics.median(
        abs(table.predict(blocks) / whole / (seconds / dense) - 1)
        for blocks, seconds in zip(checked, pruned, strict=True)
    )


def random_blocks(shape: ViTShape, draw: random.Random, *, round_to: int = 1) -> list[BlockShape]:
    """Return blocks of random sizes for checking a table; the share that is left is drawn too.

    Args:
        shape: Shape of the dense model.
        draw: Source of the random numbers.
        round_to: Ranks and neurons are multiples of this.
    """
    level = draw.uniform(0.15, 0.9)
    low, high = max(0.0, 2 * level - 1), min(1.0, 2 * level)
    blocks = []
    for block in shape.blocks:
        dims = draw.uniform(low, high) * block.num_heads * block.head_dim
        fewest = block.num_heads if shape.all_heads else max(1, math.ceil(dims / block.head_dim))
        heads = draw.randint(fewest, block.num_heads)
        step = block.head_dim if shape.whole_heads else round_to
        rank = _rounded(dims / heads, block.head_dim, step, step)
        hidden = draw.uniform(low, high) * block.hidden_dim
        least = least_neurons(round_to)
        blocks.append(BlockShape(heads, rank, _rounded(hidden, block.hidden_dim, round_to, least)))
    return blocks


def _rounded(size: float, most: int, step: int, least: int) -> int:
    return min(most, max(least, round(size / step) * step))


def size_grid(least: int, most: int, points: int, step: int = 1) -> tuple[int, ...]:
    """Return sizes from the least to the most: multiples of a step that doubles until few fit."""
    while most // step > points:
        step *= 2
    return tuple(sorted({least, *(n for n in range(step, most, step) if n > least), most}))


def _neighbours(sizes: Sequence[int], size: int) -> tuple[tuple[int, int], float]:
    """Return the indices of the sizes on either side, and the position between them, in [0, 1]."""
    high = min(max(1, bisect.bisect_left(sizes, size)), len(sizes) - 1)
    if high == 0:  # there is only one
        return (0, 0), 0.0
    low = high - 1
    return (low, high), (size - sizes[low]) / (sizes[high] - sizes[low])


def _interpolate(sizes: Sequence[int], costs: Sequence[float], size: int) -> float:
    (low, high), share = _neighbours(sizes, size)
    return costs[low] + share * (costs[high] - costs[low])
