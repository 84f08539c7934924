"""``vit-ratio-opt ray``: run workers on a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Annotated

from vit_ratio_opt.cli.command import Panel, check_finite, option
from vit_ratio_opt.cli.options import (
    GraceOption,
    PlaceOptions,
    StateEveryOption,
    StudyOptions,
    TotalTrialsOption,
)
from vit_ratio_opt.cli.worker import WorkerCommandOptions, worker
from vit_ratio_opt.records.loading import load_studies
from vit_ratio_opt.runs.storage import GRACE_SECONDS, open_storage
from vit_ratio_opt.training.save_clock import STATE_SECONDS

__all__ = ["RayOptions", "ray"]


@dataclass(frozen=True, kw_only=True)
class RayOptions(PlaceOptions, StudyOptions):
    """Options of ``vit-ratio-opt ray``."""

    n_trials: TotalTrialsOption = None
    address: Annotated[
        str | None,
        option(
            Panel.WORKERS,
            "Address of the cluster, such as auto or ray://HOST:10001. By default Ray starts a "
            "cluster on this machine.",
        ),
    ] = None
    workers: Annotated[
        int, option(Panel.WORKERS, "Number of workers that run at once.", min=1)
    ] = 1
    gpus_per_worker: Annotated[
        float,
        option(
            Panel.WORKERS,
            "GPUs of each worker. Below 1, several workers share one.",
            min=0,
            callback=check_finite,
        ),
    ] = 1
    cpus_per_worker: Annotated[
        float,
        option(
            Panel.WORKERS, "CPU cores, and threads, of each worker.", min=0, callback=check_finite
        ),
    ] = 1
    grace: GraceOption = GRACE_SECONDS
    state_every: StateEveryOption = STATE_SECONDS


def ray(options: RayOptions) -> None:
    """Run workers on a Ray cluster, and restart those that are lost with their node."""
    from vit_ratio_opt.runs.ray_cluster import run_on_ray

    backend = open_storage(options.storage, must_exist=True, grace=options.grace)
    load_studies(backend, [options.study_name])
    run_on_ray(
        partial(_work, _worker_options(options)),
        address=options.address,
        workers=options.workers,
        gpus_per_worker=options.gpus_per_worker,
        cpus_per_worker=options.cpus_per_worker,
    )


def _worker_options(options: RayOptions) -> WorkerCommandOptions:
    """Return the options of each worker: those that both commands have."""
    names = {field.name for field in fields(RayOptions)}
    shared = {f.name for f in fields(WorkerCommandOptions)} & names
    return WorkerCommandOptions(**{name: getattr(options, name) for name in shared})


def _work(options: WorkerCommandOptions) -> int:
    """Run one worker in a task of Ray's, on the GPU that Ray lets it see."""
    from vit_ratio_opt.models.device import best_device

    worker(replace(options, device=str(best_device())))
    return 0
