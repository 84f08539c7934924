"""``vit-ratio-opt worker``: take trials of a study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vit_ratio_opt.cli.command import (
    WORKERS,
    option,
)
from vit_ratio_opt.cli.files import study_model_files, trackers
from vit_ratio_opt.cli.options import (
    DeviceOption,
    GraceOption,
    JsonLogOption,
    PlaceOptions,
    StudyOptions,
    TensorBoardOption,
    TotalTrialsOption,
)
from vit_ratio_opt.data.folders import check_folder
from vit_ratio_opt.records.loading import load_studies
from vit_ratio_opt.runs.storage import (
    BEATS_IN_GRACE,
    GRACE_SECONDS,
    database_files,
    open_storage,
)
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
            WORKERS,
            "Wait while other workers run trials, and take over the trials of those that die.",
        ),
    ] = True
    grace: GraceOption = GRACE_SECONDS


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

    from vit_ratio_opt.runs.origin import load_objective
    from vit_ratio_opt.runs.study import create_study, run_study
    from vit_ratio_opt.training.distributed import Ranks, RanksBroken

    ranks = Ranks.from_environment()
    objective = load_objective(
        options.study_name,
        backend,
        checkpoint=options.checkpoint,
        start=options.start,
        data=options.data,
        artifacts=options.artifacts,
        checkpoints=options.checkpoints,
        device=options.device,
        ranks=ranks,
    )
    objective.beat_seconds = options.grace / BEATS_IN_GRACE
    if ranks is not None and ranks.rank > 0:
        objective.follow()
        ranks.leave()
        return
    heard = True
    try:
        study = create_study(objective, study_name=options.study_name, storage=backend)
        run_study(
            study,
            objective,
            n_trials=options.n_trials,
            wait=options.wait,
            say=lambda text: print(text, flush=True),
            callbacks=callbacks,
        )
    except RanksBroken:
        heard = False
        raise
    finally:
        if ranks is not None and heard:
            ranks.broadcast(None)
            ranks.leave()
