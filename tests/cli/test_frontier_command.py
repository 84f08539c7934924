"""Searching a frontier from the command line, and taking a model from it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import optuna
import pytest

from vit_ratio_opt.cli import main as cli
from vit_ratio_opt.model_files.load import load_pruned
from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.runs import search_task


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory) -> Path:
    """A folder with ``study.db`` and ``rows.toml``: the frontier and that of the fixed ratio."""
    folder = tmp_path_factory.mktemp("frontier")
    arguments = [
        "search", "--data", files / "photos", "--checkpoint", files / "dense.safetensors",
        "--folder", folder, "--output", folder / "rows.json",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPTUNA_STORAGE", raising=False)
        patch.setattr(search_task, "likely_path", lambda *arguments: ())
        for own in (["--frontier", "0.8,0.5", "--fixed-ratio"], ["--frontier", 4]):
            given = [*arguments, *own, "--n-trials", 2]
            patch.setattr(sys, "argv", ["vit-ratio-opt", *map(str, given)])
            with pytest.raises(SystemExit) as stop:
                cli.main()
            assert stop.value.code == 0
    return folder


@pytest.fixture
def frontier(folder, command):
    study = ("--storage", f"sqlite:///{folder / 'study.db'}", "--study-name", "photos-frontier4")
    return lambda *arguments: command("frontier", *study, *arguments)


@pytest.fixture
def answer(folder):
    url = f"sqlite:///{folder / 'study.db'}"
    return answer_of(optuna.load_study(study_name="photos-frontier4", storage=url))


def test_a_frontier_is_searched_and_repeated_from_its_options(folder, command, tmp_path):
    url = f"sqlite:///{folder / 'study.db'}"
    names = ["photos-frontier0.8-0.5-fixed", "photos-frontier4"]
    assert sorted(optuna.get_all_study_names(url)) == names
    fixed = optuna.load_study(study_name=names[0], storage=url)
    assert [len(set(trial.params.values())) for trial in fixed.trials] == [1, 1]
    (written,) = {
        line for line in (folder / "rows.toml").read_text().splitlines() if "frontier =" in line
    }
    assert written == 'frontier = "4"'
    again = command("search", "--config", folder / "rows.toml")
    assert again.code == 0, again.err
    assert "the frontier of accuracy and FLOPs" in again.out
    assert "2 of 2 trials are done, none repeated" in again.out
    reported = ["report", "--storage", url, "--study-name", names[1]]
    assert command(*reported, "--toml", tmp_path / "x.toml").code == 0
    assert (tmp_path / "x.toml").read_text() == (folder / "rows.toml").read_text()
    worker = command("worker", "--storage", url, "--study-name", names[1], "--n-trials", 2)
    assert worker.code == 0, worker.err


def test_the_pairs_are_listed_with_the_knee(frontier, answer):
    ended = frontier()
    assert ended.code == 0, ended.err
    rows = [line.split() for line in ended.out.splitlines() if line.strip()[:2] == "0."]
    assert [row[0] for row in rows] == [f"{one.cost_ratio:.4f}" for one in answer.front]
    (knee,) = (row for row in rows if row[-1] == "knee")
    assert knee[0] == f"{answer.found.cost_ratio:.4f}"


def test_a_model_of_the_frontier_is_written_with_its_card(frontier, answer, tmp_path):
    path = tmp_path / "model.safetensors"
    least = answer.front[0]
    ended = frontier("--at", least.cost_ratio + 0.001, "--output", path)
    assert ended.code == 0, ended.err
    model, manifest = load_pruned(path)
    assert manifest["lineage"]["trial"] == least.trial.number
    assert manifest["val_accuracy"] == pytest.approx(least.trial.user_attrs["accuracy"])
    assert manifest["macs"] == least.trial.user_attrs["macs"]
    assert len(model.blocks) == 2
    card = path.with_suffix(".md").read_text()
    assert "which searched the frontier of accuracy and FLOPs" in card
    assert "Its weights are those at the end of the trial." in card


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--at", 0.5, "--at-tolerance", 1], "Give --at or --at-tolerance, only one of them."),
        (["--at", 7], "The budget must be in (0, 1]"),
        (["--at", 0.01], "No trained pair of the frontier costs at most 0.01"),
        (["--at-tolerance", "nan"], "The tolerance must be above 0"),
        (["--at-tolerance", 200], "below 100 points"),
        (["--at-tolerance", 0.001, "--output", "m.safetensors"], "The answer is the dense model"),
        (["--confidence", 0.9], "--confidence 0.9 is for an --at-tolerance"),
        (["--output", "model.pt"], "A model goes into a .safetensors file"),
        (["--study-name", "missing"], "missing"),
    ],
)
def test_a_mistake_is_one_sentence(frontier, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    ended = frontier(*arguments)
    assert ended.code == 2
    assert sentence in ended.err
    assert ended.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_here_is_missed_in_one_sentence(
    folder, frontier, answer, tmp_path, monkeypatch
):
    moved = tmp_path / "checkpoints"
    shutil.copytree(folder / "checkpoints" / "photos-frontier4", moved)
    (moved / answer.found.trial.user_attrs["checkpoint"]).unlink()
    (tmp_path / "store").mkdir()
    places = ("--checkpoints", moved, "--artifacts", tmp_path / "store")
    ended = frontier(*places, "--output", tmp_path / "m.safetensors")
    assert ended.code == 2
    assert answer.found.trial.user_attrs["checkpoint"] in ended.err
    assert ended.err.count("\n") == 1


def test_another_study_has_no_frontier(searched, command):
    url = f"sqlite:///{searched / 'study.db'}"
    ended = command("frontier", "--storage", url, "--study-name", "photos")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "Study 'photos' searches no frontier: `report` shows its answer." in ended.err
