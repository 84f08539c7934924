import pytest
import torch
from torch import nn

from vit_ratio_opt.models.device import autocast, precision_of


def test_the_usual_precision_of_a_device(monkeypatch):
    assert precision_of(torch.device("cpu")) == precision_of(torch.device("mps")) == "float32"
    for has_it, precision in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has_it=has_it: has_it)
        assert precision_of(torch.device("cuda")) == precision


@pytest.mark.parametrize("precision", [None, "float32", "bfloat16"])
def test_a_given_precision_holds_on_any_device(precision):
    device = torch.device("cpu")
    with autocast(device, precision):
        output = nn.Linear(2, 2)(torch.ones(1, 2))
    assert output.dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)
