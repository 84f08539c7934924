"""Checkpoints as people have them: by content, without unpickling, and never a wrong guess."""

from __future__ import annotations

import argparse
import builtins
import json
import logging
import os
import pathlib
import pickle
import zipfile
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from vit_ratio_opt.cli.files import load_dense_model
from vit_ratio_opt.cli.options import DenseOptions
from vit_ratio_opt.data.preprocessing import preprocess_of
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.convert import load_torchvision_file
from vit_ratio_opt.model_files.load import load_again, load_dense, load_model, load_pruned
from vit_ratio_opt.model_files.save import save_dense, save_pruned
from vit_ratio_opt.model_files.weights import read_tensors
from vit_ratio_opt.models.create import create_model, source_of
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.pruning.importance import magnitude_importance
from vit_ratio_opt.pruning.prune import prune

NAME = "vit_tiny_patch16_224"
ARGUMENTS = {
    "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4,
    "mlp_ratio": 2.0, "num_classes": 4,
}  # fmt: skip
HEADS = {"num_heads": 4}  # what a name says and no tensor does


@pytest.fixture
def state(tiny_vit):
    return {key: tensor.clone() for key, tensor in tiny_vit.state_dict().items()}


@pytest.fixture
def other(state):
    """Averaged weights: the same names, other values."""
    return {key: tensor + 1 for key, tensor in state.items()}


def prefixed(state, *prefixes):
    return {"".join(prefixes) + key: tensor for key, tensor in state.items()}


def inner_compiled(state):
    return {
        key.replace("blocks.0.", "blocks.0._orig_mod."): tensor for key, tensor in state.items()
    }


def training(state, **changes):
    """As timm's CheckpointSaver and most scripts write it."""
    return {
        "epoch": 3,
        "arch": NAME,
        "state_dict": state,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(model=NAME, lr=0.1, out=pathlib.PurePosixPath("x")),
        "metric": np.float64(81.5),
        **changes,
    }


CONTAINERS = {
    "state dict": lambda s: s,
    "timm": training,
    "deit": lambda s: {"model": s, "model_ema": None, "args": argparse.Namespace(a=1)},
    "mae": lambda s: {"model": s, "optimizer": {}, "epoch": 99, "scaler": {"scale": 1.0}},
    "lightning": lambda s: {
        "state_dict": {**prefixed(s, "model."), "criterion.weight": torch.ones(4)},
        "hyper_parameters": {"lr": 0.1}, "pytorch-lightning_version": "2.4.0",
        "callbacks": {"x": {"best_model_path": pathlib.PurePosixPath("y")}},
    },
    "net": lambda s: prefixed(s, "net."),
    "backbone": lambda s: {"state_dict": prefixed(s, "backbone.")},
    "ddp": lambda s: prefixed(s, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "compiled ddp": lambda s: prefixed(s, "_orig_mod.", "module."),
    "ddp compiled": lambda s: {"state_dict": prefixed(s, "module.", "_orig_mod.")},
    "compiled blocks": inner_compiled,
    "averaged model": lambda s: {"n_averaged": torch.tensor(5), **prefixed(s, "module.")},
    "own wrapper": lambda s: prefixed(s, "my_model.vit."),
    "nested": lambda s: {"checkpoint": {"model_state": OrderedDict(s)}, "x": defaultdict(list)},
    "parameters": lambda s: {key: nn.Parameter(tensor) for key, tensor in s.items()},
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".pth.tar", ".ckpt", ".safetensors", ""])
def test_content_decides_what_a_file_is_not_its_suffix(tmp_path, tiny_vit, state, images, suffix):
    path = tmp_path / f"model_best{suffix}"
    torch.save(training(state), path)
    assert torch.equal(
        load_dense(path, **HEADS)(images), tiny_vit(images)
    )  # timm's `arch` names it
    save_file(state, path)
    assert torch.equal(load_dense(path, name=NAME, **HEADS)(images), tiny_vit(images))


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("legacy", [False, True])
def test_the_model_is_found_in_any_checkpoint(tmp_path, tiny_vit, state, images, kind, legacy):
    if legacy and kind in ("lightning", "nested"):
        pytest.skip("what stands beside the weights is known by name in the new format alone")
    path = tmp_path / "x.bin"
    content = CONTAINERS[kind](state)
    if legacy and kind == "timm":
        content["args"] = argparse.Namespace(lr=0.1)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_dense(path, name=NAME, **HEADS)
    assert torch.equal(loaded(images), tiny_vit(images))
    assert weights_hash(load_again(source_of(loaded))) == weights_hash(loaded)


