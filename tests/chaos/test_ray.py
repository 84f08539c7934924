"""Workers on a real Ray cluster of two nodes of this machine, one of which is killed."""

import os
import subprocess
import sys
import time

import pytest
from optuna.trial import TrialState

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.ray_cluster import run_on_ray
from vit_ratio_opt.study import create_study, finished_trials
from vit_ratio_opt.training import Recipe

ray = pytest.importorskip("ray")


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False},
    )
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_search_outlives_one_of_two_nodes(cluster, make_objective, undisturbed, tmp_path):
    second = cluster.add_node(num_cpus=1, num_gpus=0)
    cluster.wait_for_nodes()
    recipe = Recipe(epochs=6, batch_size=64)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = create_study(make_objective(recipe=recipe), study_name="s", storage=url)
    driver = subprocess.Popen(
        [sys.executable, "-m", "vit_ratio_opt", "ray", "--address", cluster.address]
        + ["--storage", url, "--study-name", "s", "--workers", "2", "--gpus-per-worker", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )

    def two_at_work():
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return len({trial.user_attrs.get("worker") for trial in running}) == 2

    deadline = time.monotonic() + 120
    while not two_at_work():
        assert time.monotonic() < deadline
        assert driver.poll() is None, driver.stdout.read()
        time.sleep(0.05)
    cluster.remove_node(second, allow_graceful=False)
    said, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, said
    trials = [tuple(trial.params.values()) for trial in finished_trials(study)]
    alone = undisturbed(recipe=recipe)
    assert sorted(trials) == sorted(tuple(t.params.values()) for t in finished_trials(alone))
    lost = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert len(lost) == 1
    assert not any(trial.state == TrialState.RUNNING for trial in study.trials)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus_per_worker": 4}, "No node of the cluster has"),
        ({"study_name": "nosuch"}, "no study 'nosuch'"),
        ({"address": "127.0.0.1:1"}, "no Ray cluster at '127.0.0.1:1'"),
    ],
)
def test_what_the_cluster_cannot_do_is_one_sentence(
    cluster, make_objective, tmp_path, changes, message
):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    create_study(make_objective(), study_name="s", storage=url)
    with pytest.raises(InputError, match=message):
        run_on_ray(
            {"study_name": changes.get("study_name", "s")},
            url,
            address=changes.get("address", cluster.address),
            workers=1,
            gpus_per_worker=changes.get("gpus_per_worker", 0),
            cpus_per_worker=1,
        )
