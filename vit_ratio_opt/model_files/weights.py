"""Read the tensors of a ViT from any checkpoint file; content decides, not the suffix."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.contents import (
    _MOST_NAMED,
    read_safetensors,
    read_torch_file,
    training_metadata,
)
from vit_ratio_opt.model_files.magic import detect_container
from vit_ratio_opt.utils.text import shorten

__all__ = [
    "WEIGHTS",
    "read_metadata",
    "read_tensors",
]

_logger = logging.getLogger(f"optuna.{__name__}")
WEIGHTS = ("ema", "raw")
"""Choices of weights in a training checkpoint: the averaged or the trained ones."""
_AVERAGED = {
    *("ema", "averaged", "average", "avg", "swa", "polyak", "shadow", "modelema", "emamodel"),
}

# The first layer of a ViT, as timm, torchvision and Hugging Face name it.
_FIRST_LAYER = re.compile(
    r"(?:^|\.)"
    r"(?:patch_embed\.proj|conv_proj"
    r"|(?:(?:vit|deit|vision_model)\.)?embeddings\.patch_embeddings?(?:\.projection)?)"
    r"\.weight$"
)

# Parts that torch.compile, FSDP and activation checkpointing put into names, at any depth.
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OUTER = re.compile(r"^(?:module|model|net|network|backbone|ema|ema_model)\.")

# Entries of a state dict that are no part of the model; the last two lines are DINO's: heads of
# the training, and what follows from the sizes.
_BESIDE = re.compile(
    r"^(?:criterion|loss|loss_fn|loss_func)\.|(?:^|\.)_(?:extra_state|metadata)$"
    r"|^(?:module\.)?(?:dino_head|ibot_head)\.|(?:^|\.)local_cls_norm\."
    r"|(?:^|\.)rope_embed\.periods$|\.qkv\.bias_mask$"
)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty for other files.

    Raises:
        InputError: The file is missing, damaged or no checkpoint.
    """
    return (
        read_safetensors(path, tensors=False)[1] if detect_container(path) == "safetensors" else {}
    )


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
        content, metadata = read_safetensors(path)
        if "timm_name" in metadata or metadata.get("format", "").startswith("vit_ratio_opt/"):
            return content, metadata  # names are those of the model that was saved
    else:
        content = read_torch_file(path)
        metadata = training_metadata(content)
    tensors = _choose_set(path, content, weights)
    _check_bytes(path, tensors)
    return _to_float32(path, tensors), metadata


def _choose_set(path: Path, content: Any, weights: str | None) -> dict[str, torch.Tensor]:
    """Return the set of weights that ``weights`` chooses, or the only one."""
    found = [part for name, state in _sets(content) for part in _models(path, name, state)]
    if not found:
        return _read_other(path, content)
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
    return ", ".join(f"`{shorten(name, 60)}`" for name in list(sets)[:4])


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
    """Return the state dicts of the models in one mapping, split by prefix and without it."""
    named: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(key, str) or _BESIDE.search(key):
            continue
        new = _WRAPPERS.sub("", key)
        if not isinstance(value, torch.Tensor):
            raise InputError(
                f"{path} is no readable checkpoint: it holds other things than tensors, such as "
                f"`{shorten(key, 80)}`, which is of class {type(value).__name__}."
            )
        if value.numel() == 1 and "." not in new:  # a counter, such as `n_averaged`
            continue
        if new in named:
            raise InputError(f"{path} has two tensors of the name `{shorten(new, 80)}`.")
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
            f"{path} has {len(left)} tensors outside of the ViT `{shorten(starts[0], 60)}`, such "
            f"as {_names(sorted(left))}: a model around a ViT cannot be pruned. Save the state "
            "dict of a timm model with its classifier."
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


def _read_other(path: Path, content: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a file without a known ViT; the caller names what is missing."""
    if isinstance(content, Mapping):
        content = content.get("state_dict", content.get("model", content))
    if isinstance(content, Mapping):
        odd = [key for key, value in content.items() if not isinstance(value, torch.Tensor)]
        if content and not odd:
            state = {str(key): value for key, value in content.items()}
            while all(_OUTER.match(key) for key in state):
                state = {_OUTER.sub("", key): value for key, value in state.items()}
            return state
        what = ", ".join(shorten(key, 40) for key in odd[:_MOST_NAMED]) or "nothing"
        raise InputError(
            f"{path} is no readable checkpoint: it holds other things than tensors ({what}), and "
            "no weights of a ViT."
        )
    raise InputError(
        f"{path} is no readable checkpoint: it holds an object of class "
        f"{type(content).__name__}, not the tensors of a model by name."
    )


def _check_bytes(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that claim more bytes than the file has, before any is copied."""
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


def _to_float32(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return dense, real copies that share no memory, floating-point ones in float32."""
    plain: dict[str, torch.Tensor] = {}
    others = set()
    for name, tensor in tensors.items():
        kind = _odd_kind(tensor)
        if kind is not None:
            raise InputError(
                f"{path} has a tensor `{shorten(name, 80)}` that is {kind}: save the model with "
                "plain float32 tensors."
            )
        if tensor.is_floating_point():
            others |= {tensor.dtype} - {torch.float32}
            copied = tensor.detach().to(torch.float32, copy=True).contiguous()
            if not torch.isfinite(copied).all():
                raise InputError(
                    f"{path} has NaN or infinity in `{shorten(name, 80)}`: a training that "
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