BOTH = {
    "timm": lambda a, b: {"state_dict": a, "state_dict_ema": b},
    "deit": lambda a, b: {"model": a, "model_ema": prefixed(b, "module."), "epoch": 3},
    "lightning": lambda a, b: {
        "state_dict": {**prefixed(a, "model."), **prefixed(b, "ema_model.module.")}
    },
    "ema_pytorch": lambda a, b: {
        **prefixed(a, "online_model."), **prefixed(b, "ema_model."),
        "initted": torch.tensor([True]), "step": torch.tensor([7]),
    },
    "swa": lambda a, b: {"model": a, "swa_state_dict": {"n_averaged": torch.tensor(3), **b}},
}  # fmt: skip


@pytest.mark.parametrize("kind", BOTH)
def test_averaged_weights_beside_the_trained_are_asked_for(tmp_path, tiny_vit, state, other, kind):
    path = tmp_path / "both.pth"
    torch.save(BOTH[kind](state, other), path)
    with pytest.raises(InputError, match=r"trained weights .*averaged ones .*'raw'.*'ema'"):
        load_dense(path, name=NAME, **HEADS)
    raw = load_dense(path, name=NAME, weights="raw", **HEADS)
    ema = load_dense(path, name=NAME, weights="ema", **HEADS)
    assert weights_hash(raw) == weights_hash(tiny_vit)
    assert torch.equal(ema.head.weight, other["head.weight"])
    for model in (raw, ema):  # workers load the same
        source = json.loads(json.dumps(source_of(model)))
        assert weights_hash(load_again(source)) == weights_hash(model)
        assert weights_hash(load_again(source, checkpoint=path)) == weights_hash(model)


@pytest.mark.parametrize(
    ("content", "weights", "message"),
    [
        (lambda a, b: a, "ema", "no averaged weights"),
        (lambda a, b: {"state_dict_ema": b}, "raw", "no trained weights"),
        (lambda a, b: a, "best", "must be 'ema' or 'raw'"),
        (lambda a, b: {"model": a, "ema": {"shadow_params": list(b.values())}}, None, "averaged"),
        (lambda a, b: {"model": a, "ema": list(b.values())}, "ema", "without the tensors' names"),
        (lambda a, b: {"student": a, "teacher": b}, None, "`student`, `teacher`"),
        (lambda a, b: {**a, **prefixed(b, "teacher.")}, None, "several models"),
    ],
)
def test_weights_are_never_guessed(tmp_path, state, other, content, weights, message):
    path = tmp_path / "x.pth"
    torch.save(content(state, other), path)
    with pytest.raises(InputError, match=message):
        load_dense(path, name=NAME, weights=weights, **HEADS)


