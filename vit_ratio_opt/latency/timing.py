"""How long a pruned model takes, foretold from a table that is measured once on a device.

Models of equal blocks are timed, once over numbers of heads and ranks and once over numbers of
hidden neurons. A block's attention and its FFN come one after the other, so what they take adds
up: the table has, for each size, what a block's branch takes more than with the least of it, and
``rest``, what a model takes that has the least of everything. Sizes in between are interpolated.

Whole models are timed, not single blocks, whose weights would never leave the caches. All of them
use the memory of the dense model's weights, so none needs its own; how long a product takes does
not depend on what is multiplied. Each is timed between two runs of the same other model, and what
counts is the median of how much longer or shorter it takes: what else the machine does, and how
fast its clock is, changes from minute to minute and falls on both. (Tried and worse on a busy
machine: each model's shortest run, on its own or against the other one's shortest beside it.)
"""

from __future__ import annotations

import bisect
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.architecture import architecture_of
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.device import Precision, autocast, evaluating, model_device, precision_of
from vit_ratio_opt.models.supported import check_supported, check_weights
from vit_ratio_opt.models.surgery import resize_model, shape_of, shrink_to
from vit_ratio_opt.pruning.calibration import Calibration
from vit_ratio_opt.pruning.importance import Importance
from vit_ratio_opt.pruning.options import Allocation
from vit_ratio_opt.pruning.sizes import predict_sizes
from vit_ratio_opt.space.cost_table import monotone_envelope
from vit_ratio_opt.space.pairs import RatioPair, evenly
from vit_ratio_opt.space.shape import BlockShape, ViTShape
from vit_ratio_opt.space.units import StructuralUnits, least_neurons

__all__ = [
    "LatencyTable",
    "conditions",
    "latency_curves",
    "measure_latency",
    "random_blocks",
    "sharing",
    "time_models",
]

# Sizes that are timed at the most: of heads, of their ranks, of neurons. Others are interpolated.
_HEADS, _RANKS, _NEURONS = 6, 8, 8
# Turns of every model, but no more than these seconds after the least number of turns.
_TURNS, _LEAST_TURNS, _MOST_SECONDS = 10, 7, 60.0
# A turn lasts at least so long, of which the first run is from cold caches.
_TURN_SECONDS, _LEAST_RUNS = 0.02, 2
_CHECKED = 5
_KNOTS = 129
# Shares of the dense model's time at which pairs are timed where no budget says at which.
_CHECKED_SHARES = (0.8, 0.7, 0.6, 0.5, 0.4)
_LEAST_KEPT = 0.5


