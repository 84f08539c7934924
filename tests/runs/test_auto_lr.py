"""A study whose trainings choose their learning rate: what it stores, and who may resume it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from optuna.storages import InMemoryStorage
from support import make_search, new_study

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.pruning.pruner import ModelPruner
from vit_ratio_opt.training.recipe import Recipe

AUTO = Recipe(epochs=2, batch_size=64, lr="auto")


@pytest.fixture(scope="module")
def few(digits):
    part = {
        name: getattr(digits, name).subset(torch.arange(64)) for name in ("train", "val", "test")
    }
    return replace(digits, **part)


@pytest.fixture
def make(few, dense):
    def make_one(recipe=AUTO, **changes):
        return make_search(dense, few, budget=0.6, recipe=recipe, calibration_images=32, **changes)

    return make_one


def create(search, storage):
    return new_study(search, "s", storage=storage, screen=False)


def test_a_trial_stores_what_it_chose(make):
    search = make()
    study = create(search, InMemoryStorage())
    study.optimize(search.objective, n_trials=1)
    (trial,) = study.trials
    chosen = trial.user_attrs["chosen"]
    assert chosen["is_trained"]
    assert 0 < chosen["lr"] <= 1e-3
    assert chosen["divergence"] > 0
    assert (trial.user_attrs["epochs"], trial.user_attrs["total_epochs"]) == (2, 2)
    assert study.user_attrs["settings"]["recipe"]["lr"] == "auto"


def test_a_trial_that_lost_nothing_is_not_trained_and_says_so(make, monkeypatch):
    search = make()
    prune = ModelPruner.prune
    none = type(search.curve[0])(0.0, 0.0)
    monkeypatch.setattr(ModelPruner, "prune", lambda self, pair, parent=None: prune(self, none))
    study = create(search, InMemoryStorage())
    study.optimize(search.objective, n_trials=6)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == len(study.trials) > 1
    trial = study.trials[0]
    known = trial.user_attrs
    assert not known["chosen"]["is_trained"]
    assert (known["epochs"], known["total_epochs"], known["losses"]) == (0, 0, [])
    assert trial.value == known["accuracy"] == known["accuracy_pruned"]
    assert trial.intermediate_values == {1: trial.value, 2: trial.value}


def test_a_study_with_a_number_keeps_it_and_refuses_another(make):
    storage = InMemoryStorage()
    create(make(replace(AUTO, lr=5e-4)), storage)
    joining = make()
    create(joining, storage)
    assert joining.recipe.lr == joining.settings.recipe["lr"] == 5e-4
    with pytest.raises(InputError, match=r"recipe\.lr is 0\.0005, not 0\.001"):
        create(make(replace(AUTO, lr=1e-3)), storage)


def test_a_study_without_a_number_refuses_one(make):
    storage = InMemoryStorage()
    create(make(), storage)
    create(make(), storage)
    with pytest.raises(InputError, match=r"recipe\.lr is 'auto', not 0\.001"):
        create(make(replace(AUTO, lr=1e-3)), storage)
