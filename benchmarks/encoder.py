"""How well does an encoder without labels keep its features, against SnapViT and CORP?

Question: at the same sizes, how much k-NN accuracy does each way of pruning lose, before any
training and after a short one that matches the dense encoder's features?

Method: the encoder is a classifier's trunk, ``num_classes=0``; its output is the class token.
Neither labels nor classifier are used by what prunes or trains. Every method sees the same
``--calibration-images`` training images, which a seed draws, and removes as much at each point:

- ``ours``: factorised heads, elimination of neurons, repair, allocated across blocks.
- ``snapvit``: whole heads and neurons by one ranking, see ``encoder_peers.py``.
- ``snapvit-gradients``: the same without the evolution, which is stronger here.
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
images. Runtime on one core: half a minute a row, a minute with training, and five minutes a
seed for SnapViT's ranking.
"""

from __future__ import annotations

import json
import time
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
from recording import (
    DataOption,
    DenseOption,
    Results,
    SeedsOption,
    ShowOption,
    ThreadsOption,
)
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
from vit_ratio_opt.training.matching import MatchingLoss, Reference
from vit_ratio_opt.training.probes import neighbour_votes

RESULTS = Path(__file__).parent / "results" / "encoder.json"
METHODS = ("ours", "snapvit", "snapvit-gradients", "corp")
POINTS = ((0.15, 0.0), (0.25, 0.1), (0.35, 0.2), (0.45, 0.3))  # of neurons and of heads
BATCH, LR = 64, 1e-4
KEYS = ("steps", "seed", "mlp", "heads", "method")


