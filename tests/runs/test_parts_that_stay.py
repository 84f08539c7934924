"""A study of a model with parts that are not pruned, bounded or not trained."""

from __future__ import annotations

import copy

import optuna
import pytest

from vit_ratio_opt.composer import Search
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.options import CalibrationOptions, Structural
from vit_ratio_opt.records.settings import StudySettings
from vit_ratio_opt.report.sentences import summary
from vit_ratio_opt.restore import load_search
from vit_ratio_opt.runs.options import RunOptions, SearchOptions
from vit_ratio_opt.search.limits import Budget, Tolerance
from vit_ratio_opt.space.shape import BlockShape
from vit_ratio_opt.training.recipe import Recipe

NAME = "vit_tiny_patch16_224"
ARGUMENTS = {
    "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 4,
    "mlp_ratio": 2.0, "num_classes": 10,
}  # fmt: skip
PRUNING = Structural(skip=("blocks.0.mlp",), bounds={"blocks.1.attn": (0.25, 0.5)})
WHOLE = BlockShape(4, 8, 64)


def make(dense, digits, limit=None, pruning=PRUNING):
    options = SearchOptions(calibration=CalibrationOptions(images=64), screen=False)
    return Search(
        dense,
        digits,
        limit or Budget(0.7),
        pruning=pruning,
        training=Recipe(epochs=0),
        options=options,
        run=RunOptions(progress=False, checkpoints=None),
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = create_model(NAME, **ARGUMENTS)
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    save_dense(model, path, name=NAME, arguments=ARGUMENTS)
    return load_dense(path)


@pytest.fixture
def loaded(saved):
    return copy.deepcopy(saved)


def test_every_trial_keeps_the_bounds_and_another_process_knows_them(loaded, digits, url) -> None:
    loaded.patch_embed.requires_grad_(False)
    search = make(loaded, digits)
    study = search.create_study("parts", storage=url)
    search.run(study, 3, explain=False)
    for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
        first, second = (BlockShape(*block) for block in trial.user_attrs["blocks"])
        assert first.hidden_dim == 64
        assert 16 <= second.num_heads * second.head_dim <= 24
        assert trial.params["mhsa_ratio"] >= 0.125
    stored = StudySettings.from_json(study.user_attrs["settings"])
    assert stored.bounds == {"blocks.0.mlp": (0, 0), "blocks.1.attn": (0.25, 0.5)}
    assert stored.frozen == ("patch_embed",)
    again = load_search("parts", url)
    assert again.settings == search.settings
    assert again.pruner.prune(search.curve[0]).patch_embed.proj.weight.requires_grad is False
    text = summary(study)[0]
    assert "Not pruned: blocks.0.mlp. Bounds of single parts: blocks.1.attn loses 25 to" in text
    assert text.endswith("Frozen, so not trained: patch_embed.")


def test_a_study_is_not_resumed_with_other_parts(loaded, digits, url) -> None:
    make(loaded, digits).create_study("parts", storage=url)
    same = Structural(bounds={"blocks.0.mlp": (0, 0), "blocks.1.attn": (0.25, 0.5)})
    make(loaded, digits, pruning=same).create_study("parts", storage=url)
    with pytest.raises(InputError, match=r"other settings: bounds"):
        make(loaded, digits, pruning=Structural()).create_study("parts", storage=url)
    loaded.blocks[1].requires_grad_(False)
    with pytest.raises(InputError, match=r"other settings: frozen is unset, not \['blocks\.1'\]"):
        make(loaded, digits).create_study("parts", storage=url)


def test_a_study_without_parts_stores_none(loaded, digits) -> None:
    settings = make(loaded, digits, pruning=Structural()).settings.to_json()
    assert not {"bounds", "frozen"} & settings.keys()
    assert StudySettings.from_json(settings).bounds is None


@pytest.mark.parametrize("limit", [Budget(0.8), Tolerance(99.0)], ids=["budget", "tolerance"])
@pytest.mark.parametrize("kept", ["attn", "mlp"])
def test_one_module_alone_is_searched_where_the_other_stays(loaded, digits, limit, kept) -> None:
    pruning = Structural(skip=tuple(f"blocks.{i}.{kept}" for i in (0, 1)))
    search = make(loaded, digits, limit, pruning)
    study = search.create_study("one", storage=optuna.storages.InMemoryStorage())
    search.run(study, 3, explain=True)
    found = search.answer(study).found
    assert found is not None
    assert found.pair[0 if kept == "attn" else 1] == 0.0
    assert found.pair[1 if kept == "attn" else 0] > 0.0


def test_a_tolerance_search_with_floors_never_leaves_them(loaded, digits) -> None:
    search = make(loaded, digits, Tolerance(99.0))
    study = search.create_study("floors", storage=optuna.storages.InMemoryStorage())
    study.enqueue_trial({"mhsa_ratio": 0.0, "ffn_ratio": 0.0})
    with pytest.warns(UserWarning, match="out of range"):
        search.run(study, 3, explain=False)
    trials = study.get_trials(deepcopy=False)
    assert "blocks" not in trials[0].user_attrs  # below the floor, so it ended at once
    assert all(trial.params["mhsa_ratio"] >= 0.125 for trial in trials[1:])


def test_iterative_trials_go_with_parts_that_are_skipped_only(loaded, digits, tmp_path) -> None:
    run = RunOptions(progress=False, checkpoints=tmp_path)
    options = SearchOptions(iterative=True, screen=False)
    how = {"training": Recipe(epochs=1, batch_size=512), "options": options, "run": run}
    with pytest.raises(InputError, match="`iterative`"):
        Search(loaded, digits, Budget(0.7), pruning=PRUNING, **how)
    loaded.patch_embed.requires_grad_(False)
    skipping = Structural(skip=("blocks.0",))
    search = Search(loaded, digits, Tolerance(99.0), pruning=skipping, **how)
    study = search.create_study("iterative", storage=optuna.storages.InMemoryStorage())
    for ratio in (0.125, 0.25):
        study.enqueue_trial({"mhsa_ratio": ratio, "ffn_ratio": ratio})
    search.run(study, 2, explain=False)
    parent, child = study.get_trials(deepcopy=False)
    assert child.user_attrs["parent_trial"] == parent.number
    model = search.model_of(study, child)
    assert shape_of(model).blocks[0] == WHOLE
    assert model.patch_embed.proj.weight.equal(loaded.patch_embed.proj.weight)
