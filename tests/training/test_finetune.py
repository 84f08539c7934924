from __future__ import annotations

import copy

import pytest
import timm
import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.training import Recipe, Stopwatch, evaluate, finetune
from vit_ratio_opt.training.evaluate import predict
from vit_ratio_opt.training.finetune import _loss


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
        finetune(model, digits, Recipe(epochs=1), mix=function, seed=seed)
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
        on_epoch=lambda *epoch: reports.append(epoch),
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
    assert abs(_loss(logits, labels, logits, soft_only)) < 1e-6
    torch.testing.assert_close(_loss(logits, labels, logits, half), hard / 2)
    assert _loss(logits, labels, None, soft_only) == hard


def test_a_teachers_logits_teach_what_the_teacher_teaches(digits, digits_vit):
    teacher = copy.deepcopy(digits_vit).eval()
    finetune(teacher, digits, Recipe(epochs=1))
    logits = predict(teacher, digits, digits.train)
    assert logits.shape == (len(digits.train), 10)
    models = [copy.deepcopy(digits_vit) for _ in range(2)]
    for model, taught in zip(models, (teacher, logits), strict=True):
        finetune(model, digits, Recipe(epochs=2, distillation=1.0), teacher=taught)
    torch.testing.assert_close(weights(models[0]), weights(models[1]), atol=1e-4, rtol=1e-3)
    with pytest.raises(InputError, match="neither mixed nor moved"):
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
        {"ema": 1.0}, {"layer_decay": 0.0},
    ],
)  # fmt: skip
def test_impossible_recipes_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=f"`{next(iter(wrong))}` must be"):
        Recipe(**wrong)


# Going on after a kill


@pytest.mark.parametrize("recipe", [Recipe(epochs=3), Recipe(epochs=3, ema=0.9, augment=True)])
def test_a_training_that_was_killed_ends_with_the_weights_it_would_have_had(
    digits, digits_vit, tmp_path, recipe
):
    whole, killed = copy.deepcopy(digits_vit), copy.deepcopy(digits_vit)
    options = {"teacher": copy.deepcopy(digits_vit).eval(), "seed": 3}
    expected = finetune(whole, digits, recipe, **options)

    def kill(epoch, _):
        if epoch == 2:
            raise KeyboardInterrupt

    state, seen = tmp_path / "state", []
    with pytest.raises(KeyboardInterrupt):
        finetune(killed, digits, recipe, state=state, on_epoch=kill, **options)
    again = copy.deepcopy(digits_vit)
    accuracy = finetune(
        again, digits, recipe, state=state, on_epoch=lambda epoch, _: seen.append(epoch), **options
    )
    assert seen == [3]
    assert accuracy == expected
    assert torch.equal(weights(again), weights(whole))
    # A finished one trains no more.
    once_more = copy.deepcopy(digits_vit)
    assert finetune(once_more, digits, recipe, state=state, **options) == expected
    assert torch.equal(weights(once_more), weights(whole))


def test_a_state_of_another_training_or_damaged_is_refused_and_changes_nothing(
    digits, digits_vit, tmp_path
):
    state = tmp_path / "state"
    finetune(copy.deepcopy(digits_vit), digits, Recipe(epochs=1), state=state)
    before = weights(digits_vit)
    with pytest.raises(InputError, match="a training with other recipe, seed"):
        finetune(digits_vit, digits, Recipe(epochs=2), state=state, seed=1)
    state.write_bytes(state.read_bytes()[:-200])
    with pytest.raises(InputError, match="no readable state"):
        finetune(digits_vit, digits, Recipe(epochs=1), state=state)
    assert torch.equal(weights(digits_vit), before)
