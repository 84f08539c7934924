from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.surgery import keep_units
from vit_ratio_opt.pruning.importance import Importance, magnitude_importance, taylor_importance

MakeViT = Callable[..., VisionTransformer]


def mask_gradients(
    model: VisionTransformer, images: torch.Tensor, labels: torch.Tensor
) -> Importance:
    """Mean over the images of ``|d loss / d mask|``, one image and one explicit mask at a time."""

    def mean_gradient(layer: torch.nn.Linear, units: int) -> torch.Tensor:
        mask = torch.ones(units, requires_grad=True)
        width = layer.in_features // units
        hook = layer.register_forward_pre_hook(
            lambda _, args: (args[0] * mask.repeat_interleave(width),)
        )
        gradients = []
        for image, label in zip(images, labels, strict=True):
            loss = F.cross_entropy(model(image[None]), label[None])
            gradients.append(torch.autograd.grad(loss, mask)[0].abs())
        hook.remove()
        return torch.stack(gradients).mean(dim=0).double()

    return Importance(
        heads=tuple(mean_gradient(b.attn.proj, b.attn.num_heads) for b in model.blocks),
        neurons=tuple(mean_gradient(b.mlp.fc2, b.mlp.fc1.out_features) for b in model.blocks),
    )


def assert_equal_scores(got: Importance, expected: Importance) -> None:
    for name in ("heads", "neurons"):
        torch.testing.assert_close(
            getattr(got, name), getattr(expected, name), rtol=1e-4, atol=1e-6
        )


# Taylor


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_taylor_equals_gradients_of_explicit_masks(
    make_vit: MakeViT, images: torch.Tensor, labels: torch.Tensor, name: str
) -> None:
    model = make_vit(name)
    scores = taylor_importance(model, [(images, labels)])
    assert_equal_scores(scores, mask_gradients(model, images, labels))
    assert all(score.std() > 0 for score in scores.heads + scores.neurons)


def test_taylor_of_a_pruned_model_equals_gradients_of_explicit_masks(
    tiny_vit: VisionTransformer, images: torch.Tensor, labels: torch.Tensor
) -> None:
    pruned = keep_units(tiny_vit, [[1, 3], [0]], [range(20), range(40)])
    scores = taylor_importance(pruned, [(images, labels)])
    assert [len(score) for score in scores.heads + scores.neurons] == [2, 1, 20, 40]
    assert_equal_scores(scores, mask_gradients(pruned, images, labels))


@pytest.mark.parametrize("sizes", [[3, 5], [1] * 8])
def test_taylor_does_not_depend_on_the_batches(
    tiny_vit: VisionTransformer, images: torch.Tensor, labels: torch.Tensor, sizes: list[int]
) -> None:
    batches = zip(images.split(sizes), labels.split(sizes), strict=True)
    assert_equal_scores(
        taylor_importance(tiny_vit, batches), taylor_importance(tiny_vit, [(images, labels)])
    )


@pytest.mark.parametrize("training", [False, True])
def test_taylor_scores_are_those_of_evaluation_mode(
    make_vit: MakeViT, images: torch.Tensor, labels: torch.Tensor, training: bool
) -> None:
    model = make_vit(proj_drop_rate=0.5, drop_path_rate=0.5).train(training)
    scores = taylor_importance(model, [(images, labels)])
    assert_equal_scores(scores, mask_gradients(model.eval(), images, labels))


@torch.no_grad()
def test_taylor_works_under_no_grad(
    tiny_vit: VisionTransformer, images: torch.Tensor, labels: torch.Tensor
) -> None:
    assert taylor_importance(tiny_vit, [(images, labels)]).heads[0].sum() > 0


