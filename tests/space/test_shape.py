from __future__ import annotations

from dataclasses import replace

from shapes import TINY

from vit_ratio_opt.space.shape import BlockTokens


def test_macs_match_hand_count() -> None:
    embedding = 16 * 192 * 32
    qkv, qk_and_av, proj = 17 * 32 * 96, 2 * 17 * 17 * 32, 17 * 32 * 32
    fc1 = fc2 = 17 * 32 * 64
    classifier = 32 * 4
    assert TINY.macs == embedding + 2 * (qkv + qk_and_av + proj + fc1 + fc2) + classifier == 413952


def test_params_match_hand_count() -> None:
    embedding = 192 * 32 + 32 + 32 + 17 * 32  # patches, class token, positions
    norms = 2 * (32 + 32)
    attention = 32 * 96 + 96 + 32 * 32 + 32
    mlp = 32 * 64 + 64 + 64 * 32 + 32
    assert TINY.params == embedding + 2 * (norms + attention + mlp) + 64 + 32 * 4 + 4 == 24036


def test_blocks_that_work_on_all_tokens_cost_the_same_said_or_not() -> None:
    everywhere = replace(TINY, block_tokens=(BlockTokens(17, 17, 17),) * 2)
    assert everywhere.macs == TINY.macs
    assert TINY.unit_macs(BlockTokens(17, 17, 17)) == (TINY.dim_macs, TINY.neuron_macs)


def test_sizes_of_blocks_are_json() -> None:
    assert TINY.block_sizes == [[4, 8, 64], [4, 8, 64]]
