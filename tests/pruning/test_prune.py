from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.surgery import keep_units
from vit_ratio_opt.pruning.calibration import Calibration, calibrate
from vit_ratio_opt.pruning.importance import Importance
from vit_ratio_opt.pruning.options import Allocation
from vit_ratio_opt.pruning.prune import prune, prune_ranks, prune_to_macs, prune_units
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.shape import BlockTokens
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.space.units import MhsaUnit

allocations = st.sampled_from(get_args(Allocation))
every_allocation = pytest.mark.parametrize("allocation", get_args(Allocation))


def scores(heads: list[list[float]], neurons: list[list[float]] | None = None) -> Importance:
    neurons = neurons or [list(range(64))] * 2
    return Importance(
        tuple(torch.tensor(block, dtype=torch.double) for block in heads),
        tuple(torch.tensor(block, dtype=torch.double) for block in neurons),
    )


def random_scores(seed: int) -> Importance:
    generator = torch.Generator().manual_seed(seed)
    return Importance(
        tuple(torch.rand(4, generator=generator) for _ in range(2)),
        tuple(torch.rand(64, generator=generator) for _ in range(2)),
    )


EVEN = scores([[0] * 4] * 2, [[0] * 64] * 2)
# Every unit of the first block matters less than any of the second.
LOPSIDED = scores([range(4), range(4, 8)], [range(64), range(64, 128)])


@pytest.fixture
def tagged_vit(tiny_vit: VisionTransformer) -> VisionTransformer:
    """Each unit's bias is its index, so that a pruned copy shows which ones it has."""
    with torch.no_grad():
        for block in tiny_vit.blocks:
            block.attn.qkv.bias.copy_((torch.arange(96) % 32).div(8, rounding_mode="floor"))
            block.mlp.fc1.bias.copy_(torch.arange(64))
    return tiny_vit


def kept_heads(model: VisionTransformer) -> list[list[int]]:
    return [sorted({int(i) for i in block.attn.qkv.bias}) for block in model.blocks]


def kept_neurons(model: VisionTransformer) -> list[list[int]]:
    return [[int(i) for i in block.mlp.fc1.bias] for block in model.blocks]


# How many


@every_allocation
@pytest.mark.parametrize(
    ("pair", "heads_left", "neurons_left"),
    [
        ((0.25, 0.5), 6, 64),
        ((0.3, 0.6), 5, 51),  # 2.4 heads and 76.8 neurons go, rounded up
        ((0, 0.01), 8, 126),
        ((0.01, 0), 7, 128),
        ((0.75, 0.875), 2, 16),
    ],
)
@pytest.mark.parametrize("importance", [EVEN, LOPSIDED, random_scores(0)])
def test_counts_are_exact(
    tiny_vit: VisionTransformer,
    allocation: Allocation,
    pair: tuple[float, float],
    heads_left: int,
    neurons_left: int,
    importance: Importance,
) -> None:
    shape = shape_of(prune(tiny_vit, pair, importance, allocation=allocation))
    assert (shape.heads, shape.neurons) == (heads_left, neurons_left)


@every_allocation
@pytest.mark.parametrize("importance", [EVEN, LOPSIDED, random_scores(0)])
def test_every_block_keeps_a_head_and_eight_neurons(
    tiny_vit: VisionTransformer, allocation: Allocation, importance: Importance
) -> None:
    largest = StructuralSpace(shape_of(tiny_vit), "head").max_pair
    for pair in (largest, (0.5, 0.5), (largest.mhsa_ratio, 0), (0, largest.ffn_ratio)):
        blocks = shape_of(prune(tiny_vit, pair, importance, allocation=allocation)).blocks
        assert all(block.num_heads >= 1 and block.hidden_dim >= 8 for block in blocks)
    at_most = shape_of(prune(tiny_vit, largest, importance, allocation=allocation)).blocks
    assert [(block.num_heads, block.hidden_dim) for block in at_most] == [(1, 8)] * 2


