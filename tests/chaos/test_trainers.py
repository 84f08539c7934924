"""Trainings in other frameworks, killed in the middle: the next process goes on from the epoch."""

from __future__ import annotations

import os
import signal

import optuna
import pytest
from processes import run_trainer_script

from vit_ratio_opt.runs.storage import open_storage

from .conftest import wait_for

EPOCHS = 4
# Which package a script needs.
SCRIPTS = {
    "plain_loop": "torch",
    "huggingface_trainer": "accelerate",
    "lightning_trainer": "lightning",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_killed_training_resumes_and_ends_as_one_that_was_not(script, start, tmp_path):
    pytest.importorskip(SCRIPTS[script])

    def trials(folder):
        # Optuna's own opening may create tables at the same moment as the script.
        storage = open_storage(f"sqlite:///{tmp_path / folder / 'study.db'}")
        names = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=names[0], storage=storage).trials if names else []

    whole = start(run_trainer_script, script, tmp_path / "whole", EPOCHS)
    killed = start(run_trainer_script, script, tmp_path / "killed", EPOCHS)
    wait_for((tmp_path / "killed" / "study.db").exists)
    wait_for(lambda: any(len(trial.intermediate_values) >= 2 for trial in trials("killed")))
    os.kill(killed.pid, signal.SIGKILL)
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    again = start(run_trainer_script, script, tmp_path / "killed", EPOCHS)
    again.join(300)
    whole.join(300)
    assert again.exitcode == whole.exitcode == 0, (tmp_path / "log").read_text()[-3000:]
    (straight,) = trials("whole")
    _, resumed = trials("killed")
    assert resumed.user_attrs["resumed_from"]["epoch"] >= 1
    assert resumed.params == straight.params
    assert resumed.intermediate_values == straight.intermediate_values
    assert resumed.user_attrs["weights"] == straight.user_attrs["weights"]
