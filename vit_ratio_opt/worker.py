"""Join a study: one worker, started by the command line, by Ray or from Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vit_ratio_opt.restore import load_search
from vit_ratio_opt.runs.loop import Callback
from vit_ratio_opt.runs.options import Places, RunOptions
from vit_ratio_opt.runs.ranks import join_trainings
from vit_ratio_opt.runs.storage import BEATS_IN_GRACE, GRACE_SECONDS, open_storage
from vit_ratio_opt.training.distributed import Ranks, RanksBroken

__all__ = ["WorkerOptions", "run_worker"]


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """What a worker needs to know beside the study.

    Args:
        study_name: Name of the study.
        storage: URL of the storage.
        n_trials: Trained trials of the study in all; None until nothing is left to learn.
        places: Where models and images are on this machine.
        device: Device of the models; a GPU by default, if there is one.
        wait: Whether to stay while other workers are at work, and take over what they leave.
        grace: Seconds without a sign of life until a running trial is tried again.
        callbacks: Called after each trial of this worker.
    """

    study_name: str
    storage: str
    n_trials: int | None = None
    places: Places = field(default_factory=Places)
    device: str | None = None
    wait: bool = True
    grace: int = GRACE_SECONDS
    callbacks: Sequence[Callback] = ()


def run_worker(options: WorkerOptions, *, say: Callable[[str], None] = print) -> None:
    """Take trials from a study until it is done.

    The study stores everything a worker needs. Under ``torchrun`` all processes share the training
    of each trial.

    Args:
        options: The study, and what is different on this machine.
        say: Called with each line of text.

    Raises:
        InputError: The study cannot be joined, see :func:`~vit_ratio_opt.load_search`.
        SearchStopped: A signal ended the search; the training state is saved, the pair requeued.
    """
    backend = open_storage(options.storage, must_exist=True, grace=options.grace)
    ranks = Ranks.from_environment()
    run = RunOptions(device=options.device, ranks=ranks)
    search = load_search(options.study_name, backend, options.places, run)
    search.journal.beat_seconds = options.grace / BEATS_IN_GRACE
    if ranks is not None and ranks.rank > 0:
        join_trainings(search.objective)
        ranks.leave()
        return
    is_group_whole = True
    try:
        study = search.create_study(options.study_name, storage=backend)
        search.run(
            study, options.n_trials, wait=options.wait, say=say, callbacks=options.callbacks
        )
    except RanksBroken:
        is_group_whole = False
        raise
    finally:
        if ranks is not None and is_group_whole:
            ranks.broadcast(None)
            ranks.leave()
