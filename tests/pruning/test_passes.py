"""Tests for the precision of passes and for passes with little memory."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch.overrides import TorchFunctionMode

from vit_ratio_opt.pruning import calibration as module
from vit_ratio_opt.pruning.cache import cached_calibration
from vit_ratio_opt.pruning.calibration import Calibration, calibrate, targets_size
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.pruning.reconstruct import repair
from vit_ratio_opt.pruning.targets import empty_on_disk


@pytest.fixture(scope="module")
def drawn() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(96, 3, 32, 32, generator=generator).split(48)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    logger = logging.getLogger("optuna.vit_ratio_opt.pruning.passes")
    monkeypatch.setattr(logger, "warning", said.append)
    return said


def equal(first: Calibration, second: Calibration) -> bool:
    one, two = first.to_tensors(), second.to_tensors()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_passes_in_bfloat16_measure_nearly_the_same_and_repair_as_well(
    tiny_vit: VisionTransformer, drawn: tuple[torch.Tensor, ...]
) -> None:
    full = calibrate(tiny_vit, drawn)
    half = calibrate(tiny_vit, drawn, precision="bfloat16")
    assert (full.precision, half.precision) == ("float32", "bfloat16")
    assert half.blocks[0].ffn_target.dtype == torch.bfloat16
    for one, two in zip(full.blocks, half.blocks, strict=True):
        assert two.neuron_losses.dtype == two.factors.queries.dtype == torch.float64
        for name in ("logit_losses", "value_losses"):
            exact, found = getattr(one.factors, name), getattr(two.factors, name)
            assert (found - exact).abs().max() < 0.03 * exact.max()
        assert (two.neuron_losses.sum() / one.neuron_losses.sum() - 1).abs() < 0.03
    others = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    errors = []
    with torch.no_grad():
        for known in (full, half):
            pruned = prune(tiny_vit, (0.5, 0.5), known)
            assert repair(pruned, drawn, known)
            assert {p.dtype for p in pruned.parameters()} == {torch.float32}
            errors.append((pruned(others) - tiny_vit(others)).square().mean())
    assert errors[1] < 1.05 * errors[0]


def test_nothing_pruned_is_left_as_it_is_in_bfloat16_too(
    tiny_vit: VisionTransformer, drawn: tuple[torch.Tensor, ...]
) -> None:
    known = calibrate(tiny_vit, drawn, precision="bfloat16")
    same = prune(tiny_vit, (0, 0), known)
    assert repair(same, drawn, known) == []
    assert all(map(torch.equal, same.parameters(), tiny_vit.parameters()))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_callers_autocast_changes_nothing(
    tiny_vit: VisionTransformer, drawn: tuple[torch.Tensor, ...], precision: str
) -> None:
    """Autocast keeps weights in bfloat16, which a repair has changed in the meantime."""
    known = calibrate(tiny_vit, drawn, precision=precision)
    pruned = prune(tiny_vit, (0.5, 0.5), known)
    inside = copy.deepcopy(pruned)
    repair(pruned, drawn, known)
    with torch.autocast("cpu", torch.bfloat16):
        assert equal(calibrate(tiny_vit, drawn, precision=precision), known)
        repair(inside, drawn, known)
    assert all(map(torch.equal, inside.parameters(), pruned.parameters()))


class ShortOfMemory(TorchFunctionMode):
    """Activations fail as on a full device where a batch has more than some images."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.sizes: set[int] = set()  # of batches that fit

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.gelu:
            if len(args[0]) > self.most:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
            self.sizes.add(len(args[0]))
        return func(*args, **(kwargs or {}))


def test_a_calibration_halves_its_passes_while_memory_is_short(
    tiny_vit: VisionTransformer,
    drawn: tuple[torch.Tensor, ...],
    warnings: list[str],
) -> None:
    known = calibrate(tiny_vit, drawn)
    with ShortOfMemory(10) as short:
        found = calibrate(tiny_vit, drawn)
    assert short.sizes == {8}
    assert [text.split("short: ")[1][:9] for text in warnings] == ["16 images", "8 images "] * 2
    for one, two in zip(known.blocks, found.blocks, strict=True):
        torch.testing.assert_close(two.neuron_losses, one.neuron_losses, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(two.ffn_target, one.ffn_target)
    assert not any(layer._forward_hooks for layer in tiny_vit.modules())


def test_a_repair_halves_its_passes_while_memory_is_short(
    tiny_vit: VisionTransformer,
    drawn: tuple[torch.Tensor, ...],
    warnings: list[str],
) -> None:
    known = calibrate(tiny_vit, drawn)
    pruned = prune(tiny_vit, (0.5, 0.5), known)
    again = copy.deepcopy(pruned)
    errors = repair(pruned, drawn, known)
    with ShortOfMemory(20) as short:
        found = repair(again, drawn, known)
    assert short.sizes == {12}
    for one, two in zip(found, errors, strict=True):
        assert one == pytest.approx(two, rel=1e-3)
    assert len(warnings) == 8  # of two batches in two blocks, from 48 to 24 to 12


def test_an_image_that_does_not_fit_alone_is_an_error(
    tiny_vit: VisionTransformer,
    drawn: tuple[torch.Tensor, ...],
    warnings: list[str],
) -> None:
    with ShortOfMemory(0), pytest.raises(RuntimeError, match="out of memory"):
        calibrate(tiny_vit, drawn)


def test_targets_above_the_memory_lie_in_a_file_with_the_same_values(
    tiny_vit: VisionTransformer,
    drawn: tuple[torch.Tensor, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Path] = []

    def counted(shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> torch.Tensor:
        made.append(folder)
        return empty_on_disk(shape, dtype, folder)

    monkeypatch.setattr(module, "empty_on_disk", counted)
    size = targets_size(tiny_vit, 96, "float32") / 2**30
    in_memory = cached_calibration(tiny_vit, drawn, tmp_path / "a", memory=size)
    assert made == []
    targets = [t for b in in_memory.blocks for t in (b.attention_target, b.ffn_target)]
    assert sum(target.nbytes for target in targets) == size * 2**30
    on_disk = cached_calibration(tiny_vit, drawn, tmp_path / "b", memory=0.99 * size)
    assert made == [tmp_path / "b"] * len(targets)
    assert equal(on_disk, in_memory)
    assert equal(cached_calibration(tiny_vit, drawn, tmp_path / "b", memory=0), in_memory)
    assert len(list((tmp_path / "b").iterdir())) == 1  # the calibration alone
    assert equal(calibrate(tiny_vit, drawn, scratch=tmp_path / "b"), in_memory)


def test_a_folder_that_cannot_be_written_leaves_targets_in_memory(
    tiny_vit: VisionTransformer, drawn: tuple[torch.Tensor, ...], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    found = calibrate(tiny_vit, drawn, scratch=tmp_path / "file")
    assert equal(found, calibrate(tiny_vit, drawn))


def test_larger_models_take_fewer_images_in_a_pass_with_gradients(
    make_vit: Callable[..., VisionTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vit_ratio_opt.pruning import fisher

    small = make_vit()
    assert fisher._images_at_once(small) == 32
    monkeypatch.setattr(fisher, "_GRADIENT_BYTES", 2**20)
    assert 1 <= fisher._images_at_once(small) < 32
