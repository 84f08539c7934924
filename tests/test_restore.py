from __future__ import annotations

import json
from weakref import WeakKeyDictionary

import optuna
import pytest
from support import load_again, make_search, new_study

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.latency import timing
from vit_ratio_opt.model_files.load import load_again as load_model_again
from vit_ratio_opt.model_files.load import load_dense, load_pruned
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.create import create_model, source_of
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.space.tokens import CascadeRule
from vit_ratio_opt.training.recipe import Recipe

MODEL = "vit_tiny_patch16_224"
ARGUMENTS = {
    "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 4,
    "mlp_ratio": 2.0, "num_classes": 10,
}  # fmt: skip


@pytest.fixture
def dense_file(tmp_path):
    path = tmp_path / "dense.safetensors"
    save_dense(create_model(MODEL, **ARGUMENTS), path, name=MODEL, arguments=ARGUMENTS)
    return path


LOOKED_AT = [{"budget": 0.6}, {"tolerance": 2.0, "noise": 0.3, "confirmations": 2}]


@pytest.mark.parametrize(
    "options",
    [
        *LOOKED_AT,
        {"budget": 0.6, "fixed_ratio": True, "mhsa_unit": "head", "repair": False},
        {"budget": 0.9, "strategy": "cascade"},
        {"budget": 0.6, "cost": "params"},
        {"tolerance": 5.0, "cost": "params", "mhsa_unit": "head"},
        {"tolerance": 5.0, "strategy": "both", "rule": CascadeRule(schedule="late")},
        {"budget": 0.6, "round_to": 4, "allocation": "energy", "iterative": True, "seed": 3},
    ],
)
def test_a_study_gives_its_search_back(digits, dense_file, tmp_path, url, options):
    made = make_search(
        load_dense(dense_file),
        digits,
        recipe=Recipe(epochs=0, lr=1e-4),
        calibration_images=64,
        checkpoints=tmp_path / "models",
        **options,
    )
    # A look without training takes seconds: one within a budget and one with a tolerance.
    study = new_study(made, "s", storage=url, screen=options in LOOKED_AT)
    json.dumps(study.user_attrs)
    again = load_again("s", url)
    assert again.settings == made.settings
    assert again.origin == made.origin
    joined = again.create_study("s", storage=url)
    assert vars(joined.sampler)["_plan"] == vars(study.sampler)["_plan"] or (
        vars(joined.sampler)["_plan"].propose({}) == vars(study.sampler)["_plan"].propose({})
    )
    again.run(joined, n_trials=1, say=lambda line: None, explain=False)
    assert joined.trials[0].state.is_finished()


def test_a_worker_takes_the_studys_word_for_the_dense_accuracy(digits, dense_file, url):
    search = make_search(load_dense(dense_file), digits, budget=0.6, recipe=Recipe(epochs=0))
    study = new_study(search, "s", storage=url, screen=False)
    dense = study.user_attrs["dense"]
    study.set_user_attr("dense", {**dense, "val_accuracy": dense["val_accuracy"] + 1})
    again = load_again("s", url)
    again.create_study("s", storage=url)
    assert again.dense_accuracy == dense["val_accuracy"] + 1


def test_a_pruned_model_is_found_again_with_the_dense_one_it_came_from(
    digits, dense_file, tmp_path, url
):
    options = {"recipe": Recipe(epochs=0), "calibration_images": 64}
    first = make_search(
        load_dense(dense_file), digits, budget=0.6, checkpoints=tmp_path / "m", **options
    )
    study = new_study(first, "first", storage=url, screen=False)
    first.run(study, n_trials=1, say=lambda line: None, explain=False)
    start, _ = load_pruned(tmp_path / "m" / "trial-0000.safetensors", load_dense(dense_file))
    second = make_search(start, digits, budget=0.8, **options)
    new_study(second, "second", storage=url, screen=False)
    assert load_again("second", open_storage(url)).settings == second.settings
    moved = dense_file.rename(tmp_path / "moved.safetensors")
    with pytest.raises(InputError, match="no checkpoint"):
        load_again("second", open_storage(url))
    again = load_again(
        "second", open_storage(url), checkpoint=moved,
        start=tmp_path / "m" / "trial-0000.safetensors",
    )  # fmt: skip
    assert again.settings == second.settings
    with pytest.raises(InputError, match="leave --start out"):
        load_again("first", open_storage(url), checkpoint=moved, start=moved)


