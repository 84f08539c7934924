"""Heads of fewer dimensions: the best low rank of what a head computes.

Attention depends on the queries and keys of a head only through their product, and on its values
and its columns of the projection only through their product. Each product is truncated by a
singular value decomposition weighted by the data, so that rank r drops what the images use least
(MoDeGPT, Lin 2024, arXiv 2408.09632, does so for the values of language models; without rotary
embeddings the decomposition is exact for queries and keys too). The result is a plain timm
attention with a smaller ``head_dim``; the softmax scale, which timm derives from that, is folded
into the queries.

Two identities make it cheap and a little better:

- A linear map of q and one of k, both d x d and found from ``E[q q']`` and ``E[k k']``, turn the
  weighted decomposition of the (D + 1) x (D + 1) product, biases included, into one of a d x d
  matrix (the rest of the product has rank d anyway).
- The softmax does not see what all keys of an image have in common, so keys are centred; nor does
  it matter what all of a head's outputs have in common, because the projection's bias takes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vit_ratio_opt.models.surgery import copy_head_entries, resize_attention

__all__ = [
    "HeadFactors",
    "HeadMoments",
    "factorize_attention",
    "head_factors",
    "nested_losses",
    "rank_losses",
]

# Singular values below this share of the largest are rounding errors of the moments.
_RELATIVE_ZERO = 1e-10


@dataclass(frozen=True)
class HeadMoments:
    """Moments of the H heads of one block, of d dimensions each, on the calibration images.

    Args:
        queries: ``E[q q']``, ``(H, d, d)``, weighted by the weight of the query's token.
        keys: ``E[k k']``, centred in each image, ``(H, d, d)``.
        outputs: Covariance of the head's input to the projection, ``(H, d, d)``, weighted by
            token.
        output_mean: Mean of the head's input to the projection, ``(H, d)``; zeros where the
            projection has no bias to absorb it.
        logit_effect: Loss caused by noise of variance 1 in a head's attention logits, ``(H,)``.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    outputs: torch.Tensor
    output_mean: torch.Tensor
    logit_effect: torch.Tensor


@dataclass(frozen=True)
class HeadFactors:
    """Coordinates of the heads of one block in which the first r are the best rank r.

    Args:
        queries: ``(H, d, d)``; the new query is ``q @ queries[h][:, :r]``.
        keys: ``(H, d, d)``; the new key is ``k @ keys[h][:, :r]``.
        values: ``(H, d, d)``; the new value is ``v @ values[h][:, :r]``.
        outputs: ``(H, d, d)``; a head's output is nearly ``outputs[h][:, :r] @ new`` + its mean.
        output_mean: Mean of a head's output, ``(H, d)``.
        logit_losses: Loss of dropping the i-th coordinate of queries and keys, ``(H, d)``;
            infinite where none can be dropped.
        value_losses: Loss of dropping the i-th coordinate of the values, ``(H, d)``.
        removable: Whether heads can be removed, a scalar.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    outputs: torch.Tensor
    output_mean: torch.Tensor
    logit_losses: torch.Tensor
    value_losses: torch.Tensor
    removable: torch.Tensor


def head_factors(
    moments: HeadMoments,
    projection: torch.Tensor,
    scale: float,
    *,
    truncate: bool = True,
    remove: bool = True,
) -> HeadFactors:
    """Return the factors of one block's heads, in double precision.

    Args:
        moments: Moments of the block's heads.
        projection: Weight of the projection, ``(E, H d)``, in any E coordinates in which squared
            length is the loss.
        scale: The softmax scale.
        truncate: False where queries or keys pass through a norm, so that no smaller product
            equals theirs: a head then keeps all dimensions or is removed.
        remove: False where no head can be removed.
    """
    heads, d, _ = moments.queries.shape
    columns = torch.unflatten(projection, 1, (heads, d)).transpose(0, 1)  # (H, E, d)
    q, q_inverse = _roots(moments.queries)
    k, k_inverse = _roots(moments.keys)
    left, logits, right = torch.linalg.svd(q @ k)
    root = logits.sqrt()[:, None, :]
    z, z_inverse = _roots(moments.outputs)
    _, values, basis = torch.linalg.svd(columns @ z)
    basis, missing = basis.mT, d - values.shape[1]  # E may be smaller than d
    queries, keys = q_inverse @ left * root, k_inverse @ right.mT * root
    logit_losses = (logits * scale).square() * moments.logit_effect[:, None]
    if not truncate:
        queries = keys = torch.eye(d).to(queries).expand(heads, d, d)
        logit_losses = torch.full_like(logit_losses, torch.inf)
    return HeadFactors(
        queries=queries,
        keys=keys,
        values=z_inverse @ basis,
        outputs=z @ basis,
        output_mean=moments.output_mean,
        logit_losses=logit_losses,
        value_losses=torch.nn.functional.pad(values.square(), (0, missing)),
        removable=torch.tensor(remove),
    )


def _roots(moment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the symmetric square root of ``(H, d, d)``, and its inverse."""
    values, vectors = torch.linalg.eigh(moment.double())
    least = values.amax(dim=-1, keepdim=True).clamp_min(1e-30) * _RELATIVE_ZERO
    roots = values.clamp_min(least).sqrt()[:, None, :]
    return vectors * roots @ vectors.mT, vectors / roots @ vectors.mT


def rank_losses(factors: HeadFactors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of every number of heads and every rank that a block can keep.

    Returns:
        Losses ``(H, d)``, those of h heads of r dimensions at ``[h - 1, r - 1]``, and heads
        ``(d, H)``: for each rank, the heads in the order in which they are kept.
    """
    gone, cut = _head_losses(factors)
    if not factors.removable:
        return _all_heads(cut), torch.arange(len(cut)).expand(cut.shape[1], -1)
    gains, order = (gone[:, None] - cut).sort(dim=0, descending=True, stable=True)
    losses = gone.sum() - gains.cumsum(dim=0)
    return losses.clamp_min(0), order.mT


def nested_losses(factors: HeadFactors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return :func:`rank_losses` where heads are kept in one order, whatever their rank.

    Returns:
        Losses ``(H, d)``, and the order of the heads ``(H,)``, the most important first.
    """
    gone, cut = _head_losses(factors)
    if not factors.removable:
        return _all_heads(cut), torch.arange(len(cut))
    order = gone.argsort(descending=True, stable=True)
    losses = gone.sum() - (gone[:, None] - cut)[order].cumsum(dim=0)
    return losses.clamp_min(0), order


def _head_losses(factors: HeadFactors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses of removing each head, ``(H,)``, and of each rank of it, ``(H, d)``."""
    value = factors.value_losses
    gone = value.sum(dim=1)  # a removed head loses its values; its logits do not matter
    left_out = value + factors.logit_losses
    # Summed from the end: an infinite loss cannot be subtracted again.
    cut = left_out.flip(1).cumsum(dim=1).flip(1).roll(-1, dims=1)
    cut[:, -1] = 0
    return gone, cut


def _all_heads(cut: torch.Tensor) -> torch.Tensor:
    """Return the losses of heads and ranks where no head can be removed."""
    losses = torch.full_like(cut, torch.inf)
    losses[-1] = cut.sum(dim=0)
    return losses


def factorize_attention(attn: Any, factors: HeadFactors, heads: list[int], rank: int) -> Any:
    """Return a copy of ``attn`` with only ``heads``, of ``rank`` dimensions each.

    Args:
        attn: A supported attention; it is not changed.
        factors: Factors of the attention's heads.
        heads: Indices of the heads to keep, at least one, in the order of the copy.
        rank: Dimensions of each head, at least 1.
    """
    kept = torch.tensor(heads)
    heads_before, d = attn.num_heads, attn.head_dim
    new = resize_attention(attn, len(kept), rank)
    scale = attn.scale / new.scale  # the copy scales its logits by the new rank
    maps = [factors.queries[kept] * scale, factors.keys[kept], factors.values[kept]]

    def convert(rows: torch.Tensor) -> torch.Tensor:
        """Return the qkv weight ``(3 H d, D)`` or bias ``(3 H d, 1)`` in the new coordinates."""
        parts = torch.unflatten(rows.detach().cpu().double(), 0, (3, heads_before, d))
        new = [m[:, :, :rank].mT @ part[kept] for m, part in zip(maps, parts, strict=True)]
        return torch.stack(new).flatten(0, 2)

    columns = attn.proj.weight.detach().cpu().double()
    columns = torch.unflatten(columns, 1, (heads_before, d)).transpose(0, 1)  # (H, D, d)
    outputs = factors.outputs[kept][:, :, :rank]
    with torch.no_grad():
        copy_head_entries(attn, new, kept.tolist())
        new.qkv.weight.copy_(convert(attn.qkv.weight))
        if attn.qkv.bias is not None:
            new.qkv.bias.copy_(convert(attn.qkv.bias[:, None])[:, 0])
        new.proj.weight.copy_((columns[kept] @ outputs).transpose(0, 1).flatten(1))
        if attn.proj.bias is not None:
            # Dropped coordinates are replaced by their mean.
            mean = factors.output_mean
            shift = (columns @ mean[:, :, None]).sum(dim=0)[:, 0]
            coordinates = factors.values[kept][:, :, :rank].mT @ mean[kept][:, :, None]
            shift -= (columns[kept] @ outputs @ coordinates).sum(dim=0)[:, 0]
            new.proj.bias.copy_(attn.proj.bias.detach().cpu().double() + shift)
    return new
