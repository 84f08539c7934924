import copy
import json

import pytest
import torch
from torch.overrides import TorchFunctionMode

from vit_ratio_opt.model_files.load import load_dense
from vit_ratio_opt.model_files.save import save_dense
from vit_ratio_opt.models.architecture import architecture_of
from vit_ratio_opt.models.create import create_model
from vit_ratio_opt.models.state_dicts import find_misfit

SMALL = {
    "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 4,
}  # fmt: skip
NAME = "vit_tiny_patch16_224"


def make(name=NAME, **changes):
    torch.manual_seed(0)
    return create_model(name, **{**SMALL, **changes})


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"act_layer": "relu6"}, "activations"),
        ({"norm_eps": 1e-5}, "norms"),
        ({"norm_layer": "rmsnorm"}, "norms"),
        ({"num_heads": 2}, "heads"),
        ({"global_pool": "avg"}, "pooling"),
        ({"patch_size": 16}, "patch_size"),
        ({"img_size": 64}, "image_size"),
        ({"drop_path_rate": 0.1}, "modules"),
        ({"init_values": 1e-5}, "modules"),
        ({"no_embed_class": True}, "modules"),
        ({"class_token": False, "global_pool": "avg"}, "modules"),
    ],
)
def test_what_changes_the_outputs_or_the_training_differs(change, key):
    before, after = architecture_of(make()), architecture_of(make(**change))
    assert before[key] != after[key]
    assert before["modules"] != after["modules"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (NAME, {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("beit_base_patch16_224", {}),
        ("eva02_tiny_patch14_224", {"num_classes": 4, "global_pool": "avg"}),
        ("vit_small_patch16_dinov3", {}),
        ("cait_xxs24_224", {}),
    ],
)
def test_it_is_the_same_after_use_copies_training_mode_and_files(name, arguments, tmp_path):
    model = make(name, **arguments)
    before = architecture_of(model)
    assert json.loads(json.dumps(before)) == before
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    model.requires_grad_(False)
    path = tmp_path / "model.safetensors"
    save_dense(model, path)
    for other in (model, copy.deepcopy(model).train(), load_dense(path)):
        assert architecture_of(other) == before


def test_weights_do_not_count_and_fused_attention_neither():
    model = make()
    before = architecture_of(model)
    with torch.no_grad():
        model.head.weight.add_(1)
    for block in model.blocks:
        block.attn.fused_attn = not block.attn.fused_attn
    assert architecture_of(model) == before


class Calls(TorchFunctionMode):
    """Collects the names of all functions of torch that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_a_model_on_the_meta_device_is_the_same_without_drawing_values(name):
    with Calls() as calls:
        filled = make(name)
    assert "erfinv_" in calls.names
    with Calls() as calls, torch.device("meta"):
        empty = create_model(name, **SMALL)
    assert "erfinv_" not in calls.names
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert architecture_of(empty) == architecture_of(filled)
    assert find_misfit(empty, filled.state_dict()) is None
