from __future__ import annotations

import os
import shutil
import subprocess
import sys

import optuna
import pytest
import support
import timm
from optuna.trial import TrialState
from support import make_search

from vit_ratio_opt.composer import Search
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.records.answer import answer_of, answer_trial
from vit_ratio_opt.records.candidates import candidate_of
from vit_ratio_opt.records.loading import load_studies
from vit_ratio_opt.records.trials import finished_trials
from vit_ratio_opt.report.rows import build_report
from vit_ratio_opt.report.trial_rows import timing_split
from vit_ratio_opt.runs.loop import run_study
from vit_ratio_opt.runs.processes import process_name
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.search import sampler
from vit_ratio_opt.search.space import ratio_distributions
from vit_ratio_opt.space.curve import fixed_ratio_pair
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.training.recipe import Recipe


@pytest.fixture
def make(few_digits, dense, tmp_path):
    def make_one(data=few_digits, **changes):
        options = {
            "budget": 0.6,
            "recipe": Recipe(epochs=1, batch_size=128),
            "checkpoints": tmp_path / "models",
            "calibration_images": 64,
            "progress": False,
        }
        search = make_search(dense, data, **{**options, **changes})
        search.journal.attach = None  # drawing a training takes longer than the training
        return search

    return make_one


def new_study(search, name, **options):
    """Without a look before any training."""
    return support.new_study(search, name, screen=False, **options)


def run(search, study, n_trials):
    search.run(study, n_trials, say=lambda line: None, explain=False)


def pairs(study):
    return [tuple(trial.params.values()) for trial in study.trials]


def test_every_trial_has_the_designed_attributes(make, memory):
    search = make()
    study = new_study(search, "s", storage=memory)
    run(search, study, 1)
    (trial,) = study.trials
    designed = [
        "macs_ratio", "macs", "params", "accuracy_pruned", "accuracy_drop", "parent_trial",
        "epochs", "seconds", "seed", "device", "checkpoint",
    ]  # fmt: skip
    assert set(designed) <= set(trial.user_attrs)
    assert trial.user_attrs["macs_ratio"] <= 0.6
    assert trial.constraints == {"flops": trial.user_attrs["macs_ratio"] - 0.6}
    assert trial.user_attrs["accuracy_drop"] == search.dense_accuracy - trial.value
    assert trial.intermediate_values == {1: trial.value}
    assert study.metric_names == ["accuracy"]


def test_resumed_study_gives_the_trials_of_an_uninterrupted_one(make, url):
    straight = new_study(make(), "straight", storage=url)
    run(make(), straight, 3)
    said = []
    for n_trials in (2, 3):
        study = new_study(make(), "resumed", storage=url)
        make().run(study, n_trials=n_trials, say=said.append)
    assert pairs(study) == pairs(straight)
    assert [t.value for t in study.trials] == [t.value for t in straight.trials]
    assert any("2 of 3 trials" in line and "none" in line for line in said)
    assert len(set(pairs(study))) == 3


def test_pair_over_budget_is_pruned_before_training(make, memory, monkeypatch):
    search = make()
    study = new_study(search, "s", storage=memory)
    study.enqueue_trial({"mhsa_ratio": 0.0, "ffn_ratio": 0.0})
    monkeypatch.setattr("vit_ratio_opt.training.trainer.finetune", None)
    study.optimize(search.objective, n_trials=1)
    (trial,) = study.trials
    assert trial.state == TrialState.PRUNED
    assert trial.constraints["flops"] == pytest.approx(0.4)
    assert not trial.intermediate_values
    assert finished_trials(study) == []
    assert answer_trial(study) is None


def test_an_optuna_pruner_stops_a_trial_after_an_epoch(make, memory):
    search = make(recipe=Recipe(epochs=2, batch_size=128))
    pruner = optuna.pruners.ThresholdPruner(lower=101)
    study = new_study(search, "s", storage=memory, pruner=pruner)
    run(search, study, 1)
    assert study.trials[0].state == TrialState.PRUNED
    assert list(study.trials[0].intermediate_values) == [1]
    assert (
        list((search.journal.checkpoints / "artifacts").glob("[!.]*")) == []
    )  # nothing to go on from


