"""Hash state dicts, and check whether one fits a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.text import shorten

__all__ = ["check_fits", "checksum", "find_misfit", "weights_hash"]

_MOST_NAMED = 3


def weights_hash(model: nn.Module) -> str:
    """Return a hash of the names, shapes and values of all weights."""
    return _tensors_hash(model.state_dict())[:16]


def checksum(state: Mapping[str, torch.Tensor], manifest: str) -> str:
    """Return a hash of a pruned model's tensors and manifest; it detects damage, not malice."""
    return hashlib.sha256(f"{_tensors_hash(state)} {manifest}".encode()).hexdigest()


def check_fits(model: nn.Module, state: Mapping[str, torch.Tensor], where: str | Path) -> None:
    """Refuse a state dict that has other tensors than the model, or tensors of other shapes.

    Args:
        model: The model.
        state: The tensors.
        where: Source of the tensors, for the message.

    Raises:
        InputError: They do not fit; the message names the first of them.
    """
    difference = find_misfit(model, state)
    if difference is not None:
        hint = " It may be of another model than the named one." if "missing" in difference else ""
        raise InputError(f"{where} does not fit the model: {difference}.{hint}")


def find_misfit(model: nn.Module, state: Mapping[str, torch.Tensor]) -> str | None:
    """Return how tensors differ from a model's, as part of a sentence; None where they fit."""
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or extra:
        return ", ".join(
            f"{len(names)} tensors {verb} {[shorten(name, 80) for name in names[:_MOST_NAMED]]}"
            for names, verb in ((missing, "are missing"), (extra, "are not the model's"))
            if names
        )
    for key, tensor in own.items():
        if state[key].shape != tensor.shape:
            return (
                f"`{key}` has shape {tuple(state[key].shape)}, but the model's has "
                f"{tuple(tensor.shape)}"
            )
    return None


def _tensors_hash(state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
