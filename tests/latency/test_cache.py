import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.latency import cache
from vit_ratio_opt.latency.cache import cached_calibration, cached_latency, default_cache
from vit_ratio_opt.latency.timing import LatencyTable
from vit_ratio_opt.pruning.calibration import calibrate

TABLE = {
    "heads": (1,), "ranks": (1,), "hidden": (1,), "attention": ((0.0,),), "ffn": (0.0,),
    "rest": 1.0, "conditions": {}, "error": 0.01,
}  # fmt: skip


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
    with torch.no_grad():
        tiny_vit.head.weight[0, 0] += 1
    cached_calibration(tiny_vit, [images], tmp_path)
    assert len(measured) == 4


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
        logging.getLogger("optuna.vit_ratio_opt.latency.cache"), "warning", said.append
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
    assert "is measured again: it is damaged, or of something else" in said[0]


def test_a_latency_of_another_processor_or_table_is_measured_again(
    tiny_vit: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines may share a home."""
    calls: list[int] = []

    def counted(*args: object, **options: object) -> LatencyTable:
        calls.append(1)
        return LatencyTable(**TABLE)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "measure_latency", counted)
    for _ in range(2):
        cached_latency(tiny_vit, tmp_path)
    assert len(calls) == 1
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(cache, "_processor", lambda: ["another"])
    cached_latency(tiny_vit, tmp_path)
    assert len(calls) == 2
    (other,) = set(tmp_path.iterdir()) - {path}
    for content in (path.read_text(), "[]", "null", "{", "\xff"):
        other.write_text(content, encoding="latin-1")
        calls.clear()
        for _ in range(2):
            cached_latency(tiny_vit, tmp_path)
        assert len(calls) == 1


def test_a_user_without_a_home_has_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert default_cache().name == "vit_ratio_opt"


def test_a_folder_that_cannot_be_made_costs_a_warning_only(
    tiny_vit: VisionTransformer,
    images: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    monkeypatch.setattr(
        logging.getLogger("optuna.vit_ratio_opt.latency.cache"), "warning", said.append
    )
    assert cached_calibration(tiny_vit, [images], tmp_path / "file" / "folder").blocks
    assert len(said) == 1
    assert "cannot be written" in said[0]


def test_the_default_folder_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/vit_ratio_opt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_cache() == Path("/home/someone/.cache/vit_ratio_opt")
