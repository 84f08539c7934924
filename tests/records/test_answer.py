"""The answer of a study: its rules, and that every place shows the same one."""

from __future__ import annotations

import json

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console
from typer.testing import CliRunner

from vit_ratio_opt.cli import main as cli
from vit_ratio_opt.composer import Search
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense, load_pruned
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.pruning.options import CalibrationOptions
from vit_ratio_opt.records.answer import answer_of, answer_trial, trained_trial
from vit_ratio_opt.records.candidates import candidate_of
from vit_ratio_opt.records.labels import format_below
from vit_ratio_opt.records.study import StudyRecord
from vit_ratio_opt.report.figures.accuracy import accuracy_figure
from vit_ratio_opt.report.figures.path import path_figure
from vit_ratio_opt.report.figures.widths import widths_figure
from vit_ratio_opt.report.html import html_page
from vit_ratio_opt.report.markdown import markdown_page
from vit_ratio_opt.report.notes import study_note
from vit_ratio_opt.report.rows import build_report
from vit_ratio_opt.report.sentences import answer_sentences, summary
from vit_ratio_opt.report.terminal import results_table
from vit_ratio_opt.report.trial_rows import trial_rows
from vit_ratio_opt.runs.final import card_path
from vit_ratio_opt.runs.options import RunOptions, SearchOptions
from vit_ratio_opt.search.limits import Budget, Tolerance
from vit_ratio_opt.training.recipe import Recipe

# Of the first trial, the fixed ratio, and of the five pairs of the curve after it.
FIXED_IS_BEST = (79.0, 75.0, 76.0, 77.0, 76.0, 74.0)
ANOTHER_IS_BEST = (76.0, 74.0, 75.0, 79.5, 75.0, 74.0)


def printed(table, width=80):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def places(study):
    """Everything that shows a study without its model, as text."""
    return {
        "terminal": " ".join(answer_sentences(study)),
        "report": " ".join(summary(study)),
        "note": study_note(study),
        "page": html_page([study]),
        "markdown": markdown_page([study]),
    }


def rows_of(study):
    return {row["name"]: row for row in build_report([study])["rows"]}


def train_again(study, trial, accuracy):
    """Another training of a trial's pair."""
    changes = {"value": accuracy, "constraints": trial.constraints}
    if study.user_attrs["settings"]["tolerance"] is not None:
        over = 78.0 - accuracy
        changes = {"value": trial.user_attrs["macs_ratio"], "constraints": {"accuracy_drop": over}}
        if over > 0:
            changes |= {"state": TrialState.PRUNED, "value": None}
    study.add_trial(
        optuna.trial.create_trial(
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={**trial.user_attrs, "accuracy": accuracy, "accuracy_drop": 80 - accuracy},
            **changes,
        )
    )


# The rules


def test_the_fixed_ratio_is_the_answer_where_no_pair_is_better(make_study):
    study = make_study(planned=True, accuracies=FIXED_IS_BEST)
    answer = answer_of(study)
    assert answer.is_baseline
    assert answer.found.trial.number == 0
    assert answer.likeliest_other.probability <= 0.5
    for place, text in places(study).items():
        assert "is trial 0, the fixed ratio 0." in text, place
        assert "no other pair is better with a probability above one half" in text, place
    rows = rows_of(study)
    assert list(rows) == ["dense", "fixed", "searched"]
    assert rows["searched"]["val_accuracy"] == rows["fixed"]["val_accuracy"]
    assert rows["searched"]["probability"] is None


def test_the_answer_is_never_below_the_fixed_ratio(make_study):
    for accuracies in (FIXED_IS_BEST, ANOTHER_IS_BEST, (78.0,) * 6):
        rows = rows_of(make_study(planned=True, accuracies=accuracies))
        assert rows["searched"]["val_accuracy"] >= rows["fixed"]["val_accuracy"]


