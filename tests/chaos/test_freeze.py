"""Connections that freeze: the peer acknowledges everything and never answers again."""

import os
import signal
import socket
import sqlite3
import threading
import time

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState
from support import new_study

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.trials import finished_trials
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.utils.failures import is_storage_error, reason

from .conftest import wait_for


class TcpProxy:
    """Passes on what it gets, until it is frozen: then it takes everything and says nothing."""

    def __init__(self, address):
        self._address = address
        self.frozen = threading.Event()
        self.freeze_at = None  # bytes of a client that freeze it
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            client = self._server.accept()[0]
            family = socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET
            server = socket.socket(family)
            server.connect(self._address)
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source, target):
        try:
            while data := source.recv(65536):
                if self.freeze_at is not None and self.freeze_at in data:
                    self.freeze_at = None
                    target.sendall(data)  # it arrives, but no answer does
                    self.frozen.set()
                elif not self.frozen.is_set():
                    target.sendall(data)
        except OSError:
            pass
        source.close()
        target.close()


@pytest.fixture
def frozen_database(postgresql):
    """A new database: its URL, and that of a proxy before it, with the proxy."""

    def make(name):
        direct = postgresql.new(name)
        url = sqlalchemy.make_url(direct)
        proxy = TcpProxy(f"{url.query['host']}/.s.PGSQL.{url.port or 5432}")
        through = url.set(host="127.0.0.1", port=proxy.port).difference_update_query(["host"])
        return direct, through.render_as_string(hide_password=False), proxy

    return make


def test_a_server_limits_what_a_client_may_hold_unless_its_url_says_so(frozen_database):
    _, url, _ = frozen_database("limits")
    ours = open_storage(url, grace=20).engine
    theirs = open_storage(f"{url}?options=-c%20statement_timeout%3D7s&connect_timeout=3").engine
    names = ("statement_timeout", "idle_in_transaction_session_timeout")
    for engine, expected in ((ours, ["5s", "5s"]), (theirs, ["7s", "1min"])):
        with engine.connect() as connection:
            found = [
                connection.execute(sqlalchemy.text(f"SHOW {name}")).scalar() for name in names
            ]
            parameters = connection.connection.driver_connection.info.get_parameters()
        assert found == expected
        assert parameters["keepalives_idle"]
        assert parameters["tcp_user_timeout"]
        assert parameters["connect_timeout"] == ("5" if engine is ours else "3")


@pytest.mark.parametrize("statement", [b"UPDATE trials SET state", b"INSERT INTO trial_user_attr"])
def test_a_frozen_connection_is_replaced_and_its_call_repeated(frozen_database, statement):
    _, url, proxy = frozen_database(f"replaced{len(statement)}")
    study = optuna.create_study(study_name="s", storage=open_storage(url, grace=20))
    trial = study.ask()
    proxy.freeze_at = statement
    started = time.monotonic()

    def thaw():
        proxy.frozen.wait()
        time.sleep(1)
        proxy.frozen.clear()  # new connections pass; what the old one lost is lost

    threading.Thread(target=thaw, daemon=True).start()
    trial.set_user_attr("key", 1)
    study.tell(trial, 2.0)
    assert 4 < time.monotonic() - started < 15
    assert study.trials[0].value == 2.0
    assert study.trials[0].user_attrs == {"key": 1}


