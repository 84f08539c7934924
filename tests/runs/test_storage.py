from __future__ import annotations

import contextlib
import sqlite3

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import OperationalError

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.runs import storage as storage_module
from vit_ratio_opt.runs.connections import answer_seconds
from vit_ratio_opt.runs.storage import is_temporary, open_storage
from vit_ratio_opt.runs.storage_url import check_storage_url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "no storage URL"),
        ("nodb://user:secret@host/x", "unknown database"),
        ("postgres://user:secret@host/x", "must begin with sqlite, postgresql, mysql or grpc"),
        ("sqlite:////no/such/folder/x.db", "no folder"),
        ("sqlite:////tmp", "names a folder: name a file in it"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("postgresql+psycopg://user:secret@localhost:1/x", "not installed|cannot be used"),
    ],
)
def test_bad_storage_is_one_sentence_without_the_password(url, message):
    with pytest.raises(InputError, match=message) as error:
        open_storage(url)
    assert "secret" not in str(error.value)


def test_file_that_is_no_database_is_refused_and_stays(tmp_path):
    (tmp_path / "x.db").write_text("not a database " * 100)
    with pytest.raises(InputError, match="cannot be used"):
        open_storage(f"sqlite:///{tmp_path / 'x.db'}")
    assert (tmp_path / "x.db").read_text().startswith("not a database")


def test_an_outage_ends_after_a_while_and_a_restart_is_waited_for():
    def storage_error(gave_up=False):
        driver = Exception("connection refused")
        if gave_up:
            driver.vit_ratio_opt_gave_up = True
        error = StorageInternalError("An exception is raised during the commit.")
        error.__cause__ = OperationalError("SELECT", {}, driver)
        return error

    storage = optuna.storages.InMemoryStorage()
    assert is_temporary(storage_error(), storage, 1, 0.0)
    assert not is_temporary(storage_error(), storage, 6, 10.0)
    assert not is_temporary(storage_error(), storage, 2, 301.0)
    assert not is_temporary(storage_error(gave_up=True), storage, 1, 0.0)


@pytest.mark.parametrize(("grace", "seconds"), [(600, 60), (100, 25), (3, 5)])
def test_a_worker_notices_well_in_its_grace_that_its_database_is_silent(grace, seconds):
    assert answer_seconds(grace) == seconds


def test_timeouts_of_mysql_are_those_of_the_url_if_it_gives_any(monkeypatch):
    pymysql = pytest.importorskip("pymysql")
    asked = []

    def connect(**options):
        asked.append(options)
        raise pymysql.err.OperationalError(2003, "Can't connect")

    monkeypatch.setattr(pymysql, "connect", connect)
    with pytest.raises(InputError, match="Can't connect"):
        open_storage("mysql://me@host/db?read_timeout=7", grace=100)
    assert asked[0]["read_timeout"] == 7
    assert asked[0]["write_timeout"] == asked[0]["connect_timeout"] + 15 == 25
    assert "wait_timeout = 25" in asked[0]["init_command"]


def test_urls_without_a_driver_get_the_one_that_the_extra_brings():
    assert check_storage_url("postgresql://me@host/db").drivername == "postgresql+psycopg"
    assert check_storage_url("mysql://me@host/db").drivername == "mysql+pymysql"
    assert check_storage_url("mariadb://me@host/db").drivername == "mysql+pymysql"
    assert check_storage_url("postgresql+psycopg://me@h/db").drivername == "postgresql+psycopg"


@pytest.mark.parametrize("statement", [None, "CREATE TABLE places (name TEXT)"])
def test_looking_for_studies_makes_no_tables_in_a_foreign_file(tmp_path, statement):
    file = tmp_path / "a b.db"
    file.touch()
    if statement:
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.execute(statement)
    before = file.read_bytes()
    with pytest.raises(InputError, match="no studies in"):
        open_storage(f"sqlite:///{file}", must_exist=True)
    assert file.read_bytes() == before


def test_a_storage_object_is_taken_as_it_is():
    storage = optuna.storages.InMemoryStorage()
    assert open_storage(storage) is storage


def test_tables_that_another_process_creates_are_waited_for(url, monkeypatch):
    opened = []

    def racing(*arguments, **options):
        opened.append(1)
        if len(opened) < 3:
            raise OperationalError("", {}, Exception("table studies already exists"))
        return RDBStorage(*arguments, **options)

    monkeypatch.setattr(storage_module, "RDBStorage", racing)
    monkeypatch.setattr(storage_module.time, "sleep", lambda seconds: None)
    assert open_storage(url).get_all_studies() == []
    assert len(opened) == 3


def test_another_error_of_a_database_is_not_tried_again(url, monkeypatch):
    opened = []

    def broken(*arguments, **options):
        opened.append(1)
        raise OperationalError("", {}, Exception("disk I/O error"))

    monkeypatch.setattr(storage_module, "RDBStorage", broken)
    with pytest.raises(InputError, match="cannot be used: disk I/O error"):
        open_storage(url)
    assert len(opened) == 1