@given(
    allocation=allocations,
    mhsa=st.floats(0, 0.75),
    ffn=st.floats(0, 0.875),
    seed=st.integers(0, 2**32),
)
# The model is not changed, so that all examples can share one.
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_macs_are_what_was_asked_to_within_one_unit_each(
    tiny_vit: VisionTransformer,
    allocation: Allocation,
    mhsa: float,
    ffn: float,
    seed: int,
) -> None:
    dense = StructuralSpace(shape_of(tiny_vit), "head")
    head_macs, neuron_macs = dense.mhsa_unit_macs, dense.shape.neuron_macs
    requested = dense.macs - mhsa * 8 * head_macs - ffn * 128 * neuron_macs
    realised = shape_of(
        prune(tiny_vit, (mhsa, ffn), random_scores(seed), allocation=allocation)
    ).macs
    assert realised <= requested + 1e-6 * dense.macs  # ratios are floats
    assert realised > requested - head_macs - neuron_macs


@given(
    allocation=allocations,
    heads=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    neurons=st.tuples(st.integers(0, 112), st.integers(0, 112)),
    seed=st.integers(0, 2**32),
)
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_larger_pair_can_be_reached_in_two_steps(
    tiny_vit: VisionTransformer,
    allocation: Allocation,
    heads: tuple[int, int],
    neurons: tuple[int, int],
    seed: int,
) -> None:
    (h1, h2), (n1, n2) = sorted(heads), sorted(neurons)
    parent = prune_units(tiny_vit, h1, n1, random_scores(seed), allocation=allocation)
    generator = torch.Generator().manual_seed(seed + 1)
    blocks = shape_of(parent).blocks
    importance = Importance(
        tuple(torch.rand(block.num_heads, generator=generator) for block in blocks),
        tuple(torch.rand(block.hidden_dim, generator=generator) for block in blocks),
    )
    child = prune_units(parent, h2 - h1, n2 - n1, importance, allocation=allocation)
    assert shape_of(child).macs == StructuralSpace(shape_of(tiny_vit), "head").pruned_macs(
        RatioPair(h2 / 8, n2 / 128)
    )


# Which


def test_global_removes_the_lowest_scores_of_all_blocks(tagged_vit: VisionTransformer) -> None:
    heads = [[0.9, 0.1, 0.8, 0.2], [0.3, 0.7, 0.05, 0.6]]
    neurons = [[(37 * i) % 64 for i in range(64)], [(37 * i) % 64 + 20.5 for i in range(64)]]
    pruned = prune(tagged_vit, (0.5, 0.5), scores(heads, neurons))
    assert kept_heads(pruned) == [[0, 2], [1, 3]]
    threshold = sorted(neurons[0] + neurons[1])[64]
    assert kept_neurons(pruned) == [
        [i for i, score in enumerate(block) if score >= threshold] for block in neurons
    ]
    sizes = [block.hidden_dim for block in shape_of(pruned).blocks]
    assert sizes[0] < sizes[1]  # the split follows the scores


def test_global_protects_the_best_of_the_worst_block(tagged_vit: VisionTransformer) -> None:
    pruned = prune(tagged_vit, (0.5, 0.5), LOPSIDED)
    assert kept_heads(pruned) == [[3], [1, 2, 3]]
    assert kept_neurons(pruned) == [list(range(56, 64)), list(range(8, 64))]


def test_uniform_removes_the_lowest_scores_of_each_block(tagged_vit: VisionTransformer) -> None:
    importance = scores(
        [[4, 1, 3, 2], [50, 80, 60, 70]], [list(range(64, 0, -1)), list(range(100, 164))]
    )
    pruned = prune(tagged_vit, (0.5, 0.25), importance, allocation="uniform")
    assert kept_heads(pruned) == [[0, 2], [1, 3]]
    assert kept_neurons(pruned) == [list(range(48)), list(range(16, 64))]


@pytest.mark.parametrize("heads", range(7))
@pytest.mark.parametrize("neurons", [0, 1, 37, 111, 112])
def test_uniform_spreads_evenly_whatever_the_scores(
    tiny_vit: VisionTransformer, heads: int, neurons: int
) -> None:
    pair = (heads / 8, neurons / 128)
    first, second = shape_of(prune(tiny_vit, pair, LOPSIDED, allocation="uniform")).blocks
    assert 0 <= first.num_heads - second.num_heads <= 1  # the later block gives first
    assert 0 <= first.hidden_dim - second.hidden_dim <= 1


