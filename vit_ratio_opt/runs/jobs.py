"""What rank 0 tells the other ranks of a training, as JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.shape import ViTShape
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.recipe import Recipe

__all__ = ["adopt_job", "job_of"]

# Attributes of a trainer that a study may set.
_OF_TRAINER = ("precision", "training_precision")


def job_of(
    trainer: Any,
    pair: RatioPair,
    context: TrialContext,
    *,
    shape: ViTShape,
    artifact: str | None,
) -> dict[str, Any]:
    """Return the training of a pruned model.

    Args:
        trainer: The trainer of rank 0, which may have values from the study.
        pair: Ratios of the model.
        context: Context of the training in rank 0, of which seed and identity are told.
        shape: Sizes of the model.
        artifact: Artifact of the saved state; None for a training from its beginning.
    """
    recipe = getattr(trainer, "recipe", None)
    return {
        "pair": pair,
        "seed": context.seed,
        "identity": dict(context.identity),
        "blocks": shape.block_sizes,
        "artifact": artifact,
        "lr": recipe.lr if isinstance(recipe, Recipe) else None,
        **{name: getattr(trainer, name, None) for name in _OF_TRAINER},
    }


def adopt_job(trainer: Any, job: Mapping[str, Any]) -> None:
    """Give a trainer what rank 0 has from the study."""
    for name in _OF_TRAINER:
        if job[name] is not None:
            setattr(trainer, name, job[name])
    recipe = getattr(trainer, "recipe", None)
    if job["lr"] is not None and isinstance(recipe, Recipe):
        trainer.recipe = replace(recipe, lr=job["lr"])
