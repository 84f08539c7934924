"""The learning rate that fits the model: its rule, and trainings that begin, resume and end."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import vit_ratio_opt as vro
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.training.context import TrainingStopped
from vit_ratio_opt.training.evaluate import predict
from vit_ratio_opt.training.fitting import choose, divergence, fitted_share
from vit_ratio_opt.training.matching import Reference

AUTO = vro.Recipe(epochs=2, batch_size=32, lr="auto")


@pytest.fixture(scope="module")
def few(digits):
    return replace(
        digits,
        train=digits.train.subset(torch.arange(96)),
        val=digits.val.subset(torch.arange(64)),
    )


@pytest.fixture
def pruned(dense):
    """The dense model with other weights, as after a pruning."""
    return disturb(copy.deepcopy(dense), seed=1)


def disturb(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(
    ("lost", "entropy", "share"),
    [
        (0.19, 0.5, 1.0),
        (9.0, 0.5, 1.0),
        (0.0025, 0.5, 0.5),
        (0.0, 0.12, 1.0),
        (0.0, 0.48, 0.5),
        (0.015, 0.6, 0.5),
        (0.015, 3.0, 0.5),
        (-1e-9, 0.48, 0.5),
        (0.0, 0.0, 1.0),
    ],
)
def test_the_rate_rises_with_the_loss_and_falls_with_the_entropy(lost, entropy, share):
    assert fitted_share(lost, entropy) == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize(
    ("width", "depth", "lr"),
    [(32, 2, 1e-3), (64, 4, 1e-3), (128, 4, 5e-4), (384, 12, 9.6e-5), (1024, 24, 2.6e-5)],
)
def test_the_rate_falls_with_width_and_depth(few, pruned, width, depth, lr):
    pruned.embed_dim, pruned.blocks = width, torch.nn.Sequential(*[torch.nn.Identity()] * depth)
    assert choose(pruned, few, None, "float32") == {"lr": lr, "is_trained": True}


def test_divergence_and_entropy_are_those_of_the_training_images(few, dense, pruned):
    outputs, aim = (predict(model, few, few.train).double() for model in (pruned, dense))
    lost = F.kl_div(outputs.log_softmax(1), aim.softmax(1), reduction="batchmean").item()
    entropy = torch.distributions.Categorical(logits=aim).entropy().mean().item()
    for known in (dense, aim.float()):
        found = divergence(pruned, few, known, "float32")
        assert found == pytest.approx((lost, entropy), rel=1e-5)


def test_several_labels_diverge_by_the_sum_over_classes(few, dense, pruned):
    data = replace(few, task="multi-label")
    one, other = (predict(model, few, few.train).double() for model in (pruned, dense))
    of_one, of_other = (torch.distributions.Bernoulli(logits=logits) for logits in (one, other))
    lost = torch.distributions.kl_divergence(of_other, of_one).sum(dim=1).mean().item()
    entropy = of_other.entropy().sum(dim=1).mean().item()
    found = divergence(pruned, data, dense, "float32")
    assert found == pytest.approx((lost, entropy), rel=1e-5)


def test_without_class_probabilities_the_width_alone_decides(few, dense, pruned):
    regression = replace(few, task="regression")
    for data, known in ((few, None), (regression, dense)):
        chosen = choose(pruned, data, known, "float32")
        assert chosen == {"lr": 1e-3, "is_trained": True}


def test_a_classifier_without_labels_diverges_and_an_encoder_does_not(few, dense, pruned):
    data = replace(few, task="features")
    assert "divergence" in choose(pruned, data, Reference(dense, data), "float32")
    trunks = [copy.deepcopy(model) for model in (dense, pruned)]
    for trunk in trunks:
        trunk.reset_classifier(0)
    chosen = choose(trunks[1], data, Reference(trunks[0], data), "float32")
    assert chosen == {"lr": 1e-3, "is_trained": True}


def test_outputs_that_are_nan_say_nothing(few, dense, pruned):
    with torch.no_grad():
        pruned.head.bias.fill_(math.nan)
    chosen = choose(pruned, few, dense, "float32")
    assert chosen == {"lr": 1e-3, "is_trained": True}


def test_a_training_is_the_one_with_the_chosen_number(few, dense, pruned):
    found, told = {}, copy.deepcopy(pruned)
    context = vro.TrialContext(teacher=dense, record=found.update)
    accuracy = vro.finetune(pruned, few, AUTO, context)
    assert found["is_trained"]
    assert 0 < found["lr"] <= 1e-3
    assert accuracy == vro.finetune(told, few, replace(AUTO, lr=found["lr"]), teacher=dense)
    assert torch.equal(weights(pruned), weights(told))


def test_a_resumed_training_keeps_its_choice(few, dense, pruned, tmp_path):
    whole, records = copy.deepcopy(pruned), []
    vro.finetune(whole, few, AUTO, vro.TrialContext(teacher=dense))
    steps = iter([False, False, True])
    state = tmp_path / "state"
    context = vro.TrialContext(
        teacher=dense, state=state, record=records.append, should_stop=lambda: next(steps)
    )
    with pytest.raises(TrainingStopped):
        vro.finetune(pruned, few, AUTO, context)
    rebuilt = disturb(copy.deepcopy(dense), seed=2)  # has the sizes, and no weights of its own
    again = replace(context, should_stop=lambda: False)
    vro.finetune(rebuilt, few, AUTO, again)
    assert torch.equal(weights(rebuilt), weights(whole))
    assert records[0] == records[1]


def test_a_state_is_resumed_by_its_own_recipe_only(few, dense, pruned, tmp_path):
    state, numbers = tmp_path / "state", replace(AUTO, lr=1e-3)
    for first, second in ((AUTO, numbers), (numbers, AUTO)):
        stops = iter([False, True])
        context = vro.TrialContext(teacher=dense, state=state, should_stop=lambda: next(stops))  # noqa: B023
        with pytest.raises(TrainingStopped):
            vro.finetune(copy.deepcopy(pruned), few, first, context)
        with pytest.raises(InputError, match=r"is of a training with other .*recipe"):
            vro.finetune(copy.deepcopy(pruned), few, second, context)
        state.unlink()


def test_a_damaged_state_is_refused(few, dense, pruned, tmp_path):
    (tmp_path / "state").write_bytes(b"nothing")
    context = vro.TrialContext(teacher=dense, state=tmp_path / "state")
    with pytest.raises(InputError, match="is no readable state of a training"):
        vro.finetune(pruned, few, AUTO, context)


def test_where_nothing_was_lost_nothing_is_trained(few, dense):
    found, reports, model = {}, [], copy.deepcopy(dense)
    context = vro.TrialContext(
        teacher=dense, record=found.update, report=lambda *values: reports.append(values)
    )
    accuracy = vro.finetune(model, few, AUTO, context)
    assert not found["is_trained"]
    assert torch.equal(weights(model), weights(dense))
    assert not model.training
    assert reports == [(1, accuracy), (2, accuracy)]


def test_only_a_training_resolves_the_word():
    with pytest.raises(InputError, match="`lr` must be a number here, but is 'auto'"):
        _ = AUTO.peak_lr
    for wrong in (0, -1, "fast", math.inf):
        with pytest.raises(InputError, match="`lr` must be above 0, or 'auto'"):
            vro.Recipe(lr=wrong)


def test_recipes_by_name_differ_in_length_and_take_changes():
    lengths = [
        recipe.epochs
        for recipe in (vro.Recipe.short(), vro.Recipe.standard(), vro.Recipe.imagenet())
    ]
    assert lengths == sorted(lengths)
    assert lengths[-1] >= 100
    assert vro.Recipe.short() == vro.Recipe(epochs=1)
    assert vro.Recipe.standard(epochs=3).epochs == 3


def test_the_recipe_for_imagenet_trains(few, dense, pruned):
    before = weights(pruned)
    recipe = vro.Recipe.imagenet(epochs=1, batch_size=48)
    vro.finetune(pruned, few, recipe, vro.TrialContext(teacher=dense))
    assert weights(pruned).isfinite().all()
    assert not torch.equal(weights(pruned), before)
