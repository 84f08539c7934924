"""The family of timm's ``Cait``: heads that are mixed, and a class token that joins late."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from timm.models.cait import LayerScaleBlock, TalkingHeadAttn
from torch import nn

from vit_ratio_opt.models.family import (
    AttentionKind,
    Branch,
    Family,
    layer_scale,
    linear_macs,
    two_stages,
)

__all__ = ["FAMILY", "TalkingHeads"]


class TalkingHeads(nn.Module):
    """CaiT's attention (Touvron 2021, arXiv 2103.17239) with heads of any size.

    The heads are mixed before and after the softmax (Shazeer 2020, arXiv 2003.02436), so none can
    be removed without changing the others.

    Args:
        attn: timm's attention, whose weights are used.
    """

    def __init__(self, attn: TalkingHeadAttn) -> None:
        super().__init__()
        self.num_heads, self.scale = attn.num_heads, attn.scale
        self.attn_dim = attn.proj.in_features
        self.head_dim = self.attn_dim // self.num_heads
        self.q_norm, self.k_norm, self.norm = nn.Identity(), nn.Identity(), nn.Identity()
        self.qkv, self.proj_l, self.proj_w = attn.qkv, attn.proj_l, attn.proj_w
        self.attn_drop, self.proj, self.proj_drop = attn.attn_drop, attn.proj, attn.proj_drop

    @staticmethod
    def mix_heads(layer: nn.Linear, heads: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, heads, queries, keys)`` after a layer from heads to heads."""
        mixed: torch.Tensor = layer(heads.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return mixed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return new tokens ``(batch, tokens, width)``."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        logits = (q * self.scale) @ k.mT
        weights = self.mix_heads(self.proj_l, logits).softmax(dim=-1)
        weights = self.attn_drop(self.mix_heads(self.proj_w, weights))
        x = (weights @ v).transpose(1, 2).reshape(batch, tokens, self.attn_dim)
        out: torch.Tensor = self.proj_drop(self.proj(x))
        return out


def _block(block: Any) -> list[list[Branch]]:
    return two_stages(
        block,
        (block.norm1, layer_scale(block.gamma_1)),
        (block.norm2, layer_scale(block.gamma_2)),
    )


def _no_prefix_tokens(model: Any) -> int:
    return 0


def _class_attention_macs(model: Any, tokens: int) -> int:
    """Return the MACs of the last blocks, in which the class token attends to all tokens."""
    macs, seen = 0, tokens + 1
    for block in model.blocks_token_only:
        keys, values = block.attn.k, block.attn.v
        macs += linear_macs(block, {keys: seen, values: seen}, 1)
        macs += 2 * seen * keys.out_features
    return macs


def _refusals(model: Any) -> Iterator[tuple[str, str]]:
    if not model.blocks_token_only:  # None, or empty before timm 1.0.31
        yield (
            "blocks_token_only",
            "no blocks (timm's `features_only` removes them, so the encoder has no output of its "
            "own: prune the model first and make the FeatureGetterNet of the pruned one)",
        )


FAMILY = Family(
    blocks={LayerScaleBlock: _block},
    attentions={TalkingHeads: AttentionKind(mixers=("proj_l", "proj_w"))},
    separate={TalkingHeadAttn: TalkingHeads},
    prefix_tokens=_no_prefix_tokens,
    late_tokens=1,
    refusals=_refusals,
    other_macs=_class_attention_macs,
    counted=("blocks_token_only.",),
    arguments=frozenset({"depth_token_only"}),
)
