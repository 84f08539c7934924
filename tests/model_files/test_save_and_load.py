from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.model_files.load import load_dense, load_model, load_pruned
from vit_ratio_opt.model_files.save import save_dense, save_pruned
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.pruning.cascade import prune_tokens
from vit_ratio_opt.pruning.importance import magnitude_importance
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.space.shape import BlockTokens

NAME = "vit_tiny_patch16_224"
ARGUMENTS = {
    "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4,
    "mlp_ratio": 2.0, "num_classes": 4,
}  # fmt: skip


def test_dense_model_comes_back_from_the_file_alone(tmp_path, tiny_vit, images):
    path = tmp_path / "dense.safetensors"
    save_dense(tiny_vit, path, name=NAME, arguments=ARGUMENTS)
    loaded = load_dense(path)
    assert torch.equal(loaded(images), tiny_vit(images))
    assert weights_hash(loaded) == weights_hash(tiny_vit)
    assert [file.name for file in tmp_path.iterdir()] == ["dense.safetensors"]


def test_a_file_is_taken_for_the_pruned_or_dense_model_that_it_has(tmp_path, images):
    dense = create_model(NAME, **ARGUMENTS)
    pruned = prune(dense, (0.5, 0.5), magnitude_importance(dense))
    save_dense(dense, tmp_path / "dense.safetensors", name=NAME, arguments=ARGUMENTS)
    save_pruned(pruned, tmp_path / "pruned.safetensors", {"macs_ratio": 0.5})
    model, manifest = load_model(tmp_path / "dense.safetensors")
    assert torch.equal(model(images), dense(images))
    assert manifest == {}
    model, manifest = load_model(tmp_path / "pruned.safetensors")
    assert torch.equal(model(images), pruned(images))
    assert manifest["macs_ratio"] == 0.5


def test_pth_state_dict_loads_by_name(tmp_path, tiny_vit, images):
    path = tmp_path / "dense.pth"
    torch.save({"state_dict": tiny_vit.state_dict()}, path)
    assert torch.equal(load_dense(path, name=NAME, **ARGUMENTS)(images), tiny_vit(images))


def test_pruned_model_comes_back_with_its_manifest(tmp_path, tiny_vit, images):
    pruned = prune(tiny_vit, (0.5, 0.5), magnitude_importance(tiny_vit))
    path = tmp_path / "folder" / "pruned.safetensors"
    save_pruned(pruned, path, {"mhsa_ratio": 0.5})
    loaded, manifest = load_pruned(path, tiny_vit)
    assert torch.equal(loaded(images), pruned(images))
    assert manifest["mhsa_ratio"] == 0.5


def test_pruned_models_come_back_from_their_files_alone(images, assert_comes_back):
    torch.manual_seed(0)
    dense = create_model(NAME, **ARGUMENTS)
    tokens = [BlockTokens(17, 17, 17), BlockTokens(9, 17, 5)]
    pruned = {
        "structural": prune(dense, (0.5, 0.5), magnitude_importance(dense)),
        "cascade": prune_tokens(dense, tokens, scores="max"),
    }
    assert_comes_back(pruned, dict.fromkeys(pruned, images))


def test_a_pruned_model_of_unknown_descent_needs_its_dense_one(tmp_path, tiny_vit):
    path = tmp_path / "pruned.safetensors"
    save_pruned(prune(tiny_vit, (0.5, 0.5), magnitude_importance(tiny_vit)), path, {})
    with pytest.raises(InputError, match="does not name the dense model"):
        load_pruned(path)
    assert load_pruned(path, tiny_vit)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"timm_name": "hf-hub:a/b"}, "no timm model"),
        ({"timm_name": 3}, "no timm model"),
        ({"timm_name": "vit_nope"}, "no model named"),
        ({"timm_name": "resnet18"}, "resnet18|cannot be pruned|not supported|ResNet"),
        ({"timm_name": NAME, "timm_kwargs": {"checkpoint_path": "x"}}, "not accepted"),
        ({"timm_name": NAME, "timm_kwargs": [1]}, "not accepted"),
        ({"timm_name": NAME, "timm_kwargs": {"depth": "x"}}, "arguments do not fit"),
        ("x", "give the dense model"),
    ],
)
def test_what_a_hostile_manifest_asks_for_is_refused(tmp_path, tiny_vit, architecture, message):
    path = tmp_path / "pruned.safetensors"
    save_pruned(tiny_vit, path, {"architecture": architecture})
    with pytest.raises((InputError, UnsupportedModelError), match=message):
        load_pruned(path)


def test_a_dense_file_may_not_have_anything_fetched(tmp_path, tiny_vit):
    path = tmp_path / "dense.safetensors"
    save_file(dict(tiny_vit.state_dict()), path, {"timm_name": "hf-hub:a/b"})
    with pytest.raises(InputError, match="no timm model"):
        load_dense(path)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="no readable checkpoint"):
        load_dense(tmp_path / "evil.pth", name=NAME)
    assert not (tmp_path / "ran").exists()


