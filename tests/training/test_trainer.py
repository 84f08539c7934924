"""The built-in trainer against `finetune` and `evaluate`, and one of a user's own."""

import copy
from dataclasses import fields, replace

import pytest
import timm
import torch

from vit_ratio_opt.composer import Search
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.settings import StudySettings
from vit_ratio_opt.search.limits import Budget
from vit_ratio_opt.training.context import Metric, Stopwatch, Trainer, TrialContext
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.trainer import ImageTrainer

RECIPE = Recipe(epochs=1, batch_size=256)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, mlp_ratio=2.0, num_classes=10,
    )  # fmt: skip


@pytest.fixture
def teacher(model):
    """A dense model that counts its forward passes."""
    torch.manual_seed(1)
    teacher = copy.deepcopy(model).eval()
    teacher.reset_classifier(10)
    teacher.passes = 0

    def count(module, _):
        module.passes += 1

    teacher.register_forward_pre_hook(count)
    return teacher


def trained(trainer, model, teacher, **options):
    model = copy.deepcopy(model)
    value = trainer.train(model, TrialContext(teacher=teacher, progress=False, **options))
    return value, torch.cat([weights.detach().flatten() for weights in model.parameters()])


def test_a_trainer_trains_as_finetune_does_and_asks_the_teacher_once(digits, model, teacher):
    trainer = ImageTrainer(digits, RECIPE, device="cpu")
    expected = copy.deepcopy(model)
    accuracy = finetune(
        expected, digits, RECIPE, TrialContext(seed=3), teacher=trainer.teacher_of(teacher)
    )
    assert teacher.passes == 3  # 1,149 images in batches of 500
    value, weights = trained(trainer, model, teacher, seed=3)
    assert value == accuracy
    assert torch.equal(weights, torch.cat([w.detach().flatten() for w in expected.parameters()]))
    assert teacher.passes == 3
    trainer.precision = "bfloat16"
    trained(trainer, model, teacher)
    assert teacher.passes == 6
    assert trainer.evaluate(expected) == pytest.approx(accuracy, abs=1)
    trainer.precision = "float32"
    assert trainer.evaluate(expected) == accuracy
    assert trainer.test(expected) == evaluate(expected, digits, digits.test)


def test_augmented_images_are_distilled_from_the_model_itself(digits, model, teacher):
    recipe = Recipe(epochs=1, batch_size=256, augment=True, lr=1e-3)
    trained(ImageTrainer(digits, recipe), model, teacher)
    assert teacher.passes == 5  # one a step


def test_without_distillation_the_teacher_makes_no_difference(digits, model, teacher, tmp_path):
    recipe = Recipe(epochs=1, batch_size=256, distillation=0.0, lr=1e-3)
    trainer, state = ImageTrainer(digits, recipe), tmp_path / "state"
    with_teacher = trained(trainer, model, teacher, state=state)
    assert teacher.passes == 0
    # A state is of the same training with and without a teacher.
    resumed = finetune(copy.deepcopy(model), digits, recipe, TrialContext(state=state))
    assert with_teacher[0] == resumed
    assert torch.equal(with_teacher[1], trained(trainer, model, None)[1])


def test_the_identity_is_the_settings_about_data_and_training(digits):
    identity = ImageTrainer(digits, RECIPE, precision="bfloat16").identity()
    assert set(identity) < {field.name for field in fields(StudySettings)}
    assert identity["recipe"] == RECIPE.to_json()
    assert identity["precision"] == "bfloat16"
    assert (identity["dataset"], identity["image_shape"]) == ("digits", (1, 8, 8))
    hashes = [identity[split] for split in ("training", "validation", "test")]
    assert hashes == [split.fingerprint() for split in (digits.train, digits.val, digits.test)]


def test_a_device_or_a_precision_that_is_not_there_is_refused(digits):
    for device in ("cuda:99", "gpu"):
        with pytest.raises(InputError, match=f"`device` must be one of .* but got '{device}'"):
            ImageTrainer(digits, device=device)
    with pytest.raises(InputError, match=r"`precision` must be one of .* but got 'float64'"):
        ImageTrainer(digits, precision="float64")
    plain = ImageTrainer(digits, device="cpu")
    assert (plain.device_name, plain.precision, plain.is_precision_given) == (
        "cpu", "float32", False
    )  # fmt: skip


@pytest.mark.parametrize("given", [None, "float32"])
def test_a_study_decides_the_precision_that_a_trainer_was_not_given(digits, model, given):
    trainer = ImageTrainer(digits, RECIPE, device="cpu", precision=given)
    search = Search(model, digits, limit=Budget(0.6), training=trainer)
    assert search.settings.precision == "float32"
    stored = replace(search.settings, precision="bfloat16")
    expected = "bfloat16" if given is None else "float32"
    assert search.settings_for(stored).precision == expected


def test_training_has_a_precision_of_its_own(digits, model, teacher):
    trainer = ImageTrainer(digits, RECIPE, device="cpu", precision="float32")
    seen = []

    def record(module, _, outputs):
        seen.append((torch.is_grad_enabled(), outputs.dtype))

    model.head.register_forward_hook(record)
    as_in_both = trained(trainer, model, teacher)
    assert {dtype for _, dtype in seen} == {torch.float32}
    seen.clear()
    trainer.training_precision = "bfloat16"
    value, weights = trained(trainer, model, teacher)
    assert set(seen) == {(True, torch.bfloat16), (False, torch.float32)}
    assert not torch.equal(weights, as_in_both[1])
    assert value == pytest.approx(as_in_both[0], abs=5)
    identity = trainer.identity()
    assert (identity["precision"], identity["training_precision"]) == ("float32", "bfloat16")


class SquaredError:
    """A trainer of a user's own: it imports nothing, and its loss is another one."""

    metric = Metric("mean squared error", larger_is_better=False)

    def identity(self):
        return {"dataset": "noise", "steps": 3}

    def evaluate(self, model):
        with torch.no_grad():
            return float((model(torch.ones(4, 2)) - 1).square().mean())

    def train(self, model, context):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for epoch in range(1, 4):
            loss = (model(torch.ones(4, 2)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            context.report(epoch, self.evaluate(model))
        return self.evaluate(model)


def test_a_class_with_a_metric_and_three_methods_is_a_trainer(digits):
    assert isinstance(ImageTrainer(digits), Trainer)
    trainer, reports = SquaredError(), []
    assert isinstance(trainer, Trainer)
    assert not isinstance(RECIPE, Trainer)
    context = TrialContext(report=lambda *epoch: reports.append(epoch))
    value = trainer.train(torch.nn.Linear(2, 1), context)
    assert [epoch for epoch, _ in reports] == [1, 2, 3]
    assert value == reports[-1][1] < reports[0][1]


def test_time_in_a_nested_block_counts_once():
    times = iter([0.0, 1.0, 3.0, 3.5, 4.0, 10.0, 20.0, 21.0])
    clock = Stopwatch(lambda: next(times))
    with clock("train"):
        with clock("data"):
            pass
        with clock("evaluate"):
            pass
    with clock("train"):
        pass
    assert dict(clock.seconds) == {"data": 2.0, "evaluate": 0.5, "train": 10.0 - 2.5 + 1.0}
