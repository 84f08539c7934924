"""A study chooses its precisions by timing; here a fake stands for the clock."""

import optuna
import pytest
from optuna.storages import InMemoryStorage
from support import load_again, make_search, new_study

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.precision import TimedPrecision
from vit_ratio_opt.report.notes import study_note
from vit_ratio_opt.runs import precision
from vit_ratio_opt.training.recipe import Recipe

CURVES = {
    "rest": 1, "mhsa": [[0, 9], [14, 0]], "ffn": [[0, 9], [112, 0]], "error": 0.0,
    "device": "cpu", "batch": 1, "threads": 1,
}  # fmt: skip


@pytest.fixture
def timed(monkeypatch):
    """The directions that were timed; bfloat16 is faster in evaluation and slower in training."""
    directions = []

    def faster(model, image_shape, *, training):
        directions.append("training" if training else "evaluation")
        return TimedPrecision("float32", 0.5) if training else TimedPrecision("bfloat16", 2.0)

    monkeypatch.setattr(precision, "faster_precision", faster)
    return directions


@pytest.fixture
def make(few_digits, dense):
    def make_one(model=dense, data=few_digits, **changes):
        recipe = Recipe(epochs=1, batch_size=128)
        options = {"budget": 0.6, "recipe": recipe, "calibration_images": 64, "progress": False}
        return make_search(model, data, **{**options, **changes})

    return make_one


def precisions_of(search):
    return search.trainer.precision, search.trainer.training_precision


def test_a_new_study_times_once_and_its_workers_take_what_it_stores(make, timed):
    storage, search = InMemoryStorage(), make()
    before = search.dense_accuracy  # in the usual precision
    study = new_study(search, "s", storage=storage, screen=False)
    assert timed == ["evaluation", "training"]
    assert precisions_of(search) == ("bfloat16", "float32")
    stored = study.user_attrs
    assert stored["settings"]["precision"] == "bfloat16"
    assert stored["settings"]["training_precision"] == "float32"
    assert stored["bfloat16_speedup"] == {"evaluation": 2.0, "training": 0.5}
    assert (
        stored["dense"]["val_accuracy"]
        == search.dense_accuracy
        == search.trainer.evaluate(search.dense)
    )
    assert before == pytest.approx(search.dense_accuracy, abs=5)
    note = study_note(study).replace("\\", "")
    assert "2.00 times in evaluation and 0.50 times in training as fast as float32" in note
    for name in ("resumed", "resumed twice"):
        joining = make()
        assert precisions_of(joining) == ("float32", None), name
        new_study(joining, "s", storage=storage, screen=False)
        assert precisions_of(joining) == ("bfloat16", "float32")
        assert joining.settings == search.settings
    assert timed == ["evaluation", "training"]


def test_the_loser_of_two_creations_takes_what_the_winner_measured(make, monkeypatch):
    storage, loser = InMemoryStorage(), make()
    compute = loser.new_attributes

    def computed_meanwhile():
        monkeypatch.setattr(
            precision, "faster_precision", lambda *a, **k: TimedPrecision("bfloat16", 3.0)
        )
        new_study(make(), "s", storage=storage, screen=False)
        monkeypatch.setattr(
            precision, "faster_precision", lambda *a, **k: TimedPrecision("float32", 1.0)
        )
        return compute()

    monkeypatch.setattr(loser, "new_attributes", computed_meanwhile)
    study = new_study(loser, "s", storage=storage, screen=False)
    assert precisions_of(loser) == ("bfloat16", None)
    assert "training_precision" not in study.user_attrs["settings"]
    assert study.user_attrs["bfloat16_speedup"] == {"evaluation": 3.0, "training": 3.0}


@pytest.mark.parametrize("given", ["float32", "bfloat16"])
def test_a_given_precision_is_that_of_both_and_never_times(make, timed, given):
    storage, search = InMemoryStorage(), make(precision=given)
    study = new_study(search, "s", storage=storage, screen=False)
    assert timed == []
    assert precisions_of(search) == (given, None)
    assert "bfloat16_speedup" not in study.user_attrs
    assert "**Precision**" not in study_note(study)
    chosen = new_study(make(), "chosen", storage=storage, screen=False)
    assert chosen.user_attrs["settings"]["training_precision"] == "float32"
    with pytest.raises(
        InputError, match=r"is 'float32', not unset.* give none \(no --precision\)"
    ):
        new_study(make(precision=given), "chosen", storage=storage, screen=False)


def test_a_calibration_is_in_bfloat16_where_training_is_too(make, timed, monkeypatch):
    search = make()
    study = new_study(search, "s", storage=InMemoryStorage(), screen=False)
    assert precisions_of(search) == ("bfloat16", "float32")
    assert search.pruner.precision == "float32"
    assert "calibration_precision" not in study.user_attrs["settings"]
    monkeypatch.setattr(
        precision, "faster_precision", lambda *args, **how: TimedPrecision("bfloat16", 2.0)
    )
    search = make()
    new_study(search, "s", storage=InMemoryStorage(), screen=False)
    assert search.pruner.precision == "bfloat16"


def test_what_a_latency_limits_is_timed_in_the_usual_precision(make, timed):
    search = make(cost="latency", latency=CURVES)
    study = new_study(search, "s", storage=InMemoryStorage(), screen=False)
    assert timed == ["training"]
    assert precisions_of(search) == ("float32", None)
    assert study.user_attrs["bfloat16_speedup"] == {"training": 0.5}


def test_without_training_only_evaluation_is_timed(make, timed):
    search = make(recipe=Recipe(epochs=0))
    new_study(search, "s", storage=InMemoryStorage(), screen=False)
    assert timed == ["evaluation"]
    assert precisions_of(search) == ("bfloat16", None)


@pytest.mark.usefixtures("timed")
def test_a_search_of_a_study_has_both_precisions(make, digits, dense, url, tmp_path):
    arguments = {
        "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2,
        "num_heads": 4, "mlp_ratio": 2.0, "num_classes": 10,
    }  # fmt: skip
    path = tmp_path / "dense.safetensors"
    save_dense(dense, path, name="vit_tiny_patch16_224", arguments=arguments)
    made = make(load_dense(path), digits, checkpoints=tmp_path / "models")
    new_study(made, "s", storage=url, screen=False)
    again = load_again("s", url)
    assert precisions_of(again) == ("bfloat16", "float32")
    assert again.settings == made.settings
    other = again.trainer_for(Recipe(epochs=2))
    assert (other.precision, other.training_precision) == ("bfloat16", "float32")


def test_small_models_of_a_study_are_not_timed(make):
    search = make()
    study = new_study(search, "s", storage=InMemoryStorage(), screen=False)
    assert precisions_of(search) == ("float32", None)
    assert "bfloat16_speedup" not in study.user_attrs
    assert "training_precision" not in study.user_attrs["settings"]


def test_the_choice_is_logged_with_both_ratios(make, timed, caplog):
    optuna.logging.enable_propagation()
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        new_study(make(), "s", storage=InMemoryStorage(), screen=False)
    finally:
        optuna.logging.disable_propagation()
        optuna.logging.set_verbosity(level)
    assert (
        "Models are evaluated in bfloat16 and trained in float32: bfloat16 was 2.00 times in "
        "evaluation and 0.50 times in training as fast as float32."
    ) in caplog.text
