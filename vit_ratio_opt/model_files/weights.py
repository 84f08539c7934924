"""Read the tensors of a ViT out of any checkpoint file. Content decides, not the suffix.

Nothing is unpickled: ``torch.load(weights_only=True)`` builds tensors and plain containers only.
For the few classes of plain values that training scripts store beside the weights (``Namespace``,
numpy scalars, paths, configurations) it is given inert stand-ins, so that not even these are
imported.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.magic import detect_container
from vit_ratio_opt.utils.text import short

__all__ = ["WEIGHTS", "read_metadata", "read_tensors"]

_logger = logging.getLogger(f"optuna.{__name__}")

WEIGHTS = ("ema", "raw")
"""Which weights of a training checkpoint to take: the averaged or the trained ones."""

_AVERAGED = {
    *("ema", "averaged", "average", "avg", "swa", "polyak", "shadow", "modelema", "emamodel"),
}
# The first layer of a ViT, as timm, torchvision and Hugging Face name it.
_FIRST_LAYER = re.compile(
    r"(?:^|\.)"
    r"(?:patch_embed\.proj|conv_proj|(?:vit|deit)\.embeddings\.patch_embeddings\.projection)"
    r"\.weight$"
)
# What torch.compile, FSDP and activation checkpointing put into names, at any depth.
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OUTER = re.compile(r"^(?:module|model|net|network|backbone|ema|ema_model)\.")
# Beside a model in a state dict, and no part of it.
_BESIDE = re.compile(r"^(?:criterion|loss|loss_fn|loss_func)\.|(?:^|\.)_(?:extra_state|metadata)$")
# Modules whose classes hold plain values; a stand-in is made of any of their classes.
_PLAIN = {
    *("argparse", "numpy", "pathlib", "datetime", "typing", "omegaconf", "yacs", "easydict"),
    *("ml_collections", "lightning", "pytorch_lightning", "lightning_fabric"),
}
_PLAIN_TYPES = {f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str")}
_MAPPINGS = ("AttributeDict", "CfgNode", "EasyDict")  # classes of these names are dicts
# The first version of PyTorch whose ``weights_only`` runs no code of a file.
_SAFE_SINCE = "2.6"
_MOST_NAMED = 3
# Of the arguments of timm's training script: those on which the model's outputs depend.
_ARGS = ("model_kwargs", "gp", "mean", "std", "interpolation", "crop_pct", "crop_mode")


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; of a file of another kind there is none.

    Raises:
        InputError: The file is missing, damaged or no checkpoint.
    """
    return _safetensors(path, tensors=False)[1] if detect_container(path) == "safetensors" else {}


