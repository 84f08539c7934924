"""A worker of two processes, as torchrun starts it."""

import signal
import subprocess
import sys
import time

import pytest
from optuna.trial import TrialState

from vit_ratio_opt.training.recipe import Recipe


def test_two_processes_share_each_trial_and_give_one_workers_study(
    compose, undisturbed, start_pair, command_line, tmp_path
):
    recipe = Recipe(epochs=2, batch_size=64)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = compose(recipe=recipe).create_study("s", storage=url)
    arguments = ("worker", "--storage", url, "--study-name", "s", "--n-trials", "2")
    for process in start_pair(command_line, *arguments):
        process.join(120)
        assert process.exitcode == 0, (tmp_path / "log").read_text()
    alone = undisturbed(n_trials=2, recipe=recipe).trials
    assert len(study.trials) == 2
    for trial, expected in zip(study.trials, alone, strict=True):
        assert trial.params == expected.params  # bit for bit
        assert trial.user_attrs["blocks"] == expected.user_attrs["blocks"]
        assert trial.user_attrs["losses"] == pytest.approx(expected.user_attrs["losses"], abs=1e-4)
        assert trial.value == pytest.approx(expected.value, abs=0.7)


def test_a_preempted_group_hands_its_trial_back_and_goes_on(
    compose, start_pair, command_line, tmp_path
):
    recipe = Recipe(epochs=6, batch_size=64)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = compose(recipe=recipe).create_study("s", storage=url)
    arguments = ("worker", "--storage", url, "--study-name", "s", "--n-trials", "1")
    worker = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        + ["-m", "vit_ratio_opt", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 180
    while not (study.trials and len(study.trials[0].intermediate_values) >= 2):
        assert time.monotonic() < deadline
        assert worker.poll() is None, worker.stdout.read()
        time.sleep(0.1)
    worker.send_signal(signal.SIGTERM)
    said, _ = worker.communicate(timeout=120)
    assert worker.returncode != 0
    assert study.trials[0].state == TrialState.FAIL, said
    assert study.trials[0].user_attrs["failure"].startswith("TrainingStopped"), said
    for process in start_pair(command_line, *arguments):
        process.join(120)
        assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert study.trials[1].state == TrialState.COMPLETE
    assert study.trials[1].user_attrs["resumed_from"]["epoch"] >= 2
    assert sorted(study.trials[1].intermediate_values) == list(range(1, 7))
