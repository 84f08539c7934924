"""Refuse modules that may compute something else than their class says."""

from __future__ import annotations

import re
from types import FunctionType
from typing import Any

from torch import nn

from vit_ratio_opt.errors import UnsupportedModelError

__all__ = ["check_untouched", "join_path"]

# What every module has: none of these names is a method of a class.
_FIELDS = frozenset(vars(nn.Module()))
_HOOKS = tuple(key for key in vars(nn.Module()) if key.endswith("_hooks"))


def check_untouched(model: nn.Module) -> None:
    """Refuse modules that may compute something else than their class says.

    Raises:
        UnsupportedModelError: With the name of a module that has a function of its own instead of
            its class's, a hook, or parametrised weights.
    """
    kinds = set()
    for name, module in model.named_modules():
        _check_module(name, module)
        kinds.add(type(module))
    for kind in kinds:
        _check_class(kind)


def _check_module(name: str, module: nn.Module) -> None:
    kind, own = type(module), vars(module)
    if "_orig_mod" in own["_modules"]:
        raise UnsupportedModelError(
            f"`{name}` is compiled: put back `{_as_code(name)}._orig_mod`, and compile what "
            "pruning gives."
        )
    added = (key for key in own if key not in _FIELDS)
    replaced = next((key for key in added if callable(getattr(kind, key, None))), None)
    if replaced is not None:
        raise UnsupportedModelError(
            f"`{join_path(name, replaced)}` was replaced by another function, so the model may "
            f"compute something else than its class says: `del {_as_code(name)}.{replaced}` puts "
            "the class's own back."
        )
    if "parametrizations" in own["_modules"]:
        raise UnsupportedModelError(
            f"`{name}` has parametrised weights: call `torch.nn.utils.parametrize."
            f"remove_parametrizations({_as_code(name)}, 'weight')` first."
        )
    hooks = (hook for key in _HOOKS if key in own for hook in own[key].values())
    hook = next((hook for hook in hooks if not _renames_only(hook)), None)
    if hook is not None:
        raise UnsupportedModelError(_describe_hook(name, hook))
    for key, parameter in own["_parameters"].items():
        if parameter is not None and (
            parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)
        ):
            raise UnsupportedModelError(
                f"`{join_path(name, key)}` has a hook on its gradient, which a pruned copy would "
                "lose: remove it (`handle.remove()`)."
            )


def _check_class(kind: type[nn.Module]) -> None:
    """Refuse a library's class whose forward pass was replaced in this process."""
    for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        if not base.__module__.startswith(("timm.", "torch.nn.", "vit_ratio_opt.")):
            continue  # the user's, such as a classifier
        for key, method in vars(base).items():
            if not key.startswith("forward") or not isinstance(method, FunctionType):
                continue
            if method.__globals__.get("__name__") != base.__module__:
                raise UnsupportedModelError(
                    f"`{base.__name__}.{key}` of {base.__module__.partition('.')[0]} was replaced "
                    f"by a function of {method.__globals__.get('__name__')}, so what the model "
                    "computes is unknown: do not replace it in the process that prunes."
                )


def _renames_only(hook: Any) -> bool:
    """Return whether a hook is the one that torch's ``weight_norm`` keeps after its removal.

    It renames tensors of old state dicts as they are loaded, and has no handle.
    """
    name = getattr(hook, "__qualname__", "")
    return name == "weight_norm.<locals>._weight_norm_compat_hook"


def _describe_hook(name: str, hook: Any) -> str:
    kind, where, module = type(hook), f"`{name}`" if name else "The model", _as_code(name)
    if kind.__module__ == "torch.nn.utils.prune":
        remedy = f"call `torch.nn.utils.prune.remove({module}, {hook._tensor_name!r})` first"
        return f"{where} has a mask of torch.nn.utils.prune: {remedy}."
    if kind.__module__ in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"):
        remedy = f"call `torch.nn.utils.remove_{kind.__module__.rpartition('.')[2]}({module})`"
        return f"{where} computes its weight from others in a hook: {remedy} first."
    return (
        f"{where} has a hook ({getattr(hook, '__qualname__', kind.__name__):.80}), which may "
        "change what the model computes, and which copies and files lose: remove it "
        "(`handle.remove()`)."
    )


def join_path(module: str, name: str) -> str:
    """Return the path of a tensor or attribute of a module, whose own path may be empty."""
    return f"{module}.{name}" if module else name


def _as_code(module: str) -> str:
    """Return a module's path as Python code: ``model.blocks[0].attn``."""
    return "model" + re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", f".{module}" if module else "")
