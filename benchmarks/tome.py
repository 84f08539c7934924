"""Token merging (ToMe, Bolya 2023, arXiv 2210.09461) on plain timm ViTs: a peer for speed.

Written from the paper: after the attention of every block the ``r`` pairs of tokens with the most
similar keys become one token each, by bipartite soft matching; a merged token is the mean of its
patches, and counts as many times as it has patches in the attention of later blocks. No weight
changes, and nothing is trained.

One thing is faster here than in the paper: the attention stays fused, with the sizes as its mask.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import nn

from vit_ratio_opt.errors import InputError


def merge_tokens(model: VisionTransformer, r: int) -> VisionTransformer:
    """Return a copy of a plain timm ViT that merges ``r`` pairs of tokens in every block.

    Args:
        model: ViT of timm's own blocks, dense or pruned; it is not changed.
        r: Pairs that a block merges; at most half of its patches, as in the paper.

    Raises:
        InputError: ``r`` is negative, or a block is not timm's own.
    """
    if r < 0:
        raise InputError(f"`r` must be at least 0, but got {r}.")
    if not all(type(block) is Block and type(block.attn) is Attention for block in model.blocks):
        raise InputError("ToMe is written for the blocks of timm's `VisionTransformer` only.")
    merging = copy.deepcopy(model)
    blocks = [MergingBlock(block, r, model.num_prefix_tokens) for block in merging.blocks]
    merging.blocks = MergingBlocks(blocks)
    return merging


class MergingBlocks(nn.ModuleList):
    """Run the blocks in turn, with the number of patches that each token stands for."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the tokens ``(batch, tokens, dim)`` that are left after the last block."""
        sizes = torch.ones_like(tokens[..., :1])
        for block in self:
            tokens, sizes = block(tokens, sizes)
        return tokens


class MergingBlock(nn.Module):
    """A timm block that merges tokens between its attention and its FFN."""

    def __init__(self, block: Block, r: int, prefix: int) -> None:
        super().__init__()
        self.block, self.r, self.prefix = block, r, prefix

    def forward(
        self, tokens: torch.Tensor, sizes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return fewer tokens ``(batch, tokens, dim)`` and their sizes ``(batch, tokens, 1)``."""
        block = self.block
        attended, keys = attend(block.attn, block.norm1(tokens), sizes)
        tokens = tokens + block.drop_path1(block.ls1(attended))
        r = min(self.r, (tokens.shape[1] - self.prefix) // 2)
        if r:
            tokens, sizes = merge(tokens, sizes, keys, r, self.prefix)
        return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens)))), sizes


def attend(
    attention: Attention, tokens: torch.Tensor, sizes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention's output, weighted by sizes, and the mean of the heads' keys."""
    batch, count, _ = tokens.shape
    heads = (batch, count, 3, attention.num_heads, attention.head_dim)
    queries, keys, values = attention.qkv(tokens).reshape(heads).permute(2, 0, 3, 1, 4).unbind(0)
    queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    mask = sizes.log()[:, None, None, :, 0]  # eq. 1
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    mixed = mixed.transpose(1, 2).reshape(batch, count, attention.attn_dim)
    return attention.proj_drop(attention.proj(attention.norm(mixed))), keys.mean(1)


def merge(
    tokens: torch.Tensor, sizes: torch.Tensor, keys: torch.Tensor, r: int, prefix: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``r`` tokens fewer: every second token may join the most similar of the others.

    The prefix (class token, registers) neither joins nor is joined.
    """
    keys = F.normalize(keys[:, prefix:], dim=-1)
    similar = keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)
    best, partner = similar.max(-1)
    order = best.argsort(-1, descending=True)
    joining, staying = order[:, :r], order[:, r:]
    partner = partner.gather(-1, joining)

    def merged(values: torch.Tensor) -> torch.Tensor:
        def pick(source: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return source.gather(1, index[..., None].expand(-1, -1, source.shape[2]))

        first, second = values[:, prefix::2], values[:, prefix + 1 :: 2]
        index = partner[..., None].expand(-1, -1, values.shape[2])
        joined = second.scatter_add(1, index, pick(first, joining))
        return torch.cat([values[:, :prefix], pick(first, staying), joined], dim=1)

    summed, counts = merged(tokens * sizes), merged(sizes)
    return summed / counts, counts
