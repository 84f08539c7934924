"""Tests for the cache of calibrations."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.pruning import cache
from vit_ratio_opt.pruning.cache import cached_calibration
from vit_ratio_opt.pruning.calibration import calibrate


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that something was measured."""
    calls: list[int] = []

    def counted(*args: object, **options: object) -> object:
        calls.append(1)
        return calibrate(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "calibrate", counted)
    return calls


def test_it_is_measured_once_for_the_same_model_images_and_seed(
    tiny_vit: VisionTransformer, images: torch.Tensor, tmp_path: Path, measured: list[int]
) -> None:
    first = cached_calibration(tiny_vit, [images], tmp_path).to_tensors()
    again = cached_calibration(tiny_vit, [images], tmp_path).to_tensors()
    assert len(measured) == 1
    assert all(torch.equal(first[name], again[name]) for name in first)
    cached_calibration(tiny_vit, [images + 1], tmp_path)
    cached_calibration(tiny_vit, [images], tmp_path, seed=1)
    cached_calibration(tiny_vit, [images], tmp_path, task="multi-label")
    cached_calibration(tiny_vit, [images], tmp_path, precision="bfloat16")
    with torch.no_grad():
        tiny_vit.head.weight[0, 0] += 1
    cached_calibration(tiny_vit, [images], tmp_path)
    assert len(measured) == 6


def test_an_activation_is_no_weight_but_measured_anew(
    make_vit: Callable[..., VisionTransformer],
    images: torch.Tensor,
    tmp_path: Path,
    measured: list[int],
) -> None:
    cached_calibration(make_vit(act_layer="relu6"), [images], tmp_path)
    found = cached_calibration(make_vit(), [images], tmp_path).to_tensors()
    assert len(measured) == 2
    own = calibrate(make_vit(), [images]).to_tensors()
    assert all(torch.equal(found[name], own[name]) for name in own)


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None], ids=["empty", "text", "cut"])
def test_a_damaged_file_is_measured_again_and_replaced(
    tiny_vit: VisionTransformer,
    images: torch.Tensor,
    tmp_path: Path,
    measured: list[int],
    damage: bytes | None,
) -> None:
    cached_calibration(tiny_vit, [images], tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-50] if damage is None else damage)
    cached_calibration(tiny_vit, [images], tmp_path)
    cached_calibration(tiny_vit, [images], tmp_path)
    assert len(measured) == 2


@pytest.mark.parametrize("damage", ["a bit", "renamed"])
def test_a_file_of_something_else_is_measured_again_with_a_word(
    tiny_vit: VisionTransformer,
    images: torch.Tensor,
    tmp_path: Path,
    measured: list[int],
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    """safetensors has no checksum: one bit would change every result without a word."""
    said: list[str] = []
    monkeypatch.setattr(
        logging.getLogger("optuna.vit_ratio_opt.utils.caching"), "warning", said.append
    )
    own = cached_calibration(tiny_vit, [images], tmp_path).to_tensors()
    (path,) = tmp_path.iterdir()
    if damage == "a bit":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        cached_calibration(tiny_vit, [images + 1], tmp_path)
        (other,) = set(tmp_path.iterdir()) - {path}
        other.replace(path)
    measured.clear()
    for _ in range(2):
        found = cached_calibration(tiny_vit, [images], tmp_path).to_tensors()
        assert all(torch.equal(found[name], own[name]) for name in own)
    assert len(measured) == len(said) == 1
    assert "is measured again: it is damaged, or of another model" in said[0]


def test_a_folder_that_cannot_be_made_costs_a_warning_only(
    tiny_vit: VisionTransformer,
    images: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    monkeypatch.setattr(
        logging.getLogger("optuna.vit_ratio_opt.utils.caching"), "warning", said.append
    )
    assert cached_calibration(tiny_vit, [images], tmp_path / "file" / "folder").blocks
    assert len(said) == 1
    assert "cannot be written" in said[0]