def test_other_settings_are_refused_and_the_study_stays_as_it_was(make, url):
    new_study(make(), "s", storage=url)
    before = optuna.load_study(study_name="s", storage=url).user_attrs
    with pytest.raises(InputError, match=r"budget is 0\.6, not 0\.5"):
        new_study(make(budget=0.5), "s", storage=url)
    optuna.create_study(study_name="foreign", storage=url).set_user_attr("mine", 1)
    with pytest.raises(InputError, match="not created by vit_ratio_opt"):
        new_study(make(), "foreign", storage=url)
    assert optuna.load_study(study_name="s", storage=url).user_attrs == before


def test_trial_of_a_killed_process_is_failed_and_its_pair_tried_again(make, url):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    search = make()
    study = new_study(search, "s", storage=url)
    workers = {dead.pid: True, os.getpid(): False}
    for process in workers:
        trial = study.ask()
        trial.set_user_attr("worker", process_name(process))
        for name, distribution in ratio_distributions(search.space).items():
            trial.suggest_float(name, distribution.low, distribution.high)
    said = []
    search.run(study, n_trials=1, say=said.append)  # that one is running elsewhere
    assert said[-1] == "1 trial(s) of other workers are still running"
    search.run(study, n_trials=2, say=said.append)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, TrialState.RUNNING, TrialState.COMPLETE]
    assert study.trials[2].params == study.trials[0].params
    assert "killed process" in said[0]


@pytest.fixture
def logged(monkeypatch):
    """What the sampler logs."""
    lines = []
    monkeypatch.setattr(sampler._logger, "info", lines.append)
    return lines


def test_the_end_is_said_once_by_a_search_and_once_in_optunas_own_style(make, memory, logged):
    search = make(fixed_ratio=True)
    said = []
    search.run(new_study(search, "f", storage=memory), n_trials=5, say=said.append)
    assert (sum("nothing is left" in line for line in said), logged) == (1, [])
    study = new_study(search, "own", storage=memory)
    study.optimize(search.objective, n_trials=5)
    assert [line[:26] for line in logged] == ["Nothing is left to learn: "]
    assert len(study.trials) == 1


def test_fixed_ratio_has_one_pair_and_stops_by_itself(make, memory):
    search = make(fixed_ratio=True)
    study = new_study(search, "f", storage=memory)
    said = []
    search.run(study, n_trials=5, say=said.append)
    ((mhsa, ffn),) = pairs(study)
    assert mhsa == ffn
    assert "nothing is left" in said[-2]
    assert said[-1].startswith("The answer is trial 0, ")
    search.run(study, n_trials=5, say=said.append)
    assert len(study.trials) == 1


def test_with_a_tolerance_the_cheapest_pair_that_keeps_it_is_best(make, memory):
    search = make(budget=None, tolerance=2.0)
    study = new_study(search, "t", storage=memory)
    said = []
    search.run(study, n_trials=5, say=said.append)
    assert study.metric_names == ["FLOPs of dense"]
    assert len(finished_trials(study)) == 5
    for trial in study.trials:
        drop = trial.user_attrs["accuracy_drop"]
        assert trial.constraints == {"accuracy_drop": drop - 2.0}
        assert trial.state == (TrialState.PRUNED if drop > 2.0 else TrialState.COMPLETE)
        if drop <= 2.0:
            assert trial.value == trial.user_attrs["macs_ratio"]
        assert trial.user_attrs["checkpoint"]
    assert any("over the tolerance" in line for line in said) == any(
        trial.state == TrialState.PRUNED for trial in study.trials
    )
    best = answer_trial(study)
    assert best is None or best.state == TrialState.COMPLETE
    report = build_report([study])
    assert report["tolerance"] == 2.0
    assert report["budget"] is None


def test_the_answer_of_a_tolerance_study_goes_by_all_trainings_of_a_pair(make, memory):
    search = make(budget=None, tolerance=2.0, noise=0.1)
    study = new_study(search, "t", storage=memory)
    for macs_ratio, drop in ((0.5, 1.9), (0.5, 2.3), (0.6, 1.7), (0.6, 1.6), (0.7, 0.1)):
        study.enqueue_trial({"mhsa_ratio": 0.25, "ffn_ratio": 1 - macs_ratio})
        trial = study.ask()
        for name, distribution in ratio_distributions(search.space).items():
            trial.suggest_float(name, distribution.low, distribution.high)
        for name, value in (("accuracy_drop", drop), ("macs_ratio", macs_ratio)):
            trial.set_user_attr(name, value)
        trial.set_constraint("accuracy_drop", drop - 2.0)
        if drop <= 2.0:
            study.tell(trial, macs_ratio)
        else:
            study.tell(trial, state=TrialState.PRUNED)
    answer = answer_of(study)  # 0.5 kept the tolerance once, but is not believed to
    assert answer.found.trial.number == 2
    assert study.sampler.answer(study) == answer.found.pair == (0.25, 0.4)
    assert study.best_trial.number == 0
    assert answer.why_not_best.startswith("Optuna's best trial, 0, is cheaper, but its pair (")


