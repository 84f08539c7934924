"""Fine-tuning of a pruned model, or training of a dense one: the same loop."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
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

from vit_ratio_opt.data.dataset import ImageData
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.device import (
    Precision,
    autocast,
    is_out_of_memory,
    model_device,
    precision_of,
)
from vit_ratio_opt.training.distributed import Ranks
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.training.progress import SearchProgress, TrainingProgress
from vit_ratio_opt.training.resume import TrainingState

__all__ = ["Mix", "Recipe", "Stopwatch", "TrainingDiverged", "TrainingStopped", "finetune"]

Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Images and labels of a batch to mixed images and labels, or class probabilities."""

_logger = logging.getLogger(f"optuna.{__name__}")
# Reading the loss waits for the device.
_STEPS_BETWEEN_LOOKS = 100


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


class TrainingDiverged(ArithmeticError):
    """The loss is no number any more: another seed or a smaller learning rate may help."""


class TrainingStopped(KeyboardInterrupt):
    """The training was told to stop; where it has a file for its state, the state is in it.

    A KeyboardInterrupt, as Optuna lets those through whatever it was told to catch.
    """


def finetune(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    *,
    teacher: nn.Module | torch.Tensor | None = None,
    mix: Mix | None = None,
    seed: int = 0,
    precision: Precision | None = None,
    state: Path | None = None,
    stop: Callable[[], bool] | None = None,
    ranks: Ranks | None = None,
    identity: Mapping[str, Any] | None = None,
    on_resume: Callable[[], None] | None = None,
    on_epoch: Callable[[int, float, float], None] | None = None,
    stopwatch: Stopwatch | None = None,
    title: str = "fine-tune",
    progress: SearchProgress | bool | None = None,
) -> float:
    """Train ``model`` in place on its device and leave it in evaluation mode.

    The caller's random state is untouched; ``seed`` fixes everything random. A batch that does
    not fit into memory is passed through in halves, or less, with the same gradients.

    Args:
        model: Gives class logits. Weights that are frozen (``requires_grad`` is False) stay as
            they are.
        data: Trains on ``data.train``, validates on ``data.val`` after each epoch.
        recipe: How.
        teacher: The dense model, for distillation; on the same device. Or, where images are
            neither augmented nor mixed, its logits for every image of ``data.train``, see
            :func:`~vit_ratio_opt.training.evaluate.predict`: then it need not run again.
        mix: Applied to the normalised images and the labels of each batch; it may return class
            probabilities for the labels, as torchvision's MixUp and CutMix do.
        seed: Of order, augmentation, mixing and dropout.
        precision: Of forward passes; by default the usual one of the model's device.
        state: A file that is written after each epoch, as far as that is possible. Where it is
            there already, the training goes on from it, to the same weights on the same machine.
            It is left there in the end.
        stop: Asked before each step; when it says so, the state is written, in the middle of the
            epoch, and the training ends.
        ranks: Processes that share each batch of ``recipe.batch_size``, so that their number
            changes nothing but the time (and the augmentation). All of them have to call this;
            rank 0 writes ``state``, and all go on from it.
        identity: What the training is of, as JSON values, such as the pair: a ``state`` of another
            one is refused.
        on_resume: Called once ``state`` was found to be of this training, before it goes on.
        on_epoch: Called in rank 0 with the epoch (from 1), the validation accuracy in per cent and
            the mean training loss; what it raises ends the training.
        stopwatch: Told the seconds of ``train``, ``data`` and ``evaluate``.
        title: Of the progress bar.
        progress: None shows bars in a terminal only; or those of a search, to appear under.

    Returns:
        Validation accuracy in per cent after the last epoch.

    Raises:
        InputError: ``state`` is damaged or of another training; logits do not fit the images; or
            all weights are frozen.
        TrainingDiverged: The loss is no number.
        TrainingStopped: ``stop`` said so.
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
    if recipe.epochs and not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            "All weights of the model are frozen, so there is nothing to train: call "
            "`model.requires_grad_(True)`."
        )
    clock = stopwatch or Stopwatch()
    device = model_device(model)
    precision = precision or precision_of(device)
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
    # Idle unless the GPU lacks bfloat16.
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    generator = torch.Generator().manual_seed(seed)
    # Parts of a batch differ in size, but the order has to be the same in all processes.
    moving = generator if ranks is None else torch.Generator().manual_seed(seed + ranks.rank)
    first_rank = ranks is None or ranks.rank == 0
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scaler": scaler}
    if average is not None:
        parts["average"] = average
    training = {
        "recipe": asdict(recipe),
        "seed": seed,
        "images": len(data.train),
        "validation": data.fingerprint,
        "precision": precision,
        "mix": mix is not None,
        "teacher": teacher is not None,
        **(identity or {}),
    }
    saved = None if state is None else TrainingState(state, training, parts, generator, device)
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        TrainingProgress(
            title, steps, steps_per_epoch, shown=progress if first_rank else False
        ) as bar,
    ):
        torch.manual_seed(seed)  # mixing, dropout and stochastic depth
        beginning = generator.get_state()
        done: dict[str, Any] = {}
        if saved is not None:
            beginning, done = saved.load()
            if done and on_resume is not None:
                on_resume()
        step, accuracy = int(done.get("step", 0)), done.get("accuracy")
        loss_sum = torch.tensor(done.get("loss_sum", 0.0), dtype=torch.float64, device=device)
        bar.skip(step)
        trained = model if ranks is None or step == steps else ranks.wrap(model)
        pieces = 1

        def put_by() -> None:
            so_far = {"step": step, "accuracy": accuracy, "loss_sum": loss_sum.item()}
            if ranks is not None:  # each has its part
                so_far["loss_sum"] = ranks.sum(loss_sum.item())[0] / ranks.size
            if saved is not None and first_rank:
                try:
                    saved.save(beginning, so_far)
                except InputError as error:  # a full disk, say: no reason to lose the training
                    _logger.warning(f"{error} The training goes on, but could not be resumed.")

        def mean_loss() -> float:
            mean = loss_sum.item() / (1 + (step - 1) % steps_per_epoch)
            (mean,) = (mean,) if ranks is None else ranks.sum(mean)
            if not math.isfinite(mean):
                raise TrainingDiverged(f"The loss is {mean} after step {step} of {steps}.")
            return mean

        while step < steps:
            model.train()
            done_before = step % steps_per_epoch  # it was stopped in the middle
            now = generator.get_state()
            generator.set_state(beginning)
            order = torch.randperm(len(data.train), generator=generator)
            if done_before:
                generator.set_state(now)
            wholes = torch.split(order, recipe.batch_size)[done_before:]
            owns = [whole if ranks is None else _own_part(whole, ranks) for whole in wholes]
            batches = data.train.subset(torch.cat(owns)).batches(len(owns[0]))
            for whole, own in zip(wholes, owns, strict=True):
                told = stop is not None and stop()
                if told if ranks is None else ranks.any(told):
                    put_by()
                    raise TrainingStopped(f"stopped after step {step} of {steps}")
                with clock("data"):
                    batch = next(batches)
                    images = batch[0].to(device, non_blocking=True)
                    labels = batch[1].to(device, non_blocking=True)
                    if recipe.augment:
                        images = data.augment(images, moving)
                    images = data.normalise(images)
                    targets = labels
                    if mix is not None:
                        images, targets = mix(images, labels)
                with clock("train"):
                    scheduler.step_update(step)
                    taught = teacher if recipe.distillation else None
                    if isinstance(taught, torch.Tensor):
                        taught = taught[own].to(device, non_blocking=True)
                    # Means over parts of different sizes, averaged over the processes.
                    weight = 1.0 if ranks is None else _weight(whole, ranks)
                    while True:
                        optimizer.zero_grad(set_to_none=True)
                        try:
                            loss, logits = _backward(
                                trained,
                                images,
                                targets,
                                taught,
                                recipe,
                                scaler,
                                weight,
                                pieces,
                                precision,
                            )
                            break
                        except RuntimeError as error:
                            whole_batch = ranks is not None or pieces >= len(images)
                            if whole_batch or not is_out_of_memory(error):
                                raise
                        pieces *= 2
                        _logger.warning(
                            f"A batch of {len(images)} images does not fit into memory: passing "
                            f"it through in {pieces} parts, with the same gradients."
                        )
                        if device.type == "cuda":
                            torch.cuda.empty_cache()
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
                    scaler.step(optimizer)
                    scaler.update()
                    step += 1
                    loss_sum += loss / (1 if ranks is None else ranks.size)
                    if average is not None:
                        average.update(model, step=step)
                if step % _STEPS_BETWEEN_LOOKS == 0:
                    mean_loss()
                if bar.enabled:
                    hits = (logits.argmax(dim=1) == labels).float().mean()
                    bar.advance(step, len(whole), loss.item(), 100 * hits.item())
            mean = mean_loss()
            with clock("evaluate"):
                accuracy = evaluate(
                    average or model, data, data.val, ranks=ranks, precision=precision
                )
            beginning = generator.get_state()
            loss_sum.zero_()
            put_by()
            _report(on_epoch, step // steps_per_epoch, accuracy, mean, ranks)
    model.eval()
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    if accuracy is None:
        with clock("evaluate"):
            accuracy = evaluate(model, data, data.val, ranks=ranks, precision=precision)
    return float(accuracy)


def _own_part(batch: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """This process's positions of a batch; any one, for a step without weight, if it has none."""
    own = ranks.share(batch)
    return own if len(own) else batch[:1]


