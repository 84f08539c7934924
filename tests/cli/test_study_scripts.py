"""The scripts in ``studies/``: short, on the public package only, and they run and resume."""

from __future__ import annotations

import sys
from pathlib import Path

import optuna
import pytest

STUDIES = Path(__file__).parents[2] / "studies"
SCRIPTS = sorted(STUDIES.glob("*.py"))
sys.path.insert(0, str(STUDIES))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_short_and_imports_the_package_alone(script):
    lines = script.read_text().splitlines()
    assert len(lines) <= 90
    ours = [line for line in lines if "import" in line and "vit_ratio_opt" in line]
    assert ours == ["import vit_ratio_opt as vro"]


def test_quickstart_searches_and_resumes(tmp_path, capsys):
    import quickstart

    for n_trials in (1, 2):
        quickstart.main(tmp_path, n_trials=n_trials, epochs=1)
    said = capsys.readouterr().out
    assert "resuming 'quickstart': 1 of 2 trials are done" in said
    assert "% of the FLOPs" in said
    assert "% on the test images" in said


def test_cifar10_searches_a_folder_of_images(tmp_path, files, capsys):
    import cifar10

    cifar10.main(files / "photos", files / "dense.safetensors", tmp_path, n_trials=1)
    assert "% on the other half of the test images" in capsys.readouterr().out


def test_an_encoder_is_pruned_inside_of_a_segmentation_model(tmp_path, capsys):
    import segment_digits

    segment_digits.main(tmp_path, n_trials=2, count=64)
    assert "% mIoU" in capsys.readouterr().out
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.load_study(study_name="segment", storage=url)
    assert len(study.trials) == 2
    assert all(trial.user_attrs["macs_ratio"] <= 0.4 for trial in study.trials)
    assert all(0 < trial.value <= 100 for trial in study.trials)


def test_a_loop_of_ones_own_adds_trials_and_its_report_is_there(tmp_path, capsys, command):
    import own_loop

    for n_trials in (1, 2):
        own_loop.main(tmp_path, n_trials=n_trials, epochs=1)
    assert "'lr': " in capsys.readouterr().out
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.load_study(study_name="own_loop", storage=url)
    assert len(study.trials) == 3
    assert all(trial.user_attrs["macs_ratio"] <= 0.3 for trial in study.trials)
    ended = command("report", "--storage", url, "--html", tmp_path / "page.html")
    assert ended.code == 0, ended.err
    assert "own_loop" in (tmp_path / "page.html").read_text()
