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
