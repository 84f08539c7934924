"""Workers behind Optuna's gRPC proxy, with checkpoints in an S3."""

import socket
import subprocess
import sys
import time
import uuid

import optuna
import pytest
from optuna.trial import TrialState

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.trials import finished_trials
from vit_ratio_opt.runs.artifacts import open_artifacts
from vit_ratio_opt.runs.heartbeats import record_heartbeats
from vit_ratio_opt.runs.reaping import Reaper
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.utils.network import check_port

from .conftest import wait_for

pytest.importorskip("grpc")


@pytest.fixture
def serve(free_port):
    """Starts ``vit-ratio-opt serve``; gives its URL and the process."""
    started = []

    def start(url, port=None):
        port = port or free_port()
        server = subprocess.Popen(
            [sys.executable, "-m", "vit_ratio_opt", "serve", "--storage", url, "--grace", "3"]
            + ["--port", str(port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(server)
        assert server.stdout.readline().startswith(f"serving at grpc://127.0.0.1:{port}")
        return f"grpc://127.0.0.1:{port}", server

    yield start
    for server in started:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(monkeypatch):
    """The location of an empty bucket, and a client of it."""
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-7391")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    yield "s3://models", client
    server.stop()


def test_a_killed_worker_behind_the_proxy_is_reaped_and_another_machine_goes_on_from_the_bucket(
    serve, bucket, compose, undisturbed, start_command, tmp_path, monkeypatch
):
    location, client = bucket
    recipe = Recipe(epochs=8, batch_size=64)
    database = f"sqlite:///{tmp_path / 'study.db'}"
    url, _ = serve(_made(database))
    study = compose(recipe=recipe, artifacts=location).create_study("s",
        storage=open_storage(url),
    )  # fmt: skip
    arguments = f"worker --storage {url} --study-name s --n-trials 1 --grace 3".split()
    arguments += ["--state-every", "0.1"]
    arguments += ["--artifacts", location]  # a bucket is given by the user, not by a study
    first = start_command(*arguments, "--checkpoints", tmp_path / "first")
    wait_for(lambda: study.trials and len(study.trials[0].intermediate_values) >= 2)
    first.kill()
    first.join()
    # As on another machine, where its process cannot be looked for.
    monkeypatch.setattr("vit_ratio_opt.runs.processes.machine_name", lambda: "another")
    wait_for(lambda: study.trials[0].state == TrialState.FAIL)
    second = start_command(*arguments, "--checkpoints", tmp_path / "second")
    second.join(300)
    assert second.exitcode == 0, (tmp_path / "log").read_text()
    assert study.trials[1].state == TrialState.COMPLETE
    assert study.trials[1].user_attrs["resumed_from"]["epoch"] >= 1
    expected = undisturbed(n_trials=1, recipe=recipe).trials[0]
    assert study.trials[1].value == expected.value
    search = compose(recipe=recipe, artifacts=location, checkpoints=tmp_path / "third")
    assert search.test(study) is not None  # its model comes from the bucket
    kept = [item["Key"] for item in client.list_objects_v2(Bucket="models")["Contents"]]
    assert len(kept) == 3  # model, curve and table
    assert not any(name.startswith("training-state") for name in kept)


def _made(url):
    open_storage(url)
    return url


def test_a_living_worker_behind_the_proxy_is_not_reaped_and_a_silent_one_is(serve, tmp_path):
    database = f"sqlite:///{tmp_path / 'study.db'}"
    url, _ = serve(_made(database))
    study = optuna.create_study(study_name="s", storage=open_storage(url))
    trial, silent = study.ask(), study.ask()
    with record_heartbeats(trial._trial_id, study._storage, every=0.5):
        wait_for(lambda: study.trials[silent.number].state == TrialState.FAIL, 20)
        time.sleep(2)
        assert study.trials[trial.number].state == TrialState.RUNNING
    wait_for(lambda: study.trials[trial.number].state == TrialState.FAIL, 20)


def test_a_worker_outlives_a_restart_of_the_proxy(
    serve, compose, undisturbed, start_command, tmp_path
):
    database = f"sqlite:///{tmp_path / 'study.db'}"
    url, server = serve(_made(database))
    study = compose().create_study("s", storage=open_storage(database))
    worker = start_command(
        *("worker", "--storage", url, "--study-name", "s", "--n-trials", "5", "--grace", "3")
    )
    wait_for(lambda: len(finished_trials(study)) >= 2)
    server.kill()
    server.wait()
    time.sleep(1)
    serve(database, port=int(url.rpartition(":")[2]))
    worker.join(300)
    assert worker.exitcode == 0, (tmp_path / "log").read_text()
    finished = [trial.params for trial in finished_trials(study)]
    expected = [trial.params for trial in finished_trials(undisturbed(n_trials=5))]
    assert sorted(map(str, finished)) == sorted(map(str, expected))
    assert not any(trial.state == TrialState.RUNNING for trial in study.trials)


def test_a_port_that_is_taken_is_refused(serve, tmp_path):
    database = f"sqlite:///{tmp_path / 'study.db'}"
    url, _ = serve(_made(database))
    again = subprocess.run(
        [sys.executable, "-m", "vit_ratio_opt", "serve", "--storage", database]
        + ["--port", url.rpartition(":")[2]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 2
    assert again.stderr.startswith("Error: Cannot listen on 127.0.0.1:")


def test_an_orphan_of_another_machine_is_reaped_after_its_grace(postgresql, monkeypatch):
    storage = open_storage(postgresql.new("reaping"), grace=2)
    study = optuna.create_study(study_name="s", storage=storage)
    study.ask()  # whoever asked for it says nothing more
    reaper = Reaper(storage)
    assert reaper.reap() == []  # its grace has only begun
    wait_for(lambda: reaper.reap(["s"]) == [("s", 0)], 20)
    assert study.trials[0].state == TrialState.FAIL


@pytest.mark.parametrize("location", ["s3://bucket/folder", "gs://bucket", "http://host"])
def test_artifacts_elsewhere_are_refused(compose, location):
    with pytest.raises(ValueError, match="kept in a folder or in s3://bucket"):
        compose(artifacts=location)


def test_a_folder_of_artifacts_need_not_be_there(tmp_path):
    store = open_artifacts(str(tmp_path / "new"))
    with (tmp_path / "file").open("wb+") as file:
        store.write(artifact := str(uuid.uuid4()), file)
    assert (tmp_path / "new" / artifact).exists()


def test_serving_is_said_once_it_listens(serve, monkeypatch, tmp_path):
    url, _ = serve(_made(f"sqlite:///{tmp_path / 'study.db'}"))
    host, _, port = url.removeprefix("grpc://").partition(":")
    socket.create_connection((host, int(port)), timeout=1).close()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 300, "..", "1.2.3"])
def test_an_address_that_is_none_of_this_machine_is_one_sentence(host):
    with pytest.raises(InputError, match="Cannot listen on"):
        check_port(host, 13000)
