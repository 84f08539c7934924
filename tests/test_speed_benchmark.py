"""``benchmarks/speed.py`` and token merging, on tiny models."""

import pytest
import timm
import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.latency.timing import TimingEffort
from vit_ratio_opt.models.shape import shape_of

ONCE = TimingEffort(turns=1, turn_seconds=0.0)


@pytest.fixture(scope="module", autouse=True)
def speed(benchmarks):
    import speed

    return speed


@pytest.fixture(scope="module")
def tome(speed):
    import tome

    return tome


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_merging_no_tokens_changes_nothing(tome, tiny_vit, images):
    with torch.no_grad():
        torch.testing.assert_close(tome.merge_tokens(tiny_vit, 0)(images), tiny_vit(images))


def test_every_block_merges_r_tokens_until_half_of_the_patches_are_fewer(tome, tiny_vit, images):
    merging, seen = tome.merge_tokens(tiny_vit, 6), []
    for block in merging.blocks:
        block.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    merging(images)
    assert [tokens.shape[1] for tokens, _ in seen] == [17 - 6, 17 - 6 - 5]
    assert all(sizes.sum(1).eq(17).all() for _, sizes in seen)  # every token counts once


def test_the_most_similar_tokens_become_their_weighted_mean(tome):
    tokens = torch.tensor([[[9.0], [1.0], [2.0], [3.0], [4.0]]])
    sizes = torch.tensor([[[1.0], [3.0], [1.0], [1.0], [1.0]]])
    keys = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]]])
    left, counts = tome.merge(tokens, sizes, keys, r=1, prefix=1)
    # The class token stays first, although its key equals one; patch 0 joins patch 3.
    assert left.flatten().tolist() == [9.0, 3.0, 2.0, (3 * 1.0 + 1 * 4.0) / 4]
    assert counts.flatten().tolist() == [1.0, 1.0, 1.0, 4.0]
    torch.testing.assert_close((left * counts).sum(), (tokens * sizes).sum())


def test_a_merged_token_counts_as_its_patches_in_the_attention(tome, tiny_vit):
    attention, tokens = tiny_vit.blocks[0].attn, torch.randn(1, 4, 32)
    twice = torch.cat([tokens, tokens[:, 3:]], dim=1)
    sizes = torch.tensor([1.0, 1.0, 1.0, 2.0])[None, :, None]
    with torch.no_grad():
        mixed, _ = tome.attend(attention, tokens, sizes)
        torch.testing.assert_close(mixed, attention(twice)[:, :4])


def test_merging_refuses_blocks_that_it_is_not_written_for(tome, tiny_vit):
    with pytest.raises(InputError, match="at least 0"):
        tome.merge_tokens(tiny_vit, -1)
    sizes = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 2}
    with pytest.raises(InputError, match="only"):
        tome.merge_tokens(timm.create_model("beit_base_patch16_224", **sizes), 4)


def test_sizes_are_multiples_of_the_number_and_of_no_eight_with_one(speed, make_vit):
    dense = make_vit(embed_dim=128, num_heads=2, mlp_ratio=2.0)
    shape = shape_of(dense)
    for step in (8, 16):
        (block, *_) = speed.pruned_blocks(shape, 0.6, "lower rank", step)
        assert block.head_dim % step == block.hidden_dim % step == 0
    (block, *_) = speed.pruned_blocks(shape, 0.6, "lower rank", 1)
    assert block.head_dim % 8
    assert block.hidden_dim % 8


def test_a_row_names_the_model_and_how_it_was_run(speed, tiny_vit):
    models = speed.contenders(
        tiny_vit,
        precision="bfloat16",
        macs_ratios=(0.75,),
        kinds=("lower rank", "fewer heads", "cascade", "tome"),
        round_to=(1, 2),
        merges=(4,),
    )
    rows = speed.measure_speed(models, batch=2, effort=ONCE)
    shapes = [row["shapes"] for row in rows]
    assert shapes == ["lower rank"] * 2 + ["fewer heads"] * 2 + ["cascade", "tome"]
    assert {(row["precision"], row["mode"], row["batch"]) for row in rows} == {
        ("bfloat16", "eager", 2)
    }
    assert all(row["speedup"] > 0 and row["macs_ratio"] < 1 for row in rows)
    assert rows[-1]["block"] == [[17, 17, 13], [13, 13, 9]]
    assert rows[0]["pruned_mib"] < rows[0]["dense_mib"]
    assert tiny_vit.pos_embed.dtype is torch.float32
    with pytest.raises(InputError, match="needs CUDA"):
        speed.measure_speed(models, batch=2, mode="graph", effort=ONCE)
