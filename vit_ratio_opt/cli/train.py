"""``vit-ratio-opt train``: train a dense ViT from scratch, to have something to prune."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from vit_ratio_opt.cli.command import Panel, option
from vit_ratio_opt.cli.options import (
    ExifRotationOption,
    ImageSizeOption,
    PrecisionOption,
    SeedOption,
    SkipDamagedOption,
)
from vit_ratio_opt.data.folders import check_folder
from vit_ratio_opt.data.preprocessing import CIFAR10_MEAN, CIFAR10_STD
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.files import check_writable, check_writable_folder, write_json

__all__ = ["TrainOptions", "train"]

_MODEL = "vit_tiny_patch16_224"


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of ``vit-ratio-opt train``."""

    checkpoint: Annotated[
        Path, typer.Argument(help="Safetensors file to which the model is written.")
    ]
    data: Annotated[
        Path | None,
        option(
            Panel.DATA,
            "Folder of the images: train/CLASS/* and test/CLASS/*, or CIFAR-10 as torchvision "
            "stores it. An empty folder receives a download of CIFAR-10. By default "
            "scikit-learn's digits.",
        ),
    ] = None
    image_size: ImageSizeOption = None
    exif_rotation: ExifRotationOption = False
    skip_damaged: SkipDamagedOption = False
    patch_size: Annotated[
        int | None,
        option(
            Panel.MODEL,
            "Side of a patch in pixels. By default the largest that leaves 8 x 8 patches, at "
            "least 2.",
            min=1,
        ),
    ] = None
    embed_dim: Annotated[int, option(Panel.MODEL, "Dimension of the embeddings.", min=1)] = 64
    depth: Annotated[int, option(Panel.MODEL, "Number of blocks.", min=1)] = 4
    num_heads: Annotated[
        int, option(Panel.MODEL, "Number of attention heads in a block.", min=1)
    ] = 8
    mlp_ratio: Annotated[
        float,
        option(Panel.MODEL, "Hidden neurons of the FFN per dimension of the embeddings.", min=0.1),
    ] = 2.0
    drop_path: Annotated[
        float, option(Panel.TRAINING, "Stochastic depth rate of the last block.", min=0, max=0.9)
    ] = 0.0
    epochs: Annotated[
        int, option(Panel.TRAINING, "Number of passes over the training images.", min=1)
    ] = 60
    batch_size: Annotated[
        int, option(Panel.TRAINING, "Number of images in an optimiser step.", min=1)
    ] = 128
    lr: Annotated[float, option(Panel.TRAINING, "Peak learning rate of AdamW.")] = 2e-3
    weight_decay: Annotated[float, option(Panel.TRAINING, "Weight decay of AdamW.")] = 0.05
    mixup: Annotated[
        float, option(Panel.TRAINING, "Alpha of MixUp; 0 switches it off.", min=0)
    ] = 0.2
    cutmix: Annotated[
        float, option(Panel.TRAINING, "Alpha of CutMix; 0 switches it off.", min=0)
    ] = 0.0
    smoothing: Annotated[
        float,
        option(
            Panel.TRAINING,
            "Label smoothing: share of a label given to all classes.",
            min=0,
            max=0.9,
        ),
    ] = 0.1
    ema: Annotated[
        float,
        option(
            Panel.TRAINING,
            "Decay of the moving average of the weights; 0 switches it off.",
            min=0,
            max=0.99999,
        ),
    ] = 0.99
    seed: SeedOption = 0
    precision: PrecisionOption = None
    output: Annotated[
        Path | None, option(Panel.OUTPUT, "File for recipe, accuracy and size as JSON.")
    ] = None


def train(options: TrainOptions) -> None:
    """Train a dense ViT from scratch with the recipe of DeiT for small images of one class each.

    The recipe is AdamW with a cosine schedule, shifts and mirroring, MixUp or CutMix in every
    batch, label smoothing, stochastic depth and a moving average of the weights. The images decide
    the input size, channels and classes of the model. The test split is read once, at the end.
    After an interruption the same command resumes from the last whole epoch.
    """
    recipe = _check(options)
    images = _load_images(options)
    arguments = _model_arguments(options, images)

    from vit_ratio_opt.model_files.save import save_dense
    from vit_ratio_opt.models.shape import shape_of
    from vit_ratio_opt.training.context import Stopwatch, TrialContext
    from vit_ratio_opt.training.evaluate import evaluate
    from vit_ratio_opt.training.finetune import finetune

    model = _new_model(options, arguments, images)
    shape = shape_of(model)
    print(
        f"{images.name}: {len(images.train)} images to train on, {len(images.val)} to validate; "
        f"{shape.macs:,} FLOPs, {shape.params:,} parameters"
    )
    checkpoint, clock = options.checkpoint, Stopwatch()
    check_writable_folder(checkpoint.parent)
    check_writable(checkpoint)
    state = checkpoint.with_name(f"{checkpoint.name}.training")
    if state.exists():
        print(f"resuming from {state}")

    precision = options.precision or _faster(model, images)

    def report(epoch: int, accuracy: float, loss: float | None = None, /) -> None:
        print(f"epoch {epoch:3d} of {options.epochs}: {accuracy:.2f} % on the validation split")

    validated = finetune(
        model,
        images,
        recipe,
        TrialContext(seed=options.seed, state=state, report=report, clock=clock, title="dense"),
        mix=_mix(len(images.classes), options),
        precision=precision,
    )
    save_dense(model, checkpoint, name=_MODEL, arguments=arguments)
    state.unlink(missing_ok=True)  # a full disk leaves none
    tested = evaluate(model, images, images.test, precision=precision)
    print(
        f"{checkpoint}: {validated:.2f} % on the validation and {tested:.2f} % on the test split"
    )
    if options.output is not None:
        numbers = {
            "val_accuracy": validated,
            "test_accuracy": tested,
            "macs": shape.macs,
            "params": shape.params,
            "precision": precision,
            "seconds": round(sum(clock.seconds.values()), 1),
        }
        write_json(_description(options, recipe, arguments, images.name) | numbers, options.output)


