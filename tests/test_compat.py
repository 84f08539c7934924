import subprocess
import sys

import optuna
import plotly.graph_objects as go
import pytest
from optuna.artifacts import Backoff, FileSystemArtifactStore
from optuna.samplers import PartialFixedSampler, RandomSampler
from optuna.storages import InMemoryStorage, RDBStorage, get_storage
from optuna_dashboard import get_note, save_note, save_plotly_graph_object

from vit_ratio_opt._compat import (
    PLOT_KEY,
    behind_backoff,
    fixed_params,
    note_keys,
    rdb_of,
    read_note,
)

WITHOUT_DASHBOARD = """
import sys
sys.modules["optuna_dashboard"] = None
import vit_ratio_opt.cli.main, vit_ratio_opt.report.explainer, vit_ratio_opt.runs.study
print("imported")
"""


@pytest.fixture
def study():
    return optuna.create_study()


def attributes_of(study):
    return study._storage.get_study_system_attrs(study._study_id)


def test_a_study_without_a_note_has_an_empty_one(study):
    assert read_note(attributes_of(study)) == (0, "")


def test_a_note_that_the_dashboard_has_written_in_many_parts_is_read(study):
    text = "".join(map(str, range(10_000)))  # in 20 parts: `2` comes before `10`
    save_note(study, text)
    assert read_note(attributes_of(study)) == (1, text)
    save_note(study, "short")
    assert read_note(attributes_of(study)) == (2, "short")


def test_the_dashboard_finds_a_note_of_a_study_and_of_a_trial(study):
    trial = study.ask()
    for owner, trial_id in ((study, None), (trial, trial._trial_id)):
        version, text = note_keys(trial_id)
        study._storage.set_study_system_attr(study._study_id, version, 1)
        study._storage.set_study_system_attr(study._study_id, f"{text}0", f"of {trial_id}")
        assert get_note(owner) == f"of {trial_id}"


def test_the_dashboard_keeps_its_figures_where_ours_are(study):
    save_plotly_graph_object(study, go.Figure(), graph_object_id="title")
    assert f"{PLOT_KEY}title:0" in attributes_of(study)


def test_a_database_is_found_behind_the_cache():
    database = RDBStorage("sqlite://")
    assert get_storage(database) is not database
    assert rdb_of(get_storage(database)) is database
    assert rdb_of(database) is database
    assert rdb_of(InMemoryStorage()) is None


def test_a_store_is_found_behind_the_one_that_tries_again(tmp_path):
    store = FileSystemArtifactStore(tmp_path)
    assert behind_backoff(Backoff(store)) is store
    assert behind_backoff(store) is store


def test_what_is_fixed_for_a_sampler_is_known():
    inner = RandomSampler()
    assert fixed_params(inner) == {}
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        sampler = PartialFixedSampler({"x": 0.5}, inner)
    assert fixed_params(sampler) == {"x": 0.5}


def test_a_search_imports_nothing_of_the_dashboard():
    """A release in which something has another name stops no search."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DASHBOARD], capture_output=True, text=True
    )
    assert done.stdout == "imported\n", done.stderr
