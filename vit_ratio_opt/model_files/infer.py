"""Infer a timm model's arguments from its tensors."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import Mlp, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.utils.text import shorten

__all__ = [
    "infer_arguments",
    "resample_positions",
]

_QKV_BIAS = "blocks.0.attn.qkv.bias"
_logger = logging.getLogger(f"optuna.{__name__}")


def infer_arguments(
    where: object,
    name: str,
    state: Mapping[str, torch.Tensor],
    model: ViT,
    given: Mapping[str, Any],
    usual_width: int,
) -> dict[str, Any]:
    """Return the arguments that the tensors of a timm model give beside ``given``.

    Args:
        where: The file, for messages.
        name: timm's name of the model.
        state: The tensors, in the names of ``model``.
        model: The named model with ``given``; its values hold where tensors leave them open.
        given: The arguments that were given.
        usual_width: Width of the named model without ``given``.

    Raises:
        InputError: The tensors contradict ``given``, or leave open the number of heads, the size
            of the images, or the classifier.
    """
    if "patch_embed.proj.weight" not in state:
        first = ", ".join(f"`{shorten(key, 60)}`" for key in list(state)[:2])
        raise InputError(
            f"{where} does not fit the model: it has no tensor `patch_embed.proj.weight`, as "
            f"every ViT of timm's, but {first} ...: it is of another model than the named one."
        )
    plain = isinstance(model, VisionTransformer)
    found = _sizes(state, model)
    _refuse_other_kinds(where, name, state, model)
    for key, value in found.items():
        if key in given and _pair(given[key]) != _pair(value):
            raise InputError(
                f"{where} has {key}={value!r} by its tensors, but {key}={given[key]!r:.60} was "
                "given: leave it out."
            )
    width = found.get("embed_dim", model.embed_dim)
    if width != usual_width and "num_heads" not in given:
        raise InputError(
            f"{where} is {width} wide, but {name} is {usual_width} wide, and tensors do not tell "
            "how many heads there are: name the model that it was made from, or give `num_heads`."
        )
    if plain:
        found |= _parts(state, model)
    elif (_QKV_BIAS in state) != (_QKV_BIAS in model.state_dict()):
        found["qkv_bias"] = _QKV_BIAS in state
    found |= _image_size(where, state, model, {**found, **given})
    return {key: value for key, value in found.items() if key not in given}


def _pair(value: Any) -> Any:
    """Return a size, of one number or two, so that it can be compared."""
    return list(value) if isinstance(value, (list, tuple)) else [value, value]


def _sizes(state: Mapping[str, torch.Tensor], model: ViT) -> dict[str, Any]:
    """Return the sizes that differ from the model's."""
    found: dict[str, Any] = {}
    first = state.get("patch_embed.proj.weight")
    if first is not None and first.dim() == 4 and 0 not in first.shape:
        width, channels, *patch = first.shape
        found |= {"embed_dim": width, "in_chans": channels}
        found["patch_size"] = patch[0] if patch[0] == patch[1] else list(patch)
    head = state.get("head.weight")
    if head is not None and head.dim() == 2 and len(head):
        found["num_classes"] = len(head)
    depth = {key.split(".")[1] for key in state if re.match(r"blocks\.\d+\.", key)}
    if depth:
        found["depth"] = len(depth)
    own = {
        "embed_dim": model.embed_dim,
        "in_chans": model.patch_embed.proj.in_channels,
        "patch_size": list(model.patch_embed.patch_size),
        "num_classes": getattr(model.head, "out_features", 0),
        "depth": len(model.blocks),
    }
    return {key: value for key, value in found.items() if _pair(value) != _pair(own[key])}


def _refuse_other_kinds(
    where: object,
    name: str,
    state: Mapping[str, torch.Tensor],
    model: ViT,
) -> None:
    if any(key.startswith("decoder_blocks.") for key in state):
        raise InputError(
            f"{where} is a masked autoencoder with its decoder, which classifies nothing: "
            "fine-tune it first."
        )
    own = model.state_dict()
    if "head.weight" not in state and "head.weight" in own and state.keys() < own.keys():
        raise InputError(
            f"{where} has no classifier (`head.weight`): it was saved without one, or is of no "
            "timm model. Give the checkpoint of a model that was trained to classify, or load it "
            "as an encoder, with `num_classes=0`."
        )
    if "head_dist.weight" in state and not hasattr(model, "head_dist"):
        raise InputError(
            f"{where} is a distilled DeiT with two classifiers, but {name} has one: name its own "
            "model, such as deit_tiny_distilled_patch16_224."
        )
    for part in ("attn.qkv.weight", "mlp.fc1.weight"):
        shapes = {
            tuple(tensor.shape)
            for key, tensor in state.items()
            if re.fullmatch(rf"blocks\.\d+\.{re.escape(part)}", key)
        }
        if len(shapes) > 1:
            raise InputError(
                f"{where} looks like a pruned model: its blocks have `{part}` of different "
                "shapes. Read it with `load_pruned`, from a file of `save_pruned`."
            )


