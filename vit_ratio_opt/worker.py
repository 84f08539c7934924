"""Join a study: one worker, started by the command line, by Ray or from Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.restore import load_search
from vit_ratio_opt.runs.loop import Callback
from vit_ratio_opt.runs.options import Places, RunOptions
from vit_ratio_opt.runs.ranks import join_trainings
from vit_ratio_opt.runs.storage import BEATS_IN_GRACE, GRACE_SECONDS, open_storage
from vit_ratio_opt.training.distributed import Ranks, RanksBroken
from vit_ratio_opt.training.save_clock import STATE_SECONDS, check_state_every
from vit_ratio_opt.utils.checks import check_count, check_flags

__all__ = ["WorkerOptions", "run_worker"]

_LEAST_GRACE = 2  # seconds


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Options of a worker, beside what the study stores.

    Args:
        study_name: Name of the study.
        storage: URL of the storage.
        n_trials: Number of trained trials of the study, those of other workers included; None runs
            until nothing is left to learn.
        places: Places of models and images on this machine.
        device: Device of the models, such as ``"cuda:0"``; by default a GPU, if there is one, that
            no other worker of this machine uses.
        wait: Whether to wait while other workers run trials, and retry the pairs of workers that
            die.
        grace: Seconds without a heartbeat after which a running trial is stale and its pair is
            requeued.
        state_every: Seconds between two saves of a training's state.
        callbacks: Functions called after each trial of this worker, as callbacks of
            ``study.optimize``.

    Raises:
        InputError: A value has another type or is out of range.
    """

    study_name: str
    storage: str
    n_trials: int | None = None
    places: Places = field(default_factory=Places)
    device: str | None = None
    wait: bool = True
    grace: int = GRACE_SECONDS
    state_every: float = STATE_SECONDS
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        for name in ("study_name", "storage"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"`{name}` must be a text, but got {getattr(self, name)!r:.80}.")
        if self.n_trials is not None:
            check_count("n_trials", self.n_trials)
        if not isinstance(self.places, Places):
            raise InputError(
                f"`places` must be a Places, but got {self.places!r:.80}: give "
                "vro.Places(data=...), for example."
            )
        check_flags(self, "wait")
        check_count("grace", self.grace, least=_LEAST_GRACE)
        check_state_every(self.state_every)
        if not all(map(callable, self.callbacks)):
            raise InputError(
                f"`callbacks` must be functions (study, trial), but got {self.callbacks!r:.80}."
            )


def run_worker(options: WorkerOptions, *, say: Callable[[str], None] = print) -> None:
    """Run trials of a study until it is done.

    The study stores everything a worker needs. Under ``torchrun`` all processes share the training
    of each trial.

    Args:
        options: Name and storage of the study, and the options of this worker.
        say: Function called with each line of text.

    Raises:
        InputError: The study cannot be joined, see :func:`~vit_ratio_opt.load_search`.
        SearchStopped: A signal ended the search; the training state is saved, the pair requeued.
    """
    backend = open_storage(options.storage, must_exist=True, grace=options.grace)
    ranks = Ranks.from_environment()
    run = RunOptions(device=options.device, ranks=ranks, state_every=options.state_every)
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
