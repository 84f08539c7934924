"""Train a dense ViT for CIFAR-10 from scratch, on one GPU within minutes; see ``gpu.py``.

Method: timm's plain ViT, 256 wide, 9 blocks, patches of 4 pixels, the mean of all tokens. Images
live on the device as uint8 and are augmented there, the model is compiled and computes in
bfloat16. It begins with positions as sines (Beyer 2022) and attention as trained ViTs have it
(Trockman 2023). The recipe is DeiT's (Touvron 2021) with a cosine over the *time* that is given,
so that it ends when the time does, on any device. A tenth of the training images validate, and
choose nothing; the average of the weights is what is kept; the test split is read once.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from augment import augment
from timm.layers import build_sincos2d_pos_embed
from timm.optim import create_optimizer_v2
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torchvision.transforms import v2

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.preprocessing import Preprocessing, remember_preprocessing
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.models.device import autocast, best_device
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.training.context import TrainingDiverged
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.training.finetune import Mix
from vit_ratio_opt.training.saved_state import TrainingState

MODEL = "vit_tiny_patch16_224"
SECONDS_PER_STATE = 30
EPOCHS_PER_LINE = 10
SHARE_FOR_EVALUATION = 0.03  # of the time that is left after compiling


@dataclass(frozen=True)
class Training:
    """A model and how it is trained from scratch.

    Args:
        model: timm's arguments.
        batch_size: Images a step.
        lr: Peak learning rate.
        weight_decay: Of weights; biases, norms and positions have none.
        betas: Of AdamW.
        warmup: Share of the time over which the learning rate rises.
        clip_norm: Largest gradient norm.
        smoothing: Share of the labels spread over all classes.
        mixup: MixUp's alpha (Zhang 2018); it or CutMix changes every batch.
        cutmix: CutMix's alpha (Yun 2019).
        mixed_until: Share of the time after which batches are mixed no more (He 2019).
        drop_path: Stochastic depth of the last block.
        ema: Decay of the weights' average.
    """

    model: dict[str, Any] = field(
        default_factory=lambda: {"embed_dim": 256, "depth": 9, "num_heads": 8, "mlp_ratio": 3.0}
    )
    batch_size: int = 2048
    lr: float = 2.5e-3
    weight_decay: float = 0.15
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: float = 0.05
    clip_norm: float = 1.0
    smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    mixed_until: float = 0.9
    drop_path: float = 0.1
    ema: float = 0.999

    def lr_at(self, progress: float) -> float:
        """Return the learning rate after this share of the time."""
        cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
        return self.lr * min(cosine, progress / self.warmup)


REHEARSAL = Training(
    model={"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}, batch_size=64
)


def train_dense(
    images: ImageData,
    training: Training,
    out: Path,
    deadline: float,
    *,
    compiles: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a dense ViT until the deadline, and save it in bfloat16.

    Args:
        images: Square images.
        training: The model and its recipe.
        out: Folder for ``dense.safetensors`` and, until the end, the state of the training.
        deadline: Value of ``time.perf_counter()`` at which the call should end, in seconds.
        compiles: Whether the model is compiled.
        seed: Random seed for weights, order, augmentation and mixing.

    Returns:
        The model's arguments, the recipe, the costs and the accuracies in per cent.

    Raises:
        InputError: No time is left to train in, or the state is of another training.
        TrainingDiverged: The loss is not finite.
    """
    device, classes = best_device(), len(images.classes)
    torch.manual_seed(seed)
    channels, size, _ = images.image_shape
    arguments = {
        **{"img_size": size, "patch_size": 4, "in_chans": channels, "num_classes": classes},
        **{"class_token": False, "global_pool": "avg"},
        **training.model,
    }
    model = create_model(MODEL, **arguments, drop_path_rate=training.drop_path)
    initialise(model)
    remember_preprocessing(model, Preprocessing(images.mean, images.std, (size, size)))
    shape = shape_of(model)
    model.to(device).train()
    optimizer = create_optimizer_v2(
        model,
        opt="adamw",
        lr=training.lr,
        weight_decay=training.weight_decay,
        betas=training.betas,
        fused=True,
    )
    average = ModelEmaV3(model, decay=training.ema, use_warmup=True)
    print(
        f"{images.name}: {len(images.train)} images to train on, {len(images.val)} to validate; "
        f"{shape.macs:,} FLOPs, {shape.params:,} parameters",
        flush=True,
    )
    batch_size = min(training.batch_size, len(images.train))
    batches = augmented(images, batch_size, device)
    mix = mixing(training, classes)
    forward = forward_of(model, *mix(*next(batches)), compiles=compiles)
    about = {**asdict(training), "seed": seed, "split": images.training_fingerprint}
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "average": average}
    generator = torch.Generator()  # unused: all is drawn from the device's own
    state = TrainingState(out / "dense.training", about, parts, generator, device)
    done = state.load()[1]
    begun, step, spent = done.get("progress", 0.0), done.get("step", 0), done.get("seconds", 0.0)
    started = saved = time.perf_counter()
    seconds = (deadline - started) * (1 - SHARE_FOR_EVALUATION)
    if seconds <= 0:
        raise InputError("Loading and compiling took all the time: give more --minutes.")
    if begun:
        print(f"resumed {state.path} after {begun:.0%} of the training", flush=True)
    progress, first_step = begun, step
    losses = torch.zeros((), device=device)

    def save() -> None:
        now = {
            "progress": progress,
            "step": step,
            "seconds": spent + time.perf_counter() - started,
        }
        state.save(generator.get_state(), now)
        save_half(average.module, out / "dense.safetensors", arguments)

    steps_per_epoch = len(images.train) // batch_size
    steps_per_line = EPOCHS_PER_LINE * steps_per_epoch
    while progress < 1:
        pixels, labels = next(batches)
        if progress < training.mixed_until:
            pixels, targets = mix(pixels, labels)
        else:
            targets = F.one_hot(labels, classes).float()
        for group in optimizer.param_groups:
            group["lr"] = training.lr_at(progress)
        loss = loss_of(forward, pixels, targets, training.smoothing)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
        optimizer.step()
        step += 1
        average.update(model, step=step)
        losses += loss.detach()
        now = time.perf_counter()
        progress = begun + (1 - begun) * (now - started) / seconds
        if step % steps_per_line == 0:
            mean = losses.item() / min(steps_per_line, step - first_step)  # waits for the device
            losses.zero_()
            if not math.isfinite(mean):
                raise TrainingDiverged(f"The loss is {mean} after step {step}.")
            images_per_second = (step - first_step) * batch_size / (time.perf_counter() - started)
            print(
                f"epoch {step // steps_per_epoch:4d}, {progress:4.0%}: loss {mean:.4f}, "
                f"{evaluate(average.module, images, images.val):.2f} % on the validation split, "
                f"{images_per_second:,.0f} images/s",
                flush=True,
            )
        if now - saved > SECONDS_PER_STATE:
            save()
            saved = now
    save()
    spent += time.perf_counter() - started
    file = out / "dense.safetensors"
    read = load_dense(file).eval().to(device)
    accuracies = {
        f"{split}_accuracy{suffix}": evaluate(candidate, images, part, precision="float32")
        for suffix, candidate in (("", average.module), ("_of_file", read))
        for split, part in (("val", images.val), ("test", images.test))
    }
    state.path.unlink()
    return {
        "model": MODEL,
        "arguments": arguments,
        "recipe": asdict(training),
        "compiled": forward is not model,
        "seconds": round(spent, 1),
        "epochs": round(step / steps_per_epoch, 1),
        "images_per_second": round(step * batch_size / spent),
        **accuracies,
        "macs": shape.macs,
        "params": shape.params,
        "file_bytes": file.stat().st_size,
    }


