from __future__ import annotations

import optuna
import pytest

from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.loading import baseline_of
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.report.sentences import answer_sentences, summary
from vit_ratio_opt.space.metric import ACCURACY


@pytest.mark.parametrize("budget", [0.5, None])
def test_the_summary_has_the_figures_of_the_answer_and_what_it_saves(make_study, budget):
    study, fixed = make_study(budget=budget), make_study(name="one", budget=budget, fixed=True)
    looked_for, found, saved, *_ = summary(study, [study, fixed])
    answer = answer_of(study).found
    best = answer.trial
    assert record_of(study).limit_text in looked_for
    assert "80.00 %" in looked_for
    assert found.startswith(f"The answer is trial {best.number}, MHSA ratio ")
    shown = ACCURACY.text(answer.accuracy, error=answer.error)
    assert f"{shown} validation accuracy is expected" in found
    assert f"{100 * best.user_attrs['macs_ratio']:.1f} % of the FLOPs" in found
    assert "study one" in saved
    assert "1.000 times the FLOPs" in saved


def test_without_a_baseline_the_summary_says_so(make_study):
    study = make_study()
    others = [make_study(name="a", fixed=True, weights="other"), make_study(name="b")]
    others += [make_study(name="c", fixed=True, budget=None)]
    assert baseline_of(study, others) is None
    assert "no study of one fixed ratio" in summary(study, others)[2]


def test_nothing_within_the_limit_is_said_in_two_sentences(make_study):
    study = make_study(trials=0)
    assert len(summary(study)) == 2
    assert summary(study)[1] == "There is no answer yet: no trial was trained."


@pytest.mark.parametrize("lost", [5.0, 0.05])
def test_a_training_that_made_the_answer_worse_is_said(make_study, lost):
    before = make_study(planned=True)
    study = optuna.create_study(study_name="s", direction="maximize")
    for key, value in before.user_attrs.items():
        study.set_user_attr(key, value)
    for trial in before.trials:
        trial.user_attrs["accuracy_pruned"] = trial.user_attrs["accuracy"] + lost
        study.add_trial(trial)
    answer = answer_of(study)
    assert 0.05 < answer.error < 5
    own = answer.found.trial.user_attrs["accuracy"]
    sentence = (
        f"The training of trial {answer.found.trial.number} lowered its validation accuracy from "
        f"{own + lost:.2f} to {own:.2f} %: try a lower learning rate or fewer epochs."
    )
    is_said = lost > answer.error
    assert (sentence in summary(study)) == is_said
    assert (sentence in answer_sentences(study)) == is_said
    assert (sentence in str(answer)) == is_said
