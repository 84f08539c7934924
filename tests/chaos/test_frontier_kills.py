"""A frontier whose worker is killed after each kind of write, and one with many workers."""

from __future__ import annotations

import signal

import pytest
from optuna.trial import TrialState
from processes import run_killed_after

import vit_ratio_opt as vro
from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.trials import finished_trials, pair_of
from vit_ratio_opt.runs.storage import open_storage

TRIALS, MOST_DEATHS = 5, 8  # of one pair: after ten it would not be tried again
FRONTIER = {"frontier": 6, "noise": None, "screen": False}
SAME = ("accuracy_pruned", "accuracy", "blocks", "weights", "seed", "total_epochs", "reports")


def boundaries_of(trial):
    """Return the names of all that a trial writes, after its beginning."""
    names = [*trial.system_attrs, *trial.params, *trial.user_attrs, "training_state"]
    names = ["artifacts" if name.startswith("artifacts:") else name for name in names]
    return ["ask", *dict.fromkeys(names)]


def results_of(study):
    """Return the finished trials, each as its pair, values, what it recorded, and its parent."""
    results = []
    for trial in finished_trials(study):
        parent = trial.user_attrs["parent_trial"]
        parent = parent if parent == "dense" else pair_of(study.trials[parent])
        same = [trial.user_attrs[name] for name in SAME]
        results.append((pair_of(trial), trial.values, same, parent))
    return results


@pytest.mark.parametrize(("iterative", "every"), [(True, 1), (False, 3)])
def test_a_frontier_killed_at_every_boundary_has_the_trials_of_an_undisturbed_one(
    compose, undisturbed, start, start_command, url, tmp_path, iterative, every
):
    options = {**FRONTIER, "iterative": iterative}
    alone = undisturbed(n_trials=TRIALS, **options)
    boundaries = boundaries_of(alone.trials[-1])[::-every]  # the state of a trial with a parent
    deaths = [boundaries[n : n + MOST_DEATHS] for n in range(0, len(boundaries), MOST_DEATHS)]
    assert 0 < len(deaths) < TRIALS
    study = compose(**options).create_study("s", storage=open_storage(url))
    arguments = ("worker", "--storage", url, "--study-name", "s", "--n-trials", TRIALS)
    # What is killed before it has named its process is left to the heartbeat.
    arguments += ("--state-every", 0, "--grace", 4)
    for boundary in ("tell", *(name for group in deaths for name in (*group, "tell"))):
        worker = start(run_killed_after, boundary, *arguments)
        worker.join(120)
        assert worker.exitcode == -signal.SIGKILL, (boundary, (tmp_path / "log").read_text())
    worker = start_command(*arguments)
    worker.join(120)
    assert worker.exitcode == 0, (tmp_path / "log").read_text()
    trials = study.get_trials()
    assert results_of(study) == results_of(alone)
    assert any(parent != "dense" for *_, parent in results_of(alone)) == iterative
    killed = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert len(killed) == len(boundaries)
    assert len(trials) == len(killed) + TRIALS
    assert any("resumed_from" in trial.user_attrs for trial in finished_trials(study))
    assert answer_of(study).found.pair == answer_of(alone).found.pair


def test_three_workers_share_a_frontier_in_one_file(compose, start_command, url, tmp_path):
    search = compose(**{**FRONTIER, "noise": 0.0, "iterative": True})
    study = search.create_study("s", storage=open_storage(url))
    arguments = ("worker", "--storage", url, "--study-name", "s", "--n-trials", 8)
    workers = [start_command(*arguments) for _ in range(3)]
    for worker in workers:
        worker.join(180)
        assert worker.exitcode == 0, (tmp_path / "log").read_text()
    trials = study.get_trials()
    pairs = [pair_of(trial) for trial in finished_trials(study)]
    assert all(trial.state == TrialState.COMPLETE for trial in trials)
    assert len({trial.user_attrs["worker"] for trial in trials}) > 1
    assert len(set(pairs)) == len(pairs) == len(trials)
    assert 8 <= len(trials) <= 10  # workers may begin their last trials at once
    assert {*search.plan(study.user_attrs).levels} <= {*pairs}
    answer = search.answer(study)
    assert answer.found.pair in [one.pair for one in answer.front]
    assert vro.shape_of(answer.load_model()).macs == answer.found.trial.user_attrs["macs"]
