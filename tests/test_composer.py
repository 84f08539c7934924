"""A search as a user composes it, and that no setting of it can be forgotten."""

from __future__ import annotations

import inspect
import pkgutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from PIL import Image
from support import new_study

import vit_ratio_opt as vro
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.pruning.importance import magnitude_importance
from vit_ratio_opt.space.tokens import CP_VIT, LATE, CascadeRule

MODEL = "vit_tiny_patch16_224"
ARGUMENTS = {
    "img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4,
    "mlp_ratio": 2.0,
}  # fmt: skip


def save_dense(path: Path, **arguments: Any) -> Path:
    torch.manual_seed(0)
    arguments = ARGUMENTS | arguments
    vro.save_dense(create_model(MODEL, **arguments), path, name=MODEL, arguments=arguments)
    return path


# The first example of the README


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with images of two classes, bright and dark, and the file of a dense model."""
    place, random = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 20)):
        for label, brightest in (("dark", 128), ("bright", 255)):
            folder = place / "images" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, brightest, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    save_dense(place / "vit.safetensors", num_classes=2)
    return place


def compose(place: Path, **changes: Any) -> vro.Search:
    """A user's script, run once more each time."""
    dense = vro.load_dense(place / "vit.safetensors")
    data = vro.image_folder(place / "images", preprocess=vro.preprocess_of(dense))
    return vro.Search(
        dense,
        data,
        limit=vro.Budget(0.6),
        training=vro.Recipe(batch_size=16),
        options=vro.SearchOptions(calibration=vro.CalibrationOptions(images=32)),
        run=vro.RunOptions(checkpoints=place / "models", progress=False),
        **changes,
    )


@pytest.fixture(scope="module")
def first(place):
    """The search and its study of two trials."""
    search = compose(place)
    study = search.create_study("first", storage=f"sqlite:///{place / 'study.db'}")
    search.run(study, n_trials=2, say=lambda line: None)
    return search, study


def test_a_search_answers_with_a_model_that_is_timms(first, place):
    search, study = first
    answer = search.answer(study)
    text = str(answer)
    assert f"MHSA ratio {answer.found.pair[0]:.3f}" in text
    assert "% of the FLOPs" in text
    assert "accuracy expected" in text
    model = answer.load_model()
    assert type(model).__module__.startswith("timm.")
    assert vro.shape_of(model).macs <= 0.6 * vro.shape_of(search.dense).macs
    images, _ = next(search.data.batches(search.data.val, 8, torch.device("cpu")))
    assert model(images).shape == (8, 2)
    assert model.training is False
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2


def test_the_test_split_is_read_once_by_a_search(first, monkeypatch):
    search, study = first
    accuracy = search.test(study)
    assert 0 <= accuracy <= 100
    assert study.user_attrs["tested"]["accuracy"] == accuracy
    monkeypatch.setattr(search.trainer, "test", None)
    assert search.test(study) == accuracy


def test_the_same_script_resumes_its_study(first, place):
    _, before = first
    said: list[str] = []
    search = compose(place)
    study = search.create_study("first", storage=f"sqlite:///{place / 'study.db'}")
    assert len(study.trials) == 2
    search.run(study, n_trials=2, say=said.append, explain=False)
    assert any("2 of 2 trials are done" in line for line in said)
    study.optimize(search.objective, n_trials=1)  # the other way to run it
    assert len(study.trials) == 3
    assert search.answer(study).found.trial.number < 3
    with pytest.raises(InputError, match="cost is 'macs', not 'params'"):
        compose(place, cost="params").create_study("first", storage=before._storage)


def test_a_search_of_another_machine_gives_the_same_answer(first):
    search, study = first
    again = vro.load_search("first", study._storage)
    assert again.settings == search.settings
    assert again.answer(study) == search.answer(study)
    assert again.answer(study).load_model() is not None


def test_before_any_trial_there_is_no_answer(place):
    search = compose(place)
    study = search.create_study("new", storage=InMemoryStorage())
    assert search.answer(study) is None
    assert search.test(study) is None


def test_without_a_folder_for_models_the_answer_says_so(digits, dense):
    search = vro.Search(dense, digits, vro.Budget(0.6), training=vro.Recipe(epochs=0))
    study = new_study(search, "s", storage=InMemoryStorage(), screen=False)
    search.run(study, 1, say=lambda line: None, explain=False)
    with pytest.raises(InputError, match="`checkpoints` names the folder of a study's models"):
        search.answer(study).load_model()


# No option that changes a result is missing in the settings of a study

