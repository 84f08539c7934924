"""The optimiser of the built-in loop."""

from __future__ import annotations

import copy

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from vit_ratio_opt.training.distributed import Ranks
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.steps import Optimization


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    ranks = Ranks(0, 1, torch.device("cpu"))
    loss = None  # no step is made
    return Optimization(model, Recipe(lr=1e-3), 10, "float16", ranks, loss).parts["optimizer"]  # type: ignore[arg-type]


def take_step(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_a_state_of_an_optimizer_that_is_not_fused_goes_on_fused():
    torch.manual_seed(0)
    old, new = (nn.Linear(4, 3) for _ in range(2))
    new.load_state_dict(old.state_dict())
    earlier = create_optimizer_v2(old, opt="adamw", lr=1e-3, weight_decay=0.01)
    later = optimizer_of(new)
    take_step(earlier, old)
    new.load_state_dict(old.state_dict())
    later.load_state_dict(copy.deepcopy(earlier.state_dict()))
    for group in later.param_groups:
        assert group["fused"]
        assert group["lr"] == earlier.param_groups[0]["lr"]
    for optimizer, model in ((earlier, old), (later, new)):
        take_step(optimizer, model)
    assert {int(values["step"]) for values in later.state.values()} == {2}
    torch.testing.assert_close(new.weight, old.weight)


def test_a_gradient_that_is_infinite_in_float16_changes_no_weight():
    model = nn.Linear(4, 3)
    optimizer = optimizer_of(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = model.weight.detach().clone()
    scaler.scale(model(torch.full((2, 4), float("inf"))).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model.weight, before)
    assert scaler.get_scale() == 4.0
