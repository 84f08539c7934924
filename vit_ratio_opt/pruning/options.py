"""Options of pruning: what is removed from a model, and how.

One of :class:`Structural` (weights), :class:`Tokens` (patches) and :class:`Both` names a strategy;
:class:`CalibrationOptions` says which images it is measured on. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from vit_ratio_opt.data.task import Task, check_task
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.tokens import CP_VIT, LATE, CascadeRule, Strategy
from vit_ratio_opt.space.units import MhsaUnit
from vit_ratio_opt.utils.checks import check_count, check_flags, check_number, check_path

if TYPE_CHECKING:
    from vit_ratio_opt.pruning.importance import Criterion

__all__ = [
    "Allocation",
    "Both",
    "CalibrationOptions",
    "CalibrationPrecision",
    "Pruning",
    "RoundTo",
    "Structural",
    "Tokens",
    "check_allocation",
    "check_bounds",
    "check_round_to",
    "pruning_options",
]

RoundTo: TypeAlias = int | Literal["auto"]
"""Number of which sizes are multiples, or ``"auto"``: the one that fits the device."""

Allocation = Literal["global", "energy", "uniform"]
"""How a ratio is allocated across blocks, see :func:`vit_ratio_opt.prune`."""

CalibrationPrecision = Literal["float32", "bfloat16"]
"""Precision of the matrix products in the passes of calibration and repair."""


def check_calibration_precision(precision: str) -> None:
    """Refuse a precision that passes of a calibration cannot have.

    Raises:
        InputError: It is none of :data:`CalibrationPrecision`.
    """
    if precision not in get_args(CalibrationPrecision):
        raise InputError(
            f"`precision` of the calibration must be one of {get_args(CalibrationPrecision)}, "
            f"but got {precision!r:.80}."
        )


@dataclass(frozen=True, kw_only=True)
class Structural:
    """Remove weights: heads or their dimensions, and hidden neurons of the FFN.

    Args:
        unit: What is removed from the attention. ``"rank"``: dimensions of all heads, after these
            were factorised, and the neurons whose output the remaining ones reconstruct best.
            ``"head"``: whole heads and neurons with the lowest scores of ``criterion``.
        repair: Whether ``proj`` and ``fc2`` are refitted after pruning, see
            :func:`vit_ratio_opt.repair`.
        allocation: How each ratio is allocated across blocks, see :func:`vit_ratio_opt.prune`.
        round_to: Ranks and neurons left in a block are multiples of this; ratios count in such
            steps. ``"auto"`` is what the device computes fast, see
            :func:`vit_ratio_opt.pruning.rounding.usual_round_to`; a study stores the number.
        criterion: Function ``(model, batches) -> Importance`` that scores heads and neurons, with
            ``unit="head"`` only; by default :func:`vit_ratio_opt.taylor_importance`. A study
            stores its name.
        skip: Blocks, attentions and FFNs that lose nothing, by their names in the model, such as
            ``("blocks.0", "blocks.11.attn")``. A ratio still counts the units of all blocks.
        bounds: Smallest and largest share of the units that a block, an attention or an FFN loses,
            by its name, such as ``{"blocks.3.mlp": (0.0, 0.5)}``.

    Raises:
        InputError: A value is not allowed, or ``criterion`` has no name or scores no ranks.
    """

    unit: MhsaUnit = "rank"
    repair: bool = True
    allocation: Allocation = "global"
    round_to: RoundTo = "auto"
    criterion: Criterion | None = None
    skip: tuple[str, ...] = ()
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_bounds(self.skip, self.bounds)
        object.__setattr__(self, "skip", tuple(self.skip))
        object.__setattr__(self, "bounds", {name: tuple(b) for name, b in self.bounds.items()})
        if self.unit not in get_args(MhsaUnit):
            raise InputError(f"`mhsa_unit` must be 'head' or 'rank', but got {self.unit!r}.")
        check_allocation(self.allocation)
        object.__setattr__(self, "round_to", check_round_to(self.round_to))
        check_flags(self, "repair")
        if self.criterion is None:
            return
        if not callable(self.criterion):
            raise InputError(
                "`criterion` must be a function (model, batches) -> Importance, but got "
                f"{self.criterion!r:.80}."
            )
        if self.unit == "rank":
            raise InputError(
                "`criterion` scores heads and neurons, no ranks: use it with unit='head'."
            )
        if not isinstance(self.criterion_name, str) or self.criterion_name == "<lambda>":
            raise InputError(
                "`criterion` must have a name, which the study stores, but got "
                f"{self.criterion!r:.80}: define it with `def`, or give it an attribute `name`."
            )

    @property
    def name(self) -> Strategy:
        """Return the word that a study stores and ``--strategy`` takes."""
        return "structural"

    @property
    def criterion_name(self) -> str | None:
        """Return the name of the criterion that a study stores; None for the built-in choice."""
        if self.criterion is None:
            return None
        name: str | None = getattr(self.criterion, "name", None)
        return name or getattr(self.criterion, "__name__", None)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Leave out patches, image by image, and keep all weights.

    Args:
        rule: Rule that chooses the patches to leave out in each block.
        ranges: How far the attention of each block reaches, for a rule that depends on it;
            measured on the calibration images by default.
    """

    rule: CascadeRule = CP_VIT
    ranges: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_rule(self.rule)

    @property
    def name(self) -> Strategy:
        """Return the word that a study stores and ``--strategy`` takes."""
        return "cascade"