def test_a_better_pair_is_the_answer_with_its_probability(make_study):
    study = make_study(planned=True, accuracies=ANOTHER_IS_BEST)
    answer, rows = answer_of(study), rows_of(study)
    assert not answer.is_baseline
    assert answer.found.pair == study.sampler.answer(study)
    assert answer.found.probability > 0.5
    row, fixed = rows["searched"], rows["fixed"]
    assert row["trial"] == answer.found.trial.number
    assert row["val_accuracy"] == answer.found.accuracy
    assert row["val_error"] == answer.found.error > 0
    assert row["own_accuracy"] == answer.found.trial.user_attrs["accuracy"]
    assert row["probability"] == answer.found.probability
    assert (fixed["trial"], fixed["trials"], fixed["seconds"]) == (0, 1, 1.5)
    assert (row["trials"], row["seconds"]) == (6, 9.0)
    gain = row["val_accuracy"] - fixed["val_accuracy"]
    assert f"that is {gain:+.2f} points" in " ".join(summary(study))
    assert f"a probability of {row['probability']:.2f}" in " ".join(summary(study))


def test_the_first_trial_alone_is_the_answer_and_is_not_confirmed(make_study):
    study = make_study(planned=True, trials=1)
    assert answer_of(study).is_baseline
    assert not answer_of(study).is_confirmed
    (sentence,) = answer_sentences(study)
    assert "no other pair was trained yet" in sentence
    assert "trained once" in sentence
    assert "it is not confirmed" in sentence


def test_an_answer_that_was_trained_again_shows_all_its_values(make_study):
    study = make_study(planned=True, accuracies=ANOTHER_IS_BEST)
    first = answer_trial(study)
    study.add_trial(first)
    answer = answer_of(study)
    assert answer.is_confirmed
    assert answer.found.trial.number == first.number
    assert "trained 2 times, with 79.50 and 79.50 %" in answer_sentences(study)[0]
    assert rows_of(study)["searched"]["trained"] == 2


def test_a_study_of_the_same_fixed_ratio_is_not_listed_twice(make_study):
    storage = optuna.storages.InMemoryStorage()
    study = make_study(storage, planned=True)
    same = make_study(storage, "same", planned=True, fixed=True, trials=1)
    other = make_study(storage, "other", planned=True, fixed=True, trials=1, seed=1)
    rows = build_report([same, other, study])["rows"]
    assert [(row["name"], row["study"]) for row in rows] == [
        ("dense", None), ("fixed", "other"), ("fixed", "searched"), ("searched", "searched"),
    ]  # fmt: skip
    assert [row["study"] for row in build_report([same])["rows"]] == [None, "same"]


def test_with_a_tolerance_the_answer_keeps_it_with_the_confidence(make_study):
    study = make_study(budget=None, planned=True, accuracies=(79.9, 79.8, 79.7, 77.9, 76.0, 70.0))
    answer = answer_of(study)
    assert answer.found.pair == study.sampler.answer(study)
    assert answer.found.probability >= answer.confidence == 0.8
    for place, text in places(study).items():
        assert f"is trial {answer.found.trial.number}, " in text, place
        assert "keeps the tolerance with a probability of 0.8 or more" in text, place
    assert rows_of(study)["searched"]["probability"] == answer.found.probability


