"""States of trainings that are damaged, or of something else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState
from safetensors import safe_open
from safetensors.torch import save_file
from support import make_search, new_study

import vit_ratio_opt.training.trainer as trainer_module
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.saved_state import checksum


@pytest.fixture
def make(digits, dense, tmp_path):
    def make_objective(model=dense, **changes):
        options = {
            "budget": 0.6, "recipe": Recipe(epochs=3, batch_size=256), "progress": False,
            "calibration_images": 64, "checkpoints": tmp_path / "models",
        }  # fmt: skip
        return make_search(model, digits, **{**options, **changes})

    return make_objective


def interrupted(objective, url, name, monkeypatch, pair=None):
    """A study with a trial that ended after its first epoch, and the file of its state."""
    original = trainer_module.finetune

    def stops(model, data, recipe, context, **options):
        def once(*values):
            context.report(*values)
            raise RuntimeError("gone")

        return original(model, data, recipe, replace(context, report=once), **options)

    study = new_study(objective, name, storage=url, screen=False)
    if pair is not None:
        study.enqueue_trial(pair._asdict())
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "finetune", stops)
        study.optimize(objective.objective, n_trials=1, catch=RuntimeError)
    name = study.trials[0].user_attrs["training_state"]["artifact"]
    return study, Path(objective.artifacts) / name


def rewrite(path, change):
    """Change tensors and metadata of a state; its checksum is made anew."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    metadata.pop("checksum")
    change(tensors, metadata)
    metadata["checksum"] = checksum(tensors, metadata)
    save_file(tensors, path, metadata)


def another_format(tensors, metadata):
    metadata["format"] = "vit_ratio_opt training/2"


def other_averages(tensors, metadata):
    """Of the optimiser: torch would notice them at its first step alone."""
    (_, values), *_ = next(
        value
        for part, value in json.loads(metadata["state"])["items"][0][1]["items"]
        if part == "optimizer"
    )["items"][0][1]["items"]
    name = dict(values["items"])["exp_avg"]["tensor"]
    tensors[name] = torch.zeros(3, 5)


def no_model(tensors, metadata):
    state = json.loads(metadata["state"])
    state["items"][0][1]["items"][0][0] = "something else"
    metadata["state"] = json.dumps(state)


def a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        "another pair", "another model", "another recipe", "another precision", "no repair",
        "a bit",
        another_format, other_averages, no_model,
    ],
)  # fmt: skip
def test_a_trial_begins_again_with_a_word_and_ends_as_if_nothing_had_been(
    make, url, monkeypatch, caplog, harm, make_dense
):
    straight = new_study(make(), "straight", storage=url, screen=False)
    make().run(straight, n_trials=1, say=lambda line: None, explain=False)
    study, state = interrupted(make(), url, "s", monkeypatch)
    pair = make().baseline
    if harm == "another pair":
        _, other = interrupted(make(), url, "other", monkeypatch, make().curve[0])
    elif harm == "another model":
        _, other = interrupted(make(make_dense(1)), url, "other", monkeypatch)
    elif harm == "another recipe":
        recipe = Recipe(epochs=2, batch_size=256)
        _, other = interrupted(make(recipe=recipe), url, "other", monkeypatch)
    elif harm == "no repair":
        _, other = interrupted(make(repair=False), url, "other", monkeypatch)
    elif harm == "another precision":
        _, other = interrupted(make(precision="bfloat16"), url, "other", monkeypatch)
    if harm == "a bit":
        a_bit(state)
    elif isinstance(harm, str):
        shutil.copy(other, state)
    else:
        rewrite(state, harm)
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


def test_a_state_of_another_training_is_refused_by_what_differs(make_dense, digits, tmp_path):
    recipe = Recipe(epochs=1, batch_size=256)

    def context(ffn_ratio):
        return TrialContext(state=tmp_path / "state", identity={"pair": [0.5, ffn_ratio]})

    finetune(make_dense(0), digits, recipe, context(0.5))
    with pytest.raises(InputError, match="is of a training with other pair"):
        finetune(make_dense(0), digits, recipe, context(0.25))
    finetune(make_dense(0), digits, recipe, context(0.5))
