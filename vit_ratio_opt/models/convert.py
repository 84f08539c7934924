"""Convert ViTs of torchvision and Hugging Face to timm models, weight for weight."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchvision.models import VisionTransformer as TorchvisionViT

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.adapters import check_no_adapters
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.copies import unwrap_model
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.models.device import evaluating
from vit_ratio_opt.models.hugging_face import (
    ENCODERS,
    WHAT_WORKS,
    parse_hugging_face_config,
)
from vit_ratio_opt.models.hugging_face_outputs import (
    HuggingFaceOutputs,
    differ,
    noise_for,
    outputs_differ,
)
from vit_ratio_opt.models.infer_sizes import (
    as_pair,
    infer_eva_sizes,
    infer_sizes,
    is_gated,
    resample_positions,
)
from vit_ratio_opt.models.renames import UNUSED, rename_tensors
from vit_ratio_opt.models.state_dicts import check_fits
from vit_ratio_opt.models.untouched import check_untouched
from vit_ratio_opt.models.weights import check_weights

__all__ = [
    "TORCHVISION",
    "convert_state",
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
_MODEL = "The model"  # its name in messages: it came from no file


def to_timm(model: nn.Module, *, image_size: int | tuple[int, int] | None = None) -> ViT:
    """Convert a ViT of torchvision or Hugging Face to the timm model with the same outputs.

    Both are run on two images of noise, and must agree. The result shares no weights with
    ``model``, is on its device and in evaluation mode. ``save_dense`` writes it into a file.

    A class without a classifier becomes a timm model without a head. It gives all tokens after the
    last norm, which are ``last_hidden_state``, in CLIP with ``post_layernorm``; with SigLIP's
    pooling it gives ``pooler_output``. The way back is
    :func:`~vit_ratio_opt.models.to_hugging_face.to_huggingface`.

    Args:
        model: torchvision's ``VisionTransformer``, or Hugging Face's ``ViTModel``,
            ``Dinov2Model``, ``Dinov2WithRegistersModel``, ``DINOv3ViTModel``, ``CLIPVisionModel``,
            ``SiglipVisionModel``, ``ViTForImageClassification``, ``DeiTForImageClassification`` or
            ``DeiTForImageClassificationWithTeacher``; in float32.
        image_size: Height and width of the images in pixels, for Hugging Face's models; by default
            the size that the model was made for. Positions are interpolated as the model does it.

    Raises:
        UnsupportedModelError: The model is of another class.
        InputError: The model has parts that a timm model has not, is not in float32, or the
            outputs differ by more than 1e-4 of the largest.
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
        if image_size not in (None, source.image_size):
            raise InputError(
                "torchvision's models take images of one size: leave `image_size` out."
            )
    elif module.startswith("transformers.") and hasattr(model, "config"):
        settings = parse_hugging_face_config(_MODEL, kind, source.config.to_dict())
    else:
        raise UnsupportedModelError(f"{_MODEL} is of class {kind}. {WHAT_WORKS}")
    state = {  # a classifier may be at any place of a sequence: the logits are compared
        re.sub(r"^heads\.\d+\.", "heads.", key): tensor
        for key, tensor in model.state_dict().items()
    }
    if {tensor.dtype for tensor in state.values()} != {torch.float32}:
        raise InputError(f"{_MODEL} must be in float32 to be converted: call `model.float()`.")
    check_untouched(model)
    check_weights(model)
    converted = convert_state(_MODEL, state, settings, image_size=image_size)
    converted = converted.to(next(model.parameters()).device)
    _check_same(source, converted)
    return converted


def convert_state(
    where: str,
    state: Mapping[str, torch.Tensor],
    settings: Mapping[str, Any],
    *,
    image_size: Any = None,
) -> ViT:
    """Return the timm model with the tensors of another library's model.

    All sizes come from the tensors, so a file cannot ask for more memory than they take.

    Args:
        where: Source of the tensors, for messages.
        state: The tensors, in torchvision's or Hugging Face's names. Those that timm has no part
            for (see :data:`~vit_ratio_opt.models.renames.UNUSED`) are left out.
        settings: timm's arguments that tensors do not give; they replace those that tensors give.
        image_size: Height and width of the images in pixels, for which positions are interpolated;
            by default the size that the positions are for.

    Raises:
        InputError: The tensors do not fit a timm model.
    """
    used = {key: tensor for key, tensor in state.items() if not UNUSED.search(key)}
    renamed = rename_tensors(where, used)
    if settings.get("num_classes") == 0:
        renamed = {key: renamed[key] for key in renamed if not re.match(r"head(_dist)?\.", key)}
    if "rope_temperature" in settings:
        renamed = {_eva_name(key): tensor for key, tensor in renamed.items()}
        name, found = "vit_small_patch16_dinov3_qkvb", infer_eva_sizes(where, renamed)
    else:
        name, found = "vit_base_patch16_224", infer_sizes(where, renamed, settings)
    if "dist_token" in renamed:
        name = "deit_base_distilled_patch16_224"
    elif "act_layer" in settings and is_gated(renamed):  # whatever `hidden_act` is
        name, settings = "vit_giant_patch14_dinov2", {**settings, "act_layer": "silu"}
    arguments = {**found, **settings}
    if "attn_pool.latent" in renamed:
        arguments["global_pool"] = "map"
    if image_size is not None:
        resample_positions(renamed, arguments, image_size)
    with torch.device("meta"):  # nothing is allocated before everything fits
        check_fits(create_model(name, **arguments), renamed, where)
    model = create_model(name, **arguments)
    model.load_state_dict(renamed)
    return model


def _eva_name(key: str) -> str:
    return re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", key)


def _check_same(source: Any, converted: ViT) -> None:
    """Refuse a conversion that gives other outputs for images of noise."""
    images = noise_for(converted)
    kind, options = type(source).__name__, {}
    is_resized = as_pair(converted.patch_embed.img_size) != as_pair(_image_size(source))
    parameters = inspect.signature(source.forward).parameters
    if is_resized and "interpolate_pos_encoding" in parameters:  # others always interpolate
        options["interpolate_pos_encoding"] = True
    with torch.no_grad(), evaluating(source):
        expected = source(images, **options)
        if kind in ENCODERS:
            differs = outputs_differ(HuggingFaceOutputs(converted, source)(images), expected)
        else:
            differs = differ(converted(images), getattr(expected, "logits", expected))
    if differs:
        what = "outputs" if kind in ENCODERS else "logits"
        raise InputError(
            f"{_MODEL} cannot be converted: the timm model of its weights gives other {what}, so "
            "it computes something that its class and its weights do not tell."
        )


def _image_size(source: Any) -> Any:
    return source.image_size if isinstance(source, TorchvisionViT) else source.config.image_size
