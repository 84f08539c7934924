"""Train a dense ViT from scratch, to have something to prune.

Without ``--data`` on scikit-learn's digits; with it on a folder of ``train/<class>/*`` and
``test/<class>/*``, or one in which torchvision keeps CIFAR-10, or an empty one, into which it is
downloaded. The images say how many pixels, channels and classes the model has. The folder
``val/<class>/*`` validates where there is one beside these, else a tenth of the training images;
the test split is read once, at the end.

The recipe is that of DeiT (Touvron 2021) for small images: AdamW with a cosine, shifts and
mirroring, MixUp or CutMix in every batch, label smoothing, stochastic depth and an average of the
weights.

Killed, it goes on after the last whole epoch when it is run again.

    python studies/train_dense.py dense.safetensors
    python studies/train_dense.py dense.safetensors --data DIR --embed-dim 192 --depth 9 \
        --num-heads 6 --epochs 200
    python studies/cifar10.py --data DIR --checkpoint dense.safetensors --validation train
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Optional

import torch
import torch.nn.functional as F
import typer
from torchvision.transforms import v2

from vit_ratio_opt.cli.app import (
    ExifRotationOption,
    OutputOption,
    SeedOption,
    SkipDamagedOption,
    check_output,
    make_folder,
    run_command,
)
from vit_ratio_opt.data.dataset import load_digits, load_images
from vit_ratio_opt.data.folders import check_folder
from vit_ratio_opt.data.preprocessing import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    LARGEST_SIDE,
    remember_preprocessing,
)
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.models.device import best_device
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.training.context import Stopwatch, TrialContext
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.training.finetune import Mix, finetune
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.utils.files import write_json

MODEL = "vit_tiny_patch16_224"


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Where the model goes, safetensors.")],
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of the images; scikit-learn's digits without one."),
    ] = None,
    image_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, max=LARGEST_SIDE, help="Pixels; those of the first image by default."),
    ] = None,
    patch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Pixels; by default 2, or 8 x 8 patches or more."),
    ] = None,
    embed_dim: Annotated[int, typer.Option(min=1, help="Width of the stream.")] = 64,
    depth: Annotated[int, typer.Option(min=1, help="Blocks.")] = 4,
    num_heads: Annotated[int, typer.Option(min=1, help="Heads a block.")] = 8,
    mlp_ratio: Annotated[float, typer.Option(min=0.1, help="Hidden neurons a channel.")] = 2.0,
    drop_path: Annotated[
        float, typer.Option(min=0, max=0.9, help="Stochastic depth of the last block.")
    ] = 0.0,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 60,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 128,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    weight_decay: Annotated[float, typer.Option(help="Of weights.")] = 0.05,
    mixup: Annotated[float, typer.Option(min=0, help="MixUp's alpha; 0 for none.")] = 0.2,
    cutmix: Annotated[float, typer.Option(min=0, help="CutMix's alpha; 0 for none.")] = 0.0,
    smoothing: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the labels spread over all classes.")
    ] = 0.1,
    ema: Annotated[
        float, typer.Option(min=0, max=0.99999, help="Decay of the weights' average; 0 for none.")
    ] = 0.99,
    exif_rotation: ExifRotationOption = False,
    skip_damaged: SkipDamagedOption = False,
    seed: SeedOption = 0,
    output: OutputOption = None,
) -> None:
    """Train a dense ViT from scratch and keep it."""
    check_output(output)
    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        warmup=0.1,
        distillation=0.0,
        ema=ema,
        augment=True,
    )
    options = {
        "--image-size": image_size is not None,
        "--exif-rotation": exif_rotation,
        "--skip-damaged": skip_damaged,
    }
    for option, is_given in options.items():
        if data is None and is_given:
            raise InputError(f"`{option}` is for a folder of images: give --data too.")
    if data is not None:
        check_folder(data)
    if checkpoint.parent.is_dir():
        check_output(checkpoint)
    if data is None:
        images = load_digits(seed=seed)
    else:
        images = load_images(
            data,
            image_size=image_size,
            seed=seed,
            mean=CIFAR10_MEAN,
            std=CIFAR10_STD,
            exif_rotation=exif_rotation,
            skip_damaged=skip_damaged,
        )
    channels, height, width = images.image_shape
    if height != width:
        raise InputError(
            f"Images must be square, but are {height} x {width} pixels: give --image-size."
        )
    largest = max(2, height // 8)
    patch = patch_size or max(size for size in range(1, largest + 1) if height % size == 0)
    if height % patch:
        raise InputError(f"`--patch-size` must divide {height}, but got {patch}.")
    arguments: dict[str, Any] = {
        "img_size": height,
        "patch_size": patch,
        "in_chans": channels,
        "num_classes": len(images.classes),
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_ratio": mlp_ratio,
    }
    torch.manual_seed(seed)
    model = create_model(MODEL, **arguments, drop_path_rate=drop_path).to(best_device())
    remember_preprocessing(model, images.preprocess)  # its file will say so
    shape = shape_of(model)
    print(
        f"{images.name}: {len(images.train)} images to train on, {len(images.val)} to validate; "
        f"{shape.macs:,} FLOPs, {shape.params:,} parameters"
    )
    make_folder(checkpoint.parent)
    check_output(checkpoint)
    clock = Stopwatch()
    state = checkpoint.with_name(f"{checkpoint.name}.training")
    if state.exists():
        print(f"going on from {state}")

    def report(epoch: int, accuracy: float, loss: float | None = None, /) -> None:
        print(f"epoch {epoch:3d} of {epochs}: {accuracy:.2f} % on the validation split")

    validated = finetune(
        model,
        images,
        recipe,
        TrialContext(seed=seed, state=state, report=report, clock=clock, title="dense"),
        mix=_mixed(len(images.classes), mixup, cutmix, smoothing),
    )
    save_dense(model, checkpoint, name=MODEL, arguments=arguments)
    state.unlink(missing_ok=True)  # a full disk leaves none
    tested = evaluate(model, images, images.test)
    print(
        f"{checkpoint}: {validated:.2f} % on the validation and {tested:.2f} % on the test split"
    )
    if output is not None:
        write_json(
            {
                "model": MODEL,
                "arguments": arguments,
                "dataset": images.name,
                "recipe": asdict(recipe),
                "drop_path": drop_path,
                "mixup": mixup,
                "cutmix": cutmix,
                "smoothing": smoothing,
                "seed": seed,
                "val_accuracy": validated,
                "test_accuracy": tested,
                "macs": shape.macs,
                "params": shape.params,
                "seconds": round(sum(clock.seconds.values()), 1),
            },
            output,
        )


def _mixed(classes: int, mixup: float, cutmix: float, smoothing: float) -> Mix:
    """MixUp (Zhang 2018) or CutMix (Yun 2019), one of them in each batch, then smooth labels."""
    kinds = [
        kind(alpha=alpha, num_classes=classes)
        for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        if alpha > 0
    ]
    mixing = v2.RandomChoice(kinds) if kinds else None

    def mixed(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if mixing is None:
            targets = F.one_hot(labels, classes).float()
        else:
            images, targets = mixing(images, labels)
        return images, targets * (1 - smoothing) + smoothing / classes

    return mixed


if __name__ == "__main__":
    run_command(main)
