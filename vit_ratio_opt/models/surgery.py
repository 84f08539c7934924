"""Exact slicing of timm ViT weights. No policy: the caller says which units stay.

A block whose heads or neurons were removed is still the timm block it was, only smaller, since
timm 1.0.23 keeps ``num_heads``, ``head_dim`` and ``attn_dim`` apart from the width. So no forward
is patched and everything that works on a timm model works on the result.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.layers import AttentionRope
from timm.models.cait import Cait
from torch import nn

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.blocks import (
    ViT,
    branches,
    head_table,
    input_layers,
    keeps_heads,
    keeps_ranks,
)
from vit_ratio_opt.models.classifier import classifier_of
from vit_ratio_opt.models.device import evaluating
from vit_ratio_opt.models.separate import TalkingHeads
from vit_ratio_opt.models.supported import check_supported, copy_model
from vit_ratio_opt.space.shape import BlockShape, ViTShape

__all__ = [
    "ALL_HEADS",
    "check_all_tokens",
    "check_supported",
    "evaluating",
    "keep_units",
    "resize_model",
    "resize_attention",
    "shape_of",
    "shrink_to",
]

ALL_HEADS = (
    "The heads of this model are mixed (talking heads), so none can go: lower their ranks, with a "
    "`Calibration`."
)


def shape_of(model: ViT) -> ViTShape:
    """The shape of a dense or pruned model, read from its modules as they are.

    Raises:
        UnsupportedModelError: See :func:`check_supported`.
    """
    model = check_supported(model)
    pairs = [(attention.module, ffn.module) for attention, ffn in branches(model)]
    blocks = tuple(
        BlockShape(attn.num_heads, attn.head_dim, mlp.fc2.in_features) for attn, mlp in pairs
    )
    first, first_mlp = pairs[0]
    patches = model.patch_embed.num_patches
    # CaiT's class token joins after the blocks, for blocks of its own.
    prefix = 0 if isinstance(model, Cait) else model.num_prefix_tokens
    table = head_table(first)
    inputs = input_layers(first_mlp)
    classified = 1 if model.global_pool else patches + prefix + isinstance(model, Cait)
    classifier = classifier_of(model, classified)
    shape = ViTShape(
        patches=patches,
        prefix_tokens=prefix,
        patch_dim=math.prod(model.patch_embed.proj.weight.shape[1:]),
        embed_dim=model.embed_dim,
        num_classes=classifier.classes,
        blocks=blocks,
        fixed_params=0,
        classifiers=classifier.linear,
        classified_tokens=classified,
        qkv_bias=first.qkv.bias is not None,
        fc1_bias=inputs[0][0].bias is not None,
        fc1_rows=sum(rows for _, rows in inputs),
        other_macs=_other_macs(model, patches + prefix) + classifier.other_macs,
        head_params=0 if table is None else len(table),
        whole_heads=any(keeps_ranks(attn) for attn, _ in pairs),
        all_heads=any(keeps_heads(attn) for attn, _ in pairs),
        block_tokens=getattr(model.blocks, "block_tokens", ()),  # of a cascade
    )
    prunable = sum(
        layer.weight.numel() + (0 if bias is None else bias.numel())
        for attn, mlp in pairs
        for layer, bias in (
            (attn.qkv, attn.qkv.bias),
            (attn.proj, None),
            *((layer, layer.bias) for layer, _ in input_layers(mlp)),
            (mlp.fc2, None),
        )
    )
    prunable += shape.heads * shape.head_params
    total = sum(parameter.numel() for parameter in model.parameters())
    return replace(shape, fixed_params=total - prunable)


def _other_macs(model: ViT, tokens: int) -> int:
    """What is neither of the patch embedding, the blocks' projections nor the classifier."""
    macs = 0
    pool = getattr(model, "attn_pool", None)
    if pool is not None:  # a few queries of its own attend to the tokens
        pooled = tokens
        if not getattr(model, "pool_include_prefix", True):
            pooled -= model.num_prefix_tokens
        macs += _macs_of(pool, {pool.kv: pooled}, pool.latent_len)
        macs += 2 * pool.latent_len * pooled * pool.kv.in_features
    for block in getattr(model, "blocks_token_only", ()):  # CaiT's class token attends to all
        seen = tokens + 1
        macs += _macs_of(block, {block.attn.k: seen, block.attn.v: seen}, 1)
        macs += 2 * seen * block.attn.k.out_features
    for attention, _ in branches(model):
        if isinstance(attention.module, TalkingHeads):
            macs += 2 * tokens**2 * attention.module.num_heads**2
    return macs


