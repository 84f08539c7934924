"""Bounds of blocks, attentions and FFNs by their names in a model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT, branches
from vit_ratio_opt.pruning.options import check_bounds
from vit_ratio_opt.space.bounds import FREE, BlockBounds, Bounds

__all__ = ["named_bounds", "resolve_bounds"]


def resolve_bounds(
    model: ViT, skip: Sequence[str] = (), bounds: Mapping[str, Sequence[float]] | None = None
) -> tuple[BlockBounds, ...]:
    """Return the bounds of each block of a model; empty where no block has any.

    Where several names hold the same module, all of their bounds are kept.

    Args:
        model: Supported model.
        skip: Names of blocks, attentions and FFNs that lose nothing.
        bounds: Smallest and largest share of the units that a part loses, by its name.

    Raises:
        InputError: A name is of no block, attention or FFN, or bounds contradict each other.
    """
    check_bounds(skip, bounds or {})
    given = [(name, (0.0, 0.0)) for name in skip]
    given += [(name, (float(low), float(high))) for name, (low, high) in (bounds or {}).items()]
    found = {branch.name: FREE for pair in branches(model) for branch in pair}
    for name, (low, high) in given:
        inside = [part for part in found if part == name or part.startswith(f"{name}.")]
        if not inside:
            raise InputError(_unknown(name, list(found)))
        for part in inside:
            found[part] = max(low, found[part][0]), min(high, found[part][1])
            if found[part][0] > found[part][1]:
                raise InputError(
                    f"The bounds of `{part}` contradict each other: it must lose at least "
                    f"{found[part][0]:g} and at most {found[part][1]:g} of its units."
                )
    if all(own == FREE for own in found.values()):
        return ()
    return tuple(
        BlockBounds(found[attention.name], found[ffn.name]) for attention, ffn in branches(model)
    )


def named_bounds(model: ViT, bounds: Sequence[BlockBounds]) -> dict[str, Bounds]:
    """Return the bounds of the attentions and FFNs that have any, by their names."""
    named: dict[str, Bounds] = {}
    for pair, own in zip(branches(model), bounds, strict=True) if bounds else ():
        named |= {part.name: b for part, b in zip(pair, own, strict=True) if b != FREE}
    return named


def _unknown(name: str, parts: list[str]) -> str:
    blocks = dict.fromkeys(part.rpartition(".")[0] for part in parts)
    nearest: Any = difflib.get_close_matches(name, [*blocks, *parts], n=1, cutoff=0)
    return (
        f"{name!r:.80} is no block, attention or FFN that can be pruned: did you mean "
        f"{nearest[0]!r}? Names are those of `model.named_modules()`."
    )