@dataclass(frozen=True)
class LatencyTable:
    """What a model of given block sizes takes, in nanoseconds a batch.

    Args:
        heads: Sizes that were timed, rising.
        ranks: Likewise.
        hidden: Likewise.
        attention: By heads and ranks, what a block's attention takes more than the first.
        ffn: By hidden neurons, what a block's FFN takes more than the first.
        rest: A model with the first of all sizes in every block.
        conditions: See :func:`conditions`.
        error: Median relative error of what was foretold of some models that were timed after the
            table was made, as shares of the dense model's time.
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
        """What the attention of one block takes, beyond the least."""
        (low, high), share = _neighbours(self.heads, num_heads)
        below, above = (_between(self.ranks, self.attention[i], head_dim) for i in (low, high))
        return below + share * (above - below)

    def ffn_of(self, hidden_dim: int) -> float:
        """What the FFN of one block takes, beyond the least."""
        return _between(self.hidden, self.ffn, hidden_dim)

    def latency(self, blocks: Sequence[BlockShape]) -> float:
        """What a model of such blocks takes."""
        return self.rest + sum(
            self.attention_of(block.num_heads, block.head_dim) + self.ffn_of(block.hidden_dim)
            for block in blocks
        )

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LatencyTable:
        """What :meth:`to_json` made; KeyError or TypeError where it did not."""
        rows = tuple(tuple(map(float, row)) for row in values["attention"])
        sizes = {name: tuple(map(int, values[name])) for name in ("heads", "ranks", "hidden")}
        ffn = tuple(map(float, values["ffn"]))
        return cls(**(values | sizes | {"attention": rows, "ffn": ffn}))


def conditions(
    model: ViT, *, batch: int = 1, round_to: int = 1, precision: Precision | None = None
) -> dict[str, Any]:
    """What a model's latency depends on, its weights apart, as JSON values.

    Args:
        model: On the device.
        batch: Images at once.
        round_to: What the sizes to come are multiples of.
        precision: By default the usual one of the device.
    """
    model = check_supported(model)
    device = model_device(model)
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": precision or precision_of(device),
        "batch": batch,
        "round_to": round_to,
        "image": list(_image_shape(model)),
        "model": architecture_of(model)["modules"],
    }


def measure_latency(
    model: ViT, *, batch: int = 1, round_to: int = 1, precision: Precision | None = None
) -> LatencyTable:
    """Time models with smaller blocks than ``model`` has, on its device.

    Seconds for a small model, a minute or two for DeiT-S at 224 pixels on two cores.

    Args:
        model: Dense or pruned, without a cascade.
        batch: Images at once.
        round_to: What the sizes to come are multiples of.
        precision: By default the usual one of the device.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: ``batch`` is below 1.
    """
    model = check_supported(model)
    check_weights(model)
    known = conditions(model, batch=batch, round_to=round_to, precision=precision)
    dense = StructuralUnits(shape_of(model), round_to=round_to)
    blocks = dense.shape.blocks
    depth = len(blocks)
    most = BlockShape(
        *(max(getattr(b, name) for b in blocks) for name in BlockShape.__dataclass_fields__)
    )
    heads = _grid(most.num_heads if dense.shape.all_heads else 1, most.num_heads, _HEADS)
    ranks = _grid(dense.least_dims(most), most.head_dim, _RANKS, round_to)
    least = min(least_neurons(round_to), most.hidden_dim)
    hidden = _grid(least, most.hidden_dim, _NEURONS, round_to)
    # Around the middle, so that what does not quite add up errs little at either end.
    middle = BlockShape(*(sizes[len(sizes) // 2] for sizes in (heads, ranks, hidden)))
    attention = [replace(middle, num_heads=h, head_dim=r) for h in heads for r in ranks]
    ffn = [replace(middle, hidden_dim=size) for size in hidden]
    shapes = list(dict.fromkeys([middle, *attention, *ffn]))
    # What was pruned before has blocks of different sizes, none of them as large as any other.
    even = model if set(blocks) == {most} else resize_model(model, most)
    models = [sharing(even, [shape] * depth) for shape in shapes]
    timed = time_models(models, batch=batch, precision=precision)
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
    return replace(table, error=_error_of(table, model, batch, round_to, precision))


def time_models(
    models: Sequence[torch.nn.Module], *, batch: int = 1, precision: Precision | None = None
) -> list[float]:
    """Seconds that each model takes for a batch, while all of them take turns with the first.

    Args:
        models: ViTs for images of one shape, on one device. Their modes are left as they were.
        batch: Images at once.
        precision: By default the usual one of the device.

    Raises:
        InputError: ``batch`` is below 1.
    """
    if batch < 1:
        raise InputError(f"The batch of a latency must be at least 1, but got {batch!r}.")
    models = [check_supported(model) for model in models]
    images = torch.randn(batch, *_image_shape(models[0]), device=model_device(models[0]))

    def fastest(model: torch.nn.Module, runs: int) -> float:
        with torch.inference_mode(), evaluating(model), autocast(images.device, precision):
            return min(_runs(model, images, runs))

    once = [fastest(model, _LEAST_RUNS) for model in models]
    runs = [max(_LEAST_RUNS, math.ceil(_TURN_SECONDS / seconds)) for seconds in once]

    def turn(index: int) -> float:
        return fastest(models[index], runs[index])

    order, shuffle = list(range(1, len(models))), random.Random(0).shuffle
    ratios: list[list[float]] = [[] for _ in models]
    reference = [once[0], turn(0)]
    started = time.monotonic()
    for turns in range(_TURNS):
        if turns >= _LEAST_TURNS and time.monotonic() > started + _MOST_SECONDS:
            break
        shuffle(order)
        for index in order:
            taken = turn(index)
            reference.append(turn(0))
            ratios[index].append(taken / statistics.fmean(reference[-2:]))
    best = min(reference)
    return [best, *(best * statistics.median(ratios[index]) for index in range(1, len(models)))]


def latency_curves(
    table: LatencyTable,
    model: ViT,
    units: StructuralUnits,
    guide: Importance | Calibration,
    *,
    allocation: Allocation = "global",
    budget: float | None = None,
) -> dict[str, Any]:
    """What the models of a study's pairs take, as the study stores it.

    Which sizes blocks have depends on the calibration, so the curves belong to the study, and the
    table to the device. Models of a few pairs are timed, those that use up the budget if there is
    one: of what pairs are foretold to save, all keep the least share that one of these did save,
    less the table's error.

    Args:
        table: Of the dense model.
        model: The dense model, on the device.
        units: Units of the dense model.
        guide: What pruning is guided by.
        allocation: How what is removed is spread over the blocks.
        budget: Share of the dense model's time that is looked for.

    Returns:
        ``rest``, and ``mhsa`` and ``ffn``, each a list of units that are gone and what is left, in
        nanoseconds a batch; ``kept``, the share of what was foretold to be saved; the table's
        ``conditions`` and ``error``.
    """
    gone = [units.removed(RatioPair(r, 0.0))[0] for r in evenly(units.mhsa_ratios, _KNOTS)]
    neurons = [units.removed(RatioPair(0.0, r))[1] for r in evenly(units.ffn_ratios, _KNOTS)]
    heads, hidden = predict_sizes(units, gone, neurons, guide, allocation=allocation)
    mhsa = monotone_envelope(
        [round(sum(table.attention_of(*size) for size in sizes)) for sizes in heads]
    )
    ffn = monotone_envelope([round(sum(table.ffn_of(size) for size in sizes)) for sizes in hidden])
    dense = table.rest + mhsa[0] + ffn[0]
    wanted = _CHECKED_SHARES if budget is None else [budget] * len(_CHECKED_SHARES)
    checked = _using_up([share * dense - table.rest for share in wanted], mhsa, ffn)
    models = [model]
    for i, j in checked:
        sizes = zip(heads[i], hidden[j], strict=True)
        models.append(sharing(model, [BlockShape(*attention, size) for attention, size in sizes]))
    batch, precision = table.conditions["batch"], table.conditions["precision"]
    whole, *taken = time_models(models, batch=batch, precision=precision)
    saved = [
        (1 - seconds / whole) * dense / (mhsa[0] - mhsa[i] + ffn[0] - ffn[j])
        for (i, j), seconds in zip(checked, taken, strict=True)
    ]
    kept = max(_LEAST_KEPT, min([1.0, *saved]) * (1 - min(1.0, table.error)))
    mhsa, ffn = ([round(costs[0] - kept * (costs[0] - c)) for c in costs] for costs in (mhsa, ffn))
    return {
        "rest": round(table.rest),
        "mhsa": [list(knot) for knot in zip(gone, mhsa, strict=True)],
        "ffn": [list(knot) for knot in zip(neurons, ffn, strict=True)],
        "kept": kept,
        "error": table.error,
        **table.conditions,
    }


def _using_up(
    allowed: Sequence[float], mhsa: Sequence[int], ffn: Sequence[int]
) -> list[tuple[int, int]]:
    """For each cost a pair of knots that comes to it, with more and more of the attention gone."""
    pairs = []
    for index, cost in enumerate(allowed):
        fits = [
            (i, j)
            for i in range(len(mhsa))
            if (j := bisect.bisect_left(ffn, mhsa[i] - cost, key=lambda c: -c)) < len(ffn)
        ]
        if fits:
            pairs.append(fits[index * (len(fits) - 1) // max(1, len(allowed) - 1)])
    return [(i, j) for i, j in dict.fromkeys(pairs) if mhsa[i] + ffn[j] < mhsa[0] + ffn[0]]


def random_blocks(shape: ViTShape, draw: random.Random, *, round_to: int = 1) -> list[BlockShape]:
    """Blocks of different sizes, for checking a table; how much is left of all is drawn, too."""
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


def sharing(model: ViT, blocks: Sequence[BlockShape]) -> ViT:
    """A model of such blocks in the memory of ``model``: its weights are some of those.

    For timing only: what it gives means nothing.
    """
    smaller = shrink_to(model, blocks)
    memory = dict(model.named_parameters())
    for name, parameter in smaller.named_parameters():
        values = memory[name].detach().flatten()[: parameter.numel()]
        parameter.data = values.view(parameter.shape)
    return smaller


def _rounded(size: float, most: int, step: int, least: int) -> int:
    return min(most, max(least, round(size / step) * step))


def _error_of(
    table: LatencyTable, model: ViT, batch: int, round_to: int, precision: Precision | None
) -> float:
    """Median relative error of shares of the dense model's time, for some random blocks."""
    shape, draw = shape_of(model), random.Random(0)
    checked = [random_blocks(shape, draw, round_to=round_to) for _ in range(_CHECKED)]
    models = [sharing(model, blocks) for blocks in [shape.blocks, *checked]]
    dense, *pruned = time_models(models, batch=batch, precision=precision)
    whole = table.latency(shape.blocks)
    return statistics.median(
        abs(table.latency(blocks) / whole / (seconds / dense) - 1)
        for blocks, seconds in zip(checked, pruned, strict=True)
    )


