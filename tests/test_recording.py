"""``benchmarks/recording.py``: rows that are replaced, found again, and safe for processes."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture(scope="module")
def recording(benchmarks):
    import recording

    return recording


@pytest.fixture
def results(recording, tmp_path):
    return recording.Results(tmp_path / "new" / "speed.json", ("model", "seed"))


def test_a_row_has_its_provenance_and_is_found_by_its_values(results, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/a/b/speed.py", "--data", "/home/me/cifar10", "--seeds=2"])
    assert results.rows == []
    assert not results.has(model="a")
    results.add({"model": "a", "seed": 0, "ratio": 1.5}, seconds=2.04)
    (row,) = results.rows
    assert (row["model"], row["ratio"], row["seconds"]) == ("a", 1.5, 2.0)
    assert row["command"] == "python benchmarks/speed.py --data cifar10 --seeds=2"
    assert {"date", "commit", "versions", "device"} <= row.keys()
    assert results.has(model="a", seed=0)
    assert not results.has(model="a", seed=1)


def test_a_row_of_the_same_key_is_replaced_and_each_row_is_one_line(results):
    for seed, ratio in ((0, 1.0), (1, 2.0), (0, 3.0)):
        results.add({"model": "a", "seed": seed, "ratio": ratio}, seconds=0)
    assert [(row["seed"], row["ratio"]) for row in results.rows] == [(1, 2.0), (0, 3.0)]
    lines = results.path.read_text().splitlines()
    assert len(lines) == 2 + 2
    assert json.loads(results.path.read_text())["benchmark"] == "speed"


def test_the_device_that_a_row_names_stays(results):
    results.add({"model": "a", "seed": 0, "device": "NVIDIA H200"}, seconds=0)
    assert results.rows[0]["device"] == "NVIDIA H200"


def test_many_writers_lose_no_row(recording, results):
    def add(seed):
        recording.Results(results.path, ("model", "seed")).add(
            {"model": "a", "seed": seed}, seconds=0
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    assert sorted(row["seed"] for row in results.rows) == list(range(24))


def test_a_row_that_is_no_json_leaves_the_file_as_it_was(results):
    results.add({"model": "a", "seed": 0}, seconds=0)
    before = results.path.read_text()
    with pytest.raises(TypeError):
        results.add({"model": "b", "seed": 0, "value": object()}, seconds=0)
    assert results.path.read_text() == before


def test_a_file_of_another_header_is_refused_and_its_own_is_kept(recording, tmp_path):
    path = tmp_path / "surface.json"
    first = recording.Results(path, ("seed",), header={"epochs": 1, "budgets": None})
    first.add({"seed": 0}, seconds=0)
    assert json.loads(path.read_text())["epochs"] == 1
    again = recording.Results(path, ("seed",), header={"epochs": 1, "budgets": None})
    again.add({"seed": 1}, seconds=0)
    assert [row["seed"] for row in again.rows] == [0, 1]
    with pytest.raises(recording.InputError, match="recorded with other epochs: name another"):
        recording.Results(path, ("seed",), header={"epochs": 2, "budgets": None})


@pytest.mark.parametrize("processes", [1, 3])
def test_every_task_is_done_once_by_any_number_of_processes(recording, results, processes):
    def run(seed):
        results.add({"model": "a", "seed": seed}, seconds=0)

    recording.share_work(range(12), run, processes)
    assert sorted(row["seed"] for row in results.rows) == list(range(12))
    recording.share_work([99], run, processes, deadline=0.0)
    assert not results.has(seed=99)


def test_a_process_that_fails_is_said_after_the_others_are_done(recording, results):
    def run(seed):
        if seed == 0:
            raise ValueError
        results.add({"model": "a", "seed": seed}, seconds=0)

    with pytest.raises(SystemExit, match="1 of 2 processes failed"):
        recording.share_work(range(6), run, 2)
    assert sorted(row["seed"] for row in results.rows) == list(range(1, 6))
