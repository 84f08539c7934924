from __future__ import annotations

import contextlib
import json
import socket
import sqlite3

import optuna
import pytest

from vit_ratio_opt.runs.storage import open_storage


def test_report_prints_rows_trials_and_time(searched, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ended = command("report", "--storage", f"sqlite:///{searched / 'study.db'}")
    assert ended.code == 0, ended.err
    for word in ("dense", "fixed", "searched", "COMPLETE", "time of 'photos'", "other"):
        assert word in ended.out


def test_report_writes_what_is_asked_for(searched, command, tmp_path):
    arguments = ["report", "--storage", f"sqlite:///{searched / 'study.db'}"]
    files = {name: tmp_path / f"report.{name}" for name in ("json", "csv", "html", "markdown")}
    for name, path in files.items():
        arguments += [f"--{name}", path]
    ended = command(*arguments, "--toml", tmp_path / "report.toml")
    assert ended.code == 0, ended.err
    rows = json.loads(files["json"].read_text())["rows"]
    assert [row["name"] for row in rows] == ["dense", "fixed", "searched"]
    trials = files["csv"].read_text().splitlines()
    assert len(trials) == 1 + 2
    assert trials[0].startswith("study,trial,state,best,mhsa_ratio")
    for name in ("html", "markdown"):
        assert f"{rows[2]['macs_ratio']:.4f}" in files[name].read_text()
    assert (tmp_path / "report.toml").read_text() == (searched / "rows.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "--storage", "sqlite:///missing.db"], "There is no database"),
        (["dashboard", "--storage", "sqlite:///missing.db"], "There is no database"),
        (["report", "--html", "/no/such/folder/x"], "cannot be written"),
        (["report", "--json", "/no/such/folder/x"], "cannot be written"),
        (["report", "--toml", "/no/such/folder/x"], "cannot be written"),
    ],
)
def test_commands_refuse_bad_input(tmp_path, monkeypatch, command, arguments, message):
    monkeypatch.chdir(tmp_path)
    ended = command(*arguments)
    assert ended.code == 2
    assert message in ended.err
    assert list(tmp_path.iterdir()) == []


def test_options_are_written_for_one_search_only(make_study, url, command, tmp_path):
    storage = open_storage(url)
    for name, message in (("a", "was not started by"), ("b", "one study")):
        make_study(storage, name)
        ended = command("report", "--storage", url, "--toml", tmp_path / "x.toml")
        assert ended.code == 2
        assert message in ended.err
        assert not (tmp_path / "x.toml").exists()


def test_unknown_and_foreign_studies_are_refused(tmp_path, command):
    url = f"sqlite:///{tmp_path / 'x.db'}"
    optuna.create_study(study_name="foreign", storage=url)
    for names, message in (
        (["nope"], "it has: foreign"),
        (["foreign"], "was not created by"),
        ([], "has no study created by"),
    ):
        options = [part for name in names for part in ("--study-name", name)]
        for name in ("report", "dashboard")[: 1 + len(names)]:
            ended = command(name, "--storage", url, *options)
            assert ended.code == 2
            assert message in ended.err


def test_dashboard_listens_on_loopback_and_refuses_a_taken_port(tmp_path, monkeypatch, command):
    url = f"sqlite:///{tmp_path / 'x.db'}"
    optuna.create_study(storage=url)
    started = {}
    monkeypatch.setattr(
        "optuna_dashboard.run_server",
        lambda storage, host, **options: started.update(host=host),
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        arguments = ["dashboard", "--storage", url, "--port", taken.getsockname()[1]]
        ended = command(*arguments)
        assert ended.code == 2
        assert "Cannot listen on 127.0.0.1" in ended.err
    assert command(*arguments).code == 0
    assert started == {"host": "127.0.0.1"}


def test_report_leaves_a_damaged_study_out_and_shows_the_others(make_study, url, command, caplog):
    storage = open_storage(url)
    good, bad = make_study(storage, "good"), make_study(storage, "bad")
    bad.set_user_attr("dense", {"macs": "many"})
    ended = command("report", "--storage", url)
    assert ended.code == 0
    assert "good" in ended.out
    assert "Study 'bad' is damaged: `macs` of the attribute `dense`" in caplog.text
    for names in (("--study-name", "bad"), ()):
        good.set_user_attr("settings", 5)
        ended = command("report", "--storage", url, *names)
        assert ended.code == 2
        assert ended.err.count("is damaged") == 1


@pytest.mark.parametrize("key", ["settings", "dense", "versions", "device", "origin"])
@pytest.mark.parametrize("name", ["report", "worker", "final"])
def test_a_mistyped_attribute_is_one_sentence(
    make_study, url, monkeypatch, command, tmp_path, name, key
):
    monkeypatch.chdir(tmp_path)
    make_study(open_storage(url), "s").set_user_attr(key, 5)
    ended = command(name, "--storage", url, "--study-name", "s")
    assert ended.code == 2
    assert ended.err.startswith("Error: Study 's' is damaged: ")
    assert key in ended.err.lower()


def test_an_attribute_that_is_no_json_is_one_sentence(tmp_path, make_study, command):
    database = tmp_path / "study.db"
    make_study(f"sqlite:///{database}")
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("update study_user_attributes set value_json = '[' where key = 'plan'")
    ended = command("report", "--storage", f"sqlite:///{database}")
    assert ended.code == 2
    assert "is damaged: an attribute is no JSON." in ended.err
