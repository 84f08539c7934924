"""A saved state that is damaged, or of another training, is refused with what is wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.training.context import TrainingStopped, TrialContext
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.save_clock import SaveClock
from vit_ratio_opt.training.saved_state import checksum

RECIPE = Recipe(epochs=1, batch_size=512)


def make_model(embed_dim=16):
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=embed_dim,
        depth=1, num_heads=4, mlp_ratio=2.0, num_classes=10,
    )  # fmt: skip


@pytest.fixture(scope="module")
def saved(digits, tmp_path_factory):
    """The state of a training before its last step."""
    path = tmp_path_factory.mktemp("state") / "state"
    context = TrialContext(
        state=path, identity={"pair": [0.5, 0.5]}, should_save=SaveClock(seconds=0)
    )
    finetune(make_model(), digits, RECIPE, context)
    return path


@pytest.fixture
def context(saved, tmp_path):
    path = tmp_path / "state"
    shutil.copy(saved, path)
    return TrialContext(state=path, identity={"pair": [0.5, 0.5]})


def rewrite(path, change):
    """Change tensors and metadata of a state; its checksum is made anew."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    metadata.pop("checksum")
    change(tensors, metadata)
    metadata["checksum"] = checksum(tensors, metadata)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_state_goes_on_in_another_precision_with_a_sentence(digits, tmp_path, caplog, precision):
    context = TrialContext(state=tmp_path / "state")
    stopped = replace(context, should_stop=iter([False, False, True]).__next__)
    with pytest.raises(TrainingStopped):
        finetune(make_model(), digits, RECIPE, stopped, precision="float32")
    resumed, went_on = [], make_model()
    context = replace(context, on_resume=lambda: resumed.append(True))
    finetune(went_on, digits, RECIPE, context, precision=precision)
    assert resumed == [True]
    assert f"goes on in {precision}: it was begun in float32" in caplog.text
    at_once = make_model()
    finetune(at_once, digits, RECIPE, precision="float32")
    for name, value in at_once.state_dict().items():
        torch.testing.assert_close(went_on.state_dict()[name], value, atol=5e-3, rtol=0)


def other_format(tensors, metadata):
    metadata["format"] = "vit_ratio_opt training/2"


def other_moments(tensors, metadata):
    """Of the optimiser: torch would notice them at its first step alone."""
    (_, values), *_ = next(
        value
        for part, value in json.loads(metadata["state"])["items"][0][1]["items"]
        if part == "optimizer"
    )["items"][0][1]["items"]
    name = dict(values["items"])["exp_avg"]["tensor"]
    tensors[name] = torch.zeros(3, 5)


def no_model(tensors, metadata):
    state = json.loads(metadata["state"])
    state["items"][0][1]["items"][0][0] = "something else"
    metadata["state"] = json.dumps(state)


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (other_format, "no readable state of a training .*its format is"),
        (other_moments, r"does not fit the model .*the optimiser has \(3, 5\)"),
        (no_model, "does not fit the model .*KeyError"),
    ],
)
def test_a_state_of_another_content_is_refused(digits, context, harm, sentence):
    rewrite(context.state, harm)
    with pytest.raises(InputError, match=f"{sentence}.*remove it to start again"):
        finetune(make_model(), digits, RECIPE, context)


def test_a_changed_bit_is_found(digits, context):
    content = bytearray(context.state.read_bytes())
    content[-1] ^= 1
    context.state.write_bytes(content)
    with pytest.raises(InputError, match=r"no readable state of a training .*checksum differs"):
        finetune(make_model(), digits, RECIPE, context)


def test_a_state_of_another_training_is_refused_by_what_differs(digits, context):
    model, refused = make_model(), r"is of a training with other {}: name another file"
    with pytest.raises(InputError, match=refused.format("pair")):
        finetune(model, digits, RECIPE, replace(context, identity={"pair": [0.5, 0.25]}))
    with pytest.raises(InputError, match=refused.format("recipe")):
        finetune(model, digits, Recipe(epochs=2, batch_size=512), context)
    with pytest.raises(InputError, match="does not fit the model"):
        finetune(make_model(embed_dim=32), digits, RECIPE, context)
    finetune(model, digits, RECIPE, context)