def _parts(state: Mapping[str, torch.Tensor], model: VisionTransformer) -> dict[str, Any]:
    """Return arguments for the parts in which the tensors of a plain ViT and the model differ."""
    found: dict[str, Any] = {}
    own = model.state_dict()
    for argument, key in (
        ("qkv_bias", _QKV_BIAS),
        ("proj_bias", "blocks.0.attn.proj.bias"),
        ("qk_norm", "blocks.0.attn.q_norm.weight"),
        ("pre_norm", "norm_pre.weight"),
        ("class_token", "cls_token"),
        ("init_values", "blocks.0.ls1.gamma"),
    ):
        if (key in state) != (key in own):
            found[argument] = key in state
    if "init_values" in found:  # the values are the file's
        found["init_values"] = 1.0 if found["init_values"] else 0.0
    registers = _tokens(state, "reg_token")
    if registers != _tokens(own, "reg_token"):
        found["reg_tokens"] = registers
    hidden, width = _rows(state, "blocks.0.mlp.fc1.weight"), model.embed_dim
    if type(getattr(model.blocks[0], "mlp", None)) is Mlp:
        width = len(state.get("norm.weight", state.get("fc_norm.weight", torch.empty(width))))
        if hidden and hidden / width != _rows(own, "blocks.0.mlp.fc1.weight") / model.embed_dim:
            ratio = hidden / width
            found["mlp_ratio"] = ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
    if any(key.startswith("attn_pool.") for key in state) != (model.attn_pool is not None):
        found["global_pool"] = "map" if model.attn_pool is None else "token"
    elif ("fc_norm.weight" in state) != ("fc_norm.weight" in own):
        if "fc_norm.weight" in state:  # the norm comes after the mean over the patches
            found |= {"global_pool": "avg", "fc_norm": True}
        elif "norm.weight" in state:
            found["global_pool"] = "token" if "cls_token" in state else "avg"
            found["fc_norm"] = False
    return found


def _tokens(state: Mapping[str, torch.Tensor], key: str) -> int:
    return state[key].shape[1] if key in state and state[key].dim() == 3 else 0


def _rows(state: Mapping[str, torch.Tensor], key: str) -> int:
    return state[key].shape[0] if key in state and state[key].dim() else 0


def _image_size(
    where: object, state: Mapping[str, torch.Tensor], model: ViT, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the image size that the positions are for, where it is not the model's."""
    positions, own = _tokens(state, "pos_embed"), getattr(model, "pos_embed", None)
    if "img_size" in known or not positions or own is None:
        return {}
    patch = _pair(known.get("patch_size", model.patch_embed.patch_size))
    prefix = _prefix(state, model)
    patches = positions - prefix
    rows, columns = model.patch_embed.grid_size
    if patches != rows * columns:
        rows = columns = math.isqrt(max(patches, 0))
    if rows * columns != patches or not patches:
        raise InputError(
            f"{where} has positions for {patches} patches, which no square image has: give "
            "`img_size`, its height and width."
        )
    size = (rows * patch[0], columns * patch[1])
    if size == tuple(model.patch_embed.img_size):
        return {}
    return {"img_size": size[0] if size[0] == size[1] else list(size)}


def _prefix(state: Mapping[str, torch.Tensor], model: ViT) -> int:
    """Return the number of positions of tokens that are no patches."""
    own = model.pos_embed
    if own is None or own.shape[1] == model.patch_embed.num_patches:
        return 0
    return sum(_tokens(state, key) for key in ("cls_token", "reg_token", "dist_token"))


def resample_positions(
    where: object, state: Mapping[str, torch.Tensor], model: ViT
) -> Mapping[str, torch.Tensor]:
    """Return the tensors with positions interpolated for the model's image size, as timm does.

    Args:
        where: The file, for the warning that is logged.
        state: The tensors, in the names of ``model``.
        model: The model that the tensors are for.
    """
    positions, own = state.get("pos_embed"), getattr(model, "pos_embed", None)
    if positions is None or own is None or positions.shape == own.shape:
        return state
    prefix = _prefix(state, model)
    patches = positions.shape[1] - prefix if positions.dim() == 3 else 0
    side = math.isqrt(max(patches, 0))
    if side * side != patches or not patches or positions.shape[2] != own.shape[2]:
        return state  # the check of shapes names the tensor
    if own.shape[1] != model.patch_embed.num_patches + prefix:
        return state
    _logger.warning(
        f"{where} has positions for {side} x {side} patches; they are interpolated for images of "
        f"{tuple(model.patch_embed.img_size)} pixels."
    )
    new = resample_abs_pos_embed(
        positions.float(),
        new_size=list(model.patch_embed.grid_size),
        old_size=[side, side],
        num_prefix_tokens=prefix,
    )
    return {**state, "pos_embed": new}
