"""A saved model is described as it is, not as it was made; what no file could hold is refused."""

from __future__ import annotations

import json

import optuna
import pytest
import torch
from timm.layers import DropPath
from torch import nn

from vit_ratio_opt.composer import Search
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.described import check_saveable
from vit_ratio_opt.model_files.load import load_again, load_dense, load_pruned
from vit_ratio_opt.model_files.save import save_dense, save_pruned
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.pruning.importance import magnitude_importance
from vit_ratio_opt.pruning.options import CalibrationOptions
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.runs.options import RunOptions, SearchOptions
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.training.recipe import Recipe

NAME = "vit_tiny_patch16_224"
ARGUMENTS = {
    "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4,
    "mlp_ratio": 2.0,
}  # fmt: skip


def head(model):
    model.head = nn.Linear(32, 10)


def norms(model):
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3


def inert(model):
    model.head_drop = nn.Dropout(0.3)
    model.blocks[0].drop_path1 = DropPath(0.1)
    model.set_grad_checkpointing()


CHANGES = {
    "nothing": lambda m: None,
    "classes": lambda m: m.reset_classifier(10),
    "head": head,
    "no head": lambda m: m.reset_classifier(0),
    "pooling": lambda m: m.reset_classifier(10, "avg"),
    "maximum": lambda m: m.reset_classifier(10, "max"),
    "image size": lambda m: m.set_input_size((48, 32)),
    "patch size": lambda m: m.set_input_size((64, 64), patch_size=(16, 16)),
    "epsilon": norms,
    "training only": inert,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("made_with", [{}, {"global_pool": "avg"}, {"norm_eps": 1e-5}])
def test_a_changed_model_comes_back_from_its_file(tmp_path, change, made_with):
    torch.manual_seed(0)
    model = create_model(NAME, **ARGUMENTS, **made_with)
    CHANGES[change](model)
    model.eval()
    noise = torch.randn(2, 3, *model.patch_embed.img_size)
    save_dense(model, tmp_path / "dense.safetensors")
    assert torch.equal(load_dense(tmp_path / "dense.safetensors")(noise), model(noise))
    pruned = prune(model, (0.5, 0.5), magnitude_importance(model))
    check_saveable(pruned)
    save_pruned(pruned, tmp_path / "pruned.safetensors", {})
    assert torch.equal(load_pruned(tmp_path / "pruned.safetensors")[0](noise), pruned(noise))


@pytest.mark.parametrize(
    "name",
    ["deit_tiny_distilled_patch16_224", "beit_base_patch16_224", "cait_xxs24_224",
     "eva02_tiny_patch14_224", "vit_base_patch16_siglip_224"],
)  # fmt: skip
def test_other_families_come_back_with_other_classes(tmp_path, name):
    torch.manual_seed(0)
    model = create_model(name, depth=1, num_classes=20)
    model.reset_classifier(10)
    model.eval()
    noise = torch.randn(1, 3, *model.patch_embed.img_size)
    pruned = prune(model, (0.0, 0.5), magnitude_importance(model))
    save_pruned(pruned, tmp_path / "pruned.safetensors", {})
    loaded, _ = load_pruned(tmp_path / "pruned.safetensors")
    # Some CPUs choose their kernels by where the weights lie in memory.
    torch.testing.assert_close(loaded(noise), pruned(noise))
    assert loaded(noise).shape == (1, 10)


def forward(model):
    original = model.blocks[0].forward
    model.blocks[0].forward = lambda x, **kwargs: original(x, **kwargs) * 2


def activation(model):
    for block in model.blocks:
        block.mlp.act = nn.ReLU()


def one_epsilon(model):
    model.norm.eps = 0.1


REFUSED = {
    "two layers": (
        lambda m: setattr(m, "head", nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 10))),
        r"head",
    ),
    "no bias": (lambda m: setattr(m, "head", nn.Linear(32, 10, bias=False)), r"head\.bias"),
    "activation": (activation, r"blocks\.0\.mlp\.act` is of class ReLU instead of GELU"),
    "epsilon": (one_epsilon, r"norm\.eps"),
    "scale": (lambda m: setattr(m.blocks[1].attn, "scale", 1.0), r"blocks\.1\.attn\.scale"),
    "forward": (forward, r"blocks\.0\.forward"),
    "hook": (lambda m: m.norm.register_forward_hook(lambda *args: None), "hook"),
    "buffer": (lambda m: m.register_buffer("mine", torch.ones(2)), "mine"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_no_file_could_hold_is_refused_before_the_search(tmp_path, digits, change):
    arguments = {**ARGUMENTS, "img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 10}
    model = create_model(NAME, **arguments)
    alter, message = REFUSED[change]
    alter(model)
    for save in (
        lambda: check_saveable(model),
        lambda: save_dense(model, tmp_path / "x.safetensors"),
        lambda: save_pruned(model, tmp_path / "x.safetensors", {}),
    ):
        with pytest.raises(InputError, match=message) as error:
            save()
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    if change in ("epsilon", "scale"):  # the others the objective may refuse in its own words
        with pytest.raises(InputError, match="cannot be saved"):
            Search(model, digits, Budget(0.6), run=RunOptions(checkpoints=tmp_path / "models"))
        assert not list(tmp_path.iterdir())


def test_notes_on_a_model_and_its_drop_rates_do_not_keep_it_from_being_saved(tmp_path):
    model = create_model(NAME, drop_rate=0.1, drop_path_rate=0.1, **ARGUMENTS)
    model.best_accuracy, model.class_names, model.log = 0.97, ["cat", "dog"], print
    model.blocks[0].note = "frozen first"
    check_saveable(model)
    save_dense(model, tmp_path / "x.safetensors")
    noise = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_dense(tmp_path / "x.safetensors")(noise), model(noise))


def test_a_model_without_some_of_its_blocks_is_refused_with_their_number(tmp_path):
    model = create_model(NAME, **ARGUMENTS)
    model.blocks = model.blocks[:1]
    for save in (check_saveable, lambda model: save_dense(model, tmp_path / "x.safetensors")):
        with pytest.raises(InputError, match="it has 1 blocks instead of 2"):
            save(model)


def test_a_search_with_another_classifier_leaves_files_that_load(tmp_path, digits):
    arguments = {**ARGUMENTS, "img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 1000}
    model = create_model(NAME, **arguments)
    model.reset_classifier(10)
    calibration = CalibrationOptions(images=64, cache=tmp_path / "cache")
    search = Search(
        model, digits, Budget(0.6), training=Recipe(epochs=0),
        options=SearchOptions(screen=False, calibration=calibration),
        run=RunOptions(checkpoints=tmp_path, progress=False),
    )  # fmt: skip
    study = search.create_study("s", storage=optuna.storages.InMemoryStorage())
    search.run(study, n_trials=1, explain=False)
    (path,) = tmp_path.rglob("trial-*.safetensors")
    loaded, manifest = load_pruned(path)
    assert loaded.head.out_features == 10
    assert manifest["architecture"]["timm_kwargs"]["num_classes"] == 10


def test_a_pruned_model_is_not_saved_as_dense(tmp_path):
    model = create_model(NAME, **ARGUMENTS)
    pruned = prune(model, (0.5, 0.5), magnitude_importance(model))
    with pytest.raises(InputError, match="`save_pruned`"):
        save_dense(pruned, tmp_path / "x.safetensors")


def test_given_arguments_are_checked_when_a_model_is_saved(tmp_path):
    model = create_model(NAME, **ARGUMENTS)
    for arguments in ({"num_classes": 5}, {"num_heads": 2}, {"act_layer": "relu"}):
        with pytest.raises(InputError, match="cannot be saved"):
            save_dense(model, tmp_path / "x.safetensors", name=NAME,
                       arguments={**ARGUMENTS, **arguments})  # fmt: skip


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"model": "hf-hub:evil/vit", "arguments": {}}, "give .* with --checkpoint"),
        ({"model": "local-dir:/tmp", "arguments": {}}, "give .* with --checkpoint"),
        ({"model": "https://evil/vit", "arguments": {}}, "give .* with --checkpoint"),
        ({"model": 3, "arguments": {}}, "give .* with --checkpoint"),
        ({"model": NAME, "arguments": {"pretrained_cfg": {"url": "http://x"}}}, "not accepted"),
        ({"model": NAME, "arguments": {"cache_dir": "/"}}, "not accepted"),
        ({"model": NAME, "arguments": {"depth": 10**12}}, "not accepted"),
        ({"model": NAME, "arguments": {"norm_layer": ["x" * 99]}}, "not accepted"),
        ({"model": NAME, "arguments": [1]}, "not accepted"),
        ({"model": NAME, "arguments": None}, "not accepted"),
        ({"model": NAME}, "from its place in the study"),
        ({"checkpoint": 3, "arguments": {}}, "from its place in the study|no checkpoint"),
        (
            {"checkpoint": "x", "name": NAME, "weights": 3, "arguments": {}},
            "no checkpoint|weights",
        ),
        ({"checkpoint": "x", "arguments": {"scriptable": True}}, "not accepted"),
        ({"pruned": "x"}, "from its place in the study"),
        ({"pruned": "x", "dense": [1]}, "from its place in the study|cannot"),
        ([], "from its place in the study"),
        ("x", "from its place in the study"),
    ],
)
def test_a_row_of_a_database_passes_the_allow_list_of_files(monkeypatch, source, message):
    def fetched(*args, **kwargs):
        raise AssertionError("an address would have been asked")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", fetched)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetched)
    with pytest.raises(InputError, match=message) as error:
        load_again(source)
    assert "\n" not in str(error.value)


def test_a_model_from_a_hub_is_loaded_where_its_file_is_given(tmp_path):
    model = create_model(NAME, **ARGUMENTS)
    save_dense(model, tmp_path / "dense.safetensors")
    source = json.loads('{"model": "hf-hub:owner/vit", "arguments": {}}')
    assert load_again(source, checkpoint=tmp_path / "dense.safetensors")
