"""Is the built-in loop as fast as a loop that is written for one model?

Question: how many images a second do both train on?

Method: one epoch of the built-in loop and of a bare PyTorch loop take turns in one process, so
that what else the machine does falls on both. Both train the same model on the same random images
in memory, with AdamW, a cosine, clipped gradients and distillation from the same logits, and
validate on as many images. A row has the median over the turns of the ratio. One thread of a CPU
is clocked by the time that it computed, which other processes change little. With ``--automatic``
the built-in loop races itself: in the precisions that a new study chooses, against float32.

    python benchmarks/loop.py --checkpoint FILE [--turns 15] [--fused]
    python benchmarks/loop.py --width 192
    python benchmarks/loop.py --model deit_small_patch16_224 --batch 32 --steps 4
    python benchmarks/loop.py --batch 16 --steps 2 --turns 3 --automatic

Output: ``results/loop.json``, a row for each model, batch, precision and bare loop; rows of the
same are replaced. Runtime on one core: about a minute for the small models.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import timm
import torch
import torch.nn.functional as F
import typer
from command_line import run_command
from recording import Results
from torch import nn

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.preprocessing import CIFAR10_MEAN, CIFAR10_STD
from vit_ratio_opt.data.splits import split_in_memory
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.device import (
    Precision,
    autocast,
    best_device,
    device_name,
    model_device,
    synchronize,
)
from vit_ratio_opt.models.precision import Precisions, faster_precision
from vit_ratio_opt.training.evaluate import predict
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe

RESULTS = Results(
    Path(__file__).parent / "results" / "loop.json",
    ("model", "batch", "precision", "bare", "device", "threads"),
)
SMALL = {"img_size": 32, "patch_size": 4, "num_classes": 10, "depth": 9, "mlp_ratio": 2.0}


def main(
    model: Annotated[str, typer.Option(help="A timm ViT.")] = "deit_small_patch16_224",
    checkpoint: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A dense model in its place."),
    ] = None,
    width: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=32, help="A ViT of 9 blocks for 32 pixels, this wide, in its place."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a step.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Steps a turn.")] = 10,
    turns: Annotated[int, typer.Option(min=3)] = 15,
    fused: Annotated[
        bool, typer.Option("--fused", help="A fused AdamW in the bare loop.")
    ] = False,
    automatic: Annotated[
        bool, typer.Option("--automatic", help="Race the precisions of a new study.")
    ] = False,
) -> None:
    """Race the built-in loop against a bare one."""
    if checkpoint is not None:
        name, dense = checkpoint.stem, load_dense(checkpoint)
    elif width is not None:
        name = f"width {width}"
        small = dict(SMALL, embed_dim=width, num_heads=width // 32)
        dense = timm.create_model("vit_tiny_patch16_224", **small)
    else:
        name, dense = model, timm.create_model(model)
    started = time.perf_counter()
    row = {
        "model": name,
        **measure_loops(
            dense.to(best_device()),
            batch=batch,
            steps=steps,
            turns=turns,
            fused=fused,
            automatic=automatic,
        ),
    }
    RESULTS.add(row, seconds=time.perf_counter() - started)
    print(
        f"{name}, batch {batch}: built-in {row['own_images_per_second']:.1f}, bare "
        f"{row['bare_images_per_second']:.1f} images/s, ratio {row['ratio']:.3f} {row['ratios']}"
    )


def measure_loops(
    dense: ViT,
    *,
    batch: int = 128,
    steps: int = 10,
    turns: int = 15,
    precision: Precision = "float32",
    fused: bool = False,
    automatic: bool = False,
) -> dict[str, Any]:
    """Return the images a second of both loops and their ratio, the bare loop's being 1.

    Args:
        dense: The model, on its device; it is not changed.
        batch: Images a step.
        steps: Steps a turn.
        turns: Turns that count.
        precision: Precision of both loops.
        fused: Whether the bare loop has a fused AdamW.
        automatic: Whether the built-in loop in a new study's precisions races itself instead.
    """
    data, recipe = random_images(dense, batch * steps), Recipe(batch_size=batch, lr=1e-3)
    logits = predict(dense, data, data.train, precision=precision)
    own, bare = copy.deepcopy(dense), copy.deepcopy(dense)
    chosen, measured = choose_precisions(dense, data) if automatic else (precision, {})

    def run_own() -> None:
        finetune(own, data, recipe, teacher=logits, precision=chosen)

    def run_bare() -> None:
        if automatic:
            finetune(bare, data, recipe, teacher=logits, precision=precision)
        else:
            train_bare(bare, data, recipe, logits, precision=precision, fused=fused)

    device = model_device(dense)
    is_one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    now = time.process_time if is_one_thread else time.perf_counter
    seconds = race(run_own, run_bare, turns, device, now)
    return {
        "batch": batch,
        "steps": steps,
        "turns": turns,
        "precision": "automatic" if automatic else precision,
        **measured,
        "bare": "built-in, float32" if automatic else "fused AdamW" if fused else "AdamW",
        "own_images_per_second": batch * steps / statistics.median(a for a, _ in seconds),
        "bare_images_per_second": batch * steps / statistics.median(b for _, b in seconds),
        "ratio": statistics.median(b / a for a, b in seconds),
        "ratios": [round(b / a, 3) for a, b in seconds],
        "clock": now.__name__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


def choose_precisions(dense: ViT, data: ImageData) -> tuple[Precisions, dict[str, Any]]:
    """Return the precisions that a new study chooses, and how it came to them."""
    training, evaluation = (
        faster_precision(dense, data.image_shape, training=training) for training in (True, False)
    )
    chosen = Precisions(training=training.precision, evaluation=evaluation.precision)
    speedups = {"training": training.speedup, "evaluation": evaluation.speedup}
    return chosen, {"precisions": vars(chosen), "bfloat16_speedup": speedups}


def random_images(model: ViT, count: int) -> ImageData:
    """Return random images of the model's size in memory, a few of them for validation."""
    size = model.patch_embed.proj.in_channels, *model.patch_embed.img_size
    generator = torch.Generator().manual_seed(0)

    def split(images: int) -> Any:
        pixels = torch.randint(0, 256, (images, *size), dtype=torch.uint8, generator=generator)
        return split_in_memory(
            pixels, torch.randint(0, model.num_classes, (images,), generator=generator)
        )

    val = split(32)
    classes = tuple(map(str, range(model.num_classes)))
    return ImageData("random", split(count), val, val, classes, CIFAR10_MEAN, CIFAR10_STD)


