"""Workers on a real Ray cluster of two nodes of this machine, one of which is killed."""

import os
import subprocess
import sys
import time

import optuna
import pytest
from optuna.trial import TrialState

from vit_ratio_opt.records.trials import finished_trials
from vit_ratio_opt.training.recipe import Recipe

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False},
    )
    yield cluster
    cluster.shutdown()


def drive(cluster, url, file, *arguments):
    """Starts ``vit-ratio-opt ray`` in a process of its own: Ray ends it with its cluster.

    A worker that dies between asking for a trial and signing it is known by its silence alone.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "vit_ratio_opt", "ray", "--address", cluster.address]
        + ["--storage", url, "--study-name", "s", "--grace", "10", *arguments],
        stdout=file,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )


def exit_code(driver, log, timeout):
    """Of a driver that has ended; one that has not is killed, lest it hold the cluster."""
    try:
        return driver.wait(timeout)
    except subprocess.TimeoutExpired:
        driver.kill()
        raise AssertionError(log.read_text()) from None


def test_a_search_outlives_one_of_two_nodes(cluster, compose, undisturbed, tmp_path):
    second = cluster.add_node(num_cpus=1, num_gpus=0)
    cluster.wait_for_nodes()
    options = {"recipe": Recipe(epochs=2, batch_size=64), "budget": 0.26}
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = compose(**options).create_study("s", storage=url)
    log = tmp_path / "log"
    with log.open("w") as file:
        driver = drive(cluster, url, file, "--workers", "2", "--gpus-per-worker", "0")

    def two_at_work():
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return len({trial.user_attrs.get("worker") for trial in running}) == 2

    deadline = time.monotonic() + 300
    while not two_at_work():
        assert time.monotonic() < deadline
        assert driver.poll() is None, log.read_text()
        time.sleep(0.05)
    cluster.remove_node(second, allow_graceful=False)
    assert exit_code(driver, log, 600) == 0, log.read_text()
    trials = [tuple(trial.params.values()) for trial in finished_trials(study)]
    alone = undisturbed(**options)
    assert sorted(trials) == sorted(tuple(t.params.values()) for t in finished_trials(alone))
    lost = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert len(lost) == 1
    assert not any(trial.state == TrialState.RUNNING for trial in study.trials)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpus-per-worker", "4"), "No node of the cluster has"),
        (("--gpus-per-worker", "0", "--data", "."), "leave --data out"),
        (("--address", "127.0.0.1:1"), "There is no Ray cluster at '127.0.0.1:1'"),
    ],
)
def test_what_the_cluster_cannot_do_is_one_sentence(
    cluster, compose, tmp_path, arguments, message
):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    compose().create_study("s", storage=url)
    log = tmp_path / "log"
    with log.open("w") as file:
        driver = drive(cluster, url, file, *arguments)
    assert exit_code(driver, log, 300) == 2, log.read_text()
    assert "Error: " in log.read_text()
    assert message in log.read_text()
    assert study_is_untouched(url)


def study_is_untouched(url):
    study = optuna.load_study(study_name="s", storage=url)
    return not study.trials
