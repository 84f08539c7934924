"""Find timm's arguments for a model as it is now, also after it was changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import DropPath, PatchDropout
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.architecture import plain_attributes
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.create import ARCHITECTURE, create_model
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.state_dicts import find_misfit
from vit_ratio_opt.models.surgery import shrink_to
from vit_ratio_opt.pruning.cascade import CascadeBlocks, prune_tokens
from vit_ratio_opt.space.shape import BlockShape

__all__ = [
    "check_saveable",
    "describe",
]

# Modules that change no output in evaluation mode; attributes that no forward pass reads.
_INERT = (nn.Dropout, nn.Identity, DropPath, PatchDropout)
_UNUSED = {"num_classes", "distilled_training"}


def check_saveable(model: ViT) -> None:
    """Refuse a model that was changed so that no file of ``save_pruned`` could hold it.

    Models that this package has not made are accepted: their files are loaded onto the dense
    model.

    Raises:
        InputError: The model was changed so; the message says where.
    """
    known = getattr(model, ARCHITECTURE, None)
    if known is not None:
        describe(model, known, {}, is_pruned=True)


def describe(
    model: ViT, known: Mapping[str, Any], given: Mapping[str, Any], *, is_pruned: bool
) -> tuple[str, dict[str, Any]]:
    """Return timm's name and arguments of a model as it is, apart from its weights.

    Args:
        model: The model.
        known: Value of the model's ``ARCHITECTURE``: the name and arguments it was made with.
        given: Arguments that must not be changed.
        is_pruned: Whether blocks may be smaller than the arguments say.

    Raises:
        InputError: No arguments give the model; the message says where it differs.
    """
    name, arguments = known["timm_name"], {**known["timm_kwargs"], **given}
    with torch.device("meta"):  # nothing is allocated
        dense = create_model(name, **arguments)
        changes = _changes(model, dense, given)
        if changes:
            arguments |= changes
            dense = create_model(name, **arguments)
        if len(model.blocks) == len(dense.blocks):
            difference = _difference(model, _cut_like(model, dense) if is_pruned else dense)
        else:
            difference = f"it has {len(model.blocks)} blocks instead of {len(dense.blocks)}"
    if difference is not None:
        if re.match(r"`blocks\.\d+\.(attn|mlp)\..*has shape", difference):
            difference += " (a pruned model is written with `save_pruned`)"
        raise InputError(
            "The model cannot be saved so that it could be loaded again, as it is no longer one "
            f"of timm's: {difference}. Save it before the change, or make the change by timm's "
            "arguments."
        )
    return name, arguments


def _cut_like(model: ViT, dense: ViT) -> ViT:
    """Return a copy of the dense model with the block shapes and tokens of a pruned one."""
    sizes = [BlockShape(*block) for block in shape_of(model).block_sizes]
    smaller = shrink_to(dense, sizes)
    if isinstance(model.blocks, CascadeBlocks):
        smaller = prune_tokens(smaller, model.blocks.block_tokens, scores=model.blocks.scores)
    return smaller


def _changes(model: ViT, dense: ViT, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments, but for ``given`` ones, that were changed after the model was made.

    Args:
        model: The model as it is now.
        dense: The model as its arguments make it.
        given: Arguments that must not be changed.
    """
    before, now = _facts(dense), _facts(model)
    changes = {key: now[key] for key in now if now[key] != before.get(key) and key not in given}
    if "global_pool" in changes:  # timm's default for `fc_norm` depends on it
        changes |= {key: value for key, value in now.items() if key.endswith("fc_norm")}
    return changes


def _facts(model: ViT) -> dict[str, Any]:
    """Return the arguments that can be read from a model and are often changed."""
    facts: dict[str, Any] = {
        "num_classes": getattr(model.head, "out_features", 0),
        "in_chans": model.patch_embed.proj.in_channels,
        "patch_size": list(model.patch_embed.patch_size),
        "img_size": list(model.patch_embed.img_size),
        "global_pool": model.global_pool,
    }
    if hasattr(model, "fc_norm"):
        argument = "fc_norm" if isinstance(model, VisionTransformer) else "use_fc_norm"
        facts[argument] = not isinstance(model.fc_norm, nn.Identity)
    epsilons = {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)}
    if len(epsilons) == 1:
        facts["norm_eps"] = epsilons.pop()
    return facts


def _difference(model: ViT, rebuilt: ViT) -> str | None:
    """Return where two models compute something else, apart from their weights."""
    difference = find_misfit(rebuilt, model.state_dict())
    if difference is not None:
        return difference
    parts, own = (
        {name: module for name, module in one.named_modules() if not isinstance(module, _INERT)}
        for one in (rebuilt, model)
    )
    for name in [*own, *(name for name in parts if name not in own)]:
        kinds = [type(modules.get(name, None)).__name__ for modules in (own, parts)]
        if kinds[0] != kinds[1]:
            return f"`{name or 'model'}` is of class {kinds[0]} instead of {kinds[1]}"
        module = own[name]
        if module._forward_hooks or module._forward_pre_hooks:
            return f"`{name or 'model'}` has a forward hook, which no file can hold"
        found, wanted = (dict(plain_attributes(one[name])) for one in (own, parts))
        # Attributes that timm's modules do not have, such as notes, are never read.
        for key in sorted(vars(parts[name]).keys() & (found.keys() | wanted.keys()) - _UNUSED):
            if found.get(key) != wanted.get(key):
                where = f"{name}.{key}".lstrip(".")
                return f"`{where}` is {found.get(key)} instead of {wanted.get(key)}"
    return None
