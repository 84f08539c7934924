"""What pairs cost when the cost is not MACs: parameters, or the time that a device takes.

Pure arithmetic, as in :mod:`vit_ratio_opt.space.geometry`. A cost is a sum of three integers:
what no pruning changes, what attention needs by the units that are gone from it, and what the FFN
needs by the neurons that are gone. Parameters are known in closed form. Of latency, both curves
are measured, see :mod:`vit_ratio_opt.latency.timing`, and a study stores them, so that all workers
search the same pairs, whatever machine they are on.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.geometry import Cost, RatioPair, RatioSpace, ViTShape

__all__ = ["CostSpace", "Knots", "check_cost", "falling", "latency_space", "params_space"]

Knots = tuple[tuple[int, int], ...]
"""Units that are gone, rising from 0, and what is left of the cost; in between on a line."""


@dataclass(frozen=True)
class CostSpace(RatioSpace):
    """The pairs of structural pruning, with another cost than MACs.

    Args:
        shape: Of the dense model.
        priced_in: The cost.
        fixed: What is left of it whatever is pruned.
        mhsa: Cost of the attention of all blocks by the heads, or ranks, that are gone.
        ffn: Cost of their FFN by the neurons that are gone.

    Raises:
        InputError: Knots do not reach from nothing to all that can go, or a cost rises.
    """

    shape: ViTShape
    priced_in: Cost
    fixed: int
    mhsa: Knots
    ffn: Knots

    def __post_init__(self) -> None:
        most = self.shape.removed(self.shape.max_pair)
        for name, knots, last in (("mhsa", self.mhsa, most[0]), ("ffn", self.ffn, most[1])):
            units, costs = [knot[0] for knot in knots], [knot[1] for knot in knots]
            if not units or units[0] != 0 or units[-1] != last or sorted(set(units)) != units:
                raise InputError(f"`{name}` must have knots from 0 to {last} units, not {units}.")
            if sorted(costs, reverse=True) != costs:
                raise InputError(f"The costs in `{name}` must not rise, but are {costs}.")

    @property
    def cost(self) -> Cost:
        """What a pair's cost is counted in."""
        return self.priced_in

    @property
    def macs(self) -> int:
        """MACs of the dense model."""
        return self.shape.macs

    @property
    def mhsa_ratios(self) -> tuple[float, ...]:
        """Those of the shape."""
        return self.shape.mhsa_ratios

    @property
    def ffn_ratios(self) -> tuple[float, ...]:
        """Those of the shape."""
        return self.shape.ffn_ratios

    @property
    def minimum(self) -> str:
        """What every block keeps at least, in words."""
        return self.shape.minimum

    def removed(self, pair: RatioPair) -> tuple[int, int]:
        """Whole units that the two ratios remove; see :meth:`ViTShape.removed`."""
        return self.shape.removed(pair)

    def pruned_macs(self, pair: RatioPair) -> int:
        """MACs that are left; raises as :meth:`removed` does."""
        return self.shape.pruned_macs(pair)

    @cached_property
    def dense_cost(self) -> int:
        """Cost of the dense model."""
        return self.fixed + self._by_units[0][0] + self._by_units[1][0]

    def pruned_cost(self, pair: RatioPair) -> int:
        """The cost that is left; raises as :meth:`removed` does."""
        units, neurons = self.removed(pair)
        return self.fixed + self._by_units[0][units] + self._by_units[1][neurons]

    @cached_property
    def _by_units(self) -> tuple[list[int], list[int]]:
        return _between(self.mhsa), _between(self.ffn)


def check_cost(
    cost: str, *, strategy: str = "structural", iterative: bool = False, latency_batch: int = 1
) -> None:
    """Refuse a cost that is none, or does not go with the rest.

    Raises:
        InputError: With the reason.
    """
    if cost not in get_args(Cost):
        raise InputError(f"`cost` must be one of {get_args(Cost)}, but got {cost!r}.")
    if latency_batch < 1:
        raise InputError(f"`latency_batch` must be at least 1, but got {latency_batch!r}.")
    if cost != "latency" and latency_batch != 1:
        raise InputError(f"`latency_batch` is for the cost 'latency', but the cost is {cost!r}.")
    if cost != "macs" and strategy != "structural":
        why = (
            "leaving out tokens removes no parameter"
            if cost == "params"
            else "the latency of a model that leaves out tokens is not foretold"
        )
        raise InputError(f"`cost={cost!r}` needs the strategy 'structural': {why}.")
    if cost == "latency" and iterative:
        raise InputError(
            "`cost='latency'` does not go with `iterative`: the sizes of blocks, and with them "
            "the latency, would depend on the model that a trial starts from."
        )


def params_space(shape: ViTShape) -> CostSpace:
    """The pairs of structural pruning at their parameters, which are exact."""
    units, neurons = shape.removed(shape.max_pair)
    rest = shape.pruned_params(shape.max_pair)
    no_ffn = shape.pruned_params(RatioPair(0.0, shape.max_pair.ffn_ratio))
    return CostSpace(
        shape,
        "params",
        fixed=rest,
        mhsa=_ends(units, no_ffn - rest),
        ffn=_ends(neurons, shape.params - no_ffn),
    )


def latency_space(shape: ViTShape, known: Mapping[str, Any]) -> CostSpace:
    """The pairs of structural pruning at the time that they are foretold to take.

    Args:
        shape: Of the dense model.
        known: What a study stores as ``latency``, of which ``rest``, ``mhsa`` and ``ffn`` count,
            in nanoseconds; see :func:`vit_ratio_opt.latency.timing.latency_curves`.

    Raises:
        InputError: It is of another shape.
    """
    mhsa, ffn = (
        tuple((int(units), int(cost)) for units, cost in known[name]) for name in ("mhsa", "ffn")
    )
    return CostSpace(shape, "latency", fixed=int(known["rest"]), mhsa=mhsa, ffn=ffn)


def falling(costs: Sequence[int]) -> list[int]:
    """The least costs that never rise and are nowhere below these, but for the first.

    What removes more may take longer, by its size or by chance. A pair that is foretold to keep
    within a budget should do so, so such a cost counts for all that remove less, too; but never
    more than the first one, of removing nothing.
    """
    highest = list(itertools.accumulate(reversed(costs), max))[::-1]
    return [min(cost, costs[0]) for cost in highest]


def _ends(units: int, saved: int) -> Knots:
    """A line from what can be saved down to nothing."""
    return ((0, saved), (units, 0)) if units else ((0, 0),)


def _between(knots: Knots) -> list[int]:
    """Costs by units, from 0 to all; on the lines between the knots, rounded up."""
    costs = [knots[0][1]]
    for (first, dearer), (last, cheaper) in itertools.pairwise(knots):
        span, saved = last - first, dearer - cheaper
        costs += [dearer - saved * step // span for step in range(1, span + 1)]
    return costs
