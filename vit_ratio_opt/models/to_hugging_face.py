"""Give a timm model, dense or pruned, back as a model of Hugging Face."""

from __future__ import annotations

import re
from typing import Any

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.hugging_face import ENCODERS
from vit_ratio_opt.models.hugging_face_outputs import (
    HuggingFaceOutputs,
    noise_for,
    outputs_differ,
)
from vit_ratio_opt.models.renames import UNUSED, rename, rename_tensors, split_tensors
from vit_ratio_opt.models.shape import read_shape
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.models.weights import check_full_precision, check_weights
from vit_ratio_opt.utils.text import shorten

__all__ = ["to_huggingface"]


def to_huggingface(model: ViT, like: nn.Module) -> nn.Module:
    """Return a timm encoder as a model of the Hugging Face class that it was converted from.

    Where the class can hold the sizes, the result is of that class, with a smaller ``config`` of
    its own: ``save_pretrained`` and ``from_pretrained`` work. All blocks must then have the same
    sizes (``prune(..., allocation="uniform")``), and the class must have a setting for them.
    Otherwise the result is a module with the same outputs,
    :class:`~vit_ratio_opt.models.hugging_face_outputs.HuggingFaceOutputs`; save ``model`` itself
    with ``save_pruned``.

    Args:
        model: A timm model, dense or pruned. It is copied, without its classifier.
        like: The model that ``model`` was converted from, or another of its class and depth. It
            gives the class, the configuration, and the weights that timm has no part for: the
            ``pooler`` and the ``mask_token``.

    Returns:
        The model, in evaluation mode on the device of ``model``.

    Raises:
        UnsupportedModelError: ``model`` cannot be pruned, or the class of ``like`` is none that
            :func:`~vit_ratio_opt.models.convert.to_timm` converts to an encoder.
        InputError: ``model`` has other parts than ``like``, or its weights are not finite numbers
            in float32.
    """
    model = check_supported(model)
    check_full_precision(model)
    check_weights(model)
    kind: type = type(like)
    if kind.__name__ not in ENCODERS or not kind.__module__.startswith("transformers."):
        raise UnsupportedModelError(
            f"`like` must be a Hugging Face model of one of the classes {', '.join(ENCODERS)}, "
            f"but is of class {kind.__name__}."
        )
    _check_parts(model, like)
    first = next(model.parameters())
    outputs = HuggingFaceOutputs(model, like).to(first.device, first.dtype)
    held = _as_class(model, like)
    if held is None:
        return outputs
    held = held.to(first.device, first.dtype)
    images = noise_for(model)
    with torch.no_grad():
        if outputs_differ(held(images), outputs(images)):
            raise InputError(
                "The model does not give the outputs of `like`'s class with the model's weights: "
                "they differ in something else than sizes, such as the activation."
            )
    return held


def _check_parts(model: ViT, like: Any) -> None:
    """Refuse a model with other tensors than ``like``, apart from their sizes in the blocks."""
    if type(model) not in (VisionTransformer, Eva):
        raise UnsupportedModelError(
            f"A timm model of class {type(model).__name__} is none of {', '.join(ENCODERS)}."
        )
    theirs = {key: x for key, x in like.state_dict().items() if not UNUSED.search(key)}
    wanted = rename_tensors("`like`", theirs)
    own = {_plain_name(key): x for key, x in model.state_dict().items()}
    own = {key: x for key, x in own.items() if not key.startswith(("head.", "head_dist."))}
    odd = sorted(own.keys() ^ wanted.keys())
    if odd:
        raise InputError(
            f"The model and `like` have different parts, such as timm's `{shorten(odd[0], 60)}`: "
            "give the model that it was converted from."
        )
    for key, tensor in wanted.items():
        inside = key.startswith("blocks.") and "norm" not in key
        if not inside and key != "pos_embed" and tensor.shape != own[key].shape:
            raise InputError(
                f"timm's `{key}` has shape {tuple(own[key].shape)} in the model, but "
                f"{tuple(tensor.shape)} in `like`: give the model that it was converted from."
            )


def _plain_name(key: str) -> str:
    """Return the name of a tensor of an ``Eva`` as a ``VisionTransformer`` would have it."""
    return re.sub(r"\.fc1_[gx]\.", ".fc1.", re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key))


def _as_class(model: Any, like: Any) -> nn.Module | None:
    """Return the model as one of the class of ``like``; None where the class cannot hold it."""
    shape = read_shape(model)
    if len(set(shape.blocks)) > 1 or shape.block_tokens:
        return None
    split = split_tensors(model)
    settings = _smaller_config(model, like.config.to_dict(), split)
    options = {}
    if type(like).__name__ == "ViTModel":  # what its configuration leaves open
        options["add_pooling_layer"] = like.pooler is not None
        options["use_mask_token"] = like.embeddings.mask_token is not None
    try:
        config = type(like.config).from_dict(settings)
        held: nn.Module = type(like)(config, **options).eval()
    except Exception:  # whatever a class raises for sizes that it does not allow
        return None
    kept, state = like.state_dict(), {}
    for key, wanted in held.state_dict().items():
        tensor = kept.get(key) if UNUSED.search(key) else split.get(rename(key), wanted[:0])
        if tensor is None or tensor.numel() != wanted.numel():
            return None
        state[key] = tensor.reshape(wanted.shape)
    held.load_state_dict(state)
    return held


def _smaller_config(
    model: Any, settings: dict[str, Any], split: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Return the content of a configuration with the sizes of the model."""
    block, width = read_shape(model).blocks[0], model.embed_dim
    size = list(model.patch_embed.img_size)
    changes: dict[str, Any] = {
        "image_size": size[0] if size[0] == size[1] else size,
        "num_attention_heads": block.num_heads,
    }
    if "head_dim" in settings or block.num_heads * block.head_dim != width:
        changes["head_dim"] = block.head_dim
    if "intermediate_size" in settings:
        changes["intermediate_size"] = block.hidden_dim
    if "mlp_ratio" in settings:  # of DINOv2, a whole number; a gated FFN is two thirds as wide
        ratio = block.hidden_dim / width * (1.5 if settings.get("use_swiglu_ffn") else 1)
        changes["mlp_ratio"] = round(ratio)
    if "key_bias" in settings:  # of DINOv3; training may have moved it from zero
        biases = [split.get(f"blocks.{i}.attn.k.bias") for i in range(len(model.blocks))]
        is_used = any(bias is not None and bool(bias.any()) for bias in biases)
        changes["key_bias"] = settings["key_bias"] or is_used
    return {**settings, **changes}
