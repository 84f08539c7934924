"""The options of ``search`` and ``prune`` that say what is pruned, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from vit_ratio_opt.cli.command import NumberOrAuto, Panel, check_finite, check_text, option
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.pruning.options import CalibrationOptions, Pruning, pruning_options
from vit_ratio_opt.space.tokens import CP_VIT, LATE, CascadeRule
from vit_ratio_opt.utils.text import shorten

__all__ = ["PruningOptions", "chosen_pruning"]


_MOST = 65_536
_AUTO = NumberOrAuto("auto")


def _parse_round_to(value: object) -> NumberOrAuto:
    text = str(value)  # a config file has numbers
    if text != "auto" and not (text.isascii() and text.isdigit() and 1 <= int(text) <= _MOST):
        raise typer.BadParameter(f"{shorten(text)!r} is neither auto nor in 1 to {_MOST}.")
    return NumberOrAuto(text)


@dataclass(frozen=True, kw_only=True)
class PruningOptions:
    """What is removed from the model, and how."""

    strategy: Annotated[
        Literal["structural", "cascade", "both"],
        option(
            Panel.PRUNING,
            "What is pruned: weights (structural), the tokens that pass through the blocks "
            "(cascade), or both.",
        ),
    ] = "structural"
    cascade: Annotated[
        Literal["cp-vit", "late"] | None,
        option(
            Panel.PRUNING,
            "Rule by which tokens are dropped: as CP-ViT does (the default of --strategy "
            "cascade), or in late blocks and as queries only, which loses less accuracy (the "
            "default of --strategy both).",
        ),
    ] = None
    mhsa_unit: Annotated[
        Literal["rank", "head"],
        option(
            Panel.PRUNING,
            "What is removed from attention: dimensions of factorised heads (rank), or whole "
            "heads by Taylor scores (head).",
        ),
    ] = "rank"
    repair: Annotated[
        bool,
        option(
            Panel.PRUNING, "Reconstruct the layers proj and fc2 by least squares after pruning."
        ),
    ] = True
    round_to: Annotated[
        NumberOrAuto,
        option(
            Panel.PRUNING,
            "Number of which all ranks and hidden sizes are multiples, for fast kernels. auto: 8 "
            "on CUDA, 1 elsewhere; where the latency is limited, what is measured to be fast.",
            parser=_parse_round_to,
            metavar="INTEGER|auto",
        ),
    ] = _AUTO
    skip: Annotated[
        str | None,
        option(
            Panel.PRUNING,
            "Parts of the model that are not pruned, with commas between them: blocks, attentions "
            "and FFNs, such as blocks.0,blocks.11.attn. Fine-tuning still trains them.",
            callback=check_text,
        ),
    ] = None
    bounds: Annotated[
        str | None,
        option(
            Panel.PRUNING,
            "Smallest and largest share of the units that parts of the model lose, with commas "
            "between the parts, such as blocks.3.mlp=0:0.5,blocks.4=0.1:0.6.",
            callback=check_text,
        ),
    ] = None
    calibration_memory: Annotated[
        float,
        option(
            Panel.PRUNING,
            "Largest memory in GiB for what the dense model gave on the calibration images. More "
            "of it stays in a file of the cache, which changes no result.",
            min=0,
            callback=check_finite,
        ),
    ] = CalibrationOptions.memory


def chosen_pruning(options: PruningOptions) -> Pruning:
    """Return the pruning that the options describe.

    Raises:
        InputError: An option is not for the strategy, or the bounds are no bounds.
    """
    rules: dict[str | None, CascadeRule | None] = {"cp-vit": CP_VIT, "late": LATE, None: None}
    return pruning_options(
        options.strategy,
        rule=rules[options.cascade],
        unit=options.mhsa_unit,
        repair=options.repair,
        round_to="auto" if options.round_to == "auto" else int(options.round_to),
        skip=_names(options.skip),
        bounds=_bounds(options.bounds),
    )


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _bounds(text: str | None) -> dict[str, tuple[float, float]]:
    """Return the bounds in a text such as ``blocks.3.mlp=0:0.5,blocks.4=0.1:0.6``."""
    bounds: dict[str, tuple[float, float]] = {}
    for part in _names(text):
        name, _, shares = (piece.strip() for piece in part.partition("="))
        if name in bounds:
            raise InputError(f"--bounds names {name!r:.80} twice: give it once.")
        try:
            low, high = (float(share) for share in shares.split(":"))
        except ValueError:
            raise InputError(
                "--bounds takes NAME=LOW:HIGH with commas between them, such as "
                f"blocks.3.mlp=0:0.5, but got {part!r:.80}."
            ) from None
        bounds[name] = low, high
    return bounds