def test_where_no_pair_keeps_the_tolerance_the_answer_is_the_dense_model(make_study):
    study = make_study(budget=None, planned=True, accuracies=(78.01, 77.0, 76.0, 75.0, 74.0, 70.0))
    for accuracy in (77.5, 77.4):  # the first training was lucky
        train_again(study, study.trials[0], accuracy)
    answer = answer_of(study)
    assert answer.found is None
    assert study.best_trial.number == 0
    assert answer.accuracy == 80.0
    assert study.sampler.answer(study) is None
    for place, text in places(study).items():
        assert "The answer is the dense model" in text, place
        assert "no pair keeps the tolerance with a probability of 0.8 yet" in text, place
        assert "Optuna's best trial, 0, is cheaper" in text.replace("&#39;", "'"), place
    row = rows_of(study)["searched"]
    assert row["trial"] is None
    assert (row["trained"], row["macs_ratio"], row["val_accuracy"]) == (0, 1.0, 80.0)
    assert "searched  dense" in printed(results_table(build_report([study])))
    assert not any(row["best"] for row in trial_rows(study))
    stars = [t for t in accuracy_figure([study]).data if t.marker.symbol == "star"]
    assert [(list(t.x), list(t.y)) for t in stars] == [([1.0], [80.0])]
    assert path_figure(study).to_json()
    assert not widths_figure([study]).data
    with pytest.raises(InputError, match=r"is the dense model: no pair keeps .* of 0\.8 yet"):
        trained_trial(study)
    assert trained_trial(study, 1).number == 1


def test_a_study_without_trials_has_no_answer(make_study):
    study = make_study(planned=True, trials=0)
    assert answer_of(study) is None
    assert answer_sentences(study) == ["There is no answer yet: no trial was trained."]
    with pytest.raises(InputError, match="has no answer yet"):
        trained_trial(study)


@pytest.mark.parametrize("budget", [0.5, None])
def test_it_is_said_why_the_best_trial_of_optuna_is_another_one(make_study, budget):
    if budget is None:  # one trial kept the tolerance by luck, and is cheaper
        accuracies = (79.9, 79.8, 79.7, 76.5, 78.05, 70.0)
    else:  # a second training of the fixed ratio's neighbour had luck
        accuracies = (79.0, 75.0, 76.0, 79.02, 76.0, 74.0)
    study = make_study(budget=budget, planned=True, accuracies=accuracies)
    answer = answer_of(study)
    if budget is not None:
        for accuracy in (78.0, 78.1):  # trained again, the lucky pair is not the best
            train_again(study, study.trials[3], accuracy)
        answer = answer_of(study)
    best = study.best_trial
    assert answer.found.trial.number != best.number
    why = answer.why_not_best
    assert why.startswith(f"Optuna's best trial, {best.number}, ")
    assert why.count(". ") == 0
    words = "single value" if budget is not None else "keeps the tolerance with a probability of"
    assert words in why
    for place, text in places(study).items():
        assert f"best trial, {best.number}, " in text, place


def test_another_training_of_the_same_pair_is_no_other_answer(make_study):
    study = make_study(planned=True, accuracies=ANOTHER_IS_BEST)
    first = answer_trial(study)
    train_again(study, first, 79.9)
    assert answer_trial(study).number == first.number != study.best_trial.number
    assert "another training of the same pair" in answer_of(study).why_not_best


def test_a_number_below_the_confidence_is_not_rounded_to_it(make_study):
    assert format_below(0.7996, 0.8) == "0.7996"
    assert format_below(0.74, 0.8) == "0.74"


# Other studies


@pytest.mark.parametrize("budget", [0.5, None])
def test_a_study_of_version_0_1_0_still_has_an_answer(make_study, budget):
    study = make_study(budget=budget)
    assert answer_of(study).baseline is None
    assert not answer_of(study).has_baseline
    assert [row["name"] for row in build_report([study])["rows"]] == ["dense", "searched"]
    for text in places(study).values():
        assert f"is trial {answer_trial(study).number}, " in text
    bare = optuna.create_study(direction=study.direction)
    for key, value in study.user_attrs.items():
        if key not in ("plan", "saved"):
            bare.set_user_attr(key, value)
    bare.add_trials(study.trials)
    assert answer_of(bare) is not None
    assert accuracy_figure([bare]).to_json()
    assert path_figure(bare).to_json()
    assert html_page([bare])


