"""Load torchvision's and Hugging Face's ViTs from their files, as timm models.

Only the files are here; the conversion itself is in :mod:`vit_ratio_opt.models.convert`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vit_ratio_opt.data.preprocessing import Preprocessing, remember_preprocessing
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.folders import read_config, read_folder, read_preprocessing
from vit_ratio_opt.model_files.weights import read_tensors
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.convert import TORCHVISION, convert_state
from vit_ratio_opt.models.hugging_face import parse_hugging_face_config
from vit_ratio_opt.models.preprocess import remember

__all__ = ["load_hugging_face_folder", "load_torchvision_file"]

# ImageNet's, with which torchvision's first weights were trained; later ones are cropped less.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_hugging_face_folder(path: Path, weights: str | None, arguments: Mapping[str, Any]) -> ViT:
    """Load a Hugging Face folder as a timm model.

    No other model can be run to compare outputs; ``to_timm`` does that in the tests.

    Args:
        path: A folder with ``config.json`` and weights.
        weights: ``"ema"`` or ``"raw"``, where a file holds averaged weights beside the trained.
        arguments: timm's arguments that replace those of the folder.

    Raises:
        UnsupportedModelError: The model is of another class.
        InputError: A file is missing, damaged, or does not fit the rest.
    """
    config = read_config(path)
    architectures = config.get("architectures")
    kind = architectures[0] if isinstance(architectures, list) and architectures else None
    settings = parse_hugging_face_config(str(path), kind, config)
    state = read_folder(path, weights)
    image_size = arguments.get("img_size")
    settings |= {key: arguments[key] for key in arguments if key != "img_size"}
    model = convert_state(str(path), state, settings, image_size=image_size)
    remember(path, model, read_preprocessing(path, tuple(model.patch_embed.img_size)))
    return model


def load_torchvision_file(
    path: Path, name: str, weights: str | None, arguments: Mapping[str, Any]
) -> ViT:
    """Load a file of torchvision's weights as a timm model.

    Args:
        path: A file of tensors.
        name: ``torchvision/vit_b_16`` or another key of ``TORCHVISION``.
        weights: ``"ema"`` or ``"raw"``, where the file holds averaged weights beside the trained.
        arguments: timm's arguments that replace those of ``name``.

    Raises:
        InputError: The name is unknown, or the file is missing, damaged, or of another model.
    """
    if name not in TORCHVISION:
        raise InputError(f"The name {name!r:.200} must be one of {', '.join(TORCHVISION)}.")
    num_heads, width = TORCHVISION[name]
    state, _ = read_tensors(path, weights)
    if state.get("class_token", torch.empty(0)).shape != (1, 1, width):
        raise InputError(f"{path} has not the weights of a {name}, which is {width} wide.")
    settings = {"num_heads": num_heads, "norm_eps": 1e-6, **arguments}
    model = convert_state(str(path), state, settings)
    if model.in_chans == len(_MEAN):
        size = model.patch_embed.img_size
        known = Preprocessing(_MEAN, _STD, size, crop=224 / 256, origin=name, is_assumed=True)
        remember_preprocessing(model, known)
    return model
