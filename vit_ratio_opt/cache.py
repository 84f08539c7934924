"""Measurements of a dense model that all trials and workers share, kept on disk.

A file's name is a hash of everything that its content depends on: the weights, the architecture,
the images and the way of measuring. So it never goes stale, and a folder can serve any number of
models. Two workers that miss the same file both measure, and one of them overwrites the other's
equal result.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vit_ratio_opt.checkpoint import weights_hash
from vit_ratio_opt.device import Precision
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.pruning import Calibration, calibrate
from vit_ratio_opt.pruning.architecture import architecture_of
from vit_ratio_opt.pruning.blocks import ViT
from vit_ratio_opt.pruning.latency import LatencyTable, conditions, measure_latency
from vit_ratio_opt.utils.files import replacing, write_json

__all__ = ["cached_calibration", "cached_latency", "default_cache"]

_logger = logging.getLogger(f"optuna.{__name__}")
# Change it when the measurement changes.
_VERSION = "calibration-4"
_LATENCY_VERSION = "latency-2"
_POOR_LATENCY = 0.1


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/vit_ratio_opt``, by default in ``~/.cache``."""
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        raise InputError("This user has no home folder: set XDG_CACHE_HOME.") from None
    return Path(root) / "vit_ratio_opt"


def cached_calibration(
    model: ViT,
    images: Sequence[torch.Tensor],
    folder: Path,
    *,
    seed: int = 0,
) -> Calibration:
    """:func:`vit_ratio_opt.pruning.calibrate`, read from ``folder`` when it was done before.

    A folder that cannot be written, or a file that is damaged, costs a warning and the time to
    measure again.

    Args:
        model: As there.
        images: As there.
        folder: Where the file is.
        seed: As there.
    """
    known = [_VERSION, weights_hash(model), architecture_of(model), seed]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for batch in images:
        digest.update(f"{tuple(batch.shape)}".encode())
        digest.update(batch.detach().cpu().contiguous().numpy().tobytes())
    path = folder / f"{digest.hexdigest()[:32]}.safetensors"
    if path.is_file():
        try:
            return Calibration.from_tensors(load_file(path))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            _logger.warning(f"{path} cannot be read and is measured again: {error}")
    calibration = calibrate(model, images, seed=seed)
    _try_to_save(calibration.to_tensors(), path)
    return calibration


def cached_latency(
    model: ViT,
    folder: Path,
    *,
    batch: int = 1,
    round_to: int = 1,
    precision: Precision | None = None,
) -> LatencyTable:
    """:func:`vit_ratio_opt.pruning.latency.measure_latency`, read from ``folder`` likewise.

    Args:
        model: As there; of its weights only the sizes count.
        folder: Where the file is.
        batch: As there.
        round_to: As there.
        precision: In which the model is timed, see :func:`vit_ratio_opt.device.autocast`.

    A table with an error above 10 % is warned about and not kept.
    """
    how: dict[str, Any] = {"batch": batch, "round_to": round_to, "precision": precision}
    known = json.dumps(conditions(model, **how), sort_keys=True)
    digest = hashlib.sha256(f"{_LATENCY_VERSION} {known}".encode())
    path = folder / f"{digest.hexdigest()[:32]}.json"
    if path.is_file():
        try:
            return LatencyTable.from_json(json.loads(path.read_text()))
        except (OSError, KeyError, TypeError, ValueError) as error:
            _logger.warning(f"{path} cannot be read and is measured again: {error}")
    table = measure_latency(model, **how)
    if table.error > _POOR_LATENCY:
        _logger.warning(
            f"Latencies are foretold with a median error of {100 * table.error:.0f} %: other work "
            "on this machine disturbs what is timed. A budget may be missed; the next study "
            "measures again."
        )
        return table
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(table.to_json(), path)
    except (OSError, InputError) as error:
        _logger.warning(f"{path} cannot be written, the next search measures again: {error}")
    return table


def _try_to_save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            save_file(tensors, partial)
    except (OSError, SafetensorError) as error:
        _logger.warning(f"{path} cannot be written, every process measures for itself: {error}")
