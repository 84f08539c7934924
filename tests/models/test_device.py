import pytest
import torch
from torch import nn

from vit_ratio_opt.models.device import (
    as_double,
    autocast,
    best_device,
    device_name,
    free_memory,
    precision_of,
    random_state_kept,
    synchronize,
)

CPU = torch.device("cpu")


def test_the_usual_precision_of_a_device(monkeypatch):
    assert precision_of(torch.device("cpu")) == precision_of(torch.device("mps")) == "float32"
    assert precision_of(torch.device("xpu")) == "bfloat16"
    for has_it, precision in ((True, "bfloat16"), (False, "float16")):
        # A GPU without bfloat16 emulates it.
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, has_it=has_it: including_emulation or has_it,
        )
        assert precision_of(torch.device("cuda")) == precision


@pytest.mark.parametrize("found", ["cuda", "mps", "xpu", None])
def test_the_best_device_is_the_accelerator_that_pytorch_finds(monkeypatch, found):
    device = None if found is None else torch.device(found)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: device)
    assert best_device() == torch.device(found or "cpu")


def test_an_accelerator_is_reached_through_its_own_module(monkeypatch):
    calls = []

    class Xpu:
        get_device_name = staticmethod(lambda device: f"GPU {device.index}")
        empty_cache = staticmethod(lambda: calls.append("emptied"))
        get_rng_state = staticmethod(lambda device: torch.tensor(device.index))
        set_rng_state = staticmethod(lambda state, device: calls.append((int(state), device)))

    device = torch.device("xpu", 1)
    monkeypatch.setattr(torch, "get_device_module", lambda device: Xpu)
    monkeypatch.setattr(torch.accelerator, "synchronize", calls.append)
    assert device_name(device) == "GPU 1"
    free_memory(device)
    synchronize(device)
    with random_state_kept(device):
        torch.rand(1)
    assert calls == ["emptied", device, (1, device)]


def test_the_random_state_of_the_cpu_is_kept():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with random_state_kept(CPU):
        torch.rand(5)
    assert torch.equal(torch.rand(2), expected)


def test_the_cpu_needs_no_waiting_and_has_double_precision():
    synchronize(CPU)
    free_memory(CPU)
    assert device_name(CPU) == "cpu"
    assert as_double(torch.ones(1)).dtype == torch.float64


@pytest.mark.parametrize("precision", [None, "float32", "bfloat16"])
def test_a_given_precision_holds_on_any_device(precision):
    device = torch.device("cpu")
    with autocast(device, precision):
        output = nn.Linear(2, 2)(torch.ones(1, 2))
    assert output.dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)
