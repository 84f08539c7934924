"""Parts that stay whole, floors and ceilings of the ratios of blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.bounds import named_bounds, resolve_bounds
from vit_ratio_opt.pruning.calibration import Calibration, calibrate
from vit_ratio_opt.pruning.importance import Importance
from vit_ratio_opt.pruning.options import Structural
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.pruning.pruner import ModelPruner
from vit_ratio_opt.pruning.sizes import expected_losses, predict_sizes
from vit_ratio_opt.space.bounds import FREE, BlockBounds
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.shape import BlockShape
from vit_ratio_opt.space.structural import StructuralSpace

WHOLE = BlockShape(4, 8, 64)  # a block of `tiny_vit`, which has two
ALLOCATIONS = pytest.mark.parametrize("allocation", ["global", "energy", "uniform"])


@pytest.fixture(scope="module")
def scores() -> Importance:
    draw = torch.Generator().manual_seed(0)
    return Importance(
        [torch.rand(4, generator=draw) for _ in range(2)],
        [torch.rand(64, generator=draw) for _ in range(2)],
    )


@ALLOCATIONS
@pytest.mark.parametrize("unit", ["rank", "head"])
@pytest.mark.parametrize("round_to", [1, 4])
def test_a_skipped_block_stays_whole_and_the_others_give_what_the_ratio_asks(
    tiny_vit, calibration: Calibration, scores, allocation: Any, unit: str, round_to: int
) -> None:
    how = {"skip": ("blocks.0",), "allocation": allocation, "round_to": round_to}
    pruned = prune(tiny_vit, (0.25, 0.375), calibration if unit == "rank" else scores, **how)
    first, second = shape_of(pruned).blocks
    assert first == WHOLE
    assert second.num_heads * second.head_dim == 16  # half of its own, a quarter of all
    assert second.hidden_dim == 16
    assert pruned.blocks[0].attn.qkv.weight.equal(tiny_vit.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("round_to", [1, 4])
@ALLOCATIONS
def test_floors_and_ceilings_hold_at_every_pair_of_the_space(
    tiny_vit, calibration: Calibration, allocation: Any, round_to: int
) -> None:
    bounds = {"blocks.0.mlp": (0.25, 0.5), "blocks.1.attn": (0.5, 0.75), "blocks.0.attn": (0, 0.5)}
    space = StructuralSpace(
        shape_of(tiny_vit), "rank", round_to, bounds=resolve_bounds(tiny_vit, (), bounds)
    )
    assert space.min_pair == (0.25, 0.125)
    assert space.max_pair.mhsa_ratio == pytest.approx(0.625)
    for mhsa, ffn in zip(
        torch.linspace(*(space.mhsa_ratios[i] for i in (0, -1)), 7).tolist(),
        torch.linspace(*(space.ffn_ratios[i] for i in (0, -1)), 7).tolist(),
        strict=True,
    ):
        pair = (min(mhsa, space.max_pair[0]), min(ffn, space.max_pair[1]))
        pruned = prune(
            tiny_vit, pair, calibration, bounds=bounds, allocation=allocation, round_to=round_to
        )
        shape = shape_of(pruned)
        first, second = shape.blocks
        assert 32 <= first.hidden_dim <= 48
        assert 16 <= first.num_heads * first.head_dim <= 32
        assert 8 <= second.num_heads * second.head_dim <= 16
        assert shape.macs <= space.pruned_macs(RatioPair(*pair))
    for pair in ((0.0, 0.5), (0.5, 0.0), (0.7, 0.5)):
        with pytest.raises(InputError, match=r"must be in \[0\.\d+, 0\.\d+\]"):
            prune(tiny_vit, pair, calibration, bounds=bounds, round_to=round_to)


def test_costs_of_a_bounded_space_are_those_of_its_models(
    tiny_vit, calibration: Calibration
) -> None:
    bounds = resolve_bounds(tiny_vit, ("blocks.1.attn",), {"blocks.0.mlp": (0.0, 0.5)})
    space = StructuralSpace(shape_of(tiny_vit), bounds=bounds)
    assert space.max_pair == (7 / 16, (32 + 56) / 128)
    assert space.cost_ratio(0.0, 0.0) == 1
    for pair in (space.max_pair, RatioPair(0.25, 0.25)):
        pruned = prune(
            tiny_vit, pair, calibration,
            skip=("blocks.1.attn",), bounds={"blocks.0.mlp": (0.0, 0.5)},
        )  # fmt: skip
        assert shape_of(pruned).macs == space.pruned_macs(pair)


def test_estimates_know_the_bounds(tiny_vit, calibration: Calibration) -> None:
    bounds = resolve_bounds(tiny_vit, ("blocks.0",), {"blocks.1.mlp": (0.25, 0.75)})
    space = StructuralSpace(shape_of(tiny_vit), bounds=bounds)
    heads, hidden = predict_sizes(space, [0, 4], [16, 40], calibration)
    assert [sizes[0] for sizes in heads] == [(4, 8)] * 2
    assert hidden == [[64, 48], [64, 24]]
    by_dims, by_neurons = expected_losses(space, calibration)
    free_dims, free_neurons = expected_losses(StructuralSpace(shape_of(tiny_vit)), calibration)
    assert by_dims[16] > free_dims[16]  # of one block, not of both
    assert (by_neurons >= free_neurons[: len(by_neurons)] - 1e-9).all()  # sums round differently
    assert len(by_neurons) == 1 + 48
    assert by_neurons[0] == by_neurons[16] > free_neurons[0]  # the floor


def test_a_whole_module_may_stay(tiny_vit, images) -> None:
    options = Structural(skip=("blocks.0.attn", "blocks.1.attn"))
    pruner = ModelPruner(tiny_vit, [images], pruning=options)
    assert pruner.space.mhsa_ratios == (0.0,)
    blocks = shape_of(pruner.prune(RatioPair(0.0, 0.5))).blocks
    assert [(b.num_heads, b.head_dim) for b in blocks] == [(4, 8)] * 2


def test_an_iterative_trial_keeps_skipped_parts_and_refuses_other_bounds(tiny_vit, images) -> None:
    pruner = ModelPruner(tiny_vit, [images], pruning=Structural(skip=("blocks.0",)))
    parent = pruner.prune(RatioPair(0.125, 0.125))
    assert shape_of(pruner.prune(RatioPair(0.25, 0.25), parent)).blocks[0] == WHOLE
    bounded = ModelPruner(tiny_vit, [images], pruning=Structural(bounds={"blocks.0": (0, 0.5)}))
    with pytest.raises(InputError, match="shares of the dense model"):
        bounded.prune(RatioPair(0.25, 0.25), parent)


def test_names_are_those_of_the_model(make_vit) -> None:
    model = make_vit()
    skipped = resolve_bounds(model, ("blocks.0", "blocks.1.attn"))
    assert skipped == (BlockBounds((0, 0), (0, 0)), BlockBounds((0, 0), FREE))
    assert list(named_bounds(model, skipped)) == ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn"]
    assert resolve_bounds(model) == resolve_bounds(model, (), {"blocks": (0, 1)}) == ()
    nested = resolve_bounds(model, (), {"blocks": (0.1, 0.5), "blocks.1.mlp": (0, 0.25)})
    assert nested == (BlockBounds((0.1, 0.5), (0.1, 0.5)), BlockBounds((0.1, 0.5), (0.1, 0.25)))
    parallel = make_vit("vit_small_patch16_36x1_224", depth=2, block_fn=None)
    assert resolve_bounds(parallel, ("blocks.1.mlp",))[1].ffn == (0, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"skip": ("blocks.0.atn",)}, "'blocks.0.atn' is no block.*did you mean 'blocks.0.attn'"),
        ({"skip": ("patch_embed",)}, "'patch_embed' is no block, attention or FFN"),
        ({"skip": ("blocks.0",), "bounds": {"blocks.0": (0.1, 0.2)}}, "contradict each other"),
        ({"skip": ("blocks",)}, "leave nothing to prune"),
        ({"bounds": {"blocks.0.attn": (0.51, 0.52)}}, "attention of block 0 must lose 0.51 to"),
        ({"skip": "blocks.0"}, r"`skip` must be names in a tuple, such as \('blocks.0',\)"),
        ({"bounds": {"blocks.0": 0.5}}, r"`bounds\['blocks.0'\]` must be two shares that rise"),
        ({"bounds": {"blocks.0": (0.5, 0.1)}}, "must be two shares that rise"),
        ({"bounds": [("blocks.0", 0, 1)]}, "`bounds` must be a dictionary"),
    ],
)  # fmt: skip
def test_parts_that_are_not_there_are_refused(tiny_vit, images, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelPruner(tiny_vit, [images], pruning=Structural(**given))


def test_models_with_heads_of_one_kind_keep_their_bounds(make_vit, images) -> None:
    model = make_vit(qk_norm=True)  # loses whole heads only
    known = calibrate(model, [images])
    pruned = prune(model, (0.375, 0.0), known, skip=("blocks.0.attn",))
    assert [b.num_heads for b in shape_of(pruned).blocks] == [4, 1]
    assert all(b.head_dim == 8 for b in shape_of(pruned).blocks)
    floor = prune(model, (0.25, 0.0), known, bounds={"blocks.1.attn": (0.5, 0.5)})
    assert [b.num_heads for b in shape_of(floor).blocks] == [4, 2]


def test_equal_shares_that_end_above_a_ceiling_leave_the_rest_to_other_heads_and_ranks(
    make_vit, images
) -> None:
    model = make_vit(embed_dim=48)  # heads of 12 dimensions: 1 of 12 is a quarter, 2 of 8 are more
    bounds = {"blocks.0.attn": (0.0, 0.75), "blocks.1.attn": (0.0, 0.75)}
    space = StructuralSpace(shape_of(model), "rank", 8, bounds=resolve_bounds(model, (), bounds))
    known = calibrate(model, [images])
    how: dict[str, Any] = {"allocation": "uniform", "round_to": 8, "bounds": bounds}
    pruned = prune(model, (space.max_pair[0], 0.0), known, **how)
    assert [(b.num_heads, b.head_dim) for b in shape_of(pruned).blocks] == [(1, 12)] * 2
