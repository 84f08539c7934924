"""Read folders that Hugging Face's libraries and timm write: weights, config and preprocessing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vit_ratio_opt.data.preprocessing import Preprocessing
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.weights import read_tensors
from vit_ratio_opt.utils.text import shorten

__all__ = ["read_preprocessing", "read_config", "read_folder"]

_FILES = ("model.safetensors", "pytorch_model.bin")
_PREPROCESSOR = "preprocessor_config.json"
_MOST_JSON_BYTES = 1 << 26
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".tar", ".ckpt")
# PIL's numbers, which transformers stores.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def read_config(folder: Path) -> dict[str, Any]:
    """Return the ``config.json`` of a folder.

    Raises:
        InputError: The file is missing or damaged.
    """
    path = folder / "config.json"
    try:
        return _json(folder, path)
    except InputError:
        files = sorted(file.name for file in folder.iterdir() if file.suffix in _SUFFIXES)
        hint = f" Name one of its files instead: {', '.join(files[:4])}." if files else ""
        raise InputError(
            f"{folder} is no Hugging Face model: it has no readable config.json.{hint}"
        ) from None


def read_folder(folder: Path, weights: str | None = None) -> dict[str, torch.Tensor]:
    """Return the tensors of a folder by name.

    They are in ``model.safetensors``, ``pytorch_model.bin``, or shards that an index names.

    Args:
        folder: The folder.
        weights: ``"ema"`` or ``"raw"``, where a file holds averaged weights beside the trained.

    Raises:
        InputError: There are no weights, a file is damaged, or a name leads out of the folder.
    """
    for name in _FILES:
        if (folder / name).is_file() or (folder / name).is_symlink():
            return read_tensors(_path_inside(folder, name), weights)[0]
        index = f"{name}.index.json"
        if (folder / index).is_file():
            return _shards(folder, index)
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder} holds an adapter only: merge it into its model and save that.")
    raise InputError(
        f"{folder} has no model.safetensors, pytorch_model.bin or index of their shards: write "
        "the folder with `save_pretrained`."
    )


def _shards(folder: Path, index: str) -> dict[str, torch.Tensor]:
    where = folder / index
    files = _json(folder, _path_inside(folder, index)).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise InputError(f"{where} is damaged: its `weight_map` must give a file for each tensor.")
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(set(files.values())):
        shard = read_tensors(_path_inside(folder, name))[0]
        wanted = {key for key, file in files.items() if file == name}
        if set(shard) != wanted:
            odd = sorted(map(str, set(shard) ^ wanted))
            raise InputError(
                f"{folder / name} has other tensors than {index} says, such as "
                f"`{shorten(odd[0], 80)}`: a shard of another model, or not all were downloaded."
            )
        tensors |= shard
    return tensors


def _path_inside(folder: Path, name: str) -> Path:
    """Return the path of a file of the folder, which no name and no link may lead out of."""
    if not name or name in (".", "..") or any(sign in name for sign in "/\\:\0"):
        raise InputError(
            f"{folder} names the file {shorten(name)!r}, which must be a plain name of a file "
            "in it."
        )
    path = folder / name
    home = folder.resolve()
    target = path.resolve()
    homes = [home]
    if home.parent.name == "snapshots":  # Hugging Face's cache links to the blobs beside it
        homes.append(home.parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in homes):
        raise InputError(
            f"{path} is a link that leads out of the folder: copy the file itself into it."
        )
    return path


def _json(folder: Path, path: Path) -> dict[str, Any]:
    try:
        if _path_inside(folder, path.name).stat().st_size > _MOST_JSON_BYTES:
            raise ValueError("too long")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path} is missing, or no readable JSON object.")
    return content


def _mean_and_std(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of each channel in a ``preprocessor_config.json``.

    Raises:
        InputError: The file is damaged, or gives none.
    """
    try:
        stored = _json(path.parent, path)
        mean, std = (tuple(map(float, stored[f"image_{key}"])) for key in ("mean", "std"))
    except (InputError, KeyError, TypeError, ValueError):
        raise InputError(f"{path} is damaged: it gives no image_mean and image_std.") from None
    return mean, std


def read_preprocessing(folder: Path, image_size: tuple[int, int]) -> Preprocessing | None:
    """Return the preprocessing of a folder's ``preprocessor_config.json``; None without one.

    Args:
        folder: A Hugging Face folder.
        image_size: Height and width of its model's input, in pixels.

    Raises:
        InputError: The file is damaged, or asks for something that cannot be done here.
    """
    path = folder / _PREPROCESSOR
    if not path.exists():
        return None
    mean, std = _mean_and_std(path)
    stored = _json(folder, path)
    factor = stored.get("rescale_factor", 1 / 255)
    for key, right in (
        ("do_normalize", stored.get("do_normalize", True) is True),
        ("do_rescale", stored.get("do_rescale", True) is True),
        ("rescale_factor", type(factor) is float and math.isclose(factor, 1 / 255, rel_tol=1e-3)),
        ("rescale_offset", not stored.get("rescale_offset", False)),
        ("resample", stored.get("resample", 2) in list(_RESAMPLE)),
    ):
        if not right:
            raise InputError(
                f"{path} has {key} {stored.get(key)!r:.40}, which is not supported: images are "
                "scaled by 1/255 and normalised by image_mean and image_std, after resizing in "
                "one of PIL's ways. Give a folder whose model expects that."
            )
    sides = _sides(path, "size", stored.get("size"))
    crop = 1.0
    if stored.get("do_center_crop", "crop_size" in stored):
        cropped = _sides(path, "crop_size", stored.get("crop_size"))
        crop = min(1.0, cropped[0] / sides[0]) if sides and cropped else 1.0
        sides = cropped or sides
    elif type(share := stored.get("crop_pct")) is float and 0 < share <= 1:
        crop = share
    if sides is not None and sides != image_size:
        raise InputError(
            f"{path} makes images of {sides} pixels, but the model takes {image_size}: load it "
            f"with `img_size={sides}`, or correct `size` or `crop_size` there."
        )
    interpolation = _RESAMPLE[stored.get("resample", 2)]
    size = stored.get("size")
    squash = not (isinstance(size, Mapping) and "shortest_edge" in size)  # height and width
    return Preprocessing(
        mean, std, image_size, interpolation, crop, origin=str(path), squash=squash
    )


def _sides(path: Path, key: str, size: Any) -> tuple[int, int] | None:
    """Return height and width of a size: a number, both, or the shorter side."""
    if isinstance(size, Mapping):
        shorter = size.get("shortest_edge")
        size = [size.get("height", shorter), size.get("width", shorter)]
    sides = size if isinstance(size, (list, tuple)) else [size, size]
    if size is None:
        return None
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise InputError(f"{path} has {key} {size!r:.80}, which must be numbers of pixels.")
    return sides[0], sides[1]
