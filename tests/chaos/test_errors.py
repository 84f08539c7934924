"""What a user or a database gets wrong: one sentence, exit code 2, the study as it was."""

import logging
import os
import pickle
import resource
import sqlite3
import sys

import numpy as np
import optuna
import pytest
import sqlalchemy
import torch
from PIL import Image
from support import make_search

import vit_ratio_opt.runs.loop
from tests.chaos.conftest import ARGUMENTS, MODEL
from vit_ratio_opt.cli.main import main
from vit_ratio_opt.data.image_folder import load_image_folder
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.records.loading import load_studies
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.training.recipe import Recipe

SECRET = "hush-7391"


@pytest.fixture
def command(monkeypatch, capfd, caplog):
    """Runs ``vit-ratio-opt`` in this process; gives its exit code and all that it said."""
    caplog.set_level(logging.DEBUG)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vit-ratio-opt", *arguments])
        capfd.readouterr()  # what the test itself was warned about
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        assert len(err.strip().splitlines()) <= 1, err
        return ended.value.code, err, out + err + caplog.text

    return run


@pytest.fixture
def study_url(compose, tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    compose(recipe=Recipe(epochs=1)).create_study("s", storage=url)
    return url


def contents(url, name="s"):
    study = optuna.load_study(study_name=name, storage=open_storage(url))
    return study.user_attrs, study.trials


@pytest.mark.parametrize(
    ("role", "options", "message"),
    [
        ("locked", "", "password authentication failed"),
        ("nobody", "", "does not exist"),
    ],
)
def test_a_refused_login_is_one_sentence_without_the_password(
    postgresql, command, role, options, message
):
    postgresql.server.psql(
        "DO $$ BEGIN CREATE ROLE locked LOGIN PASSWORD 'right'; "
        "EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
    )
    rules = postgresql.server.pgdata / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"local all locked scram-sha-256\n{before}")
    postgresql.server.psql("SELECT pg_reload_conf();")
    url = postgresql.url.replace("postgres:@", f"{role}:{SECRET}@")
    code, err, everything = command("worker", "--storage", url, "--study-name", "s")
    rules.write_text(before)
    assert code == 2
    assert message in err
    assert f"{role}:***@" in err
    assert SECRET not in everything


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"postgresql://me:{SECRET}@no-such-host.invalid/db", "cannot be used"),
        (f"mysql://me:{SECRET}@no-such-host.invalid/db", "cannot be used"),
        (f"mariadb://me:{SECRET}@127.0.0.1:1/db", "cannot be used"),
        (f"nosuch://me:{SECRET}@host/db", "unknown database"),
        (f"grpc://me:{SECRET}@/db", "must name a host and a port, such as grpc://host:13000"),
        ("sqlite:////no/such/folder/study.db", "There is no database"),
        (f"not a url {SECRET}", "is no storage URL"),
    ],
)
@pytest.mark.parametrize("given", ["option", "environment"])
def test_a_storage_that_cannot_be_reached_is_one_sentence(
    command, monkeypatch, url, message, given
):
    pytest.importorskip("psycopg")
    arguments = ["worker", "--study-name", "s"]
    if given == "option":
        arguments += ["--storage", url]
    else:
        monkeypatch.setenv("OPTUNA_STORAGE", url)
    code, err, everything = command(*arguments)
    assert code == 2
    assert message in err
    if "://me" in url:
        assert SECRET not in everything


def test_nothing_behind_a_proxys_address_is_one_sentence(command, monkeypatch):
    pytest.importorskip("grpc")
    monkeypatch.setattr("vit_ratio_opt.runs.connections._FIRST_SECONDS", 0.5)
    code, err, _ = command("worker", "--storage", "grpc://127.0.0.1:1", "--study-name", "s")
    assert code == 2
    assert "Nothing answers at grpc://127.0.0.1:1: start `vit-ratio-opt serve` there" in err