@dataclass(frozen=True, kw_only=True)
class Both:
    """Remove weights and leave out patches; a ratio is a share of the MACs of a module.

    Args:
        rule: Rule that chooses the patches to leave out in each block.
        repair: Whether ``proj`` and ``fc2`` are refitted after pruning, see
            :func:`vit_ratio_opt.repair`.
        round_to: Ranks and neurons left in a block are multiples of this; ``"auto"`` as in
            :class:`Structural`.
        by_cascade: Share of the saving, in logarithms, that leaving out patches brings, in [0, 1];
            see :class:`~vit_ratio_opt.space.both.Combined`.
        ranges: How far the attention of each block reaches, for a rule that depends on it;
            measured on the calibration images by default.

    Raises:
        InputError: A value is not allowed, or the rule removes heads.
    """

    rule: CascadeRule = LATE
    repair: bool = True
    round_to: RoundTo = "auto"
    by_cascade: float = 0.05
    ranges: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_rule(self.rule)
        if self.rule.heads:
            raise InputError("A rule with `heads` is for the strategy 'cascade' only.")
        object.__setattr__(self, "round_to", check_round_to(self.round_to))
        check_flags(self, "repair")
        by_cascade = check_number("by_cascade", self.by_cascade, "in [0, 1]", least=0, most=1)
        object.__setattr__(self, "by_cascade", by_cascade)

    @property
    def name(self) -> Strategy:
        """Return the word that a study stores and ``--strategy`` takes."""
        return "both"


