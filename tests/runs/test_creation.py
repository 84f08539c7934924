from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
import uuid
from dataclasses import fields, replace

import optuna
import pytest
from optuna.storages import InMemoryStorage
from support import load_again, make_search, new_study
from torch import nn

from vit_ratio_opt.data.digits import load_digits
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.settings import _NEW_IN_2, StudySettings
from vit_ratio_opt.records.study import COMPLETE
from vit_ratio_opt.runs import creation
from vit_ratio_opt.runs.creation import check_study
from vit_ratio_opt.runs.processes import process_name
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.training.recipe import Recipe


@pytest.fixture
def make(digits, dense):
    def make_one(model=dense, data=digits, **changes):
        options = {"budget": 0.6, "recipe": Recipe(epochs=0), "calibration_images": 64}
        return make_search(model, data, **{**options, **changes})

    return make_one


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(creation, "_PATIENCE_SECONDS", 0.0)


def create(search, storage, name="s"):
    return new_study(search, name, storage=storage, screen=False)


# What a number depends on


def _changed(value):
    """Another value of the same type, as JSON."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return {"searched": "fixed"}.get(value, f"{value}x")
    if isinstance(value, list):
        return [*value, _changed(value[-1])]
    return {**value, "more": 1}


def _stored_changes(settings):
    """For every field, what another study may have stored there."""
    absent = {
        "tolerance": 1.0, "rule": {"heads": True}, "ranges": [0.5], "by_cascade": 0.1,
        "noise": 0.3, "cost": "params", "latency_batch": 8, "pruned": "both",
        "criterion": "mine", "trainer": {"lr": 1}, "bounds": {"blocks.0.mlp": [0, 0]},
        "frozen": ["blocks.0"], "calibration_task": "regression", "latency_engine": "compiled",
        "calibration_precision": "bfloat16", "training_precision": "bfloat16", "teacher": "abc",
        "frontier": 8,
    }  # fmt: skip
    for field in fields(StudySettings):
        if field.name != "schema_version":
            value = settings.get(field.name)
            yield field.name, absent[field.name] if value is None else _changed(value)


def test_every_other_setting_is_refused_by_name(make):
    given = {"precision": "float32", "round_to": 1}  # else the study's are taken
    storage, search = InMemoryStorage(), make(recipe=Recipe(epochs=1), **given)
    calibration = replace(search.options.calibration, precision="float32")
    search.options = replace(search.options, calibration=calibration)
    study = create(search, storage)
    settings = study.user_attrs["settings"]
    for name, value in _stored_changes(settings):
        study.set_user_attr("settings", {**settings, name: value})
        for refusing in (
            lambda: check_study(search, "s", storage),
            lambda: create(search, storage),
        ):
            with pytest.raises(InputError, match=rf"exists with other settings: {name}[.\[ ]"):
                refusing()
    study.set_user_attr("settings", settings)
    create(search, storage)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mean": (0.9,)}, "mean"),
        ({"std": (0.05,)}, "std"),
        ({"flip": True}, "flip"),
        ({"classes": tuple("1023456789")}, "classes"),
        ({"source": {"loader": "digits", "interpolation": "bicubic"}}, "preprocessing"),
        ({"name": "numbers"}, "dataset"),
    ],
)
def test_a_study_is_not_resumed_with_other_images(make, digits, change, field):
    storage = InMemoryStorage()
    create(make(), storage)
    with pytest.raises(InputError, match=f"other settings: {field}"):
        create(make(data=replace(digits, **change)), storage)


@pytest.mark.parametrize(("split", "field"), [("train", "training"), ("test", "test")])
def test_a_study_is_not_resumed_with_another_split(make, digits, split, field):
    storage = InMemoryStorage()
    create(make(), storage)
    whole = getattr(digits, split)
    other = replace(digits, **{split: whole.subset(whole.indices.argsort()[1:])})
    with pytest.raises(InputError, match=f"other settings: {field} is"):
        create(make(data=other), storage)


@pytest.mark.parametrize(("name", "value"), [("eps", 1e-3), ("act", None)])
def test_a_study_is_not_resumed_with_another_architecture(make, dense, name, value):
    storage, other = InMemoryStorage(), copy.deepcopy(dense)
    create(make(), storage)
    if name == "act":
        other.blocks[0].mlp.act = nn.ReLU6()
    else:
        other.norm.eps = value
    with pytest.raises(InputError, match=r"other settings: .*architecture\.(norms|activations)"):
        create(make(model=other), storage)


def test_another_version_of_timm_is_no_other_model(make, monkeypatch):
    storage, said = InMemoryStorage(), []
    study = create(make(), storage)
    settings = study.user_attrs["settings"]
    architecture = {**settings["architecture"], "modules": "0123"}
    study.set_user_attr("settings", {**settings, "architecture": architecture})
    with pytest.raises(InputError, match="modules is '0123'"):
        create(make(), storage)
    study.set_user_attr("versions", {**study.user_attrs["versions"], "timm": "1.0.1"})
    monkeypatch.setattr(creation._logger, "warning", said.append)
    create(make(), storage)
    (warning,) = said
    assert "other versions of torch or timm" in warning


def test_opening_a_study_does_not_change_its_plan(make):
    storage = InMemoryStorage()
    study = create(make(noise=0.25), storage)
    assert study.user_attrs["plan"]["noise"] == 0.25
    with pytest.raises(InputError, match=r"noise is 0\.25, not 5"):
        create(make(noise=5.0), storage)
    study.set_user_attr("plan", {**study.user_attrs["plan"], "noise": 0.125})
    create(make(noise=0.25), storage)
    assert study.user_attrs["plan"]["noise"] == 0.125


@pytest.mark.parametrize("confidence", [0.5, 1, 0.2, float("nan")])
def test_a_confidence_is_a_probability_above_one_half(make, confidence):
    with pytest.raises(InputError, match=r"`confidence` must be above 0\.5 and below 1"):
        make(budget=None, tolerance=1.0, confidence=confidence)


def test_a_worker_takes_the_precision_of_the_study(make):
    storage = InMemoryStorage()
    create(make(precision="bfloat16"), storage)
    joining = make()
    create(joining, storage)
    assert joining.precision == joining.settings.precision == "bfloat16"
    with pytest.raises(InputError, match="precision is 'bfloat16', not 'float32'"):
        create(make(precision="float32"), storage)
    with pytest.raises(InputError, match=r"`precision` must be one of .*'int8'"):
        make(precision="int8")


def test_a_worker_takes_the_sizes_of_the_study_whatever_its_device_prefers(make, monkeypatch):
    storage, prefers = InMemoryStorage(), "vit_ratio_opt.runs.pricing.usual_round_to"
    first = make()
    study = create(first, storage)
    assert study.user_attrs["settings"]["round_to"] == 1  # as of studies before there was "auto"
    monkeypatch.setattr(prefers, lambda shape, device: 4)
    joining = make()
    assert joining.settings.round_to == 4
    assert len(joining.space.ffn_ratios) < len(first.space.ffn_ratios)
    create(joining, storage)
    assert joining.settings == first.settings
    assert (joining.curve, joining.baseline) == (first.curve, first.baseline)
    with pytest.raises(InputError, match="round_to is 1, not 2"):
        create(make(round_to=2), storage)
    assert create(make(), storage, "t").user_attrs["settings"]["round_to"] == 4


def test_the_precision_is_that_of_training_and_evaluation(make):
    trial = {"mhsa_ratio": 0.5, "ffn_ratio": 0.5}
    recipe = Recipe(epochs=1, batch_size=512)
    losses = []
    for precision in ("float32", "bfloat16"):
        search, fixed = make(recipe=recipe, precision=precision), optuna.trial.FixedTrial(trial)
        search.objective(fixed)
        losses.append(fixed.user_attrs["losses"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


# Studies of version 0.1.0


def _as_version_1(study):
    """Attributes as version 0.1.0 wrote them."""
    attributes = study.user_attrs
    settings = {k: v for k, v in attributes["settings"].items() if k not in _NEW_IN_2}
    del settings["schema_version"], attributes[COMPLETE]
    origin = {**attributes["origin"], "noise": None, "confirmations": 1}
    return {**attributes, "settings": settings, "origin": origin}


def test_a_study_of_version_1_is_resumed_and_says_what_is_not_compared(make, monkeypatch):
    storage, said = InMemoryStorage(), []
    attributes = _as_version_1(create(make(), storage, "new"))
    old = optuna.create_study(study_name="old", storage=storage, direction="maximize")
    missing = ("origin", "screened", "path", "plan")
    for key in attributes.keys() - set(missing):
        old.set_user_attr(key, attributes[key])
    monkeypatch.setattr(creation._logger, "warning", said.append)
    create(make(noise=0.5), storage, "old")
    assert len(said) == 1
    assert "did not record" in said[0]
    assert "mean" in said[0]
    assert set(missing) <= old.user_attrs.keys()
    with pytest.raises(InputError, match=r"budget is 0\.6, not 0\.5"):
        create(make(budget=0.5), storage, "old")
    old.set_user_attr("origin", attributes["origin"])
    with pytest.raises(InputError, match="confirmations is 1, not 3"):
        create(make(confirmations=3), storage, "old")


def test_a_resumed_study_of_version_1_has_the_answer_of_its_sampler(make, make_study):
    storage = InMemoryStorage()
    attributes = _as_version_1(create(make(), storage, "new"))
    old = optuna.create_study(study_name="old", storage=storage, direction="maximize")
    curve = attributes["plan"]["curve"]
    for key, value in (attributes | {"plan": {"curve": curve, "noise": 0.25}}).items():
        old.set_user_attr(key, value)
    resumed = create(make(), storage, "old")
    plan = {key: value for key, value in attributes["plan"].items() if key != "forecast"}
    assert resumed.user_attrs["plan"] == plan == resumed.sampler.plan.to_json()
    (trial, *_) = make_study(trials=1).trials
    for pair, accuracy in zip(
        [attributes["plan"]["baseline"], *curve], (21.0, 20.0), strict=False
    ):
        resumed.add_trial(
            optuna.trial.create_trial(
                params=dict(zip(trial.params, pair, strict=True)),
                value=accuracy,
                distributions=trial.distributions,
                user_attrs={**trial.user_attrs, "accuracy": accuracy},
            )
        )
    assert answer_of(resumed).found.pair == resumed.sampler.answer(resumed)
    assert answer_of(resumed).is_baseline


def test_a_worker_joins_a_study_of_version_1(url, tmp_path, digits):
    model = create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, num_classes=10,
    )  # fmt: skip
    save_dense(model, tmp_path / "dense.safetensors")
    search = make_search(model, digits, budget=0.6, recipe=Recipe(epochs=0), confirmations=2)
    study = create(search, url)
    attributes = _as_version_1(study)
    attributes["origin"] |= {"noise": 0.3, "confirmations": 2}
    optuna.delete_study(study_name="s", storage=url)
    old = optuna.create_study(study_name="s", storage=url, direction="maximize")
    for key, value in attributes.items():
        old.set_user_attr(key, value)
    joined = load_again("s", url)
    assert (joined.options.noise, joined.options.confirmations, joined.settings.confidence) == (
        0.3,
        2,
        0.8,
    )
    create(joined, url)


# Interrupted creations


class _KilledError(BaseException):
    pass


class _Mortal(InMemoryStorage):
    """A storage whose process dies at the write of this number, before or after it."""

    def __init__(self):
        super().__init__()
        self.writes, self.dies_at = 0, None

    def _write(self, write, *arguments):
        if self.writes == self.dies_at:
            raise _KilledError
        self.writes += 1
        return write(*arguments)

    def create_new_study(self, *arguments):
        return self._write(super().create_new_study, *arguments)

    def delete_study(self, *arguments):
        return self._write(super().delete_study, *arguments)

    def set_study_user_attr(self, *arguments):
        return self._write(super().set_study_user_attr, *arguments)

    def set_study_system_attr(self, *arguments):
        return self._write(super().set_study_system_attr, *arguments)


def _killed_at(storage, write, search):
    """Whether a creation that dies at its write of this number was killed."""
    storage.writes, storage.dies_at = 0, write
    try:
        create(search, storage)
    except _KilledError:
        return True
    finally:
        storage.dies_at = None
    return False


def test_a_creation_that_is_killed_at_any_write_is_finished_by_the_next(make, impatient):
    search = make()
    whole = create(search, _Mortal()).user_attrs
    first = 0
    while True:
        storage = _Mortal()
        if not _killed_at(storage, first, search):
            break
        assert create(search, storage).user_attrs == whole
        assert [study.study_name for study in storage.get_all_studies()] == ["s"]
        first += 1
    assert first == len(whole) + 2  # create, name of the metric, attributes
    for second in range(first + 3):  # the next one may be killed, too
        storage = _Mortal()
        assert _killed_at(storage, 4, search)
        assert _killed_at(storage, second, search)
        assert create(search, storage).user_attrs == whole
        assert [study.study_name for study in storage.get_all_studies()] == ["s"]


def test_a_placeholder_of_a_killed_process_is_removed_and_one_of_a_living_is_not(make):
    storage = InMemoryStorage()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        number: f"placeholder of {process_name(number)} {uuid.uuid4()}"
        for number in (dead.pid, os.getppid())
    }
    for name in names.values():
        optuna.create_study(study_name=name, storage=storage)
    create(make(), storage)
    left = {study.study_name for study in storage.get_all_studies()}
    assert left == {"s", names[os.getppid()]}


def test_other_settings_do_not_replace_an_interrupted_creation(make, impatient):
    storage = _Mortal()
    assert _killed_at(storage, 4, make())
    with pytest.raises(InputError, match=r"budget is 0\.6, not 0\.5"):
        create(make(budget=0.5), storage)
    create(make(), storage)


def test_an_empty_study_is_finished_and_one_of_somebody_else_is_refused(make, impatient):
    storage = InMemoryStorage()
    optuna.create_study(study_name="s", storage=storage)  # in another direction
    study = create(make(), storage)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    for name in ("attribute", "trial", "note"):
        foreign = optuna.create_study(study_name=name, storage=storage)
        if name == "attribute":
            foreign.set_user_attr("mine", 1)
        elif name == "trial":
            foreign.ask()
        else:
            storage.set_study_system_attr(foreign._study_id, "dashboard:note", "mine")
        with pytest.raises(InputError, match="not created by vit_ratio_opt"):
            create(make(), storage, name)


def test_a_slow_creator_that_was_replaced_takes_over_what_is_there(make, monkeypatch, impatient):
    """Its writes go nowhere: the study that it claimed is gone, its number not used again."""
    storage = _Mortal()
    slow, fast = make(), make()
    slow.objective.dense_accuracy, fast.objective.dense_accuracy = 11.0, 22.0
    write = storage.set_study_user_attr

    def overtaken(study_id, key, value):
        if key == "origin" and storage.set_study_user_attr is overtaken:
            monkeypatch.setattr(storage, "set_study_user_attr", write)
            create(fast, storage)
        write(study_id, key, value)

    monkeypatch.setattr(storage, "set_study_user_attr", overtaken)
    study = create(slow, storage)
    assert study.user_attrs["dense"]["val_accuracy"] == slow.dense_accuracy == 22.0
    assert len(storage.get_all_studies()) == 1


def test_a_deleted_study_gives_its_number_to_nobody(make, url, monkeypatch):
    """SQLite would, and a late write or deletion would hit the new study."""
    monkeypatch.setattr(creation, "_PATIENCE_SECONDS", 0.0)
    storage = open_storage(url)
    half = optuna.create_study(study_name="s", storage=storage)
    study = create(make(), storage)
    assert study._study_id != half._study_id
    with pytest.raises(KeyError):
        storage.delete_study(half._study_id)
    assert [one.study_name for one in storage.get_all_studies()] == ["s"]


# Races


def _race(url, index, rounds, barrier, path):
    """Create a study in every round, in even ones with the settings of all others."""
    model = create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=1,
        num_heads=4, num_classes=10,
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.data.zero_()
    searches = [
        make_search(model, load_digits(), budget=budget, recipe=Recipe(epochs=0), progress=False)
        for budget in (0.6, 0.5 + index / 100)
    ]
    found = []
    for number in range(rounds):
        search = searches[number % 2]
        search.objective.dense_accuracy = 10.0 + index  # measured a little differently everywhere
        search.settings  # noqa: B018 - hashes are computed once
        barrier.wait()
        try:
            create(search, open_storage(url), f"round {number}")
            found.append(search.dense_accuracy)
        except InputError as error:
            found.append(str(error))
    path.write_text(json.dumps(found))


def test_of_racing_creations_one_wins_and_nothing_is_mixed(start, forkserver, url, tmp_path):
    processes, rounds = 4, 4
    barrier = forkserver.Barrier(processes)
    paths = [tmp_path / f"{index}.json" for index in range(processes)]
    started = [start(_race, url, index, rounds, barrier, path) for index, path in enumerate(paths)]
    deadline = time.monotonic() + 100
    for process in started:
        process.join(max(0.1, deadline - time.monotonic()))
    assert [p.exitcode for p in started] == [0] * processes, (tmp_path / "log").read_text()
    for number, results in enumerate(
        zip(*(json.loads(p.read_text()) for p in paths), strict=True)
    ):
        stored = optuna.load_study(study_name=f"round {number}", storage=url).user_attrs
        winner = round(stored["dense"]["val_accuracy"] - 10)
        accuracies = [result for result in results if not isinstance(result, str)]
        assert set(accuracies) == {10.0 + winner}
        if number % 2:
            assert len(accuracies) == 1
            assert stored["settings"]["budget"] == 0.5 + winner / 100
            refused = [text for text in results if isinstance(text, str)]
            for text in refused:
                assert "exists with other settings: budget is" in text
        else:
            assert len(accuracies) == processes
        assert stored[COMPLETE]
    names = [study.study_name for study in optuna.get_all_study_summaries(url)]
    assert len(names) == rounds
