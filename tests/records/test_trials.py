import optuna
from optuna.trial import TrialState

from vit_ratio_opt.records.loading import baseline_of
from vit_ratio_opt.records.study import DenseRecord, record_of
from vit_ratio_opt.records.trials import accuracy_of, block_rows


def test_the_baseline_of_the_same_recipe_is_preferred(make_study):
    study = make_study()
    longer = make_study(name="longer", fixed=True, recipe={"epochs": 9})
    same = make_study(name="same", fixed=True)
    assert baseline_of(study, [longer, same]) is same
    assert baseline_of(study, [longer]) is longer
    assert baseline_of(same, [longer]) is None


def test_a_stopped_trial_has_the_accuracy_that_it_last_reported(make_study):
    study = make_study(budget=None, trials=0)
    trial = optuna.trial.create_trial(state=TrialState.PRUNED, intermediate_values={1: 4, 2: 3})
    study.add_trial(trial)
    assert accuracy_of(study.trials[0], study) == 80.0 - 3
    study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
    assert accuracy_of(study.trials[1], study) is None


def test_rows_of_blocks_tell_what_was_there_before(make_study):
    study = make_study()
    trial, dense = study.trials[0], record_of(study).dense
    rows = block_rows(dense, trial)
    assert rows[1] == {
        "block": 1, "heads": 4, "dense_heads": 4, "head_dim": 2, "dense_head_dim": 8,
        "neurons": 16, "dense_neurons": 64,
    }  # fmt: skip
    trial.set_user_attr("tokens", [[17, 17, 17], [9, 17, 5], [2, 17, 1]])
    assert block_rows(dense, trial)[1]["mhsa_tokens"] == 9
    assert block_rows(dense, trial)[1]["ffn_tokens"] == 5
    assert block_rows(DenseRecord(), trial) == []
