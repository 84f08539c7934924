"""Another teacher than the dense model, its hard labels, and stochastic depth."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn

import vit_ratio_opt as vro
from vit_ratio_opt.data.preprocessing import Preprocessing, remember_preprocessing
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.training.drop_path import drop_paths
from vit_ratio_opt.training.losses import TaskLoss
from vit_ratio_opt.training.teacher import OtherTeacher

CPU = torch.device("cpu")
OUTPUTS = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
TAUGHT = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(6)


@pytest.fixture
def network():
    """A convolutional network of digits."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 10)
    )


def drop_rates(model):
    return [
        module.drop_prob if isinstance(module, DropPath) else 0.0
        for name, module in model.named_modules()
        if name.endswith(("drop_path1", "drop_path2"))
    ]


def test_hard_labels_are_the_teachers_likeliest_class(digits):
    recipe = vro.Recipe(distillation=0.25, teacher_labels="hard", label_smoothing=0.1)
    found = TaskLoss(digits, recipe, CPU)(OUTPUTS, LABELS, TAUGHT)
    hard = F.cross_entropy(OUTPUTS, LABELS, label_smoothing=0.1)
    wanted = 0.75 * hard + 0.25 * F.cross_entropy(OUTPUTS, TAUGHT.argmax(dim=1))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("task", ["multi-label", "regression", "features"])
def test_hard_labels_are_for_images_of_one_class(digits, task):
    with pytest.raises(InputError, match=r"`teacher_labels='hard'` is for images of one class"):
        TaskLoss(replace(digits, task=task), vro.Recipe(teacher_labels="hard"), CPU)


def test_another_teacher_sees_images_in_its_own_normalisation(digits, network):
    own = Preprocessing((0.2,), (0.7,), (8, 8))
    remember_preprocessing(network, own)
    teacher = OtherTeacher(network, digits)
    raw, _ = next(digits.val.batches(16))
    with torch.no_grad():
        wanted = network.eval()((raw.float() / 255 - 0.2) / 0.7)
        torch.testing.assert_close(teacher(digits.normalise(raw)), wanted)


def test_a_teacher_of_one_channel_is_not_given_the_means_of_three(digits, network):
    network.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # as of timm
    teacher = OtherTeacher(network, digits)
    raw, _ = next(digits.val.batches(16))
    with torch.no_grad():
        wanted = network.eval()(digits.normalise(raw))
        torch.testing.assert_close(teacher(digits.normalise(raw)), wanted)


def test_another_teacher_stays_as_it_is(digits, network):
    teacher = OtherTeacher(network, digits).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_teacher_of_other_classes_or_images_is_refused(digits, network):
    network[-1] = nn.Linear(36, 9)
    with pytest.raises(InputError, match=r"must give 10 outputs .* but gave the shape \(1, 9\)"):
        vro.ImageTrainer(digits, teacher=network)
    network[-1] = nn.Linear(35, 10)
    with pytest.raises(InputError, match=r"The teacher does not take images of \(1, 8, 8\)"):
        vro.ImageTrainer(digits, teacher=network)


@pytest.mark.parametrize("lr", ["auto", 1e-3])
def test_finetuning_refuses_a_teacher_of_other_classes(digits, dense, network, lr):
    network[-1] = nn.Linear(36, 7)
    with pytest.raises(InputError, match=r"outputs of \(7,\) .* the model gives \(10,\)"):
        vro.finetune(copy.deepcopy(dense), digits, vro.Recipe(epochs=1, lr=lr), teacher=network)


def test_a_trial_learns_from_the_other_teacher_and_the_study_names_it(digits, dense, network):
    few = replace(digits, train=digits.train.subset(torch.arange(64)))
    recipe = vro.Recipe(batch_size=32, lr=1e-3, distillation=1.0, teacher_labels="hard")
    trainer = vro.ImageTrainer(few, recipe, teacher=network)
    taught, alone = copy.deepcopy(dense), copy.deepcopy(dense)
    context = vro.TrialContext(teacher=dense)
    trainer.train(taught, context)
    vro.finetune(alone, few, recipe, teacher=OtherTeacher(network, few))
    for one, other in zip(taught.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)
    assert trainer.identity()["teacher"] == trainer.with_recipe(recipe).identity()["teacher"]
    assert "teacher" not in vro.ImageTrainer(few, recipe).identity()


def test_stochastic_depth_rises_to_its_rate_and_leaves_the_model_as_it_was(dense):
    before = [type(module) for module in dense.modules()]
    with drop_paths(dense, 0.2):
        depth = len(dense.blocks)
        wanted = [0.2 * block / (depth - 1) for block in range(depth) for _ in range(2)]
        assert drop_rates(dense) == pytest.approx(wanted)
    assert [type(module) for module in dense.modules()] == before


def test_stochastic_depth_changes_a_training_and_is_reproducible(digits, dense):
    few = replace(digits, train=digits.train.subset(torch.arange(64)))
    weights = []
    for rate in (0.0, 0.5, 0.5):
        model = copy.deepcopy(dense)
        vro.finetune(model, few, vro.Recipe(batch_size=32, drop_path=rate))
        weights.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1])


def test_stochastic_depth_needs_blocks(network):
    with (
        pytest.raises(InputError, match=r"`drop_path` needs the blocks of a timm model"),
        drop_paths(network, 0.1),
    ):
        pass
