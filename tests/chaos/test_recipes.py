"""The files in recipes/, as far as they can be run without a cluster."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from vit_ratio_opt.records.trials import finished_trials
from vit_ratio_opt.training.recipe import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def slurm(tmp_path):
    """Starts the script as Slurm does; ``srun`` runs its command, ``scontrol`` takes notes."""
    tools = tmp_path / "bin"
    tools.mkdir()
    scripts = {
        "srun": '"$@" &\ntrap "kill -TERM $!" TERM\nwait $!\ncode=$?\nwait $!\nexit $?',
        "scontrol": f'echo "$@" >> {tmp_path / "scontrol"}',
        "vit-ratio-opt": f'exec {sys.executable} -m vit_ratio_opt "$@"',
    }
    for name, text in scripts.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)

    def start(url, *arguments):
        return subprocess.Popen(
            ["bash", str(RECIPES / "slurm.sh"), *arguments],
            env={
                **os.environ,
                "PATH": f"{tools}:{os.environ['PATH']}",
                "OPTUNA_STORAGE": url,
                "SLURM_ARRAY_JOB_ID": "17",
                "SLURM_ARRAY_TASK_ID": "3",
            },
            start_new_session=True,
        )

    return start


def test_a_slurm_task_that_is_preempted_is_requeued_and_one_that_is_done_is_not(
    slurm, compose, tmp_path
):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    recipe = Recipe(epochs=5, batch_size=64)
    study = compose(recipe=recipe).create_study("s", storage=url)
    task = slurm(url, "s", "--n-trials", "1")
    deadline = time.monotonic() + 180
    while not (study.trials and study.trials[0].intermediate_values):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    srun = subprocess.run(
        ["pgrep", "-P", str(task.pid), "-f", "srun"], capture_output=True, text=True, check=True
    )
    os.kill(int(srun.stdout), signal.SIGTERM)  # the step, not the script
    assert task.wait(120) == 143
    assert (tmp_path / "scontrol").read_text() == "requeue 17_3\n"
    assert slurm(url, "s", "--n-trials", "1").wait(300) == 0
    assert (tmp_path / "scontrol").read_text() == "requeue 17_3\n"
    assert len(finished_trials(study)) == 1
    assert study.trials[1].user_attrs["resumed_from"]["trial"] == 0


def test_a_slurm_task_that_was_asked_for_something_wrong_is_not_requeued(slurm, tmp_path):
    assert slurm("sqlite:////no/such/study.db", "s").wait(60) == 2
    assert not (tmp_path / "scontrol").exists()


def test_the_kubernetes_job_runs_a_worker_and_fails_for_good_where_the_user_is_needed(
    compose, start_command, tmp_path, monkeypatch
):
    job = yaml.safe_load((RECIPES / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    places = {"STUDY": "s", "/scratch": str(tmp_path / "scratch"), "s3://models": str(tmp_path)}
    arguments = [places.get(argument, argument) for argument in container["args"]]
    assert container["command"] == ["vit-ratio-opt", "worker"]
    assert [variable["name"] for variable in container["env"]] == ["OPTUNA_STORAGE"]
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = compose(recipe=Recipe(epochs=1)).create_study("s", storage=url)

    def run(storage):
        monkeypatch.setenv("OPTUNA_STORAGE", storage)
        worker = start_command("worker", *arguments, "--n-trials", "1")
        worker.join(120)
        return worker.exitcode

    assert run(url) == 0
    assert len(finished_trials(study)) == 1
    failing = job["spec"]["podFailurePolicy"]["rules"][0]
    assert failing["action"] == "FailJob"
    assert run("sqlite:////no/such/study.db") in failing["onExitCodes"]["values"]
    assert pod["restartPolicy"] == "Never"  # or Kubernetes refuses the policy
