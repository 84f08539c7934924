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
    dense, metric = manifest["dense"], metric_of(manifest)
    loss = metric.loss(dense["test_accuracy"], manifest["test_accuracy"])
    number, measured = metric.number, f"{metric.name} {metric.unit}".rstrip()
    subject, origin, training = _subject(manifest), _origin(manifest), _training(manifest)
    outputs = manifest.get("outputs", "logits")
    is_regression = _is_regression(manifest)
    kind = "image-classification" if outputs == "logits" else "image-feature-extraction"
    tag = "" if is_regression else f"\npipeline_tag: {kind}"  # the hub has none for a regression
    outputs = "outputs" if is_regression else outputs
    validation = "Validation images were held out of the training images."
    if manifest["images"].get("validation") == "test":
        validation = (
            "Validation images are one half of the test split, as the dense model has seen all "
            f"training images; the test {metric.name} is of the other half."
        )
    mean, std = (", ".join(f"{value:g}" for value in manifest[key]) for key in ("mean", "std"))
    return f"""---
library_name: vit_ratio_opt{tag}
tags:
- vision-transformer
- pruning
- timm
---

# {file}

{subject} {origin} {training}

| | FLOPs | parameters | validation {measured} | test {measured} |
| --- | --- | --- | --- | --- |
| dense | {dense["macs"]:,} | {dense["params"]:,} | {number(dense["val_accuracy"])} \
| {number(dense["test_accuracy"])} |
| pruned | {manifest["macs"]:,} ({manifest["macs_ratio"]:.1%}) | {manifest["params"]:,} \
({manifest["params"] / dense["params"]:.1%}) | {number(manifest["val_accuracy"])} \
| {number(manifest["test_accuracy"])} ({metric.change(loss)}) |

1 FLOP is 1 multiply-add. {validation} The {manifest["test_images"]:,} test images were read once.\
{_probes(manifest)}

```python
import vit_ratio_opt as vro

model, manifest = vro.load_pruned("{file}")  # a timm model in evaluation mode
{outputs} = model(images)  # (batch, channels, height, width), mean {mean}, std {std}\
{_classes(manifest)}
```
"""


def _subject(manifest: Mapping[str, Any]) -> str:
    """Return which model was pruned by how much, in a sentence."""
    mhsa, ffn, data = manifest["mhsa_ratio"], manifest["ffn_ratio"], manifest["dataset"]
    pruned = f"with {mhsa:.1%} of its attention and {ffn:.1%} of its feed-forward modules pruned"
    if "outputs" in manifest:
        return f"A `{manifest['model']}` {pruned}, by images of {data} without labels."
    count = len(manifest["classes"])
    kind = "target" if _is_regression(manifest) else "class"
    kinds = kind if count == 1 else f"{kind}es" if kind == "class" else f"{kind}s"
    return f"A `{manifest['model']}` for the {count} {kinds} of {data} {pruned}."


def _is_regression(manifest: Mapping[str, Any]) -> bool:
    return bool(manifest.get("calibration_task") == "regression")


def _training(manifest: Mapping[str, Any]) -> str:
    """Return how the model was trained after pruning, in a sentence."""
    recipe = manifest["recipe"]
    if not recipe["epochs"]:
        if manifest["lineage"].get("study") is not None:
            return "Its weights are those at the end of the trial."
        return "It was not trained after pruning."
    training = (
        f"After pruning it was trained for {recipe['epochs']} epoch(s) on {manifest['dataset']} "
        f"with AdamW at a peak learning rate of {recipe['lr']:g}, "
    )
    if "outputs" in manifest:
        return f"{training}to give the {manifest['outputs']} of the dense model."
    share = f"{recipe['distillation']:.0%}"
    return f"{training}{share} of the loss being distillation from the dense model."


def _probes(manifest: Mapping[str, Any]) -> str:
    """Return a table of what probes of the features measured; empty without them."""
    if "probes" not in manifest:
        return ""
    found = manifest["probes"]
    rows = [
        f"| {name} | {found['dense'][key]:.2f} | {found['pruned'][key]:.2f} "
        f"({found['pruned'][key] - found['dense'][key]:+.2f} ± {found['errors'][key]:.2f}) |"
        for key, name in (("knn", "20 nearest neighbours"), ("linear", "linear probe"))
    ]
    return (
        f" Their labels, and those of {found['bank']:,} training images, were used for this "
        "table alone:\n\n| accuracy of the features % | dense | pruned |\n| --- | --- | --- |\n"
        + "\n".join(rows)
    )


def _classes(manifest: Mapping[str, Any]) -> str:
    """Return the line of code that names the classes; empty where none are known."""
    is_known = manifest["classes"] and "outputs" not in manifest
    word = "targets" if _is_regression(manifest) else "classes"
    return f'\n{word} = manifest["classes"]' if is_known else ""


def _origin(manifest: Mapping[str, Any]) -> str:
    """Return the origin of the two ratios, in one or two sentences."""
    lineage = manifest["lineage"]
    if lineage.get("study") is None:
        return "Its two ratios were given by hand."
    word = cost_label(manifest.get("cost", "macs")).word
    limit = f"within a budget of {manifest['budget']} of the {word}"
    if manifest.get("frontier") is not None:
        limit = f"the frontier of {metric_of(manifest).name} and {word}"
    elif manifest["budget"] is None:
        limit = f"with {metric_of(manifest).lost(manifest['tolerance'], 'at most ')}"
    mhsa, ffn = manifest["mhsa_ratio"], manifest["ffn_ratio"]
    origin = (
        f"Its MHSA ratio {mhsa:.3f} and FFN ratio {ffn:.3f} are those of trial "
        f"{lineage['trial']} of study {lineage['study']!r}, which searched {limit}."
    )
    if lineage.get("parent_trial") not in (None, "dense"):
        origin += f" The trial began with the model of trial {lineage['parent_trial']}"
        epochs = lineage.get("total_epochs")
        origin += (
            "." if epochs is None else f"; its weights were trained for {epochs} epochs in all."
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
