"""The costs of structural pruning: MACs, parameters, latency, or an object of the user's own.

The cost of a pair is a sum of three integers: what no pruning changes, what the attention costs
by the units that are removed from it, and what the FFN costs by the neurons that are removed. For
MACs and parameters they are known in closed form. For latency they are measured, see
:mod:`vit_ratio_opt.latency.curves`, and a study stores them, so that all workers search the same
pairs on any machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, get_args

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.pairs import CostLabel
from vit_ratio_opt.space.shape import ViTShape
from vit_ratio_opt.space.units import StructuralUnits

__all__ = [
    "MACS",
    "PARAMS",
    "Cost",
    "CostName",
    "CostTable",
    "Knots",
    "Latency",
    "cost_label",
    "cost_named",
    "monotone_envelope",
]

CostName = Literal["macs", "params", "latency"]
"""Name of a built-in cost, for the command line."""

Knots = tuple[tuple[int, int], ...]
"""Removed units, rising from 0, each with the cost that is left; linear between the knots."""


@dataclass(frozen=True)
class CostTable:
    """The cost of every pair of structural pruning, in whole units of any kind.

    Args:
        fixed: Cost that no pruning changes.
        mhsa: Cost of the attention of all blocks by the heads, or ranks, that are removed.
        ffn: Cost of the FFN of all blocks by the neurons that are removed.
    """

    fixed: int
    mhsa: Knots
    ffn: Knots

    @classmethod
    def linear(
        cls, units: StructuralUnits, *, dense: int, per_mhsa_unit: int, per_neuron: int
    ) -> CostTable:
        """Return the table of a cost that falls by the same amount with every removed unit.

        Args:
            units: Units of the dense model.
            dense: Cost of the dense model.
            per_mhsa_unit: Cost of one head, or one rank: see ``units.mhsa_unit``.
            per_neuron: Cost of one hidden neuron.
        """
        mhsa, ffn = units.removed(units.max_pair)
        saved = mhsa * per_mhsa_unit, ffn * per_neuron
        return cls(dense - sum(saved), _line(mhsa, saved[0]), _line(ffn, saved[1]))

    def check(self, units: StructuralUnits) -> None:
        """Refuse a table that does not fit the units of a model.

        Raises:
            InputError: Knots do not reach from 0 to all units that can be removed, or a cost
                rises.
        """
        most = units.removed(units.max_pair)
        for name, knots, last in (("mhsa", self.mhsa, most[0]), ("ffn", self.ffn, most[1])):
            removed, costs = [knot[0] for knot in knots], [knot[1] for knot in knots]
            if not removed or (removed[0], removed[-1]) != (0, last):
                raise InputError(
                    f"`{name}` must have knots from 0 to {last} units, not {removed}."
                )
            if sorted(set(removed)) != removed:
                raise InputError(
                    f"`{name}` must have knots from 0 to {last} units, not {removed}."
                )
            if sorted(costs, reverse=True) != costs:
                raise InputError(f"The costs in `{name}` must not rise, but are {costs}.")

    def by_units(self) -> tuple[list[int], list[int]]:
        """Return the costs of attention and FFN by removed units, from 0 to all."""
        return _interpolate(self.mhsa), _interpolate(self.ffn)


class Cost(CostLabel, Protocol):
    """A cost of structural pruning: inherit from it, name the cost and give its price.

    Example:
        >>> class WeightBytes(Cost):  # weights in 8 bits
        ...     name, word, constraint = "int8", "bytes of weights", "bytes"
        ...
        ...     def price(self, units: StructuralUnits) -> CostTable:
        ...         return PARAMS.price(units)
    """

    def price(self, units: StructuralUnits) -> CostTable:
        """Return the cost of every pair.

        Args:
            units: Units of the dense model, with its shape.

        Raises:
            InputError: The cost cannot be given for this model.
        """

    def count(self, shape: ViTShape) -> int | None:
        """Return the exact cost of a model, or None where only pairs have a price.

        Args:
            shape: Shape of a dense or pruned model.
        """
        return None

    def check(self, *, strategy: str = "structural", iterative: bool = False) -> None:
        """Refuse a search that this cost cannot be used in.

        Args:
            strategy: What is pruned: ``"structural"``, ``"cascade"`` or ``"both"``.
            iterative: Whether trials start from the models of other trials.

        Raises:
            InputError: With the reason.
        """
        _check_structural(self, strategy, "its price is known for structural pruning only")


@dataclass(frozen=True)
class _Macs(Cost):
    name: ClassVar[str] = "macs"
    word: ClassVar[str] = "FLOPs"
    constraint: ClassVar[str] = "flops"

    def price(self, units: StructuralUnits) -> CostTable:
        return CostTable.linear(
            units,
            dense=units.shape.macs,
            per_mhsa_unit=units.mhsa_unit_macs,
            per_neuron=units.shape.neuron_macs,
        )

    def count(self, shape: ViTShape) -> int:
        return shape.macs

    def check(self, *, strategy: str = "structural", iterative: bool = False) -> None:
        """Accept every search."""


@dataclass(frozen=True)
class _Params(Cost):
    name: ClassVar[str] = "params"
    word: ClassVar[str] = "parameters"
    constraint: ClassVar[str] = "params"

    def price(self, units: StructuralUnits) -> CostTable:
        return CostTable.linear(
            units,
            dense=units.shape.params,
            per_mhsa_unit=units.mhsa_unit_params,
            per_neuron=units.shape.neuron_params,
        )

    def count(self, shape: ViTShape) -> int:
        return shape.params

    def check(self, *, strategy: str = "structural", iterative: bool = False) -> None:
        _check_structural(self, strategy, "leaving out tokens removes no parameter")


MACS = _Macs()
"""Multiply-adds of one image, which papers call FLOPs."""

PARAMS = _Params()
"""Parameters of the model."""


@dataclass(frozen=True)
class Latency(Cost):
    """The time that a batch takes on one device, in nanoseconds.

    Args:
        batch: Images in the batch.
        curves: The measured time by removed units: ``rest``, ``mhsa`` and ``ffn`` of
            :func:`vit_ratio_opt.latency.curves.predict_latency`, as a study stores them. None
            before they are measured.

    Raises:
        InputError: ``batch`` is below 1.
    """

    batch: int = 1
    curves: Mapping[str, Any] | None = field(default=None, hash=False, repr=False)
    name: ClassVar[str] = "latency"
    word: ClassVar[str] = "latency"
    constraint: ClassVar[str] = "latency"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"`latency_batch` must be at least 1, but got {self.batch!r}.")

    def price(self, units: StructuralUnits) -> CostTable:
        """Return the predicted latency of every pair.

        Raises:
            InputError: The latency was not measured.
        """
        if self.curves is None:
            raise InputError(
                "The latency of pairs is not known before it is measured: give `curves`."
            )
        mhsa, ffn = (
            tuple((int(removed), int(cost)) for removed, cost in self.curves[name])
            for name in ("mhsa", "ffn")
        )
        return CostTable(int(self.curves["rest"]), mhsa, ffn)

    def check(self, *, strategy: str = "structural", iterative: bool = False) -> None:
        """Refuse a search in which latency is not predicted.

        Raises:
            InputError: With the reason.
        """
        why = "the latency of a model that leaves out tokens is not predicted"
        _check_structural(self, strategy, why)
        if iterative:
            raise InputError(
                "`cost='latency'` does not go with `iterative`: the sizes of blocks, and with "
                "them the latency, would depend on the model that a trial starts from."
            )


def cost_named(name: str, *, latency_batch: int = 1) -> Cost:
    """Return the built-in cost with a name.

    Args:
        name: ``"macs"``, ``"params"`` or ``"latency"``.
        latency_batch: Images in the batch of the cost ``"latency"``; 1 for the other costs.

    Raises:
        InputError: There is no such cost, or ``latency_batch`` does not go with it.
    """
    if name not in get_args(CostName):
        raise InputError(f"`cost` must be one of {get_args(CostName)}, but got {name!r}.")
    latency = Latency(latency_batch)
    if name != latency.name and latency_batch != 1:
        raise InputError(f"`latency_batch` is for the cost 'latency', but the cost is {name!r}.")
    return {cost.name: cost for cost in (MACS, PARAMS, latency)}[name]


@dataclass(frozen=True)
class _Label:
    name: str
    word: str
    constraint: str


def cost_label(name: str) -> CostLabel:
    """Return how the cost with a name is called; for reading the settings of a study.

    The word and the constraint of a cost that is not built in are its name.
    """
    if name in get_args(CostName):
        return cost_named(name)
    return _Label(name, name, name)


def monotone_envelope(costs: Sequence[int]) -> list[int]:
    """Return the smallest non-increasing sequence above ``costs``, clipped to ``costs[0]``.

    A model with more units removed may take longer, because of its sizes or by chance. A pair
    that is predicted to keep a budget should keep it, so such a cost counts for every model with
    fewer units removed too; but no cost exceeds the first one, of the dense model.
    """
    highest = list(itertools.accumulate(reversed(costs), max))[::-1]
    return [min(cost, costs[0]) for cost in highest]


def _check_structural(cost: CostLabel, strategy: str, why: str) -> None:
    if strategy != "structural":
        raise InputError(f"`cost={cost.name!r}` needs the strategy 'structural': {why}.")


def _line(units: int, saved: int) -> Knots:
    """Return knots from ``saved`` down to 0."""
    return ((0, saved), (units, 0)) if units else ((0, 0),)


def _interpolate(knots: Knots) -> list[int]:
    """Return the costs by removed units, from 0 to all, rounded up between the knots."""
    costs = [knots[0][1]]
    for (first, dearer), (last, cheaper) in itertools.pairwise(knots):
        span, saved = last - first, dearer - cheaper
        costs += [dearer - saved * step // span for step in range(1, span + 1)]
    return costs
