import contextlib
import inspect
import sqlite3

import optuna
import plotly.graph_objects as go
import pytest
from optuna.artifacts import Backoff, FileSystemArtifactStore
from optuna.samplers import PartialFixedSampler, RandomSampler
from optuna.storages import InMemoryStorage, RDBStorage, get_storage
from optuna_dashboard import get_note, save_note, save_plotly_graph_object
from processes import import_without_dashboard

from vit_ratio_opt._compat import (
    METRIC_NAMES,
    PLOT_KEY,
    behind_backoff,
    enqueued_params,
    fixed_params,
    is_refused_tell,
    note_keys,
    optimize_logger,
    rdb_of,
    read_note,
    study_names,
    tables,
)
from vit_ratio_opt.runs.database import REPEATABLE
from vit_ratio_opt.runs.database import RDBStorage as OurStorage


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


def test_names_are_listed_where_an_attribute_is_no_json(url):
    storage = get_storage(RDBStorage(url))
    for name in ("b", "a"):
        optuna.create_study(study_name=name, storage=storage).set_user_attr("x", 1)
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
        database.execute("UPDATE study_user_attributes SET value_json = '{' WHERE study_id = 1")
        database.commit()
    with pytest.raises(ValueError, match="Expecting property name"):
        storage.get_all_studies()
    assert study_names(storage) == ["b", "a"]
    assert study_names(InMemoryStorage()) == []


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


def test_what_a_trial_was_enqueued_with_is_known(study):
    study.enqueue_trial({"x": 0.5})
    for _ in range(2):
        study.ask()
    assert [enqueued_params(t.system_attrs) for t in study.trials] == [{"x": 0.5}, {}]


def test_names_of_metrics_are_where_a_creation_looks_for_them(study):
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["accuracy"])
    assert attributes_of(study) == {METRIC_NAMES: ["accuracy"]}


def test_optimize_warns_of_a_failure_by_its_logger(study):
    warned = []
    optimize_logger().addFilter(warned.append)  # which returns None: nothing is shown
    study.optimize(lambda trial: 1 / 0, n_trials=1, catch=(ZeroDivisionError,))
    optimize_logger().removeFilter(warned.append)
    assert {record.levelname for record in warned} == {"WARNING"}


def test_a_trial_that_has_ended_cannot_be_told(study):
    trial = study.ask()
    study.tell(trial, 1.0)
    with pytest.raises(ValueError, match="Cannot tell a") as error:
        study.tell(trial, 2.0)
    assert is_refused_tell(error.value)
    assert not is_refused_tell(ValueError("of an objective"))


def test_optuna_names_its_tables_and_columns_as_before():
    models = tables()
    columns = {
        models.TrialModel: {"trial_id", "number", "study_id", "state", "datetime_start"},
        models.TrialParamModel: {"param_id", "param_name", "param_value", "distribution_json"},
        models.TrialValueModel: {"objective", "value", "value_type"},
        models.TrialIntermediateValueModel: {"step", "intermediate_value"},
        models.TrialUserAttributeModel: {"key", "value_json"},
        models.TrialSystemAttributeModel: {"key", "value_json"},
        models.TrialHeartbeatModel: {"trial_id", "heartbeat"},
    }
    for table, names in columns.items():
        assert names <= set(table.__table__.columns.keys())
    names = {models.TrialModel.__tablename__, models.TrialHeartbeatModel.__tablename__}
    assert names == {"trials", "trial_heartbeats"}


def test_methods_that_our_database_overrides_take_what_optunas_take():
    for name in ("_get_trials", *REPEATABLE):
        ours, theirs = (inspect.signature(getattr(c, name)) for c in (OurStorage, RDBStorage))
        assert list(ours.parameters) == list(theirs.parameters), name


def test_the_client_of_the_proxy_is_made_of_the_same_parts():
    pytest.importorskip("grpc")
    from vit_ratio_opt.runs.grpc_client import GrpcStorageProxy

    proxy = GrpcStorageProxy(host="localhost", port=1, grace=60)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        theirs = optuna.storages.GrpcStorageProxy(host="localhost", port=1)
    assert vars(theirs).keys() <= vars(proxy).keys()
    for name in ("_stub", "_cache", "_channel"):
        assert type(getattr(proxy, name)) is type(getattr(theirs, name))


def test_a_search_imports_nothing_of_the_dashboard(start, tmp_path):
    """A release in which something has another name stops no search."""
    start(import_without_dashboard).join(60)
    assert (tmp_path / "log").read_text() == "imported\n"
