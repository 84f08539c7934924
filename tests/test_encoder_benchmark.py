"""``benchmarks/encoder.py`` and its peers, on tiny encoders."""

import pytest
import torch

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.splits import split_in_memory
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.training.matching import Reference


@pytest.fixture(scope="module")
def peers(benchmarks):
    import encoder_peers

    return encoder_peers


@pytest.fixture(scope="module")
def encoder(peers):
    import encoder

    return encoder


@pytest.fixture
def trunk(make_vit):
    return make_vit(num_classes=0)


def outputs(model, images):
    with torch.no_grad():
        return model(images)


def test_the_macs_that_hooks_count_are_those_of_the_shape(encoder, peers, trunk, images):
    shape = shape_of(trunk)
    assert encoder._macs(trunk, images[:1]) == shape.macs
    heads = shape.heads // 4
    scores = peers.Importance(
        tuple(torch.rand(block.num_heads) for block in shape.blocks),
        tuple(torch.rand(block.hidden_dim) for block in shape.blocks),
    )
    ranked = peers.snapvit(trunk, scores, heads, 10)
    assert encoder._macs(ranked, images[:1]) == shape_of(ranked).macs
    wide = shape.blocks[0]
    ranks = 2 * heads * wide.head_dim // wide.num_heads
    compensated = peers.corp(trunk, peers.corp_statistics(trunk, images), ranks, 10)
    assert encoder._macs(compensated, images[:1]) == shape_of(ranked).macs


def test_corp_that_removes_nothing_changes_nothing(peers, trunk, images):
    same = peers.corp(trunk, peers.corp_statistics(trunk, images), 0, 0)
    assert torch.equal(outputs(same, images), outputs(trunk, images))


@pytest.mark.parametrize("removed", [(2, 0), (0, 2)])
def test_corp_replaces_what_others_can_predict(peers, trunk, images, removed, monkeypatch):
    with torch.no_grad():  # every second dimension or neuron is its neighbour again
        for block in trunk.blocks:
            width = block.attn.attn_dim
            for rows in (block.attn.qkv.weight[: 2 * width], block.attn.qkv.bias[: 2 * width]):
                rows[1::2] = rows[::2]
            for rows in (block.mlp.fc1.weight, block.mlp.fc1.bias):
                rows[1::2] = rows[::2]
    many = images.repeat(50, 1, 1, 1)  # with few tokens the ridge is larger
    statistics, wanted = peers.corp_statistics(trunk, many), outputs(trunk, images)

    def error():
        found = outputs(peers.corp(trunk, statistics, *removed), images)
        return (found - wanted).square().mean()

    compensated = error()
    monkeypatch.setattr(peers, "_RIDGE", 1e12)  # nothing is predicted but the mean
    assert compensated < error() / 50


def test_snapvit_ranks_once_for_every_size(peers, trunk, images, monkeypatch):
    monkeypatch.setattr(peers, "_EVALUATIONS", 2)
    one, other = (peers.snapvit_scores(trunk, images[:3], seed=0) for _ in range(2))
    assert all(map(torch.equal, one.neurons + one.heads, other.neurons + other.heads))
    shape = shape_of(trunk)
    small = shape_of(peers.snapvit(trunk, one, 1, shape.neurons // 2))
    assert (small.heads, small.neurons) == (shape.heads - 1, shape.neurons - shape.neurons // 2)


def test_gradients_of_images_are_squared_before_they_are_averaged(peers, trunk, images):
    scores = [peers._local_scores(trunk, images[:count], 0).neurons[0] for count in (1, 1)]
    assert torch.equal(*scores)
    assert (scores[0] > 0).all()


def test_packed_answers_come_back(encoder):
    correct = torch.tensor([False, True, True, False, True])
    assert encoder._unpacked(encoder._packed(correct), 5).bool().tolist() == correct.tolist()


def test_matching_brings_a_pruned_encoder_nearer(encoder, peers, trunk, images):
    statistics = peers.corp_statistics(trunk, images)
    smaller = peers.corp(trunk, statistics, 4, shape_of(trunk).neurons // 2)
    wanted = outputs(trunk, images)
    before = (outputs(smaller, images) - wanted).square().mean()
    noise = torch.randint(256, (64, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    split = split_in_memory(noise.to(torch.uint8), torch.full((64,), -1))
    data = ImageData("noise", split, split, split, (), (0.5,) * 3, (0.25,) * 3, task="features")
    encoder._match(smaller, Reference(trunk, data), images.repeat(40, 1, 1, 1))
    assert (outputs(smaller.eval(), images) - wanted).square().mean() < before