def test_uniform_takes_the_same_share_of_blocks_that_differ(tiny_vit: VisionTransformer) -> None:
    uneven = prune(tiny_vit, (0, 32 / 128), LOPSIDED)  # leaves 32 and 64 neurons
    importance = scores([[0] * 4] * 2, [[0] * 32, [0] * 64])
    halved = prune(uneven, (0, 0.5), importance, allocation="uniform")
    assert [block.hidden_dim for block in shape_of(halved).blocks] == [16, 32]


def test_uniform_share_of_a_small_block_ends_at_its_minimum(tiny_vit: VisionTransformer) -> None:
    uneven = keep_units(tiny_vit, [range(4)] * 2, [range(10), range(64)])
    importance = scores([[0] * 4] * 2, [[0] * 10, [0] * 64])
    halved = prune(uneven, (0, 0.5), importance, allocation="uniform")
    assert [block.hidden_dim for block in shape_of(halved).blocks] == [8, 29]


@every_allocation
def test_ties_give_the_same_model_every_time(
    tagged_vit: VisionTransformer, allocation: Allocation
) -> None:
    pruned = [prune(tagged_vit, (0.25, 0.125), EVEN, allocation=allocation) for _ in range(2)]
    first, second = (model.state_dict() for model in pruned)
    assert all(torch.equal(first[name], second[name]) for name in first)
    # The first units of a block go first.
    expected = [[2, 3], [0, 1, 2, 3]] if allocation != "uniform" else [[1, 2, 3]] * 2
    assert kept_heads(pruned[0]) == expected


