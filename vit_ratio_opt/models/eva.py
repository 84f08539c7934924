"""The family of timm's ``Eva``: EVA-02, DINOv3, Perception Encoder and ViTs with rotations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.layers import AttentionRope
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import nn

from vit_ratio_opt.models.family import (
    AttentionKind,
    Branch,
    Family,
    layer_scale,
    two_stages,
)

__all__ = ["FAMILY"]


def _rope_attention(attn: EvaAttention | AttentionRope) -> AttentionRope:
    """Return timm's attention with queries, keys and values in one layer.

    Keys without a bias are given one of zeros where queries have a bias.
    """
    layers = [attn.qkv] if attn.qkv is not None else [attn.q_proj, attn.k_proj, attn.v_proj]
    bias = getattr(attn, "q_bias", None) is not None or any(
        layer.bias is not None for layer in layers
    )
    new = AttentionRope(
        layers[0].in_features,
        num_heads=attn.num_heads,
        qkv_bias=bias,
        num_prefix_tokens=attn.num_prefix_tokens,
        attn_head_dim=attn.head_dim,
        proj_bias=attn.proj.bias is not None,
        rotate_half=attn.rotate_half,
    )
    for name in ("q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"):
        setattr(new, name, getattr(attn, name))
    return new


def _separate_rope(attn: AttentionRope) -> AttentionRope | None:
    return _rope_attention(attn) if attn.qkv is None else None


def _block(block: Any) -> list[list[Branch]]:
    return two_stages(
        block,
        (block.norm1, layer_scale(block.gamma_1)),
        (block.norm2, layer_scale(block.gamma_2)),
    )


def _post_norm_block(block: Any) -> list[list[Branch]]:
    return two_stages(block, (nn.Identity(), block.norm1), (nn.Identity(), block.norm2))


def _refusals(model: Any) -> Iterator[tuple[str, str]]:
    if getattr(model, "rope_mixed", False):
        yield "rope", "a rotary embedding for each head (rope_type='mixed')"


FAMILY = Family(
    blocks={EvaBlock: _block, EvaBlockPostNorm: _post_norm_block},
    attentions={AttentionRope: AttentionKind(whole_heads=True)},
    separate={EvaAttention: _rope_attention, AttentionRope: _separate_rope},
    refusals=_refusals,
    arguments=frozenset(
        {
            *("class_token", "no_embed_class", "num_reg_tokens", "qk_norm", "dynamic_img_size"),
            *("swiglu_mlp", "scale_mlp", "use_abs_pos_emb", "use_rot_pos_emb", "use_post_norm"),
            *("use_fc_norm", "num_kv_heads", "rope_type", "rope_temperature", "rope_grid_offset"),
            *("rope_grid_indexing", "rope_rotate_half", "ref_feat_shape"),
        }
    ),
)