@pytest.mark.parametrize("budget", [0.5, None])
def test_a_study_that_somebody_else_made_has_an_answer(make_study, budget):
    study = make_study(budget=budget)
    foreign = optuna.create_study(direction=study.direction)
    foreign.add_trials(study.trials)
    answer = answer_of(foreign)
    assert answer.found.trial.number in {trial.number for trial in study.trials}
    assert answer.dense_accuracy == pytest.approx(80.0)


def test_the_pair_of_any_trial_has_an_estimate(make_study):
    study = make_study(planned=True)
    for trial in study.trials:
        candidate = candidate_of(study, trial)
        assert candidate.pair == tuple(trial.params.values())
        assert trial.number in [other.number for other in candidate.trials]


def test_the_table_of_a_terminal_fits_into_80_columns(make_study):
    study = make_study(planned=True, accuracies=ANOTHER_IS_BEST)
    report = build_report([study])
    for row in report["rows"]:
        row |= {"params": 85_800_000, "seconds": 12_345.6, "test_accuracy": 100.0}
    text = printed(results_table(report))
    assert "…" not in text
    found = answer_of(study).found
    assert f"{found.accuracy:.2f} ± {found.error:.2f}" in text
    assert "…" not in printed(results_table(report | {"cost_word": "parameters"}))


# All places of a study that was trained


@pytest.mark.parametrize("limit", ["budget", "tolerance", "dense model"])
def test_every_place_names_the_same_pair_trial_and_accuracy(
    dense, digits, tmp_path, url, limit, monkeypatch
):
    limits = {
        "budget": Budget(0.6),
        "tolerance": Tolerance(50.0),
        "dense model": Tolerance(0.01, confidence=0.99),
    }
    save_dense(dense, tmp_path / "dense.safetensors", name="vit_tiny_patch16_224", arguments={
        "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2,
        "num_heads": 4, "mlp_ratio": 2.0, "num_classes": 10,
    })  # fmt: skip
    search = Search(
        load_dense(tmp_path / "dense.safetensors"), digits, limits[limit],
        training=Recipe(epochs=1, batch_size=256),
        options=SearchOptions(screen=False, calibration=CalibrationOptions(images=64)),
        run=RunOptions(checkpoints=tmp_path / "models", progress=False),
    )  # fmt: skip
    if limit == "dense model":  # every pair loses a point, none keeps 0.01
        monkeypatch.setattr(search.trainer, "train", lambda model, context: 0.0)
    study = search.create_study("s", storage=url)
    said: list[str] = []
    search.run(study, n_trials=3, say=said.append)
    assert study.sampler.n_trials == 3
    answer = answer_of(study)
    found = answer.found
    winner = study.sampler.answer(study)
    tests = []
    test_model = search.trainer.test

    def count(model):
        tests.append(model)
        return test_model(model)

    monkeypatch.setattr(search.trainer, "test", count)
    accuracy = search.test(study)
    assert search.test(study) == accuracy
    trials = {None if found is None else found.trial.number}
    trials |= set() if answer.baseline is None else {answer.baseline.trial.number}
    assert len(tests) == 1 + len(trials - {None})  # the dense model, and each model once
    tested = study.user_attrs["tested"]
    StudyRecord.read("s", study.user_attrs)
    result = CliRunner().invoke(cli.app, ["report", "--storage", url, "--json",
                                          str(tmp_path / "rows.json")])  # fmt: skip
    assert result.exit_code == 0, result.output
    *_, row = json.loads((tmp_path / "rows.json").read_text())["rows"]
    report = CliRunner().invoke(cli.app, ["report", "--storage", url], env={"COLUMNS": "300"})
    sentence = answer_sentences(study)[0]
    texts = places(study) | {"said": "\n".join(said), "report": report.output}
    final = ["final", "--study-name", "s", "--storage", url, "--epochs", "0", "--output",
             str(tmp_path / "final.safetensors")]  # fmt: skip
    made = CliRunner().invoke(cli.app, final)
    assert said.count(sentence) == 1
    assert row["test_accuracy"] == accuracy
    assert tested.get("trial") == row["trial"]
    if limit == "dense model":
        assert found is winner is row["trial"] is None
        assert accuracy == tested["dense"]
        assert isinstance(made.exception, InputError)
        for place, text in texts.items():
            assert "The answer is the dense model" in text, place
        return
    assert made.exit_code == 0, made.output
    assert row["trial"] == found.trial.number
    assert (row["mhsa_ratio"], row["ffn_ratio"]) == winner == found.pair
    assert (row["val_accuracy"], row["val_error"]) == (found.accuracy, found.error)
    manifest = load_pruned(tmp_path / "final.safetensors")[1]
    lineage = manifest["lineage"]
    assert lineage["trial"] == found.trial.number
    assert (manifest["mhsa_ratio"], manifest["ffn_ratio"]) == found.pair
    assert (lineage["search_expected"], lineage["search_error"]) == (found.accuracy, found.error)
    assert lineage["search_accuracy"] == found.trial.user_attrs["accuracy"]
    texts |= {"card": card_path(tmp_path / "final.safetensors").read_text(), "final": made.output}
    expected = f"{found.accuracy:.2f} ± {found.error:.2f}"
    for place, text in texts.items():
        assert f"trial {found.trial.number}" in text, place
        assert f"{found.pair[0]:.3f}" in text, place
        assert f"{found.pair[1]:.3f}" in text, place
        assert expected in text, place
    (best,) = [r for r in trial_rows(study) if r["best"]]
    assert best["trial"] == found.trial.number
    stars = [t for t in accuracy_figure([study]).data if t.marker.symbol == "star"]
    assert [list(t.y) for t in stars] == [[found.accuracy]]
    if limit == "budget":
        assert tested["baseline"]["trial"] == 0 == answer.baseline.trial.number
        assert study.trials[0].state == TrialState.COMPLETE


