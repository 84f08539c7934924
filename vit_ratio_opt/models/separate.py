"""Replace modules of timm that cannot be cut by modules that can, with the same weights.

Some keep several projections in one matrix or several biases apart, and some reshape the heads'
outputs to the model's width, so that they could never have fewer heads. The replacements, which
compute the same, are in the files of the families.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from vit_ratio_opt.models.families import family_of

__all__ = ["separate", "separate_names"]


def separate(model: Any) -> None:
    """Replace the blocks and attentions of a timm model that cannot be cut, in place.

    Models of other classes are left alone. Modules with parts that no replacement has (gates,
    grouped queries) stay, and :func:`~vit_ratio_opt.models.supported.check_supported` names them.
    """
    family = family_of(model)
    if family is None:
        return
    if any(getattr(getattr(b, "attn", None), "num_kv_groups", 1) > 1 for b in model.blocks):
        return
    state = None
    for index, block in enumerate(model.blocks):
        attn = getattr(block, "attn", None)
        for module in (block, attn):
            kind: Any = type(module)
            replace = family.separate.get(kind)
            new = None if replace is None else replace(module)
            if new is None:
                continue
            state = state or separate_names(model.state_dict())
            new.to(next(block.parameters()).device).train(block.training)
            if module is block:
                model.blocks[index] = new
            else:
                block.attn = new
    if state is not None:
        model.load_state_dict(state, assign=True)


# timm's names in ViT-22B's blocks -> names in the replacement.
_SEPARATE = {
    "mlp_bias$": "mlp.fc1.bias",
    "attn_out_proj": "attn.proj",
    "mlp_out_proj": "mlp.fc2",
    "in_norm": "norm",
    "([qk]_norm)": r"attn.\1",
}


def separate_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict of timm's model in the names of the replacements; others unchanged."""
    separated = dict(state)
    for key in state:
        if key.endswith(".in_proj.weight"):
            _separate_block(separated, key.removesuffix("in_proj.weight"), state[key].shape[-1])
        elif key.endswith((".attn.q_bias", ".attn.q_proj.weight")):
            _join_qkv(separated, key[: key.index(".q_") + 1])
    return separated


def _separate_block(state: dict[str, torch.Tensor], block: str, width: int) -> None:
    """Split the joint matrix of one ``ParallelScalingBlock``: fc1, queries, keys, values."""
    for old in [key for key in state if key.startswith(block)]:
        tensor, name = state.pop(old), old.removeprefix(block)
        if name.startswith("in_proj."):
            name = name.removeprefix("in_proj.")
            hidden = len(tensor) - 3 * width
            state[f"{block}mlp.fc1.{name}"] = tensor[:hidden].clone()
            state[f"{block}attn.qkv.{name}"] = tensor[hidden:].clone()
            continue
        for part, new in _SEPARATE.items():
            name = re.sub(f"^{part}", new, name)
        state[block + name] = tensor


def _join_qkv(state: dict[str, torch.Tensor], attn: str) -> None:
    """Join separate matrices or biases of queries, keys and values of one attention."""
    for part, forms in (("weight", ["_proj.weight"]), ("bias", ["_bias", "_proj.bias"])):
        found = {
            x: state.pop(name)
            for x in "qkv"
            for form in forms
            if (name := f"{attn}{x}{form}") in state
        }
        if found:  # keys may have no bias
            zeros = torch.zeros_like(found["q"])
            state[f"{attn}qkv.{part}"] = torch.cat([found.get(x, zeros) for x in "qkv"])
