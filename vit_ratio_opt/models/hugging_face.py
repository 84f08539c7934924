"""The classes of Hugging Face that can be converted, and what their configurations say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_ratio_opt.errors import InputError, UnsupportedModelError

__all__ = ["ACTIVATIONS", "ENCODERS", "WHAT_WORKS", "parse_hugging_face_config"]

ENCODERS = (
    "ViTModel",
    "Dinov2Model",
    "Dinov2WithRegistersModel",
    "DINOv3ViTModel",
    "CLIPVisionModel",
    "SiglipVisionModel",
)
"""Classes without a classifier. SigLIP 2 of one image size is a ``SiglipVisionModel``."""
_CLASSIFIERS = (
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
)
WHAT_WORKS = (
    "What can be converted are torchvision's VisionTransformer and Hugging Face's "
    f"{', '.join(_CLASSIFIERS + ENCODERS)}; timm's models need not be."
)
ACTIVATIONS = {  # Hugging Face's names -> timm's
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
# Why other classes are refused, by the beginning of their names.
_REFUSED = {
    "Dinov2": (
        "which classifies the class token and the mean of all patches side by side, as no timm "
        "model does: its encoder can be converted, a Dinov2Model"
    ),
    "CLIPModel": "with a text model beside it: load its images' part, a CLIPVisionModel",
    "SiglipModel": "with a text model beside it: load its images' part, a SiglipVisionModel",
    "Siglip2": (
        "which takes patches of images of any size (NaFlex): SigLIP 2 of one size is a "
        "SiglipVisionModel"
    ),
}


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
    if kind not in _CLASSIFIERS + ENCODERS:
        why = (_REFUSED[start] for start in _REFUSED if str(kind).startswith(start))
        reason = "".join(f", {text}" for text in why)
        raise UnsupportedModelError(f"{where} is of class {kind!s:.80}{reason}. {WHAT_WORKS}")
    heads, size, act, eps = (
        config.get(key)
        for key in ("num_attention_heads", "image_size", "hidden_act", "layer_norm_eps")
    )
    base, is_rotary = config.get("rope_theta"), kind == "DINOv3ViTModel"
    acts = list(ACTIVATIONS)
    if is_rotary:  # timm's class has no other
        acts = ["silu" if config.get("use_gated_mlp") else "gelu"]
    sides = size if isinstance(size, (list, tuple)) else [size]
    are_sizes = all(type(side) is int and side > 0 for side in sides)
    for key, value, right, rule in (
        ("num_attention_heads", heads, type(heads) is int and heads > 0, "a number from 1 on"),
        ("image_size", size, are_sizes, "one or two numbers from 1 on"),
        ("hidden_act", act, act in acts, f"one of {', '.join(acts)}"),
        ("layer_norm_eps", eps, type(eps) is float and 0 < eps < 1, "a number between 0 and 1"),
        ("rope_theta", base, not is_rotary or _is_positive(base), "a number above 0"),
    ):
        if not right:
            raise InputError(f"{where} has {key} {value!r:.80}, which must be {rule}.")
    dims, number = config.get("head_dim"), int(heads or 0)
    if dims is not None and (type(dims) is not int or dims * number != config.get("hidden_size")):
        raise InputError(
            f"{where} has head_dim {dims!r:.80}, which no dense timm model of its width has: load "
            "the timm model that it was made from, with `load_pruned`."
        )
    settings = {
        "num_heads": heads,
        "norm_eps": eps,
        "img_size": size if len(sides) == 1 else list(sides),
    }
    if is_rotary:
        settings["rope_temperature"] = base
    else:
        settings["act_layer"] = ACTIVATIONS[str(act)]
    if kind in ENCODERS:  # all tokens, of which others can be pooled
        settings |= {"num_classes": 0, "global_pool": ""}
    return settings


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")