def train_bare(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    teacher: torch.Tensor,
    *,
    precision: Precision,
    fused: bool,
) -> None:
    """Train as a script for this one task does: nothing can be stopped, reported or resumed."""
    device = model_device(model)
    dataset: Any = data.train.dataset
    pixels, labels = dataset.tensors
    mean = torch.tensor(data.mean, device=device).view(-1, 1, 1)
    std = torch.tensor(data.std, device=device).view(-1, 1, 1)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.peak_lr,
        weight_decay=recipe.weight_decay,
        fused=fused or None,
    )
    steps = math.ceil(len(labels) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    weight, heat = recipe.distillation, recipe.temperature
    model.train()
    for chosen in torch.split(torch.randperm(len(labels)), recipe.batch_size):
        images = pixels[chosen].to(device, non_blocking=True).float()
        with autocast(device, precision):
            logits = model(images.div_(255).sub_(mean).div_(std))
        logits = logits.float()
        hard = F.cross_entropy(logits, labels[chosen].to(device, non_blocking=True))
        soft = F.kl_div(
            F.log_softmax(logits / heat, dim=1),
            F.log_softmax(teacher[chosen].to(device, non_blocking=True) / heat, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward((1 - weight) * hard + weight * heat**2 * soft)
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        schedule.step()
    model.eval()
    predict(model, data, data.val, precision=precision)


def race(
    own: Callable[[], None],
    bare: Callable[[], None],
    turns: int,
    device: torch.device,
    now: Callable[[], float],
) -> list[tuple[float, float]]:
    """Return the seconds of both, turn by turn; every other turn, the bare loop is first."""
    seconds = []
    for turn in range(turns + 1):
        taken = {}
        for run in (own, bare) if turn % 2 else (bare, own):
            synchronize(device)
            started = now()
            run()
            synchronize(device)
            taken[run] = now() - started
        seconds.append((taken[own], taken[bare]))
    return seconds[1:]  # without the first, which warms up


if __name__ == "__main__":
    run_command(main)