def _macs_of(module: nn.Module, rows: dict[nn.Module, int], others: int) -> int:
    """Of linear layers that are applied to so many rows, and all others to ``others``."""
    return sum(
        layer.weight.numel() * rows.get(layer, others)
        for layer in module.modules()
        if isinstance(layer, nn.Linear)
    )


def check_all_tokens(model: ViT) -> ViT:
    """Refuse a model in which blocks leave out tokens: what is measured there is not of all.

    Returns:
        The model that :func:`check_supported` returns.

    Raises:
        UnsupportedModelError: See there.
        InputError: It has a cascade.
    """
    model = check_supported(model)
    if shape_of(model).block_tokens:
        raise InputError("The model has a cascade already: start from the one without.")
    return model


def keep_units(
    model: ViT, heads: Sequence[Sequence[int]], neurons: Sequence[Sequence[int]]
) -> ViT:
    """A copy of ``model`` with only the given heads and neurons, in their old order.

    The output equals that of ``model`` with the outputs of all other heads and neurons set to
    zero.

    Args:
        model: Dense or pruned; it is not changed.
        heads: For every block, the indices of the heads that stay, at least one.
        neurons: For every block, the indices of the hidden neurons that stay, at least one.

    Raises:
        UnsupportedModelError: See :func:`check_supported`.
        InputError: The lists do not fit the blocks.
    """
    model = check_supported(model)
    shape = shape_of(model)
    for name, kept, sizes in (
        ("heads", heads, [block.num_heads for block in shape.blocks]),
        ("neurons", neurons, [block.hidden_dim for block in shape.blocks]),
    ):
        if len(kept) != len(sizes):
            raise InputError(f"`{name}` must list {len(sizes)} blocks, but lists {len(kept)}.")
        for index, (units, size) in enumerate(zip(kept, sizes, strict=True)):
            if name == "heads" and shape.all_heads and len(units) != size:
                raise UnsupportedModelError(f"`heads[{index}]` must be all {size}. {ALL_HEADS}")
            if not units or len(set(units)) != len(units) or not all(0 <= u < size for u in units):
                raise InputError(
                    f"`{name}[{index}]` must be different indices in [0, {size}), at least one, "
                    f"but got {list(units)!r}."
                )
    pruned = copy_model(model)
    for (attention, ffn), head_indices, neuron_indices in zip(
        branches(pruned), heads, neurons, strict=True
    ):
        _keep_heads(attention.module, sorted(head_indices))
        _keep_neurons(ffn.module, sorted(neuron_indices))
    return pruned


def shrink_to(model: ViT, shapes: Sequence[BlockShape]) -> ViT:
    """A copy of ``model`` cut to the block shapes of a pruned model, ready for its weights.

    Raises:
        InputError: A block of ``shapes`` is larger than the block of ``model``.
    """
    model = check_supported(model)
    dense_shape = shape_of(model)
    dense = dense_shape.blocks
    if len(dense) != len(shapes):
        raise InputError(f"The model has {len(dense)} blocks, but {len(shapes)} shapes are given.")
    for index, (old, new) in enumerate(zip(dense, shapes, strict=True)):
        fits = 0 < new.num_heads <= old.num_heads and 0 < new.hidden_dim <= old.hidden_dim
        ranks = 0 < new.head_dim <= old.head_dim
        if dense_shape.whole_heads:
            ranks = new.head_dim == old.head_dim
        if dense_shape.all_heads:
            fits = fits and new.num_heads == old.num_heads
        if not (fits and ranks):
            raise InputError(f"Block {index} is {old}, which cannot be cut to {new}.")
    shrunk = copy_model(model)
    for (attention, ffn), new in zip(branches(shrunk), shapes, strict=True):
        attention.replace(resize_attention(attention.module, new.num_heads, new.head_dim))
        _keep_neurons(ffn.module, list(range(new.hidden_dim)))
    return shrunk