def _runs(model: torch.nn.Module, images: torch.Tensor, runs: int) -> list[float]:
    """Seconds of each run."""
    device, seconds = images.device, []
    for _ in range(runs):
        started = time.perf_counter()
        model(images)
        _finish(device)
        seconds.append(time.perf_counter() - started)
    return seconds


def _finish(device: torch.device) -> None:
    """Wait until the device has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _image_shape(model: torch.nn.Module) -> tuple[int, ...]:
    patches: Any = model.patch_embed
    return patches.proj.in_channels, *patches.img_size


def _grid(least: int, most: int, points: int, step: int = 1) -> tuple[int, ...]:
    """Sizes from the least to the most: multiples of a step that is doubled until they are few."""
    while most // step > points:
        step *= 2
    return tuple(sorted({least, *(n for n in range(step, most, step) if n > least), most}))


def _neighbours(sizes: Sequence[int], size: int) -> tuple[tuple[int, int], float]:
    """Indices of the sizes on either side, and how far from the first to the second it is."""
    high = min(max(1, bisect.bisect_left(sizes, size)), len(sizes) - 1)
    if high == 0:  # there is only one
        return (0, 0), 0.0
    low = high - 1
    return (low, high), (size - sizes[low]) / (sizes[high] - sizes[low])


def _between(sizes: Sequence[int], costs: Sequence[float], size: int) -> float:
    (low, high), share = _neighbours(sizes, size)
    return costs[low] + share * (costs[high] - costs[low])
