"""Convert ViTs of torchvision and Hugging Face to timm models, weight for weight."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import VisionTransformer as TorchvisionViT

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.adapters import check_no_adapters
from vit_ratio_opt.models.copies import unwrap_model
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.models.device import evaluating
from vit_ratio_opt.models.state_dicts import check_fits
from vit_ratio_opt.models.untouched import check_untouched
from vit_ratio_opt.models.weights import check_weights

__all__ = [
    "ACTIVATIONS",
    "TORCHVISION",
    "convert_state",
    "infer_sizes",
    "parse_hugging_face_config",
    "rename_tensors",
    "to_timm",
]

# Of torchvision's models: heads, width. Files of their weights do not say how many heads.
TORCHVISION = {
    "torchvision/vit_b_16": (12, 768),
    "torchvision/vit_b_32": (12, 768),
    "torchvision/vit_l_16": (16, 1024),
    "torchvision/vit_l_32": (16, 1024),
    "torchvision/vit_h_14": (16, 1280),
}
_HUGGING_FACE = (
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
)
_WHAT_WORKS = (
    "What can be converted are torchvision's VisionTransformer and Hugging Face's "
    f"{', '.join(_HUGGING_FACE)}; timm's models need not be."
)
ACTIVATIONS = {  # Hugging Face's names -> timm's
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}

# What the tensors are called, by regular expressions, all of which are tried in this order. Since
# transformers 5 a model's names are shorter than those in its files.
_RENAMES = (
    # torchvision
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.(?:head\.|0\.)?(?=weight$|bias$)", "head."),
    # Hugging Face
    (r"^(?:vit|deit)\.embeddings\.", ""),
    (r"^patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^position_embeddings$", "pos_embed"),
    (r"^(?:vit|deit)\.(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.(?:attention\.)?([qkv])(?:_proj|uery|ey|alue)\.", r".attn.\1."),
    (r"\.attention\.(?:o_proj|output\.dense)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^(?:vit|deit)\.layernorm\.", "norm."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
_MODEL = "The model"  # its name in messages: it came from no file

# Logits may differ by this share of the largest, as those of two orders of summation do.
_TOLERANCE = 1e-4


def to_timm(model: nn.Module) -> VisionTransformer:
    """Convert a ViT of torchvision or Hugging Face to the timm model with the same logits.

    Both are run on two images of noise, and must agree. The result shares no weights with
    ``model``, is on its device and in evaluation mode, and takes images of the size that the
    model was made for. ``save_dense`` writes it into a file.

    Args:
        model: torchvision's ``VisionTransformer``, or Hugging Face's
            ``ViTForImageClassification``, ``DeiTForImageClassification`` or
            ``DeiTForImageClassificationWithTeacher``; in float32.

    Raises:
        UnsupportedModelError: The model is of another class.
        InputError: The model has parts that a timm model has not, is not in float32, or the logits
            differ by more than 1e-4 of the largest.
    """
    model = unwrap_model(model)
    check_no_adapters(model)
    kind, module = type(model).__name__, type(model).__module__
    source: Any = model
    if type(model) is TorchvisionViT:  # a subclass may compute something else
        settings = {
            "num_heads": source.encoder.layers[0].num_heads,
            "norm_eps": getattr(source.encoder.ln, "eps", None),
            "img_size": source.image_size,
        }
    elif module.startswith("transformers.") and hasattr(model, "config"):
        settings = parse_hugging_face_config(_MODEL, kind, source.config.to_dict())
    else:
        raise UnsupportedModelError(f"{_MODEL} is of class {kind}. {_WHAT_WORKS}")
    state = {  # a classifier may be at any place of a sequence: the logits are compared
        re.sub(r"^heads\.\d+\.", "heads.", key): tensor
        for key, tensor in model.state_dict().items()
    }
    if {tensor.dtype for tensor in state.values()} != {torch.float32}:
        raise InputError(f"{_MODEL} must be in float32 to be converted: call `model.float()`.")
    check_untouched(model)
    check_weights(model)
    converted = convert_state(_MODEL, state, settings).to(next(model.parameters()).device)
    _check_same(model, converted)
    return converted


def parse_hugging_face_config(
    where: str, kind: object, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return timm's arguments that the tensors of a Hugging Face model do not give.

    Args:
        where: The folder or the model, for messages.
        kind: Name of the model's class in transformers.
        config: Content of the model's ``config.json``.

    Raises:
        UnsupportedModelError: The class cannot be converted.
        InputError: A value of the configuration is missing or out of range.
    """
    if isinstance(kind, str) and kind.startswith("Dinov2"):
        raise UnsupportedModelError(
            f"{where} is of class {kind:.80}, which classifies the class token and the mean of "
            f"all patches side by side, as no timm model does. {_WHAT_WORKS}"
        )
    if kind not in _HUGGING_FACE:
        raise UnsupportedModelError(f"{where} is of class {kind!s:.80}. {_WHAT_WORKS}")
    heads, size, act, eps = (
        config.get(key)
        for key in ("num_attention_heads", "image_size", "hidden_act", "layer_norm_eps")
    )
    sides = size if isinstance(size, (list, tuple)) else [size]
    are_sizes = all(type(side) is int and side > 0 for side in sides)
    for key, value, right, rule in (
        ("num_attention_heads", heads, type(heads) is int and heads > 0, "a number from 1 on"),
        ("image_size", size, are_sizes, "one or two numbers from 1 on"),
        ("hidden_act", act, act in list(ACTIVATIONS), f"one of {', '.join(ACTIVATIONS)}"),
        ("layer_norm_eps", eps, type(eps) is float and 0 < eps < 1, "a number between 0 and 1"),
    ):
        if not right:
            raise InputError(f"{where} has {key} {value!r:.80}, which must be {rule}.")
    return {
        "num_heads": heads,
        "norm_eps": eps,
        "img_size": size if len(sides) == 1 else list(sides),
        "act_layer": ACTIVATIONS[str(act)],
    }