def initialise(model: ViT) -> None:
    """Begin where trained ViTs end: positions as sines, heads that look at similar tokens.

    Trockman 2023 ("Mimetic Initialization of Self-Attention Layers"): of every head, queries times
    keys are 0.7 (noise + identity), and values times projection are 0.4 (noise - identity).
    """
    width = model.embed_dim
    positions = build_sincos2d_pos_embed(list(model.patch_embed.grid_size), width)
    identity = torch.eye(width)
    with torch.no_grad():
        model.pos_embed.copy_(positions)
        for block in model.blocks:
            query, key, value = block.attn.qkv.weight.chunk(3)
            heads = block.attn.num_heads
            for queries, keys in zip(query.chunk(heads), key.chunk(heads), strict=True):
                left, right = factors(0.7 * (noise_matrix(width) + identity), len(keys))
                queries.copy_(left.T)
                keys.copy_(right)
            left, right = factors(0.4 * (noise_matrix(width) - identity), width)
            value.copy_(left.T)
            block.attn.proj.weight.copy_(right.T)


def noise_matrix(width: int) -> torch.Tensor:
    """Return a random matrix ``(width, width)`` that keeps the length of vectors."""
    return torch.randn(width, width) / math.sqrt(width)


def factors(product: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best ``(n, rank)`` and ``(rank, n)`` with this product, equally large."""
    left, scale, right = torch.linalg.svd(product)
    root = scale[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def augmented(
    images: ImageData, batch_size: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield augmented training images and labels, epoch after epoch, whole batches only."""
    pixels, labels = (part.to(device) for part in next(images.train.batches(len(images.train))))
    mean = torch.tensor(images.mean, device=device).view(-1, 1, 1)
    std = torch.tensor(images.std, device=device).view(-1, 1, 1)
    while True:
        order = torch.randperm(len(labels), device=device)
        whole = order[: len(order) // batch_size * batch_size]
        for batch in torch.split(whole, batch_size):
            yield augment(pixels[batch], mean, std, flip=images.flip), labels[batch]


def mixing(training: Training, classes: int) -> Mix:
    """Return MixUp or CutMix, one of them for each batch."""
    mix: Mix = v2.RandomChoice(
        [
            v2.MixUp(alpha=training.mixup, num_classes=classes),
            v2.CutMix(alpha=training.cutmix, num_classes=classes),
        ]
    )
    return mix


def forward_of(
    model: ViT, pixels: torch.Tensor, targets: torch.Tensor, *, compiles: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the compiled model after one step without effect, or the model where that fails."""
    if not compiles:
        return model
    started = time.perf_counter()
    compiled = torch.compile(model)
    try:
        torch.autograd.backward(loss_of(compiled, pixels, targets, 0.0))
    except Exception as error:  # a compiler fails in many ways, and the model runs without
        print(f"not compiled: {type(error).__name__}: {str(error)[:500]}", flush=True)
        compiled = model
    model.zero_grad(set_to_none=True)
    print(f"compiled in {time.perf_counter() - started:.0f} s", flush=True)
    return compiled


def loss_of(
    forward: Callable[[torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    targets: torch.Tensor,
    smoothing: float,
) -> torch.Tensor:
    """Return the cross-entropy of a batch, from a forward pass in the device's precision."""
    with autocast(pixels.device):
        logits = forward(pixels)
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)


def save_half(model: ViT, path: Path, arguments: dict[str, Any]) -> None:
    """Save the model in bfloat16; ``load_dense`` gives float32 weights again."""
    half = copy.deepcopy(model).to("cpu", torch.bfloat16)
    save_dense(half, path, name=MODEL, arguments=arguments)
