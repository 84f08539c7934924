"""Accuracy of each class before and after pruning, in records and reports."""

from __future__ import annotations

import logging
from dataclasses import replace

import optuna
import pytest
import torch
from support import make_search

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.per_class import class_accuracies, fallen_sentence
from vit_ratio_opt.records.study import StudyRecord, write_study
from vit_ratio_opt.report.html import html_page
from vit_ratio_opt.report.markdown import markdown_page
from vit_ratio_opt.report.sentences import summary
from vit_ratio_opt.training.evaluate import count_correct, evaluate
from vit_ratio_opt.training.recipe import Recipe

CLASSES = ("cat", "dog", "<b>", "fox")


def counted(study, images, dense, pruned):
    """The study with counts for its answer, and its trial."""
    trial = answer_of(study).found.trial
    write_study(
        study,
        per_class={"trial": trial.number, "images": images, "dense": dense, "pruned": pruned},
    )
    return trial


@pytest.fixture
def study(make_study):
    return make_study(classes=CLASSES)


def test_a_class_that_falls_while_the_mean_stands_is_said(study):
    trial = counted(study, [100, 300, 300, 0], [97, 290, 290, 0], [70, 292, 291, 0])
    first, *others = class_accuracies(study, trial)
    assert (first.name, first.dense, first.pruned, first.has_fallen) == ("cat", 97, 70, True)
    assert first.error == pytest.approx(4.943, abs=0.001)  # of (98, 71) of 102, by hand
    assert [row.name for row in others] == ["<b>", "dog"]  # no image of a fox
    assert not any(row.has_fallen for row in others)
    sentence = fallen_sentence(study, trial)
    assert "falls by 3.4 points on the validation images: cat 97.0 -> 70.0 %, of 3" in sentence
    assert sentence in summary(study)
    page, text = html_page([study]), markdown_page([study])
    assert "Accuracy of each class" in page
    assert "27.0 ± 4.9" in page
    assert "&lt;b&gt;" in page
    assert "<td><b>" not in page
    assert "### Classes of" in text
    assert "27.0 ± 4.9 | fell |" in text


@pytest.mark.parametrize(
    ("dense", "pruned"),
    [
        ([97, 97, 97, 97], [90, 89, 91, 90]),  # all lose the same
        ([97, 97, 97, 97], [85, 97, 97, 97]),  # less than five standard errors
        ([100, 100, 100, 100], [100, 100, 100, 100]),
        ([50, 50, 50, 50], [99, 50, 50, 50]),  # a gain
    ],
)
def test_classes_that_fall_with_the_mean_or_within_the_noise_are_not_said(study, dense, pruned):
    trial = counted(study, [100] * 4, dense, pruned)
    assert len(class_accuracies(study, trial)) == 4
    assert fallen_sentence(study, trial) is None


def test_counts_of_another_trial_or_another_number_of_classes_are_not_shown(study):
    assert class_accuracies(study, answer_of(study).found.trial) == []
    trial = counted(study, [9] * 3, [9] * 3, [0] * 3)
    assert class_accuracies(study, trial) == []
    trial = counted(study, [9] * 4, [9] * 4, [0] * 4)
    other = next(one for one in study.trials if one.number != trial.number)
    assert class_accuracies(study, other) == []


def test_damaged_counts_are_refused(study):
    study.set_user_attr("per_class", {"trial": 0, "images": [1], "dense": "x", "pruned": [1]})
    with pytest.raises(InputError, match="`dense` of the attribute `per_class`"):
        StudyRecord.read(study.study_name, study.user_attrs)


def test_the_test_of_an_answer_counts_the_classes_once(dense, digits, tmp_path, caplog):
    few = {
        name: getattr(digits, name).subset(torch.arange(200)) for name in ("train", "val", "test")
    }
    data = replace(digits, **few)
    search = make_search(
        dense, data, budget=0.6, recipe=Recipe(epochs=0), calibration_images=64,
        checkpoints=tmp_path, screen=False,
    )  # fmt: skip
    study = search.create_study("s", storage=optuna.storages.InMemoryStorage())
    search.run(study, n_trials=1, say=lambda line: None, explain=False)
    search.test(study)
    counts = study.user_attrs["per_class"]
    assert sum(counts["images"]) == 200
    correct = count_correct(search.dense, data, data.val)
    assert counts["dense"] == correct.tolist()
    assert 100 * sum(counts["dense"]) / 200 == evaluate(search.dense, data, data.val)
    trial = study.trials[counts["trial"]]
    assert 100 * sum(counts["pruned"]) / 200 == pytest.approx(trial.user_attrs["accuracy"])
    search.trainer.count_correct = None  # not called again
    search.test(study)


def test_a_fall_is_logged(study, monkeypatch, caplog):
    from vit_ratio_opt.runs import testing

    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    trial = answer_of(study).found.trial

    class Stub(testing.ImageTrainer):
        def __init__(self):
            self.data = type("Data", (), {"task": "single-label", "classes": CLASSES})()
            self.data.val = type("Split", (), {"labels": torch.arange(400) % 4})()
            self.answers = iter([[97] * 4, [40, 97, 97, 97]])

        def count_correct(self, model):
            return next(self.answers)

    objective = type("Objective", (), {"trainer": Stub()})()
    objective.pruner = type("Pruner", (), {"dense": None})()
    objective.journal = type("Journal", (), {"model_of": lambda *arguments: None})()
    testing._compare_classes(study, objective, trial)
    assert "cat 97.0 -> 40.0 %" in caplog.text
