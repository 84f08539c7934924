import optuna
from optuna.trial import TrialState

from vit_ratio_opt.runs.processes import process_name
from vit_ratio_opt.runs.reaping import fail_dead_trials
from vit_ratio_opt.runs.storage import open_storage

NO_PROCESS = 2**22 + 1


def test_trial_of_a_process_that_died_before_its_first_heartbeat_gets_one(url):
    storage = open_storage(url)
    study = optuna.create_study(storage=storage)
    orphan = storage.create_new_trial(study._study_id)  # in study.optimize, and died there
    alive = storage.create_new_trial(study._study_id)
    storage.record_heartbeat(alive)
    storage.grace_period = -1
    assert storage._get_stale_trial_ids(study._study_id) == [alive]
    assert fail_dead_trials(study) == []  # its grace period has only begun
    assert storage._get_stale_trial_ids(study._study_id) == [orphan, alive]


def test_a_process_of_another_namespace_is_not_taken_for_one_of_this(url):
    study = optuna.create_study(storage=open_storage(url))
    trial = study.ask()
    trial.set_user_attr("worker", f"here/1:{NO_PROCESS}")
    assert fail_dead_trials(study) == []
    trial.set_user_attr("worker", process_name(NO_PROCESS))
    assert fail_dead_trials(study) == [0]
    assert study.trials[0].state == TrialState.FAIL
