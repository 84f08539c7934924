"""A worker that joins a study: it knows no more than the storage, and where its files are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

import vit_ratio_opt as vro
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.runs import journal
from vit_ratio_opt.runs.storage import BEATS_IN_GRACE

MODEL = "vit_tiny_patch16_224"
ARGUMENTS = {
    "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 4,
    "mlp_ratio": 2.0, "num_classes": 10,
}  # fmt: skip


@pytest.fixture
def dense_file(tmp_path) -> Path:
    path = tmp_path / "dense.safetensors"
    torch.manual_seed(0)
    vro.save_dense(vro.create_model(MODEL, **ARGUMENTS), path, name=MODEL, arguments=ARGUMENTS)
    return path


@pytest.fixture
def study(dense_file, digits, tmp_path, url):
    """A study without trials, whose creator is gone."""
    search = vro.Search(
        vro.load_dense(dense_file),
        digits,
        vro.Budget(0.6),
        training=vro.Recipe(epochs=1, batch_size=256),
        options=vro.SearchOptions(screen=False, calibration=vro.CalibrationOptions(images=64)),
        run=vro.RunOptions(checkpoints=tmp_path / "models", progress=False),
    )
    return search.create_study("s", storage=url)


def work(url: str, **options) -> list[str]:
    said: list[str] = []
    vro.run_worker(vro.WorkerOptions(study_name="s", storage=url, **options), say=said.append)
    return said


def test_a_worker_trains_what_the_study_is_to_have(study, url, tmp_path):
    seen: list[int] = []
    said = work(url, n_trials=2, callbacks=[lambda study, trial: seen.append(trial.number)])
    assert seen == [0, 1]
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 2
    assert any(line.startswith("The answer is trial ") for line in said)
    kept = {trial.user_attrs["checkpoint"] for trial in study.trials}
    assert {path.name for path in (tmp_path / "models").glob("*.safetensors")} == kept
    said = work(url, n_trials=2)  # as a second worker
    assert seen == [0, 1]
    assert any("2 of 2 trials are done" in line for line in said)
    assert len(study.trials) == 2


def test_a_worker_is_told_where_files_are_on_its_machine(study, url, dense_file, tmp_path):
    moved = dense_file.rename(tmp_path / "moved.safetensors")
    with pytest.raises(InputError, match="no checkpoint"):
        work(url, n_trials=1)
    places = vro.Places(checkpoint=moved, checkpoints=tmp_path / "own")
    work(url, n_trials=1, places=places)
    (trial,) = study.trials
    assert (tmp_path / "own" / trial.user_attrs["checkpoint"]).exists()


def test_a_worker_gives_signs_of_life_as_often_as_its_grace_asks(study, url, monkeypatch):
    beats, record = [], journal.record_heartbeats

    def recorded(*arguments, every):
        beats.append(every)
        return record(*arguments, every=every)

    monkeypatch.setattr(journal, "record_heartbeats", recorded)
    work(url, n_trials=1, grace=60)
    assert beats == [60 / BEATS_IN_GRACE]


def test_a_worker_of_no_study_says_so(url, study):
    with pytest.raises(InputError, match="no study 'other'"):
        vro.run_worker(vro.WorkerOptions(study_name="other", storage=url))
    with pytest.raises(InputError, match=r"nowhere\.db"):
        vro.run_worker(vro.WorkerOptions(study_name="s", storage="sqlite:///nowhere.db"))
    assert not Path("nowhere.db").exists()