def read_tensors(
    path: Path, weights: str | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors of a model's file by name, on the CPU, and the file's metadata.

    Wrappers' prefixes (``module.``, ``_orig_mod.``, ``model.`` ...) are removed from the names.
    Floating-point tensors come as float32.

    Args:
        path: A safetensors file, or a file of ``torch.save``: a state dict or a training
            checkpoint of timm, DeiT, MAE, Lightning and the like.
        weights: ``"ema"`` or ``"raw"``, where the file holds averaged weights beside the trained.

    Returns:
        The tensors, and the metadata of a safetensors file; of a checkpoint of timm's training
        script ``arch``, the model's name, and ``args``, a JSON object of its arguments.

    Raises:
        InputError: The file is missing, damaged, no checkpoint, holds objects that only unpickling
            could read, or several sets of weights of which none is chosen.
    """
    if weights not in (None, *WEIGHTS):
        raise InputError(f"`weights` must be 'ema' or 'raw', but is {weights!r:.80}.")
    metadata: dict[str, str] = {}
    if detect_container(path) == "safetensors":
        content, metadata = _safetensors(path)
        if "timm_name" in metadata or metadata.get("format", "").startswith("vit_ratio_opt/"):
            return content, metadata  # names are those of the model that was saved
    else:
        content = _without_pickle(path)
        metadata = _said(content)
    tensors = _chosen(path, content, weights)
    _check_bytes(path, tensors)
    return _float32(path, tensors), metadata


def _safetensors(
    path: Path, *, tensors: bool = True
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if tensors else ()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{path} is no readable checkpoint (truncated?), but a safetensors file with a "
            f"damaged header or end: {short(error, 200)}"
        ) from None


class _StandIn:
    """Instead of an object of a foreign class; keeps its attributes and can do nothing."""

    def __init__(self, *args: Any) -> None:
        self.values: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.values = state if isinstance(state, dict) else {}


def _default_dict(*args: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()


def _without_pickle(path: Path) -> Any:
    """Return the content of a file of ``torch.save``, built without any code of the file's."""
    if torch.__version__ < _SAFE_SINCE:
        raise InputError(
            f"{path} needs PyTorch {_SAFE_SINCE} or newer, and this is {torch.__version__}: "
            "earlier ones may run code of such a file (CVE-2025-32434). Upgrade, or give a "
            "safetensors file."
        )
    names = {"argparse.Namespace"}
    try:
        names |= set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # of an old format, or damaged in ways that torch.load tells better
        names |= {f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")} | {
            "numpy.dtype"
        }
    stand_ins: list[Any] = []
    for name in names:
        if name == "collections.defaultdict":
            stand_ins.append((_default_dict, name))
        elif name.split(".")[0] in _PLAIN or name in _PLAIN_TYPES:
            is_mapping = name.endswith(_MAPPINGS)
            stand_ins.append((OrderedDict if is_mapping else _StandIn, name))
    foreign = sorted(names - {name for _, name in stand_ins})
    if foreign:
        raise InputError(_unpickling_refused(path, foreign))
    try:
        # an open file: torch.load goes by a path's suffix
        with path.open("rb") as file, torch.serialization.safe_globals(stand_ins):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise InputError(_unpickling_refused(path, [found[1]])) from None
        # The rest of torch's message says how to unpickle it all the same.
        reason = re.search(r"WeightsUnpickler error: (.+)", str(error))
        raise InputError(
            f"{path} is no readable checkpoint: it is truncated, or not written by torch.save"
            f"{f' ({short(reason[1], 160)})' if reason else ''}."
        ) from None
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(
            f"{path} is no readable checkpoint (truncated?): {short(error, 200)}"
        ) from None


def _unpickling_refused(path: Path, names: list[str]) -> str:
    shown = ", ".join(short(name, 100) for name in names[:_MOST_NAMED])
    whole = any(re.match(r"torch\.nn\.modules|timm\.|torchvision\.models", name) for name in names)
    what = "torch.load({0}, weights_only=False)"
    what += ".state_dict()" if whole else "['state_dict']"
    return (
        f"{path} is no readable checkpoint: it holds objects of {shown}, which only unpickling "
        "could read, and that would run code of the file. Only if you trust whoever wrote it, "
        "save the weights alone where it was made: "
        f"`torch.save({what.format(repr(path.name))}, 'weights.pth')`."
    )


def _said(content: Any) -> dict[str, str]:
    """Return the metadata that a training checkpoint gives."""
    if not isinstance(content, Mapping) or not isinstance(content.get("arch"), str):
        return {}
    metadata = {"arch": content["arch"]}
    values = content.get("args")
    values = values.values if isinstance(values, _StandIn) else values
    if isinstance(values, dict):
        with contextlib.suppress(TypeError, ValueError, RecursionError):  # no JSON values
            metadata["args"] = json.dumps({key: values[key] for key in _ARGS if values.get(key)})
    return metadata


def _chosen(path: Path, content: Any, weights: str | None) -> dict[str, torch.Tensor]:
    """Return the one set of weights that is asked for."""
    found = [part for name, state in _sets(content) for part in _models(path, name, state)]
    if not found:
        return _other(path, content)
    averaged = {name: state for name, state in found if _is_averaged(name)}
    raw = {name: state for name, state in found if name not in averaged}
    unnamed = [] if averaged else _unnamed_averages(content)
    if raw and (averaged or unnamed) and weights is None:
        raise InputError(
            f"{path} holds trained weights ({_names(raw)}) and averaged ones "
            f"({_names(averaged or unnamed)}): choose with `weights='raw'` or `weights='ema'`, on "
            "the command line --weights."
        )
    if weights == "ema" and unnamed:
        raise InputError(
            f"{path} holds averaged weights ({_names(unnamed)}) without the tensors' names, so "
            "they cannot be read: choose `weights='raw'`, or save the averaged model's state dict."
        )
    wanted = {"ema": averaged, "raw": raw, None: raw or averaged}[weights]
    if not wanted:
        missing = "averaged" if weights == "ema" else "trained"
        raise InputError(
            f"{path} holds no {missing} weights, only {_names(raw or averaged)}: leave `weights` "
            "(--weights) out."
        )
    if len(wanted) > 1:
        raise InputError(
            f"{path} holds several models ({_names(wanted)}), and nothing says which one is "
            "meant: save the state dict of one of them."
        )
    return next(iter(wanted.values()))


def _names(sets: Any) -> str:
    return ", ".join(f"`{short(name, 60)}`" for name in list(sets)[:4])


def _sets(content: Any, name: str = "", depth: int = 2) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield every mapping that has the first layer of a ViT, with the keys that lead to it."""
    if not isinstance(content, Mapping):
        return
    if any(isinstance(key, str) and _FIRST_LAYER.search(key) for key in content):
        yield name or "the tensors", content
    elif depth:
        for key, part in content.items():
            if isinstance(key, str):
                yield from _sets(part, f"{name}.{key}".lstrip("."), depth - 1)


def _models(path: Path, name: str, state: Mapping[Any, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the state dicts of the models in one mapping, apart by prefix and without it."""
    named: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(key, str) or _BESIDE.search(key):
            continue
        new = _WRAPPERS.sub("", key)
        if not isinstance(value, torch.Tensor):
            raise InputError(
                f"{path} is no readable checkpoint: it holds other things than tensors, such as "
                f"`{short(key, 80)}`, which is of class {type(value).__name__}."
            )
        if value.numel() == 1 and "." not in new:  # a counter, such as `n_averaged`
            continue
        if new in named:
            raise InputError(f"{path} has two tensors of the name `{short(new, 80)}`.")
        named[new] = value
    prefixes = {key[: match.start()] for key in named if (match := _FIRST_LAYER.search(key))}
    starts = sorted((f"{prefix}." if prefix else "" for prefix in prefixes), key=len, reverse=True)
    parts: dict[str, dict[str, Any]] = {start: {} for start in starts}
    left: list[str] = []
    for key, value in named.items():
        start = next((start for start in starts if key.startswith(start)), None)
        if start is not None:
            parts[start][key.removeprefix(start)] = value
        else:
            left.append(key)
    if left:
        raise InputError(
            f"{path} has {len(left)} tensors outside of the ViT `{short(starts[0], 60)}`, such as "
            f"{_names(sorted(left))}: a model around a ViT cannot be pruned. Save the state dict "
            "of a timm model with its classifier."
        )
    if len(parts) == 1:
        return [(name, next(iter(parts.values())))]
    return [(f"{name}: {start or 'no prefix'}", part) for start, part in parts.items()]


def _is_averaged(name: str) -> bool:
    return not _AVERAGED.isdisjoint(re.split(r"[^a-z]+", name.lower()))


def _unnamed_averages(content: Any) -> list[str]:
    """Return the keys of averaged weights that are lists, as torch_ema's are."""
    if not isinstance(content, Mapping):
        return []
    return [
        key
        for key, value in content.items()
        if isinstance(key, str) and _is_averaged(key)
        if isinstance(value, (Mapping, list, tuple)) and _has_tensor(value)
    ]


def _has_tensor(value: Any, depth: int = 2) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dim() > 0
    parts = value.values() if isinstance(value, Mapping) else value
    iterable = isinstance(value, (Mapping, list, tuple)) and depth
    return bool(iterable) and any(_has_tensor(part, depth - 1) for part in parts)


def _other(path: Path, content: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of what is no ViT by its names; who asked will say what is missing."""
    if isinstance(content, Mapping):
        content = content.get("state_dict", content.get("model", content))
    if isinstance(content, Mapping):
        odd = [key for key, value in content.items() if not isinstance(value, torch.Tensor)]
        if content and not odd:
            state = {str(key): value for key, value in content.items()}
            while all(_OUTER.match(key) for key in state):
                state = {_OUTER.sub("", key): value for key, value in state.items()}
            return state
        what = ", ".join(short(key, 40) for key in odd[:_MOST_NAMED]) or "nothing"
        raise InputError(
            f"{path} is no readable checkpoint: it holds other things than tensors ({what}), and "
            "no weights of a ViT."
        )
    raise InputError(
        f"{path} is no readable checkpoint: it holds an object of class "
        f"{type(content).__name__}, not the tensors of a model by name."
    )


def _check_bytes(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that claim more than the file has, before any is copied."""
    claimed = sum(
        tensor.numel() * tensor.element_size()
        for tensor in tensors.values()
        if tensor.layout == torch.strided and not tensor.is_meta
    )
    if claimed > path.stat().st_size:
        raise InputError(
            f"{path} claims {claimed:,} bytes of tensors, but has {path.stat().st_size:,}: it is "
            "damaged, or its tensors are views of one another. Save the model's `state_dict()`."
        )


def _float32(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return dense, real copies that share no memory, in float32 what is floating-point."""
    plain: dict[str, torch.Tensor] = {}
    others = set()
    for name, tensor in tensors.items():
        kind = _odd_kind(tensor)
        if kind is not None:
            raise InputError(
                f"{path} has a tensor `{short(name, 80)}` that is {kind}: save the model with "
                "plain float32 tensors."
            )
        if tensor.is_floating_point():
            others |= {tensor.dtype} - {torch.float32}
            copied = tensor.detach().to(torch.float32, copy=True).contiguous()
            if not torch.isfinite(copied).all():
                raise InputError(
                    f"{path} has NaN or infinity in `{short(name, 80)}`: a training that "
                    "diverged, or numbers too large for their type."
                )
        else:
            copied = tensor.detach().clone().contiguous()
        plain[name] = copied
    if others:
        kinds = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in others))
        _logger.warning(f"{path} has weights in {kinds}; they are converted to float32.")
    return plain


def _odd_kind(tensor: torch.Tensor) -> str | None:
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_meta:
        return "without values (on the meta device)"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "sparse or nested"
    if tensor.is_complex():
        return "complex"
    return None