def test_new_study_goes_on_from_the_fixed_ratio_to_the_best_pair_of_the_screen(
    make, digits, memory
):
    search = make(digits)
    study = search.create_study("s", storage=memory)
    seen = {(m, f): accuracy for m, f, accuracy in study.user_attrs["screened"]}
    assert len(seen) > 2
    assert set(seen) <= set(search.curve)
    best = max(seen, key=seen.get)
    again = make(digits).create_study("s", storage=memory)
    assert again.user_attrs["screened"] == study.user_attrs["screened"]
    said = []
    search.run(again, n_trials=1, say=said.append)
    assert tuple(again.trials[0].params.values()) == search.baseline
    assert f"begins with the fixed ratio {search.baseline[0]:.3f}" in said[0]
    assert "before any training" in said[1]
    search.run(again, n_trials=2, say=said.append)
    assert tuple(again.trials[1].params.values()) == best
    assert again.trials[1].user_attrs["accuracy_pruned"] == seen[best]


def test_a_study_whose_maker_was_killed_in_the_screen_gets_one_from_the_next(
    make, memory, monkeypatch
):
    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Search, "first_pairs", killed)
        with pytest.raises(KeyboardInterrupt):
            make().create_study("s", storage=memory)
    study = make().create_study("s", storage=memory)
    assert len(study.user_attrs["screened"]) > 2
    assert study.user_attrs["path"] == []


def test_without_a_screen_the_search_begins_at_the_fixed_ratio(make, memory):
    search = make()
    study = new_study(search, "s", storage=memory)
    run(search, study, 1)
    assert study.user_attrs["screened"] == []
    assert RatioPair(*study.trials[0].params.values()) == fixed_ratio_pair(search.space, 0.6)


@pytest.mark.parametrize("limit", [None, 0.6, "0.6"])
def test_a_limit_is_needed(dense, digits, limit):
    with pytest.raises(
        InputError, match=r"`limit` must be a Budget, a Tolerance or a Frontier, but got"
    ):
        Search(dense, digits, limit)


@pytest.mark.parametrize("tolerance", [0, -1, 100, float("nan")])
def test_tolerance_is_in_points(dense, digits, tolerance):
    with pytest.raises(InputError, match="tolerance must be above 0"):
        make_search(dense, digits, tolerance=tolerance)


def test_pair_that_is_trained_again_takes_the_next_seed(make, memory):
    search = make(seed=3)
    study = new_study(search, "s", storage=memory)
    pair = search.curve[0]._asdict()
    study.enqueue_trial(pair)
    study.enqueue_trial(pair)
    study.optimize(search.objective, n_trials=3)
    assert [trial.user_attrs["seed"] for trial in study.trials] == [3, 4, 3]
    assert study.trials[0].value != study.trials[1].value
    twice = [trial for trial in study.trials if trial.params == pair]
    candidate = candidate_of(study, twice[0])
    assert candidate.own_accuracy == pytest.approx(sum(t.value for t in twice) / 2)
    assert candidate.trained == 2


def test_surplus_trial_ends_before_any_training(make, memory):
    search = make(fixed_ratio=True)
    study = new_study(search, "f", storage=memory)
    study.optimize(search.objective, n_trials=1)
    study.optimize(search.objective, n_trials=1)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert "seconds" not in study.trials[1].user_attrs