def damaged(tmp_path, tiny_vit, kind):
    path = tmp_path / "dense.safetensors"
    save_dense(tiny_vit, path, name=NAME, arguments=ARGUMENTS)
    state = dict(tiny_vit.state_dict())
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "missing":
        path.unlink()
    elif kind == "nameless":
        save_file(state, path)
    elif kind == "hostile":
        arguments = json.dumps({**ARGUMENTS, "checkpoint_path": "x"})
        save_file(state, path, {"timm_name": NAME, "timm_kwargs": arguments})
    elif kind == "no json":
        save_file(state, path, {"timm_name": NAME, "timm_kwargs": "{"})
    elif kind == "other shape":
        save_dense(tiny_vit, path, name=NAME, arguments={**ARGUMENTS, "num_classes": 5})
    elif kind == "other depth":
        save_dense(tiny_vit, path, name=NAME, arguments={**ARGUMENTS, "depth": 3})
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "truncated"),
        ("missing", "There is no checkpoint"),
        ("nameless", "does not say which timm model"),
        ("hostile", "not accepted: .'checkpoint_path'"),
        ("no json", "damaged model arguments"),
        ("other shape", "`head.weight` has shape"),
        ("other depth", "it has 2 blocks instead of 3"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(tmp_path, tiny_vit, kind, message):
    with pytest.raises(InputError, match=message):
        load_dense(damaged(tmp_path, tiny_vit, kind))


def test_dense_file_is_no_pruned_file(tmp_path, tiny_vit):
    path = damaged(tmp_path, tiny_vit, "nothing")
    with pytest.raises(InputError, match="must have format"):
        load_pruned(path, tiny_vit)
    save_file(dict(tiny_vit.state_dict()), path, {"format": "vit_ratio_opt/1", "manifest": "[1]"})
    with pytest.raises(InputError, match="damaged manifest"):
        load_pruned(path, tiny_vit)


def test_unknown_and_unsupported_models_are_refused_by_name():
    with pytest.raises(InputError, match=r"no model named 'vit_tny.*Did you mean"):
        create_model("vit_tny_patch16_224")
    with pytest.raises(UnsupportedModelError, match="Xcit"):
        create_model("xcit_nano_12_p16_224")
    with pytest.raises(InputError, match="arguments do not fit"):
        create_model(NAME, embed_dim=10, num_heads=3)


def test_pretrained_weights_are_asked_of_timm_by_name(monkeypatch, tiny_vit):
    asked = {}

    def create(name, *, pretrained, **arguments):
        asked.update(name=name, pretrained=pretrained)
        return tiny_vit

    monkeypatch.setattr("vit_ratio_opt.models.create.timm.create_model", create)
    assert create_model("vit_small_patch16_224", pretrained=True) is tiny_vit
    assert asked == {"name": "vit_small_patch16_224", "pretrained": True}


def test_unwritable_path_is_one_sentence(tmp_path, tiny_vit):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_dense(tiny_vit, tmp_path / "file" / "x.safetensors", name=NAME, arguments=ARGUMENTS)


def test_a_cascade_comes_back_as_it_was(tmp_path, make_vit, images):
    model = make_vit(depth=2)
    tokens = [BlockTokens(17, 17, 9), BlockTokens(5, 17, 3)]
    small = prune_tokens(
        prune(model, (0.3, 0.5), magnitude_importance(model)), tokens, scores="mean"
    )
    save_pruned(small, tmp_path / "m.safetensors", {})
    loaded, manifest = load_pruned(tmp_path / "m.safetensors", model)
    assert torch.equal(loaded(images), small(images))
    assert shape_of(loaded) == shape_of(small)
    assert manifest["cascade"]["scores"] == "mean"


@pytest.mark.parametrize(
    "damage",
    [{"tokens": [[17, 17, 99]] * 2}, {"scores": "sum"}, {"tokens": [[17, 17, 17]]}, {"tokens": 3}],
)
def test_a_cascade_that_does_not_fit_is_refused(tmp_path, make_vit, damage):
    model = make_vit(depth=2)
    small = prune_tokens(model, [BlockTokens(17, 17, 9)] * 2)
    chosen = {"tokens": [[17, 17, 9]] * 2, "scores": "max", **damage}
    save_pruned(small, tmp_path / "m.safetensors", {"cascade": chosen})
    with pytest.raises(InputError):
        load_pruned(tmp_path / "m.safetensors", model)


def _rewritten(source: Path, target: Path, change) -> None:
    """The file with another header: ``change`` is given its JSON, and the bytes of the tensors."""
    whole = source.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    text = json.dumps(change(header) or header).encode()
    target.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _manifest_with(**changes):
    def change(header):
        manifest = json.loads(header["__metadata__"]["manifest"])
        header["__metadata__"]["manifest"] = json.dumps(manifest | changes)
        header["__metadata__"].pop("checksum")  # whoever forges a file leaves it out
        return header

    return change


_PATH_LIKE = ["../../escaped", "/tmp/escaped", "C:\\escaped", "blocks.0\x00", "a" * 5000]
_HOSTILE = [
    *(lambda h, n=n: h | {n: h[next(k for k in h if k != "__metadata__")]} for n in _PATH_LIKE),
    *(_manifest_with(architecture={"timm_name": name}) for name in _PATH_LIKE),
    *(
        _manifest_with(architecture={"timm_name": NAME, "timm_kwargs": ARGUMENTS | changes})
        for changes in (
            {"depth": 10**9}, {"depth": -1}, {"depth": 0}, {"depth": 1e308}, {"embed_dim": 10**12},
            {"embed_dim": 10**7}, {"img_size": 10**9}, {"img_size": 10**5}, {"num_heads": 0},
            {"num_heads": 10**9}, {"mlp_ratio": 1e18}, {"mlp_ratio": float("nan")},
            {"num_classes": 10**12}, {"reg_tokens": 10**12}, {"act_layer": "os.system"},
            {"norm_layer": "__import__"}, {"norm_eps": "x"}, {"attn_layer": "eval"},
            {"checkpoint_path": "/etc/passwd"}, {"pretrained": True}, {"block_fn": "x"},
        )
    ),
    *(
        _manifest_with(blocks=blocks)
        for blocks in (
            [], [[1, 2]], [[4, 8, 64]] * 3, [[4, 8, 64]] * 10**5, [[10**30, 8, 64]] * 2,
            [[0, 8, 64]] * 2, [[-1, 8, 64]] * 2, [["4", 8, 64]] * 3, [[4, 8, float("inf")]] * 2,
            [[4, 8, None]] * 2, "blocks", None, {"a": 1},
        )
    ),
    *(
        _manifest_with(cascade=chosen)
        for chosen in (
            {}, {"tokens": [[1, 1, 1]] * 2, "scores": "max"}, {"tokens": "x", "scores": "max"},
            {"tokens": [[17, 17, 10**12]] * 2, "scores": "max"},
            {"tokens": [[17, 17, 17]] * 2, "scores": "__import__"}, [], 3,
        )
    ),
    lambda h: h["__metadata__"].update(manifest="[" * 100_000),
    lambda h: h["__metadata__"].update(manifest="{"),
    lambda h: h["__metadata__"].update(manifest="null"),
    lambda h: h["__metadata__"].update(manifest="9" * 10_000),
    lambda h: h["__metadata__"].update(format="vit_ratio_opt/x"),
    lambda h: h.pop("__metadata__") and h,
]  # fmt: skip


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A pruned model's file in a folder of its own, and what is there before and after."""
    torch.manual_seed(0)
    dense = create_model(NAME, **ARGUMENTS)
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "files" / "pruned.safetensors"
    save_pruned(prune(dense, (0.5, 0.5), magnitude_importance(dense)), source, {})

    def forbidden(*args, **kwargs):
        raise AssertionError("code of the file would have run")

    for name in ("pickle.loads", "pickle.load", "torch.load", "os.system", "subprocess.Popen"):
        monkeypatch.setattr(name, forbidden)
    yield source
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files"]


@pytest.mark.parametrize("change", _HOSTILE, ids=range(len(_HOSTILE)))
def test_a_forged_file_is_refused_in_one_sentence(watched, change):
    forged = watched.with_name("forged.safetensors")
    _rewritten(watched, forged, change)
    with pytest.raises(InputError) as error:
        load_pruned(forged)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_damaged_files_are_refused_whatever_bit_is_wrong(watched):
    whole = watched.read_bytes()
    generator = random.Random(0)
    mutations = [whole[: generator.randrange(len(whole))] for _ in range(60)]
    for _ in range(100):
        flipped = bytearray(whole)
        flipped[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        mutations.append(bytes(flipped))
    sizes = (0, 1, len(whole), 10**8, 2**40, 2**63, 2**64 - 1)
    mutations += [size.to_bytes(8, "little") + whole[8:] for size in sizes]
    mutations += [b"", b"\x80\x04.", whole + b"\x00", whole[8:], b"PK\x03\x04" + whole]
    damaged = watched.with_name("damaged.safetensors")
    for mutation in mutations:
        damaged.write_bytes(mutation)
        with pytest.raises(InputError):
            load_pruned(damaged)
    assert len(mutations) + len(_HOSTILE) >= 200


def test_a_newer_format_is_named_with_what_to_do(watched):
    newer = watched.with_name("newer.safetensors")
    _rewritten(watched, newer, lambda h: h["__metadata__"].update(format="vit_ratio_opt/2"))
    with pytest.raises(InputError, match=r"newer version .*vit_ratio_opt/2.* upgrade"):
        load_pruned(newer)


def test_a_folder_is_taken_for_a_hugging_face_model_by_whoever_takes_any_file(tmp_path):
    with pytest.raises(InputError, match="no Hugging Face model"):
        load_model(tmp_path)
