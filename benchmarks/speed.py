"""Do the MACs that are saved become time that is saved?

Question: how many images a second does a pruned model take, against the dense one, in one run?

Method: models of given block shapes with whatever weights they have (time does not depend on
them), as they would be deployed: evaluation mode, weights in the precision. Dense and pruned take
turns, so that what else the machine does falls on both; a row is the median over the turns of
their ratio. The pruned shapes are those of nearly one ratio for both modules, the same in every
block, with heads of a lower rank or with fewer whole heads. Ranks and neurons are multiples of 8
or 16 (``round_to``), or of neither (1). Beside them: the dense weights with CP-ViT's cascade of
one ratio, and with ToMe's merged tokens, see ``tome.py``.

    python benchmarks/speed.py [--model NAME] [--macs-ratio 0.5] [--precision bfloat16]
    python benchmarks/speed.py --checkpoint FILE --mode eager --mode compiled
    python benchmarks/speed.py --kind cascade --batch 64 --macs-ratio 0.7
    python benchmarks/speed.py --kind tome --merge 8 --merge 13 --merge 16

Modes: ``eager``; ``compiled``, block by block; ``graph`` and ``compiled graph``, as a CUDA graph.

Output: ``results/speed.json``, a row for each model, shapes, batch size, precision and mode; rows
of the same are replaced. Runtime on two cores: about 5 minutes for DeiT-S at 224 pixels, seconds
for the small models.

From Python: :func:`contenders` and :func:`measure_speed`.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, get_args

import timm
import torch
import typer
from command_line import run_command
from timm.models.vision_transformer import VisionTransformer
from tome import merge_tokens
from torch import nn

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.latency.deployed import cast_weights, deployed, time_runs
from vit_ratio_opt.latency.timing import TimingEffort, race, random_images, share_weights
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.models.device import (
    Precision,
    best_device,
    device_name,
    model_device,
    precision_of,
)
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.cascade import prune_tokens
from vit_ratio_opt.space.curve import fixed_ratio_pair
from vit_ratio_opt.space.shape import BlockShape, BlockTokens, ViTShape
from vit_ratio_opt.space.tokens import CP_VIT, TokenSpace
from vit_ratio_opt.utils.files import write_json

RESULTS = Path(__file__).parent / "results" / "speed.json"
BATCHES = (1, 64, 256)
EFFORT = TimingEffort(turns=7)
ALIGNED = 8  # sizes that are no multiples of it stand for `round_to` 1
ROUND_TO = (1, 8, 16)
MERGES = (8, 13, 16)
SAME = (
    *("model", "shapes", "round_to", "merges", "block", "precision", "mode", "batch"),
    *("device", "threads"),
)

Kind = Literal["lower rank", "fewer heads", "cascade", "tome"]
Mode = Literal["eager", "graph", "compiled", "compiled graph"]


@dataclass(frozen=True)
class Contender:
    """A smaller model and what it is, as a row has it: shapes, block, macs_ratio."""

    model: nn.Module
    about: dict[str, Any]


def contenders(
    dense: VisionTransformer,
    *,
    precision: Precision | None = None,
    macs_ratios: Sequence[float] = (0.5,),
    kinds: Sequence[Kind] = ("lower rank", "tome"),
    round_to: Sequence[int] = ROUND_TO,
    merges: Sequence[int] = MERGES,
) -> list[Contender]:
    """Return the dense model in a precision, and the models that run against it.

    Models that lost weights use the memory of the dense model's.

    Args:
        dense: Plain timm ViT, on the device; it is not changed.
        precision: Precision of the weights; the usual one of the device by default.
        macs_ratios: MACs that are left, as shares of the dense model's; ToMe has its own.
        kinds: What was removed.
        round_to: Numbers of which ranks and neurons are multiples; 1 stands for sizes that are no
            multiples of 8. A size that a number does not allow is left out.
        merges: ToMe's r, the pairs of tokens that every block merges.
    """
    dense = cast_weights(dense.eval(), precision)
    found = [Contender(dense, {"shapes": "dense", "macs_ratio": 1.0})]
    for share in macs_ratios:
        found += [c for kind in kinds for c in _smaller(dense, share, kind, round_to)]
    if "tome" in kinds:
        found += [_merging(dense, r) for r in merges]
    return found


def measure_speed(
    models: Sequence[Contender],
    *,
    batch: int,
    mode: Mode = "eager",
    effort: TimingEffort = EFFORT,
) -> list[dict[str, Any]]:
    """Time models against the first, and return a row for each of the others.

    It takes ``2 * turns * len(models)`` times the larger of ``effort.turn_seconds`` and
    ``effort.least_runs`` batches, and for each new shape of a block some seconds of compiling
    (ToMe has one in every block, the others one in all).

    Args:
        models: What :func:`contenders` returned: the dense model and smaller ones.
        batch: Images in a batch.
        mode: How the models run: ``"eager"``, ``"compiled"``, and with ``graph`` as one CUDA
            graph, so that launching kernels takes no time.
        effort: How often each model is timed.

    Returns:
        ``shapes`` and the other entries of ``Contender.about``, ``batch``, ``precision``,
        ``mode``, ``turns``, ``dense_images_per_second``, ``pruned_images_per_second``,
        ``speedup``, ``dense_mib`` and ``pruned_mib`` (weights, and on CUDA the most that a batch
        needs beside them), ``device`` and ``threads``.

    Raises:
        InputError: CUDA graphs are asked for on another device.
    """
    device = model_device(models[0].model)
    is_graph = mode.endswith("graph")
    if is_graph and device.type != "cuda":
        raise InputError(f"`mode` {mode!r} needs CUDA, but the model is on {device}.")
    images = random_images(models[0].model, batch)
    nets = [contender.model for contender in models]
    with deployed(
        nets, images, is_compiled=mode.startswith("compiled"), is_graph=is_graph
    ) as runs:
        memory = [_mib(net, images) for net in nets]
        seconds = race([partial(_fastest, run, images) for run in runs], effort)
    return [
        {
            **contender.about,
            "batch": batch,
            "precision": str(images.dtype).removeprefix("torch."),
            "mode": mode,
            "turns": effort.turns,
            "dense_images_per_second": batch / seconds[0],
            "pruned_images_per_second": batch / taken,
            "speedup": seconds[0] / taken,
            "dense_mib": memory[0],
            "pruned_mib": needed,
            "device": device_name(device),
            "threads": torch.get_num_threads(),
        }
        for contender, taken, needed in zip(models[1:], seconds[1:], memory[1:], strict=True)
    ]


def _fastest(run: Any, images: torch.Tensor, runs: int) -> float:
    return min(time_runs(run, images, runs))


def _mib(model: nn.Module, images: torch.Tensor) -> float:
    """Return the memory of the weights, and on CUDA of a forward pass, in MiB."""
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    if images.device.type == "cuda":
        model(images)  # compiles, and makes what stays
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(images)
        needed += torch.cuda.max_memory_allocated() - before
    return round(needed / 2**20, 3)


def _smaller(
    dense: VisionTransformer, macs_ratio: float, kind: Kind, round_to: Sequence[int]
) -> Iterator[Contender]:
    shape = shape_of(dense)
    if kind == "cascade":
        space = TokenSpace(shape, replace(CP_VIT, by_range=False))
        model = prune_tokens(dense, space.tokens(fixed_ratio_pair(space, macs_ratio)))
        tokens = [list(counts) for counts in shape_of(model).block_tokens]
        yield _contender(model, shape, shape_of(model), kind, block=tokens, round_to=1)
    elif kind != "tome":
        for step in round_to:
            blocks = pruned_blocks(shape, macs_ratio, kind, step)
            if blocks:
                model, size = share_weights(dense, blocks), blocks[0]
                block = [size.num_heads, size.head_dim, size.hidden_dim]
                yield _contender(model, shape, shape_of(model), kind, block=block, round_to=step)


def _merging(dense: VisionTransformer, r: int) -> Contender:
    shape, left, tokens = shape_of(dense), shape_of(dense).tokens, []
    for _ in shape.blocks:
        after = left - min(r, (left - shape.prefix_tokens) // 2)
        tokens.append(BlockTokens(left, left, after))
        left = after
    merged = replace(shape, block_tokens=tuple(tokens))
    block = [list(counts) for counts in tokens]
    return _contender(merge_tokens(dense, r), shape, merged, "tome", block=block, merges=r)


def _contender(
    model: nn.Module, dense: ViTShape, shape: ViTShape, kind: Kind, **about: Any
) -> Contender:
    return Contender(model, {"shapes": kind, **about, "macs_ratio": shape.macs / dense.macs})


def pruned_blocks(
    shape: ViTShape, macs_ratio: float, kind: Kind, round_to: int
) -> list[BlockShape]:
    """Blocks, all alike, that meet ``macs_ratio`` with nearly one ratio for both modules.

    The attention is cut to the smallest size that leaves the FFN at most its share; the FFN takes
    up the rest. Empty where no such size is a multiple of ``round_to``. With 1 no rank and no
    number of neurons is a multiple of 8, as are seven of eight sizes that a search finds.
    """
    block, count = shape.blocks[0], len(shape.blocks)
    units = block.head_dim if kind == "lower rank" else block.num_heads
    offers = []
    for left in range(1, units + 1):
        heads, dim = block.num_heads, block.head_dim
        if kind == "lower rank":
            dim = left
            if dim % round_to or (round_to == 1 and dim % ALIGNED == 0):
                continue
        else:
            heads = left
        attention = heads * dim * shape.dim_macs * count
        rest = (macs_ratio * shape.macs - shape.fixed_macs - attention) / count
        hidden = math.floor(rest / shape.neuron_macs / round_to) * round_to
        if round_to == 1 and hidden % ALIGNED == 0:
            hidden -= 1
        if 0 < hidden <= block.hidden_dim:
            apart = abs(left / units - hidden / block.hidden_dim)
            offers.append((apart, BlockShape(heads, dim, hidden)))
    return [block for _, block in sorted(offers, key=lambda offer: offer[0])[:1]] * count


def main(
    model: Annotated[str, typer.Option(help="A timm ViT.")] = "deit_small_patch16_224",
    checkpoint: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A dense model in its place."),
    ] = None,
    macs_ratio: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option(min=0.05, max=1.0, help="May be repeated.", show_default="0.5"),
    ] = None,
    round_to: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(min=1, help="May be repeated.", show_default="1 8 16"),
    ] = None,
    merge: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(min=0, help="ToMe's r; may be repeated.", show_default="8 13 16"),
    ] = None,
    batch: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(min=1, help="May be repeated.", show_default="1 64 256"),
    ] = None,
    turns: Annotated[int, typer.Option(min=3)] = 7,
    mode: Annotated[
        Optional[list[Mode]],  # noqa: UP045
        typer.Option(help="May be repeated.", show_default="eager"),
    ] = None,
    precision: Annotated[
        Optional[Precision],  # noqa: UP045
        typer.Option(help="Precision of the weights.", show_default="the device's usual one"),
    ] = None,
    kind: Annotated[
        Optional[list[Kind]],  # noqa: UP045
        typer.Option(help="Only these shapes; may be repeated.", show_default="all"),
    ] = None,
) -> None:
    """Measure the speed of one model, dense and pruned."""
    device = best_device()
    dense = timm.create_model(model) if checkpoint is None else load_dense(checkpoint)
    models = contenders(
        dense.to(device),
        precision=precision or precision_of(device),
        macs_ratios=macs_ratio or (0.5,),
        kinds=kind or get_args(Kind),
        round_to=round_to or ROUND_TO,
        merges=MERGES if merge is None else merge,
    )
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for how, size in product(mode or ("eager",), batch or BATCHES):
        started = time.perf_counter()
        found = measure_speed(models, batch=size, mode=how, effort=TimingEffort(turns=turns))
        run = {
            "model": model if checkpoint is None else checkpoint.stem,
            "seconds": round(time.perf_counter() - started, 1),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": " ".join(["python", *sys.argv]),
            "versions": {package: version(package) for package in ("torch", "timm")},
            "machine": platform.machine(),
        }
        for row in ({**run, **speed} for speed in found):
            rows = [r for r in rows if any(r.get(key) != row.get(key) for key in SAME)] + [row]
            print(_sentence(row), flush=True)
        write_json({"rows": rows}, RESULTS)


def _sentence(row: dict[str, Any]) -> str:
    what = f"r {row['merges']}" if "merges" in row else f"round_to {row['round_to']}"
    return (
        f"{row['model']}  {row['shapes']:11s} {what:11s}  MACs {row['macs_ratio']:.3f}  "
        f"{row['precision']} {row['mode']} batch {row['batch']:3d}: "
        f"{row['dense_images_per_second']:.1f} -> {row['pruned_images_per_second']:.1f} "
        f"images/s, {row['speedup']:.2f} times"
    )


if __name__ == "__main__":
    run_command(main)