def test_report_has_the_three_rows_and_the_time_split(make, url):
    storage = open_storage(url)
    for name, fixed in (("fixed", True), ("searched", False)):
        search = make(fixed_ratio=fixed)
        study = search.create_study(name, storage=storage)
        assert search.test(study) is None
        run(search, study, 2)
        accuracy = search.test(study)
        assert search.test(study) == accuracy
    report = build_report(load_studies(storage))
    names = [(row["name"], row["study"]) for row in report["rows"]]
    assert names == [("dense", None), ("fixed", "searched"), ("searched", "searched")]
    dense, fixed, searched = report["rows"]
    assert searched["test_accuracy"] == accuracy
    answer = answer_of(study)
    assert searched["val_accuracy"] == answer.accuracy >= fixed["val_accuracy"]
    assert searched["own_accuracy"] == answer.found.trial.value
    assert fixed["trial"] == 0
    assert fixed["test_accuracy"] == study.user_attrs["tested"]["baseline"]["accuracy"]
    assert dense["macs"] == search.pruner.shape.macs
    assert set(report) >= {"model", "dataset", "seed", "epochs", "device", "versions"}
    split = timing_split(study)
    assert sum(split.values()) == pytest.approx(1)
    assert split["train"] > 0


def test_final_test_needs_the_checkpoint(make, memory):
    search = make(checkpoints=None)
    study = new_study(search, "s", storage=memory)
    run(search, study, 1)
    with pytest.raises(InputError, match="checkpoints"):
        search.test(study)


def test_a_file_of_another_study_is_not_taken_for_the_trials_model(make, memory, tmp_path):
    """Someone has copied it there; or a version that gave both studies the same names has."""
    store = tmp_path / "store"
    first, second = make(), make(artifacts=store, seed=1)
    for name, search in (("other", first), ("s", second)):
        study = new_study(search, name, storage=memory)
        run(search, study, 1)
    (trial,) = study.trials
    path = second.journal.checkpoints / trial.user_attrs["checkpoint"]
    kept = path.read_bytes()
    assert weights_hash(second.model_of(study, trial)) == trial.user_attrs["weights"]
    other = optuna.load_study(study_name="other", storage=memory)
    first.journal.store = None
    shutil.copy(path, first.journal.checkpoints / other.trials[0].user_attrs["checkpoint"])
    with pytest.raises(InputError, match=r"not the model of trial 0 of study 'other': its study"):
        first.model_of(other, other.trials[0])
    for damage in (None, b"damaged"):
        path.unlink() if damage is None else path.write_bytes(damage)
        assert weights_hash(second.model_of(study, trial)) == trial.user_attrs["weights"]
    path.write_bytes(kept)
    shutil.rmtree(store)
    assert second.model_of(study, trial)
    trial.set_user_attr("weights", "of another training")
    with pytest.raises(InputError, match=r"its weights is .* It is not in the artifact store"):
        second.model_of(study, trial)


@pytest.mark.parametrize("n_trials", [0, -3])
def test_fewer_than_one_trial_is_refused(make, memory, n_trials):
    search = make()
    with pytest.raises(InputError, match="at least 1"):
        run_study(new_study(search, "s", storage=memory), search.objective, n_trials=n_trials)


def test_objective_refuses_data_that_does_not_fit(digits, dense):
    wrong = {
        "channels": {"in_chans": 3}, "pixels": {"img_size": 16}, "classes": {"num_classes": 5},
    }  # fmt: skip
    for word, change in wrong.items():
        arguments = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 10, **change}
        model = timm.create_model(
            "vit_tiny_patch16_224", embed_dim=32, depth=1, num_heads=4, **arguments
        )
        with pytest.raises(InputError, match=word):
            make_search(model, digits, budget=0.6)
    for budget in (0, -1, 1.5, 0.01):
        with pytest.raises(InputError, match="budget must be"):
            make_search(dense, digits, budget=budget)


@pytest.mark.parametrize("when", ["between trials", "in a trial"])
def test_a_study_that_is_deleted_under_a_worker_ends_it_in_one_sentence(make, url, when, caplog):
    def delete(*_):
        optuna.delete_study(study_name="s", storage=open_storage(url))

    search, said = make(), []
    study = new_study(search, "s", storage=url)
    callbacks = [delete] if when == "between trials" else []
    if callbacks == []:
        prune = search.pruner.prune
        search.pruner.prune = lambda *arguments: (delete(), prune(*arguments))[1]
    with pytest.raises(InputError, match="'s' was deleted while this worker ran its trials"):
        search.run(study, n_trials=3, say=said.append, callbacks=callbacks, explain=False)
    assert not any(record.exc_info for record in caplog.records)
