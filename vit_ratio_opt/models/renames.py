"""Names of tensors in torchvision's and Hugging Face's ViTs, and timm's for the same tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.errors import InputError

__all__ = ["UNUSED", "rename", "rename_tensors", "split_tensors"]

UNUSED = re.compile(r"(?:^|\.)(?:pooler\..*|mask_token)$")
"""Names of Hugging Face's tensors that have no part in a timm model: a layer after the last norm,
and the token for masked patches."""

# Regular expressions, all of which are tried in this order. Since transformers 5 a model's names
# are shorter than those in its files.
_RENAMES = (
    # torchvision
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.(?:head\.|0\.)?(?=weight$|bias$)", "head."),
    # Hugging Face: the attention pooling of SigLIP, whose parts are named as those of blocks
    (r"^(?:vit|deit|vision_model)\.", ""),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.in_proj_", "attn_pool.in_proj."),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
    # Hugging Face: tokens and embedding
    (r"^embeddings\.", ""),
    (r"^patch_embeddings?\.(?:projection\.)?", "patch_embed.proj."),
    (r"^position_embeddings?(?:\.weight)?$", "pos_embed"),
    (r"^class_embedding$", "cls_token"),
    (r"^register_tokens$", "reg_token"),
    # Hugging Face: blocks
    (r"^(?:(?:encoder|model)\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.(?:attention\.)?([qkv])(?:_proj|uery|ey|alue)\.", r".attn.\1."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.(?:o_proj|output\.dense)\.", ".attn.proj."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.(?:layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(?:layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.fc2."),
    (r"\.mlp\.(gate|up)_proj\.", r".mlp.\1."),
    # Hugging Face: norms and classifiers
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^(?:post_)?layernorm\.", "norm."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)


def rename(key: str) -> str:
    """Return the name of a tensor of torchvision or Hugging Face as timm would spell it.

    Queries, keys and values (``.attn.q.``), the two layers of a gated FFN (``.mlp.gate.``,
    ``.mlp.up.``) and the projections of an attention pooling (``attn_pool.in_proj.``) have names
    of their own, since timm joins or splits them.
    """
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def rename_tensors(where: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return torchvision's or Hugging Face's tensors in the names and shapes of timm's ViT.

    Args:
        where: Source of the tensors, for messages.
        state: The tensors.

    Raises:
        InputError: Two tensors have one name, or parts of one layer differ in shape.
    """
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        new = rename(key)
        if new in renamed:
            raise InputError(f"{where} has two tensors that are timm's `{new}`; one is `{key}`.")
        renamed[new] = tensor
    for key in [key for key in renamed if ".attn.q." in key]:
        parts = [key.replace(".q.", f".{part}.") for part in "qkv"]
        if key.endswith(".bias"):  # DINOv3's keys have none
            renamed.setdefault(parts[1], torch.zeros_like(renamed[key]))
        _join(where, renamed, parts, key.replace(".q.", ".qkv."))
    for key in [key for key in renamed if ".mlp.up." in key]:
        gate = key.replace(".up.", ".gate.")
        parts = [gate, key] if gate in renamed else [key]
        _join(where, renamed, parts, key.replace(".up.", ".fc1."))
    for key in [key for key in renamed if key.startswith("attn_pool.in_proj.")]:
        queries, *others = renamed.pop(key).chunk(3)
        renamed[key.replace("in_proj", "q")] = queries.clone()
        renamed[key.replace("in_proj", "kv")] = torch.cat(others)
    _shape_tokens(renamed)
    return renamed


def _join(where: str, state: dict[str, torch.Tensor], parts: list[str], joined: str) -> None:
    """Join the parts of a layer in place; where one is missing, the rest keeps its names."""
    if not all(part in state and state[part].dim() > 0 for part in parts):
        return
    tensors = [state.pop(part) for part in parts]
    if len({tensor.shape for tensor in tensors}) > 1:
        what = "queries, keys and values" if len(parts) > 2 else "gates and values"
        raise InputError(f"{where} has {what} of different shapes.")
    state[joined] = torch.cat(tensors)


def _shape_tokens(state: dict[str, torch.Tensor]) -> None:
    """Bring tokens and positions to timm's shapes in place, ``(1, tokens, width)``."""
    for key in ("cls_token", "pos_embed"):
        while key in state and 0 < state[key].dim() < 3:
            state[key] = state[key][None]
    if "reg_token" in state and not state["reg_token"].numel():
        del state["reg_token"]
    if {"reg_token", "cls_token", "pos_embed"} <= state.keys():
        # Of the tokens before the patches only the class token has a position; timm's have none.
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    # A token that only the distillation's classifier reads: without that it is one more register.
    if "distillation_token" in state:
        token = "dist_token" if "head_dist.weight" in state else "reg_token"
        state[token] = state.pop("distillation_token")


def split_tensors(model: VisionTransformer | Eva) -> dict[str, torch.Tensor]:
    """Return the tensors of a timm model in the parts that :func:`rename` names.

    An FFN that classes of Hugging Face have in different forms is there in each of them.

    Args:
        model: Dense or pruned model.
    """
    state = model.state_dict()
    split = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key): state[key] for key in state}
    for key in list(split):
        if ".attn.qkv." in key:
            for part, tensor in zip("qkv", split.pop(key).chunk(3), strict=True):
                split[key.replace(".qkv.", f".{part}.")] = tensor
        elif key.startswith("blocks.") and ".mlp.fc1." in key:
            hidden = split[key.replace("fc1", "fc2").replace("bias", "weight")].shape[1]
            *gates, values = split[key].split(hidden)
            split[key.replace("fc1", "up")] = values
            split |= {key.replace("fc1", "gate"): gate for gate in gates}
        elif ".mlp.fc1_g." in key:
            split[key.replace("fc1_g", "gate")] = split[key]
        elif ".mlp.fc1_x." in key:
            split[key.replace("fc1_x", "up")] = split[key]
        elif key.startswith("attn_pool.q."):
            parts = split[key], split[key.replace(".q.", ".kv.")]
            split[key.replace(".q.", ".in_proj.")] = torch.cat(parts)
    if {"cls_token", "pos_embed"} <= split.keys():
        positions, registers = split["pos_embed"], model.num_prefix_tokens - 1
        if model.no_embed_class:
            class_position = torch.zeros_like(split["cls_token"])
            split["pos_embed"] = torch.cat([class_position, positions], dim=1)
        elif registers:
            own, tokens, patches = positions.split(
                [1, registers, positions.shape[1] - 1 - registers], dim=1
            )
            split["reg_token"] = split["reg_token"] + tokens
            split["pos_embed"] = torch.cat([own, patches], dim=1)
    return split
