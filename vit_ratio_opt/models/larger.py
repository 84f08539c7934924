"""Larger models around an encoder: segmentation, detection, two towers."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.families import FAMILIES
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.utils.failures import reason

__all__ = ["replace_encoder"]

_Model = TypeVar("_Model", bound=nn.Module)


def replace_encoder(model: _Model, pruned: ViT, name: str | None = None) -> _Model:
    """Return a copy of a larger model with a pruned encoder in the place of its dense one.

    Everything else is copied, and ``model`` stays as it is. ``pruned`` itself becomes a part of
    the copy. It is frozen as a whole if the dense encoder is.

    Args:
        model: Model with a timm ViT in it, such as a decoder over the features of
            ``timm.create_model(..., features_only=True)``.
        pruned: The encoder after pruning.
        name: Path of the dense encoder in ``model``, such as ``"encoder.model"``; needed where
            ``model`` has several.

    Raises:
        InputError: ``model`` has no encoder there, or several and ``name`` is None; ``pruned`` is
            of another architecture or leaves out patches; or a part of the encoder is also used
            outside of it.

    Example:
        >>> pruner = vro.Pruner(segmenter.encoder.model, images)
        >>> def objective(trial):
        ...     small = vro.replace_encoder(segmenter, pruner.suggest(trial, vro.Budget(0.6)))
        ...     return train_and_validate(small)
    """
    name = _encoder_name(model, name)
    encoder = model.get_submodule(name)
    _check_replaces(encoder, pruned)
    inside = {id(module) for module in encoder.modules()}
    for path, module in model.named_modules(remove_duplicate=False):
        is_outside = path != name and not path.startswith(f"{name}.")
        if is_outside and id(module) in inside:
            raise InputError(
                f"`{path}` is a part of the encoder `{name}` under a second name, and would stay "
                "dense: use it through the encoder only."
            )
    if not any(parameter.requires_grad for parameter in encoder.parameters()):
        pruned.requires_grad_(False)
    try:
        copied = copy.deepcopy(model, {id(encoder): pruned})
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise InputError(
            f"The model has an attribute that cannot be copied, remove it: {reason(error):.200}"
        ) from None
    pruned.train(encoder.training)
    return copied


def _encoder_name(model: nn.Module, name: str | None) -> str:
    """Return the path of the encoder in a larger model.

    Raises:
        InputError: There is no encoder at that path, or not exactly one in the model.
    """
    if type(model) in FAMILIES:
        raise InputError("The model is an encoder itself: use the pruned one as it is.")
    found: list[str] = [path for path, module in model.named_modules() if type(module) in FAMILIES]
    if name is not None:
        if name not in found:
            raise InputError(
                f"There is no encoder {name!r:.80} in the model: it has {found or 'none'}."
            )
        return name
    if len(found) != 1:
        raise InputError(
            f"The model must have one encoder of timm, but has {found or 'none'}: "
            + ("name one." if found else "put the pruned one in its place yourself.")
        )
    return found[0]


def _check_replaces(encoder: Any, pruned: ViT) -> None:
    """Refuse an encoder that gives other features than the dense one."""
    shape = shape_of(pruned)
    if shape.block_tokens:
        raise InputError(
            "The pruned encoder leaves out patches, which would be missing in a larger model that "
            "reads all of them: prune weights alone, with `Structural`."
        )
    sizes = [
        (type(one).__name__, one.embed_dim, len(one.blocks), one.patch_embed.num_patches)
        for one in (encoder, pruned)
    ]
    if sizes[0] != sizes[1]:
        raise InputError(
            "The pruned encoder must be of the same architecture as the dense one (class, width, "
            f"blocks, patches), {sizes[0]}, but is {sizes[1]}."
        )
