"""Probes of features: nearest neighbours and a linear classifier."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import vit_ratio_opt as vro
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.training.probes import neighbour_votes


class _Pixels(nn.Module):
    """An encoder whose features are the pixels, or rows of pixels as tokens."""

    def __init__(self, tokens: bool = False) -> None:
        super().__init__()
        self.scale, self.tokens = nn.Parameter(torch.ones(())), tokens

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scale * images.flatten(2 if self.tokens else 1)


def test_digits_are_known_by_their_pixels(digits: ImageData) -> None:
    found = vro.probe(_Pixels(), digits)
    assert (found.images, found.bank) == (len(digits.test), len(digits.train))
    assert found.knn > 95
    assert found.linear > 93
    share = found.knn / 100
    assert found.error("knn") == pytest.approx(
        100 * math.sqrt(share * (1 - share) / (found.images - 1)), rel=1e-6
    )


def test_bank_is_bounded_and_drawn_alike(digits: ImageData) -> None:
    first, second = (vro.probe(_Pixels(), digits, bank_images=100) for _ in range(2))
    assert first == second
    assert first.bank == 100


def test_change_has_paired_errors(digits: ImageData) -> None:
    dense = vro.probe(_Pixels(), digits)
    change = dense.change_to(dense)
    assert change["dense"] == change["pruned"] == {"knn": dense.knn, "linear": dense.linear}
    assert change["errors"] == {"knn": 0, "linear": 0}


def test_tokens_are_averaged(digits: ImageData) -> None:
    few = replace(digits, test=digits.test.subset(torch.arange(20)))
    assert vro.probe(_Pixels(tokens=True), few, bank_images=200).knn > 80


def test_near_neighbours_weigh_more_than_many_far_ones() -> None:
    bank, labels = torch.eye(30), torch.tensor([1] + [0] * 29)
    assert neighbour_votes(bank[:1], bank, labels).tolist() == [1]


def test_images_without_one_class_each_are_refused(digits: ImageData) -> None:
    unlabelled = replace(digits, classes=(), task="features")
    with pytest.raises(InputError, match=r"task 'features'\) does not have"):
        vro.probe(_Pixels(), unlabelled)