def test_a_study_that_is_not_there_is_named_with_those_that_are(command, study_url):
    code, err, _ = command("worker", "--storage", study_url, "--study-name", "S")
    assert code == 2
    assert "no study 'S'; it has: s" in err


def test_a_database_that_may_only_be_read_ends_the_worker(postgresql, compose, command, tmp_path):
    url = postgresql.new("readonly")
    compose().create_study("s", storage=open_storage(url))
    before = contents(url)
    read_only = f"{url}&options=-c%20default_transaction_read_only%3Don"
    code, err, _ = command("worker", "--storage", read_only, "--study-name", "s")
    assert code == 2
    assert "cannot execute" in err
    assert "read-only transaction" in err
    assert contents(url) == before


def work_on_a_full_disk(command_line, url, size):
    """No file of this process may become larger than ``size``, as if the disk ended there."""
    vit_ratio_opt.runs.loop._WAIT_SECONDS = 0.01
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    command_line("worker", "--storage", url, "--study-name", "s")


def test_a_database_that_is_full_ends_the_worker(compose, start, command_line, tmp_path):
    file = tmp_path / "study.db"
    url = f"sqlite:///{file}"
    compose(recipe=Recipe(epochs=0)).create_study("s", storage=url)
    before = contents(url)
    worker = start(work_on_a_full_disk, command_line, url, file.stat().st_size)
    worker.join(120)
    said = (tmp_path / "log").read_text()
    assert worker.exitcode == 2, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("Error: The storage cannot be used: ")
    assert "disk" in last
    assert contents(url)[0] == before[0]


@pytest.mark.parametrize("command_name", ["worker", "report", "reap"])
def test_a_schema_of_another_version_is_one_sentence(command, study_url, tmp_path, command_name):
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    before = (tmp_path / "study.db").read_bytes()
    arguments = ["--study-name", "s"] if command_name == "worker" else []
    code, err, _ = command(command_name, "--storage", study_url, *arguments)
    assert code == 2
    assert "optuna storage upgrade" in err
    assert (tmp_path / "study.db").read_bytes() == before


def test_a_worker_with_other_weights_is_refused(command, study_url, tmp_path):
    torch.manual_seed(1)
    save_dense(
        create_model(MODEL, **ARGUMENTS),
        tmp_path / "o.safetensors",
        name=MODEL,
        arguments=ARGUMENTS,
    )
    before = contents(study_url)
    code, err, _ = command(
        "worker", "--storage", study_url, "--study-name", "s",
        "--checkpoint", str(tmp_path / "o.safetensors"),
    )  # fmt: skip
    assert code == 2
    assert "other weights" in err
    assert "--checkpoint is " in err
    assert contents(study_url) == before


def image_folder(folder, seed):
    random = np.random.default_rng(seed)
    for split in ("train", "test"):
        for label in "ab":
            (folder / split / label).mkdir(parents=True)
            for index in range(20):
                pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{index}.png")
    return folder


def test_a_worker_with_other_images_is_refused_and_one_with_the_same_elsewhere_is_not(
    command, tmp_path
):
    here, there, other = (image_folder(tmp_path / n, s) for n, s in (("a", 0), ("b", 0), ("c", 1)))
    arguments = {**ARGUMENTS, "in_chans": 3, "num_classes": 2}
    dense = tmp_path / "dense.safetensors"
    save_dense(create_model(MODEL, **arguments), dense, name=MODEL, arguments=arguments)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    search = make_search(
        load_dense(dense), load_image_folder(here), budget=0.6, recipe=Recipe(epochs=1),
        checkpoints=tmp_path / "models", calibration_images=8,
    )  # fmt: skip
    search.create_study("s", storage=url)
    before = contents(url)
    worker = ("worker", "--storage", url, "--study-name", "s", "--n-trials", "1")
    code, err, _ = command(*worker, "--data", str(other))
    assert code == 2
    assert "another validation split" in err
    assert "--data is " in err
    assert contents(url) == before
    here.rename(tmp_path / "gone")
    code, err, _ = command(*worker)
    assert code == 2
    assert "no folder" in err
    assert contents(url) == before
    there.rename(tmp_path / "a")
    code, err, out = command(*worker)
    assert code == 0, out
    assert len(contents(url)[1]) == 1


