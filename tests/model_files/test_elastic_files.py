"""One file holds all levels."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.elastic import load_elastic, save_elastic
from vit_ratio_opt.model_files.load import load_dense, load_pruned
from vit_ratio_opt.model_files.save import save_pruned
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.pruning.calibration import calibrate
from vit_ratio_opt.pruning.elastic import build_elastic

ARGUMENTS = {
    "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4,
    "mlp_ratio": 2.0, "num_classes": 4,
}  # fmt: skip
PAIRS = ((0.25, 0.25), (0.5, 0.5), (0.75, 0.8))


@pytest.fixture(scope="module")
def batch():
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def elastic(batch):
    torch.manual_seed(0)
    dense = create_model("vit_tiny_patch16_224", **ARGUMENTS).eval()
    model = build_elastic(dense, PAIRS, calibrate(dense, [batch]), [batch])
    with torch.no_grad():
        for vector in model.vectors.parameters():
            vector.add_(0.1 * torch.randn_like(vector))
    return model


@pytest.fixture
def path(elastic, tmp_path):
    save_elastic(elastic, tmp_path / "folder" / "elastic.safetensors")
    return tmp_path / "folder" / "elastic.safetensors"


def change(path, *, drop=(), manifest=None, tensors=None, **metadata):
    """Write the file again with something else in it, and without a checksum."""
    with safe_open(path, framework="pt") as file:
        known = dict(file.metadata())
    state = {name: part for name, part in load_file(path).items() if name not in drop}
    known["manifest"] = json.dumps({**json.loads(known["manifest"]), **(manifest or {})})
    del known["checksum"]
    save_file({**state, **(tensors or {})}, path, {**known, **metadata})


def test_all_levels_come_back_from_the_file_alone(elastic, path, batch):
    loaded = load_elastic(path)
    assert loaded.levels == elastic.levels
    assert not loaded.training
    for level in range(len(PAIRS)):
        assert torch.equal(loaded(batch, level), elastic(batch, level))
        assert torch.equal(loaded.extract(level)(batch), elastic.extract(level)(batch))


def test_the_file_is_hardly_larger_than_that_of_the_largest_level(elastic, path, tmp_path):
    save_pruned(elastic.extract(0), tmp_path / "largest.safetensors", {})
    own = sum(part.numel() for part in elastic.vectors.parameters())
    whole = sum(part.numel() for part in load_file(path).values())
    assert whole == own + sum(part.numel() for part in elastic.largest.parameters())


def test_a_levels_model_has_a_file_of_its_own(elastic, path, batch, tmp_path):
    model = load_elastic(path).at(0.6)
    save_pruned(model, tmp_path / "pruned.safetensors", {})
    again, _ = load_pruned(tmp_path / "pruned.safetensors")
    assert torch.equal(again(batch), model(batch))


def test_a_model_of_timms_own_needs_its_dense_model(make_vit, batch, tmp_path):
    dense = make_vit()
    elastic = build_elastic(dense, PAIRS, calibrate(dense, [batch]))
    save_elastic(elastic, tmp_path / "elastic.safetensors")
    with pytest.raises(InputError, match="does not name the dense model"):
        load_elastic(tmp_path / "elastic.safetensors")
    loaded = load_elastic(tmp_path / "elastic.safetensors", make_vit())
    assert torch.equal(loaded(batch, 2), elastic(batch, 2))


def test_files_of_other_kinds_are_told_apart(elastic, path, tmp_path):
    pruned = tmp_path / "pruned.safetensors"
    save_pruned(elastic.extract(0), pruned, {})
    with pytest.raises(InputError, match="read it with `load_pruned`"):
        load_elastic(pruned)
    with pytest.raises(InputError, match="read it with `load_elastic`"):
        load_pruned(path)
    with pytest.raises(InputError, match="read it with `load_elastic`"):
        load_dense(path)
    change(path, format="vit_ratio_opt/elastic/2")
    with pytest.raises(InputError, match="newer version"):
        load_elastic(path)
    change_format = {"format": "other"}
    save_file({"a": torch.zeros(1)}, path, change_format)
    with pytest.raises(InputError):
        load_elastic(path)


def test_damaged_files_are_refused_with_a_sentence(path, elastic):
    vector = "levels.1.norm.weight"
    content = path.read_bytes()
    level = {"pair": [0.25, 0.25], "macs_ratio": 1, "blocks": [[4, 6, 48]] * 2}
    for changes, message in (
        ({"drop": [vector]}, f"lacks `{vector}`"),
        ({"tensors": {"levels.7.norm.weight": torch.zeros(32)}}, "has no place for"),
        ({"tensors": {vector: torch.zeros(16)}}, "instead of"),
        ({"drop": ["norm.weight"]}, "missing"),
        ({"manifest": {"levels": 3}}, "damaged levels"),
        ({"manifest": {"levels": [{"pair": [0.1]}]}}, "damaged levels"),
        ({"manifest": {"levels": []}}, "blocks of the largest"),
        ({"manifest": {"levels": [{**level, "blocks": [[4, 6]]}]}}, "damaged levels"),
        ({"manifest": {"levels": [{**level, "blocks": [[1, 1, 8]]}]}}, "blocks of the largest"),
        ({"manifest": {"blocks": [[9, 9, 999]] * 2}}, "cannot be cut"),
    ):
        path.write_bytes(content)
        change(path, **changes)
        with pytest.raises(InputError, match=message):
            load_elastic(path)
    path.write_bytes(content[:-8] + bytes(8))
    with pytest.raises(InputError, match="damaged"):
        load_elastic(path)


@pytest.mark.parametrize(
    ("level", "change_to"),
    [
        (1, {"macs_ratio": 0.01}),
        (1, {"macs_ratio": math.nan}),
        (0, {"macs_ratio": 7}),
        (2, {"pair": [math.nan, 3]}),
    ],
)
def test_shares_that_are_not_those_of_the_sizes_are_refused(path, level, change_to):
    with safe_open(path, framework="pt") as file:
        levels = json.loads(file.metadata()["manifest"])["levels"]
    levels[level] |= change_to
    change(path, manifest={"levels": levels})
    with pytest.raises(InputError, match="damaged levels"):
        load_elastic(path)


def test_a_model_that_was_changed_is_not_saved(elastic, tmp_path):
    changed = copy.deepcopy(elastic)
    changed.largest.reset_classifier(3)
    with pytest.raises(InputError, match="was changed after it was built"):
        save_elastic(changed, tmp_path / "new.safetensors")
    with pytest.raises(InputError, match="must be an ElasticViT, but is a VisionTransformer"):
        save_elastic(elastic.largest, tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_levels_of_other_depths_are_refused(path):
    with safe_open(path, framework="pt") as file:
        levels = json.loads(file.metadata()["manifest"])["levels"]
    levels[1]["blocks"] = levels[1]["blocks"][:1]
    change(path, manifest={"levels": levels})
    with pytest.raises(InputError, match="must have 2 blocks"):
        load_elastic(path)


def test_weights_that_are_not_finite_are_not_saved(elastic, tmp_path):
    vector = elastic.vector(2, "norm.weight")
    kept = vector.detach().clone()
    with torch.no_grad():
        vector[0] = torch.nan
    try:
        with pytest.raises(InputError, match=r"`norm\.weight` of level 2"):
            save_elastic(elastic, tmp_path / "elastic.safetensors")
    finally:
        vector.data.copy_(kept)
    assert not list(tmp_path.iterdir())
