"""Share the training of each trial among the processes that ``torchrun`` started."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.runs.jobs import adopt_job
from vit_ratio_opt.runs.lineage import fetch_state
from vit_ratio_opt.runs.objective import PruningObjective
from vit_ratio_opt.runs.signals import stop_on_signals
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.training.context import TrainingDiverged, TrainingStopped, TrialContext
from vit_ratio_opt.training.distributed import Ranks

__all__ = ["join_trainings"]


def join_trainings(objective: PruningObjective) -> None:
    """Train together with rank 0 until it has no more trials; for all other ranks.

    Raises:
        InputError: The trainer has no ranks, or this is rank 0.
    """
    ranks: Ranks | None = getattr(objective.trainer, "ranks", None)
    if ranks is None or ranks.rank == 0:
        raise InputError(
            "Rank 0 runs the study: call `join_trainings` in the other processes only."
        )
    with stop_on_signals() as asked_to_stop:
        while (job := ranks.broadcast()) is not None:
            _train(objective, job, asked_to_stop)


def _train(
    objective: PruningObjective, job: dict[str, Any], should_stop: Callable[[], bool]
) -> None:
    """Train one model together with rank 0, which knows the pair, the seed and the sizes."""
    pair, store = RatioPair(*job["pair"]), objective.journal.store
    adopt_job(objective.trainer, job)
    model = objective.pruner.rebuild(pair, job["blocks"])
    with TemporaryDirectory() as folder:
        state = None
        if job["artifact"] is not None and store is not None:
            state = Path(folder) / "state"
            fetch_state(job["artifact"], store, state)
        context = TrialContext(
            seed=job["seed"],
            teacher=objective.pruner.dense,
            state=state,
            should_stop=should_stop,
            identity=job["identity"],
        )
        # What ends the training in rank 0 ends it here.
        with contextlib.suppress(TrainingStopped, TrainingDiverged, InputError):
            objective.trainer.train(model, context)