def test_a_study_of_images_of_the_users_own_says_so(command, study_url):
    study = optuna.load_study(study_name="s", storage=study_url)
    study.set_user_attr("origin", {**study.user_attrs["origin"], "data": {}})
    code, err, _ = command("worker", "--storage", study_url, "--study-name", "s")
    assert code == 2
    assert "custom images" in err


def test_reaping_through_a_proxy_is_refused(command, monkeypatch):
    storage = optuna.storages.InMemoryStorage()
    monkeypatch.setattr("vit_ratio_opt.cli.reap.open_storage", lambda *_, **__: storage)
    code, err, _ = command("reap", "--storage", "grpc://localhost:13000")
    assert code == 2
    assert "not a proxy" in err


def test_a_password_is_found_in_no_output_log_or_attribute(
    postgresql, compose, command, caplog, tmp_path
):
    postgresql.server.psql(
        f"DO $$ BEGIN CREATE ROLE secretive SUPERUSER LOGIN PASSWORD '{SECRET}'; "
        "EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
    )
    url = postgresql.new("secrets").replace("postgres:@", f"secretive:{SECRET}@")
    search = compose(recipe=Recipe(epochs=1, batch_size=256))
    search.create_study("s", storage=open_storage(url))
    code, _, everything = command(
        "worker", "--storage", url, "--study-name", "s", "--n-trials", "2"
    )
    assert code == 0
    assert SECRET not in everything
    assert SECRET not in command("report", "--storage", url)[2]
    with sqlalchemy.create_engine(url).connect() as connection:
        for table in sqlalchemy.inspect(connection).get_table_names():
            rows = connection.execute(sqlalchemy.text(f"SELECT * FROM {table}")).all()
            assert SECRET not in str(rows)
    for path in (tmp_path / "models").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()


def test_a_password_may_come_from_pgpass(postgresql, monkeypatch, tmp_path):
    psycopg = pytest.importorskip("psycopg")
    postgresql.server.psql(
        "DO $$ BEGIN CREATE ROLE passer SUPERUSER LOGIN PASSWORD 'from{a}file'; "
        "EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
    )
    url = postgresql.new("pgpass").replace("postgres:@", "passer@")
    rules = postgresql.server.pgdata / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"local all passer scram-sha-256\n{before}")
    postgresql.server.psql("SELECT pg_reload_conf();")
    try:
        monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
        with pytest.raises(ValueError, match=r"fe_sendauth|password"):
            open_storage(url)
        (tmp_path / "pgpass").write_text("*:*:*:passer:from{a}file\n")
        os.chmod(tmp_path / "pgpass", 0o600)
        assert optuna.get_all_study_names(open_storage(url)) == []
        with_braces = url.replace("passer@", "passer:from{a}file@")
        assert optuna.get_all_study_names(open_storage(with_braces)) == []
    finally:
        rules.write_text(before)
        postgresql.server.psql("SELECT pg_reload_conf();")
    assert psycopg


def test_the_whole_path_reads_no_pickle(compose, command, tmp_path, monkeypatch):
    for module, names in ((pickle, ("load", "loads", "Unpickler")), (torch, ("load", "save"))):
        for name in names:
            monkeypatch.setattr(module, name, None)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    search = compose(recipe=Recipe(epochs=1, batch_size=256), iterative=True)
    study = search.create_study("s", storage=url)
    search.run(study, n_trials=1, say=lambda line: None)
    assert command("worker", "--storage", url, "--study-name", "s", "--n-trials", "2")[0] == 0
    (study,) = load_studies(open_storage(url), ["s"])
    assert len(study.trials) == 2
    assert search.test(study) is not None
    assert command("report", "--storage", url)[0] == 0