def _new_model(options: TrainOptions, arguments: dict[str, Any], images: Any) -> Any:
    """Return an untrained model, on the best device, that knows its preprocessing."""
    import torch

    from vit_ratio_opt.data.preprocessing import remember_preprocessing
    from vit_ratio_opt.models.create import create_model
    from vit_ratio_opt.models.device import best_device

    torch.manual_seed(options.seed)
    model = create_model(_MODEL, **arguments, drop_path_rate=options.drop_path).to(best_device())
    remember_preprocessing(model, images.preprocess)  # stored in the model's file
    return model


def _faster(model: Any, images: Any) -> Any:
    """Return the precision in which the model is trained faster."""
    from vit_ratio_opt.models.precision import faster_precision

    return faster_precision(model, images.image_shape, training=True).precision


def _description(
    options: TrainOptions, recipe: Any, arguments: dict[str, Any], dataset: str
) -> dict[str, Any]:
    """Return what was trained, on what and how."""
    return {
        "model": _MODEL,
        "arguments": arguments,
        "dataset": dataset,
        "recipe": recipe.to_json(),
        "drop_path": options.drop_path,
        "mixup": options.mixup,
        "cutmix": options.cutmix,
        "smoothing": options.smoothing,
        "seed": options.seed,
    }


def _check(options: TrainOptions) -> Any:
    """Return the recipe of the training, after checks that need no images.

    Raises:
        InputError: An option is out of range or needs --data, or an output cannot be written.
    """
    if options.output is not None:
        check_writable(options.output)
    for name in ("image_size", "exif_rotation", "skip_damaged"):
        if options.data is None and getattr(options, name):
            shown = f"--{name.replace('_', '-')}"
            raise InputError(f"`{shown}` is for a folder of images: give --data too.")
    if options.data is not None:
        check_folder(options.data)
    if options.checkpoint.parent.is_dir():
        check_writable(options.checkpoint)

    from vit_ratio_opt.training.recipe import Recipe

    return Recipe(
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        weight_decay=options.weight_decay,
        warmup=0.1,
        distillation=0.0,
        ema=options.ema,
        augment=True,
    )


def _load_images(options: TrainOptions) -> Any:
    """Load the images to train on.

    Raises:
        InputError: They cannot be loaded.
    """
    from vit_ratio_opt.data.digits import load_digits
    from vit_ratio_opt.data.load import load_images
    from vit_ratio_opt.data.options import LoadOptions

    if options.data is None:
        return load_digits(seed=options.seed)
    return load_images(
        options.data,
        image_size=options.image_size,
        seed=options.seed,
        options=LoadOptions(
            mean=CIFAR10_MEAN,
            std=CIFAR10_STD,
            exif_rotation=options.exif_rotation,
            skip_damaged=options.skip_damaged,
        ),
    )


def _model_arguments(options: TrainOptions, images: Any) -> dict[str, Any]:
    """Return timm's arguments for the model.

    Raises:
        InputError: The images are not square, or the patches do not divide them.
    """
    channels, height, width = images.image_shape
    if height != width:
        raise InputError(
            f"Images must be square, but are {height} x {width} pixels: give --image-size."
        )
    largest = max(2, height // 8)
    patch = options.patch_size or max(n for n in range(1, largest + 1) if height % n == 0)
    if height % patch:
        raise InputError(f"`--patch-size` must divide {height}, but got {patch}.")
    return {
        "img_size": height,
        "patch_size": patch,
        "in_chans": channels,
        "num_classes": len(images.classes),
        "embed_dim": options.embed_dim,
        "depth": options.depth,
        "num_heads": options.num_heads,
        "mlp_ratio": options.mlp_ratio,
    }


def _mix(classes: int, options: TrainOptions) -> Callable[..., Any]:
    """Return MixUp (Zhang 2018) or CutMix (Yun 2019), one of them a batch, and smoothing."""
    import torch.nn.functional as F
    from torchvision.transforms import v2

    kinds = [
        kind(alpha=alpha, num_classes=classes)
        for kind, alpha in ((v2.MixUp, options.mixup), (v2.CutMix, options.cutmix))
        if alpha > 0
    ]
    mixing = v2.RandomChoice(kinds) if kinds else None

    def mix(images: Any, labels: Any) -> tuple[Any, Any]:
        if mixing is None:
            targets = F.one_hot(labels, classes).float()
        else:
            images, targets = mixing(images, labels)
        return images, targets * (1 - options.smoothing) + options.smoothing / classes

    return mix
