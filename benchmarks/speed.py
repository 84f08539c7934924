"""Do the MACs that are saved become time that is saved?

Question: how many images a second does a pruned model take, against the dense one, in one run?

Method: models of given block shapes with whatever weights they have (time does not depend on
them), in evaluation mode. Dense and pruned take turns, batch by batch, so that what else the
machine does falls on both; a row is the median over the turns of their ratio. The pruned shapes
are those of nearly one ratio for both modules, the same in every block, once with heads of a lower
rank and once with fewer whole heads, each also with ranks and neurons in multiples of 8
(``round_to``); and the dense weights with CP-ViT's cascade of one ratio.

    python benchmarks/speed.py [--model NAME] [--macs-ratio 0.5] [--turns 7] [--compile]
    python benchmarks/speed.py --checkpoint FILE
    python benchmarks/speed.py --kind cascade --batch 64 --macs-ratio 0.7

Output: ``results/speed.json``, a row for each model, shapes, batch size and mode; rows of the same
are replaced. Runtime on two cores: about 5 minutes for DeiT-S at 224 pixels, seconds for the small
models.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
from dataclasses import replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Optional

import timm
import torch
import typer
from command_line import run_command
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.models.device import best_device
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.surgery import shrink_to
from vit_ratio_opt.pruning.cascade import prune_tokens
from vit_ratio_opt.space.curve import fixed_ratio_pair
from vit_ratio_opt.space.shape import BlockShape, ViTShape
from vit_ratio_opt.space.tokens import CP_VIT, TokenSpace
from vit_ratio_opt.utils.files import write_json

RESULTS = Path(__file__).parent / "results" / "speed.json"
BATCHES = (1, 64, 256)
KINDS = ("lower rank", "fewer heads", "cascade")


def main(
    model: Annotated[str, typer.Option(help="A timm ViT.")] = "deit_small_patch16_224",
    checkpoint: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A dense model in its place."),
    ] = None,
    macs_ratio: Annotated[float, typer.Option(min=0.05, max=1.0)] = 0.5,
    batch: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(min=1, help="May be repeated.", show_default="1 64 256"),
    ] = None,
    turns: Annotated[int, typer.Option(min=3)] = 7,
    compiled: Annotated[bool, typer.Option("--compile", help="With torch.compile too.")] = False,
    only: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--kind", help="Only these shapes; may be repeated.", show_default="all"),
    ] = None,
) -> None:
    """Measure the speed of one model, dense and pruned."""
    device = best_device()
    dense = timm.create_model(model) if checkpoint is None else load_dense(checkpoint)
    dense = dense.eval().to(device)
    name = model if checkpoint is None else checkpoint.stem
    shape = shape_of(dense)
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    unknown = sorted(set(only or ()) - set(KINDS))
    if unknown:
        raise InputError(f"`--kind` must be one of {KINDS}, not {unknown}.")
    for kind, round_to in product(only or KINDS, (1, 8)):
        if kind == "cascade":
            if round_to > 1:
                continue
            space = TokenSpace(shape, replace(CP_VIT, by_range=False))
            pruned = prune_tokens(dense, space.tokens(fixed_ratio_pair(space, macs_ratio)))
            sizes: list[Any] = [list(counts) for counts in shape_of(pruned).block_tokens]
        else:
            blocks = pruned_blocks(shape, macs_ratio, kind, round_to)
            if not blocks:
                print(f"{name}  {kind}: no size in multiples of {round_to}")
                continue
            pruned = shrink_to(dense, blocks).eval()
            sizes = [blocks[0].num_heads, blocks[0].head_dim, blocks[0].hidden_dim]
        realised = shape_of(pruned).macs / shape.macs
        for mode, size in product(
            ("eager", "compiled") if compiled else ("eager",), batch or BATCHES
        ):
            seconds = _race(dense, pruned, size, turns, mode == "compiled", device)
            row = {
                "model": name,
                "shapes": kind,
                "round_to": round_to,
                "block": sizes,  # of a cascade, the tokens of every block
                "macs_ratio": realised,
                "mode": mode,
                "batch": size,
                "turns": turns,
                "dense_images_per_second": size / statistics.median(a for a, _ in seconds),
                "pruned_images_per_second": size / statistics.median(b for _, b in seconds),
                "speedup": statistics.median(a / b for a, b in seconds),
                "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
                "threads": torch.get_num_threads(),
            }
            same = ("model", "shapes", "round_to", "block", "mode", "batch", "device", "threads")
            rows = [r for r in rows if any(r[key] != row[key] for key in same)] + [row]
            write_json(
                {"machine": platform.machine(), "versions": _versions(), "rows": rows}, RESULTS
            )
            print(
                f"{name}  {kind:11s} round_to {round_to}  MACs {realised:.3f}  "
                f"{mode} batch {size:3d}: {row['dense_images_per_second']:.1f} -> "
                f"{row['pruned_images_per_second']:.1f} images/s, {row['speedup']:.2f} times",
                flush=True,
            )


def pruned_blocks(
    shape: ViTShape, macs_ratio: float, kind: str, round_to: int
) -> list[BlockShape]:
    """Blocks, all alike, that meet ``macs_ratio`` with nearly one ratio for both modules.

    The attention is cut to the smallest size that leaves the FFN at most its share; the FFN takes
    up the rest. Empty where no such size is a multiple of ``round_to``.
    """
    block, count = shape.blocks[0], len(shape.blocks)
    units = block.head_dim if kind == "lower rank" else block.num_heads
    offers = []
    for left in range(1, units + 1):
        heads, dim = block.num_heads, block.head_dim
        if kind == "lower rank":
            dim = left
        else:
            heads = left
        attention = heads * dim * shape.dim_macs * count
        rest = (macs_ratio * shape.macs - shape.fixed_macs - attention) / count
        hidden = math.floor(rest / shape.neuron_macs / round_to) * round_to
        if 0 < hidden <= block.hidden_dim and (kind == "fewer heads" or dim % round_to == 0):
            apart = abs(left / units - hidden / block.hidden_dim)
            offers.append((apart, BlockShape(heads, dim, hidden)))
    return [block for _, block in sorted(offers, key=lambda offer: offer[0])[:1]] * count


def _race(
    dense: VisionTransformer,
    pruned: VisionTransformer,
    batch: int,
    turns: int,
    compiled: bool,
    device: torch.device,
) -> list[tuple[float, float]]:
    """Seconds a batch of both models, turn by turn."""
    size = dense.patch_embed.proj.in_channels, *dense.patch_embed.img_size
    images = torch.randn(batch, *size, device=device)
    runs: list[Any] = [torch.compile(m) if compiled else m for m in (dense, pruned)]
    # Small batches are repeated until a turn is long enough to be timed.
    repeats = max(1, 8 // batch)
    with torch.inference_mode():
        for run in runs:
            run(images)
        return [
            (_seconds(runs[0], images, repeats), _seconds(runs[1], images, repeats))
            for _ in range(turns)
        ]


def _seconds(run: Any, images: torch.Tensor, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        run(images)
    if images.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("torch", "timm")}


if __name__ == "__main__":
    run_command(main)
