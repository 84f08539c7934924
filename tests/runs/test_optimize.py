import optuna
import pytest
from optuna.trial import TrialState

from vit_ratio_opt.runs.optimize import keep_optimizing
from vit_ratio_opt.runs.storage import open_storage


def test_optimize_goes_on_after_another_worker_failed_its_trial(url):
    study = optuna.create_study(storage=open_storage(url))
    lost, said = [], []

    def taken_for_dead(trial):
        if not lost:
            lost.append(trial.number)
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        return 1.0

    keep_optimizing(study, taken_for_dead, n_trials=3, say=said.append)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert len(said) == 1
    assert "considered this one dead" in said[0]


def test_optimize_goes_on_after_its_trial_was_failed_while_it_wrote_to_it(url):
    study = optuna.create_study(storage=open_storage(url))

    def taken_for_dead(trial):
        if trial.number == 0:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        trial.report(1.0, 0)
        return 1.0

    keep_optimizing(study, taken_for_dead, n_trials=2, say=lambda line: None)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]


def test_an_objective_may_fail_but_not_three_times_in_a_row(url):
    def fails(trial):
        if trial.number in (0, 1, 3, 5, 6, 7):
            raise ValueError(f"in trial {trial.number}")
        if trial.number == 2:
            raise optuna.TrialPruned
        return 1.0

    study = optuna.create_study(storage=open_storage(url))
    with pytest.raises(ValueError, match="in trial 7"):
        keep_optimizing(study, fails, n_trials=20)
    letters = "".join(trial.state.name[0] for trial in study.trials)
    assert letters == "FFPFCFFF"


def test_a_trial_that_was_taken_over_costs_one_sentence_and_no_traceback(url, caplog):
    study = optuna.create_study(storage=open_storage(url))
    said = []

    def taken_for_dead(trial):
        if trial.number < 4:  # more often in a row than an objective may fail
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        trial.report(1.0, 0)
        return 1.0

    keep_optimizing(study, taken_for_dead, n_trials=5, say=said.append)
    assert [trial.state.name[0] for trial in study.trials] == ["F"] * 4 + ["C"]
    assert len(said) == 4
    assert "the result is dropped; continuing" in said[0]
    assert not any(record.exc_info for record in caplog.records)
