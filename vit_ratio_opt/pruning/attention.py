"""Attention of some tokens to others, with the probabilities where they are wanted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Attention

from vit_ratio_opt.space.tokens import Scores

__all__ = ["attend", "attention_probabilities", "split_heads"]


def attend(
    attn: Attention, queries: torch.Tensor, keys: torch.Tensor, scores: Scores | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the attention of ``queries`` to ``keys``, and the score of each key or None.

    Without scores the fused kernel runs, which never holds the probabilities in memory.

    Args:
        attn: timm's attention.
        queries: Normalised tokens that attend, ``(batch, queries, width)``.
        keys: Normalised tokens that are attended to, ``(batch, keys, width)``.
        scores: How keys are scored; None for no scores.
    """
    q, k, v = split_heads(attn, queries, keys)
    dropout = attn.attn_drop.p if attn.training else 0.0
    received = None
    if scores is None:
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    else:
        attention = attention_probabilities(attn, q, k)
        received = _received(attention.detach(), scores)
        out = F.dropout(attention, dropout) @ v
    out = out.transpose(1, 2).flatten(2)
    return attn.proj_drop(attn.proj(out)), received


def split_heads(
    attn: Attention, queries: torch.Tensor, keys: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries, keys and values, each ``(batch, heads, tokens, head_dim)``."""
    width = attn.attn_dim
    if queries is keys:
        q, k, v = attn.qkv(keys).chunk(3, dim=2)
    else:
        weight, bias = attn.qkv.weight, attn.qkv.bias
        parts = bias.split((width, 2 * width)) if bias is not None else (None, None)
        q = F.linear(queries, weight[:width], parts[0])
        k, v = F.linear(keys, weight[width:], parts[1]).chunk(2, dim=2)
    q, k, v = (part.unflatten(2, (-1, attn.head_dim)).transpose(1, 2) for part in (q, k, v))
    return attn.q_norm(q), attn.k_norm(k), v


def attention_probabilities(attn: Attention, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Return the probabilities ``(batch, heads, queries, keys)``."""
    attention: torch.Tensor = ((q * attn.scale) @ k.transpose(2, 3)).softmax(dim=3)
    return attention


def _received(attention: torch.Tensor, scores: Scores) -> torch.Tensor:
    """Return scores ``(batch, keys)`` of probabilities ``(batch, heads, queries, keys)``."""
    if scores == "max":
        received = attention.amax(dim=2)
    elif scores == "mean":
        received = attention.mean(dim=2)
    else:
        received = attention[:, :, 0]
    return received.sum(dim=1, dtype=torch.float32)
