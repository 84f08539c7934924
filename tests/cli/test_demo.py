from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from vit_ratio_opt.cli import demo, main
from vit_ratio_opt.model_files.load import DEMO_MODEL
from vit_ratio_opt.records.loading import load_studies
from vit_ratio_opt.records.trials import finished_trials
from vit_ratio_opt.runs.storage import open_storage


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> Path:
    """The folder of a demo of few trials."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TRIALS", (4, 3))
        patch.setattr(sys, "argv", ["vit-ratio-opt", "demo", "--folder", str(folder)])
        with pytest.raises(SystemExit) as stop:
            main.main()
    assert not stop.value.code
    return folder


def _numbers(folder: Path) -> list[list[object]]:
    studies = load_studies(open_storage(f"sqlite:///{folder / 'study.db'}"), ())
    return [[trial.number for trial in finished_trials(study)] for study in studies]


def test_the_demo_writes_table_report_and_studies(shown):
    found = json.loads((shown / "demo.json").read_text())
    dense, one, two, both, budget_one, budget_two = found["rows"]
    assert dense["macs_ratio"] == 1
    assert both["macs_ratio"] < two["macs_ratio"] < one["macs_ratio"]
    for row in (one, two, both):
        assert row["val_accuracy"] >= dense["val_accuracy"] - demo.POINTS
    for row in (budget_one, budget_two):
        assert row["macs_ratio"] <= demo.SHARE
    assert budget_one["mhsa_ratio"] == budget_one["ffn_ratio"]
    assert budget_two["test_accuracy"] > budget_one["test_accuracy"] + 5
    assert f"{two['macs_ratio'] / one['macs_ratio']:.2f} of the FLOPs" in found["sentence"]
    assert "demo-budget" in (shown / "report.html").read_text()


def test_a_second_demo_repeats_no_trial_and_shows_the_same(shown, command, monkeypatch):
    monkeypatch.setattr(demo, "TRIALS", (4, 3))
    before, numbers = json.loads((shown / "demo.json").read_text()), _numbers(shown)
    ended = command("demo", "--folder", shown)
    assert ended.code == 0, ended.err
    assert before["sentence"] in ended.out
    assert ended.out.count("two ratios") == 3
    assert str(shown / "report.html") in ended.out
    assert json.loads((shown / "demo.json").read_text())["rows"] == before["rows"]
    assert _numbers(shown) == numbers


def test_a_folder_with_the_demo_of_another_seed_is_refused(shown, command):
    before = (shown / "demo.json").read_bytes()
    ended = command("demo", "--folder", shown, "--seed", 1)
    assert ended.code == 2
    assert "seed" in ended.err
    assert (shown / "demo.json").read_bytes() == before


def test_the_dense_model_is_in_the_package():
    assert DEMO_MODEL.is_file()
    assert DEMO_MODEL.stat().st_size < 1_000_000
