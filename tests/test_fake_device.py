"""The fake device finds what a GPU refuses, and nothing else: planted errors, one of each kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from autocast_lists import FULL, LOWER, WIDEST
from fake_device import fake_device
from torch import nn

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe

Planted = Callable[[torch.device], object]


def ones(*sizes: int, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(*sizes or (4, 4), device=device, dtype=dtype)


half = partial(ones, dtype=torch.bfloat16)


def below_autocast(device: torch.device, use: Callable[[torch.Tensor], object]) -> None:
    """Call ``use`` with a product of matrices that autocast made a half type."""
    with torch.autocast(device.type, torch.bfloat16):
        use(ones(device=device) @ ones(device=device))


def hooked(device: torch.device, hook: Callable[[torch.Tensor], object]) -> None:
    """Run a backward pass with a hook on a gradient."""
    tensor = ones(device=device).requires_grad_()
    product = tensor * 2
    product.register_hook(hook)
    product.sum().backward()


# On both kinds of devices: what is wrong, and a part of the message.
PLANTED: dict[str, tuple[Planted, str]] = {
    "operand left on the CPU": (lambda d: ones(device=d) + torch.ones(4), "to be on one device"),
    "weight left on the CPU": (lambda d: nn.Linear(4, 4)(ones(device=d)), "to be on one device"),
    "view of a tensor on the CPU": (
        lambda d: ones(device=d) @ torch.ones(2, 4).mT.detach(), "to be on one device",
    ),
    "scalar of the device with a tensor of the CPU": (
        lambda d: torch.ones(4) * ones(device=d).sum(), "to be on one device",
    ),
    "list with a tensor of the CPU": (
        lambda d: torch.cat([ones(device=d), torch.ones(4, 4)]), "to be on one device",
    ),
    "output on the CPU": (
        lambda d: torch.add(ones(device=d), 1, out=torch.ones(4, 4)), "to be on one device",
    ),
    "index of the device in a tensor of the CPU": (
        lambda d: torch.ones(4)[torch.arange(2, device=d)], "to be on one device",
    ),
    "gathered with an index of the CPU": (
        lambda d: ones(device=d).gather(0, torch.zeros(1, 4, dtype=torch.int64)),
        "to be on one device",
    ),
    "values of the CPU at an index": (
        lambda d: ones(device=d).index_put_((torch.arange(2),), torch.ones(2, 4)),
        "to be on one device",
    ),
    "gradient with a tensor of the CPU": (
        lambda d: hooked(d, lambda gradient: gradient * torch.ones(4)), "to be on one device",
    ),
    "generator of the CPU": (
        lambda d: torch.rand(4, device=d, generator=torch.Generator()), "for generator",
    ),
    "generator of the device": (
        lambda d: torch.randperm(4, generator=torch.Generator(d)), "for generator",
    ),
    "generator of the CPU, in place": (
        lambda d: ones(device=d).uniform_(generator=torch.Generator()), "for generator",
    ),
    "numpy": (lambda d: ones(device=d).numpy(), "to numpy"),
    "numpy of a parameter": (
        lambda d: nn.Linear(2, 2).to(d).weight.detach().numpy(), "to numpy",
    ),
    "pinned": (lambda d: ones(device=d).pin_memory(), "cannot pin"),
    "second device": (lambda d: torch.ones(1).to(f"{d.type}:1"), "no device"),
    "two types in a product": (lambda d: ones(device=d) @ half(device=d), "one type of numbers"),
    "two types in a layer": (lambda d: nn.Linear(4, 4).to(d)(half(device=d)), "one type"),
    "two types in a norm": (lambda d: nn.LayerNorm(4).to(d)(half(device=d)), "one type"),
    "decomposition of a product below autocast": (
        lambda d: below_autocast(d, torch.linalg.eigh), "not implemented",
    ),
    "inverse of a product below autocast": (
        lambda d: below_autocast(d, torch.linalg.inv), "not implemented",
    ),
    "unsafe loss below autocast": (
        lambda d: below_autocast(d, lambda x: F.binary_cross_entropy(x.sigmoid(), x.sigmoid())),
        "unsafe to autocast",
    ),
}  # fmt: skip
ON_MPS: dict[str, Planted] = {
    "made": lambda d: torch.zeros(1, dtype=torch.float64, device=d),
    "moved": lambda d: torch.zeros(1, dtype=torch.float64).to(d),
    "converted": lambda d: torch.zeros(1, device=d).double(),
    "converted on the way to the CPU": lambda d: torch.zeros(1, device=d).to("cpu", torch.double),
    "made by numpy": lambda d: torch.as_tensor([1.0], dtype=torch.float64, device=d),
    "summed": lambda d: torch.zeros(1, device=d).sum(dtype=torch.float64),
}


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize(("plant", "message"), PLANTED.values(), ids=PLANTED)
def test_a_planted_error_is_found(kind: str, plant: Planted, message: str) -> None:
    with fake_device(kind) as device, pytest.raises((RuntimeError, TypeError), match=message):
        plant(device)


@pytest.mark.parametrize("plant", ON_MPS.values(), ids=ON_MPS)
def test_float64_is_refused_on_mps_alone(plant: Planted) -> None:
    with fake_device("mps") as device, pytest.raises(TypeError, match="float64"):
        plant(device)
    with fake_device("cuda") as device:
        plant(device)


def test_pinned_memory_and_decompositions_are_refused_on_mps_alone() -> None:
    with fake_device("cuda") as device:
        torch.linalg.cholesky(torch.eye(2, device=device))
        assert torch.ones(2).pin_memory().device.type == "cpu"
    with fake_device("mps") as device:
        with pytest.raises(NotImplementedError, match="linalg_cholesky"):
            torch.linalg.cholesky(torch.eye(2, device=device))
        with pytest.raises(RuntimeError, match="cannot pin"):
            torch.ones(2).pin_memory()


# What is right passes


@pytest.fixture(params=["cuda", "mps"])
def device(request: pytest.FixtureRequest):
    with fake_device(request.param) as device:
        yield device


def test_scalars_and_indices_of_the_cpu_are_allowed(device: torch.device) -> None:
    tensor = ones(device=device)
    tensor[torch.tensor([0, 1])] = 0
    tensor[torch.tensor([True, False, False, False])] *= torch.tensor(2.0)
    tensor[0] = torch.ones(4)  # a copy
    tensor.copy_(torch.ones(4, 4, dtype=torch.float64))
    assert (tensor.cpu().numpy() == 1).all()
    assert tensor.mean().item() == float(tensor.mean()) == tensor.tolist()[0][0] == 1


def test_a_tensor_is_where_its_memory_is(device: torch.device) -> None:
    cpu = torch.ones(4, 4)
    moved = cpu.to(device)
    moved += 1
    assert cpu.sum() == 16  # a copy, as on a real device
    views = (moved.mT[0], moved.detach(), nn.Parameter(moved), moved.data, moved.to(device))
    assert {view.device for view in (*views, moved.exp(), torch.zeros_like(moved))} == {device}
    assert {t.device.type for t in (cpu, moved.cpu(), moved.to(cpu))} == {"cpu"}
    layer = nn.Linear(4, 4)
    weight = layer.weight
    layer.to(device)(moved).sum().backward()
    assert layer.weight is weight
    assert weight.grad is not None
    assert {weight.device, weight.grad.device} == {device}
    assert layer.cpu().weight.device.type == "cpu"


def test_random_numbers_of_the_device_are_its_own(device: torch.device) -> None:
    module = torch.get_device_module(device)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    state = module.get_rng_state()
    first = torch.rand(3, device=device)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.equal(torch.rand(3, device=device), first)
    module.set_rng_state(state)
    assert torch.equal(torch.rand(3, device=device), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_pytorch_does(device: torch.device, dtype: torch.dtype) -> None:
    layer, norm = nn.Linear(4, 4).to(device), nn.LayerNorm(4).to(device)
    with torch.autocast(device.type, dtype):
        hidden = layer(ones(device=device))
        assert {hidden.dtype, (hidden @ hidden).dtype, F.gelu(hidden).dtype} == {dtype}
        full = (norm(hidden), hidden.softmax(dim=1), hidden.sum(), hidden**2, 1 / hidden)
        assert {tensor.dtype for tensor in full} == {torch.float32}
        assert (hidden + full[0]).dtype == torch.float32
        with torch.autocast(device.type, enabled=False):
            assert layer(ones(device=device)).dtype == torch.float32
    (norm(hidden.float()).sum()).backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("key", ["AutocastCUDA", "AutocastMPS"])
def test_the_lists_are_those_of_pytorch(key: str) -> None:
    registered = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
    }
    unlisted = {"einsum", "linalg_vecdot", "vdot"}
    if key == "AutocastMPS":
        unlisted |= {"conv3d", "conv_transpose3d"}  # which PyTorch 2.7 left as they are
    assert (LOWER | FULL | WIDEST) - registered <= unlisted


# Errors in the package itself


def left_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageData, "normalise", lambda self, images: images.cpu().float())


def float64_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit_ratio_opt.training.loop.has_float64", lambda device: True)


def half_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageData, "normalise", lambda self, images: images.bfloat16())


@pytest.mark.parametrize("plant", [left_on_the_cpu, float64_everywhere, half_weights])
def test_an_error_in_the_package_ends_a_training_on_the_device(
    dense: nn.Module, digits: ImageData, monkeypatch: pytest.MonkeyPatch, plant: Callable
) -> None:
    few = digits.train.subset(torch.arange(8))
    data = ImageData("few", few, few, few, digits.classes, digits.mean, digits.std)
    recipe = Recipe(batch_size=8, lr=1e-3)
    with fake_device("mps") as device:
        train = partial(finetune, dense.to(device), data, recipe, TrialContext(progress=False))
        train(precision="float32")
        plant(monkeypatch)
        with pytest.raises((RuntimeError, TypeError), match=r"one device|float64|one type"):
            train(precision="float32")
