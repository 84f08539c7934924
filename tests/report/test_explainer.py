from __future__ import annotations

import optuna
from optuna_dashboard import get_note, save_note
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from optuna_dashboard._note import get_note_from_system_attrs

from vit_ratio_opt.report import explainer
from vit_ratio_opt.report.explainer import Explainer
from vit_ratio_opt.report.notes import trial_note


def note_of(study, trial):
    attributes = study._storage.get_study_system_attrs(study._study_id)
    return get_note_from_system_attrs(attributes, trial._trial_id)["body"]


def test_after_each_trial_note_and_figures_are_there(make_study):
    study = make_study(trials=3)
    make_study(study._storage, "one", fixed=True)
    explain = Explainer(n_trials=8)
    explain(study, study.trials[0])
    note = get_note(study)
    assert "3 of 8 trials are trained, 0 running, 0 failed" in note
    assert "one fixed ratio of" in note
    assert "MHSA ratio" in note.split("**Next**")[1]
    assert "vit-ratio-opt worker" in note
    figures = get_plotly_graph_objects(study._storage.get_study_system_attrs(study._study_id))
    assert set(figures) == {
        "accuracy-against-flops", "path-of-the-search", "blocks-of-the-best-model",
    }  # fmt: skip
    assert note_of(study, study.trials[0]) == trial_note(study, study.trials[0])


def test_notes_and_figures_are_written_in_one_piece(make_study):
    """Two workers that write at the same time would mix the pieces of two figures."""
    study = make_study(budget=None, trials=400)
    Explainer()(study, study.trials[0])
    attributes = study._storage.get_study_system_attrs(study._study_id)
    texts = [key for key in attributes if "plot_data" in key or "note_str" in key]
    assert len(texts) == 3 + 1 + 1
    assert all(key.endswith(":0") for key in texts)


def test_a_long_text_comes_back_from_its_parts_and_so_does_a_shorter_one(make_study):
    study = make_study()
    for text in ("0123456789" * 9_000, "short", ""):
        known = study._storage.get_study_system_attrs(study._study_id)
        explainer.write_text(study, "dashboard:plot_data:x:", text, known)
        attributes = study._storage.get_study_system_attrs(study._study_id)
        assert get_plotly_graph_objects(attributes) == {"x": text}


def test_what_has_not_changed_is_not_written_again(make_study, monkeypatch):
    study = make_study(trials=3)
    Explainer(n_trials=8).refresh(study)
    written, write = [], study._storage.set_study_system_attr
    monkeypatch.setattr(
        study._storage,
        "set_study_system_attr",
        lambda number, key, value: written.append(key) or write(number, key, value),
    )
    Explainer(n_trials=8).refresh(study)
    assert not written
    study.add_trial(study.trials[0])
    Explainer(n_trials=8).refresh(study)
    assert any("plot_data" in key for key in written)
    assert any("note" in key for key in written)


def test_what_people_write_into_the_note_is_kept(make_study):
    study = make_study()
    save_note(study, "mine")
    explain = Explainer(n_trials=8)
    explain.refresh(study)
    first = get_note(study)
    assert first.endswith("is kept.*\n\nmine\n")
    explain.refresh(study)
    assert get_note(study) == first
    save_note(study, first + "more" * 600)
    study.add_trial(study.trials[0])
    explain.refresh(study)
    assert get_note(study).endswith("mine\n" + "more" * 600 + "\n")
    assert "7 of 8 trials" in get_note(study)
    assert get_note(study).count("is kept") == 1


def test_what_grows_is_made_again_only_after_two_hundred_times_its_time(make_study, monkeypatch):
    now = [1_000.0]
    made = []

    def slow_note(*arguments, **options):
        made.append(now[0])
        now[0] += 2.0
        return "note"

    monkeypatch.setattr(explainer, "study_note", slow_note)
    study = make_study(trials=2)
    explain = Explainer(clock=lambda: now[0])
    for _ in range(60):
        explain(study, study.trials[0])
        now[0] += 10.0
    assert made == [1_000.0, 1_402.0]


def test_what_goes_wrong_does_not_disturb_the_search(make_study, monkeypatch, caplog):
    study = make_study()
    optuna.logging.enable_propagation()

    def fail(*arguments, **options):
        raise ValueError("of this kind")

    monkeypatch.setattr(explainer, "study_note", fail)
    monkeypatch.setattr(explainer, "trial_note", fail)
    Explainer()(study, study.trials[0])
    optuna.logging.disable_propagation()
    assert "were not written: of this kind" in caplog.text
