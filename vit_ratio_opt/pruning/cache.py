"""Keep calibrations on disk for all trials and workers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vit_ratio_opt.data.task import Task
from vit_ratio_opt.models.architecture import architecture_of
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.state_dicts import checksum, weights_hash
from vit_ratio_opt.pruning.calibration import Calibration, calibrate, targets_size
from vit_ratio_opt.pruning.options import CalibrationPrecision
from vit_ratio_opt.utils.caching import read_or_compute
from vit_ratio_opt.utils.files import replacing

__all__ = ["cached_calibration"]

# Change it when the calibration or the file changes.
_VERSION = "calibration-7"


def cached_calibration(
    model: ViT,
    images: Sequence[torch.Tensor],
    folder: Path,
    *,
    seed: int = 0,
    task: Task = "single-label",
    precision: CalibrationPrecision = "float32",
    memory: float = math.inf,
) -> Calibration:
    """Return :func:`vit_ratio_opt.calibrate` of a model, read from ``folder`` where it is stored.

    A damaged file, or a folder that cannot be written, costs a warning and a new calibration.

    Args:
        model: The dense model, in float32.
        images: Normalised batches ``(batch, channels, height, width)``, on the model's device.
        folder: Folder of the files, for any number of models.
        seed: Random seed of the calibration.
        task: Meaning of the outputs, see :func:`vit_ratio_opt.calibrate`.
        precision: Precision of the passes.
        memory: Largest memory of the targets in GiB; larger ones stay in a file in ``folder`` and
            are read from there when they are needed.
    """
    how: dict[str, Any] = {"seed": seed, "task": task, "precision": precision}
    if targets_size(model, sum(map(len, images)), precision) > memory * 2**30:
        how["scratch"] = folder
    key = _key(model, images, seed, task, precision)
    return read_or_compute(
        folder / f"{key[:32]}.safetensors",
        read=lambda path: _read(path, key),
        compute=lambda: calibrate(model, images, **how),
        write=lambda calibration, path: _write(calibration, path, key),
    )


def _key(
    model: ViT,
    images: Sequence[torch.Tensor],
    seed: int,
    task: Task,
    precision: CalibrationPrecision,
) -> str:
    """Return a hash of everything on which a calibration depends."""
    known = [_VERSION, weights_hash(model), architecture_of(model), seed]
    known += [] if task == "single-label" else [task]
    known += [] if precision == "float32" else [precision]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for batch in images:
        digest.update(f"{tuple(batch.shape)}".encode())
        digest.update(batch.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, key: str) -> Calibration:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            stored = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    # safetensors has no checksum of its own.
    if stored != {"key": key, "checksum": checksum(tensors, key)}:
        raise ValueError("it is damaged, or of another model or other images")
    return Calibration.from_tensors(tensors)


def _write(calibration: Calibration, path: Path, key: str) -> None:
    tensors = calibration.to_tensors()
    try:
        with replacing(path) as partial:
            save_file(tensors, partial, {"key": key, "checksum": checksum(tensors, key)})
    except SafetensorError as error:  # a full disk, for one
        raise ValueError(str(error)) from None
