from __future__ import annotations

import math

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import OperationalError

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.runs import database
from vit_ratio_opt.runs.database import RDBStorage

SPACE = {
    "x": FloatDistribution(0, 1),
    "n": IntDistribution(1, 64, log=True),
    "kind": CategoricalDistribution(("a", None, 2)),
}


@pytest.fixture
def study(url):
    """A study with everything that a trial may have."""
    study = optuna.create_study(study_name="s", storage=RDBStorage(url))
    other = optuna.create_study(study_name="other", storage=study._storage)
    for number in range(8):
        other.add_trial(create_trial(value=1.0))
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED if number % 3 == 2 else TrialState.COMPLETE,
                value=(0.5, math.inf, None)[number % 3],
                params={"x": number / 8, "n": 1 + number, "kind": ("a", None, 2)[number % 3]},
                distributions=SPACE,
                user_attrs={"blocks": [[1, 2], [3, number]], "text": "ä {x} %"},
                system_attrs={"claim": [0.5, number]},
                intermediate_values={3: math.nan, 1: -math.inf, 2: number},
            )
        )
    study.ask().suggest_float("x", 0, 1)
    study.enqueue_trial({"x": 0.5})
    study.tell(study.ask(), state=TrialState.FAIL)
    return study


@pytest.mark.parametrize("most_ids", [500, 1])
def test_trials_are_read_as_optuna_reads_them(study, url, monkeypatch, most_ids):
    monkeypatch.setattr(database, "_MOST_IDS", most_ids)
    ours, theirs = RDBStorage(url), optuna.storages.RDBStorage(url)
    ids = [trial._trial_id for trial in study.trials]
    for states in (None, (TrialState.COMPLETE,), (TrialState.RUNNING, TrialState.FAIL)):
        for included, after in (
            (set(), -1),
            (set(), ids[4]),
            ({ids[1]}, ids[6]),
            ({ids[1], ids[9]}, ids[6]),
        ):
            expected = theirs._get_trials(study._study_id, states, included, after)
            found = ours._get_trials(study._study_id, states, included, after)
            if most_ids == 1 and included:  # more may be read than was asked for, but nothing else
                numbers = {trial.number for trial in expected}
                found = [trial for trial in found if trial.number in numbers]
            assert [vars(trial) for trial in map(_plain, found)] == [
                vars(trial) for trial in map(_plain, expected)
            ]
    with pytest.raises(KeyError):
        ours._get_trials(999, None, set(), -1)


def _plain(trial):
    """NaN is not equal to itself."""
    trial.intermediate_values = {k: str(v) for k, v in trial.intermediate_values.items()}
    return trial


def break_once(storage):
    """Cut the connection at the next statement."""
    broken = []

    def cut(*arguments):
        if not broken:
            broken.append(1)
            raise OperationalError("", {}, Exception("gone"), connection_invalidated=True)

    sqlalchemy.event.listen(storage.engine, "before_cursor_execute", cut)
    return broken


def test_a_call_whose_connection_breaks_is_made_again(study):
    storage = study._storage._backend
    trial = study.ask()
    for call in (
        lambda: trial.suggest_float("x", 0, 1),
        lambda: trial.report(1.0, 0),
        lambda: trial.set_user_attr("key", [1]),
        lambda: study.get_trials(),
        lambda: study.user_attrs,
        lambda: study.tell(trial, 2.0),
    ):
        broken = break_once(storage)
        call()
        assert broken
    assert study.trials[-1].values == [2.0]
    assert study.trials[-1].user_attrs == {"key": [1]}


def test_another_error_is_not_repeated(study):
    calls = []

    def refuse(*arguments):
        calls.append(1)
        raise OperationalError("", {}, Exception("disk is full"))

    trial = study.ask()
    sqlalchemy.event.listen(study._storage._backend.engine, "before_cursor_execute", refuse)
    with pytest.raises(StorageInternalError):
        trial.set_user_attr("key", 1)
    assert len(calls) == 1


@pytest.mark.parametrize("same", [True, False])
def test_a_result_whose_commit_was_not_answered_counts_if_it_is_there(study, monkeypatch, same):
    theirs, said = optuna.storages.RDBStorage.set_trial_state_values, []
    lost = OperationalError("", {}, Exception("gone"), connection_invalidated=True)

    def commit_and_lose(self, trial_id, state, values=None):
        stored = theirs(self, trial_id, state, values if same else [5.0])
        if not said:
            said.append(1)
            raise StorageInternalError("An exception is raised during the commit.") from lost
        return stored

    trial = study.ask()
    monkeypatch.setattr(optuna.storages.RDBStorage, "set_trial_state_values", commit_and_lose)
    if same:
        study.tell(trial, 2.0)
    else:
        with pytest.raises(UpdateFinishedTrialError):
            study.tell(trial, 2.0)
    assert study.trials[-1].state == TrialState.COMPLETE
    assert study.trials[-1].value == (2.0 if same else 5.0)


def test_only_one_says_whether_a_trial_is_alive(url):
    storage = RDBStorage(url, heartbeat_interval=1, grace_period=1)
    trial = optuna.create_study(storage=storage).ask()
    count = sqlalchemy.text("SELECT count(*) FROM trial_heartbeats")
    with storage.engine.connect() as connection, storage.heartbeats(trial._trial_id) as beat:
        storage.record_heartbeat(trial._trial_id)
        assert connection.execute(count).scalar() == 0
        beat()
        assert connection.execute(count).scalar() == 1
    storage.record_heartbeat(trial._trial_id)


def test_a_database_that_goes_back_to_a_backup_is_noticed(study):
    name, storage = study.study_name, study._storage._backend
    study.get_trials()
    with storage.engine.begin() as connection:
        last = connection.execute(sqlalchemy.text("SELECT max(trial_id) FROM trials")).scalar()
        connection.execute(sqlalchemy.text(f"DELETE FROM trials WHERE trial_id = {last}"))
    with pytest.raises(InputError, match="restored from a backup"):
        study.get_trials()
    assert optuna.load_study(study_name=name, storage=storage).get_trials()
