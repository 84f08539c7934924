"""``vit-ratio-opt worker``: run trials of a study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vit_ratio_opt.cli.command import Panel, option
from vit_ratio_opt.cli.files import study_model_files, trackers
from vit_ratio_opt.cli.options import (
    DeviceOption,
    GraceOption,
    JsonLogOption,
    PlaceOptions,
    StateEveryOption,
    StudyOptions,
    TensorBoardOption,
    TotalTrialsOption,
)
from vit_ratio_opt.data.folders import check_folder
from vit_ratio_opt.records.loading import load_studies
from vit_ratio_opt.runs.storage import GRACE_SECONDS, open_storage
from vit_ratio_opt.runs.storage_url import database_files
from vit_ratio_opt.training.save_clock import STATE_SECONDS
from vit_ratio_opt.utils.files import check_outputs

__all__ = ["WorkerCommandOptions", "worker"]


@dataclass(frozen=True, kw_only=True)
class WorkerCommandOptions(PlaceOptions, StudyOptions):
    """Options of ``vit-ratio-opt worker``."""

    n_trials: TotalTrialsOption = None
    device: DeviceOption = None
    json_log: JsonLogOption = None
    tensorboard: TensorBoardOption = None
    wait: Annotated[
        bool,
        option(
            Panel.WORKERS,
            "Wait while other workers run trials, and retry the trials of workers that die.",
        ),
    ] = True
    grace: GraceOption = GRACE_SECONDS
    state_every: StateEveryOption = STATE_SECONDS


def worker(options: WorkerCommandOptions) -> None:
    """Join a study: run trials until it is done.

    The study stores its model, images and settings. On SIGTERM or Ctrl-C the worker saves the
    training state and requeues its trial. Under torchrun all processes share the training of each
    trial.
    """
    if options.data is not None:
        check_folder(options.data)
    backend = open_storage(options.storage, must_exist=True, grace=options.grace)
    # Refuse a misspelt name before torch is imported, which takes seconds.
    (named,) = load_studies(backend, [options.study_name])
    if options.json_log is not None:
        models = study_model_files(named, options.checkpoint, options.start, options.checkpoints)
        check_outputs([options.json_log], [*database_files(options.storage), *models])
    callbacks = trackers(options.json_log, options.tensorboard)

    from vit_ratio_opt.worker import WorkerOptions, run_worker

    run_worker(
        WorkerOptions(
            study_name=options.study_name,
            storage=options.storage,
            n_trials=options.n_trials,
            places=options.places,
            device=options.device,
            wait=options.wait,
            grace=options.grace,
            state_every=options.state_every,
            callbacks=callbacks,
        ),
        say=lambda text: print(text, flush=True),
    )
