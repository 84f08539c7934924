from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.data.task import Task
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.pruning.batches import tokens_at
from vit_ratio_opt.pruning.calibration import Calibration, calibrate
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.pruning.sizes import expected_losses
from vit_ratio_opt.space.units import StructuralUnits


def test_it_comes_back_from_its_tensors(calibration: Calibration) -> None:
    again = Calibration.from_tensors(calibration.to_tensors())
    one, other = calibration.to_tensors(), again.to_tensors()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_same_seed_gives_the_same_and_batches_do_not_matter_but_for_rounding(
    tiny_vit: VisionTransformer, images: torch.Tensor
) -> None:
    first, again, split = (
        calibrate(tiny_vit, batches, seed=4).to_tensors()
        for batches in ([images], [images], images.split(3))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("0.neuron_losses", "1.ffn_weights", "1.value_losses"):
        torch.testing.assert_close(first[name], split[name], rtol=1e-3, atol=1e-9)


def test_the_model_is_left_as_it_was(tiny_vit: VisionTransformer, images: torch.Tensor) -> None:
    state = torch.random.get_rng_state()
    calibrate(tiny_vit.train(), [images])
    assert tiny_vit.training
    assert all(parameter.grad is None for parameter in tiny_vit.parameters())
    assert not any(module._forward_hooks for module in tiny_vit.modules())
    assert not any(module._forward_pre_hooks for module in tiny_vit.modules())
    assert torch.equal(state, torch.random.get_rng_state())


def test_tokens_that_are_not_classified_weigh_nothing_in_the_last_block(
    make_vit: Callable[..., VisionTransformer], images: torch.Tensor
) -> None:
    pooled_by_token = calibrate(make_vit(), [images]).blocks
    assert pooled_by_token[1].ffn_weights[1:].tolist() == [0] * 16
    assert pooled_by_token[1].ffn_weights[0] == 1
    assert (pooled_by_token[0].ffn_weights > 0).all()
    averaged = calibrate(make_vit(class_token=False, global_pool="avg"), [images]).blocks
    assert (averaged[1].ffn_weights > 0).all()


def test_the_sampled_tokens_are_the_prefix_and_different_patches_of_each_image(
    make_vit: Callable[..., VisionTransformer],
) -> None:
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = make_vit(reg_tokens=2)
    positions = calibrate(model, [images]).positions
    assert positions.shape == (64, 3 + 8)
    assert (positions[:, :3] == torch.arange(3)).all()
    assert all(len(set(row)) == 11 and max(row) < 19 for row in positions.tolist())
    assert len({tuple(row) for row in positions.tolist()}) > 32
    # Where images are few, more of each: here all.
    assert calibrate(model, [images[:4]]).positions.shape == (4, 3 + 16)


def test_the_targets_are_the_stream_at_the_sampled_tokens(
    make_vit: Callable[..., VisionTransformer], images: torch.Tensor
) -> None:
    model = make_vit()
    calibration = calibrate(model, images.split(5))
    seen: list[torch.Tensor] = []
    model.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output))
    model.blocks[1].norm2.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(images)
    for stream, target in zip(
        seen,
        (calibration.blocks[1].attention_target, calibration.blocks[1].ffn_target),
        strict=True,
    ):
        torch.testing.assert_close(target, tokens_at(stream, calibration.positions))


@pytest.mark.parametrize("model", [{}, {"class_token": False, "global_pool": "avg"}], ids=str)
def test_weights_of_all_tokens_sum_to_one_however_many_are_sampled(
    make_vit: Callable[..., VisionTransformer], model: dict[str, object]
) -> None:
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for block in calibrate(make_vit(**model), [images]).blocks:
        for weights in (block.attention_weights, block.ffn_weights):
            assert float(weights.sum()) == pytest.approx(1)


def test_expected_loss_is_nothing_for_nothing_and_grows_with_either_module(
    tiny_vit: VisionTransformer, images: torch.Tensor
) -> None:
    calibration = calibrate(tiny_vit, [images])
    by_dims, by_neurons = expected_losses(StructuralUnits(shape_of(tiny_vit)), calibration)
    for losses in (by_dims[:57:8].tolist(), by_neurons[:112:16].tolist()):
        assert losses[0] < 1e-9
        assert losses == sorted(losses)
        assert losses[-1] > 10 * losses[1]


def _of_one_class(dense: torch.Tensor, pruned: torch.Tensor) -> torch.Tensor:
    kinds = (torch.distributions.Categorical(logits=logits) for logits in (dense, pruned))
    return torch.distributions.kl_divergence(*kinds)


def _of_several_classes(dense: torch.Tensor, pruned: torch.Tensor) -> torch.Tensor:
    kinds = (torch.distributions.Bernoulli(logits=logits) for logits in (dense, pruned))
    return torch.distributions.kl_divergence(*kinds).sum(dim=1)


def _of_values(dense: torch.Tensor, pruned: torch.Tensor) -> torch.Tensor:
    return ((dense - pruned).square() / dense.var(dim=0)).mean(dim=1) / 2


@pytest.mark.parametrize(
    ("task", "divergence_of"),
    [
        ("single-label", _of_one_class),
        ("multi-label", _of_several_classes),
        ("regression", _of_values),
    ],
)
def test_expected_loss_is_about_the_divergence_that_pruning_causes(
    make_vit: Callable[..., VisionTransformer], task: Task, divergence_of: Callable[..., Any]
) -> None:
    model = make_vit(mlp_ratio=4.0)
    images = torch.randn(512, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    calibration = calibrate(model, images.split(64), task=task)
    with torch.no_grad():
        dense = model(images)
        for mhsa, ffn in ((0.25, 0.0), (0.0, 0.25), (0.25, 0.25)):
            smaller = prune(model, (mhsa, ffn), calibration)
            divergence = float(divergence_of(dense, smaller(images)).mean())
            units = StructuralUnits(shape_of(model))
            by_dims, by_neurons = expected_losses(units, calibration)
            loss = by_dims[int(mhsa * 64)] + by_neurons[int(ffn * 256)]
            assert loss / 4 < divergence < 4 * loss


def test_no_images_are_refused(tiny_vit: VisionTransformer) -> None:
    with pytest.raises(InputError, match="at least one batch"):
        calibrate(tiny_vit, [])


def test_a_single_output_is_a_value_whose_errors_cost(make_vit, images):
    """The softmax of one output is always 1, so no error of it would cost anything."""
    known = calibrate(make_vit(num_classes=1), [images])
    for block in known.blocks:
        assert float(block.factors.value_losses.min()) > 0


def test_one_of_several_labels_costs_what_its_own_error_costs(make_vit, images):
    known = calibrate(make_vit(num_classes=1), [images], task="multi-label")
    for block in known.blocks:
        assert float(block.factors.value_losses.min()) > 0


def test_an_unknown_task_is_refused(tiny_vit, images):
    with pytest.raises(InputError, match="`task` must be one of 'single-label', 'multi-label'"):
        calibrate(tiny_vit, [images], task="several")
