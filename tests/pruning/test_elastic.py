"""Levels built from a dense model and one calibration."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.calibration import calibrate
from vit_ratio_opt.pruning.elastic import build_elastic
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.space.structural import StructuralSpace

PAIRS = ((0.0, 0.0), (0.25, 0.25), (0.5, 0.5), (0.75, 0.8))

FAMILIES = {
    "vit": {},
    "deit distilled": {"name": "deit_tiny_distilled_patch16_224"},
    "registers, average, LayerScale": {
        "reg_tokens": 2, "global_pool": "avg", "init_values": 0.1, "fc_norm": True,
    },
    "no biases": {"qkv_bias": False, "proj_bias": False},
    "norms of queries and keys": {"qk_norm": True},
    "gated": {"name": "vit_small_patch14_dinov2", "mlp_ratio": 2.0},
    "EVA with rotations": {"name": "eva02_tiny_patch14_224", "mlp_ratio": 2.0},
    "BEiT with position biases": {"name": "beit_base_patch16_224"},
    "CaiT with mixed heads": {"name": "cait_xxs24_224"},
}  # fmt: skip


@pytest.fixture
def elastic(tiny_vit, calibration, images):
    return build_elastic(tiny_vit, PAIRS, calibration, [images])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_level_is_a_model_of_its_family_within_its_pairs_macs(make_vit, images, family):
    dense = make_vit(**FAMILIES[family])
    calibration = calibrate(dense, [images])
    space = StructuralSpace(shape_of(dense))
    pairs = [(m * space.max_pair[0], f * space.max_pair[1]) for m, f in PAIRS]
    elastic = build_elastic(dense, pairs, calibration, [images])
    shape, before = shape_of(dense), None
    for index, (pair, level) in enumerate(zip(pairs, elastic.levels, strict=True)):
        model = elastic.extract(index)
        own = shape_of(model)
        assert type(model) is type(dense)
        assert own.macs <= space.pruned_macs(type(level.pair)(*pair))
        assert level.macs_ratio == pytest.approx(own.macs / shape.macs)
        if before is not None:
            for small, large in zip(own.blocks, before, strict=True):
                assert small.num_heads <= large.num_heads
                assert small.head_dim <= large.head_dim
                assert small.hidden_dim <= large.hidden_dim
        before = own.blocks
        with torch.no_grad():
            torch.testing.assert_close(elastic(images, index), model(images), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_level_that_prunes_nothing_is_the_dense_model(make_vit, images, family):
    dense = make_vit(**FAMILIES[family])
    elastic = build_elastic(dense, [(0, 0), (0.5, 0.5)], calibrate(dense, [images]))
    with torch.no_grad():
        torch.testing.assert_close(elastic(images), dense(images), atol=2e-3, rtol=1e-2)


def test_sizes_leave_no_more_macs_unused_than_models_of_their_own(tiny_vit, calibration, elastic):
    for level in elastic.levels[1:]:
        own = shape_of(prune(tiny_vit, level.pair, calibration)).macs
        assert level.macs_ratio * shape_of(tiny_vit).macs >= 0.97 * own


def test_the_common_repair_brings_all_levels_nearer_to_the_dense_model(
    tiny_vit: VisionTransformer, calibration, images, elastic
):
    cut = build_elastic(tiny_vit, PAIRS, calibration)
    dense = tiny_vit(images)

    def errors(model):
        return [(model(images, i) - dense).square().mean().item() for i in range(1, len(PAIRS))]

    with torch.no_grad():
        assert sum(errors(elastic)) < 0.5 * sum(errors(cut))


def test_one_level_is_repaired_as_a_pruned_model(tiny_vit, calibration, images):
    elastic = build_elastic(tiny_vit, [(0.5, 0.5)], calibration, [images])
    cut = build_elastic(tiny_vit, [(0.5, 0.5)], calibration)
    dense = tiny_vit(images)
    with torch.no_grad():
        assert (elastic(images) - dense).square().mean() < (cut(images) - dense).square().mean()


def test_sizes_are_multiples(tiny_vit, calibration):
    elastic = build_elastic(tiny_vit, PAIRS, calibration, round_to=4)
    for level in elastic.levels:
        assert all(block.head_dim % 4 == 0 for block in level.blocks)
        assert all(block.hidden_dim % 4 == 0 for block in level.blocks)


def test_the_dense_model_stays_as_it_is_and_pairs_come_in_any_order(tiny_vit, calibration, images):
    before = {name: value.clone() for name, value in tiny_vit.state_dict().items()}
    elastic = build_elastic(tiny_vit, PAIRS[::-1] + PAIRS[:1], calibration, [images])
    assert [tuple(level.pair) for level in elastic.levels] == list(PAIRS)
    assert all(torch.equal(before[name], value) for name, value in tiny_vit.state_dict().items())


def test_what_does_not_go_together_is_refused(tiny_vit, make_vit, calibration, images):
    with pytest.raises(InputError, match=r"\(0\.5, 0\.2\) is not nested in \(0\.1, 0\.4\)"):
        build_elastic(tiny_vit, [(0.5, 0.2), (0.1, 0.4), (0, 0)], calibration)
    with pytest.raises(InputError, match="at least one pair"):
        build_elastic(tiny_vit, [], calibration)
    with pytest.raises(InputError, match="`mhsa_ratio` must be in"):
        build_elastic(tiny_vit, [(1.0, 0.5)], calibration)
    with pytest.raises(InputError, match="not of this model"):
        build_elastic(make_vit(embed_dim=64), PAIRS, calibration)
    with pytest.raises(InputError, match="images of the calibration in their order"):
        build_elastic(tiny_vit, PAIRS, calibration, [images.flip(0)])
    with pytest.raises(UnsupportedModelError):
        build_elastic(torch.nn.Linear(2, 2), PAIRS, calibration)
