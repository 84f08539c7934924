"""Measure the latency of the pairs of a search on this device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vit_ratio_opt.latency.cache import cached_latency
from vit_ratio_opt.latency.curves import predict_latency
from vit_ratio_opt.models.device import Precision
from vit_ratio_opt.pruning.pruner import ModelPruner
from vit_ratio_opt.space.costs import Latency
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.training.progress import show_waiting
from vit_ratio_opt.utils.caching import default_cache

__all__ = ["measure_curves"]


def measure_curves(
    cost: Latency,
    pruner: ModelPruner,
    *,
    budget: float | None,
    precision: Precision,
    progress: bool | None = None,
) -> Latency:
    """Return the cost with the latency curves of all pairs on the pruner's device.

    The table of block sizes is read from the cache where it was measured before.

    Args:
        cost: Latency of a batch, not measured yet.
        pruner: Prunes structurally; its space is priced in another cost.
        budget: Largest share of the dense model's latency; None without a budget.
        precision: Precision in which models are timed.
        progress: Whether to show a spinner; None shows it in a terminal only.
    """
    space, folder = pruner.space, pruner.calibration_options.cache
    assert isinstance(space, StructuralSpace)  # `Latency.check` refuses other strategies
    with show_waiting("measuring the latency of blocks", enabled=progress):
        table = cached_latency(
            pruner.dense,
            default_cache() if folder is None else Path(folder),
            batch=cost.batch,
            round_to=space.round_to,
            precision=precision,
            is_compiled=cost.compiled,
        )
    curves = predict_latency(
        table,
        pruner.dense,
        space,
        pruner.calibration if space.unit == "rank" else pruner.importance,
        allocation=pruner.allocation,
        budget=budget,
    )
    return replace(cost, curves=curves)