Pruning: TypeAlias = Structural | Tokens | Both
"""Options of one of the three strategies."""


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Training images that importance, factors and repair are computed from.

    Args:
        images: Number of training images of the calibration.
        cache: Folder in which calibrations are kept for all trials and workers; the user's cache
            folder by default.
        task: Meaning of the model's outputs, see :func:`vit_ratio_opt.calibrate`; by default the
            task of the data set, and ``"single-label"`` where only images are given.
        precision: Precision of the passes of calibration and repair, ``"float32"`` or
            ``"bfloat16"``. By default that of the study: bfloat16 where the study evaluates its
            models in it, else float32; and float32 outside of a study.
        memory: Largest memory in GiB for what the dense model gave on the images. More of it stays
            in a file of the cache and is read from there, which changes no result.

    Raises:
        InputError: ``images`` is no integer of at least 1, ``cache`` is no path, ``memory`` is no
            number of at least 0, or the task or the precision is unknown.
    """

    images: int = 512
    cache: str | Path | None = None
    task: Task | None = None
    precision: CalibrationPrecision | None = None
    memory: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", check_count("calibration_images", self.images))
        memory = check_number(
            "calibration_memory", self.memory, "at least 0, in GiB", least=0, most=math.inf
        )
        object.__setattr__(self, "memory", memory)
        if self.precision is not None:
            check_calibration_precision(self.precision)
        check_path("cache", self.cache)
        if self.task is not None:
            check_task(self.task)


def pruning_options(
    strategy: str,
    *,
    rule: CascadeRule | None = None,
    by_cascade: float | None = None,
    **weights: Any,
) -> Pruning:
    """Return the options of a strategy given by name, as a study stores it or a user types it.

    Args:
        strategy: ``"structural"``, ``"cascade"`` or ``"both"``.
        rule: Rule by which :class:`Tokens` or :class:`Both` leave out patches; None for their
            default.
        by_cascade: Share of the saving that :class:`Both` takes from patches; None for its
            default.
        weights: Options of :class:`Structural`.

    Raises:
        InputError: The strategy is unknown, or an option is not for it.
    """
    if strategy not in get_args(Strategy):
        raise InputError(f"`strategy` must be one of {get_args(Strategy)}, but got {strategy!r}.")
    if by_cascade is not None and strategy != "both":
        raise InputError("`by_cascade` is for the strategy 'both'.")
    structural, default = Structural(**weights), Structural()
    changed = [
        option.name
        for option in fields(structural)
        if getattr(structural, option.name) != getattr(default, option.name)
    ]
    if strategy == "structural":
        if rule is not None:
            raise InputError("`rule` (--cascade) is for the strategies 'cascade' and 'both'.")
        return structural
    if strategy == "both":
        if structural.unit != "rank" or structural.allocation != "global":
            raise InputError(
                "`strategy='both'` needs ranks and allocation 'global', but got "
                f"mhsa_unit={structural.unit!r} and allocation={structural.allocation!r}."
            )
        for name in {*changed} - {"repair", "round_to"}:
            raise InputError(f"`{name}` is for the strategy 'structural', not for 'both'.")
        both = Both(rule=rule or LATE, repair=structural.repair, round_to=structural.round_to)
        return both if by_cascade is None else replace(both, by_cascade=by_cascade)
    for name in changed:
        raise InputError(f"`{name}` is for structural pruning: a cascade cuts no weights.")
    return Tokens(rule=rule or CP_VIT)


def check_allocation(allocation: str) -> None:
    """Refuse an unknown allocation.

    Raises:
        InputError: ``allocation`` is none of :data:`Allocation`.
    """
    if allocation not in get_args(Allocation):
        raise InputError(
            f"`allocation` must be 'global', 'energy' or 'uniform', but got {allocation!r}."
        )


def check_round_to(round_to: object) -> RoundTo:
    """Return a number of which sizes are multiples, or ``"auto"``.

    Raises:
        InputError: It is neither ``"auto"`` nor an integer of at least 1.
    """
    return "auto" if round_to == "auto" else check_count("round_to", round_to)


def check_bounds(skip: object, bounds: object) -> None:
    """Refuse names that are no texts, and bounds that are no two shares.

    Raises:
        InputError: ``skip`` or ``bounds`` has such a value.
    """
    if not isinstance(skip, (tuple, list)) or not all(isinstance(name, str) for name in skip):
        raise InputError(
            f"`skip` must be names in a tuple, such as ('blocks.0',), but got {skip!r:.80}."
        )
    if not isinstance(bounds, Mapping):
        raise InputError(
            "`bounds` must be a dictionary such as {'blocks.3.mlp': (0.0, 0.5)}, but got "
            f"{bounds!r:.80}."
        )
    for name, shares in bounds.items():
        is_pair = isinstance(shares, (tuple, list)) and len(shares) == 2
        numbers = is_pair and all(type(share) in (int, float) for share in shares)
        if not isinstance(name, str) or not numbers or not 0 <= shares[0] <= shares[1] <= 1:
            raise InputError(
                f"`bounds[{name!r:.80}]` must be two shares that rise, such as (0.0, 0.5), but is "
                f"{shares!r:.80}."
            )


def _check_rule(rule: object) -> None:
    if not isinstance(rule, CascadeRule):
        raise InputError(
            f"`rule` must be a CascadeRule such as CP_VIT or LATE, but got {rule!r:.80}."
        )