def _weight(batch: torch.Tensor, ranks: Ranks) -> float:
    return len(ranks.share(batch)) * ranks.size / len(batch)


def _backward(
    model: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    teacher: Any,
    recipe: Recipe,
    scaler: torch.amp.GradScaler,
    weight: float,
    pieces: int,
    precision: Precision,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the batch's gradients, passing it through in ``pieces``; gives its loss and logits."""
    losses, outputs = [], []
    taught = teacher.chunk(pieces) if isinstance(teacher, torch.Tensor) else [teacher] * pieces
    parts = zip(images.chunk(pieces), targets.chunk(pieces), taught, strict=False)
    for part, part_targets, part_taught in parts:
        with autocast(images.device, precision):
            logits = model(part)
            if isinstance(part_taught, nn.Module):
                with torch.no_grad():
                    part_taught = part_taught(part)
            loss = _loss(logits, part_targets, part_taught, recipe)
        loss = loss * (weight * len(part) / len(images))
        torch.autograd.backward(scaler.scale(loss))
        losses.append(loss.detach())
        outputs.append(logits.detach())
    return torch.stack(losses).sum(), torch.cat(outputs)


def _report(
    on_epoch: Callable[[int, float, float], None] | None,
    epoch: int,
    accuracy: float,
    loss: float,
    ranks: Ranks | None,
) -> None:
    """What rank 0's ``on_epoch`` raises ends the training in all processes."""
    if ranks is not None and ranks.rank > 0:
        if not ranks.tell():
            raise TrainingStopped("rank 0 ended the training")
        return
    try:
        if on_epoch is not None:
            on_epoch(epoch, accuracy, loss)
    except BaseException:
        if ranks is not None:
            ranks.tell(False)
        raise
    if ranks is not None:
        ranks.tell(True)


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
