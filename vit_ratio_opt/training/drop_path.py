"""Stochastic depth of a training, by timm's own modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from timm.layers import DropPath
from torch import nn

from vit_ratio_opt.errors import InputError

__all__ = ["drop_paths"]

# Names of the modules in the blocks of timm's models.
_NAMES = ("drop_path", "drop_path1", "drop_path2")


@contextmanager
def drop_paths(model: nn.Module, rate: float) -> Iterator[None]:
    """Train with stochastic depth inside the block; afterwards the model is as before.

    Args:
        model: A model of timm, whose blocks have modules for it.
        rate: Rate of the last block; it rises linearly from 0 in the first block. 0 changes
            nothing.

    Raises:
        InputError: The model has no such modules.
    """
    if rate == 0:
        yield
        return
    blocks = list(getattr(model, "blocks", nn.Module()).children())
    rates = [rate * number / max(1, len(blocks) - 1) for number in range(len(blocks))]
    places = [
        (module, name, block_rate)
        for block, block_rate in zip(blocks, rates, strict=True)
        for module in block.modules()
        for name in _NAMES
        if isinstance(getattr(module, name, None), nn.Module)
    ]
    if not places:
        raise InputError(
            f"`drop_path` needs the blocks of a timm model, but got a {type(model).__name__}: "
            "leave it out."
        )
    before = [getattr(module, name) for module, name, _ in places]
    for module, name, block_rate in places:
        setattr(module, name, DropPath(block_rate))
    try:
        yield
    finally:
        for (module, name, _), old in zip(places, before, strict=True):
            setattr(module, name, old.train(module.training))
