"""How well does an encoder without labels keep its features, against SnapViT and CORP?

Question: at the same sizes, how much k-NN accuracy does each way of pruning lose, before any
training and after a short one that matches the dense encoder's features?

Method: the encoder is a classifier's trunk, ``num_classes=0``; its output is the class token.
Neither labels nor classifier are used by what prunes or trains. Every method sees the same
``--calibration-images`` training images, which a seed draws, and removes as much at each point:

- ``ours``: factorised heads, elimination of neurons, repair, allocated across blocks.
- ``snapvit``: whole heads and neurons by one ranking, see ``encoder_peers.py``.
- ``corp``: neurons, and twice as many dimensions of queries and keys, because they save half as
  much as ranks of whole heads; both repaired in closed form, see ``encoder_peers.py``.

The heads of a point are rounded to whole ones of all blocks together: (0.25, 0.1) removes 5 of 48.
k-NN accuracy is DINO's (Caron 2021): cosine, the 20 nearest of a bank of training images, weights
``exp(similarity / 0.07)``, on test images; the seed of bank and test images is always 0. Matching
minimises 1 - cosine plus smooth L1 of all tokens and of the output, normalised by channel.

Rows are written as they come: run the same command again and it goes on where it stopped.

    python benchmarks/encoder.py --data DIR --checkpoint FILE
    python benchmarks/encoder.py --data DIR --checkpoint FILE --steps 0
    python benchmarks/encoder.py --show

Output: ``results/encoder.json``, one row a line, and a table with paired differences over the test
images. Runtime on one core: a minute a row without training, two with it, and 10 minutes a seed
for SnapViT's evolution.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Optional

import torch
import torch.nn.functional as F
import typer
from command_line import run_command
from encoder_peers import corp, corp_statistics, snapvit, snapvit_scores
from recording import DataOption, DenseOption, SeedsOption, ShowOption, ThreadsOption, rows_so_far
from torch import nn

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.load import load_images
from vit_ratio_opt.data.preprocessing import preprocess_of
from vit_ratio_opt.data.splits import Split
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.options import CalibrationOptions
from vit_ratio_opt.pruning.pruner import ModelPruner
from vit_ratio_opt.utils.files import write_text

RESULTS = Path(__file__).parent / "results" / "encoder.json"
METHODS = ("ours", "snapvit", "corp")
POINTS = ((0.15, 0.0), (0.25, 0.1), (0.35, 0.2), (0.45, 0.3))  # of neurons and of heads
NEIGHBOURS, TEMPERATURE = 20, 0.07
BATCH, LR = 64, 3e-4


def main(
    checkpoint: DenseOption = None,
    data: DataOption = None,
    bank_images: Annotated[int, typer.Option(min=NEIGHBOURS, help="Neighbours to be.")] = 5000,
    test_images: Annotated[int, typer.Option(min=1)] = 5000,
    calibration_images: Annotated[int, typer.Option(min=1)] = 512,
    steps: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(
            help=f"Of matching, {BATCH} images each; may be repeated.", show_default="0 25"
        ),
    ] = None,
    method: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Only this one; may be repeated."),
    ] = None,
    seeds: SeedsOption = 3,
    threads: ThreadsOption = 1,
    show: ShowOption = False,
) -> None:
    """Prune, match, measure, or go on with it, and print the table."""
    if show:
        _show(json.loads(RESULTS.read_text()))
        return
    if checkpoint is None or data is None:
        raise InputError("Give --data and --checkpoint, or use --show.")
    methods = method or list(METHODS)
    unknown = sorted(set(methods) - set(METHODS))
    if unknown:
        raise InputError(f"`--method` must be one of {list(METHODS)}, not {unknown}.")
    torch.set_num_threads(threads)
    dense: Any = load_dense(checkpoint).eval()
    dense.reset_classifier(0)
    images = load_images(data, preprocess=preprocess_of(dense))
    bank, bank_labels = _drawn(images, images.train, bank_images, 0)
    test, labels = _drawn(images, images.test, test_images, 0)

    def measure(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        features = _features(model, test)
        return _neighbours(features, _features(model, bank), bank_labels) == labels, features

    @cache
    def calibration(seed: int) -> torch.Tensor:
        return _drawn(images, images.train, calibration_images, seed + 1)[0]

    @cache
    def prepared(method: str, seed: int) -> Any:
        if method == "ours":
            options = CalibrationOptions(images=calibration_images)
            batches = list(torch.split(calibration(seed), 128))
            return ModelPruner(dense, batches, calibration=options, seed=seed)
        if method == "corp":
            return corp_statistics(dense, calibration(seed))
        return snapvit_scores(dense, calibration(seed), seed=seed)

    def pruned(method: str, point: tuple[float, float], seed: int) -> Any:
        made, sizes = prepared(method, seed), shape_of(dense)
        heads, neurons = round(point[1] * sizes.heads), round(point[0] * sizes.neurons)
        if method == "ours":
            return made.prune((heads / sizes.heads, neurons / sizes.neurons))
        if method == "snapvit":
            return snapvit(dense, made, heads, neurons)
        dims = heads * sizes.attention_dims // sizes.heads
        return corp(dense, made, 2 * dims // sizes.blocks[0].num_heads, neurons)

    correct, features = measure(dense)
    head = {
        "benchmark": "encoder",
        "checkpoint": checkpoint.name,
        "bank_images": bank_images,
        "test_images": test_images,
        "calibration_images": calibration_images,
        "dense_accuracy": _percent(correct),
        "dense_macs": shape_of(dense).macs,
        "dense_params": shape_of(dense).params,
        "dense_correct": _packed(correct),
        "threads": threads,
        "versions": {package: version(package) for package in ("torch", "timm", "cmaes")},
    }
    rows = rows_so_far(RESULTS, head)
    keys = ("steps", "seed", "mlp", "heads", "method")
    done = {tuple(row[key] for key in keys) for row in rows}
    for count, seed, point, name in product(steps or (0, 25), range(seeds), POINTS, methods):
        if (count, seed, *point, name) in done:
            continue
        started = time.perf_counter()
        prepared(name, seed)
        ready = time.perf_counter()
        model = pruned(name, point, seed)
        cut = time.perf_counter()
        if count:
            given = _drawn(images, images.train, count * BATCH, seed + 1000)[0]
            _match(model, dense, given)
        trained = time.perf_counter()
        correct, found = measure(model)
        row = {
            **dict(zip(keys, (count, seed, *point, name), strict=True)),
            "accuracy": _percent(correct),
            "cosine": round(float(F.cosine_similarity(found, features).mean()), 5),
            "macs": _macs(model, test[:1]),
            "params": sum(parameter.numel() for parameter in model.parameters()),
            "prepare_seconds": round(ready - started, 1),
            "prune_seconds": round(cut - ready, 1),
            "match_seconds": round(trained - cut, 1),
            "seconds": round(time.perf_counter() - started, 1),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": _commit(),
            "command": " ".join(["python", "benchmarks/encoder.py", *sys.argv[1:]]),
            "correct": _packed(correct),
        }
        rows.append(row)
        lines = ",\n".join(json.dumps(one) for one in rows)
        write_text(json.dumps({**head, "rows": []})[:-2] + f"\n{lines}\n]}}\n", RESULTS)
        print(
            f"{count} steps  seed {seed}  {point}  {name:8s}  {row['accuracy']:.2f} %  "
            f"cosine {row['cosine']:.4f}  {row['seconds']:.0f} s",
            flush=True,
        )
    _show({**head, "rows": rows})


def _drawn(
    data: ImageData, split: Split, count: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised images and labels that a seed draws from a split."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    drawn = list(data.batches(split.subset(order[:count]), 1000, torch.device("cpu")))
    return torch.cat([images for images, _ in drawn]), torch.cat([labels for _, labels in drawn])


def _features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the features ``(images, dim)`` of length 1."""
    model.eval()
    with torch.inference_mode():
        parts = [model(part) for part in torch.split(images, 128)]
    return F.normalize(torch.cat(parts), dim=1)


