"""Train the final model, test it once, and write it with its card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vit_ratio_opt.model_files.card import card_path, model_card
from vit_ratio_opt.model_files.described import check_saveable
from vit_ratio_opt.model_files.save import save_pruned
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.runs.objective import PruningObjective
from vit_ratio_opt.runs.signals import SearchStopped, stop_on_signals
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.training.context import TrainingStopped, TrialContext
from vit_ratio_opt.training.features import FeatureTrainer
from vit_ratio_opt.training.save_clock import SaveClock
from vit_ratio_opt.training.trainer import ImageTrainer
from vit_ratio_opt.utils.files import write_text

__all__ = ["finish"]


def finish(
    objective: PruningObjective,
    pair: RatioPair,
    model: ViT,
    path: str | Path,
    *,
    trainer: ImageTrainer,
    seed: int = 0,
    lineage: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Fine-tune a pruned model, test it once, and write it with its card; resume if stopped.

    Args:
        objective: Objective of the dense model.
        pair: Ratios of the model.
        model: The pruned model, on the objective's device; it is trained in place.
        path: Safetensors file of the model, with its card in the Markdown file of this name.
        trainer: Trainer whose recipe is used; with 0 epochs the model stays unchanged.
        seed: Random seed of the training.
        lineage: Origin of the model, as JSON values: study, trial and its
            ``search_accuracy`` in per cent, ``search_expected`` and ``search_error`` of its pair.

    Returns:
        The manifest of ``objective.describe``, with ``test_accuracy``, also of ``dense``,
        ``test_images``, ``recipe``, ``training_seed``, ``lineage`` and an encoder's ``probes``.

    Raises:
        InputError: A file cannot be written, or the state is of another training.
        TrainingDiverged: The loss is NaN or infinite.
        SearchStopped: A signal ended the training; its state is saved.
    """
    check_saveable(model)
    path, state = Path(path), Path(f"{path}.training")
    start = weights_hash(model) if lineage else None  # two studies may have one output
    own = {"blocks": shape_of(model).block_sizes, "start": start}
    context = TrialContext(
        seed=seed,
        teacher=objective.pruner.dense,
        state=state,
        should_save=SaveClock(objective.state_every),
        identity={**objective.identity_of(pair), **own},
        title=path.name,
        progress=objective.progress,
    )
    accuracy, recipe = _train(trainer, model, context)
    manifest = {**objective.describe(pair, model, accuracy)}
    manifest["dense"]["test_accuracy"] = trainer.test(objective.pruner.dense)
    manifest |= {
        "test_accuracy": trainer.test(model),
        "test_images": len(trainer.data.test),
        "recipe": recipe,
        "training_seed": seed,
        "lineage": dict(lineage or {}),
        **_probes(trainer, model),
    }
    save_pruned(model, path, manifest)
    write_text(model_card(manifest, path.name), card_path(path))
    if trainer.recipe.epochs:
        state.unlink(missing_ok=True)
    return manifest


def _probes(trainer: ImageTrainer, model: ViT) -> dict[str, Any]:
    """Return what probes of the features measure, where the images have labels."""
    if not isinstance(trainer, FeatureTrainer) or not trainer.has_probes:
        return {}
    return {"probes": trainer.probe(trainer.dense).change_to(trainer.probe(model))}


def _train(
    trainer: ImageTrainer, model: ViT, context: TrialContext
) -> tuple[float, dict[str, Any]]:
    """Train in place until the end or a signal.

    Returns:
        The metric on the validation images, and the recipe as JSON values, with what the training
        chose by itself.
    """
    recipe, chosen = trainer.recipe.to_json(), dict[str, Any]()
    if not recipe["epochs"]:
        return trainer.evaluate(model), recipe
    with stop_on_signals() as asked_to_stop:
        try:
            value = trainer.train(
                model, replace(context, should_stop=asked_to_stop, record=chosen.update)
            )
        except TrainingStopped:
            raise SearchStopped(asked_to_stop.signal) from None
    recipe["lr"] = chosen.get("lr", recipe["lr"])
    return value, recipe if chosen.get("is_trained", True) else {**recipe, "epochs": 0}
