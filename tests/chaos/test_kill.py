"""Real workers, killed by real signals, on a database that is restarted under them."""

import os
import random
import signal
import time
from collections import Counter

import pytest
from optuna.trial import TrialState

from vit_ratio_opt.model_files.load import load_dense, load_pruned
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.records.answer import answer_trial
from vit_ratio_opt.records.trials import finished_trials
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.search.claims import SURPLUS
from vit_ratio_opt.training.recipe import Recipe

from .conftest import wait_for


def pair_of(trial):
    return tuple(trial.params.values())


def test_a_search_survives_kills_and_two_restarts_of_its_database(
    postgresql, compose, undisturbed, start_command, tmp_path
):
    url = postgresql.new("kills")
    study = compose().create_study("s", storage=open_storage(url))
    arguments = ("worker", "--storage", url, "--study-name", "s", "--grace", "10")
    dice, workers = random.Random(0), [start_command(*arguments) for _ in range(4)]
    kills, restarts, next_kill = 0, 0, time.monotonic() + 2
    while any(worker.exitcode != 0 for worker in workers):
        time.sleep(0.05)
        for index, worker in enumerate(workers):
            if worker.exitcode not in (None, 0):
                # 2: it was started while there was no database.
                assert worker.exitcode in (-signal.SIGKILL, 2), (tmp_path / "log").read_text()
                workers[index] = start_command(*arguments)
        done = len(finished_trials(study))
        if (restarts, done > 3, done > 10) in ((0, True, False), (1, True, True)):
            restarts += 1
            postgresql.restart()
        alive = [worker for worker in workers if worker.is_alive()]
        if time.monotonic() > next_kill and alive and done < 15 and kills < 12:
            os.kill(dice.choice(alive).pid, signal.SIGKILL)
            kills += 1
            next_kill = time.monotonic() + dice.uniform(1, 3)
    trials = study.get_trials()
    alone = undisturbed()
    assert restarts == 2
    assert kills >= 2
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert not any(trial.state == TrialState.RUNNING for trial in trials)
    trained = Counter(pair_of(trial) for trial in finished_trials(study))
    search = compose()
    assert trained.keys() == {*search.curve, search.baseline}
    assert trained.keys() == {pair_of(trial) for trial in finished_trials(alone)}
    assert max(trained.values()) <= 2  # as the search allows
    unfinished = [trial for trial in trials if trial not in finished_trials(study)]
    assert all(t.state == TrialState.FAIL or SURPLUS in t.system_attrs for t in unfinished)
    # Which pairs are trained again depends on the order in which workers end.
    again = search.create_study("s", storage=open_storage(url))
    assert pair_of(answer_trial(study)) == again.sampler.answer(again)
    ours, theirs = (
        {
            (pair_of(trial), trial.user_attrs["seed"]): trial.user_attrs["accuracy"]
            for trial in finished_trials(one)
        }
        for one in (study, alone)
    )
    both = ours.keys() & theirs.keys()
    assert {pair for pair, _ in both} == trained.keys()
    assert all(ours[key] == theirs[key] for key in both)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_trial_goes_on_and_ends_as_if_nothing_had_been(
    compose, undisturbed, start_command, tmp_path, number
):
    recipe = Recipe(epochs=8, batch_size=64)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = compose(recipe=recipe).create_study("s", storage=url)
    arguments = ("worker", "--storage", url, "--study-name", "s", "--n-trials", "1")
    arguments += ("--state-every", "0")
    worker = start_command(*arguments)

    def in_the_middle():
        trials = study.get_trials(deepcopy=False)
        return trials and len(trials[0].intermediate_values) >= 2

    wait_for(in_the_middle)
    os.kill(worker.pid, number)
    worker.join(60)
    assert worker.exitcode == (128 + number if number == signal.SIGTERM else -number)
    interrupted = study.get_trials()[0]
    epochs = len(interrupted.intermediate_values)
    assert 2 <= epochs < 8
    if number == signal.SIGTERM:
        assert interrupted.state == TrialState.FAIL
        assert interrupted.user_attrs["failure"].startswith("TrainingStopped: stopped after step")
        assert "Stopped; progress saved" in (tmp_path / "log").read_text()
    worker = start_command(*arguments)
    worker.join(180)
    assert worker.exitcode == 0
    _, resumed = study.get_trials()
    at = resumed.user_attrs["resumed_from"]
    assert at["trial"] == 0
    assert at["epoch"] == epochs if number == signal.SIGTERM else at["epoch"] >= epochs - 1
    alone = undisturbed(n_trials=1, recipe=recipe).trials[0]
    assert pair_of(resumed) == pair_of(alone)
    for name in ("accuracy", "accuracy_pruned", "losses", "blocks", "params", "total_epochs"):
        assert resumed.user_attrs[name] == alone.user_attrs[name], name
    assert resumed.intermediate_values == alone.intermediate_values
    dense = load_dense(study.user_attrs["origin"]["model"]["checkpoint"])
    ends = [
        weights_hash(load_pruned(tmp_path / folder / trial.user_attrs["checkpoint"], dense)[0])
        for folder, trial in (("models", resumed), ("undisturbed", alone))
    ]
    assert ends[0] == ends[1]
    # What it was resumed from takes no space any more.
    left = [path.name for path in (tmp_path / "models" / "artifacts").glob("[!.]*")]
    assert not any(name.startswith("training-state") for name in left)
