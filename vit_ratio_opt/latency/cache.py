"""Keep latency tables and fast sizes on disk for all studies of a machine."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from pathlib import Path
from typing import Any

from vit_ratio_opt.latency.steps import fastest_step
from vit_ratio_opt.latency.table import LatencyTable, measure_latency, timing_conditions
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.device import Precision
from vit_ratio_opt.pruning.rounding import STEPS
from vit_ratio_opt.space.costs import Engine
from vit_ratio_opt.utils.caching import read_or_compute
from vit_ratio_opt.utils.files import replacing

__all__ = ["cached_latency", "cached_step"]

_logger = logging.getLogger(f"optuna.{__name__}")
# Change them when the measurement or the file changes.
_VERSION, _STEP_VERSION = "latency-3", "step-1"
# A table with a larger median relative error is not kept.
_MAX_ERROR = 0.1


def cached_latency(
    model: ViT,
    folder: Path,
    *,
    batch: int = 1,
    round_to: int = 1,
    precision: Precision | None = None,
    engine: Engine = "eager",
) -> LatencyTable:
    """Return the latency table of a model, read from ``folder`` where it is stored.

    A table with an error above 10 % is warned about and not stored.

    Args:
        model: Dense or pruned model without a cascade; only the sizes of its weights count.
        folder: Folder of the files, for any number of models and devices.
        batch: Images in a batch.
        round_to: Ranks and neurons left in a block are multiples of this.
        precision: Precision of weights and activations; the usual one of the device by default.
        engine: What runs the models.
    """
    how: dict[str, Any] = {
        **{"batch": batch, "round_to": round_to, "precision": precision},
        "engine": engine,
    }
    key = _key(_VERSION, model, how)
    return read_or_compute(
        folder / f"{key[:32]}.json",
        read=lambda path: _read(path, key),
        compute=lambda: measure_latency(model, **how),
        write=lambda table, path: _write(table, path, key),
    )


def cached_step(
    model: ViT,
    folder: Path,
    *,
    least: int,
    batch: int = 1,
    precision: Precision | None = None,
    engine: Engine = "eager",
) -> int:
    """Return :func:`~vit_ratio_opt.latency.steps.fastest_step`, read where it is stored.

    Args:
        model: Model without a cascade; only the sizes of its weights count.
        folder: Folder of the files, for any number of models and devices.
        least: Smallest number that is returned.
        batch: Images in a batch.
        precision: Precision of weights and activations; the usual one of the device by default.
        engine: What runs the models.
    """
    how: dict[str, Any] = {"batch": batch, "precision": precision, "engine": engine}
    key = _key(_STEP_VERSION, model, {**how, "round_to": least})

    def write(step: int, path: Path) -> None:
        with replacing(path) as partial:
            partial.write_text(json.dumps({"key": key, "step": step}))

    def read(path: Path) -> int:
        stored = json.loads(path.read_text())
        if stored["key"] != key or stored["step"] not in {*STEPS, least}:
            raise ValueError("it is of another model or device")
        return int(stored["step"])

    return read_or_compute(
        folder / f"{key[:32]}.json",
        read=read,
        compute=lambda: fastest_step(model, least=least, **how),
        write=write,
    )


def _key(version: str, model: ViT, how: dict[str, Any]) -> str:
    known = json.dumps([timing_conditions(model, **how), _processor()], sort_keys=True)
    return hashlib.sha256(f"{version} {known}".encode()).hexdigest()


def _read(path: Path, key: str) -> LatencyTable:
    stored = json.loads(path.read_text())
    if stored["key"] != key:
        raise ValueError("it is of another model or device")
    return LatencyTable.from_json(stored["table"])


def _write(table: LatencyTable, path: Path, key: str) -> None:
    if table.error > _MAX_ERROR:
        _logger.warning(
            f"Latencies are predicted with a median error of {100 * table.error:.0f} %: other "
            "work on this machine disturbs the timing. A budget may be missed; the next study "
            "measures again."
        )
        return
    with replacing(path) as partial:
        partial.write_text(json.dumps({"key": key, "table": table.to_json()}))


def _processor() -> list[str]:
    """Return in what two machines that share a folder, or a home, may differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return [platform.system(), platform.machine(), platform.processor(), *sorted(names)]
