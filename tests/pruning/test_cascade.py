from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.cascade import prune_tokens, reads_prefix_only, remove_cascade
from vit_ratio_opt.pruning.count import count_macs
from vit_ratio_opt.pruning.survey import keep_heads, survey_attention
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.shape import BlockTokens
from vit_ratio_opt.space.tokens import LATE, TokenSpace

MakeViT = Callable[..., VisionTransformer]
ALL = BlockTokens(17, 17, 17)
MODELS = [
    {},
    {"name": "deit_tiny_distilled_patch16_224"},
    {"class_token": False, "global_pool": "avg"},
    {"reg_tokens": 3, "no_embed_class": True},
    {"init_values": 0.1, "qkv_bias": False},
]


def everything(model: VisionTransformer) -> BlockTokens:
    return BlockTokens(*(shape_of(model).tokens,) * 3)


def some(model: VisionTransformer, *, queries_only: bool = False) -> list[BlockTokens]:
    """A rising cascade of the four blocks of a model with 16 patches."""
    prefix, total = model.num_prefix_tokens, shape_of(model).tokens
    return [
        BlockTokens(prefix + q, total if queries_only else prefix + q, prefix + f)
        for q, f in ((16, 12), (11, 9), (7, 3), (2, 1))
    ]


def reference(
    model: VisionTransformer, images: torch.Tensor, tokens: list[BlockTokens]
) -> torch.Tensor:
    """The same cascade, image by image, with what is left out masked instead of gathered."""
    prefix, rows = model.num_prefix_tokens, []
    for image in images:
        x = model.norm_pre(model._pos_embed(model.patch_embed(image[None])))
        scores = torch.zeros(x.shape[1] - prefix)
        for block, (queries, keys, ffn) in zip(model.blocks, tokens, strict=True):

            def best(count: int, scores: torch.Tensor = scores) -> torch.Tensor:
                order = scores.argsort(descending=True)[: count - prefix] + prefix
                chosen = torch.zeros(len(scores) + prefix, dtype=torch.bool)
                chosen[:prefix] = True
                chosen[order] = True
                return chosen

            asks = best(queries)
            seen = torch.ones_like(asks) if keys == x.shape[1] else asks
            attn = block.attn
            q, k, v = (
                attn.qkv(block.norm1(x))
                .reshape(1, x.shape[1], 3, attn.num_heads, attn.head_dim)
                .permute(2, 0, 3, 1, 4)
            )
            logits = (q @ k.transpose(2, 3)) * attn.scale
            weights = logits.masked_fill(~seen, -torch.inf).softmax(3)
            out = attn.proj((weights @ v).transpose(1, 2).flatten(2))
            x = x + block.ls1(out) * asks[:, None]
            scores = scores + weights[0][:, asks].amax(1).sum(0)[prefix:]
            x = x + block.ls2(block.mlp(block.norm2(x))) * best(ffn, scores)[:, None]
        rows.append(model.forward_head(model.norm(x)))
    return torch.cat(rows)


