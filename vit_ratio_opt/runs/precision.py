"""Choose the precisions of a new study by timing its dense model."""

from __future__ import annotations

import optuna

from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.precision import faster_precision
from vit_ratio_opt.records.labels import precision_text
from vit_ratio_opt.training.trainer import ImageTrainer

__all__ = ["choose_precisions"]

_logger = optuna.logging.get_logger(f"optuna.{__name__}")


def choose_precisions(trainer: ImageTrainer, dense: ViT, *, evaluation: bool) -> dict[str, float]:
    """Give a trainer the precisions in which a model is trained and evaluated faster.

    Args:
        trainer: Trainer whose caller has given no precision.
        dense: The dense model, on the device of the trainer.
        evaluation: Whether the precision of evaluation may change.

    Returns:
        How many times as fast as in float32 the model is in bfloat16, in ``evaluation`` and
        ``training``; without what was not timed.
    """
    shape, found = trainer.data.image_shape, {}
    if evaluation:
        found["evaluation"] = faster_precision(dense, shape, training=False)
        trainer.precision = found["evaluation"].precision
    if trainer.epochs:
        found["training"] = chosen = faster_precision(dense, shape, training=True)
        is_other = chosen.precision != trainer.precision
        trainer.training_precision = chosen.precision if is_other else None
    timed = {name: one.speedup for name, one in found.items()}
    speedups = {name: round(speedup, 3) for name, speedup in timed.items() if speedup is not None}
    if speedups:
        training = trainer.training_precision or trainer.precision
        _logger.info(precision_text(trainer.precision, training, speedups))
    return speedups