def test_a_model_of_no_file_is_asked_for(digits, url, tmp_path):
    model = create_model(MODEL, **ARGUMENTS)
    assert source_of(model) is None
    made = make_search(model, digits, budget=0.6, recipe=Recipe(epochs=0))
    new_study(made, "s", storage=url, screen=False)
    with pytest.raises(InputError, match="the place of its dense model: give --checkpoint"):
        load_again("s", url)
    path = tmp_path / "model.safetensors"
    save_dense(model, path, name=MODEL, arguments=ARGUMENTS)
    assert load_again("s", open_storage(url), checkpoint=path).settings.budget == 0.6
    other = tmp_path / "other.safetensors"
    save_dense(create_model(MODEL, **ARGUMENTS), other, name=MODEL, arguments=ARGUMENTS)
    with pytest.raises(InputError, match=r"other weights .*: --checkpoint is .*; give what the"):
        load_again("s", open_storage(url), checkpoint=other)
    assert weights_hash(load_model_again(source_of(model))) == weights_hash(model)


def test_a_study_of_another_version_is_one_sentence(digits, dense_file, url):
    search = make_search(load_dense(dense_file), digits, budget=0.6, recipe=Recipe(epochs=0))
    study = new_study(search, "s", storage=url, screen=False)
    settings = study.user_attrs["settings"]
    study.set_user_attr("settings", {**settings, "recipe": {**settings["recipe"], "new": 1}})
    with pytest.raises(InputError, match="another version of vit_ratio_opt"):
        load_again("s", url)


@pytest.mark.parametrize("source", [{}, {"checkpoint": "x"}, {"pruned": "x"}])
def test_other_sources_of_models_are_refused(source):
    with pytest.raises(InputError, match="from its place in the study"):
        load_model_again(source)


def test_a_study_that_is_not_there_is_refused(url):
    storage = open_storage(url)
    optuna.create_study(study_name="foreign", storage=storage)
    with pytest.raises(InputError, match="no study 's'"):
        load_again("s", storage)
    with pytest.raises(InputError, match="not created by vit_ratio_opt"):
        load_again("foreign", storage)


@pytest.mark.parametrize("device", ["nosuch", "cuda:99"])
def test_a_device_that_is_not_there_is_one_sentence(digits, dense_file, device):
    with pytest.raises(InputError, match=f"`device` must be one of this machine.*'{device}'"):
        make_search(load_dense(dense_file), digits, budget=0.6, device=device)


def test_a_worker_on_another_device_searches_the_same_pairs(
    digits, dense_file, tmp_path, url, monkeypatch
):
    shapes = WeakKeyDictionary()  # each model is timed twenty times

    def device(slow: float):
        """One on which heads, or neurons, take their time."""

        def runs(model, images, count):
            if model not in shapes:
                shapes[model] = shape_of(model)
            shape = shapes[model]
            seconds = 1e-4 + slow * shape.attention_dims + (1 - slow) * shape.neurons
            return [1e-6 * seconds] * count

        monkeypatch.setattr(timing, "time_runs", runs)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{slow}"))

    device(slow=0.9)
    made = make_search(
        load_dense(dense_file), digits, budget=0.6, cost="latency", latency_batch=2,
        recipe=Recipe(epochs=0), calibration_images=64, checkpoints=tmp_path / "models",
    )  # fmt: skip
    study = new_study(made, "s", storage=url, screen=False)
    json.dumps(study.user_attrs)
    device(slow=0.1)
    again = load_again("s", url)
    assert again.curve == made.curve
    assert again.settings == made.settings
    assert again.space.cost == made.space.cost
    joined = again.create_study("s", storage=url)
    assert joined.sampler.nothing_left(joined) is None
    own = make_search(
        load_dense(dense_file), digits, budget=0.6, cost="latency", latency_batch=2,
        recipe=Recipe(epochs=0), calibration_images=64,
    )  # fmt: skip
    assert own.curve != made.curve  # so that it does matter


def test_a_model_that_computes_something_else_is_refused(digits, dense_file, tmp_path, url):
    search = make_search(
        load_dense(dense_file),
        digits,
        budget=0.6,
        recipe=Recipe(epochs=0),
        calibration_images=64,
    )
    new_study(search, "s", storage=url, screen=False)
    other = load_dense(dense_file, act_layer="relu6")
    save_dense(other, tmp_path / "other.safetensors")
    assert weights_hash(other) == search.settings.weights
    with pytest.raises(InputError, match=r"computes something else \(activations"):
        load_again("s", url, checkpoint=tmp_path / "other.safetensors")
