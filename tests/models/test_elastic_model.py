"""The class alone: levels that are slices of one model, whatever its weights."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from timm.optim import param_groups_weight_decay

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.blocks import branches
from vit_ratio_opt.models.elastic import ElasticLevel, ElasticViT
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.shape import BlockShape

SIZES = (BlockShape(4, 8, 64), BlockShape(3, 6, 40), BlockShape(2, 2, 8))


def make_elastic(model, sizes=SIZES):
    depth = len(shape_of(model).blocks)
    levels = [
        ElasticLevel(RatioPair(0.2 * i, 0.3 * i), (size,) * depth, 1 - 0.3 * i)
        for i, size in enumerate(sizes)
    ]
    elastic = ElasticViT(model, levels)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # so that a vector of a level in the wrong place is seen
        for vector in elastic.vectors.parameters():
            vector.add_(0.1 * torch.randn(vector.shape, generator=generator))
    return elastic


@pytest.fixture
def elastic(tiny_vit):
    return make_elastic(tiny_vit)


@pytest.mark.parametrize("level", range(3))
def test_the_model_of_a_level_gives_what_the_level_gives(elastic, images, level):
    model = elastic.extract(level)
    assert shape_of(model).blocks == elastic.levels[level].blocks
    torch.testing.assert_close(elastic(images, level), model(images), atol=1e-5, rtol=1e-4)
    assert type(model) is type(elastic.largest)
    assert not model.training


def test_matrices_are_slices_and_vectors_are_own(elastic):
    whole, small = elastic.extract(0), elastic.extract(2)
    for (old, old_ffn), (new, new_ffn) in zip(branches(whole), branches(small), strict=True):
        rows = old.module.qkv.weight.unflatten(0, (3, 4, 8))[:, :2, :2]
        queries, keys, values = new.module.qkv.weight.unflatten(0, (3, 2, 2))
        assert torch.equal(keys, rows[1])
        assert torch.equal(values, rows[2])
        # Logits are divided by the root of another size: the queries make up for it.
        torch.testing.assert_close(queries, rows[0] * (2 / 8) ** 0.5)
        columns = old.module.proj.weight.unflatten(1, (4, 8))[:, :2, :2].flatten(1)
        assert torch.equal(new.module.proj.weight, columns)
        assert torch.equal(new_ffn.module.fc1.weight, old_ffn.module.fc1.weight[:8])
        assert torch.equal(new_ffn.module.fc1.bias, old_ffn.module.fc1.bias[:8])
        assert torch.equal(new_ffn.module.fc2.weight, old_ffn.module.fc2.weight[:, :8])
        assert not torch.equal(new_ffn.module.fc2.bias, old_ffn.module.fc2.bias)
    assert torch.equal(small.patch_embed.proj.weight, whole.patch_embed.proj.weight)
    assert torch.equal(small.head.weight, whole.head.weight)
    assert not torch.equal(small.norm.weight, whole.norm.weight)


def test_a_small_level_trains_its_part_of_the_shared_weights_only(elastic, images):
    elastic(images, 2).square().sum().backward()
    for attention, ffn in branches(elastic.largest):
        fc1, qkv = ffn.module.fc1.weight.grad, attention.module.qkv.weight.grad
        assert fc1[:8].abs().sum() > 0
        assert not fc1[8:].any()
        heads = qkv.unflatten(0, (3, 4, 8))
        assert heads[:, :2, :2].abs().sum() > 0
        assert not heads[:, 2:].any()
        assert not heads[:, :, 2:].any()
    assert elastic.largest.norm.weight.grad is None
    assert elastic.vectors[0][0].grad is None
    assert all(vector.grad is not None for vector in elastic.vectors[1])


def test_the_gradient_is_that_of_the_levels_own_model(elastic, images):
    own = elastic.extract(1)
    own(images).square().sum().backward()
    elastic(images, 1).square().sum().backward()
    fc2 = elastic.largest.blocks[0].mlp.fc2.weight.grad
    torch.testing.assert_close(fc2[:, :40], own.blocks[0].mlp.fc2.weight.grad)
    index = elastic.vector_names.index("norm.bias")
    torch.testing.assert_close(elastic.vectors[0][index].grad, own.norm.bias.grad)


def test_a_level_leaves_the_largest_model_as_it_was(elastic, images):
    before = elastic(images)
    sizes = [
        (a.module.num_heads, a.module.head_dim, a.module.scale)
        for a, _ in branches(elastic.largest)
    ]
    elastic(images, 2)
    with pytest.raises(RuntimeError):
        elastic(images[:, :1], 2)  # wrong channels: an error inside of the level's pass
    after = [
        (a.module.num_heads, a.module.head_dim, a.module.scale)
        for a, _ in branches(elastic.largest)
    ]
    assert sizes == after
    assert torch.equal(elastic(images), before)


def test_a_budget_takes_the_largest_level_within_it(elastic):
    assert [shape_of(elastic.at(budget)).blocks[0] for budget in (1, 0.99, 0.7, 0.69, 0.4)] == [
        SIZES[0],
        SIZES[1],
        SIZES[1],
        SIZES[2],
        SIZES[2],
    ]
    with pytest.raises(InputError, match=r"at most 0\.3 .* the smallest costs 0\.4000"):
        elastic.at(0.3)
    with pytest.raises(InputError, match="`budget` must be in"):
        elastic.at(50)


def test_a_copied_or_pickled_model_has_the_same_levels(elastic, images):
    for other in (copy.deepcopy(elastic), pickle.loads(pickle.dumps(elastic))):
        assert torch.equal(other(images, 1), elastic(images, 1))
    assert "3 levels with 1.000, 0.700, 0.400 of the MACs" in repr(elastic)


def test_embeddings_and_vectors_do_not_decay(elastic):
    groups = param_groups_weight_decay(
        elastic, 0.1, no_weight_decay_list=elastic.no_weight_decay()
    )
    decaying = {id(part) for group in groups if group["weight_decay"] for part in group["params"]}
    assert id(elastic.largest.head.weight) in decaying
    assert id(elastic.largest.pos_embed) not in decaying
    assert not decaying & {id(vector) for vector in elastic.vectors.parameters()}


def test_levels_that_grow_are_refused(tiny_vit):
    with pytest.raises(InputError, match="Level 2 must be nowhere larger"):
        make_elastic(tiny_vit, (SIZES[0], SIZES[2], SIZES[1]))
    with pytest.raises(InputError, match="blocks of the largest model"):
        make_elastic(tiny_vit, SIZES[1:])


def test_checkpointed_gradients_are_refused(elastic, images):
    elastic.largest.set_grad_checkpointing(True)
    with pytest.raises(InputError, match="set_grad_checkpointing"):
        elastic(images, 1)


def test_threads_take_turns(elastic, images):
    with torch.no_grad():
        expected = [elastic(images, level) for level in range(3)]

        def check(level):
            return all(torch.equal(elastic(images, level), expected[level]) for _ in range(40))

        with ThreadPoolExecutor(3) as pool:
            assert all(pool.map(check, range(3)))
    assert len(list(elastic.largest.parameters())) == len(list(elastic.extract(2).parameters()))


@pytest.mark.parametrize("level", [3, -4, 1.0, "1", None, True])
def test_a_level_that_is_not_there_is_refused(elastic, images, level):
    for ask in (lambda: elastic(images, level), lambda: elastic.extract(level)):
        with pytest.raises(InputError, match="`level` must be the index of a level, 0 to 2"):
            ask()
    torch.testing.assert_close(elastic(images, -1), elastic(images, 2))


def test_what_takes_one_model_asks_for_that_of_a_level(elastic):
    with pytest.raises(UnsupportedModelError, match=r"pass that of a level, such as `elastic\.at"):
        shape_of(elastic)
