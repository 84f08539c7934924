"""Write a model card in Markdown: the pruned model, its origin and its metric."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_ratio_opt.space.costs import cost_label
from vit_ratio_opt.space.metric import ACCURACY, Metric

__all__ = ["card_path", "metric_of", "model_card"]


def card_path(path: str | Path) -> Path:
    """Return the path of the card of the model in ``path``."""
    return Path(path).with_suffix(".md")


def model_card(manifest: Mapping[str, Any], file: str) -> str:
    """Return a model card in Markdown, with the front matter that Hugging Face's hub reads.

    Args:
        manifest: Manifest of the model's file, with test accuracies, recipe and lineage, as
            :func:`vit_ratio_opt.runs.final.finish` returns it.
        file: Name of the model's file.
    """
    dense, recipe, metric = manifest["dense"], manifest["recipe"], metric_of(manifest)
    loss = metric.loss(dense["test_accuracy"], manifest["test_accuracy"])
    number, measured = metric.number, f"{metric.name} {metric.unit}".rstrip()
    training = "It was not trained after pruning."
    if recipe["epochs"]:
        training = (
            f"After pruning it was trained for {recipe['epochs']} epoch(s) on "
            f"{manifest['dataset']} with AdamW at a peak learning rate of {recipe['lr']:g}, "
            f"{recipe['distillation']:.0%} of the loss being distillation from the dense model."
        )
    origin = _origin(manifest)
    validation = "Validation images were held out of the training images."
    if manifest["images"].get("validation") == "test":
        validation = (
            "Validation images are one half of the test split, as the dense model has seen all "
            f"training images; the test {metric.name} is of the other half."
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

| | FLOPs | parameters | validation {measured} | test {measured} |
| --- | --- | --- | --- | --- |
| dense | {dense["macs"]:,} | {dense["params"]:,} | {number(dense["val_accuracy"])} \
| {number(dense["test_accuracy"])} |
| pruned | {manifest["macs"]:,} ({manifest["macs_ratio"]:.1%}) | {manifest["params"]:,} \
({manifest["params"] / dense["params"]:.1%}) | {number(manifest["val_accuracy"])} \
| {number(manifest["test_accuracy"])} ({metric.change(loss)}) |

1 FLOP is 1 multiply-add. {validation} The {manifest["test_images"]:,} test images were read once.

```python
import vit_ratio_opt as vro

model, manifest = vro.load_pruned("{file}")  # a timm model in evaluation mode
logits = model(images)  # (batch, channels, height, width), mean {mean}, std {std}
classes = manifest["classes"]
```
"""


def _origin(manifest: Mapping[str, Any]) -> str:
    """Return the origin of the two ratios, in one or two sentences."""
    lineage = manifest["lineage"]
    if lineage.get("study") is None:
        return "Its two ratios were given by hand."
    word = cost_label(manifest.get("cost", "macs")).word
    limit = f"within a budget of {manifest['budget']} of the {word}"
    if manifest["budget"] is None:
        limit = f"with {metric_of(manifest).lost(manifest['tolerance'], 'at most ')}"
    mhsa, ffn = manifest["mhsa_ratio"], manifest["ffn_ratio"]
    origin = (
        f"Its MHSA ratio {mhsa:.3f} and FFN ratio {ffn:.3f} are those of trial "
        f"{lineage['trial']} of study {lineage['study']!r}, which searched {limit}."
    )
    if lineage.get("search_expected") is not None:
        # The error is 0 where the study knows no noise.
        metric = metric_of(manifest)
        expected = metric.text(lineage["search_expected"], error=lineage["search_error"])
        origin += (
            f" In the search the trial had {metric.text(lineage['search_accuracy'])} on "
            f"validation images, and {expected} was expected of its pair."
        )
    return origin


def metric_of(manifest: Mapping[str, Any]) -> Metric:
    """Return the metric of the values in a manifest: the accuracy where none is named."""
    return Metric(**manifest["metric"]) if "metric" in manifest else ACCURACY
