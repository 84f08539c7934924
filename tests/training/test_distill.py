"""Distillation enters any loop, and its gradients are those of the explicit loss."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from timm.task import LogitDistillationTask

import vit_ratio_opt as vro
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.training.losses import TaskLoss

IMAGES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(16) % 10


@pytest.fixture
def student(dense):
    model = copy.deepcopy(dense)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.train()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def plain_gradients(model, scale=1.0):
    """What a loop computes that knows nothing of a teacher."""
    return gradients(model, scale * F.cross_entropy(model(IMAGES), LABELS))


def assert_equal(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 2.0), (0.9, 1.0), (1.0, 4.0)])
def test_gradients_are_those_of_the_explicit_loss(student, dense, digits, weight, temperature):
    recipe = vro.Recipe(distillation=weight, temperature=temperature)
    with torch.no_grad():
        targets = dense.eval()(IMAGES)
    explicit = TaskLoss(digits, recipe, torch.device("cpu"))
    wanted = gradients(student, explicit(student(IMAGES), LABELS, targets))
    with vro.distill(student, dense, weight=weight, temperature=temperature):
        found = plain_gradients(student)
    assert_equal(found, wanted)


@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_gradients_of_other_tasks_are_those_of_the_built_in_trainer(student, dense, digits, task):
    targets = torch.rand(16, 10, generator=torch.Generator().manual_seed(3)).round()
    data = replace(digits, task=task, train=replace(digits.train, labels=3 * targets))
    recipe, labels = vro.Recipe(distillation=0.7, temperature=3.0), targets
    explicit = TaskLoss(data, recipe, torch.device("cpu"))
    with torch.no_grad():
        teacher = dense.eval()(IMAGES)
    wanted = gradients(student, explicit(student(IMAGES), labels, teacher))
    scale = data.train.labels.std(dim=0) if task == "regression" else 1.0
    with vro.distill(student, dense, weight=0.7, temperature=3.0, task=task, target_scale=scale):
        found = gradients(student, explicit(student(IMAGES), labels, None))
    assert_equal(found, wanted)


def test_what_has_no_soft_labels_is_refused(student, dense):
    student.reset_classifier(1)
    teacher = copy.deepcopy(student)
    with (
        vro.distill(student, teacher),
        pytest.raises(InputError, match="give `distill` the `task`"),
    ):
        student(IMAGES)
    with pytest.raises(InputError, match="features have none"):
        vro.distill(student, teacher, task="features")
    with pytest.raises(InputError, match="`task` must be one of"):
        vro.distill(student, teacher, task="several")


def test_gradients_are_those_of_timms_task(student, dense):
    task = LogitDistillationTask(
        student, dense, torch.nn.CrossEntropyLoss(), task_loss_weight=0.3, temperature=3.0,
        verbose=False,
    )  # fmt: skip
    wanted = gradients(student, task.train()(IMAGES, LABELS)["loss"])
    with vro.distill(student, dense, weight=0.7, temperature=3.0):
        assert_equal(plain_gradients(student), wanted)


def test_a_loop_may_name_its_images(student, dense):
    with vro.distill(student, dense):
        wanted = plain_gradients(student)
        found = gradients(student, F.cross_entropy(student(x=IMAGES), LABELS))
    assert all(map(torch.equal, found, wanted))


def test_nothing_is_left_of_it_afterwards(student, dense):
    before = plain_gradients(student)
    names, kind, logits = list(student.state_dict()), type(student), student(IMAGES)
    dense.train()
    handle = vro.distill(student, dense)
    assert torch.equal(student(IMAGES), logits)
    assert not torch.equal(plain_gradients(student)[0], before[0])
    assert list(student.state_dict()) == names
    assert type(student) is kind
    assert dense.training  # as before, although it ran in evaluation mode
    assert all(parameter.grad is None for parameter in dense.parameters())
    handle.remove()
    assert all(map(torch.equal, plain_gradients(student), before))
    with vro.distill(student, None), vro.distill(student, dense, weight=0.0):
        assert all(map(torch.equal, plain_gradients(student), before))


def test_without_gradients_the_teacher_does_not_run(student):
    class Teacher(torch.nn.Module):
        def forward(self, images):
            raise AssertionError

    with vro.distill(student, Teacher()), torch.no_grad():
        student(IMAGES)
    with vro.distill(student, Teacher()), pytest.raises(AssertionError):
        student.eval()(IMAGES)  # frameworks may train in this mode


def test_a_scaled_loss_needs_its_scale(student, dense):
    with vro.distill(student, dense):
        wanted = plain_gradients(student)
    with vro.distill(student, dense), pytest.raises(InputError, match="its `loss_scale`"):
        plain_gradients(student, scale=65536.0)
    with vro.distill(student, dense, loss_scale=lambda: 65536.0):
        found = plain_gradients(student, scale=65536.0)
    assert_equal([gradient / 65536 for gradient in found], wanted)


def test_accumulated_gradients_need_the_scale_of_a_batch(student, dense):
    def accumulate():
        student.zero_grad()
        for images, labels in zip(IMAGES.chunk(2), LABELS.chunk(2), strict=True):
            (F.cross_entropy(student(images), labels) / 2).backward()
        return [parameter.grad.clone() for parameter in student.parameters()]

    with vro.distill(student, dense):
        wanted = plain_gradients(student)
    with vro.distill(student, dense), pytest.raises(InputError, match="accumulates the gradients"):
        accumulate()
    with vro.distill(student, dense, loss_scale=0.5):
        assert_equal(accumulate(), wanted)


def test_zeros_that_a_loop_leaves_are_no_accumulated_gradients(student, dense):
    optimizer = torch.optim.SGD(student.parameters(), 0.0)
    with vro.distill(student, dense):
        first = plain_gradients(student)
        optimizer.zero_grad(set_to_none=False)
        F.cross_entropy(student(IMAGES), LABELS).backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(student.parameters(), first, strict=True))


def test_a_compiled_model_is_distilled_too(student, dense):
    with vro.distill(student, dense):
        wanted = plain_gradients(student)
    with vro.distill(student, dense):
        compiled = torch.compile(student, backend="eager")
        assert_equal(gradients(student, F.cross_entropy(compiled(IMAGES), LABELS)), wanted)


def test_options_and_teachers_that_do_not_fit_are_refused(student, make_vit):
    with pytest.raises(InputError, match=r"`weight` must be in \[0, 1\] .* but got 2 and 2.0"):
        vro.distill(student, student, weight=2)
    with pytest.raises(InputError, match=r"`temperature` above 0, but got 0\.5 and 0"):
        vro.distill(student, student, temperature=0)
    other = make_vit(img_size=8, patch_size=4, in_chans=1)
    with vro.distill(student, other), pytest.raises(InputError, match=r"\(16, 10\) and \(16, 4\)"):
        student(IMAGES)