# How a field is changed: what the search has in both, and what it has besides in one of them.
Case = tuple[str, dict[str, Any], dict[str, Any]]
TOKENS, BOTH = {"limit": vro.Budget(0.9)}, {"pruning": vro.Both()}
RANGES = (0.25, 0.75)
CURVES = {
    "rest": 1, "mhsa": [[0, 9], [14, 0]], "ffn": [[0, 9], [112, 0]], "error": 0.0,
    "device": "cpu", "batch": 1, "threads": 1,
}  # fmt: skip


def pruned(name: str, changed: Any, **start: Any) -> Case:
    return name, start, {"pruning": changed}


def searched(name: str, **options: Any) -> Case:
    return name, {}, {"options": options}


def trained(name: str, value: Any) -> Case:
    start = {"training": vro.Recipe(epochs=1)}  # with no epochs, nothing else counts
    return f"recipe.{name}", start, {"training": vro.Recipe(**{"epochs": 1, name: value})}


def ruled(name: str, value: Any) -> Case:
    rule = replace(CP_VIT, **{name: value})
    return f"rule.{name}", TOKENS | {"pruning": vro.Tokens()}, {"pruning": vro.Tokens(rule=rule)}


CASES: dict[type, dict[str, Case]] = {
    vro.Budget: {"share": ("budget", {}, {"limit": vro.Budget(0.5)})},
    vro.Tolerance: {
        "points": ("tolerance", {"limit": vro.Tolerance(2.0)}, {"limit": vro.Tolerance(3.0)}),
        "confidence": (
            "confidence", {"limit": vro.Tolerance(2.0)}, {"limit": vro.Tolerance(2.0, 0.9)},
        ),
    },
    vro.Structural: {
        "unit": pruned("mhsa_unit", vro.Structural(unit="head")),
        "repair": pruned("repair", vro.Structural(repair=False)),
        "allocation": pruned("allocation", vro.Structural(allocation="uniform")),
        "round_to": pruned("round_to", vro.Structural(round_to=2)),
        "skip": pruned("bounds", vro.Structural(skip=("blocks.0",))),
        "bounds": pruned("bounds", vro.Structural(bounds={"blocks.0.mlp": (0.0, 0.5)})),
        "criterion": pruned(
            "criterion",
            vro.Structural(unit="head", criterion=magnitude_importance),
            pruning=vro.Structural(unit="head"),
        ),
    },
    vro.Tokens: {
        "rule": pruned("rule.schedule", vro.Tokens(rule=LATE), pruning=vro.Tokens(), **TOKENS),
        "ranges": pruned("ranges", vro.Tokens(ranges=RANGES), pruning=vro.Tokens(), **TOKENS),
    },
    vro.Both: {
        "rule": pruned("rule.scores", vro.Both(rule=replace(LATE, scores="mean")), **BOTH),
        "repair": pruned("repair", vro.Both(repair=False), **BOTH),
        "round_to": pruned("round_to", vro.Both(round_to=2), **BOTH),
        "by_cascade": pruned("by_cascade", vro.Both(by_cascade=0.1), **BOTH),
        "ranges": pruned(
            "ranges", vro.Both(rule=CP_VIT, ranges=RANGES), pruning=vro.Both(rule=CP_VIT),
        ),
    },
    CascadeRule: {
        "schedule": ruled("schedule", "late"),
        "by_range": ruled("by_range", False),
        "left_out": ruled("left_out", "queries"),
        "scores": ruled("scores", "mean"),
        "heads": ruled("heads", True),
    },
    vro.Recipe: {
        name: trained(name, value)
        for name, value in {
            "epochs": 2, "batch_size": 64, "lr": 0.5, "weight_decay": 0.5, "warmup": 0.5,
            "clip_norm": 0.5, "distillation": 0.25, "temperature": 4.0, "ema": 0.5,
            "layer_decay": 0.5, "augment": True, "drop_path": 0.5, "teacher_labels": "hard",
            "label_smoothing": 0.1, "class_weights": "balanced", "metric": "macro_f1",
        }.items()
    },
    vro.CalibrationOptions: {
        "images": searched("calibration_images", calibration=vro.CalibrationOptions(images=32)),
        "precision": searched(
            "calibration_precision",
            calibration=vro.CalibrationOptions(images=64, precision="bfloat16"),
        ),
    },
    vro.SearchOptions: {
        "fixed_ratio": searched("strategy", fixed_ratio=True),
        "noise": searched("noise", noise=0.3),
        "confirmations": searched("confirmations", confirmations=3),
        "iterative": (
            "iterative", {"run": {"checkpoints": "models"}}, {"options": {"iterative": True}},
        ),
        "seed": searched("seed", seed=1),
        "calibration": searched(
            "calibration_images", calibration=vro.CalibrationOptions(images=32)
        ),
    },
    vro.Latency: {
        "batch": (
            "latency_batch", {"cost": vro.Latency(curves=CURVES)},
            {"cost": vro.Latency(8, curves=CURVES)},
        ),
        "engine": (
            "latency_engine", {"cost": vro.Latency(curves=CURVES)},
            {"cost": vro.Latency(curves=CURVES, engine="onnxruntime")},
        ),
    },
    vro.RunOptions: {"precision": ("precision", {}, {"run": {"precision": "bfloat16"}})},
}  # fmt: skip
CHANGES_NO_RESULT = {
    (vro.CalibrationOptions, "cache"): "measurements are found by a hash of what they depend on",
    (vro.CalibrationOptions, "memory"): "what does not fit lies in a file, with the same values",
    (vro.CalibrationOptions, "task"): "the data set's, another one is refused: see test_tasks.py",
    (vro.SearchOptions, "screen"): "the study stores where it begins, and every worker reads it",
    (vro.Latency, "curves"): "measured once and stored by the study, which every worker adopts",
    (vro.RunOptions, "checkpoints"): "a folder for files",
    (vro.RunOptions, "artifacts"): "a place for files",
    (vro.RunOptions, "device"): "the precision, which a device decides by default, is a setting",
    (vro.RunOptions, "progress"): "bars in a terminal",
    (vro.RunOptions, "ranks"): "share each batch, whose size stays the same",
    (vro.RunOptions, "state_every"): "a resumed training ends with the same weights",
}
# Only the script that made such a study has these functions.
NOT_LOADED = {(vro.Structural, "criterion")}
WALK = [(kind, name) for kind, known in CASES.items() for name in known]


