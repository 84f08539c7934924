"""Infer timm's arguments from the tensors of another library's model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed

from vit_ratio_opt.errors import InputError

__all__ = ["as_pair", "infer_eva_sizes", "infer_sizes", "is_gated", "resample_positions"]


def infer_sizes(
    where: str, state: Mapping[str, torch.Tensor], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return timm's arguments of a ``VisionTransformer`` that tensors give.

    Args:
        where: Source of the tensors, for messages.
        state: The tensors, in timm's names.
        settings: Known arguments: ``img_size`` in pixels, one number or height and width, and
            without a classifier ``num_classes=0``. Without ``img_size`` images are square and of
            the size that the positions are for.

    Raises:
        InputError: A tensor is missing, or the positions do not fit ``img_size``.
    """
    size, classifies = settings.get("img_size"), settings.get("num_classes") != 0
    needed = {"pos_embed": 3, **({"head.weight": 2} if classifies else {})}
    found = _shared_sizes(where, state, needed)
    patch = as_pair(found["patch_size"])
    registers = _count(state, "reg_token")
    prefix = _count(state, "cls_token") + registers + _count(state, "dist_token")
    patches = state["pos_embed"].shape[1] - prefix
    if size is None:
        size = math.isqrt(max(patches, 0)) * patch[0]
    sides = as_pair(size)
    wanted = math.prod(a // b for a, b in zip(sides, patch, strict=True)) if len(sides) == 2 else 0
    has_own = registers > 0 and patches + prefix == wanted  # only patches have positions
    if not wanted or not (has_own or patches == wanted):
        raise InputError(
            f"{where} has positions for {patches} patches of {patch[0]} x {patch[1]}, which "
            f"images of size {size} do not have."
        )
    return {
        **found,
        "img_size": size,
        **({"num_classes": len(state["head.weight"])} if classifies else {}),
        **({"reg_tokens": registers} if registers else {}),
        **({"no_embed_class": True} if has_own else {}),
        **({} if "cls_token" in state else {"class_token": False}),
        **({"pre_norm": True} if "norm_pre.weight" in state else {}),
        **({"init_values": 1.0} if "blocks.0.ls1.gamma" in state else {}),  # set by the tensors
    }


def infer_eva_sizes(where: str, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return timm's arguments of an ``Eva`` with rotary embeddings that tensors give.

    Args:
        where: Source of the tensors, for messages.
        state: The tensors, in timm's names.

    Raises:
        InputError: A tensor is missing.
    """
    found = _shared_sizes(where, state, {"cls_token": 3})
    if is_gated(state):
        found |= {"swiglu_mlp": True, "mlp_ratio": found["mlp_ratio"] / 2}
    return {**found, "num_reg_tokens": _count(state, "reg_token")}


def _shared_sizes(
    where: str, state: Mapping[str, torch.Tensor], needed: Mapping[str, int]
) -> dict[str, Any]:
    """Return the arguments that all classes have, after a check of the tensors that give them."""
    first, neurons = "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"
    for key, dims in {first: 4, neurons: 2, **needed}.items():
        if key not in state or state[key].dim() != dims or 0 in state[key].shape:
            raise InputError(
                f"{where} has no tensor that is timm's `{key}` with {dims} dimensions: it is none "
                "of the models that can be converted, or has a classifier of its own."
            )
    width, channels, *patch = state[first].shape
    hidden = len(state[neurons])
    ratio = hidden / width
    if int(width * ratio) != hidden:  # what timm rounds down
        ratio = (hidden + 0.5) / width
    return {
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "in_chans": channels,
        "embed_dim": width,
        "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "mlp_ratio": ratio,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
    }


def _count(state: Mapping[str, torch.Tensor], key: str) -> int:
    """Return the number of tokens of one kind."""
    return state[key].shape[1] if key in state and state[key].dim() == 3 else 0


def as_pair(size: Any) -> list[int]:
    """Return height and width of a size that is one number or both."""
    return list(size) if isinstance(size, (list, tuple)) else [size, size]


def is_gated(state: Mapping[str, torch.Tensor]) -> bool:
    """Return whether the FFNs have a gate: two rows of fc1 for each neuron."""
    fc1, fc2 = (state.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    return fc1 is not None and fc2 is not None and 2 * fc2.shape[-1] == len(fc1)


def resample_positions(
    state: dict[str, torch.Tensor], arguments: dict[str, Any], image_size: Any
) -> None:
    """Interpolate positions for images of another size in place, as Hugging Face's classes do.

    Args:
        state: The tensors, in timm's names; ``pos_embed`` is replaced.
        arguments: timm's arguments; ``img_size`` is replaced.
        image_size: Height and width of the images in pixels, one number or two.
    """
    old, patch = arguments["img_size"], as_pair(arguments["patch_size"])
    arguments["img_size"] = image_size
    if "pos_embed" not in state or as_pair(old) == as_pair(image_size):
        return
    before, after = (
        [a // b for a, b in zip(as_pair(size), patch, strict=True)] for size in (old, image_size)
    )
    prefix = state["pos_embed"].shape[1] - math.prod(before)
    state["pos_embed"] = resample_abs_pos_embed(
        state["pos_embed"],
        new_size=after,
        old_size=before,
        num_prefix_tokens=prefix,
        antialias="no_embed_class" in arguments,  # DINOv2 with registers, of all classes
    )
