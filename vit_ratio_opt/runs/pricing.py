"""Measure the latency of the pairs of a search on this device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vit_ratio_opt.latency.cache import cached_latency, cached_step
from vit_ratio_opt.latency.curves import predict_latency
from vit_ratio_opt.models.device import Precision
from vit_ratio_opt.pruning.pruner import ModelPruner
from vit_ratio_opt.pruning.rounding import usual_round_to
from vit_ratio_opt.space.costs import Cost, Latency
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.training.progress import show_waiting
from vit_ratio_opt.utils.caching import default_cache

__all__ = ["measure_curves", "round_to_of"]


def round_to_of(
    cost: Cost, pruner: ModelPruner, precision: Precision, *, progress: bool | None = None
) -> int:
    """Return the number of which sizes should be multiples on the pruner's device.

    Where the latency is the cost it is measured, or read from the cache, and on CUDA at least the
    usual one.

    Args:
        cost: Cost of the search.
        pruner: Prunes the dense model.
        precision: Precision in which models are evaluated and timed.
        progress: Whether to show a spinner; None shows it in a terminal only.
    """
    if pruner.is_round_to_given:
        return pruner.round_to
    if not isinstance(cost, Latency) or cost.curves is not None:
        return usual_round_to(pruner.shape, pruner.device)
    with show_waiting("measuring which sizes are fast", enabled=progress):
        return cached_step(
            pruner.dense,
            _folder(pruner),
            least=usual_round_to(pruner.shape, pruner.device),
            batch=cost.batch,
            precision=precision,
            engine=cost.engine,
        )


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
    space = pruner.space
    assert isinstance(space, StructuralSpace)  # `Latency.check` refuses other strategies
    with show_waiting("measuring the latency of blocks", enabled=progress):
        table = cached_latency(
            pruner.dense,
            _folder(pruner),
            batch=cost.batch,
            round_to=space.round_to,
            precision=precision,
            engine=cost.engine,
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


def _folder(pruner: ModelPruner) -> Path:
    folder = pruner.calibration_options.cache
    return default_cache() if folder is None else Path(folder)