def test_taylor_scores_a_frozen_model_alike(
    make_vit: MakeViT, images: torch.Tensor, labels: torch.Tensor
) -> None:
    frozen = make_vit().requires_grad_(False)  # as the dense model is when it teaches
    assert_equal_scores(
        taylor_importance(frozen, [(images, labels)]),
        taylor_importance(make_vit(), [(images, labels)]),
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("broken", [False, True])
def test_taylor_leaves_the_model_as_it_was(
    tiny_vit: VisionTransformer,
    images: torch.Tensor,
    labels: torch.Tensor,
    training: bool,
    broken: bool,
) -> None:
    tiny_vit.train(training)
    tiny_vit.head.weight.grad = gradient = torch.ones_like(tiny_vit.head.weight)
    batches = [(images, labels)] + [(images, labels + 4)] * broken
    try:
        taylor_importance(tiny_vit, batches)
        assert not broken
    except IndexError:
        assert broken  # there is no such class
    assert tiny_vit.training is training
    assert tiny_vit.head.weight.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert all(p.grad is None for p in tiny_vit.parameters() if p is not tiny_vit.head.weight)
    assert not any(module._forward_pre_hooks for module in tiny_vit.modules())


def test_taylor_leaves_the_mode_of_every_module(
    tiny_vit: VisionTransformer, images: torch.Tensor, labels: torch.Tensor
) -> None:
    tiny_vit.train()
    tiny_vit.blocks[0].eval()  # a frozen block
    before = [module.training for module in tiny_vit.modules()]
    taylor_importance(tiny_vit, [(images, labels)])
    assert [module.training for module in tiny_vit.modules()] == before


@pytest.mark.parametrize(
    "batches", [[], [(torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.long))]]
)
def test_taylor_without_images_is_refused(tiny_vit: VisionTransformer, batches: list) -> None:
    with pytest.raises(InputError, match="at least one batch"):
        taylor_importance(tiny_vit, batches)


# Magnitude


@pytest.mark.parametrize(
    ("p", "heads", "neurons"), [(1, [7, 5, 14, 17], [7, 5]), (2, [5, 5, 10, 13], [5, 5])]
)
def test_magnitude_matches_hand_computation(
    tiny_vit: VisionTransformer, p: int, heads: list[float], neurons: list[float]
) -> None:
    attn, mlp = tiny_vit.blocks[1].attn, tiny_vit.blocks[1].mlp
    query, key, value = 0, 32, 64  # first row of each in qkv; a head has 8 of them
    with torch.no_grad():
        for parameter in (*attn.parameters(), *mlp.parameters()):
            parameter.zero_()
        attn.qkv.weight[query + 7, 30] = -3
        attn.proj.weight[31, 0] = 4
        attn.qkv.bias[key + 8] = 5
        attn.qkv.weight[value + 16, 0] = 6
        attn.qkv.bias[query + 23] = -8
        attn.proj.weight[0, 24], attn.proj.weight[0, 31] = 5, 12
        mlp.fc1.weight[0, 9], mlp.fc2.weight[9, 0] = 3, -4
        mlp.fc1.bias[1] = 5
        attn.proj.bias[:], mlp.fc2.bias[:] = 100, 100  # they belong to no unit
    scores = magnitude_importance(tiny_vit, p=p)
    # Each block's scores are relative to their mean.
    expected_heads = torch.tensor(heads, dtype=torch.double) / (sum(heads) / 4)
    expected_neurons = torch.zeros(64, dtype=torch.double)
    expected_neurons[:2] = torch.tensor(neurons) / (sum(neurons) / 64)
    torch.testing.assert_close(scores.heads[1], expected_heads)
    torch.testing.assert_close(scores.neurons[1], expected_neurons)


def test_magnitude_of_a_zero_block_is_zero(tiny_vit: VisionTransformer) -> None:
    with torch.no_grad():
        for parameter in tiny_vit.blocks[0].parameters():
            parameter.zero_()
    scores = magnitude_importance(tiny_vit)
    assert scores.heads[0].tolist() == [0] * 4
    assert scores.neurons[0].tolist() == [0] * 64


@pytest.mark.parametrize("p", [0, 3, float("inf")])
def test_other_norms_are_refused(tiny_vit: VisionTransformer, p: int) -> None:
    with pytest.raises(InputError, match=r"`p` must be 1 .* or 2"):
        magnitude_importance(tiny_vit, p=p)
