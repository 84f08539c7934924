"""The family of timm's ``Beit``: BEiT and BEiTv2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import beit
from torch import nn

from vit_ratio_opt.models.family import (
    AttentionKind,
    Branch,
    Family,
    layer_scale,
    two_stages,
)

__all__ = ["FAMILY", "BiasedAttention"]


class BiasedAttention(nn.Module):
    """BEiT's attention (Bao 2021, arXiv 2106.08254) with any number of heads of any size.

    It adds a learned bias for each distance between two patches to the logits of every head. The
    keys have a bias, which the softmax does not see and timm's class leaves out.

    Args:
        attn: timm's attention; its weights are set later, by
            :func:`~vit_ratio_opt.models.separate.separate`.
    """

    def __init__(self, attn: beit.Attention) -> None:
        super().__init__()
        self.num_heads, self.scale = attn.num_heads, attn.scale
        self.attn_dim = attn.proj.in_features
        self.head_dim = self.attn_dim // self.num_heads
        width = attn.qkv.in_features
        self.qkv = nn.Linear(width, 3 * self.attn_dim, bias=attn.q_bias is not None)
        self.q_norm, self.k_norm, self.norm = nn.Identity(), nn.Identity(), nn.Identity()
        self.attn_drop, self.proj, self.proj_drop = attn.attn_drop, attn.proj, attn.proj_drop
        self.window_size = attn.window_size
        self.relative_position_index: torch.Tensor | None
        self.relative_position_bias_table = attn.relative_position_bias_table
        self.register_buffer(
            "relative_position_index", attn.relative_position_index, persistent=False
        )

    if hasattr(
        beit.Attention, "set_window_size"
    ):  # since timm 1.0.31, for the model's `set_input_size`
        set_window_size = beit.Attention.set_window_size

    def init_non_persistent_buffers(self) -> None:
        """Compute the index of positions, after creation on the meta device."""
        self._init_buffers()

    def _init_buffers(self) -> None:
        index = self.relative_position_index
        if index is not None:
            index.copy_(beit.gen_relative_position_index(self.window_size, device=index.device))

    def position_bias(self) -> torch.Tensor | None:
        """Return the bias of the logits, ``(1, heads, tokens, tokens)``; None without a table."""
        if self.relative_position_bias_table is None:
            return None
        bias: torch.Tensor = self.relative_position_bias_table[self.relative_position_index]
        return bias.permute(2, 0, 1)[None].contiguous()

    def forward(
        self, x: torch.Tensor, shared_rel_pos_bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return new tokens ``(batch, tokens, width)``; ``shared_rel_pos_bias`` is not used."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(
            q, k, v, attn_mask=self.position_bias(), dropout_p=dropout, scale=self.scale
        )
        x = x.transpose(1, 2).reshape(batch, tokens, self.attn_dim)
        out: torch.Tensor = self.proj_drop(self.proj(x))
        return out


def _block(block: Any) -> list[list[Branch]]:
    return two_stages(
        block,
        (block.norm1, layer_scale(block.gamma_1)),
        (block.norm2, layer_scale(block.gamma_2)),
    )


def _refusals(model: Any) -> Iterator[tuple[str, str]]:
    if model.rel_pos_bias is not None:
        yield "rel_pos_bias", "a position bias that the heads of all blocks share"


FAMILY = Family(
    blocks={beit.Block: _block},
    attentions={
        BiasedAttention: AttentionKind(
            per_head={"relative_position_bias_table": 1}, bias=BiasedAttention.position_bias
        )
    },
    separate={beit.Attention: BiasedAttention},
    refusals=_refusals,
    arguments=frozenset(
        {
            *("use_abs_pos_emb", "use_rel_pos_bias", "use_fc_norm", "swiglu_mlp", "scale_mlp"),
        }
    ),
)
