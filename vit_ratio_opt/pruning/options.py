"""Options of pruning: what is removed from a model, and how.

One of :class:`Structural` (weights), :class:`Tokens` (patches) and :class:`Both` names a strategy;
:class:`CalibrationOptions` says which images it is measured on. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

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
    "Pruning",
    "Structural",
    "Tokens",
    "check_allocation",
    "pruning_options",
]

Allocation = Literal["global", "energy", "uniform"]
"""How a ratio is allocated across blocks, see :func:`vit_ratio_opt.prune`."""


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
            steps.
        criterion: Function ``(model, batches) -> Importance`` that scores heads and neurons, with
            ``unit="head"`` only; by default :func:`vit_ratio_opt.taylor_importance`. A study
            stores its name.

    Raises:
        InputError: A value is not allowed, or ``criterion`` has no name or scores no ranks.
    """

    unit: MhsaUnit = "rank"
    repair: bool = True
    allocation: Allocation = "global"
    round_to: int = 1
    criterion: Criterion | None = None

    def __post_init__(self) -> None:
        if self.unit not in get_args(MhsaUnit):
            raise InputError(f"`mhsa_unit` must be 'head' or 'rank', but got {self.unit!r}.")
        check_allocation(self.allocation)
        object.__setattr__(self, "round_to", check_count("round_to", self.round_to))
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
        round_to: Ranks and neurons left in a block are multiples of this.
        by_cascade: Share of the saving, in logarithms, that leaving out patches brings, in [0, 1];
            see :class:`~vit_ratio_opt.space.both.Combined`.
        ranges: How far the attention of each block reaches, for a rule that depends on it;
            measured on the calibration images by default.

    Raises:
        InputError: A value is not allowed, or the rule removes heads.
    """

    rule: CascadeRule = LATE
    repair: bool = True
    round_to: int = 1
    by_cascade: float = 0.05
    ranges: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_rule(self.rule)
        if self.rule.heads:
            raise InputError("A rule with `heads` is for the strategy 'cascade' only.")
        object.__setattr__(self, "round_to", check_count("round_to", self.round_to))
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

    Raises:
        InputError: ``images`` is no integer of at least 1, or ``cache`` is no path.
    """

    images: int = 512
    cache: str | Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", check_count("calibration_images", self.images))
        check_path("cache", self.cache)


def pruning_options(
    strategy: str,
    *,
    rule: CascadeRule | None = None,
    unit: MhsaUnit = "rank",
    repair: bool = True,
    allocation: Allocation = "global",
    round_to: int = 1,
    by_cascade: float | None = None,
    criterion: Criterion | None = None,
) -> Pruning:
    """Return the options of a strategy given by name, as a study stores it or a user types it.

    Args:
        strategy: ``"structural"``, ``"cascade"`` or ``"both"``.
        rule: Rule by which :class:`Tokens` or :class:`Both` leave out patches; None for their
            default.
        unit: Unit that :class:`Structural` removes from the attention.
        repair: Whether ``proj`` and ``fc2`` are refitted after pruning.
        allocation: How each ratio is allocated across blocks.
        round_to: Number of which ranks and neurons left in a block are multiples.
        by_cascade: Share of the saving that :class:`Both` takes from patches; None for its
            default.
        criterion: Function that scores heads and neurons; None for the built-in one.

    Raises:
        InputError: The strategy is unknown, or an option is not for it.
    """
    if strategy not in get_args(Strategy):
        raise InputError(f"`strategy` must be one of {get_args(Strategy)}, but got {strategy!r}.")
    if by_cascade is not None and strategy != "both":
        raise InputError("`by_cascade` is for the strategy 'both'.")
    structural = Structural(
        unit=unit, repair=repair, allocation=allocation, round_to=round_to, criterion=criterion
    )
    if strategy == "structural":
        if rule is not None:
            raise InputError("`rule` (--cascade) is for the strategies 'cascade' and 'both'.")
        return structural
    if strategy == "both":
        if unit != "rank" or allocation != "global":
            raise InputError(
                "`strategy='both'` needs ranks and allocation 'global', but got "
                f"mhsa_unit={unit!r} and {allocation=}."
            )
        both = Both(rule=rule or LATE, repair=repair, round_to=round_to)
        return both if by_cascade is None else replace(both, by_cascade=by_cascade)
    default = Structural()
    for name in ("round_to", "unit", "allocation", "repair", "criterion"):
        if getattr(structural, name) != getattr(default, name):
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


def _check_rule(rule: object) -> None:
    if not isinstance(rule, CascadeRule):
        raise InputError(
            f"`rule` must be a CascadeRule such as CP_VIT or LATE, but got {rule!r:.80}."
        )
