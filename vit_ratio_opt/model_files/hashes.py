"""Hashes of weights: whether two models have the same, and whether a file is damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

__all__ = ["checksum", "weights_hash"]


def weights_hash(model: torch.nn.Module) -> str:
    """Hash of names, shapes and values of all weights."""
    return _tensors_hash(model.state_dict())[:16]


def checksum(state: Mapping[str, torch.Tensor], manifest: str) -> str:
    """Return a hash of all that a file of a pruned model holds; it tells damage, not malice."""
    return hashlib.sha256(f"{_tensors_hash(state)} {manifest}".encode()).hexdigest()


def _tensors_hash(state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
