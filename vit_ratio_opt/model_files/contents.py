"""Read the content of a checkpoint file, without unpickling.

``torch.load(weights_only=True)`` builds tensors and plain containers only. For the few classes of
plain values that training scripts store beside the weights (``Namespace``, numpy scalars, paths,
configurations) it is given inert stand-ins, so that not even these classes are imported.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.text import shorten

__all__ = [
    "read_safetensors",
    "read_torch_file",
    "training_metadata",
]

# Packages whose classes hold plain values; any of these classes gets a stand-in.
_PLAIN = {
    *("argparse", "numpy", "pathlib", "datetime", "typing", "omegaconf", "yacs", "easydict"),
    *("ml_collections", "lightning", "pytorch_lightning", "lightning_fabric"),
}
_PLAIN_TYPES = {f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str")}
_MAPPINGS = ("AttributeDict", "CfgNode", "EasyDict")  # classes of these names are dicts

# First version of PyTorch whose ``weights_only`` runs no code of a file.
_SAFE_SINCE = "2.6"
_MOST_NAMED = 3

# Arguments of timm's training script on which the model's outputs depend.
_ARGS = ("model_kwargs", "gp", "mean", "std", "interpolation", "crop_pct", "crop_mode")


def read_safetensors(
    path: Path, *, tensors: bool = True
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Args:
        path: The file.
        tensors: Whether to read the tensors too.

    Raises:
        InputError: The file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if tensors else ()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{path} is no readable checkpoint (truncated?), but a safetensors file with a "
            f"damaged header or end: {shorten(error, 200)}"
        ) from None


class _StandIn:
    """Inert object in place of an object of a foreign class; it keeps the attributes."""

    def __init__(self, *args: Any) -> None:
        self.values: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.values = state if isinstance(state, dict) else {}


def _default_dict(*args: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()


def read_torch_file(path: Path) -> Any:
    """Return the content of a file of ``torch.save``, without running code of the file.

    Raises:
        InputError: The file is damaged, or holds objects that only unpickling could read.
    """
    if torch.__version__ < _SAFE_SINCE:
        raise InputError(
            f"{path} needs PyTorch {_SAFE_SINCE} or newer, and this is {torch.__version__}: "
            "earlier ones may run code of such a file (CVE-2025-32434). Upgrade, or give a "
            "safetensors file."
        )
    names = {"argparse.Namespace"}
    try:
        names |= set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # an old format, or damage that torch.load explains better
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
        # an open file, since torch.load decides by a path's suffix
        with path.open("rb") as file, torch.serialization.safe_globals(stand_ins):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise InputError(_unpickling_refused(path, [found[1]])) from None
        # The rest of torch's message recommends unpickling.
        reason = re.search(r"WeightsUnpickler error: (.+)", str(error))
        raise InputError(
            f"{path} is no readable checkpoint: it is truncated, or not written by torch.save"
            f"{f' ({shorten(reason[1], 160)})' if reason else ''}."
        ) from None
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(
            f"{path} is no readable checkpoint (truncated?): {shorten(error, 200)}"
        ) from None


def _unpickling_refused(path: Path, names: list[str]) -> str:
    shown = ", ".join(shorten(name, 100) for name in names[:_MOST_NAMED])
    whole = any(re.match(r"torch\.nn\.modules|timm\.|torchvision\.models", name) for name in names)
    what = "torch.load({0}, weights_only=False)"
    what += ".state_dict()" if whole else "['state_dict']"
    return (
        f"{path} is no readable checkpoint: it holds objects of {shown}, which only unpickling "
        "could read, and that would run code of the file. Only if you trust its author, "
        "save the weights alone where it was made: "
        f"`torch.save({what.format(repr(path.name))}, 'weights.pth')`."
    )


def training_metadata(content: Any) -> dict[str, str]:
    """Return the model's name and arguments in a checkpoint of timm's training script.

    Returns:
        ``arch``, and ``args`` as JSON text; empty for other checkpoints.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("arch"), str):
        return {}
    metadata = {"arch": content["arch"]}
    values = content.get("args")
    values = values.values if isinstance(values, _StandIn) else values
    if isinstance(values, dict):
        with contextlib.suppress(TypeError, ValueError, RecursionError):  # no JSON values
            metadata["args"] = json.dumps({key: values[key] for key in _ARGS if values.get(key)})
    return metadata