def test_every_field_is_a_setting_or_changes_no_result():
    unknown = {
        (kind, field.name)
        for kind in CASES
        for field in fields(kind)
        if field.name not in CASES[kind]
    }
    assert unknown == set(CHANGES_NO_RESULT)
    # Other images and other models are in test_creation.py.
    assert set(inspect.signature(vro.Search).parameters) == {
        "dense", "data", "limit", "cost", "pruning", "training", "options", "run",
    }  # fmt: skip


@pytest.fixture(scope="module")
def digits_file(tmp_path_factory) -> Path:
    return save_dense(
        tmp_path_factory.mktemp("dense") / "dense.safetensors", in_chans=1, num_classes=10
    )


@pytest.fixture
def composed(digits_file, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dense = vro.load_dense(digits_file)

    def make(*changes: dict[str, Any]) -> vro.Search:
        given: dict[str, Any] = {"limit": vro.Budget(0.6), "training": vro.Recipe(epochs=0)}
        options: dict[str, Any] = {"calibration": vro.CalibrationOptions(images=64)}
        run: dict[str, Any] = {"progress": False}
        for change in changes:
            change = dict(change)
            options |= change.pop("options", {})
            run |= change.pop("run", {})
            given |= change
        return vro.Search(
            dense,
            digits,
            options=vro.SearchOptions(**options),
            run=vro.RunOptions(**run),
            **given,
        )

    return make


@pytest.mark.parametrize(("kind", "name"), WALK)
def test_a_field_is_in_the_settings_and_comes_back_with_the_search(composed, kind, name):
    setting, start, changes = CASES[kind][name]
    search = composed(start, changes)
    changed = [
        clause.split()[0].split("[")[0]
        for clause in composed(start).settings.differences(search.settings)
    ]
    assert setting in changed
    storage = InMemoryStorage()
    new_study(search, "s", storage=storage, screen=False)
    if (kind, name) in NOT_LOADED:
        with pytest.raises(InputError, match="custom criterion"):
            vro.load_search("s", storage)
        return
    again = vro.load_search("s", storage)
    assert again.settings == search.settings
    assert again.settings.to_json() == search.settings.to_json()
    assert (again.limit, again.cost.name) == (search.limit, search.cost.name)


def test_no_module_hides_a_public_name():
    """An imported module becomes an attribute of its package, in place of a function's name."""
    modules = [module.name for module in pkgutil.iter_modules(vro.__path__)]
    assert set(vro.__all__).isdisjoint(modules)
    assert all(hasattr(vro, name) for name in vro.__all__)


def test_without_a_word_models_are_kept_beside_a_sqlite_database(digits, dense, tmp_path):
    search = vro.Search(dense, digits, vro.Budget(0.6), training=vro.Recipe(epochs=0))
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = new_study(search, "a study", storage=url, screen=False)
    search.run(study, 1, say=lambda line: None, explain=False)
    answer = search.answer(study)
    assert vro.shape_of(answer.load_model()).macs == answer.found.trial.user_attrs["macs"]
    assert search.test(answer) == search.test(study)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert answer.found.trial.user_attrs["checkpoint"] in [path.name for path in folder.iterdir()]
