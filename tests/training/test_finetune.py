from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import optuna
import pytest
import timm
import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.training.context import (
    Stopwatch,
    TrainingDiverged,
    TrainingStopped,
    TrialContext,
)
from vit_ratio_opt.training.evaluate import evaluate, predict
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.losses import TaskLoss
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.save_clock import SaveClock


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
        TrialContext(report=lambda *epoch: reports.append(epoch), clock=clock, progress=True),
    )
    epochs, accuracies, losses = zip(*reports, strict=True)
    assert epochs == (1, 2, 3, 4)
    assert losses[0] > losses[-1] > 0
    assert accuracy == accuracies[-1] == evaluate(digits_vit, digits, digits.val)
    assert accuracy > before + 20
    assert set(clock.seconds) == {"data", "train", "evaluate"}
    assert not digits_vit.training


def test_same_seed_same_weights_and_the_callers_random_state_is_untouched(digits, digits_vit):
    runs = []
    for seed in (0, 0, 1):
        model = copy.deepcopy(digits_vit)
        torch.manual_seed(5)
        state = torch.random.get_rng_state()
        finetune(model, digits, Recipe(epochs=1), TrialContext(seed=seed))
        assert torch.equal(torch.random.get_rng_state(), state)
        runs.append(weights(model))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_batches_are_mixed_with_the_seed_of_the_training(digits, digits_vit):
    seen, runs = [], []

    def mix(images, labels):
        order = torch.randperm(len(images))
        seen.append(order)
        share = 0.7
        targets = torch.nn.functional.one_hot(labels, 10).float()
        return (
            share * images + (1 - share) * images[order],
            share * targets + (1 - share) * targets[order],
        )

    for seed, function in ((0, mix), (0, mix), (0, None)):
        model = copy.deepcopy(digits_vit)
        finetune(model, digits, Recipe(epochs=1), TrialContext(seed=seed), mix=function)
        runs.append(weights(model))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    half = len(seen) // 2
    assert all(map(torch.equal, seen[:half], seen[half:]))


def test_the_average_of_the_weights_is_evaluated_and_kept(digits, digits_vit):
    reports, plain = [], copy.deepcopy(digits_vit)
    finetune(plain, digits, Recipe(epochs=2))
    accuracy = finetune(
        digits_vit,
        digits,
        Recipe(epochs=2, ema=0.9),
        TrialContext(report=lambda *epoch: reports.append(epoch)),
    )
    assert accuracy == reports[-1][1] == evaluate(digits_vit, digits, digits.val)
    assert not torch.equal(weights(digits_vit), weights(plain))
    assert torch.cosine_similarity(weights(digits_vit), weights(plain), dim=0) > 0.99


def test_layer_decay_moves_early_blocks_less(digits, digits_vit):
    start = copy.deepcopy(digits_vit)

    def moved(model, layer):
        return (model.blocks[layer].mlp.fc1.weight - start.blocks[layer].mlp.fc1.weight).norm()

    plain, decayed = copy.deepcopy(start), copy.deepcopy(start)
    finetune(plain, digits, Recipe(epochs=1))
    finetune(decayed, digits, Recipe(epochs=1, layer_decay=0.25))
    shares = [moved(decayed, layer) / moved(plain, layer) for layer in (0, 1)]
    assert shares[0] < shares[1] < 1


def test_loss_mixes_true_labels_and_the_teachers(digits, digits_vit):
    images, labels = next(digits.val.batches(64))
    images = digits.normalise(images)
    logits = digits_vit.eval()(images)
    hard = torch.nn.functional.cross_entropy(logits, labels)
    soft_only, half = Recipe(distillation=1.0), Recipe(distillation=0.5)
    of_soft, of_both = (TaskLoss(digits, recipe, logits.device) for recipe in (soft_only, half))
    assert abs(of_soft(logits, labels, logits)) < 1e-6
    torch.testing.assert_close(of_both(logits, labels, logits), hard / 2)
    assert of_soft(logits, labels, None) == hard


