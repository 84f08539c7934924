"""The pairs that a budget allows, and the baseline of one fixed ratio.

Everything here needs a :class:`~vit_ratio_opt.space.pairs.PairSpace` only, so it serves every
strategy and every cost.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from functools import partial

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.pairs import SLACK, PairSpace, RatioPair, pick_evenly

__all__ = [
    "budget_curve",
    "check_budget",
    "cost_saved",
    "curve_and_baseline",
    "fixed_ratio_pair",
    "pair_columns",
    "smallest_cost_ratio",
]


def smallest_cost_ratio(space: PairSpace) -> float:
    """Return the cost fraction of the smallest realisable model: every block at its minimum."""
    return space.cost_ratio(*space.max_pair)


def check_budget(space: PairSpace, budget: float) -> None:
    """Refuse a budget that is no fraction or that no pruned model meets.

    Args:
        space: Space of the dense model.
        budget: Largest fraction of the cost allowed.

    Raises:
        InputError: ``budget`` is outside (0, 1] or below :func:`smallest_cost_ratio`.
    """
    word = space.cost.word
    if not 0 < budget <= 1:
        raise InputError(
            f"The budget must be in (0, 1], a fraction of the dense model's {word}, "
            f"but got {budget!r}."
        )
    smallest = smallest_cost_ratio(space)
    if budget < smallest:
        # Rounded up, so that the shown number is a valid budget.
        shown = math.ceil(smallest * 1e4) / 1e4
        raise InputError(
            f"The budget must be at least {shown:.4f}: the smallest realisable model "
            f"({space.minimum} in every block) needs that share of the dense model's {word}, but "
            f"got {budget!r}.{_rounding_hint(space)}"
        )


def _rounding_hint(space: PairSpace) -> str:
    """Return a sentence where sizes that are rounded keep models from being smaller."""
    round_to = getattr(space, "round_to", 1)
    if round_to == 1:
        return ""
    return f" Sizes are multiples of {round_to}: a lower `round_to` (--round-to) allows less."


def budget_curve(
    space: PairSpace, budget: float, points: int | None = None
) -> tuple[RatioPair, ...]:
    """Return the pairs that use up ``budget``, from the least to the most attention pruned.

    For every MHSA ratio there is one smallest FFN ratio that meets the budget. Every other pair
    within the budget prunes more than a pair of the curve without need. The pairs are exact:
    ``removed(pair)`` gives the counts back, and the next smaller FFN ratio exceeds the budget.

    Args:
        space: Space of the dense model.
        budget: Largest fraction of the cost allowed, in (0, 1].
        points: Largest number of pairs, evenly spaced along the curve; None for all.

    Returns:
        At least one pair; ``mhsa_ratio`` rises and ``ffn_ratio`` falls along the curve.

    Raises:
        InputError: ``budget`` is outside (0, 1] or below :func:`smallest_cost_ratio`.
    """
    check_budget(space, budget)
    allowed = _largest_cost(space.dense_cost, budget)
    mhsa_ratios, ffn_ratios = space.mhsa_ratios, space.ffn_ratios
    # Smaller MHSA ratios need more than all of the FFN, larger ones remove more without need.
    first, last = (
        _first_within(mhsa_ratios, allowed, partial(_cost_in_row, space, ffn_ratio))
        for ffn_ratio in (ffn_ratios[-1], ffn_ratios[0])
    )
    on_curve = mhsa_ratios[first : last + 1]
    chosen = on_curve if points is None else pick_evenly(on_curve, points)
    return tuple(
        RatioPair(
            ratio,
            ffn_ratios[_first_within(ffn_ratios, allowed, partial(_cost_in_column, space, ratio))],
        )
        for ratio in chosen
    )


def fixed_ratio_pair(space: PairSpace, budget: float) -> RatioPair:
    """Return the smallest single ratio, used for both modules, that meets ``budget``.

    It is the baseline of a search.

    Args:
        space: Space of the dense model.
        budget: Largest fraction of the cost allowed, in (0, 1].

    Raises:
        InputError: ``budget`` is outside (0, 1] or below :func:`smallest_cost_ratio`; or one
            ratio cannot meet it, because the module that reaches its minimum first limits the
            ratio.
    """
    check_budget(space, budget)
    allowed = _largest_cost(space.dense_cost, budget)
    ratios = _fixed_ratios(space)
    if not ratios:
        raise InputError("No ratio for both modules is within the bounds of the blocks.")
    least = _first_within(
        ratios, allowed, lambda ratio: space.pruned_cost(RatioPair(ratio, ratio))
    )
    if least < len(ratios):
        return RatioPair(ratios[least], ratios[least])
    smallest = space.cost_ratio(ratios[-1], ratios[-1])
    raise InputError(
        f"One fixed ratio for both modules reaches at best {math.ceil(smallest * 1e4) / 1e4:.4f} "
        f"of the dense model's {space.cost.word} (at ratio {ratios[-1]:.4f}), but the "
        f"budget is {budget!r}."
    )


def curve_and_baseline(
    space: PairSpace, budget: float
) -> tuple[tuple[RatioPair, ...], RatioPair | None]:
    """Return the budget's curve and the pair of the fixed ratio, the baseline.

    Where a pair of the curve removes the same units as the fixed ratio, the fixed ratio's pair
    takes its place: otherwise one model would count as two. The baseline is None where one ratio
    alone cannot meet the budget.

    Args:
        space: Space of the dense model.
        budget: Largest fraction of the cost allowed, in (0, 1].

    Raises:
        InputError: ``budget`` is outside (0, 1] or below :func:`smallest_cost_ratio`.
    """
    curve = budget_curve(space, budget)
    try:
        fixed = fixed_ratio_pair(space, budget)
    except InputError:
        return curve, None
    removed = space.removed(fixed)
    return tuple(fixed if space.removed(pair) == removed else pair for pair in curve), fixed


def cost_saved(space: PairSpace, points: int = 33) -> dict[str, list[list[float]]]:
    """Return what each ratio alone saves, for drawing lines of equal cost without the model.

    The savings of the two modules add up in every strategy.

    Args:
        space: Space of the dense model.
        points: Largest number of ratios of each module.

    Returns:
        For ``mhsa_ratio`` and ``ffn_ratio``, rising pairs of a ratio and the share of the dense
        model's cost that it saves.
    """
    saved = {}
    for axis, name in enumerate(RatioPair._fields):
        chosen = pick_evenly((space.mhsa_ratios, space.ffn_ratios)[axis], points)
        pairs = [RatioPair(r, 0.0) if axis == 0 else RatioPair(0.0, r) for r in chosen]
        saved[name] = [
            [round(ratio, 6), round(1 - space.pruned_cost(pair) / space.dense_cost, 6)]
            for ratio, pair in zip(chosen, pairs, strict=True)
        ]
    return saved


def pair_columns(
    space: PairSpace, *, fixed_ratio: bool = False
) -> tuple[tuple[float, tuple[float, ...]], ...]:
    """Return all pairs: for each MHSA ratio, rising, the FFN ratios, rising.

    Args:
        space: Space of the dense model.
        fixed_ratio: Whether to return only pairs of two equal ratios, one for each step that
            removes another unit.
    """
    if fixed_ratio:
        return tuple((ratio, (ratio,)) for ratio in _fixed_ratios(space))
    return tuple((mhsa_ratio, space.ffn_ratios) for mhsa_ratio in space.mhsa_ratios)


def _fixed_ratios(space: PairSpace) -> list[float]:
    least, largest = max(space.min_pair) - SLACK, min(space.max_pair) + SLACK
    ratios = {*space.mhsa_ratios, *space.ffn_ratios}
    return sorted(ratio for ratio in ratios if least <= ratio <= largest)


def _cost_in_column(space: PairSpace, mhsa_ratio: float, ffn_ratio: float) -> int:
    return space.pruned_cost(RatioPair(mhsa_ratio, ffn_ratio))


def _cost_in_row(space: PairSpace, ffn_ratio: float, mhsa_ratio: float) -> int:
    return space.pruned_cost(RatioPair(mhsa_ratio, ffn_ratio))


def _first_within(ratios: Sequence[float], allowed: int, cost_of: Callable[[float], int]) -> int:
    """Return the index of the first of the rising ratios whose cost is at most ``allowed``."""
    return bisect.bisect_left(ratios, -allowed, key=lambda ratio: -cost_of(ratio))


def _largest_cost(dense: int, budget: float) -> int:
    """Return the largest ``cost`` with ``cost / dense <= budget`` in floating point."""
    allowed = math.floor(budget * dense)
    while (allowed + 1) / dense <= budget:
        allowed += 1
    while allowed / dense > budget:
        allowed -= 1
    return allowed
