"""Fine-tuning of a pruned model, or training of a dense one: the same loop."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.training.data import ImageData
from vit_ratio_opt.training.evaluate import autocast, evaluate, model_device
from vit_ratio_opt.training.progress import TrainingProgress
from vit_ratio_opt.training.resume import TrainingState

__all__ = ["Mix", "Recipe", "Stopwatch", "finetune"]

Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Images and labels of a batch to mixed images and labels, or class probabilities."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to fine-tune.

    Args:
        epochs: Passes over the training split; 0 leaves the model as it is.
        batch_size: Images a step.
        lr: Peak learning rate of AdamW.
        weight_decay: Of weights; biases, norms and embeddings have none (timm's rule).
        warmup: Share of all steps over which the learning rate rises; then it falls as a cosine.
        clip_norm: Largest gradient norm.
        distillation: Weight of the dense model's soft labels in the loss, in [0, 1]; the rest is
            cross-entropy with the true labels. Used only where a teacher is given.
        temperature: Of the soft labels (Hinton 2015).
        ema: Decay of an exponential moving average of the weights, which is what is evaluated and
            kept; 0 for none. Over the first steps the decay is smaller (timm's warm-up).
        layer_decay: Factor of the learning rate from each block to the one before it, in (0, 1].
        augment: Whether images are shifted and mirrored. That is for training from scratch: in the
            few epochs after pruning it has cost accuracy wherever it was measured.
    """

    epochs: int = 1
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip_norm: float = 1.0
    distillation: float = 0.5
    temperature: float = 2.0
    ema: float = 0.0
    layer_decay: float = 1.0
    augment: bool = False

    def __post_init__(self) -> None:
        rules = {
            "epochs": (self.epochs >= 0, "at least 0"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "lr": (0 < self.lr < math.inf, "above 0"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
            "warmup": (0 <= self.warmup < 1, "in [0, 1)"),
            "clip_norm": (self.clip_norm > 0, "above 0"),
            "distillation": (0 <= self.distillation <= 1, "in [0, 1]"),
            "ema": (0 <= self.ema < 1, "in [0, 1)"),
            "layer_decay": (0 < self.layer_decay <= 1, "in (0, 1]"),
            "temperature": (0 < self.temperature < math.inf, "above 0"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(f"`{name}` must be {rule}, but got {getattr(self, name)!r}.")


class Stopwatch:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time inside the block to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


def finetune(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    *,
    teacher: nn.Module | torch.Tensor | None = None,
    mix: Mix | None = None,
    seed: int = 0,
    state: Path | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
    stopwatch: Stopwatch | None = None,
    title: str = "fine-tune",
    progress: bool | None = None,
) -> float:
    """Train ``model`` in place on its device and leave it in evaluation mode.

    The caller's random state is untouched; ``seed`` fixes everything random.

    Args:
        model: Gives class logits.
        data: Trains on ``data.train``, validates on ``data.val`` after each epoch.
        recipe: How.
        teacher: The dense model, for distillation; on the same device. Or, where images are
            neither augmented nor mixed, its logits for every image of ``data.train``, see
            :func:`~vit_ratio_opt.training.evaluate.predict`: then it need not run again.
        mix: Applied to the normalised images and the labels of each batch; it may return class
            probabilities for the labels, as torchvision's MixUp and CutMix do.
        seed: Of order, augmentation, mixing and dropout.
        state: A file that is written after each epoch. Where it is there already, the training
            goes on from it, to the same weights on the same machine. It is left there in the end.
        on_epoch: Called with the epoch (from 1) and the validation accuracy in per cent; what it
            raises ends the training.
        stopwatch: Told the seconds of ``train``, ``data`` and ``evaluate``.
        title: Of the progress bar.
        progress: None shows the bar in a terminal only.

    Returns:
        Validation accuracy in per cent after the last epoch.

    Raises:
        InputError: ``state`` is damaged, of another training, or cannot be written; or logits do
            not fit the images.
    """
    if isinstance(teacher, torch.Tensor):
        if recipe.augment or mix is not None:
            raise InputError(
                "Logits of a teacher are for images that are neither mixed nor moved."
            )
        if len(teacher) != len(data.train):
            raise InputError(
                f"`teacher` must have logits for {len(data.train)} images, but has {len(teacher)}."
            )
    clock = stopwatch or Stopwatch()
    device = model_device(model)
    steps_per_epoch = math.ceil(len(data.train) / recipe.batch_size)
    steps = recipe.epochs * steps_per_epoch
    optimizer = create_optimizer_v2(
        model,
        opt="adamw",
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        layer_decay=None if recipe.layer_decay == 1 else recipe.layer_decay,
    )
    average = ModelEmaV3(model, decay=recipe.ema, use_warmup=True) if recipe.ema else None
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=max(1, steps),
        warmup_t=round(recipe.warmup * steps),
        warmup_lr_init=recipe.lr / 100,
        lr_min=recipe.lr / 100,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    scaler = torch.amp.GradScaler(  # idle unless the GPU lacks bfloat16
        "cuda", enabled=device.type == "cuda" and not torch.cuda.is_bf16_supported()
    )
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scaler": scaler}
    if average is not None:
        parts["average"] = average
    training = {
        "recipe": asdict(recipe),
        "seed": seed,
        "images": len(data.train),
        "validation": data.fingerprint,
        "mix": mix is not None,
        "teacher": teacher is not None,
    }
    saved = None if state is None else TrainingState(state, training, parts, generator, device)
    accuracy: float | None = None
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        TrainingProgress(title, steps, enabled=progress) as bar,
    ):
        torch.manual_seed(seed)  # mixing, dropout and stochastic depth
        done = {} if saved is None else saved.load()
        step, accuracy = int(done.get("step", 0)), done.get("accuracy")
        for epoch in range(int(done.get("epoch", 0)) + 1, recipe.epochs + 1):
            model.train()
            order = torch.randperm(len(data.train), generator=generator)
            batches = data.train.subset(order).batches(recipe.batch_size)
            for positions in torch.split(order, recipe.batch_size):
                with clock("data"):
                    batch = next(batches)
                    images = batch[0].to(device, non_blocking=True)
                    labels = batch[1].to(device, non_blocking=True)
                    if recipe.augment:
                        images = data.augment(images, generator)
                    images = data.normalise(images)
                    targets = labels
                    if mix is not None:
                        images, targets = mix(images, labels)
                with clock("train"):
                    scheduler.step_update(step)
                    with autocast(device):
                        logits = model(images)
                        if teacher is None or recipe.distillation == 0:
                            taught = None
                        elif isinstance(teacher, torch.Tensor):
                            taught = teacher[positions].to(device, non_blocking=True)
                        else:
                            with torch.no_grad():
                                taught = teacher(images)
                        loss = _loss(logits, targets, taught, recipe)
                    optimizer.zero_grad(set_to_none=True)
                    torch.autograd.backward(scaler.scale(loss))
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
                    scaler.step(optimizer)
                    scaler.update()
                    step += 1
                    if average is not None:
                        average.update(model, step=step)
                if bar.enabled:
                    hits = (logits.argmax(dim=1) == labels).float().mean()
                    bar.advance(len(labels), loss.item(), 100 * hits.item())
            with clock("evaluate"):
                accuracy = evaluate(average or model, data, data.val)
            if saved is not None:
                saved.save(epoch=epoch, step=step, accuracy=accuracy)
            if on_epoch is not None:
                on_epoch(epoch, accuracy)
    model.eval()
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    if accuracy is None:
        with clock("evaluate"):
            accuracy = evaluate(model, data, data.val)
    return accuracy


def _loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    taught: torch.Tensor | None,
    recipe: Recipe,
) -> torch.Tensor:
    """``(1 - a) cross-entropy + a T^2 KL(teacher || student)`` at temperature T (Hinton 2015)."""
    hard = F.cross_entropy(logits, targets)
    if taught is None:
        return hard
    soft_labels = F.log_softmax(taught / recipe.temperature, dim=1)
    student = F.log_softmax(logits / recipe.temperature, dim=1)
    soft = F.kl_div(student, soft_labels, reduction="batchmean", log_target=True)
    soft = soft * recipe.temperature**2
    return (1 - recipe.distillation) * hard + recipe.distillation * soft
