"""Merge LoRA and other adapters into the weights of the layers that they adapt.

What an adapter of a linear layer computes is taken from the layer itself and not from a formula:
applied to the identity matrix, a linear layer gives its weight. So LoRA, DoRA, LoHa and IA3 of
peft, loralib's layers and a user's own are merged in the same way.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from vit_ratio_opt.errors import UnsupportedModelError

__all__ = ["check_no_adapters", "is_adapter", "merge_adapters"]


def merge_adapters(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` with its adapters merged into plain linear layers.

    The copy computes the same up to rounding, and nothing in it is frozen. ``model`` itself is not
    changed, and may also be a ``PeftModel``: the model inside is returned.

    Args:
        model: Model with LoRA or other adapters of linear layers: peft's or loralib's layers, or
            modules of other classes that keep parameters or layers ``lora_...``.

    Raises:
        UnsupportedModelError: An adapter is not linear, or adapts no linear layer.

    Example:
        >>> model = vro.merge_adapters(peft_model)
        >>> search = vro.Search(model, data, vro.Budget(0.6))
    """
    merged = copy.deepcopy(model)
    unload = getattr(merged, "merge_and_unload", None)  # of a PeftModel
    if callable(unload):
        merged = unload()
    if is_adapter(merged):
        return _merge(type(merged).__name__, merged)
    while (found := _first_adapter(merged)) is not None:
        parent, _, name = found.rpartition(".")
        owner = merged.get_submodule(parent)
        setattr(owner, name, _merge(found, merged.get_submodule(found)))
    return merged.requires_grad_(True)


def is_adapter(module: nn.Module) -> bool:
    """Return whether a module adapts the layer in it, as LoRA does."""
    own = vars(module)
    names = (*own["_parameters"], *own["_modules"])
    return "base_layer" in names or any(name.lower().startswith("lora") for name in names)


def check_no_adapters(model: object) -> None:
    """Refuse a model with adapters.

    Raises:
        UnsupportedModelError: With the name of the first adapter.
    """
    if not isinstance(model, nn.Module):
        return
    if callable(getattr(model, "merge_and_unload", None)):
        where = f"The {type(model).__name__}"
    elif is_adapter(model):
        where = "The model"
    else:
        found = _first_adapter(model)
        if found is None:
            return
        where = f"`{found}`"
    raise UnsupportedModelError(
        f"{where} has an adapter such as LoRA beside its weights: "
        "`vit_ratio_opt.merge_adapters(model)` returns a copy with all adapters merged."
    )


def _first_adapter(model: nn.Module) -> str | None:
    return next((name for name, module in model.named_modules() if is_adapter(module)), None)


def _merge(name: str, layer: nn.Module) -> nn.Linear:
    """Return a linear layer that computes what an adapted one does in evaluation mode."""
    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise UnsupportedModelError(
            f"`{name}` has an adapter ({type(layer).__name__}) of no linear layer: merge it with "
            "the library that made it."
        )
    base = max(linears, key=lambda linear: linear.weight.numel())
    width = base.in_features
    drawn = torch.randn(8, width, generator=torch.Generator().manual_seed(0))
    inputs = torch.cat([torch.zeros(1, width), torch.eye(width), drawn]).double()
    try:
        probe = copy.deepcopy(layer).cpu().double()
        probe.eval()  # which need not return the module: loralib's does not
        with torch.no_grad():
            outputs = probe(inputs[None])[0]
        bias = outputs[0]
        weight = (outputs[1 : 1 + width] - bias).mT
        is_linear = torch.allclose(outputs[-8:], F.linear(inputs[-8:], weight, bias))
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError):
        is_linear = False
    if not is_linear:
        raise UnsupportedModelError(
            f"`{name}` has an adapter ({type(layer).__name__}) that does not compute a linear "
            "layer from tokens (batch, tokens, width), so it cannot be merged: remove it."
        )
    has_bias = bool(bias.any()) or any(
        key.rpartition(".")[2] == "bias" for key, _ in layer.named_parameters()
    )
    merged = nn.Linear(width, len(weight), bias=has_bias).to(base.weight)
    with torch.no_grad():
        merged.weight.copy_(weight)
        if has_bias:
            merged.bias.copy_(bias)
    return merged.train(layer.training)