def resize_model(model: ViT, shape: BlockShape) -> ViT:
    """A copy of ``model`` with blocks of this shape, larger or smaller, its weights to be set."""
    new = copy_model(model)
    for attention, ffn in branches(new):
        attention.replace(resize_attention(attention.module, shape.num_heads, shape.head_dim))
        if ffn.last.in_features != shape.hidden_dim:
            for layer, rows in input_layers(ffn.module):
                _resize(layer, rows * shape.hidden_dim, layer.in_features)
            _resize(ffn.last, ffn.last.out_features, shape.hidden_dim)
    return new


def resize_attention(attn: Any, num_heads: int, head_dim: int) -> Any:
    """A copy of ``attn`` with so many heads of so many dimensions, its weights still to be set.

    The softmax scale becomes ``head_dim ** -0.5``, as in a new timm module of that size.
    """
    new = copy.deepcopy(attn)
    if (num_heads, head_dim) == (attn.num_heads, attn.head_dim):
        return new
    _set_sizes(new, num_heads, head_dim)
    new.scale = head_dim**-0.5
    table = head_table(new)
    if table is not None:
        zeros = table.new_zeros(len(table), num_heads)
        new.relative_position_bias_table = nn.Parameter(zeros, table.requires_grad)
    _resize(new.qkv, 3 * new.attn_dim, new.qkv.in_features)
    _resize(new.proj, new.proj.out_features, new.attn_dim)
    return new


def _resize(linear: nn.Linear, rows: int, columns: int) -> None:
    """Zeros of another shape."""
    weight = linear.weight
    linear.weight = nn.Parameter(weight.new_zeros(rows, columns), weight.requires_grad)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.new_zeros(rows), linear.bias.requires_grad)
    linear.out_features, linear.in_features = rows, columns


def _keep_heads(attn: Any, heads: list[int]) -> None:
    if len(heads) == attn.num_heads:
        return
    d = attn.head_dim
    dims = (torch.tensor(heads)[:, None] * d + torch.arange(d)).flatten()
    # qkv's rows are [q of all heads, k of all heads, v of all heads]
    rows = torch.cat([dims + part * attn.attn_dim for part in range(3)])
    _select(attn.qkv, rows=rows)
    _select(attn.proj, columns=dims)
    table = head_table(attn)
    if table is not None:
        kept = table.detach()[:, torch.tensor(heads, device=table.device)].clone()
        attn.relative_position_bias_table = nn.Parameter(kept, table.requires_grad)
    _set_sizes(attn, len(heads), d)


def _set_sizes(attn: Any, num_heads: int, head_dim: int) -> None:
    attn.num_heads, attn.head_dim, attn.attn_dim = num_heads, head_dim, num_heads * head_dim
    if isinstance(attn, AttentionRope):
        attn.num_kv_heads, attn.kv_dim = num_heads, num_heads * head_dim


def _keep_neurons(mlp: Any, neurons: list[int]) -> None:
    hidden = mlp.fc2.in_features
    if len(neurons) == hidden:
        return
    kept = torch.tensor(neurons)
    for layer, rows in input_layers(mlp):
        _select(layer, rows=torch.cat([kept + part * hidden for part in range(rows)]))
    _select(mlp.fc2, columns=kept)


def _select(
    linear: nn.Linear, *, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
) -> None:
    """Keep ``rows`` of the outputs (with their biases) or ``columns`` of the inputs."""
    weight = linear.weight
    if rows is not None:
        weight = weight[rows.to(weight.device)]
        if linear.bias is not None:
            bias = linear.bias[rows.to(weight.device)]
            linear.bias = nn.Parameter(bias.detach().clone(), linear.bias.requires_grad)
        linear.out_features = len(rows)
    if columns is not None:
        weight = weight[:, columns.to(weight.device)]
        linear.in_features = len(columns)
    linear.weight = nn.Parameter(weight.detach().clone(), linear.weight.requires_grad)
