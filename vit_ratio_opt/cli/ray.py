"""``vit-ratio-opt ray``: run workers on a Ray cluster."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

from vit_ratio_opt.cli.command import (
    WORKERS,
    check_finite,
    option,
)
from vit_ratio_opt.cli.options import (
    GraceOption,
    PlaceOptions,
    StudyOptions,
    TotalTrialsOption,
)
from vit_ratio_opt.records.trials import load_studies
from vit_ratio_opt.runs.storage import (
    GRACE_SECONDS,
    open_storage,
)

__all__ = ["RayOptions", "ray"]


@dataclass(frozen=True, kw_only=True)
class RayOptions(PlaceOptions, StudyOptions):
    """Options of ``vit-ratio-opt ray``."""

    n_trials: TotalTrialsOption = None
    address: Annotated[
        str | None,
        option(
            WORKERS,
            "Address of the cluster, such as auto or ray://HOST:10001. By default Ray starts a "
            "cluster on this machine.",
        ),
    ] = None
    workers: Annotated[int, option(WORKERS, "Number of workers that run at once.", min=1)] = 1
    gpus_per_worker: Annotated[
        float,
        option(
            WORKERS,
            "GPUs of each worker. Below 1, several workers share one.",
            min=0,
            callback=check_finite,
        ),
    ] = 1
    cpus_per_worker: Annotated[
        float,
        option(WORKERS, "CPU cores, and threads, of each worker.", min=0, callback=check_finite),
    ] = 1
    grace: GraceOption = GRACE_SECONDS


def ray(options: RayOptions) -> None:
    """Run workers on a Ray cluster, and restart those that are lost with their node."""
    from vit_ratio_opt.runs.ray_cluster import run_on_ray

    backend = open_storage(options.storage, must_exist=True, grace=options.grace)
    load_studies(backend, [options.study_name])
    placement = ("storage", "address", "workers", "gpus_per_worker", "cpus_per_worker")
    arguments = asdict(options)
    placed = {name: arguments.pop(name) for name in placement}
    run_on_ray(arguments, placed.pop("storage"), **placed)