def convert_state(
    where: str, state: Mapping[str, torch.Tensor], settings: Mapping[str, Any]
) -> VisionTransformer:
    """Return the timm model with the tensors of another library's model.

    All sizes come from the tensors, so a file cannot ask for more memory than they take.

    Args:
        where: Source of the tensors, for messages.
        state: The tensors, in torchvision's or Hugging Face's names.
        settings: timm's arguments that tensors do not give; they replace those that tensors give.

    Raises:
        InputError: The tensors do not fit a timm model.
    """
    renamed = rename_tensors(where, state)
    name = "deit_base_distilled_patch16_224" if "dist_token" in renamed else "vit_base_patch16_224"
    arguments = {**infer_sizes(where, renamed, settings.get("img_size")), **settings}
    with torch.device("meta"):  # nothing is allocated before everything fits
        check_fits(create_model(name, **arguments), renamed, where)
    model = create_model(name, **arguments)
    model.load_state_dict(renamed)
    return model


def rename_tensors(where: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return torchvision's or Hugging Face's tensors in timm's names.

    Args:
        where: Source of the tensors, for messages.
        state: The tensors.

    Raises:
        InputError: Two tensors have one name, or queries, keys and values differ in shape.
    """
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        new = key
        for pattern, replacement in _RENAMES:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise InputError(f"{where} has two tensors that are timm's `{new}`; one is `{key}`.")
        renamed[new] = tensor
    for key in [key for key in renamed if ".attn.q." in key]:
        parts = [key.replace(".q.", f".{part}.") for part in "qkv"]
        if all(part in renamed and renamed[part].dim() > 0 for part in parts):
            tensors = [renamed.pop(part) for part in parts]
            if len({tensor.shape for tensor in tensors}) > 1:
                raise InputError(f"{where} has queries, keys and values of different shapes.")
            renamed[key.replace(".q.", ".qkv.")] = torch.cat(tensors)
    # A token that only the distillation's classifier reads: without that it is one more register.
    if "distillation_token" in renamed:
        token = "dist_token" if "head_dist.weight" in renamed else "reg_token"
        renamed[token] = renamed.pop("distillation_token")
    return renamed


def infer_sizes(where: str, state: Mapping[str, torch.Tensor], size: Any) -> dict[str, Any]:
    """Return timm's arguments that tensors give.

    Args:
        where: Source of the tensors, for messages.
        state: The tensors, in timm's names.
        size: Image size in pixels, one number or height and width; None for square images of the
            size that the positions are for.

    Raises:
        InputError: A tensor is missing, or the positions do not fit ``size``.
    """
    for key, dims in (
        ("patch_embed.proj.weight", 4),
        ("pos_embed", 3),
        ("blocks.0.mlp.fc1.weight", 2),
        ("head.weight", 2),
    ):
        if key not in state or state[key].dim() != dims or 0 in state[key].shape:
            raise InputError(
                f"{where} has no tensor that is timm's `{key}` with {dims} dimensions: it is none "
                "of the models that can be converted, or has a classifier of its own."
            )
    width, channels, *patch = state["patch_embed.proj.weight"].shape
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    ratio = hidden / width
    if int(width * ratio) != hidden:  # what timm rounds down
        ratio = (hidden + 0.5) / width
    registers = int("reg_token" in state)
    patches = state["pos_embed"].shape[1] - 1 - registers - int("dist_token" in state)
    if size is None:
        size = math.isqrt(max(patches, 0)) * patch[0]
    sides = size if isinstance(size, (list, tuple)) else [size, size]
    if len(sides) != 2 or math.prod(a // b for a, b in zip(sides, patch, strict=True)) != patches:
        raise InputError(
            f"{where} has positions for {patches} patches of {patch[0]} x {patch[1]}, which "
            f"images of size {size} do not have."
        )
    return {
        "img_size": size,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "in_chans": channels,
        "num_classes": state["head.weight"].shape[0],
        "embed_dim": width,
        "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "mlp_ratio": ratio,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        **({"reg_tokens": registers} if registers else {}),
    }


def _check_same(source: nn.Module, converted: VisionTransformer) -> None:
    size = (2, converted.in_chans, *converted.patch_embed.img_size)
    images = torch.randn(size, generator=torch.Generator().manual_seed(0))
    images = images.to(next(converted.parameters()).device)
    with torch.no_grad(), evaluating(source):
        expected = source(images)
        expected = getattr(expected, "logits", expected)
        got = converted(images)
    largest = max(1.0, float(expected.abs().max()))
    # not "greater than": NaN is no agreement
    if expected.shape != got.shape or not (expected - got).abs().max() <= _TOLERANCE * largest:
        raise InputError(
            f"{_MODEL} cannot be converted: the timm model of its weights gives other logits, so "
            "it computes something that its class and its weights do not tell."
        )
