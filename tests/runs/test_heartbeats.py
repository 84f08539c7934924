import threading
import time

import optuna
import pytest
import sqlalchemy

from vit_ratio_opt.runs.heartbeats import record_heartbeats
from vit_ratio_opt.runs.storage import open_storage

INTERVAL = 0.02


@pytest.fixture
def storage(url):
    return open_storage(url)


def forget_heartbeats(storage):
    """Makes every heartbeat so old that its trial is stale."""
    with storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = '2000-01-01'"))


def stale_trials(storage, study):
    return set(storage._get_stale_trial_ids(study._study_id))


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(INTERVAL)


def test_heartbeats_are_recorded_until_the_end_also_where_nobody_optimizes(storage):
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    with record_heartbeats(trial._trial_id, storage, every=INTERVAL):
        for _ in range(3):
            forget_heartbeats(storage)
            wait_until(lambda: not stale_trials(storage, study))
    forget_heartbeats(storage)
    time.sleep(5 * INTERVAL)
    assert stale_trials(storage, study) == {trial._trial_id}


def test_a_thread_that_hangs_records_no_heartbeat_and_one_that_computes_does(storage):
    study = optuna.create_study(storage=storage)
    working, hanging = study.ask(), study.ask()
    ended = threading.Event()

    def compute():
        while not ended.is_set():
            sum(range(10_000))

    def record(trial, work):
        with record_heartbeats(trial._trial_id, storage, every=INTERVAL, stall_seconds=0.3):
            work()

    threads = [
        threading.Thread(target=record, args=arguments)
        for arguments in ((working, compute), (hanging, ended.wait))
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.6)
    forget_heartbeats(storage)
    wait_until(lambda: working._trial_id not in stale_trials(storage, study))
    time.sleep(10 * INTERVAL)
    stale = stale_trials(storage, study)
    ended.set()
    for thread in threads:
        thread.join()
    assert stale == {hanging._trial_id}