def test_a_teachers_logits_teach_what_the_teacher_teaches(digits, digits_vit):
    teacher = copy.deepcopy(digits_vit).eval()
    finetune(teacher, digits, Recipe(epochs=1))
    logits = predict(teacher, digits, digits.train)
    assert logits.shape == (len(digits.train), 10)
    models = [copy.deepcopy(digits_vit) for _ in range(2)]
    for model, taught in zip(models, (teacher, logits), strict=True):
        finetune(model, digits, Recipe(epochs=2, distillation=1.0), teacher=taught)
    torch.testing.assert_close(weights(models[0]), weights(models[1]), atol=1e-4, rtol=1e-3)
    with pytest.raises(InputError, match="must be a model if images are augmented or mixed"):
        finetune(models[0], digits, Recipe(augment=True), teacher=logits)
    with pytest.raises(InputError, match="must have logits for 1149 images, but has 5"):
        finetune(models[0], digits, Recipe(), teacher=logits[:5])


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
        {"ema": 1.0}, {"layer_decay": 0.0}, {"augment": "weak"},
    ],
)  # fmt: skip
def test_impossible_recipes_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=f"`{next(iter(wrong))}` must be"):
        Recipe(**wrong)


# Going on after a kill


@pytest.mark.parametrize(
    "recipe", [Recipe(epochs=3, lr=1e-3), Recipe(epochs=3, lr=1e-3, ema=0.9, augment="strong")]
)
def test_a_training_that_was_killed_ends_with_the_weights_it_would_have_had(
    digits, digits_vit, tmp_path, recipe
):
    whole, killed = copy.deepcopy(digits_vit), copy.deepcopy(digits_vit)
    common = TrialContext(seed=3, teacher=copy.deepcopy(digits_vit).eval())
    expected = finetune(whole, digits, recipe, common)

    def kill(epoch, *_):
        if epoch == 2:
            raise KeyboardInterrupt

    saved, seen = replace(common, state=tmp_path / "state", should_save=SaveClock(0)), []
    with pytest.raises(KeyboardInterrupt):
        finetune(killed, digits, recipe, replace(saved, report=kill))
    again = copy.deepcopy(digits_vit)
    accuracy = finetune(
        again, digits, recipe, replace(saved, report=lambda *epoch: seen.append(epoch[0]))
    )
    assert seen == [3]
    assert accuracy == expected
    assert torch.equal(weights(again), weights(whole))
    # One that was killed at its very end makes its last steps again.
    once_more = copy.deepcopy(digits_vit)
    assert finetune(once_more, digits, recipe, saved) == expected
    assert torch.equal(weights(once_more), weights(whole))


def test_a_state_of_another_training_or_damaged_is_refused_and_changes_nothing(
    digits, digits_vit, tmp_path
):
    state = tmp_path / "state"
    context = TrialContext(state=state, should_save=SaveClock(0))
    finetune(copy.deepcopy(digits_vit), digits, Recipe(epochs=1), context)
    before = weights(digits_vit)
    with pytest.raises(InputError, match="a training with other recipe, seed"):
        finetune(digits_vit, digits, Recipe(epochs=2), replace(context, seed=1))
    state.write_bytes(state.read_bytes()[:-200])
    with pytest.raises(InputError, match="no readable state"):
        finetune(digits_vit, digits, Recipe(epochs=1), context)
    assert torch.equal(weights(digits_vit), before)


@pytest.mark.parametrize("stops", [[7], [4], [1, 6, 11]])  # 5 steps an epoch
def test_a_training_stopped_in_the_middle_of_an_epoch_loses_no_step(
    digits, digits_vit, tmp_path, stops
):
    recipe = Recipe(epochs=3, batch_size=256, ema=0.9, augment=True)
    expected_reports, reports = [], []
    whole = copy.deepcopy(digits_vit)
    expected = finetune(
        whole, digits, recipe, TrialContext(report=lambda *epoch: expected_reports.append(epoch))
    )
    steps = 0

    def count(*_):
        nonlocal steps
        steps += 1

    for stop in [*stops, None]:
        model = copy.deepcopy(digits_vit)
        model.register_forward_pre_hook(lambda module, _: count() if module.training else None)
        context = TrialContext(
            state=tmp_path / "state", report=lambda *epoch: reports.append(epoch)
        )
        if stop is None:
            accuracy = finetune(model, digits, recipe, context)
        else:
            context.should_stop = lambda stop=stop: steps >= stop
            with pytest.raises(TrainingStopped, match=f"after step {stop} of 15"):
                finetune(model, digits, recipe, context)
    assert steps == 15
    assert accuracy == expected
    assert reports == expected_reports
    assert torch.equal(weights(model), weights(whole))


