from __future__ import annotations

import optuna

from vit_ratio_opt.records.loading import baseline_of
from vit_ratio_opt.records.study import StudyRecord, record_of
from vit_ratio_opt.records.trials import cost_word


def test_a_fixed_ratio_of_another_cost_is_no_baseline(make_study):
    storage = optuna.storages.InMemoryStorage()
    searched = make_study(storage, "searched", cost="params")
    of_macs = make_study(storage, "f", fixed=True)
    of_params = make_study(storage, "p", fixed=True, cost="params")
    assert baseline_of(searched, [of_macs]) is None
    assert baseline_of(searched, [of_macs, of_params]) is of_params


def test_a_study_of_a_foreign_cost_is_read(make_study):
    study = make_study(cost="energy")
    assert StudyRecord.read("s", study.user_attrs).settings.cost == "energy"
    assert cost_word(study) == "energy"
    assert record_of(study).limit_text == "at most 50 % of the energy"


def test_the_words_of_a_foreign_cost_come_from_the_attribute(make_study):
    study = make_study(cost="int8")
    study.set_user_attr("cost", {"name": "int8", "word": "bytes", "constraint": "weight_bytes"})
    record = StudyRecord.read("s", study.user_attrs)
    assert (record.cost.name, record.cost.constraint) == ("int8", "weight_bytes")
    assert cost_word(study) == "bytes"
    assert record_of(study).limit_text == "at most 50 % of the bytes"