def test_a_file_of_averaged_weights_alone_needs_no_choice(tmp_path, other):
    torch.save({"state_dict_ema": other, "state_dict": None}, tmp_path / "x.pth")
    loaded = load_dense(tmp_path / "x.pth", name=NAME, **HEADS)
    assert torch.equal(loaded.head.weight, other["head.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_becomes_float32_with_a_word(tmp_path, state, images, caplog, dtype):
    torch.save({key: tensor.to(dtype) for key, tensor in state.items()}, tmp_path / "x.pth")
    with caplog.at_level(logging.WARNING):
        logging.getLogger("optuna").addHandler(caplog.handler)
        loaded = load_dense(tmp_path / "x.pth", name=NAME, **HEADS)
        logging.getLogger("optuna").removeHandler(caplog.handler)
    assert f"{dtype}".removeprefix("torch.") in caplog.text
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    assert loaded(images).isfinite().all()


ODD_TENSORS = {
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "complex": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "NaN": lambda t: t * float("nan"),
    "infinity": lambda t: t / 0,
    "claims": lambda t: torch.zeros(1).expand(10**6, 32),
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_kinds_are_refused_by_name(tmp_path, state, kind):
    state["head.weight"] = ODD_TENSORS[kind](state["head.weight"])
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(InputError, match=kind):
        load_dense(tmp_path / "x.pth", name=NAME, **HEADS)


def test_tensors_that_share_memory_come_apart(tmp_path, state):
    state["blocks.1.norm1.bias"] = state["blocks.0.norm1.bias"]
    torch.save({"model": state, "optimizer": torch.zeros(1000)}, tmp_path / "x.pth")
    loaded = load_dense(tmp_path / "x.pth", name=NAME, **HEADS)
    with torch.no_grad():
        loaded.blocks[0].norm1.bias.zero_()
    assert loaded.blocks[1].norm1.bias.abs().sum() > 0


class Script(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _zip(path, names, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in names:
            archive.writestr(name, b"\0" * 5_000_000)


NO_WEIGHTS = {
    "empty": (lambda p, s: p.write_bytes(b""), "empty"),
    "pointer": (
        lambda p, s: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git lfs pull",
    ),
    "page": (lambda p, s: p.write_text("\n<!DOCTYPE html><html>Sign in"), "web page"),
    "text": (lambda p, s: p.write_text("Entry not found"), "text file.*'Entry not found'"),
    "json": (lambda p, s: p.write_text('{"error": "unauthorised"}'), "text file"),
    "npz": (lambda p, s: np.savez(p.open("wb"), a=np.ones(3)), "NumPy arrays.*load_pretrained"),
    "npy": (lambda p, s: np.save(p.open("wb"), np.ones(3)), "NumPy array"),
    "torchscript": (lambda p, s: torch.jit.script(Script()).save(p), "TorchScript"),
    "onnx": (lambda p, s: p.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x05\x00"), "ONNX"),
    "gzip": (lambda p, s: p.write_bytes(b"\x1f\x8b\x08\x00" + b"\xff" * 90), "gzip"),
    "hdf5": (lambda p, s: p.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 90), "HDF5"),
    "gguf": (lambda p, s: p.write_bytes(b"GGUF\x03\0\0\0" + b"\0" * 90), "GGUF"),
    "tar": (lambda p, s: p.write_bytes(b"x\0" * 128 + b"\0ustar" + b"\0" * 300), "tar archive"),
    "zip": (lambda p, s: _zip(p, ["model.pth"]), "unpack it"),
    "bomb": (lambda p, s: _zip(p, ["a/data.pkl"], zipfile.ZIP_DEFLATED), "compressed"),
    "random": (lambda p, s: p.write_bytes(b"\xde\xad\xbe\xef" * 99), "not known"),
    "truncated": (
        lambda p, s: (torch.save(s, p), p.write_bytes(p.read_bytes()[:-5000])),
        "truncated",
    ),
    "header": (
        lambda p, s: (save_file(s, p), p.write_bytes(p.read_bytes()[:9] + b"x" * 500)),
        "damaged header",
    ),
    "plain pickle": (lambda p, s: p.write_bytes(pickle.dumps({"a": 1}, 2)), "no readable"),
    "tensor": (lambda p, s: torch.save(torch.ones(3), p), "class Tensor"),
    "list": (lambda p, s: torch.save([1, 2], p), "class list"),
    "optimizer": (lambda p, s: torch.save({"state": {}, "lr": 1}, p), "other things than tensors"),
    "module": (
        lambda p, s: torch.save(timm.create_model(NAME, depth=1), p),
        r"timm\..*state_dict",
    ),
    "user class": (lambda p, s: torch.save({"state_dict": s, "x": Mine()}, p), r"Mine.*trust"),
}


class Mine:
    """What a training script may have stored."""


@pytest.mark.parametrize("kind", NO_WEIGHTS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.filterwarnings("ignore")
def test_a_file_without_weights_is_named_with_what_to_do(tmp_path, state, kind, suffix):
    make, message = NO_WEIGHTS[kind]
    path = tmp_path / f"x{suffix}"
    make(path, state)
    with pytest.raises(InputError, match=f"x{suffix}.*{message}") as error:
        load_dense(path, name=NAME)
    assert len(str(error.value)) < 700
    assert "\n" not in str(error.value)


class Evil:
    def __init__(self, path, function=open):
        self.path, self.function = path, function

    def __reduce__(self):
        if self.function is open:
            return open, (str(self.path), "w")
        return self.function, (f"touch {self.path}",)


@pytest.mark.parametrize("function", [open, os.system, builtins.exec])
@pytest.mark.parametrize("legacy", [False, True])
def test_no_loader_runs_code_of_a_file(tmp_path, state, monkeypatch, function, legacy):
    ran = tmp_path / "ran"
    path = tmp_path / "pytorch_model.bin"
    cfg = {"file": str(path), "num_classes": 4}
    for content in ({"state_dict": state, "args": Evil(ran, function)}, Evil(ran, function)):
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        (tmp_path / "config.json").write_text(json.dumps({"architecture": NAME, "num_classes": 4}))
        for load in (
            lambda: load_dense(path, name=NAME, **HEADS),
            lambda: load_dense(path, name="torchvision/vit_b_16"),
            lambda: load_dense(tmp_path),
            lambda: load_pruned(path),
            lambda: load_model(path),
            lambda: load_torchvision_file(path, "torchvision/vit_b_16", None, {}),
            lambda: load_again({"checkpoint": str(path), "name": NAME, "arguments": HEADS}),
            lambda: load_again({"pruned": str(path), "dense": None}),
            lambda: load_again({"model": NAME, "arguments": {"checkpoint_path": str(path)}}),
            lambda: load_again({"model": NAME, "arguments": {"pretrained_cfg": cfg}}),
            lambda: load_again({"model": f"local-dir:{tmp_path}", "arguments": {}}),
            lambda: create_model(NAME, pretrained=True, pretrained_cfg=cfg),
            lambda: create_model(NAME, pretrained=True, pretrained_cfg_overlay=cfg),
            lambda: create_model(NAME, checkpoint_path=str(path)),
            lambda: create_model(f"local-dir:{tmp_path}", pretrained=True),
        ):
            with pytest.raises(InputError) as error:
                load()
            assert "\n" not in str(error.value)
            assert not ran.exists()


def test_pytorch_that_may_run_code_even_so_reads_no_pickle(tmp_path, state, monkeypatch):
    torch.save(state, tmp_path / "x.pth")
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.5.1"))
    with pytest.raises(InputError, match=r"needs PyTorch 2\.6 or newer.*safetensors"):
        load_dense(tmp_path / "x.pth", name=NAME)


def test_timm_itself_may_not_unpickle_what_it_fetches(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    torch.save(Evil(ran), tmp_path / "x.pth")

    def fetches(name, *, pretrained, **arguments):
        if pretrained:  # as a version of timm may
            torch.load(tmp_path / "x.pth", weights_only=False)
        return timm.models.vision_transformer.vit_tiny_patch16_224()

    monkeypatch.setattr("timm.create_model", fetches)
    with pytest.raises(InputError, match="cannot be loaded"):
        create_model(NAME, pretrained=True)
    assert not ran.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_what_tensors_tell_needs_no_argument(tmp_path, images):
    torch.manual_seed(0)
    for name, arguments, told in (
        (NAME, {"num_classes": 10}, (10, 3, (224, 224), 12)),
        (NAME, {"num_classes": 3, "in_chans": 1, "img_size": 64, "depth": 3}, (3, 1, (64, 64), 3)),
        (NAME, {"patch_size": 32, "depth": 2}, (1000, 3, (224, 224), 2)),
        (NAME, {"reg_tokens": 4, "img_size": 32, "init_values": 0.1, "depth": 2},
         (1000, 3, (32, 32), 2)),
        (NAME, {"global_pool": "avg", "qkv_bias": False, "depth": 1}, (1000, 3, (224, 224), 1)),
        (NAME, {"mlp_ratio": 1.7, "pre_norm": True, "depth": 1}, (1000, 3, (224, 224), 1)),
        (NAME, {"class_token": False, "global_pool": "avg", "depth": 1}, (1000, 3, (224, 224), 1)),
        ("vit_base_patch16_clip_224", {"depth": 1, "num_classes": 5}, (5, 3, (224, 224), 1)),
        ("deit_tiny_distilled_patch16_224", {"num_classes": 7, "depth": 2},
         (7, 3, (224, 224), 2)),
        ("deit3_small_patch16_224", {"num_classes": 7, "depth": 2}, (7, 3, (224, 224), 2)),
        ("beit_base_patch16_224", {"num_classes": 7, "depth": 2}, (7, 3, (224, 224), 2)),
        ("eva02_tiny_patch14_224", {"num_classes": 7, "depth": 2}, (7, 3, (224, 224), 2)),
        ("cait_xxs24_224", {"num_classes": 7, "depth": 2}, (7, 3, (224, 224), 2)),
    ):  # fmt: skip
        model = timm.create_model(name, **arguments).eval()
        torch.save({"model": model.state_dict()}, tmp_path / "x.pth")
        loaded = load_dense(tmp_path / "x.pth", name=name)
        channels, size = loaded.patch_embed.proj.in_channels, loaded.patch_embed.img_size
        assert (loaded.head.out_features, channels, size, len(loaded.blocks)) == told
        noise = torch.randn(1, channels, *size)
        torch.testing.assert_close(loaded(noise), model(noise), rtol=0, atol=1e-5)


def test_a_fine_tuned_masked_autoencoder_pools_as_its_norm_tells(tmp_path, make_vit, images):
    model = make_vit(global_pool="avg")
    torch.save({"model": model.state_dict()}, tmp_path / "x.pth")
    loaded = load_dense(tmp_path / "x.pth", name=NAME, **HEADS)
    assert loaded.global_pool == "avg"
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {}, "32 wide, but .* 192 wide, .*`num_heads`"),
        ({}, {**HEADS, "num_classes": 5}, "num_classes=4 by its tensors, but num_classes=5"),
        ({}, {**HEADS, "in_chans": 1}, "in_chans=3 by its tensors"),
        ({}, {**HEADS, "patch_size": 16}, "patch_size=8 by its tensors"),
        ({}, {**HEADS, "depth": 3}, "depth=3|depth"),
        ({}, {"embed_dim": 32, "num_heads": 4, "act_layer": "nope"}, "arguments do not fit"),
        ({"head.weight": None, "head.bias": None}, HEADS, "no classifier"),
        ({"head_dist.weight": torch.ones(4, 32)}, HEADS, "distilled DeiT.*deit_tiny_distilled"),
        ({"norm.weight": None, "extra.x": torch.ones(2, 2)}, HEADS, r"norm.weight.*extra\.x"),
        ({"pos_embed": torch.ones(1, 14, 32)}, HEADS, "13 patches.*`img_size`"),
        ({"decoder_blocks.0.norm1.weight": torch.ones(2)}, HEADS, "masked autoencoder"),
    ],
)
def test_a_contradiction_is_one_sentence(tmp_path, state, changes, arguments, message):
    state = {key: tensor for key, tensor in (state | changes).items() if tensor is not None}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(InputError, match=message) as error:
        load_dense(tmp_path / "x.pth", name=NAME, **arguments)
    assert "\n" not in str(error.value)


def test_positions_are_interpolated_only_for_a_size_that_was_given(tmp_path, tiny_vit, state):
    torch.save(state, tmp_path / "x.pth")
    save_dense(tiny_vit, tmp_path / "own.safetensors", name=NAME, arguments=ARGUMENTS)
    tiny_vit.set_input_size((48, 48))
    larger = torch.randn(1, 3, 48, 48)
    for path, given in (("x.pth", {"name": NAME, **HEADS}), ("own.safetensors", {})):
        loaded = load_dense(tmp_path / path, img_size=48, **given)
        torch.testing.assert_close(loaded(larger), tiny_vit(larger))
        assert torch.equal(load_again(source_of(loaded))(larger), loaded(larger))


@pytest.mark.parametrize("around", ["head", "neck", "classifier"])
def test_a_model_around_a_vit_is_refused(tmp_path, state, around):
    content = {**prefixed(state, "backbone."), f"{around}.weight": torch.ones(4, 32)}
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(InputError, match=f"outside of the ViT .*`{around}.weight`"):
        load_dense(tmp_path / "x.pth", name=NAME, **HEADS)


def test_pruned_and_dense_files_point_to_each_others_loader(tmp_path, images):
    dense = create_model(NAME, **ARGUMENTS)
    pruned = prune(dense, (0.5, 0.5), magnitude_importance(dense))
    save_pruned(pruned, tmp_path / "pruned.safetensors", {})
    save_dense(dense, tmp_path / "dense.safetensors")
    with pytest.raises(InputError, match="pruned model: read it with `load_pruned`"):
        load_dense(tmp_path / "pruned.safetensors")
    with pytest.raises(InputError, match=r"no pruned model.*`load_dense`"):
        load_pruned(tmp_path / "dense.safetensors")
    pruned.blocks[0].mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(32, 5), fc2=nn.Linear(5, 32)))
    torch.save(pruned.state_dict(), tmp_path / "pruned.pth")
    with pytest.raises(InputError, match="looks like a pruned model"):
        load_dense(tmp_path / "pruned.pth", name=NAME, **HEADS)


def test_metadata_of_other_libraries_makes_no_pruned_model(tmp_path, state):
    save_file(state, tmp_path / "x.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="name the model"):
        load_model(tmp_path / "x.safetensors")
    assert load_dense(tmp_path / "x.safetensors", name=NAME, **HEADS)


def test_a_name_alone_assumes_timms_preprocessing_and_says_so(tmp_path, state):
    torch.save(state, tmp_path / "x.pth")
    known = preprocess_of(load_dense(tmp_path / "x.pth", name=NAME, **HEADS))
    assert known.is_assumed
    assert known.image_size == (32, 32)
    assert "timm's vit_tiny_patch16_224" in known.origin


def test_what_timms_training_script_was_told_holds_for_the_model(tmp_path, make_vit, images):
    model = make_vit(act_layer="relu", global_pool="max")
    kwargs = {"num_heads": 4, "act_layer": "relu", "drop_path_rate": 0.1}
    args = argparse.Namespace(
        model=NAME, model_kwargs=kwargs, gp="max", mean=[0.1, 0.2, 0.3], std=None, crop_pct=0.8,
        interpolation="", log=pathlib.PurePosixPath("x"),
    )  # fmt: skip
    torch.save(training(model.state_dict(), args=args), tmp_path / "x.pth.tar")
    loaded = load_dense(tmp_path / "x.pth.tar")
    assert torch.equal(loaded(images), model(images))
    known = preprocess_of(loaded)
    assert (known.mean, known.std, known.crop) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5), 0.8)
    assert not known.is_assumed
    args.model_kwargs = {"checkpoint_path": "/etc/passwd"}
    torch.save(training(model.state_dict(), args=args), tmp_path / "x.pth.tar")
    with pytest.raises(InputError, match=r"not accepted.*checkpoint_path"):
        load_dense(tmp_path / "x.pth.tar")


def test_the_command_line_chooses_weights(tmp_path):
    dense = timm.create_model(NAME, depth=1, num_classes=10).state_dict()
    torch.save({"model": dense, "model_ema": dense}, tmp_path / "y.pth")
    with pytest.raises(InputError, match="--weights"):
        load_dense_model(DenseOptions(checkpoint=tmp_path / "y.pth", model=NAME))
    model = load_dense_model(
        DenseOptions(checkpoint=tmp_path / "y.pth", model=NAME, weights="ema")
    )
    assert model.head.out_features == 10
    assert preprocess_of(model).is_assumed
    with pytest.raises(InputError, match="give one"):
        load_dense_model(DenseOptions(model=NAME, weights="ema"))


def test_arguments_of_the_training_reach_workers(tmp_path, state):
    torch.save(state, tmp_path / "x.pth")
    source = source_of(load_dense(tmp_path / "x.pth", name=NAME, drop_path_rate=0.5, **HEADS))
    assert load_again(source).blocks[1].drop_path1.drop_prob == 0.5
    loaded = load_dense(tmp_path / "x.pth", name=NAME, act_layer=nn.ReLU, **HEADS)
    assert source_of(loaded) is None  # no study can say which class


def test_a_file_of_ours_without_preprocessing_leaves_it_unknown(tmp_path, tiny_vit):
    save_dense(tiny_vit, tmp_path / "x.safetensors", name=NAME, arguments=ARGUMENTS)
    assert preprocess_of(load_dense(tmp_path / "x.safetensors")) is None


def test_tensors_come_with_the_name_that_a_training_gives(tmp_path, state):
    torch.save(training(prefixed(state, "module.")), tmp_path / "last.pth.tar")
    tensors, metadata = read_tensors(tmp_path / "last.pth.tar")
    assert tensors.keys() == state.keys()
    assert metadata == {"arch": NAME, "args": "{}"}


def test_tensors_of_no_vit_are_said_to_be_of_another_model(tmp_path):
    torch.save({"conv1.weight": torch.ones(2, 3), "fc.weight": torch.ones(4, 2)}, tmp_path / "x")
    with pytest.raises(InputError, match=r"has no tensor `patch_embed.*`, as .*`conv1\.weight`"):
        load_dense(tmp_path / "x", name=NAME)


def test_no_message_tells_how_to_unpickle_an_unreadable_file(tmp_path):
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": pathlib.Path("b")}, protocol=4))
    with pytest.raises(InputError, match="no readable checkpoint") as error:
        read_tensors(tmp_path / "x.pth")
    assert "weights_only" not in str(error.value)
