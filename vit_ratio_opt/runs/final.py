"""The model that is taken away: a pair, trained longer, tested once, with a card that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vit_ratio_opt.model_files.described import check_saveable
from vit_ratio_opt.model_files.save import save_pruned
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.runs.objective import PruningObjective
from vit_ratio_opt.runs.signals import SearchStopped, stop_on_signals
from vit_ratio_opt.space.geometry import COST_WORDS, RatioPair
from vit_ratio_opt.training.context import TrainingStopped, TrialContext
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.utils.files import write_text

__all__ = ["card_path", "finish", "model_card"]


def finish(
    objective: PruningObjective,
    pair: RatioPair,
    model: ViT,
    path: str | Path,
    *,
    recipe: Recipe,
    seed: int = 0,
    lineage: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Fine-tune ``model`` by ``recipe``, test it once, and write it with its card.

    A training that is stopped leaves its state beside ``path``: the same call goes on from there.

    Args:
        objective: Of the dense model and the images.
        pair: The model's ratios.
        model: The pruned model, on the objective's device; it is trained in place.
        path: Its safetensors file; the card is the Markdown file of the same name.
        recipe: How long and how it is trained; no epochs leave it as it is.
        seed: Of the training.
        lineage: Where the model comes from, as JSON values; with ``search_accuracy`` (per cent,
            of its trial), ``search_expected`` and ``search_error`` (of its pair) the card has the
            accuracies of the search.

    Returns:
        What the file says: see :meth:`PruningObjective.manifest`, with ``test_accuracy``,
        ``dense["test_accuracy"]``, ``test_images``, ``recipe``, ``training_seed`` and ``lineage``.

    Raises:
        InputError: A file cannot be written, or a state beside it is of another training.
        TrainingDiverged: The loss is no number.
        SearchStopped: By a signal; the state was kept.
    """
    path, data = Path(path), objective.data
    check_saveable(model)
    if recipe.epochs:
        # Of a trial's model, the weights that it begins with: two studies may have one output.
        identity = {
            **objective.identity_of(pair),
            "blocks": shape_of(model).block_sizes,
            "start": weights_hash(model) if lineage else None,
        }
        state = path.with_name(f"{path.name}.training")
        with stop_on_signals() as asked_to_stop:
            try:
                context = TrialContext(
                    seed=seed,
                    should_stop=asked_to_stop,
                    state=state,
                    identity=identity,
                    title=path.name,
                    progress=objective.progress,
                )
                accuracy = finetune(
                    model,
                    data,
                    recipe,
                    context,
                    teacher=objective.teacher_for(recipe),
                    precision=objective.precision,
                )
            except TrainingStopped:
                raise SearchStopped(asked_to_stop.signal) from None
    else:
        accuracy = evaluate(model, data, data.val, precision=objective.precision)
    manifest = objective.manifest(pair, model, accuracy)
    manifest["dense"]["test_accuracy"] = evaluate(
        objective.model, data, data.test, precision=objective.precision
    )
    manifest |= {
        "test_accuracy": evaluate(model, data, data.test, precision=objective.precision),
        "test_images": len(data.test),
        "recipe": asdict(recipe),
        "training_seed": seed,
        "lineage": dict(lineage or {}),
    }
    save_pruned(model, path, manifest)
    write_text(model_card(manifest, path.name), card_path(path))
    if recipe.epochs:
        state.unlink(missing_ok=True)
    return manifest


def card_path(path: str | Path) -> Path:
    """Where the card of the model in ``path`` is."""
    return Path(path).with_suffix(".md")


def model_card(manifest: Mapping[str, Any], file: str) -> str:
    """A model card in Markdown, with the front matter that Hugging Face's hub reads.

    Args:
        manifest: As :func:`finish` gives it.
        file: The name of the model's file.
    """
    dense, recipe, lineage = manifest["dense"], manifest["recipe"], manifest["lineage"]
    drop = dense["test_accuracy"] - manifest["test_accuracy"]
    training = "It was not trained after pruning."
    if recipe["epochs"]:
        training = (
            f"After pruning it was trained for {recipe['epochs']} epoch(s) on "
            f"{manifest['dataset']} with AdamW at a peak learning rate of {recipe['lr']:g}, "
            f"{recipe['distillation']:.0%} of the loss being distillation from the dense model."
        )
    origin = "Its two ratios were given by hand."
    if lineage.get("study") is not None:
        word = COST_WORDS[manifest.get("cost", "macs")]
        limit = f"a budget of {manifest['budget']} of the {word}"
        if manifest["budget"] is None:
            limit = f"a tolerance of {manifest['tolerance']} points"
        mhsa, ffn = manifest["mhsa_ratio"], manifest["ffn_ratio"]
        origin = f"Its MHSA ratio {mhsa:.3f} and FFN ratio {ffn:.3f} are those of trial "
        origin += f"{lineage['trial']} of study "
        origin += f"{lineage['study']!r}, which searched within {limit}."
        if lineage.get("search_expected") is not None:
            origin += (
                f" In the search the trial had {lineage['search_accuracy']:.2f} % on validation "
                f"images, and {lineage['search_expected']:.2f} ± {lineage['search_error']:.2f} % "
                "was expected of its pair."
            )
    validation = "Validation images were held out of the training images."
    if manifest["images"].get("validation") == "test":
        validation = (
            "Validation images are one half of the test split, as the dense model has seen all "
            "training images; the test accuracy is of the other half."
        )
    mean, std = (", ".join(f"{value:g}" for value in manifest[key]) for key in ("mean", "std"))
    return f"""---
library_name: vit_ratio_opt
pipeline_tag: image-classification
tags:
- vision-transformer
- pruning
- timm
---

# {file}

A `{manifest["model"]}` for the {len(manifest["classes"])} classes of {manifest["dataset"]} with \
{manifest["mhsa_ratio"]:.1%} of its attention and {manifest["ffn_ratio"]:.1%} of its feed-forward \
modules pruned. {origin} {training}

| | FLOPs | parameters | validation % | test % |
| --- | --- | --- | --- | --- |
| dense | {dense["macs"]:,} | {dense["params"]:,} | {dense["val_accuracy"]:.2f} \
| {dense["test_accuracy"]:.2f} |
| pruned | {manifest["macs"]:,} ({manifest["macs_ratio"]:.1%}) | {manifest["params"]:,} \
({manifest["params"] / dense["params"]:.1%}) | {manifest["val_accuracy"]:.2f} \
| {manifest["test_accuracy"]:.2f} ({-drop:+.2f}) |

1 FLOP is 1 multiply-add. {validation} The {manifest["test_images"]:,} test images were read once.

```python
import vit_ratio_opt as vro

model, manifest = vro.load_pruned("{file}")  # a timm model in evaluation mode
logits = model(images)  # (batch, channels, height, width), mean {mean}, std {std}
classes = manifest["classes"]
```
"""
