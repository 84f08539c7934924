"""Read the shape of a model, in which its costs are counted."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import nn

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import (
    ViT,
    attention_kind,
    branches,
    input_layers,
    keeps_heads,
    keeps_ranks,
)
from vit_ratio_opt.models.classifier import classifier_of
from vit_ratio_opt.models.families import FAMILIES
from vit_ratio_opt.models.family import linear_macs
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.space.shape import BlockShape, ViTShape

__all__ = ["check_all_tokens", "read_shape", "shape_of"]


def shape_of(model: ViT) -> ViTShape:
    """Return the shape of a dense or pruned model, read from its modules as they are.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
    """
    return read_shape(check_supported(model))


def read_shape(model: ViT) -> ViTShape:
    """Return the shape of a model that :func:`check_supported` has returned."""
    family = FAMILIES[type(model)]
    pairs = [(attention.module, ffn.module) for attention, ffn in branches(model)]
    first, first_mlp = pairs[0]
    prefix = family.prefix_tokens(model)
    tokens = model.patch_embed.num_patches + prefix
    classified = 1 if model.global_pool else tokens + family.late_tokens
    classifier = classifier_of(model, classified)
    inputs = input_layers(first_mlp)
    shape = ViTShape(
        patches=model.patch_embed.num_patches,
        prefix_tokens=prefix,
        patch_dim=math.prod(model.patch_embed.proj.weight.shape[1:]),
        embed_dim=model.embed_dim,
        num_classes=classifier.classes,
        blocks=tuple(
            BlockShape(attn.num_heads, attn.head_dim, mlp.fc2.in_features) for attn, mlp in pairs
        ),
        fixed_params=0,
        classifiers=classifier.linear,
        classified_tokens=classified,
        qkv_bias=first.qkv.bias is not None,
        fc1_bias=inputs[0][0].bias is not None,
        fc1_rows=sum(rows for _, rows in inputs),
        other_macs=(
            family.other_macs(model, tokens)
            + _pooling_macs(model, tokens)
            + sum(_mixing_macs(attn, tokens) for attn, _ in pairs)
            + classifier.other_macs
        ),
        head_params=_params_per_head(first),
        whole_heads=any(keeps_ranks(attn) for attn, _ in pairs),
        all_heads=any(keeps_heads(attn) for attn, _ in pairs),
        block_tokens=getattr(model.blocks, "block_tokens", ()),  # of a cascade
    )
    prunable = sum(_prunable_params(attn, mlp) for attn, mlp in pairs)
    prunable += shape.heads * shape.head_params
    total = sum(parameter.numel() for parameter in model.parameters())
    return replace(shape, fixed_params=total - prunable)


def check_all_tokens(model: ViT) -> ViT:
    """Refuse a model with a cascade, whose blocks leave out tokens: measurements would miss them.

    Returns:
        The model that :func:`~vit_ratio_opt.models.supported.check_supported` returns.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: The model has a cascade.
    """
    model = check_supported(model)
    if read_shape(model).block_tokens:
        raise InputError("The model has a cascade already: start from the one without.")
    return model


def _prunable_params(attn: Any, mlp: Any) -> int:
    """Return the parameters of linear layers that heads and neurons take with them."""
    inputs = [attn.qkv, *(layer for layer, _ in input_layers(mlp))]
    biases = sum(layer.bias.numel() for layer in inputs if layer.bias is not None)
    weights = sum(layer.weight.numel() for layer in (*inputs, attn.proj, mlp.fc2))
    return int(biases + weights)


def _params_per_head(attn: Any) -> int:
    """Return the parameters of a head beside its rows of qkv and columns of proj."""
    parts = (getattr(attn, name) for name in attention_kind(attn).per_head)
    sizes = [part.numel() for part in parts if isinstance(part, nn.Parameter)]
    return sum(sizes) // int(attn.num_heads)


def _pooling_macs(model: Any, tokens: int) -> int:
    """Return the MACs of attention pooling, in which a few queries attend to the tokens."""
    pool = getattr(model, "attn_pool", None)
    if pool is None:
        return 0
    pooled = tokens
    if not getattr(model, "pool_include_prefix", True):
        pooled -= model.num_prefix_tokens
    attention = 2 * pool.latent_len * pooled * pool.kv.in_features
    return int(linear_macs(pool, {pool.kv: pooled}, pool.latent_len) + attention)


def _mixing_macs(attn: Any, tokens: int) -> int:
    """Return the MACs of mixing the heads before and after the softmax."""
    is_mixed = attention_kind(attn).mixers is not None
    return 2 * tokens**2 * int(attn.num_heads) ** 2 if is_mixed else 0
