"""ViTs of torchvision and Hugging Face as the timm models that they are, weight for weight.

Their attention modules hold no fewer heads than their width says, so they are converted, once. The
tensors' names change, and three matrices for queries, keys and values become one; no number does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import VisionTransformer as TorchvisionViT

from vit_ratio_opt.data.preprocessing import Preprocessing, remember_preprocessing
from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.model_files.checkpoint import check_fits, create_model
from vit_ratio_opt.model_files.folders import read_config, read_folder
from vit_ratio_opt.model_files.weights import read_tensors
from vit_ratio_opt.models.device import evaluating
from vit_ratio_opt.models.supported import check_untouched, check_weights, unwrapped

__all__ = ["load_converted", "to_timm"]

# Of torchvision's models: heads, width. Files of their weights do not say how many heads.
_TORCHVISION = {
    "torchvision/vit_b_16": (12, 768),
    "torchvision/vit_b_32": (12, 768),
    "torchvision/vit_l_16": (16, 1024),
    "torchvision/vit_l_32": (16, 1024),
    "torchvision/vit_h_14": (16, 1280),
}
# ImageNet's, with which torchvision's first weights were trained; later ones are cropped less.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HUGGING_FACE = (
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
)
_WHAT_WORKS = (
    "What can be converted are torchvision's VisionTransformer and Hugging Face's "
    f"{', '.join(_HUGGING_FACE)}; timm's models need not be."
)
_ACTIVATIONS = {  # Hugging Face's names -> timm's
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
_MODEL = "The model"  # what messages call one that came from no file
# Logits may differ by this share of the largest, as those of two orders of summation do.
_TOLERANCE = 1e-4


def to_timm(model: nn.Module) -> VisionTransformer:
    """The timm model that gives the logits of a ViT from torchvision or Hugging Face.

    Both are run on two images of noise, and must agree. What comes back shares no weights with
    ``model``, is on its device and in evaluation mode, and takes images of the size that the
    model was made for. :func:`vit_ratio_opt.model_files.checkpoint.save_dense` writes it into a
    file.

    Args:
        model: torchvision's ``VisionTransformer``, or Hugging Face's
            ``ViTForImageClassification``, ``DeiTForImageClassification`` or
            ``DeiTForImageClassificationWithTeacher``; in float32.

    Raises:
        UnsupportedModelError: It is of another class.
        InputError: It has parts that a timm model has not, is not in float32, or the logits
            differ by more than 1e-4 of the largest.
    """
    model = unwrapped(model)
    kind, module = type(model).__name__, type(model).__module__
    source: Any = model
    if type(model) is TorchvisionViT:  # a subclass may compute something else
        settings = {
            "num_heads": source.encoder.layers[0].num_heads,
            "norm_eps": getattr(source.encoder.ln, "eps", None),
            "img_size": source.image_size,
        }
    elif module.startswith("transformers.") and hasattr(model, "config"):
        settings = _hugging_face(_MODEL, kind, source.config.to_dict())
    else:
        raise UnsupportedModelError(f"{_MODEL} is of class {kind}. {_WHAT_WORKS}")
    state = {  # whatever place a classifier has in a sequence: the logits will tell
        re.sub(r"^heads\.\d+\.", "heads.", key): tensor
        for key, tensor in model.state_dict().items()
    }
    if {tensor.dtype for tensor in state.values()} != {torch.float32}:
        raise InputError(f"{_MODEL} must be in float32 to be converted: call `model.float()`.")
    check_untouched(model)
    check_weights(model)
    converted = _converted(_MODEL, state, settings).to(next(model.parameters()).device)
    _check_same(model, converted)
    return converted


def load_converted(
    path: Path, *, name: str | None, weights: str | None = None, **arguments: Any
) -> VisionTransformer:
    """The timm model of a Hugging Face folder, or of a file of torchvision's weights.

    Nothing can be run to compare it with: :func:`to_timm` is where the names are checked.

    Args:
        path: A folder with ``config.json`` and weights, or a file of tensors.
        name: For a file, such as ``torchvision/vit_b_16``.
        weights: See :func:`~vit_ratio_opt.model_files.weights.read_tensors`.
        **arguments: Added to those that the files give.

    Raises:
        UnsupportedModelError: The model is of another class.
        InputError: A file is missing, damaged, or does not fit the rest.
    """
    if path.is_dir():
        config = read_config(path)
        architectures = config.get("architectures")
        kind = architectures[0] if isinstance(architectures, list) and architectures else None
        settings = _hugging_face(str(path), kind, config)
        # what the class does not use, it may have been pretrained with
        state = {
            key: tensor
            for key, tensor in read_folder(path, weights).items()
            if not re.search(r"\.pooler\.|\.mask_token$", key)
        }
        return _converted(str(path), state, {**settings, **arguments})
    if name not in _TORCHVISION:
        raise InputError(f"The name {name!r} must be one of {', '.join(_TORCHVISION)}.")
    num_heads, width = _TORCHVISION[name]
    state, _ = read_tensors(path, weights)
    if state.get("class_token", torch.empty(0)).shape != (1, 1, width):
        raise InputError(f"{path} has not the weights of a {name}, which is {width} wide.")
    model = _converted(str(path), state, {"num_heads": num_heads, "norm_eps": 1e-6, **arguments})
    height, width = model.patch_embed.img_size
    if model.in_chans == len(_MEAN):
        known = Preprocessing(
            _MEAN, _STD, (height, width), crop=224 / 256, origin=f"{name}", is_assumed=True
        )
        remember_preprocessing(model, known)
    return model


def _hugging_face(where: str, kind: object, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the tensors of a Hugging Face model do not say, in timm's words."""
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
        ("hidden_act", act, act in list(_ACTIVATIONS), f"one of {', '.join(_ACTIVATIONS)}"),
        ("layer_norm_eps", eps, type(eps) is float and 0 < eps < 1, "a number between 0 and 1"),
    ):
        if not right:
            raise InputError(f"{where} has {key} {value!r:.80}, which must be {rule}.")
    return {
        "num_heads": heads,
        "norm_eps": eps,
        "img_size": size if len(sides) == 1 else list(sides),
        "act_layer": _ACTIVATIONS[str(act)],
    }


def _converted(
    where: str, state: Mapping[str, torch.Tensor], settings: Mapping[str, Any]
) -> VisionTransformer:
    """The timm model with the tensors; all sizes are theirs, so no other file can ask for more."""
    renamed = _renamed(where, state)
    name = "deit_base_distilled_patch16_224" if "dist_token" in renamed else "vit_base_patch16_224"
    arguments = {**_sizes(where, renamed, settings.get("img_size")), **settings}
    with torch.device("meta"):  # nothing is allocated before everything fits
        check_fits(create_model(name, **arguments), renamed, where)
    model = create_model(name, **arguments)
    model.load_state_dict(renamed)
    return model


def _renamed(where: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict in timm's names."""
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


def _sizes(where: str, state: Mapping[str, torch.Tensor], size: Any) -> dict[str, Any]:
    """The arguments that the tensors give, and the size of square images unless one is known."""
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
