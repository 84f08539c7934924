from __future__ import annotations

import optuna
from optuna.trial import TrialState

from vit_ratio_opt.report.notes import study_note, trial_note

HOSTILE = '<img src=x onerror="window.owned=1">"\'`|&amp;😀'


def test_the_note_of_a_trial_tells_its_training_and_its_blocks(make_study):
    study = make_study(budget=None)
    kept, over = study.trials[0], study.trials[-1]
    assert over.state == TrialState.PRUNED
    note = trial_note(study, kept)
    for part in (
        f"{100 * kept.user_attrs['macs_ratio']:.2f} % of the FLOPs",
        f"80.00 % dense, {kept.user_attrs['accuracy_pruned']:.2f} % pruned",
        f"{kept.user_attrs['accuracy']:.2f} % after 2 epochs ▁",
        "loss 1.500 → 0.750 █▁",
        "Pruned from the dense model, seed 0.",
        "| 2 | 3 x 4, before 4 x 8 | 8 of 64 |",
    ):
        assert part in note
    assert "Over the limit" not in note
    assert "cannot be the best" in trial_note(study, over)


def test_the_note_of_a_failed_trial_says_why(make_study):
    study = make_study(trials=0)
    attributes = {"failure": f"ValueError: {HOSTILE}"}
    study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=attributes))
    assert "Failed: ``" in trial_note(study, study.trials[0])


def test_a_study_without_a_sampler_of_ours_has_a_note(make_study):
    study = make_study()
    study.sampler = optuna.samplers.RandomSampler()
    assert "the pair that its sampler proposes" in study_note(study)


def test_a_password_is_in_no_note(make_study, tmp_path):
    study = make_study(f"sqlite:///{tmp_path / 'study.db'}")
    study._storage._backend.url = "postgresql://user:geheim@host/db"
    assert "user:***@host" in study_note(study)
    assert "geheim" not in study_note(study)


def test_the_note_of_a_trial_with_a_parent_has_the_epochs_of_both(make_study):
    study = make_study()
    trial = study.trials[1]
    attributes = {**trial.user_attrs, "parent_trial": 0, "total_epochs": 4}
    trial = optuna.trial.create_trial(
        value=trial.value, params=trial.params, distributions=trial.distributions,
        user_attrs=attributes,
    )  # fmt: skip
    assert "Pruned from trial 0, 4 epochs with those before, seed 0." in trial_note(study, trial)