def _neighbours(features: torch.Tensor, bank: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the class that the nearest neighbours of each image vote for."""
    near, places = (features @ bank.mT).topk(NEIGHBOURS, dim=1)
    votes = torch.zeros(len(features), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[places], (near / TEMPERATURE).exp())
    return votes.argmax(dim=1)


def _match(model: Any, dense: Any, images: torch.Tensor) -> None:
    """Train a pruned encoder to give the dense one's tokens and output, in place, one epoch."""

    def outputs(encoder: Any, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = encoder.forward_features(batch)
        return tokens, encoder.forward_head(tokens)

    steps = torch.split(images, BATCH)
    with torch.no_grad():
        scales = [
            (part.flatten(0, -2).mean(dim=0), part.flatten(0, -2).std(dim=0))
            for part in outputs(dense, images[: 4 * BATCH])
        ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, total_steps=len(steps), pct_start=0.1
    )
    model.train()
    for batch in steps:
        with torch.no_grad():
            wanted = outputs(dense, batch)
        loss = torch.zeros(())
        for got, aim, (middle, spread) in zip(outputs(model, batch), wanted, scales, strict=True):
            seen, target = (got - middle) / spread, (aim - middle) / spread
            loss = loss + 1 - F.cosine_similarity(seen, target, dim=-1).mean()
            loss = loss + F.smooth_l1_loss(seen, target)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _macs(model: Any, image: torch.Tensor) -> int:
    """Return the MACs of all matrix products of one image, counted while it passes through.

    Every method is counted alike, CORP's attention too, which :func:`shape_of` does not know.
    """
    counted = 0

    def on_linear(layer: nn.Linear, args: Any, output: torch.Tensor) -> None:
        nonlocal counted
        counted += output.numel() * layer.in_features

    def on_patches(layer: nn.Conv2d, args: Any, output: torch.Tensor) -> None:
        nonlocal counted
        counted += output.numel() * layer.weight[0].numel()

    def on_attention(attn: Any, args: Any, output: torch.Tensor) -> None:
        nonlocal counted
        tokens, values = output.shape[1], attn.proj.in_features
        keys = attn.qk.out_features // 2 if hasattr(attn, "qk") else values
        counted += tokens**2 * (keys + values)

    hooks = [
        layer.register_forward_hook(on_linear)
        for layer in model.modules()
        if type(layer) is nn.Linear
    ]
    hooks += [block.attn.register_forward_hook(on_attention) for block in model.blocks]
    hooks.append(model.patch_embed.proj.register_forward_hook(on_patches))
    with torch.inference_mode():
        model(image)
    for hook in hooks:
        hook.remove()
    return counted


def _percent(correct: torch.Tensor) -> float:
    return round(100 * float(correct.float().mean()), 3)


def _packed(correct: torch.Tensor) -> str:
    """Return a bit for each image, as hexadecimal digits."""
    return f"{int(''.join('01'[int(one)] for one in correct), 2):x}"


def _unpacked(packed: str, images: int) -> torch.Tensor:
    return torch.tensor([float(one) for one in f"{int(packed, 16):0{images}b}"])


def _commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    ).stdout.strip()


def _show(results: dict[str, Any]) -> None:
    """Print points of k-NN accuracy lost, and ours against half of SnapViT's and all of CORP's.

    A difference is paired by image and averaged over the seeds that both have; its interval, 95 %,
    is that over the test images.
    """
    count = results["test_images"]
    dense = _unpacked(results["dense_correct"], count)
    print(
        f"\nk-NN accuracy of the dense encoder: {results['dense_accuracy']:.2f} % of {count} test "
        f"images, {results['bank_images']} images in the bank\n\n"
        "| FFN, heads | steps | FLOPs | ours | SnapViT | CORP | ours - SnapViT / 2 | ours - CORP "
        f"| seeds |\n|{' --- |' * 9}"
    )
    for steps, point in product(sorted({row["steps"] for row in results["rows"]}), POINTS):
        lost: dict[str, dict[int, torch.Tensor]] = {method: {} for method in METHODS}
        shares = []
        for row in results["rows"]:
            if (row["steps"], row["mlp"], row["heads"]) == (steps, *point):
                lost[row["method"]][row["seed"]] = dense - _unpacked(row["correct"], count)
                shares.append(row["macs"] / results["dense_macs"])
        shared = sorted(set.intersection(*(set(by_seed) for by_seed in lost.values())))
        if not shared:
            continue
        means = {
            method: torch.stack([by_seed[seed] for seed in shared]).mean(dim=0)
            for method, by_seed in lost.items()
        }
        cells = [f"{100 * float(means[method].mean()):.2f}" for method in METHODS]
        cells += [
            _interval(means["ours"] - means["snapvit"] / 2),
            _interval(means["ours"] - means["corp"]),
        ]
        print(
            f"| {point[0]}, {point[1]} | {steps} | {mean(shares):.3f} | {' | '.join(cells)} "
            f"| {len(shared)} |"
        )


def _interval(differences: torch.Tensor) -> str:
    """Return mean and 95 % interval of differences by image, in points."""
    half = 1.96 * float(differences.std()) / len(differences) ** 0.5
    centre = float(differences.mean())
    return f"{100 * centre:+.2f} ({100 * (centre - half):+.2f} to {100 * (centre + half):+.2f})"


if __name__ == "__main__":
    run_command(main)
