"""Rename the tensors of DINOv2's and DINOv3's own checkpoints to timm's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

__all__ = ["rename_official"]

# DINOv2 numbers a block by its chunk and its place in the model. The SwiGLU of DINOv2 has one
# layer for gate and values (w12), that of DINOv3 has two.
_RENAMES = (
    (r"^blocks\.\d+\.(?=\d+\.)", "blocks."),
    (r"^(?:register|storage)_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)


def rename_official(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors in timm's names; those that are in timm's names already are unchanged.

    The token for masked patches is left out. In DINOv2 only the class token has a position of its
    own, which is added to the token, since timm's models with registers have none. In DINOv3 keys
    have a bias that a mask sets to zero.

    Args:
        state: The tensors of a file, without the prefixes of wrappers.
    """
    is_rotary = "storage_tokens" in state
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        if is_rotary:
            key = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", key)
            if key.endswith(".attn.qkv.bias"):
                queries, keys, values = tensor.chunk(3)
                tensor = torch.cat([queries, torch.zeros_like(keys), values])
        if key != "mask_token":
            renamed[key] = tensor
    if "register_tokens" in state and {"cls_token", "pos_embed"} <= renamed.keys():
        positions = renamed["pos_embed"]
        renamed["cls_token"] = renamed["cls_token"] + positions[:, :1]
        renamed["pos_embed"] = positions[:, 1:]
    return renamed
