"""The family of timm's ``VisionTransformer``: ViT, CLIP, SigLIP, DINOv2 and others."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import (
    Block,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
)
from torch import nn

from vit_ratio_opt.models.family import AttentionKind, Branch, Family, two_stages

__all__ = ["FAMILY", "ParallelBlock"]


class ParallelBlock(nn.Module):
    """timm's ``ParallelScalingBlock`` (Dehghani 2023, arXiv 2302.05442) in separate layers.

    timm keeps fc1 and qkv in one matrix, and computes the number of heads from the width. The same
    weights in timm's ``Attention`` and ``Mlp`` can be cut.

    Args:
        block: timm's block; its weights are set later, by
            :func:`~vit_ratio_opt.models.separate.separate`.
    """

    def __init__(self, block: ParallelScalingBlock) -> None:
        super().__init__()
        width, heads = block.in_norm.normalized_shape[0], block.num_heads
        bias = block.attn_out_proj.bias is not None
        self.norm = block.in_norm
        self.attn = Attention(
            width,
            num_heads=heads,
            qkv_bias=block.in_proj.bias is not None,
            proj_bias=bias,
            attn_drop=block.attn_drop.p,
        )
        self.attn.q_norm, self.attn.k_norm = block.q_norm, block.k_norm
        self.mlp = Mlp(width, hidden_features=block.in_split[0], bias=(True, bias))
        self.mlp.act, self.mlp.drop1 = block.mlp_act, block.mlp_drop
        self.ls, self.drop_path = block.ls, block.drop_path

    def forward(
        self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False
    ) -> torch.Tensor:
        """Return the new stream ``(batch, tokens, width)``."""
        y = self.norm(x)
        y = self.attn(y, attn_mask=attn_mask, is_causal=is_causal) + self.mlp(y)
        out: torch.Tensor = x + self.drop_path(self.ls(y))
        return out


def _block(block: Any) -> list[list[Branch]]:
    return two_stages(block, (block.norm1, block.ls1), (block.norm2, block.ls2))


def _post_norm_block(block: Any) -> list[list[Branch]]:
    return two_stages(block, (nn.Identity(), block.norm1), (nn.Identity(), block.norm2))


def _parallel_block(block: Any) -> list[list[Branch]]:
    ((attention,), (ffn,)) = two_stages(block, *[(block.norm, block.ls)] * 2)
    return [[attention, ffn]]


def _parallel_things_block(block: Any) -> list[list[Branch]]:
    """Return the stages of several attentions side by side, then as many FFNs."""
    return [
        [
            Branch("attention", part, "attn", part.norm, part.ls, f"attns.{i}.attn")
            for i, part in enumerate(block.attns)
        ],
        [
            Branch("ffn", part, "mlp", part.norm, part.ls, f"ffns.{i}.mlp")
            for i, part in enumerate(block.ffns)
        ],
    ]


def _separate_block(block: ParallelScalingBlock) -> nn.Module | None:
    return ParallelBlock(block) if block.out_proj is None else None


FAMILY = Family(
    blocks={
        Block: _block,
        ResPostBlock: _post_norm_block,
        ParallelThingsBlock: _parallel_things_block,
        ParallelBlock: _parallel_block,
    },
    attentions={Attention: AttentionKind()},
    separate={ParallelScalingBlock: _separate_block},
    arguments=frozenset(
        {
            *(
                "proj_bias",
                "class_token",
                "no_embed_class",
                "reg_tokens",
                "pre_norm",
                "final_norm",
            ),
            *("fc_norm", "qk_norm", "scale_attn_norm", "scale_mlp_norm", "attn_layer"),
            "dynamic_img_size",
        }
    ),
)
