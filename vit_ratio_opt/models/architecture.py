"""Describe the structure of a model without its weights, as JSON values to compare."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.shape import read_shape
from vit_ratio_opt.models.supported import check_supported

__all__ = ["architecture_of", "fingerprint_of", "plain_attributes"]

# Attributes of modules that change no output: they depend on the process, or on how weights are
# initialised and trained.
_IRRELEVANT = {
    *("training", "fused_attn", "grad_checkpointing", "inplace", "pos_embed_cached"),
    *("weight_init_mode", "fix_init", "init_values", "head_init_scale"),
    "num_classes",  # the classifier may have been replaced
}
_SAMPLED = 64  # values of each tensor


def architecture_of(model: ViT) -> dict[str, Any]:
    """Return the values that two models of equal outputs have in common, beside the weights.

    It is read from the modules, so it does not matter how the model was made, saved or moved.

    Returns:
        Readable values, such as ``heads`` (number and dimension for each block), ``activations``
        and ``norms``, and ``modules``: a hash of the class and the plain attributes of every
        module.
    """
    model = check_supported(model)
    shape = read_shape(model)
    modules = list(model.named_modules())
    activations = {repr(module) for name, module in modules if name.endswith(".act")}
    digest = hashlib.sha256()
    for name, module in modules:
        digest.update(f"{name} {type(module).__qualname__} {plain_attributes(module)}\n".encode())
    return {
        "model": type(model).__qualname__,
        "blocks": sorted({type(block).__qualname__ for block in model.blocks.children()}),
        "heads": [[block.num_heads, block.head_dim] for block in shape.blocks],
        "activations": sorted(activations),
        "norms": sorted(set(_norms(model))),
        "pooling": str(model.global_pool),
        "image_size": list(model.patch_embed.img_size),
        "patch_size": list(model.patch_embed.patch_size),
        "modules": digest.hexdigest()[:16],
    }


def fingerprint_of(model: ViT) -> torch.Tensor:
    """Return 16 bytes that tell models apart: a hash of the architecture and of some weights.

    Some values of each tensor are enough, and a hash of all takes longer than pruning does.
    """
    digest = hashlib.sha256(architecture_of(model)["modules"].encode())
    samples = []
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        if tensor.is_floating_point():
            samples.append(tensor.flatten()[:: max(1, tensor.numel() // _SAMPLED)].float())
    digest.update(torch.cat(samples).cpu().numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()[:16]), dtype=torch.uint8)


def _norms(model: nn.Module) -> Iterator[str]:
    for module in model.modules():
        name = type(module).__qualname__
        if "Norm" in name:
            yield f"{name}(eps={getattr(module, 'eps', None)})"


def plain_attributes(module: nn.Module) -> list[tuple[str, str]]:
    """Return the names and values, as text, of attributes on which a module's output depends."""
    return sorted(
        (name, plain)
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _IRRELEVANT
        if (plain := _plain(value)) is not None
    )


def _plain(value: Any) -> str | None:
    """Return a number, text, sequence of these, function or class as text; None for the rest."""
    if isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        parts = [_plain(part) for part in value]
        return None if None in parts else f"({', '.join(map(str, parts))})"
    name = getattr(value, "__qualname__", None)
    return None if name is None else str(name)
