"""Measurements of a dense model that all trials and workers share, kept on disk.

A file's name is a hash of everything that its content depends on: the weights, the architecture,
the images and the way of measuring. So it never goes stale, and a folder can serve any number of
models. The file has the hash in it too, and a checksum: what was renamed or damaged is measured
again. Two workers that miss the same file both measure, and one of them overwrites the other's
equal result.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.latency.timing import LatencyTable, conditions, measure_latency
from vit_ratio_opt.models.architecture import architecture_of
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.device import Precision
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.pruning.calibration import Calibration, calibrate
from vit_ratio_opt.training.resume import checksum
from vit_ratio_opt.utils.files import replacing, why_not, write_json

__all__ = ["cached_calibration", "cached_latency", "default_cache"]

_logger = logging.getLogger(f"optuna.{__name__}")
# Change it when the measurement changes.
_VERSION = "calibration-5"
_LATENCY_VERSION = "latency-3"
_POOR_LATENCY = 0.1


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/vit_ratio_opt``, by default in ``~/.cache``."""
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as containers have them
        root = tempfile.gettempdir()
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
    key = {"key": digest.hexdigest()}
    path = folder / f"{digest.hexdigest()[:32]}.safetensors"
    if os.path.exists(path):
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                stored = file.metadata() or {}
            if stored != {**key, "checksum": checksum(tensors, key)}:
                raise ValueError("it is damaged, or of something else")
            return Calibration.from_tensors(tensors)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            _logger.warning(f"{path} cannot be read and is measured again: {error}")
    calibration = calibrate(model, images, seed=seed)
    tensors = calibration.to_tensors()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            save_file(tensors, partial, {**key, "checksum": checksum(tensors, key)})
    except (OSError, SafetensorError) as error:
        _logger.warning(
            f"{path} cannot be written, every process measures for itself: {why_not(error)}"
        )
    return calibration


def cached_latency(
    model: ViT,
    folder: Path,
    *,
    batch: int = 1,
    round_to: int = 1,
    precision: Precision | None = None,
) -> LatencyTable:
    """:func:`vit_ratio_opt.latency.timing.measure_latency`, read from ``folder`` likewise.

    Args:
        model: As there; of its weights only the sizes count.
        folder: Where the file is.
        batch: As there.
        round_to: As there.
        precision: In which the model is timed, see :func:`vit_ratio_opt.models.device.autocast`.

    A table with an error above 10 % is warned about and not kept.
    """
    how: dict[str, Any] = {"batch": batch, "round_to": round_to, "precision": precision}
    known = json.dumps([conditions(model, **how), _processor()], sort_keys=True)
    key = hashlib.sha256(f"{_LATENCY_VERSION} {known}".encode()).hexdigest()
    path = folder / f"{key[:32]}.json"
    if os.path.exists(path):
        try:
            stored = json.loads(path.read_text())
            if stored["key"] != key:
                raise ValueError("it is of something else")
            return LatencyTable.from_json(stored["table"])
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
        write_json({"key": key, "table": table.to_json()}, path)
    except (OSError, InputError) as error:
        _logger.warning(f"{path} cannot be written, the next search measures again: {error}")
    return table


def _processor() -> list[str]:
    """What two machines that share a folder, or a home, may differ in."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return [platform.system(), platform.machine(), platform.processor(), *sorted(names)]
