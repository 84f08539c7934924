"""Fail the RUNNING trials of dead workers, so that their pairs are requeued."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt._compat import rdb_of
from vit_ratio_opt.runs.heartbeats import BEAT
from vit_ratio_opt.runs.processes import is_dead, process_name

__all__ = ["Reaper", "fail_dead_trials", "fail_stale_trials", "requeue_own_trials"]


class Reaper:
    """Fail the RUNNING trials of dead workers, so that their pairs are requeued.

    Run it regularly beside the database: workers behind a proxy cannot do this themselves.

    Args:
        storage: A database with heartbeats.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage
        self._beats: dict[int, Any] = {}

    def reap(self, names: Sequence[str] = ()) -> list[tuple[str, int]]:
        """Check the named studies, or all studies, once.

        Returns:
            Study name and number of each trial that was failed.
        """
        studies = [
            optuna.load_study(study_name=name, storage=self._storage)
            for name in names or optuna.get_all_study_names(self._storage)
        ]
        reaped = []
        for study in studies:
            before = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            self._forward_heartbeats(before)
            fail_dead_trials(study)
            fail_stale_trials(study)
            after = study.get_trials(deepcopy=False)
            reaped += [
                (study.study_name, trial.number)
                for trial in before
                if after[trial.number].state == TrialState.FAIL
                # Failed by its own worker, which says why.
                and "failure" not in after[trial.number].user_attrs
            ]
        return reaped

    def _forward_heartbeats(self, running: Sequence[FrozenTrial]) -> None:
        """Record a heartbeat where a counter has moved; the clocks of machines may differ."""
        database = rdb_of(self._storage)
        if database is None or database.heartbeat_interval is None:
            return
        for trial in running:
            beat = trial.system_attrs.get(BEAT)
            if beat is not None and self._beats.get(trial._trial_id) != beat:
                self._beats[trial._trial_id] = beat
                database.record_heartbeat(trial._trial_id)


def fail_dead_trials(study: Study) -> list[int]:
    """Fail the RUNNING trials of this machine's processes that no longer exist.

    Trials of other machines are left to the heartbeat, and so is a trial whose process id now
    belongs to another program. Optuna would leave a trial RUNNING for ever whose process died
    before its first heartbeat, so a first heartbeat is recorded here and its grace period begins.

    Returns:
        Numbers of the trials that were failed.
    """
    failed = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if is_dead(str(trial.user_attrs.get("worker", ""))):
            # Not study.tell, which would mark the failure as one of the pair.
            with contextlib.suppress(UpdateFinishedTrialError):  # by another worker meanwhile
                study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
                failed.append(trial.number)
    _start_missing_heartbeats(study)
    return failed


def fail_stale_trials(study: Study) -> None:
    """Fail the trials whose last heartbeat is older than the grace period, as Optuna does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


def requeue_own_trials(study: Study) -> None:
    """Fail the RUNNING trials that this process has lost to a failure of the storage.

    If the storage fails again, the trials are left to the heartbeat.
    """
    with contextlib.suppress(Exception):
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get("worker") == process_name():
                study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)


def _start_missing_heartbeats(study: Study) -> None:
    storage = rdb_of(study._storage)
    if storage is None or storage.heartbeat_interval is None:
        return
    without = sqlalchemy.text(
        "SELECT trial_id FROM trials WHERE study_id = :study AND state = 'RUNNING' "
        "AND trial_id NOT IN (SELECT trial_id FROM trial_heartbeats)"
    )
    with storage.engine.connect() as connection:
        rows = connection.execute(without, {"study": study._study_id}).scalars().all()
    for trial_id in rows:
        storage.record_heartbeat(trial_id)
