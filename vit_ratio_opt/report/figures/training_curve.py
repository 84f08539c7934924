"""The training of a trial as a PNG."""

from __future__ import annotations

import io

from optuna.trial import FrozenTrial

from vit_ratio_opt.records.trial import attribute
from vit_ratio_opt.records.trials import reports_of
from vit_ratio_opt.report.figures.style import COLOURS
from vit_ratio_opt.space.metric import ACCURACY, Metric

__all__ = ["training_curve"]


def training_curve(
    trial: FrozenTrial, dense_accuracy: float, *, drops: bool, metric: Metric = ACCURACY
) -> bytes:
    """Return metric and training loss by epoch as a PNG, from before fine-tuning on.

    Args:
        trial: The trial with its reports so far.
        dense_accuracy: Metric of the dense model, such as the accuracy in per cent.
        drops: Whether the trial reports what it has lost, as with a tolerance, or the metric.
        metric: Metric of the trials.
    """
    from matplotlib.figure import Figure  # takes half a second to import
    from matplotlib.ticker import MaxNLocator

    reported = sorted(reports_of(trial).items())
    pruned = attribute(trial, "accuracy_pruned")
    accuracies = [] if pruned is None else [(0, pruned)]
    accuracies += [
        (epoch, metric.after_loss(dense_accuracy, v) if drops else v) for epoch, v in reported
    ]
    losses = attribute(trial, "losses") or ()
    figure = Figure(figsize=(5, 3))
    # Wide margins: a layout engine would take twice the time of the rest to find them.
    axis = figure.subplots(gridspec_kw={"left": 0.19, "right": 0.83, "bottom": 0.16, "top": 0.91})
    axis.axhline(dense_accuracy, color="0.6", linestyle=":", label="dense")
    if accuracies:
        axis.plot(*zip(*accuracies, strict=True), marker="o", color=COLOURS[0], label=metric.name)
    axis.set(xlabel="epoch", ylabel=metric.axis)
    axis.set_title(f"trial {trial.number}", loc="left")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if losses:
        right = axis.twinx()
        right.plot(range(1, len(losses) + 1), losses, marker="s", color=COLOURS[1])
        right.set_ylabel("training loss", color=COLOURS[1])
    # Above the axes, where it can hide no point of either.
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize="small")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    return image.getvalue()