# Refusals


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (scores([[0] * 4, [0, 0, 0, float("nan")]]), "heads must be finite"),
        (scores([[0] * 4] * 2, [[0] * 64, [float("inf")] * 64]), "neurons must be finite"),
        (scores([[0] * 4, [0] * 3]), r"heads must have shapes \[4, 4\]"),
        (scores([[0] * 4]), r"heads must have shapes \[4, 4\]"),
        (scores([[[0]] * 4] * 2), r"heads must have shapes \[4, 4\]"),
        (scores([[0] * 4] * 2, [[0] * 4] * 2), r"neurons must have shapes \[64, 64\]"),
    ],
)
def test_scores_that_do_not_fit_are_refused(
    tiny_vit: VisionTransformer, importance: Importance, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prune(tiny_vit, (0.25, 0.25), importance)


@pytest.mark.parametrize(
    ("pair", "largest"),
    [((0.76, 0), "0.75"), ((0, 0.9), "0.875"), ((1, 0), "0.75"), ((0, -0.1), "0.875")],
)
def test_ratio_out_of_range_names_the_largest(
    tiny_vit: VisionTransformer, pair: tuple[float, float], largest: str
) -> None:
    with pytest.raises(InputError, match=rf"must be in \[0, {largest}\]"):
        prune(tiny_vit, pair, EVEN)


@pytest.mark.parametrize(
    ("heads", "neurons", "message"),
    [
        (7, 0, r"`heads` must be in \[0, 6\]"),
        (-1, 0, r"`heads` must be in \[0, 6\]"),
        (0, 113, r"`neurons` must be in \[0, 112\]"),
    ],
)
def test_more_units_than_the_blocks_can_spare_are_refused(
    tiny_vit: VisionTransformer, heads: int, neurons: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prune_units(tiny_vit, heads, neurons, EVEN)


def test_other_allocations_are_refused(tiny_vit: VisionTransformer) -> None:
    with pytest.raises(InputError, match=r"'global', 'energy' or 'uniform', but got 'local'"):
        prune(tiny_vit, (0.25, 0.25), EVEN, allocation="local")  # type: ignore[arg-type]


# Ranks


@given(allocation=allocations, mhsa=st.floats(0, 0.875), ffn=st.floats(0, 0.875))
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_with_ranks_macs_are_what_was_asked_to_within_one_unit_each(
    tiny_vit: VisionTransformer,
    calibration: Calibration,
    allocation: Allocation,
    mhsa: float,
    ffn: float,
) -> None:
    dense = StructuralSpace(shape_of(tiny_vit))
    rank_macs, neuron_macs = dense.mhsa_unit_macs, dense.shape.neuron_macs
    requested = dense.macs - mhsa * 16 * rank_macs - ffn * 128 * neuron_macs
    smaller = prune(tiny_vit, (mhsa, ffn), calibration, allocation=allocation)
    realised = shape_of(smaller).macs
    assert realised <= requested + 1e-6 * dense.macs
    assert realised > requested - rank_macs - neuron_macs
    assert realised == dense.pruned_macs(RatioPair(mhsa, ffn))


def test_energy_does_not_see_that_one_block_matters_more(
    tiny_vit: VisionTransformer, calibration: Calibration
) -> None:
    # The same losses in both blocks, but for their size.
    first = calibration.blocks[0]
    factors = replace(
        first.factors,
        value_losses=1000 * first.factors.value_losses,
        logit_losses=1000 * first.factors.logit_losses,
    )
    louder = replace(first, factors=factors, neuron_losses=1000 * first.neuron_losses)
    lopsided = replace(calibration, blocks=(first, louder))
    energy = shape_of(prune(tiny_vit, (0.5, 0.5), lopsided, allocation="energy")).blocks
    assert energy[0] == energy[1]
    everywhere = shape_of(prune(tiny_vit, (0.5, 0.5), lopsided)).blocks
    assert everywhere[0].hidden_dim < everywhere[1].hidden_dim
    assert (
        everywhere[0].num_heads * everywhere[0].head_dim
        < everywhere[1].num_heads * everywhere[1].head_dim
    )


def test_with_ranks_uniform_cuts_every_block_alike_and_global_does_not(
    tiny_vit: VisionTransformer, calibration: Calibration
) -> None:
    even = shape_of(prune(tiny_vit, (0.5, 0.5), calibration, allocation="uniform"))
    assert [(b.num_heads * b.head_dim, b.hidden_dim) for b in even.blocks] == [(16, 32)] * 2
    free = shape_of(prune(tiny_vit, (0.5, 0.5), calibration))
    assert free.macs == even.macs
    assert free.blocks != even.blocks


@given(
    dims=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    neurons=st.tuples(st.integers(0, 112), st.integers(0, 112)),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_larger_pair_of_ranks_can_be_reached_in_two_steps(
    tiny_vit: VisionTransformer,
    calibration: Calibration,
    images: torch.Tensor,
    dims: tuple[int, int],
    neurons: tuple[int, int],
) -> None:
    (few, many), (less, more) = sorted(dims), sorted(neurons)
    first = prune_ranks(tiny_vit, few, less, calibration)
    left = shape_of(first)
    gone = 64 - left.attention_dims
    second = prune_ranks(first, max(0, many - gone), more - less, calibrate(first, [images]))
    smallest = shape_of(second)
    assert 64 - smallest.attention_dims >= many
    assert smallest.neurons == 128 - more


@given(
    allocation=allocations,
    mhsa=st.floats(0, 1),
    ffn=st.floats(0, 1),
    round_to=st.sampled_from([2, 3, 4, 8, 16]),
    unit=st.sampled_from(["head", "rank"]),
)
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_rounded_sizes_are_multiples_and_macs_what_was_asked_to_within_a_step_each(
    tiny_vit: VisionTransformer,
    calibration: Calibration,
    allocation: Allocation,
    mhsa: float,
    ffn: float,
    round_to: int,
    unit: MhsaUnit,
) -> None:
    dense = StructuralSpace(shape_of(tiny_vit), unit, round_to)
    pair = RatioPair(mhsa * dense.max_pair.mhsa_ratio, ffn * dense.max_pair.ffn_ratio)
    guide = calibration if unit == "rank" else random_scores(0)
    smaller = shape_of(prune(tiny_vit, pair, guide, allocation=allocation, round_to=round_to))
    for block, before in zip(smaller.blocks, dense.shape.blocks, strict=True):
        assert block.hidden_dim % round_to == 0 or block.hidden_dim == before.hidden_dim
        assert block.head_dim % round_to == 0 or block.head_dim == before.head_dim
    units, neurons = pair.mhsa_ratio * dense.mhsa_units, pair.ffn_ratio * dense.neurons
    requested = dense.macs - units * dense.mhsa_unit_macs - neurons * dense.shape.neuron_macs
    assert smaller.macs <= requested + 1e-6 * dense.macs
    step = round_to * (dense.mhsa_unit_macs + dense.shape.neuron_macs)
    # Where sizes are no multiples, the first step of every block is another one.
    assert smaller.macs > requested - (1 if 64 % round_to == 8 % round_to == 0 else 2) * step


def test_a_step_below_one_is_refused(tiny_vit: VisionTransformer) -> None:
    with pytest.raises(InputError, match="`round_to` must be at least 1, but got 0"):
        prune(tiny_vit, (0.25, 0.25), EVEN, round_to=0)


def test_a_calibration_of_another_model_is_refused(
    make_vit: Callable[..., VisionTransformer], calibration: Calibration
) -> None:
    with pytest.raises(InputError, match="not of this model"):
        prune(make_vit(num_heads=2), (0.25, 0.25), calibration)


def test_more_dimensions_than_the_blocks_can_spare_are_refused(
    tiny_vit: VisionTransformer, calibration: Calibration
) -> None:
    with pytest.raises(InputError, match=r"`dims` must be in \[0, 62\]"):
        prune_ranks(tiny_vit, 63, 0, calibration)
    with pytest.raises(InputError, match=r"`mhsa_ratio` must be in .* 1 rank"):
        prune(tiny_vit, (0.9, 0), calibration)


# Down to MACs


def test_macs_of_both_modules_stay_within_their_limits(make_vit, images):
    model = make_vit(depth=3)
    calibration = calibrate(model, [images])
    tokens = [BlockTokens(17, 17, 17), BlockTokens(9, 17, 12), BlockTokens(2, 17, 2)]
    whole = replace(shape_of(model), block_tokens=tuple(tokens))
    attention = sum(b.num_heads * b.head_dim * whole.unit_macs(t)[0] for b, t in whole_of(whole))
    ffn = sum(b.hidden_dim * whole.unit_macs(t)[1] for b, t in whole_of(whole))
    for share in (1.0, 0.7, 0.4):
        limits = int(share * attention), int(share * ffn)
        pruned = prune_to_macs(model, *limits, tokens, calibration)
        shape = replace(shape_of(pruned), block_tokens=tuple(tokens))
        got = (
            sum(b.num_heads * b.head_dim * shape.unit_macs(t)[0] for b, t in whole_of(shape)),
            sum(b.hidden_dim * shape.unit_macs(t)[1] for b, t in whole_of(shape)),
        )
        assert got[0] <= limits[0]
        assert got[1] <= limits[1]
        # No more than a unit of the dearest block is given away without need.
        assert got[1] > limits[1] - whole.unit_macs(tokens[0])[1]
        if share == 1.0:
            assert torch.equal(pruned(images), model(images))


def whole_of(shape):
    return zip(shape.blocks, shape.block_tokens, strict=True)


def test_blocks_where_a_unit_costs_little_keep_more(make_vit, images):
    model = make_vit(depth=2)
    calibration = calibrate(model, [images])
    same = tuple(replace(block, neuron_losses=torch.ones(64)) for block in calibration.blocks)
    tokens = [BlockTokens(17, 17, 17), BlockTokens(2, 17, 2)]
    limit = 32 * 2 * 17 * 32
    pruned = prune_to_macs(model, 10**9, limit, tokens, replace(calibration, blocks=same))
    first, second = (block.hidden_dim for block in shape_of(pruned).blocks)
    assert second == 64
    assert first < 32


def test_sizes_down_to_macs_are_multiples_of_round_to(make_vit, images):
    model = make_vit(depth=2)
    tokens = [BlockTokens(17, 17, 17), BlockTokens(9, 9, 9)]
    pruned = prune_to_macs(model, 60_000, 70_000, tokens, calibrate(model, [images]), round_to=4)
    for block in shape_of(pruned).blocks:
        assert block.head_dim % 4 == block.hidden_dim % 4 == 0


def test_macs_that_cannot_be_had_are_refused(tiny_vit, images):
    calibration = calibrate(tiny_vit, [images])
    tokens = [BlockTokens(17, 17, 17)] * 2
    with pytest.raises(InputError, match="`ffn_macs` must be at least"):
        prune_to_macs(tiny_vit, 10**9, 100, tokens, calibration)
    with pytest.raises(InputError, match="not of this model"):
        prune_to_macs(
            tiny_vit, 10**9, 10**9, tokens, replace(calibration, blocks=calibration.blocks[:1])
        )