def main(
    checkpoint: DenseOption = None,
    data: DataOption = None,
    bank_images: Annotated[
        int, typer.Option(min=1, help="Training images to find neighbours in.")
    ] = 5000,
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
    encoder = Encoder(checkpoint, data, bank_images, test_images, calibration_images)
    head = {
        "benchmark": "encoder",
        "checkpoint": checkpoint.name,
        "bank_images": bank_images,
        "test_images": test_images,
        "calibration_images": calibration_images,
        "dense_accuracy": _percent(encoder.correct),
        "dense_macs": encoder.shape.macs,
        "dense_params": encoder.shape.params,
        "dense_correct": _packed(encoder.correct),
        "threads": threads,
        "versions": {package: version(package) for package in ("torch", "timm", "cmaes")},
    }
    results = Results(RESULTS, KEYS, header=head)
    for count, seed, point, name in product(steps or (0, 25), range(seeds), POINTS, methods):
        if results.has(**dict(zip(KEYS, (count, seed, *point, name), strict=True))):
            continue
        row = encoder.row(count, seed, point, name)
        results.add(row, seconds=row["seconds"])
        print(
            f"{count} steps  seed {seed}  {point}  {name:17s}  {row['accuracy']:.2f} %  "
            f"cosine {row['cosine']:.4f}  {row['seconds']:.0f} s",
            flush=True,
        )
    _show({**head, "rows": results.rows})


class Encoder:
    """The dense encoder with its images, and what each method measured of it, by seed."""

    def __init__(
        self, checkpoint: Path, data: Path, bank_images: int, test_images: int, calibration: int
    ) -> None:
        self.dense: Any = load_dense(checkpoint).eval()
        self.dense.reset_classifier(0)
        self.shape = shape_of(self.dense)
        self.images = load_images(data, preprocess=preprocess_of(self.dense))
        self.reference = Reference(self.dense, self.images)
        self.bank, self.bank_labels = _drawn(self.images, self.images.train, bank_images, 0)
        self.test, self.labels = _drawn(self.images, self.images.test, test_images, 0)
        self.calibration_images = calibration
        self.prepared: dict[tuple[str, int], Any] = {}
        self.correct, self.features = self.measure(self.dense)

    def measure(self, model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which test images' neighbours vote for their class, and their features."""
        features = _features(model, self.test)
        voted = neighbour_votes(features, _features(model, self.bank), self.bank_labels)
        return voted == self.labels, features

    def row(
        self, steps: int, seed: int, point: tuple[float, float], method: str
    ) -> dict[str, Any]:
        """Prune, match the dense features for some steps, and return what was measured."""
        started = time.perf_counter()
        if (method, seed) not in self.prepared:
            self.prepared[method, seed] = self._prepare(method, seed)
        ready = time.perf_counter()
        model = self._prune(method, point, self.prepared[method, seed])
        cut = time.perf_counter()
        if steps:
            given = _drawn(self.images, self.images.train, steps * BATCH, seed + 1000)[0]
            _match(model, self.reference, given)
        trained = time.perf_counter()
        correct, features = self.measure(model)
        return {
            **dict(zip(KEYS, (steps, seed, *point, method), strict=True)),
            "accuracy": _percent(correct),
            "cosine": round(float(F.cosine_similarity(features, self.features).mean()), 5),
            "macs": _macs(model, self.test[:1]),
            "params": sum(parameter.numel() for parameter in model.parameters()),
            "prepare_seconds": round(ready - started, 1),
            "prune_seconds": round(cut - ready, 1),
            "match_seconds": round(trained - cut, 1),
            "seconds": round(time.perf_counter() - started, 1),
            "correct": _packed(correct),
        }

    def _prepare(self, method: str, seed: int) -> Any:
        """Return what a method measures of the dense encoder once, for all sizes."""
        images, _ = _drawn(self.images, self.images.train, self.calibration_images, seed + 1)
        if method == "corp":
            return corp_statistics(self.dense, images)
        if method != "ours":
            return snapvit_scores(self.dense, images, seed=seed, evolve=method == "snapvit")
        options = CalibrationOptions(images=self.calibration_images)
        batches = list(torch.split(images, 128))
        pruner = ModelPruner(self.dense, batches, calibration=options, seed=seed)
        _ = pruner.calibration  # it is computed when it is first asked for
        return pruner

    def _prune(self, method: str, point: tuple[float, float], prepared: Any) -> Any:
        heads, neurons = round(point[1] * self.shape.heads), round(point[0] * self.shape.neurons)
        if method == "ours":
            return prepared.prune((heads / self.shape.heads, neurons / self.shape.neurons))
        if method != "corp":
            return snapvit(self.dense, prepared, heads, neurons)
        dims = heads * self.shape.attention_dims // self.shape.heads
        ranks = 2 * dims // self.shape.blocks[0].num_heads
        return corp(self.dense, prepared, ranks, neurons)


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


def _match(model: Any, reference: Reference, images: torch.Tensor) -> None:
    """Train a pruned encoder to give the dense one's tokens and output, in place, one epoch."""
    steps = torch.split(images, BATCH)
    matching = MatchingLoss(model, reference)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, total_steps=len(steps), pct_start=0.1
    )
    model.train()
    for batch in steps:
        loss, _ = matching.of_batch(model, batch, torch.empty(0), reference.model)
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


def _show(results: dict[str, Any]) -> None:
    """Print points of k-NN accuracy lost, and ours against half of SnapViT's and all of CORP's.

    Beside the points is the mean cosine to the dense features. A difference is paired by image and
    averaged over the seeds that all methods shown have; its interval, 95 %, is that over the test
    images. SnapViT's loss is that of its better variant at the point.
    """
    count, rows = results["test_images"], results["rows"]
    dense = _unpacked(results["dense_correct"], count)
    print(
        f"\nk-NN accuracy of the dense encoder: {results['dense_accuracy']:.2f} % of {count} test "
        f"images, {results['bank_images']} images in the bank\n\n"
        f"| FFN, heads | steps | FLOPs | {' | '.join(METHODS)} | ours - SnapViT / 2 | ours - CORP "
        f"| seeds |\n|{' --- |' * 10}"
    )
    for steps, point in product(sorted({row["steps"] for row in rows}), POINTS):
        here = [row for row in rows if (row["steps"], row["mlp"], row["heads"]) == (steps, *point)]
        lost, cosines = {}, {}
        present = [method for method in METHODS if any(row["method"] == method for row in here)]
        shared = set.intersection(
            *({row["seed"] for row in here if row["method"] == method} for method in present)
        )
        for method in present if shared else ():
            own = [row for row in here if row["method"] == method and row["seed"] in shared]
            found = torch.stack([_unpacked(row["correct"], count) for row in own])
            lost[method] = dense - found.mean(dim=0)
            cosines[method] = mean(row["cosine"] for row in own)
        snaps = [method for method in METHODS[1:3] if method in lost]
        if not snaps or not {"ours", "corp"} <= lost.keys():
            continue
        snap = min(snaps, key=lambda method: float(lost[method].mean()))
        cells = [
            f"{100 * float(lost[name].mean()):.2f} ({cosines[name]:.4f})" if name in lost else "-"
            for name in METHODS
        ]
        cells += [
            _interval(lost["ours"] - lost[snap] / 2),
            _interval(lost["ours"] - lost["corp"]),
        ]
        share = mean(row["macs"] for row in here) / results["dense_macs"]
        print(
            f"| {point[0]}, {point[1]} | {steps} | {share:.3f} | {' | '.join(cells)} "
            f"| {len(shared)} |"
        )


def _interval(differences: torch.Tensor) -> str:
    """Return mean and 95 % interval of differences by image, in points."""
    half = 1.96 * float(differences.std()) / len(differences) ** 0.5
    centre = float(differences.mean())
    return f"{100 * centre:+.2f} ({100 * (centre - half):+.2f} to {100 * (centre + half):+.2f})"


if __name__ == "__main__":
    run_command(main)
