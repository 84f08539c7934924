"""A trial whose saved training state is damaged, or of something else, begins again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState
from support import make_search, new_study

import vit_ratio_opt.training.trainer as trainer_module
from vit_ratio_opt.training.recipe import Recipe


@pytest.fixture
def make(few_digits, dense, tmp_path):
    def make_one(model=dense, **changes):
        options = {
            "budget": 0.6, "recipe": Recipe(epochs=3, batch_size=128), "progress": False,
            "calibration_images": 64, "checkpoints": tmp_path / "models", "state_every": 0,
        }  # fmt: skip
        search = make_search(model, few_digits, **{**options, **changes})
        search.journal.attach = None  # drawing a training takes longer than the training
        return search

    return make_one


def interrupted(search, storage, name, monkeypatch, pair=None):
    """A study with a trial that ended after its first epoch, and the file of its state."""
    original = trainer_module.finetune

    def stops(model, data, recipe, context, **options):
        def once(*values):
            context.report(*values)
            raise RuntimeError("gone")

        return original(model, data, recipe, replace(context, report=once), **options)

    study = new_study(search, name, storage=storage, screen=False)
    if pair is not None:
        study.enqueue_trial(pair._asdict())
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "finetune", stops)
        study.optimize(search.objective, n_trials=1, catch=RuntimeError)
    name = study.trials[0].user_attrs["training_state"]["artifact"]
    return study, Path(search.journal.artifacts) / name


def a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", ["another pair", "another model", "no repair", "a bit"])
def test_a_trial_begins_again_with_a_word_and_ends_as_if_nothing_had_been(
    make, memory, monkeypatch, caplog, harm, make_dense
):
    straight = new_study(make(), "straight", storage=memory, screen=False)
    make().run(straight, n_trials=1, say=lambda line: None, explain=False)
    study, state = interrupted(make(), memory, "s", monkeypatch)
    pair = make().baseline
    if harm == "another pair":
        _, other = interrupted(make(), memory, "other", monkeypatch, make().curve[0])
    elif harm == "another model":
        _, other = interrupted(make(make_dense(1)), memory, "other", monkeypatch)
    elif harm == "no repair":
        _, other = interrupted(make(repair=False), memory, "other", monkeypatch)
    if harm == "a bit":
        a_bit(state)
    else:
        shutil.copy(other, state)
    optuna.logging.enable_propagation()
    make().run(study, n_trials=1, say=lambda line: None, explain=False)
    optuna.logging.disable_propagation()
    failed, trial = study.trials
    assert (failed.state, trial.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert tuple(trial.params.values()) == pair
    assert "Trial 1 begins again: the state of trial 0 " in caplog.text
    assert "resumed_from" not in trial.user_attrs
    (alone,) = straight.trials
    assert trial.value == alone.value
    assert trial.user_attrs["losses"] == alone.user_attrs["losses"]
    assert trial.intermediate_values == alone.intermediate_values


@pytest.fixture
def make_dense():
    import timm

    def make(seed):
        torch.manual_seed(seed)
        return timm.create_model(
            "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
            num_heads=4, mlp_ratio=2.0, num_classes=10,
        )  # fmt: skip

    return make
