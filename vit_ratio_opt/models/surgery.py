"""Cut timm ViTs exactly. No policy: the caller chooses the heads and neurons to keep.

A block with fewer heads or neurons is still the timm block it was, only smaller, since timm 1.0.23
keeps ``num_heads``, ``head_dim`` and ``attn_dim`` apart from the width. So no forward is patched,
and everything that works on a timm model works on the result.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.blocks import ViT, attention_kind, branches, input_layers
from vit_ratio_opt.models.copies import copy_model
from vit_ratio_opt.models.shape import read_shape
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.space.shape import BlockShape

__all__ = [
    "ALL_HEADS",
    "copy_head_entries",
    "keep_neurons",
    "keep_units",
    "resize_attention",
    "resize_model",
    "set_sizes",
    "shrink_to",
]

ALL_HEADS = (
    "The heads of this model are mixed (talking heads), so none can go: lower their ranks, with a "
    "`Calibration`."
)


def keep_units(
    model: ViT, heads: Sequence[Sequence[int]], neurons: Sequence[Sequence[int]]
) -> ViT:
    """Return a copy of ``model`` with only the given heads and neurons, in their old order.

    The output equals that of ``model`` with the outputs of all other heads and neurons set to
    zero.

    Args:
        model: Dense or pruned model; it is not changed.
        heads: For every block, the indices of the heads that stay, at least one.
        neurons: For every block, the indices of the hidden neurons that stay, at least one.

    Raises:
        UnsupportedModelError: The model cannot be pruned, or its heads are mixed.
        InputError: The lists do not fit the blocks.
    """
    model = check_supported(model)
    shape = read_shape(model)
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
        keep_neurons(ffn.module, sorted(neuron_indices))
    return pruned


def shrink_to(model: ViT, shapes: Sequence[BlockShape]) -> ViT:
    """Return a copy of ``model`` cut to the block shapes of a pruned model, its weights to be set.

    Args:
        model: Dense model; it is not changed.
        shapes: For every block, the heads, their dimensions and the neurons of the copy.

    Raises:
        InputError: A block of ``shapes`` is larger than the block of ``model``.
    """
    model = check_supported(model)
    dense_shape = read_shape(model)
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
        keep_neurons(ffn.module, list(range(new.hidden_dim)))
    return shrunk


def resize_model(model: ViT, shape: BlockShape) -> ViT:
    """Return a copy of ``model`` with all blocks of one shape, its weights to be set."""
    new = copy_model(model)
    for attention, ffn in branches(new):
        attention.replace(resize_attention(attention.module, shape.num_heads, shape.head_dim))
        if ffn.last.in_features != shape.hidden_dim:
            for layer, rows in input_layers(ffn.module):
                _resize(layer, rows * shape.hidden_dim, layer.in_features)
            _resize(ffn.last, ffn.last.out_features, shape.hidden_dim)
    return new


def resize_attention(attn: Any, num_heads: int, head_dim: int) -> Any:
    """Return a copy of an attention with heads of another number or size, its weights to be set.

    Where the size of heads changes, the softmax scale becomes ``head_dim ** -0.5``, as in a new
    timm module of that size.

    Args:
        attn: A supported attention; it is not changed.
        num_heads: Number of heads of the copy.
        head_dim: Dimensions of each head of the copy.
    """
    new = copy.deepcopy(attn)
    if (num_heads, head_dim) == (attn.num_heads, attn.head_dim):
        return new
    dims = num_heads * head_dim
    for name, dim in attention_kind(attn).per_head.items():
        tensor = getattr(attn, name)
        if tensor is not None:
            shape = [*tensor.shape]
            shape[dim] = num_heads
            _put(new, name, tensor.new_zeros(shape))
    if head_dim != attn.head_dim:
        new.scale = head_dim**-0.5
    set_sizes(new, num_heads, head_dim)
    _resize(new.qkv, 3 * dims, new.qkv.in_features)
    _resize(new.proj, new.proj.out_features, dims)
    return new


def copy_head_entries(source: Any, target: Any, heads: Sequence[int]) -> None:
    """Copy the parameters and buffers of ``heads`` that have an entry for each head.

    Args:
        source: The attention that is read.
        target: A copy with as many heads as ``heads``; it is changed.
        heads: Indices of heads of ``source``.
    """
    for name, dim in attention_kind(source).per_head.items():
        tensor = getattr(source, name)
        if tensor is not None:
            _put(target, name, tensor.index_select(dim, torch.tensor(heads, device=tensor.device)))


def _put(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Replace a parameter or buffer by one of another shape."""
    old = getattr(module, name)
    value = value.detach().clone()
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value, old.requires_grad)
    setattr(module, name, value)


def _resize(linear: nn.Linear, rows: int, columns: int) -> None:
    """Replace the weights of a layer by zeros of another shape."""
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
    rows = torch.cat([dims + part * attn.num_heads * d for part in range(3)])
    _select(attn.qkv, rows=rows)
    _select(attn.proj, columns=dims)
    copy_head_entries(attn, attn, heads)
    set_sizes(attn, len(heads), d)


def set_sizes(attn: Any, num_heads: int, head_dim: int) -> None:
    """Set the attributes of an attention that say how many heads it has, and of what size."""
    dims = num_heads * head_dim
    sizes = {"num_heads": num_heads, "head_dim": head_dim, "attn_dim": dims}
    sizes |= {"num_kv_heads": num_heads, "kv_dim": dims}  # of attention with rotations
    for name, size in sizes.items():
        if hasattr(attn, name):
            setattr(attn, name, size)


def keep_neurons(mlp: Any, neurons: list[int]) -> None:
    """Keep some hidden neurons of an FFN, in the order in which they are given."""
    hidden = mlp.fc2.in_features
    if neurons == list(range(hidden)):
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
