"""Threads, studies and copies that share an objective."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import optuna
import pytest
from optuna.trial import TrialState
from support import make_search, new_study

from vit_ratio_opt.composer import Search
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.search.space import ratio_distributions
from vit_ratio_opt.training.recipe import Recipe

Make = Callable[..., Search]


@pytest.fixture
def make(few_digits, dense, tmp_path) -> Make:
    def make_one(**changes):
        options = {
            "budget": 0.6, "recipe": Recipe(epochs=1, batch_size=128), "progress": False,
            "calibration_images": 64, "checkpoints": tmp_path / "models",
        }  # fmt: skip
        search = make_search(dense, few_digits, **{**options, **changes})
        search.journal.attach = None  # drawing a training takes longer than the training
        return search

    return make_one


def results(study):
    return sorted((*t.params.values(), t.user_attrs["seed"], t.value) for t in study.trials)


def quietly(study, search, n_trials):
    search.run(study, n_trials=n_trials, say=lambda line: None, explain=False)


def test_several_jobs_give_the_trials_of_one(make: Make, url) -> None:
    studies = []
    for n_jobs in (1, 3):
        search = make()
        study = new_study(search, f"{n_jobs}", storage=url, screen=False)
        study.optimize(search.objective, n_trials=4, n_jobs=n_jobs)
        studies.append(study)
    assert results(studies[0]) == results(studies[1])


def test_an_objective_serves_two_studies_by_turns(make: Make, memory) -> None:
    shared, names = make(), ("one", "two")
    studies = {name: new_study(shared, name, storage=memory, screen=False) for name in names}
    studies["two"].set_user_attr(
        "dense", {**studies["two"].user_attrs["dense"], "val_accuracy": 50.0}
    )
    for n_trials in (1, 2):
        for study in studies.values():
            study.optimize(shared.objective, n_trials=1)
            assert len(study.trials) == n_trials
            dense = study.user_attrs["dense"]["val_accuracy"]
            attributes = study.trials[-1].user_attrs
            assert attributes["accuracy"] + attributes["accuracy_drop"] == pytest.approx(dense)
    assert [t.value for t in studies["one"].trials] == [t.value for t in studies["two"].trials]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_of_an_objective_goes_on_as_itself(make: Make, memory, duplicate) -> None:
    straight = new_study(make(), "straight", storage=memory, screen=False)
    quietly(straight, make(), 2)
    first = make()
    study = new_study(first, "s", storage=memory, screen=False)
    quietly(study, first, 1)
    quietly(study, duplicate(first), 2)
    assert results(study) == results(straight)


@pytest.mark.parametrize(
    ("limits", "directions", "wanted"),
    [
        ({}, ["minimize"], "maximize"),
        ({"budget": None, "tolerance": 2.0}, ["maximize"], "minimize"),
        ({}, ["maximize", "minimize"], "maximize"),
        ({"budget": None, "tolerance": 2.0}, ["minimize", "minimize"], "minimize"),
    ],
)
@pytest.mark.parametrize("storage", ["memory", "loaded"])
@pytest.mark.parametrize("sampler", ["binary", "optuna's"])
def test_a_study_of_another_direction_is_refused_at_the_first_trial(
    make: Make, url, monkeypatch, limits, directions, wanted, storage, sampler
) -> None:
    search = make(**limits)
    monkeypatch.setattr("vit_ratio_opt.training.trainer.finetune", None)
    chosen = None
    if sampler == "binary":
        chosen = PlanSampler(ratio_distributions(search.space), search.plan({}))
    study = optuna.create_study(
        directions=directions, sampler=chosen, study_name="s",
        storage=None if storage == "memory" else url,
    )  # fmt: skip
    if storage == "loaded":
        study = optuna.load_study(study_name="s", storage=url, sampler=chosen)
    with pytest.raises(InputError, match=f"create it with `direction='{wanted}'`"):
        study.optimize(search.objective, n_trials=3)
    with pytest.raises(InputError, match=f"create it with `direction='{wanted}'`"):
        search.run(study, n_trials=3)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL]


@pytest.mark.parametrize(
    ("limits", "directions"),
    [
        ({}, ["minimize"]),
        ({"budget": None, "tolerance": 2.0}, ["maximize"]),
        ({}, ["maximize", "maximize"]),
    ],
)
def test_the_sampler_alone_refuses_another_direction(make: Make, limits, directions) -> None:
    """With an objective of the user's own, that returns what ours does."""
    ours = make(**limits)
    study = optuna.create_study(
        directions=directions, sampler=PlanSampler(ratio_distributions(ours.space), ours.plan({}))
    )

    def objective(trial):
        for name, distribution in ratio_distributions(ours.space).items():
            trial.suggest_float(name, distribution.low, distribution.high)
        return 0.0

    with pytest.raises(ValueError, match=r"direction|multi-objective"):
        study.optimize(objective, n_trials=1)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL]


def test_a_study_that_optuna_created_in_the_right_direction_is_searched(make: Make, url) -> None:
    search = make()
    optuna.create_study(study_name="s", storage=url, direction="maximize")
    sampler = PlanSampler(ratio_distributions(search.space), search.plan({}))
    study = optuna.load_study(study_name="s", storage=url, sampler=sampler)
    study.optimize(search.objective, n_trials=2)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2


def test_a_loaded_study_of_other_settings_is_refused_at_the_first_trial(make: Make, url) -> None:
    new_study(make(), "s", storage=url, screen=False)
    other = make(seed=1)
    study = optuna.load_study(study_name="s", storage=url)
    with pytest.raises(InputError, match="seed is 0, not 1"):
        study.optimize(other.objective, n_trials=1)
    with pytest.raises(InputError, match="seed is 0, not 1"):
        other.run(study, n_trials=1)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL]
