"""Evaluate pairs before any training, to choose where a search begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vit_ratio_opt.data.task import Task
from vit_ratio_opt.models.device import Precision, autocast
from vit_ratio_opt.runs.contracts import PrunerProtocol
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.columns import as_array
from vit_ratio_opt.search.forecast import Forecast
from vit_ratio_opt.search.plan import Pair, run_plan
from vit_ratio_opt.space.curve import budget_curve, smallest_cost_ratio
from vit_ratio_opt.space.pairs import PairSpace, RatioPair

__all__ = ["forecast_path", "likely_best", "likely_path", "screen"]

# Levels of cost at which the best pair is searched, and pairs of a path.
_LEVELS, _PATH_PAIRS = 6, 64


def likely_best(pruner: PrunerProtocol, curve: Sequence[RatioPair]) -> RatioPair | None:
    """Return the pair of a curve with the least estimated loss; None without estimates.

    No model is pruned.
    """
    losses = {pair: loss for pair in curve if (loss := pruner.expected_loss(pair)) is not None}
    return min(losses, key=losses.__getitem__, default=None)


def screen(
    pruner: PrunerProtocol,
    evaluate: Callable[[nn.Module], float],
    curve: Sequence[RatioPair],
    *,
    sign: int = 1,
) -> dict[Pair, float]:
    """Return the values of pruned, untrained models at some pairs of a budget's curve.

    The pairs are chosen by the bracketing and halving of the search itself, which begins at
    :func:`likely_best`. On the recorded surfaces the order of the pairs without training is nearly
    that after training (``benchmarks/screen.py``), so the best pair is a good start.

    Args:
        pruner: Prunes the dense model.
        evaluate: Function that returns the metric of a model on the validation split.
        curve: The pairs that use up the budget.
        sign: -1 where a smaller metric is better.

    Returns:
        The value of each evaluated pair; empty where the curve has no choice.
    """
    if len(curve) < 2:
        return {}
    plan = BudgetSearch(curve, start=likely_best(pruner, curve))
    seen = run_plan(plan, lambda pair: sign * evaluate(pruner.prune(RatioPair(*pair))))
    return {pair: sign * value for pair, (value,) in seen.items()}


def forecast_path(space: PairSpace, forecast: Forecast) -> tuple[Pair, ...]:
    """Return the pairs of the least predicted loss from the dense model down to the smallest."""
    levels = np.linspace(1.0, smallest_cost_ratio(space), _PATH_PAIRS)
    curves = [budget_curve(space, float(level)) for level in levels]
    best = [curve[int(np.argmin(forecast.losses(as_array(curve))))] for curve in curves]
    return tuple(dict.fromkeys((pair.mhsa_ratio, pair.ffn_ratio) for pair in best))


def likely_path(
    pruner: PrunerProtocol,
    batches: Sequence[torch.Tensor],
    precision: Precision,
    task: Task = "single-label",
) -> tuple[Pair, ...]:
    """Return the likeliest pairs from the dense model down to the smallest, without training any.

    For a search with a tolerance. At some levels of cost, the curve of pairs is searched for the
    pruned model whose predictions diverge least from those of the dense model (KL divergence; of
    features, 1 - cosine), on other training images than those of the calibration: a
    reconstruction is at its best on the images that it was fitted to. Between the levels the MHSA
    ratio is interpolated.

    Args:
        pruner: Prunes the dense model.
        batches: Normalised images on the device of the model.
        precision: Precision in which models are evaluated.
        task: Meaning of the outputs: logits of one class or of several, ``"multi-label"``, whose
            divergences are added up; or ``"features"``, compared by 1 - cosine.

    Returns:
        Pairs in the order of decreasing cost.
    """
    agreement = _agreement(pruner, batches, precision, task)
    space = pruner.space
    smallest = smallest_cost_ratio(space)
    levels, ratios = [smallest], [space.max_pair.mhsa_ratio]
    start: RatioPair | None = None
    for level in np.linspace(smallest, 1.0, _LEVELS + 2)[1:-1]:
        curve = budget_curve(space, float(level))
        if start is not None:  # the best pair moves little from one level to the next
            start = _nearest(curve, ratios[-1])
        seen = run_plan(BudgetSearch(curve, start=start), agreement)
        start = RatioPair(*max(seen, key=seen.__getitem__))
        levels.append(float(level))
        ratios.append(start[0])
    levels.append(1.0)
    ratios.append(0.0)
    path = [
        _nearest(budget_curve(space, float(level)), float(np.interp(level, levels, ratios)))
        for level in np.linspace(1.0, smallest, _PATH_PAIRS)
    ]
    return tuple(dict.fromkeys((pair.mhsa_ratio, pair.ffn_ratio) for pair in path))


def _nearest(curve: Sequence[RatioPair], mhsa_ratio: float) -> RatioPair:
    return min(curve, key=lambda pair: abs(pair.mhsa_ratio - mhsa_ratio))


def _agreement(
    pruner: PrunerProtocol, batches: Sequence[torch.Tensor], precision: Precision, task: Task
) -> Callable[[Pair], float]:
    """Return the function of a pair that gives the agreement with the dense model, in nats."""
    device = pruner.device

    def comparable(outputs: torch.Tensor) -> torch.Tensor:
        if task == "features":
            return F.normalize(outputs.float(), dim=-1)
        if task == "multi-label":  # of presence and absence, for each class
            return F.logsigmoid(torch.stack([outputs, -outputs]).float())
        return outputs.log_softmax(dim=1)

    def predict(model: nn.Module) -> list[torch.Tensor]:
        with torch.inference_mode(), autocast(device, precision):
            return [comparable(model(images)) for images in batches]

    def divergence(predicted: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        if task != "features":
            return F.kl_div(predicted, dense, log_target=True, reduction="sum")
        losses = (predicted - dense).square().sum(dim=-1) / 2  # 1 - cosine
        return losses.flatten(1).mean(dim=1).sum() if losses.ndim > 1 else losses.sum()

    dense = predict(pruner.dense)
    count = sum(len(images) for images in batches)

    def agreement(pair: Pair) -> float:
        predicted = predict(pruner.prune(RatioPair(*pair)))
        losses = [divergence(p, d) for p, d in zip(predicted, dense, strict=True)]
        return -float(sum(losses)) / count

    return agreement