@torch.no_grad()
@pytest.mark.parametrize("queries_only", [False, True])
@pytest.mark.parametrize("changes", MODELS)
def test_gathered_tokens_give_what_masked_ones_give(
    make_vit: MakeViT, images: torch.Tensor, changes: dict, queries_only: bool
) -> None:
    model = make_vit(**{"depth": 4, **changes})
    tokens = some(model, queries_only=queries_only)
    expected = reference(model, images, tokens)
    assert torch.allclose(prune_tokens(model, tokens)(images), expected, atol=1e-5)
    assert not torch.allclose(model(images), expected, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("changes", MODELS)
def test_all_tokens_give_the_dense_model_bit_for_bit(
    make_vit: MakeViT, images: torch.Tensor, changes: dict
) -> None:
    model = make_vit(**changes)
    same = prune_tokens(model, [everything(model)] * 2)
    assert torch.equal(same(images), model(images))


@pytest.mark.parametrize("queries_only", [False, True])
@pytest.mark.parametrize("changes", MODELS)
def test_closed_form_macs_equal_those_that_fvcore_traces(
    make_vit: MakeViT, images: torch.Tensor, changes: dict, queries_only: bool
) -> None:
    model = make_vit(**{"depth": 4, **changes})
    small = prune_tokens(model, some(model, queries_only=queries_only))
    traced = count_macs(small, images[:1])
    shape = shape_of(small)
    assert shape.macs == sum(macs for name, macs in traced.items() if name != "layer_norm")
    assert shape.macs < shape_of(model).macs
    assert shape.params == shape_of(model).params


@torch.no_grad()
def test_what_patches_do_in_the_last_block_changes_nothing_for_a_class_token(
    make_vit: MakeViT, images: torch.Tensor
) -> None:
    model = make_vit(depth=3)
    assert reads_prefix_only(model)
    space = TokenSpace(shape_of(model), LATE, class_only=True)
    pair = RatioPair(space.free_ratio, space.free_ratio)
    small = prune_tokens(model, space.tokens(pair))
    assert shape_of(small).macs < shape_of(model).macs
    assert torch.allclose(small(images), model(images), atol=1e-5)
    assert not reads_prefix_only(make_vit(class_token=False, global_pool="avg"))


@torch.no_grad()
def test_a_block_leaves_the_streams_that_it_leaves_out(
    make_vit: MakeViT, images: torch.Tensor
) -> None:
    model = make_vit()
    small = prune_tokens(model, [ALL, BlockTokens(5, 5, 3)])
    streams = {}
    small.blocks.register_forward_hook(lambda _, __, out: streams.update(after=out))
    dense = model.blocks[0](model.norm_pre(model._pos_embed(model.patch_embed(images))))
    small(images)
    same = (streams["after"] - dense).abs().amax(2) < 1e-4
    assert (same.sum(1) == 17 - 5).all()  # those in the FFN were in the attention, too
    assert not same[:, 0].any()


def test_fine_tuning_goes_through_it(
    make_vit: MakeViT, images: torch.Tensor, labels: torch.Tensor
) -> None:
    model = make_vit(depth=4)
    small = prune_tokens(model, some(model)).train()
    optimizer = torch.optim.Adam(small.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(small(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in small.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_it_is_the_timm_model_that_it_was(make_vit: MakeViT, images: torch.Tensor) -> None:
    model = make_vit(depth=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small = prune_tokens(model, some(model))
    assert type(small) is VisionTransformer
    assert all(torch.equal(small.state_dict()[key], value) for key, value in before.items())
    assert torch.equal(remove_cascade(small)(images), model(images))
    again = prune_tokens(small, [ALL] * 4)
    assert torch.equal(again(images), model(images))
    assert remove_cascade(model) is model


def test_it_compiles_to_one_graph(make_vit: MakeViT, images: torch.Tensor) -> None:
    model = make_vit(depth=4)
    small = prune_tokens(model, some(model, queries_only=True))
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        assert torch.allclose(compiled(images), small(images), atol=1e-5)


def test_scores_choose_different_tokens(make_vit: MakeViT, images: torch.Tensor) -> None:
    model = make_vit(depth=4)
    outputs = [
        prune_tokens(model, some(model), scores=name)(images) for name in ("max", "mean", "class")
    ]
    assert all(
        not torch.allclose(one, other, atol=1e-4)
        for i, one in enumerate(outputs)
        for other in outputs[:i]
    )


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([ALL], {}, "must list 2 blocks"),
        ([ALL, BlockTokens(1, 1, 17)], {}, "Block 1 must have more than 1 and at most 17 tokens"),
        ([ALL, BlockTokens(17, 17, 18)], {}, "Block 1 must have more than 1 and at most 17"),
        ([ALL, BlockTokens(5, 9, 17)], {}, "keys of block 1 must be its 5 queries or all 17"),
        ([ALL, ALL], {"scores": "sum"}, "`scores` must be one of"),
    ],
)
def test_counts_that_do_not_fit_are_refused(
    tiny_vit: VisionTransformer, tokens: list[BlockTokens], options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prune_tokens(tiny_vit, tokens, **options)


def test_models_that_it_does_not_fit_are_refused(make_vit: MakeViT, images: torch.Tensor) -> None:
    with pytest.raises(InputError, match="patch_drop_rate"):
        prune_tokens(make_vit(patch_drop_rate=0.1), [ALL, ALL])
    pooled = make_vit(class_token=False, global_pool="avg")
    with pytest.raises(InputError, match="needs a class token"):
        prune_tokens(pooled, [everything(pooled)] * 2, scores="class")
    flexible = prune_tokens(make_vit(dynamic_img_size=True), [ALL, BlockTokens(5, 5, 5)])
    with pytest.raises(InputError, match="for 17 tokens, but got 10"):
        flexible(images[:, :, :24, :24])


# Survey


def test_attention_to_all_patches_alike_has_range_one(
    make_vit: MakeViT, images: torch.Tensor
) -> None:
    model = make_vit()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[:32] = 0  # no queries, so no preferences
            block.attn.qkv.bias[:32] = 0
    survey = survey_attention(model, [images])
    assert survey.ranges == (1.0, 1.0)
    for scores, blocks in zip(survey.heads, (1, 2), strict=True):
        assert torch.allclose(scores, torch.full((4,), blocks / 17, dtype=torch.float64))


def test_range_of_attention_to_oneself_is_small(make_vit: MakeViT, images: torch.Tensor) -> None:
    model = make_vit(num_heads=1)
    with torch.no_grad():
        for block in model.blocks:  # the products of equal tokens are large
            weight = torch.eye(32) * 30
            block.attn.qkv.weight[:64] = torch.cat([weight, weight])
    assert max(survey_attention(model, [images]).ranges) < 0.5


def test_survey_is_a_mean_over_images_and_changes_nothing(
    make_vit: MakeViT, images: torch.Tensor
) -> None:
    model = make_vit().train()
    whole, parts = (survey_attention(model, b) for b in ([images], [images[:3], images[3:]]))
    assert whole.ranges == parts.ranges
    assert all(torch.allclose(a, b) for a, b in zip(whole.heads, parts.heads, strict=True))
    assert model.training
    assert not model.blocks[0].attn._forward_pre_hooks
    with pytest.raises(InputError, match="at least one image"):
        survey_attention(model, [])


def test_heads_with_the_highest_scores_stay(make_vit: MakeViT, images: torch.Tensor) -> None:
    model = make_vit()
    survey = survey_attention(model, [images])
    small = keep_heads(model, (3, 1), survey)
    assert [block.attn.num_heads for block in small.blocks] == [3, 1]
    best = survey.heads[1].argmax() * 8
    kept = small.blocks[1].attn.proj.weight
    assert torch.equal(kept, model.blocks[1].attn.proj.weight[:, best : best + 8])
