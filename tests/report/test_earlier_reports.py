"""Studies of version 0.1.0 are shown in every format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import optuna
import pytest

from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.loading import load_studies
from vit_ratio_opt.report.figures.gallery import figures_of
from vit_ratio_opt.report.html import html_page
from vit_ratio_opt.report.markdown import markdown_page
from vit_ratio_opt.report.notes import study_note, trial_note
from vit_ratio_opt.report.rows import build_report, group_studies
from vit_ratio_opt.report.sentences import answer_sentences
from vit_ratio_opt.report.trial_rows import trial_rows
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.space.metric import ACCURACY

DATABASE = Path(__file__).parents[1] / "fixtures" / "studies-0.1.0.db"
NAMES = ("budget", "tolerance", "both")


@pytest.fixture
def studies(tmp_path):
    shutil.copy(DATABASE, tmp_path / "studies.db")
    found = load_studies(open_storage(f"sqlite:///{tmp_path / 'studies.db'}"))
    return {study.study_name: study for study in found}


@pytest.mark.parametrize("name", NAMES)
def test_a_study_of_0_1_0_is_shown_in_every_format(studies, name):
    study = studies[name]
    found, sentence = answer_of(study).found, answer_sentences(study)[0]
    assert f"trial {found.trial.number}, " in sentence
    report = build_report([study])
    assert json.loads(json.dumps(report))["rows"][-1]["trial"] == found.trial.number
    assert [row["trial"] for row in trial_rows(study) if row["best"]] == [found.trial.number]
    for text in (html_page([study]), markdown_page([study]), study_note(study)):
        assert ACCURACY.number(found.accuracy, error=found.error) in text
        assert "± 0.00" not in text  # its noise is unknown
    assert all(trial_note(study, trial) for trial in study.trials)
    assert len(figures_of([study])) == 3


def test_all_studies_of_0_1_0_are_on_one_page(studies):
    assert set(studies) == set(NAMES)
    (group,) = group_studies(list(studies.values()))
    page = html_page(group)
    assert all(f"<h2>Study {name}</h2>" in page for name in NAMES)


def test_looking_at_a_study_of_0_1_0_changes_nothing(studies):
    for study in studies.values():
        before = study._storage.get_study_system_attrs(study._study_id), study.user_attrs
        html_page([study])
        after = optuna.load_study(study_name=study.study_name, storage=study._storage)
        assert before == (
            study._storage.get_study_system_attrs(study._study_id), after.user_attrs,
        )  # fmt: skip
