import csv
import io

import optuna
import pytest
from optuna.trial import TrialState

from vit_ratio_opt.report import (
    TRIAL_COLUMNS,
    accuracy_of,
    baseline_of,
    best_trial,
    block_rows,
    csv_text,
    group_studies,
    limit_of,
    show,
    summary,
    trial_rows,
)


@pytest.mark.parametrize("budget", [0.5, None])
def test_the_summary_is_three_sentences_with_the_figures_of_the_best_trial(make_study, budget):
    study, fixed = make_study(budget=budget), make_study(name="one", budget=budget, fixed=True)
    looked_for, found, saved = summary(study, [study, fixed])
    best = best_trial(study)
    assert limit_of(study) in looked_for
    assert "80.00 %" in looked_for
    assert found.startswith(f"Trial {best.number} is the best of 6 trained: without ")
    assert f"{100 * best.user_attrs['macs_ratio']:.1f} % of the FLOPs" in found
    assert "study one" in saved
    assert "1.000 times the FLOPs" in saved


def test_without_a_baseline_the_summary_says_so(make_study):
    study = make_study()
    others = [make_study(name="a", fixed=True, weights="other"), make_study(name="b")]
    others += [make_study(name="c", fixed=True, budget=None)]
    assert baseline_of(study, others) is None
    assert "no study of one fixed ratio" in summary(study, others)[-1]


def test_the_baseline_of_the_same_recipe_is_preferred(make_study):
    study = make_study()
    longer = make_study(name="longer", fixed=True, recipe={"epochs": 9})
    same = make_study(name="same", fixed=True)
    assert baseline_of(study, [longer, same]) is same
    assert baseline_of(study, [longer]) is longer
    assert baseline_of(same, [longer]) is None


def test_nothing_within_the_limit_is_said_in_two_sentences(make_study):
    study = make_study(trials=0)
    assert len(summary(study)) == 2
    assert "Of 0 trained trials none" in summary(study)[1]


def test_a_stopped_trial_has_the_accuracy_that_it_last_reported(make_study):
    study = make_study(budget=None, trials=0)
    trial = optuna.trial.create_trial(state=TrialState.PRUNED, intermediate_values={1: 4, 2: 3})
    study.add_trial(trial)
    assert accuracy_of(study.trials[0], study) == 80.0 - 3
    study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
    assert accuracy_of(study.trials[1], study) is None


def test_rows_of_trials_have_all_columns_and_one_best(make_study):
    rows = trial_rows(make_study())
    assert all(tuple(row) == TRIAL_COLUMNS for row in rows)
    assert sum(row["best"] for row in rows) == 1
    read = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert [float(row["accuracy"]) for row in read] == [row["accuracy"] for row in rows]
    assert csv_text([]) == ""


def test_rows_of_blocks_tell_what_was_there_before(make_study):
    study = make_study()
    trial, dense = study.trials[0], study.user_attrs["dense"]
    rows = block_rows(dense, trial)
    assert rows[1] == {
        "block": 1, "heads": 4, "dense_heads": 4, "head_dim": 2, "dense_head_dim": 8,
        "neurons": 16, "dense_neurons": 64,
    }  # fmt: skip
    trial.set_user_attr("tokens", [[17, 17, 17], [9, 17, 5], [2, 17, 1]])
    assert block_rows(dense, trial)[1]["mhsa_tokens"] == 9
    assert block_rows(dense, trial)[1]["ffn_tokens"] == 5
    assert block_rows({}, trial) == []


def test_studies_of_other_models_are_in_groups_of_their_own(make_study):
    first, second, other = make_study(name="a"), make_study(name="b"), make_study(weights="x")
    assert group_studies([first, other, second]) == [[first, second], [other]]


def test_show_displays_the_table_and_every_figure(make_study, monkeypatch):
    displayed = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    show(make_study(), make_study(name="one", fixed=True))
    text, *figures = displayed
    assert "| searched | searched |" in text.data
    titles = [figure.layout.title.text for figure in figures]
    assert titles[1:] == ["Path of the search", "Blocks of the best model"]
