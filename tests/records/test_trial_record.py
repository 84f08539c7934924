from dataclasses import asdict, fields

import optuna
import pytest

from vit_ratio_opt.records.trial import (
    DAMAGED,
    TrialRecord,
    attribute,
    shown_attribute,
    write_trial,
)

VALUES = {
    "macs_ratio": 0.5, "macs": 100, "cost_ratio": 0.4, "planned_cost_ratio": 0.45, "params": 7,
    "accuracy_pruned": 70.0, "accuracy": 79.0, "accuracy_drop": 1.0, "parent_trial": "dense",
    "epochs": 2, "total_epochs": 4, "seconds": 1.5, "seed": 0, "device": "cpu",
    "checkpoint": "trial-0000", "weights": "abc", "worker": "host 1", "failure": "ValueError: x",
    "chosen": {"lr": 3e-4},
    "blocks": ((4, 4, 32), (4, 2, 16)), "tokens": ((17, 17, 9),), "losses": (1.5, 0.75),
    "reports": {"1": 78.5},
    "timing": {"train": 1.0}, "resumed_from": {"trial": 0, "epoch": 1},
    "training_state": {"artifact": "x", "epoch": 1}, "state_not_kept": "OSError: full",
}  # fmt: skip


def test_every_field_comes_back_from_a_database(url):
    study = optuna.create_study(storage=url)
    write_trial(study.ask(), **VALUES)
    assert asdict(TrialRecord.read(study.trials[0])) == VALUES
    assert VALUES.keys() == {field.name for field in fields(TrialRecord)}


def test_fields_of_another_type_are_missing_and_shown_as_damaged():
    study = optuna.create_study()
    trial = study.ask()
    for name in VALUES:
        trial.set_user_attr(name, [{}])
    assert TrialRecord.read(study.trials[0]) == TrialRecord()
    assert {shown_attribute(study.trials[0], name) for name in VALUES} == {DAMAGED}


def test_a_field_that_there_is_not_can_neither_be_written_nor_read():
    study = optuna.create_study()
    with pytest.raises(TypeError, match="flops"):
        write_trial(study.ask(), flops=1)
    with pytest.raises(KeyError, match="flops"):
        attribute(study.trials[0], "flops")
    assert not study.trials[0].user_attrs


def test_a_parent_is_a_number_or_dense():
    study = optuna.create_study()
    for value, read in ((3, 3), ("dense", "dense"), ("other", None), (1.5, None)):
        trial = study.ask()
        write_trial(trial, parent_trial=value)
        assert TrialRecord.read(study.trials[trial.number]).parent_trial == read
