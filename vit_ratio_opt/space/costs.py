"""The costs of structural pruning: MACs, parameters, latency, or a custom object.

The costs of pairs in MACs and parameters are known in closed form. Latency is measured, see
:mod:`vit_ratio_opt.latency.curves`, and a study stores it, so that all workers search the same
pairs on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, get_args

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.cost_table import CostTable
from vit_ratio_opt.space.pairs import CostLabel
from vit_ratio_opt.space.shape import ViTShape
from vit_ratio_opt.space.units import StructuralUnits

__all__ = [
    "MACS",
    "PARAMS",
    "Cost",
    "CostName",
    "Engine",
    "Latency",
    "cost_label",
    "cost_named",
]

CostName = Literal["macs", "params", "latency"]
"""Name of a built-in cost, for the command line."""

Engine = Literal["eager", "compiled", "onnxruntime"]
"""What runs models while their latency is measured.

``"eager"`` is PyTorch as it is, ``"compiled"`` has the blocks compiled by ``torch.compile``, and
``"onnxruntime"`` runs exported files in float32.
"""


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
            strategy: Strategy of the search: ``"structural"``, ``"cascade"`` or ``"both"``.
            iterative: Whether trials start from the models of other trials.

        Raises:
            InputError: The search does not support this cost; the message has the reason.
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
        engine: What runs the models, the dense one too: ``"eager"`` PyTorch, ``"compiled"`` blocks
            by ``torch.compile``, or ``"onnxruntime"`` with exported files.

    Raises:
        InputError: ``batch`` is below 1, or the engine is unknown.
    """

    batch: int = 1
    curves: Mapping[str, Any] | None = field(default=None, hash=False, repr=False)
    engine: Engine = field(default="eager", kw_only=True)
    name: ClassVar[str] = "latency"
    word: ClassVar[str] = "latency"
    constraint: ClassVar[str] = "latency"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"`latency_batch` must be at least 1, but got {self.batch!r}.")
        if self.engine not in get_args(Engine):
            raise InputError(
                f"`latency_engine` must be one of {get_args(Engine)}, but got {self.engine!r:.80}."
            )

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
            InputError: The search does not support this cost; the message has the reason.
        """
        why = "the latency of a model that leaves out tokens is not predicted"
        _check_structural(self, strategy, why)
        if iterative:
            raise InputError(
                "`cost='latency'` does not go with `iterative`: the sizes of blocks, and with "
                "them the latency, would depend on the model that a trial starts from."
            )


def cost_named(name: str, *, latency_batch: int = 1, latency_engine: Engine = "eager") -> Cost:
    """Return the built-in cost with a name.

    Args:
        name: ``"macs"``, ``"params"`` or ``"latency"``.
        latency_batch: Images in the batch of the cost ``"latency"``; 1 for the other costs.
        latency_engine: What runs the models of the cost ``"latency"``.

    Raises:
        InputError: There is no such cost, or an option is for the cost ``"latency"``.
    """
    if name not in get_args(CostName):
        raise InputError(f"`cost` must be one of {get_args(CostName)}, but got {name!r}.")
    latency = Latency(latency_batch, engine=latency_engine)
    for option, is_given in (
        ("latency_batch", latency_batch != 1),
        ("latency_engine", latency_engine != "eager"),
    ):
        if is_given and name != latency.name:
            raise InputError(f"`{option}` is for the cost 'latency', but the cost is {name!r}.")
    return {cost.name: cost for cost in (MACS, PARAMS, latency)}[name]


@dataclass(frozen=True)
class _Label:
    name: str
    word: str
    constraint: str


def cost_label(name: str) -> CostLabel:
    """Return the label of the cost with a name, for reading the settings of a study.

    The word and the constraint of a cost that is not built in are its name.
    """
    if name in get_args(CostName):
        return cost_named(name)
    return _Label(name, name, name)


def _check_structural(cost: CostLabel, strategy: str, why: str) -> None:
    if strategy != "structural":
        raise InputError(f"`cost={cost.name!r}` needs the strategy 'structural': {why}.")
