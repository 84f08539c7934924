"""Record what a pruned model costs, and turn its metric into the value of its trial."""

from __future__ import annotations

from collections.abc import Callable

import optuna
from optuna.trial import BaseTrial

from vit_ratio_opt.records.trial import attribute, write_trial
from vit_ratio_opt.runs.suggest import Suggestion
from vit_ratio_opt.search.limits import Budget, Frontier, Tolerance
from vit_ratio_opt.space.metric import Metric
from vit_ratio_opt.space.pairs import PairSpace
from vit_ratio_opt.space.shape import ViTShape

__all__ = ["record_cost", "record_sizes", "record_training", "trial_value"]


def record_sizes(trial: BaseTrial, shape: ViTShape) -> None:
    """Record the sizes of the blocks of a pruned model."""
    write_trial(trial, params=shape.params, blocks=shape.block_sizes)
    if shape.block_tokens:
        write_trial(trial, tokens=[list(counts) for counts in shape.block_tokens])


def record_cost(
    trial: BaseTrial, planned: Suggestion, space: PairSpace, *, dense: ViTShape, pruned: ViTShape
) -> float:
    """Record the cost of a pruned model; return its share of the dense model's cost.

    Not every size is possible, so a model may come out smaller than planned. The search compares
    pairs by what they are planned to cost.

    Args:
        trial: Trial of the pair.
        planned: The pair, with its planned cost.
        space: Search space.
        dense: Shape of the dense model.
        pruned: Shape of the pruned model.
    """
    if pruned.macs == planned.macs:
        return planned.cost_ratio
    write_trial(
        trial,
        planned_cost_ratio=planned.cost_ratio,
        macs_ratio=pruned.macs / dense.macs,
        macs=pruned.macs,
    )
    count: Callable[[ViTShape], int | None] = getattr(space.cost, "count", lambda shape: None)
    left, whole = count(pruned), count(dense)
    if left is None or whole is None:
        return planned.cost_ratio
    if space.cost.name != "macs":
        write_trial(trial, cost_ratio=left / whole)
    return left / whole


def record_training(trial: BaseTrial, epochs: int | None, device: str | None) -> None:
    """Record device and epochs of a trained model; no epochs where nothing was to be gained.

    Args:
        trial: Trial of the model.
        epochs: Epochs of each training; None where the trainer does not say.
        device: Name of the device; None where the trainer does not say.
    """
    if device is not None:
        write_trial(trial, device=device)
    if epochs is None:
        return
    chosen = attribute(trial, "chosen") or {}
    if chosen.get("is_trained", True):
        write_trial(trial, epochs=epochs)
    else:
        write_trial(trial, epochs=0, total_epochs=trial.user_attrs["total_epochs"] - epochs)


def trial_value(
    trial: BaseTrial,
    limit: Budget | Tolerance | Frontier,
    metric: Metric,
    *,
    value: float,
    loss: float,
    cost_ratio: float,
) -> float | tuple[float, float]:
    """Return the value of a trial: the metric (budget), the cost (tolerance) or both (frontier).

    Args:
        trial: The trial.
        limit: Limit of the search.
        metric: Metric of the search.
        value: Metric of the trained model.
        loss: By how much it is worse than the dense model's.
        cost_ratio: Share of the dense model's cost.

    Raises:
        TrialPruned: The loss is over the tolerance.
    """
    if isinstance(limit, Frontier):
        return value, cost_ratio
    if not isinstance(limit, Tolerance):
        return value
    trial.set_constraint(metric.constraint, loss - limit.points)
    if loss > limit.points:
        raise optuna.TrialPruned(f"{metric.lost(float(f'{loss:.4g}'))}, over {limit.points}.")
    return cost_ratio
