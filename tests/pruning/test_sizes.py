"""Tests for the sizes of blocks that pruning leaves."""

from __future__ import annotations

import pytest

from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.importance import taylor_importance
from vit_ratio_opt.pruning.prune import prune, prune_units
from vit_ratio_opt.pruning.sizes import predict_sizes
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.units import StructuralUnits


@pytest.mark.parametrize("allocation", ["global", "energy", "uniform"])
@pytest.mark.parametrize("round_to", [1, 4])
def test_sizes_are_those_that_pruning_leaves(tiny_vit, calibration, allocation, round_to):
    dense = StructuralUnits(shape_of(tiny_vit), round_to=round_to)
    pairs = [(0.0, 0.0), (0.25, 0.5), (0.5, 0.75)]
    units, neurons = zip(*(dense.removed(RatioPair(*pair)) for pair in pairs), strict=True)
    heads, hidden = predict_sizes(dense, units, neurons, calibration, allocation=allocation)
    for pair, sizes, counts in zip(pairs, heads, hidden, strict=True):
        pruned = prune(tiny_vit, pair, calibration, allocation=allocation, round_to=round_to)
        left = shape_of(pruned).blocks
        assert [(b.num_heads, b.head_dim) for b in left] == sizes
        assert [b.hidden_dim for b in left] == counts


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_sizes_of_whole_heads_are_those_that_pruning_leaves(tiny_vit, images, labels, allocation):
    scores = taylor_importance(tiny_vit, [(images, labels)])
    dense = StructuralUnits(shape_of(tiny_vit), "head")
    heads, hidden = predict_sizes(dense, [0, 3], [5, 60], scores, allocation=allocation)
    for index, (units, neurons) in enumerate(((0, 5), (3, 60))):
        left = shape_of(
            prune_units(tiny_vit, units, neurons, scores, allocation=allocation)
        ).blocks
        assert [(b.num_heads, b.head_dim) for b in left] == heads[index]
        assert [b.hidden_dim for b in left] == hidden[index]