@pytest.mark.parametrize("where", ["opening", "creation"])
def test_a_study_that_is_created_on_a_frozen_database_is_one_sentence(
    frozen_database, compose, where
):
    _, url, proxy = frozen_database(f"at{where}")
    search = compose()
    storage = open_storage(url, grace=8)
    if where == "opening":
        proxy.frozen.set()
        with pytest.raises(InputError, match=r"cannot be used: .*(timeout|timed out|no answer)"):
            open_storage(url, grace=8)
        return
    proxy.freeze_at = b"INSERT INTO studies"
    started = time.monotonic()
    with pytest.raises(optuna.exceptions.StorageInternalError) as error:
        new_study(search, "s", storage=storage, screen=False)
    assert is_storage_error(error.value)
    assert "time" in reason(error.value) or "no answer" in reason(error.value)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    "statement",
    [b"INSERT INTO trials", b"losses", b"UPDATE trials SET state"],
    ids=["ask", "training", "result"],
)
def test_a_worker_whose_database_freezes_ends_and_another_takes_its_pair(
    frozen_database, compose, undisturbed, start_command, tmp_path, statement
):
    direct, url, proxy = frozen_database(f"freeze{sum(statement)}")
    recipe = Recipe(epochs=2, batch_size=64)
    study = compose(recipe=recipe).create_study("s", storage=direct)
    arguments = ("--study-name", "s", "--n-trials", "2", "--grace", "8")
    first = start_command("worker", "--storage", url, *arguments)
    wait_for(lambda: finished_trials(study))
    proxy.freeze_at = statement
    wait_for(proxy.frozen.is_set)
    frozen_at = time.monotonic()
    second = start_command("worker", "--storage", direct, *arguments)
    first.join(60)
    said = (tmp_path / "log").read_text()
    assert first.exitcode == 2, said
    assert time.monotonic() - frozen_at < 50
    assert "Error: The storage cannot be used: " in said
    assert "Traceback" not in said
    second.join(240)
    assert second.exitcode == 0, (tmp_path / "log").read_text()
    expected = undisturbed(n_trials=2, recipe=recipe)
    ours, theirs = ([t.params for t in finished_trials(s)] for s in (study, expected))
    assert sorted(map(str, ours)) == sorted(map(str, theirs))
    assert not any(trial.state == TrialState.RUNNING for trial in study.get_trials())


def test_a_worker_whose_proxy_freezes_ends_and_its_trial_is_handed_on(
    compose, start_command, free_port, tmp_path
):
    pytest.importorskip("grpc")
    database, port = f"sqlite:///{tmp_path / 'study.db'}", free_port()
    recipe = Recipe(epochs=400, batch_size=64)
    study = compose(recipe=recipe).create_study("s", storage=database)
    serve = ("serve", "--storage", database, "--port", str(port), "--grace", "4")
    server = start_command(*serve)
    log = tmp_path / "log"
    wait_for(lambda: log.exists() and "serving" in log.read_text())
    proxy = TcpProxy(("127.0.0.1", port))
    worker = start_command(
        *("worker", "--storage", f"grpc://127.0.0.1:{proxy.port}", "--study-name", "s"),
        *("--n-trials", "1", "--grace", "4"),
    )
    wait_for(lambda: any(trial.intermediate_values for trial in study.get_trials()))
    proxy.frozen.set()
    worker.join(60)
    said = (tmp_path / "log").read_text()
    assert worker.exitcode == 2, said
    assert "Error: The storage cannot be used: Deadline Exceeded" in said
    assert "Traceback" not in said
    wait_for(lambda: study.get_trials()[0].state == TrialState.FAIL, 30)
    server.kill()


def lock(file):
    """Another process that keeps a SQLite file to itself."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


def test_a_file_that_is_locked_for_ever_is_one_sentence(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(study_name="s", storage=open_storage(url, grace=4))
    other, started = lock(tmp_path / "study.db"), time.monotonic()
    with pytest.raises(InputError, match="cannot be used: database is locked"):
        open_storage(url, grace=4)
    assert time.monotonic() - started < 20
    with pytest.raises(optuna.exceptions.StorageInternalError) as error:
        study.set_user_attr("key", 1)
    assert reason(error.value) == "database is locked"
    other.close()
    study.set_user_attr("key", 1)
    assert study.user_attrs == {"key": 1}


def test_two_signals_end_a_worker_whose_database_is_frozen(
    frozen_database, compose, start_command, tmp_path
):
    direct, url, proxy = frozen_database("signals")
    recipe = Recipe(epochs=400, batch_size=64)
    study = compose(recipe=recipe).create_study("s", storage=direct)
    worker = start_command("worker", "--storage", url, "--study-name", "s", "--n-trials", "1")
    wait_for(lambda: study.trials and study.trials[0].intermediate_values)
    proxy.frozen.set()
    time.sleep(1)
    os.kill(worker.pid, signal.SIGTERM)
    time.sleep(0.5)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(5)
    assert worker.exitcode == 128 + signal.SIGTERM, (tmp_path / "log").read_text()
