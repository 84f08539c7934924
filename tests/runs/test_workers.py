from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
import time

import optuna
import pytest
from optuna.trial import TrialState

from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.runs.workers import (
    fail_dead_trials,
    keep_optimizing,
    process_name,
    sign_of_life,
    stop_on_signals,
)


def test_trial_of_a_process_that_died_before_its_first_heartbeat_gets_one(url):
    storage = open_storage(url)
    study = optuna.create_study(storage=storage)
    orphan = storage.create_new_trial(study._study_id)  # in study.optimize, and died there
    alive = storage.create_new_trial(study._study_id)
    storage.record_heartbeat(alive)
    storage.grace_period = -1
    assert storage._get_stale_trial_ids(study._study_id) == [alive]
    assert fail_dead_trials(study) == []  # its grace period has only begun
    assert storage._get_stale_trial_ids(study._study_id) == [orphan, alive]


def test_optimize_goes_on_after_another_worker_failed_its_trial(url):
    study = optuna.create_study(storage=open_storage(url))
    lost, said = [], []

    def taken_for_dead(trial):
        if not lost:
            lost.append(trial.number)
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        return 1.0

    keep_optimizing(study, taken_for_dead, n_trials=3, say=said.append)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert len(said) == 1
    assert "took this one for dead" in said[0]


def test_optimize_goes_on_after_its_trial_was_failed_while_it_wrote_to_it(url):
    study = optuna.create_study(storage=open_storage(url))

    def taken_for_dead(trial):
        if trial.number == 0:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        trial.report(1.0, 0)
        return 1.0

    keep_optimizing(study, taken_for_dead, n_trials=2, say=lambda line: None)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]


def test_an_objective_may_fail_but_not_three_times_in_a_row(url):
    def fails(trial):
        if trial.number in (0, 1, 3, 5, 6, 7):
            raise ValueError(f"in trial {trial.number}")
        if trial.number == 2:
            raise optuna.TrialPruned
        return 1.0

    study = optuna.create_study(storage=open_storage(url))
    with pytest.raises(ValueError, match="in trial 7"):
        keep_optimizing(study, fails, n_trials=20)
    letters = "".join(trial.state.name[0] for trial in study.trials)
    assert letters == "FFPFCFFF"


def test_a_sign_of_life_is_given_again_and_again_also_where_nobody_optimizes(url):
    storage = open_storage(url, grace=2)
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    storage.grace_period = 2
    with sign_of_life(trial._trial_id, storage, every=0.3):
        time.sleep(3.5)
        assert storage._get_stale_trial_ids(study._study_id) == []
    time.sleep(3.5)
    assert storage._get_stale_trial_ids(study._study_id) == [trial._trial_id]


def test_the_first_signal_asks_and_the_second_ends_and_then_all_is_as_before():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
        assert asked.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_signals_are_left_alone_outside_the_main_thread():
    seen = []

    def inside():
        with stop_on_signals() as asked:
            seen.append(asked())

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_process_of_another_namespace_is_not_taken_for_one_of_this(url, monkeypatch):
    study = optuna.create_study(storage=open_storage(url))
    trial = study.ask()
    trial.set_user_attr("worker", process_name(2**22 + 1))  # no such process
    monkeypatch.setattr("vit_ratio_opt.runs.workers._machine", lambda: "here/1")
    assert fail_dead_trials(study) == []
    monkeypatch.undo()
    assert fail_dead_trials(study) == [0]
    assert study.trials[0].state == TrialState.FAIL


def test_a_trial_that_was_taken_over_costs_one_sentence_and_no_traceback(url, caplog):
    study = optuna.create_study(storage=open_storage(url))
    said = []

    def taken_for_dead(trial):
        if trial.number < 4:  # more often in a row than an objective may fail
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        trial.report(1.0, 0)
        return 1.0

    keep_optimizing(study, taken_for_dead, n_trials=5, say=said.append)
    assert [trial.state.name[0] for trial in study.trials] == ["F"] * 4 + ["C"]
    assert len(said) == 4
    assert "its result is dropped; going on" in said[0]
    assert not any(record.exc_info for record in caplog.records)


def test_a_thread_that_hangs_gives_no_sign_of_life_and_one_that_computes_does(url, monkeypatch):
    monkeypatch.setattr("vit_ratio_opt.runs.workers._LEAST_STALL_SECONDS", 0.5)
    storage = open_storage(url, grace=2)
    study = optuna.create_study(storage=storage)
    working, hanging = study.ask(), study.ask()

    def compute():
        with sign_of_life(working._trial_id, storage, every=0.1):
            while not ended.is_set():
                sum(range(10_000))
                time.sleep(0.005)

    ended, thread = threading.Event(), threading.Thread(target=compute)
    thread.start()
    with sign_of_life(hanging._trial_id, storage, every=0.1):
        time.sleep(5)
        stale = storage._get_stale_trial_ids(study._study_id)
    ended.set()
    thread.join()
    assert stale == [hanging._trial_id]


def hang_in_c(ready):
    with stop_on_signals():
        ready.set()
        lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
        lock(mutex)
        lock(mutex)


def hang_in_python(ready):
    with stop_on_signals():
        ready.set()
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(600)


@pytest.mark.parametrize("hang", [hang_in_c, hang_in_python])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_a_process_that_hangs(hang, number):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hang, args=(ready,))
    process.start()
    try:
        assert ready.wait(60)
        os.kill(process.pid, number)
        process.join(3)
        assert process.exitcode is None
        os.kill(process.pid, number)
        process.join(10)
        assert process.exitcode == 128 + number
    finally:
        process.kill()