def test_a_state_is_read_without_pickles(digits, digits_vit, tmp_path, monkeypatch):
    for module, name in ((torch, "load"), (torch, "save"), (pickle, "loads"), (pickle, "load")):
        monkeypatch.setattr(module, name, None)
    recipe = Recipe(epochs=2, ema=0.9)
    context = TrialContext(state=tmp_path / "state", should_save=SaveClock(0))
    expected = finetune(copy.deepcopy(digits_vit), digits, recipe, context)
    assert finetune(digits_vit, digits, recipe, context) == expected


def test_a_state_that_cannot_be_written_costs_a_warning_and_not_the_training(
    digits, digits_vit, tmp_path, caplog
):
    (tmp_path / "file").touch()
    model = copy.deepcopy(digits_vit)
    context = TrialContext(state=tmp_path / "file" / "state", should_save=SaveClock(0))
    accuracy = finetune(model, digits, Recipe(epochs=1), context)
    assert "cannot be written" in caplog.text
    assert "The training continues" in caplog.text
    assert accuracy == finetune(digits_vit, digits, Recipe(epochs=1))


# What goes wrong


def test_a_loss_that_is_no_number_ends_the_training_and_leaves_no_state(
    digits, digits_vit, tmp_path
):
    with torch.no_grad():
        digits_vit.head.weight[0, 0] = float("nan")
    with pytest.raises(TrainingDiverged, match="The loss is nan after step 9 of 18"):
        finetune(digits_vit, digits, Recipe(epochs=2), TrialContext(state=tmp_path / "state"))
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory")],
)
def test_a_batch_that_does_not_fit_is_passed_through_in_parts_with_the_same_result(
    digits, digits_vit, error, caplog
):
    class Small(torch.nn.Module):
        def __init__(self, model, most):
            super().__init__()
            self.model, self.most = model, most

        def forward(self, images):
            if len(images) > self.most:
                raise error
            return self.model(images)

    digits_vit = timm.create_model(  # dropout would see other random numbers
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, mlp_ratio=2.0, num_classes=10,
    )  # fmt: skip
    teacher = predict(digits_vit, digits, digits.train)
    models = [Small(copy.deepcopy(digits_vit), most) for most in (10_000, 50)]
    recipe = Recipe(epochs=2, lr=1e-3)
    accuracies = [finetune(model, digits, recipe, teacher=teacher) for model in models]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.4)
    torch.testing.assert_close(weights(models[0]), weights(models[1]), atol=1e-4, rtol=1e-3)
    assert "in 4 parts, with the same gradients" in caplog.text
    assert "in 8 parts" not in caplog.text
    with pytest.raises(RuntimeError, match="memory"):
        finetune(Small(digits_vit, 0), digits, Recipe(epochs=1))
    other = RuntimeError("shapes do not fit")
    digits_vit.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(other))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        finetune(digits_vit, digits, Recipe(epochs=1))


def test_a_model_of_other_classes_is_not_evaluated(digits, digits_vit):
    for classes in (7, 1000):
        digits_vit.reset_classifier(classes)
        with pytest.raises(InputError, match=rf"images of digits, but returns \(.*, {classes}\)"):
            evaluate(digits_vit, digits, digits.val)


def test_logits_that_are_no_numbers_count_as_wrong_and_are_said(digits, digits_vit, caplog):
    optuna.logging.enable_propagation()
    with torch.no_grad():
        digits_vit.head.bias[3] = torch.nan
    assert evaluate(digits_vit, digits, digits.val) == 0
    optuna.logging.disable_propagation()
    assert "NaN or infinite logits for 288 of 288 images" in caplog.text
