"""Tests for sizes that a device computes fast."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning import pruner as module
from vit_ratio_opt.pruning.calibration import calibrate
from vit_ratio_opt.pruning.options import Both, Structural
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.pruning.pruner import ModelPruner
from vit_ratio_opt.pruning.rounding import fitting_step, usual_round_to
from vit_ratio_opt.space.costs import MACS
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.shape import BlockShape

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def deit(make_vit):
    """Shape of two blocks of DeiT-S."""
    return replace(shape_of(make_vit()), blocks=(BlockShape(6, 64, 1536),) * 2)


def test_sizes_are_multiples_of_eight_on_cuda_and_free_on_a_cpu(deit):
    assert usual_round_to(deit, CUDA) == 8
    assert usual_round_to(deit, CPU) == usual_round_to(deit, torch.device("mps")) == 1


def test_small_heads_can_still_lose_half_of_their_rank(deit):
    for head_dim, wanted in ((4, 2), (8, 4), (16, 8), (24, 8), (64, 8)):
        small = replace(deit, blocks=(BlockShape(6, 64, 1536), BlockShape(6, head_dim, 64)))
        assert usual_round_to(small, CUDA) == wanted
    narrow = replace(deit, blocks=(BlockShape(6, 8, 1536),), whole_heads=True)
    assert fitting_step(narrow, 32) == 32  # only neurons are rounded


@pytest.mark.parametrize("allocation", ["global", "energy", "uniform"])
def test_heads_of_a_block_are_equal_and_multiples_for_every_allocation(make_vit, allocation):
    dense = make_vit(embed_dim=96, num_heads=3, mlp_ratio=1.0)  # heads of 32
    calibration = calibrate(dense, [torch.randn(4, 3, 32, 32)])
    for pair in ((0.25, 0.25), (0.5, 0.5), (0.6, 0.3)):
        pruned = prune(dense, pair, calibration, allocation=allocation, round_to=8)
        for block in pruned.blocks:
            attention = block.attn
            assert attention.head_dim % 8 == 0
            assert attention.qkv.out_features == 3 * attention.num_heads * attention.head_dim
            assert attention.qkv.out_features % 8 == attention.proj.in_features % 8 == 0
            assert block.mlp.fc1.out_features % 8 == 0


def test_auto_is_the_number_of_the_device_until_a_study_has_another(tiny_vit, monkeypatch):
    images = [torch.randn(4, 3, 32, 32)]
    monkeypatch.setattr(module, "usual_round_to", lambda shape, device: 4)
    pruner = ModelPruner(tiny_vit, images)
    assert pruner.identity()["round_to"] == pruner.space.round_to == 4
    pruner.expected_loss(RatioPair(0.5, 0.5))
    pruner.price(MACS, round_to=1)
    assert pruner.identity()["round_to"] == pruner.space.round_to == 1
    pair = RatioPair(pruner.space.mhsa_ratios[1], pruner.space.ffn_ratios[1])
    assert pruner.expected_loss(pair) > 0
    assert ModelPruner(tiny_vit, images, pruning=Both()).space.round_to == 4
    given = ModelPruner(tiny_vit, images, pruning=Structural(round_to=2))
    given.price(MACS, round_to=1)
    assert given.space.round_to == 2


@pytest.mark.parametrize("kind", [Structural, Both])
@pytest.mark.parametrize("value", [0, -8, 1.5, "8", "fast", None, True])
def test_other_values_are_refused(kind, value):
    with pytest.raises(InputError, match="round_to"):
        kind(round_to=value)
