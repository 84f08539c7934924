import json
from dataclasses import fields, replace

import pytest

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.settings import SCHEMA_VERSION, StudySettings

SETTINGS = StudySettings(
    strategy="searched", budget=0.6, tolerance=None, model="vit_tiny", weights="abc",
    architecture={"norms": ["LayerNorm(eps=1e-06)"], "modules": "def"}, dataset="digits",
    training="1", validation="2", test="3", image_shape=(1, 8, 8), preprocessing={},
    classes=("zero", "one"), mean=(0.5,), std=(0.25,), flip=False,
    recipe={"epochs": 1, "lr": 1e-3}, iterative=False, mhsa_unit="rank", repair=True,
    allocation="global", round_to=1, calibration_images=64, seed=0, noise=None, confirmations=1,
    confidence=0.8, precision="float32",
)  # fmt: skip


def as_stored(settings):
    return json.loads(json.dumps(settings.to_json()))


def test_settings_come_back_from_json():
    assert StudySettings.from_json(as_stored(SETTINGS)) == SETTINGS
    cascade = replace(
        SETTINGS, budget=None, tolerance=2.0, pruned="both", rule={"heads": False},
        ranges=(0.5, 0.25), by_cascade=0.05, noise=0.3,
    )  # fmt: skip
    assert StudySettings.from_json(as_stored(cascade)) == cascade
    assert as_stored(SETTINGS)["schema_version"] == SCHEMA_VERSION


def test_what_version_1_left_out_is_left_out_still():
    assert not {"cost", "latency_batch", "pruned", "rule"} & as_stored(SETTINGS).keys()
    assert as_stored(replace(SETTINGS, cost="latency", latency_batch=8))["latency_batch"] == 8
    assert "training_precision" not in as_stored(SETTINGS)
    mixed = replace(SETTINGS, training_precision="bfloat16")
    assert StudySettings.from_json(as_stored(mixed)) == mixed


def test_an_engine_is_stored_unless_it_is_eager_and_an_earlier_flag_is_read():
    assert "latency_engine" not in as_stored(SETTINGS)
    compiled = replace(SETTINGS, cost="latency", latency_engine="compiled")
    stored = as_stored(compiled)
    assert stored["latency_engine"] == "compiled"
    del stored["latency_engine"]
    assert StudySettings.from_json({**stored, "latency_compiled": True}) == compiled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 5}, "`model` of the settings must be str, but is 5"),
        ({"mean": [float("nan")]}, r"`mean` of the settings must be .*float.*nan"),
        ({"recipe": {"lr": float("inf")}}, "`recipe` of the settings must be dict"),
        ({"recipe": [1, 2]}, r"`recipe` .* but is \[1, 2\]"),
        ({"seed": True}, "`seed` of the settings must be int, but is True"),
        ({"seed": 1.5}, "`seed`"),
        ({"repair": 1}, "`repair` of the settings must be bool"),
        ({"strategy": "random"}, "`strategy`.*'random'"),
        ({"strategy": ["fixed"]}, "`strategy`"),
        ({"classes": "ab"}, "`classes`"),
        ({"budget": "0.6"}, "`budget`"),
        ({"flops": 1}, "unknown field `flops`"),
        ({"latency_compiled": "yes"}, "`latency_compiled` of the settings must be bool"),
        ({"schema_version": "2"}, "`schema_version` of the settings must be int"),
        ({"schema_version": 9}, "newer vit_ratio_opt.*upgrade"),
    ],
)
def test_a_field_of_another_type_is_named(change, message):
    with pytest.raises(InputError, match=message):
        StudySettings.from_json({**as_stored(SETTINGS), **change})


@pytest.mark.parametrize("stored", [None, [], "settings", 3])
def test_settings_that_are_no_object_are_refused(stored):
    with pytest.raises(InputError, match="must be a JSON object"):
        StudySettings.from_json(stored)


def test_a_missing_field_is_named():
    for name in as_stored(SETTINGS).keys() - {"schema_version"}:
        stored = as_stored(SETTINGS)
        del stored[name]
        with pytest.raises(InputError, match=f"no field `{name}`"):
            StudySettings.from_json(stored)


def test_a_recipe_of_no_epochs_depends_on_no_other_hyperparameter():
    untrained, fast = ({"epochs": 0, "lr": lr} for lr in (1e-3, 1e9))
    assert replace(SETTINGS, recipe=untrained).differences(replace(SETTINGS, recipe=fast)) == []
    trained = replace(SETTINGS, recipe={"epochs": 1, "lr": 1e-3})
    assert replace(SETTINGS, recipe=untrained).differences(trained)[0].startswith("recipe.epochs")


def test_the_metric_of_models_that_are_not_trained_is_a_setting():
    accuracy, f1 = (
        replace(SETTINGS, recipe={"epochs": 0, **metric})
        for metric in ({}, {"metric": "macro_f1"})
    )
    assert accuracy.differences(f1) == ["recipe.metric is unset, not 'macro_f1'"]


def test_a_setting_that_one_of_two_does_not_have_is_unset():
    with_budget = replace(SETTINGS, budget=0.6, tolerance=None)
    with_tolerance = replace(SETTINGS, budget=None, tolerance=1.0)
    assert with_budget.differences(with_tolerance) == [
        "budget is 0.6, not unset", "tolerance is unset, not 1.0",
    ]  # fmt: skip


def test_differences_are_named_down_to_the_entry():
    other = replace(
        SETTINGS, recipe={"epochs": 2, "lr": 1e-3}, classes=("zero", "two"), mean=(0.5, 0.5),
        architecture={**SETTINGS.architecture, "norms": ["LayerNorm(eps=1e-05)"]},
    )  # fmt: skip
    assert SETTINGS.differences(other) == [
        "architecture.norms[0] is 'LayerNorm(eps=1e-06)', not 'LayerNorm(eps=1e-05)'",
        "classes[1] is 'one', not 'two'",
        "mean is [0.5], not [0.5, 0.5]",
        "recipe.epochs is 1, not 2",
    ]
    assert SETTINGS.differences(SETTINGS) == []


def test_version_1_is_read_and_what_it_did_not_record_is_not_compared():
    old = as_stored(SETTINGS)
    for name in ("schema_version", "mean", "noise", "precision", "architecture", "training"):
        del old[name]
    settings = StudySettings.from_json(old)
    assert settings.schema_version == 1
    assert set(settings.unknown) == {"mean", "noise", "precision", "architecture", "training"}
    assert settings.differences(replace(SETTINGS, mean=(0.1,), noise=2.0)) == []
    assert settings.differences(replace(SETTINGS, seed=1)) == ["seed is 0, not 1"]


def test_every_field_is_compared():
    for field in fields(StudySettings):
        changed = replace(SETTINGS, **{field.name: 7.5})
        named = [text.split()[0] for text in SETTINGS.differences(changed)]
        assert named == ([] if field.name == "schema_version" else [field.name])
