from __future__ import annotations

import copy

import pytest
import timm
import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.training import Recipe, Stopwatch, evaluate, finetune, load_digits


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture
def digits_vit():
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, mlp_ratio=2.0, num_classes=10, drop_path_rate=0.1,
    )  # fmt: skip


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_training_learns_reports_each_epoch_and_keeps_time(digits, digits_vit):
    before = evaluate(digits_vit, digits, digits.val)
    reports, clock = [], Stopwatch()
    accuracy = finetune(
        digits_vit,
        digits,
        Recipe(epochs=4, lr=3e-3, batch_size=64),
        on_epoch=lambda epoch, value: reports.append((epoch, value)),
        stopwatch=clock,
        progress=True,
    )
    assert [epoch for epoch, _ in reports] == [1, 2, 3, 4]
    assert accuracy == reports[-1][1] == evaluate(digits_vit, digits, digits.val)
    assert accuracy > before + 20
    assert set(clock.seconds) == {"data", "train", "evaluate"}
    assert not digits_vit.training


def test_same_seed_same_weights_and_the_callers_random_state_is_untouched(digits, digits_vit):
    runs = []
    for seed in (0, 0, 1):
        model = copy.deepcopy(digits_vit)
        torch.manual_seed(5)
        state = torch.random.get_rng_state()
        finetune(model, digits, Recipe(epochs=1), seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        runs.append(weights(model))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_full_distillation_pulls_towards_the_teacher(digits, digits_vit):
    teacher = copy.deepcopy(digits_vit)
    finetune(teacher, digits, Recipe(epochs=3, lr=3e-3))
    images = digits.normalise(next(digits.val.batches(288))[0])
    target = teacher(images).softmax(1).detach()

    def distance(model):
        return (model.eval()(images).softmax(1) - target).abs().sum(1).mean().item()

    student, alone = copy.deepcopy(digits_vit), copy.deepcopy(digits_vit)
    recipe = {"epochs": 3, "lr": 3e-3}
    finetune(student, digits, Recipe(**recipe, distillation=1.0, temperature=1.0), teacher=teacher)
    finetune(alone, digits, Recipe(**recipe, distillation=0.0), teacher=teacher)
    assert distance(student) < distance(alone)


def test_no_epochs_leave_the_model_as_it_is(digits, digits_vit):
    before = weights(digits_vit)
    accuracy = finetune(digits_vit, digits, Recipe(epochs=0))
    assert torch.equal(weights(digits_vit), before)
    assert accuracy == evaluate(digits_vit, digits, digits.val)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": -1}, {"batch_size": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"warmup": 1.0},
        {"distillation": 1.5}, {"temperature": 0.0}, {"clip_norm": 0.0}, {"weight_decay": -1.0},
    ],
)  # fmt: skip
def test_impossible_recipes_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=f"`{next(iter(wrong))}` must be"):
        Recipe(**wrong)
