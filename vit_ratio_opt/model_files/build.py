"""Build the timm model of a file's tensors; nothing is allocated before everything fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.infer import infer_arguments, resample_positions
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.models.separate import separate_names
from vit_ratio_opt.models.state_dicts import check_fits

__all__ = ["build_model", "infer_from_tensors"]

# Largest size of non-persistent buffers, such as the angles of rotations, beside a file's tensors.
_MOST_BUFFER_BYTES = 1 << 28


def infer_from_tensors(
    path: Path, state: Mapping[str, torch.Tensor], name: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return timm's arguments that the tensors of a file give beside ``given``.

    Args:
        path: The file, for messages.
        state: The tensors, in timm's names.
        name: timm's name of the model.
        given: The arguments that are known.

    Raises:
        InputError: The tensors contradict ``given``, or leave something open.
    """
    _check_depth(path, state, given)
    probe = dict(given)
    if "embed_dim" not in given:
        probe.pop("num_heads", None)  # it need not divide the named model's width
    with torch.device("meta"):
        model = create_model(name, **probe)
    usual = _usual_width(name) if "embed_dim" in given else model.embed_dim
    return infer_arguments(path, name, separate_names(state), model, given, usual)


@cache
def _usual_width(name: str) -> int:
    """Return the width of the named model without arguments."""
    with torch.device("meta"):
        return int(create_model(name).embed_dim)


def build_model(
    path: Path,
    state: Mapping[str, torch.Tensor],
    name: str,
    arguments: Mapping[str, Any],
    cut: Callable[[ViT], ViT] = lambda model: model,
    *,
    to_size: bool = False,
) -> ViT:
    """Return the model of a file with the file's tensors.

    The model is made on the meta device, with no more blocks than there are tensors, so a file
    cannot ask for more memory than its tensors take.

    Args:
        path: The file, for messages.
        state: The tensors, in timm's names.
        name: timm's name of the dense model.
        arguments: timm's arguments of the dense model.
        cut: Makes the pruned model of the dense one; returns it unchanged by default.
        to_size: Whether to interpolate positions that are for images of another size.

    Raises:
        InputError: The tensors do not fit the model, or buffers would need too much memory.
    """
    _check_depth(path, state, arguments)
    with torch.device("meta"):
        model = cut(create_model(name, **arguments))
    state = separate_names(state)
    if to_size:
        state = dict(resample_positions(path, state, model))
    check_fits(model, state, path)
    buffers = sum(x.numel() * x.element_size() for x in model.buffers())
    if buffers > _MOST_BUFFER_BYTES + sum(x.numel() * x.element_size() for x in state.values()):
        raise InputError(f"{path} asks for {buffers:,} bytes that no tensor of it needs.")
    own = model.state_dict()
    model.load_state_dict(
        {key: tensor.to(own[key].dtype) for key, tensor in state.items()}, assign=True
    )
    for module in model.modules():  # buffers that no file has, such as frequencies of rotations
        if hasattr(module, "init_non_persistent_buffers"):
            for key, buffer in module.named_buffers(recurse=False):
                if buffer.is_meta:
                    module.register_buffer(key, torch.empty_like(buffer, device="cpu"), False)
            module.init_non_persistent_buffers()
    return model


def _check_depth(path: Path, state: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    depth = arguments.get("depth", 0)
    if isinstance(depth, int) and depth > len(state):
        raise InputError(f"{path} does not fit the model: it has {len(state)} tensors only.")
