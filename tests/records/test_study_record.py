import contextlib
import logging
import sqlite3

import pytest

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.loading import fixed_studies, load_studies
from vit_ratio_opt.records.study import COMPLETE, StudyRecord
from vit_ratio_opt.runs.storage import open_storage

DAMAGES = [
    ("dense", None), ("dense", []), ("dense", {"macs": 1}),
    ("dense", {"macs": 1, "params": "many", "val_accuracy": 80.0}),
    ("settings", None), ("settings", "fixed"), ("settings", {}), ("versions", None),
    ("versions", {"torch": 2}), ("device", None), ("device", {}), ("plan", []),
    ("plan", {"curve": [[0.1]], "noise": 0.1}), ("latency", "slow"), ("tested", {"trial": "best"}),
    ("origin", "here"), ("origin", {"data": 5}), ("screened", [[0.1, 0.2]]), ("path", {"a": 1}),
    ("saved", 5), ("dense_full_test_accuracy", "high"),
]  # fmt: skip


@pytest.fixture
def attributes(make_study):
    return make_study().user_attrs


def test_a_study_is_read(attributes):
    record = StudyRecord.read("s", attributes)
    assert record.settings.strategy == "searched"
    assert record.dense.val_accuracy == 80.0
    assert record.latency is None


@pytest.mark.parametrize(("key", "value"), DAMAGES)
def test_a_damaged_attribute_is_one_sentence_with_its_name(attributes, key, value):
    attributes = {**attributes, COMPLETE: True}
    attributes.pop(key, None)
    if value is not None:
        attributes[key] = value
    with pytest.raises(InputError, match=f"(?i)Study 's' is damaged: .*{key}"):
        StudyRecord.read("s", attributes)


def test_a_study_of_latency_needs_it(attributes):
    attributes["settings"]["cost"] = "latency"
    with pytest.raises(InputError, match="no attribute `latency`"):
        StudyRecord.read("s", attributes)


def test_an_unfinished_creation_is_said(attributes):
    attributes["settings"]["schema_version"] = 2
    with pytest.raises(InputError, match="creation of study 's' was not finished"):
        StudyRecord.read("s", attributes)


def test_a_damaged_study_is_left_out_and_the_others_are_loaded(make_study, url, caplog):
    storage = open_storage(url)
    make_study(storage, "good", trials=1)
    make_study(storage, "bad", trials=1).set_user_attr("dense", 5)
    logging.getLogger("optuna").addHandler(caplog.handler)
    (study,) = load_studies(storage)
    assert study.study_name == "good"
    assert "Study 'bad' is damaged: The attribute `dense`" in caplog.text
    assert "left out" in caplog.text
    with pytest.raises(InputError, match="Study 'bad' is damaged"):
        load_studies(storage, ["good", "bad"])
    study.set_user_attr("device", 5)
    with pytest.raises(InputError, match="is damaged"):
        load_studies(storage)


def test_a_study_with_an_attribute_that_is_no_json_hides_no_other_one(make_study, url, caplog):
    storage = open_storage(url)
    make_study(storage, "good", trials=1)
    broken = make_study(storage, "broken", trials=1)
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
        database.execute(
            "UPDATE study_user_attributes SET value_json = '{' WHERE study_id = ?",
            [broken._study_id],
        )
        database.commit()
    logging.getLogger("optuna").addHandler(caplog.handler)
    (study,) = load_studies(storage)
    assert study.study_name == "good"
    assert "Study 'broken' is damaged: an attribute is no JSON" in caplog.text
    with pytest.raises(InputError, match="Study 'broken' is damaged: an attribute is no JSON"):
        load_studies(storage, ["broken"])
    fixed = make_study(storage, "fixed", fixed=True, trials=1)
    assert [study.study_name for study in fixed_studies(storage)] == [fixed.study_name]