def test_an_answer_is_read_in_a_few_lines(make_study):
    study = make_study(planned=True, accuracies=ANOTHER_IS_BEST)
    answer = answer_of(study)
    found, fixed = answer.found, answer.baseline
    lines = str(answer).splitlines()
    assert lines == [
        f"MHSA ratio {found.pair[0]:.3f}, FFN ratio {found.pair[1]:.3f} (trial 3, trained once)",
        f"{100 * found.cost_ratio:.1f} % of the FLOPs",
        f"{found.accuracy:.2f} ± {found.error:.2f} % validation accuracy expected, dense 80.00 %",
        f"better than the fixed ratio {fixed.pair[0]:.3f} ({fixed.accuracy:.2f} ± "
        f"{fixed.error:.2f} %, trial 0) with a probability of {found.probability:.2f}",
    ]
    assert repr(answer) == f"<Answer of study 'searched': {'; '.join(lines)}>"
    assert "the fixed ratio itself" in str(
        answer_of(make_study(planned=True, accuracies=FIXED_IS_BEST))
    )
    kept = make_study(budget=None, planned=True, accuracies=(79.9, 79.8, 79.7, 77.9, 76.0, 70.0))
    assert "keeps the tolerance with a probability of" in str(answer_of(kept))
    none = make_study(budget=None, planned=True, accuracies=(77.0,) * 6)
    assert str(answer_of(none)).startswith("The dense model: no pair keeps the tolerance with")


def test_an_answer_loads_the_model_of_its_trial(make_study):
    study = make_study(planned=True, accuracies=ANOTHER_IS_BEST)
    answer = answer_of(study)
    with pytest.raises(InputError, match=r"use `Search.answer\(study\)`"):
        answer.load_model()
    bound = answer.bind(study, lambda trial: f"model of {trial.number}")
    assert bound.load_model() == "model of 3"
    assert bound == answer
    assert repr(bound) == repr(answer)
    none = make_study(budget=None, planned=True, accuracies=(77.0,) * 6)
    with pytest.raises(InputError, match="is the dense model"):
        answer_of(none).bind(none, lambda trial: None).load_model()
