import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.surgery import keep_units
from vit_ratio_opt.pruning.calibration import Calibration, calibrate
from vit_ratio_opt.pruning.least_squares import NormalEquations
from vit_ratio_opt.pruning.prune import prune
from vit_ratio_opt.pruning.reconstruct import embed, repair


@given(mhsa=st.floats(0, 0.8), ffn=st.floats(0, 0.875), seed=st.integers(0, 2**16))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_repair_never_raises_the_calibration_error(
    tiny_vit: VisionTransformer, mhsa: float, ffn: float, seed: int
) -> None:
    images = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).split(8)
    calibration = calibrate(tiny_vit, images)
    pruned = prune(tiny_vit, (mhsa, ffn), calibration)
    errors = repair(pruned, images, calibration)
    assert all(after <= before for before, after in errors)


def test_repair_brings_the_outputs_nearer_on_other_images(tiny_vit: VisionTransformer) -> None:
    generator = torch.Generator().manual_seed(3)
    seen = torch.randn(256, 3, 32, 32, generator=generator).split(64)
    others = torch.randn(64, 3, 32, 32, generator=generator)
    calibration = calibrate(tiny_vit, seen)
    pruned = prune(tiny_vit, (0.5, 0.5), calibration)
    with torch.no_grad():
        before = (pruned(others) - tiny_vit(others)).square().mean()
        repair(pruned, seen, calibration)
        after = (pruned(others) - tiny_vit(others)).square().mean()
    assert after < 0.7 * before


def test_a_neuron_that_another_one_doubles_is_made_up_for_exactly(
    tiny_vit: VisionTransformer, images: torch.Tensor
) -> None:
    mlp = tiny_vit.blocks[0].mlp
    with torch.no_grad():
        mlp.fc1.weight[5] = mlp.fc1.weight[6]
        mlp.fc1.bias[5] = mlp.fc1.bias[6]
    pruned = keep_units(
        tiny_vit, [range(4)] * 2, [[n for n in range(64) if n != 5], list(range(64))]
    )
    dense = tiny_vit(images)
    assert (pruned(images) - dense).abs().max() > 1e-2
    repair(pruned, images.split(4), calibrate(tiny_vit, images.split(4)))
    torch.testing.assert_close(pruned(images), dense, atol=2e-3, rtol=2e-3)


def test_nothing_pruned_is_left_as_it_is_bit_for_bit(
    tiny_vit: VisionTransformer, images: torch.Tensor, calibration: Calibration
) -> None:
    same = prune(tiny_vit, (0, 0), calibration)
    assert repair(same, [images], calibration) == []
    assert all(map(torch.equal, same.parameters(), tiny_vit.parameters()))
    assert torch.equal(same(images), tiny_vit(images))


@pytest.mark.parametrize("gamma", [0.1, 0.0])
def test_a_layer_scale_is_undone_where_it_can_be(
    make_vit: Callable[..., VisionTransformer], images: torch.Tensor, gamma: float
) -> None:
    model = make_vit(init_values=1.0)
    with torch.no_grad():
        for block in model.blocks:
            block.ls1.gamma.fill_(gamma)
            block.ls2.gamma.fill_(gamma)
    calibration = calibrate(model, [images])
    pruned = prune(model, (0.5, 0.5), calibration)
    before = (pruned(images) - model(images)).square().mean()
    repair(pruned, images.split(4), calibration)
    after = (pruned(images) - model(images)).square().mean()
    assert after < before if gamma else after == before == 0
    assert all(parameter.isfinite().all() for parameter in pruned.parameters())


def test_both_models_keep_their_modes_and_the_dense_one_its_weights(
    tiny_vit: VisionTransformer, images: torch.Tensor
) -> None:
    kept = copy.deepcopy(tiny_vit.state_dict())
    calibration = calibrate(tiny_vit.train(), [images])
    pruned = prune(tiny_vit, (0.5, 0.5), calibration)
    repair(pruned, [images], calibration)
    assert pruned.training
    assert tiny_vit.training
    assert all(torch.equal(kept[name], value) for name, value in tiny_vit.state_dict().items())
    loss = pruned(images).square().sum()
    loss.backward()  # still trainable
    assert all(p.grad is not None for p in pruned.parameters())


def test_a_model_and_images_that_the_calibration_is_not_of_are_refused(
    tiny_vit: VisionTransformer,
    make_vit: Callable[..., VisionTransformer],
    images: torch.Tensor,
    calibration: Calibration,
) -> None:
    with pytest.raises(InputError, match=r"2 blocks of width \d+, but `pruned` has 3"):
        repair(make_vit(depth=3), [images], calibration)
    for others in ([], [images[1:]], [images, images]):
        with pytest.raises(InputError, match=f"needs the {len(images)} images of the calib"):
            repair(copy.deepcopy(tiny_vit), others, calibration)


@pytest.mark.parametrize("changes", [{}, {"class_token": False, "global_pool": "avg"}], ids=str)
def test_what_the_first_block_is_given_is_what_the_forward_pass_gives_it(
    make_vit: Callable[..., VisionTransformer], images: torch.Tensor, changes: dict[str, object]
) -> None:
    model = make_vit(pre_norm=True, **changes)
    seen: list[torch.Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(images)
    assert torch.equal(embed(model, images)[0], seen[0])


def test_equations_are_those_of_weighted_least_squares_and_do_not_grow() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, 3, generator=generator)
    y = x @ torch.randn(3, 2, generator=generator) + 7
    y[:, 4] = 100  # the token that does not count
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 0.0])
    equations = NormalEquations(bias=True)
    for a, b in zip(x.split(4), y.split(4), strict=True):
        equations.add(a, b, weights)
    assert [half[0].shape for half in equations.sums()] == [(4, 4)] * 2
    start = torch.zeros(4, 2, dtype=torch.double)
    solution, before, after = equations.solve(start)
    padded = torch.cat([x, torch.ones(40, 5, 1)], dim=2)[:, :4].double()
    torch.testing.assert_close(padded @ solution, y[:, :4].double(), atol=1e-3, rtol=1e-3)
    assert before > 1
    assert after < 1e-6 * before
