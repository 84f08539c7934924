"""Studies of version 0.1.0 (commit ced7cf8): one for each limit and one for both strategies.

Of the dense model of the demo, on the digits, with `Recipe(epochs=1)` and 128 calibration images.
"""

import shutil
from pathlib import Path

import optuna
import pytest

import vit_ratio_opt as vro
from vit_ratio_opt.runs.options import Places

HERE = Path(__file__).parent
DENSE = HERE.parent / "studies" / "results" / "quickstart_dense.safetensors"
LIMITS = {"budget": {"cost": 0.6}, "tolerance": {"drop": 2.0}, "both": {"drop": 2.0}}


@pytest.fixture
def storage(tmp_path):
    shutil.copy(HERE / "fixtures" / "studies-0.1.0.db", tmp_path / "studies.db")
    return f"sqlite:///{tmp_path / 'studies.db'}"


@pytest.mark.parametrize("name", list(LIMITS))
def test_a_study_of_0_1_0_gives_an_answer_within_its_limit(storage, name):
    answer = vro.answer_of(optuna.load_study(study_name=name, storage=storage))
    limit = LIMITS[name]
    assert answer.found.cost_ratio <= limit.get("cost", 1.0)
    assert answer.found.trial.user_attrs["accuracy_drop"] <= limit.get("drop", 100.0)


@pytest.mark.parametrize("name", list(LIMITS))
def test_a_study_of_0_1_0_goes_on(storage, name, tmp_path):
    places = Places(
        checkpoint=DENSE, checkpoints=tmp_path / "models", artifacts=tmp_path / "artifacts"
    )
    search = vro.load_search(name, storage, places, vro.RunOptions(progress=False))
    study = search.create_study(name, storage=storage)
    before = [trial.params for trial in study.trials]
    search.run(study, n_trials=len(before) + 1, explain=False)
    assert len(study.trials) == len(before) + 1
    added = study.trials[-1]
    assert added.state.is_finished()
    assert "failure" not in added.user_attrs
    assert added.params not in before
