"""All levels of an elastic model are trained together."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.device import model_device
from vit_ratio_opt.pruning.calibration import calibrate
from vit_ratio_opt.pruning.elastic import build_elastic
from vit_ratio_opt.training.context import TrainingStopped, TrialContext
from vit_ratio_opt.training.distributed import Ranks
from vit_ratio_opt.training.elastic import SandwichLoss
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.training.finetune import finetune
from vit_ratio_opt.training.recipe import Recipe

PAIRS = ((0.0, 0.0), (0.2, 0.3), (0.4, 0.5), (0.5, 0.6), (0.7, 0.8))
RECIPE = Recipe(epochs=2, lr=3e-3, batch_size=64)


class Plain:
    """The cross-entropy, which writes down what it is given."""

    def __init__(self):
        self.teachers = []

    def of_batch(self, forward, images, targets, teacher):
        self.teachers.append(teacher)
        outputs = forward(images)
        return cross_entropy(outputs, targets), outputs


@pytest.fixture(scope="module")
def small(digits):
    return replace(digits, train=digits.train.subset(torch.arange(256)))


@pytest.fixture(scope="module")
def built(dense, small):
    images = [small.normalise(x) for x, _ in small.train.batches(64)][:2]
    return build_elastic(dense, PAIRS, calibrate(dense, images), images)


@pytest.fixture
def elastic(built):
    return copy.deepcopy(built)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_step_trains_the_largest_the_smallest_and_two_between():
    torch.manual_seed(0)
    used = []

    def forward(images, level):
        used.append(level)
        return images * (1 + level)

    loss, images, labels = SandwichLoss(Plain(), 5), torch.eye(3), torch.arange(3)
    for _ in range(20):
        value, outputs = loss.of_batch(forward, images, labels, None)
    steps = [tuple(used[i : i + 4]) for i in range(0, len(used), 4)]
    assert all(step[0] == 0 and step[3] == 4 for step in steps)
    assert {step[1:3] for step in steps} == {(1, 2), (1, 3), (2, 3)}
    assert torch.equal(outputs, images)
    each = [cross_entropy(images * (1 + level), labels) for level in steps[-1]]
    torch.testing.assert_close(value, torch.stack(each).mean())


@pytest.mark.parametrize(("levels", "wanted"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2])])
def test_few_levels_are_all_trained(levels, wanted):
    used = []
    loss = SandwichLoss(Plain(), levels)
    loss.of_batch(lambda x, level: used.append(level) or x, torch.eye(3), torch.arange(3), None)
    assert used == wanted


def test_the_teacher_runs_once_for_all_levels():
    plain, teacher = Plain(), torch.nn.Linear(3, 3)
    SandwichLoss(plain, 3).of_batch(lambda x, level: x, torch.eye(3), torch.arange(3), teacher)
    assert len(plain.teachers) == 3
    assert all(torch.equal(given, teacher(torch.eye(3))) for given in plain.teachers)
    assert not plain.teachers[0].requires_grad


def test_training_makes_every_level_better_and_reports_their_mean(elastic, small, dense):
    before = [evaluate(elastic.extract(i), small, small.val) for i in range(len(PAIRS))]
    reports = []
    value = finetune(
        elastic,
        small,
        RECIPE,
        TrialContext(report=lambda *row: reports.append(row)),
        teacher=dense,
    )
    after = [evaluate(elastic.extract(i), small, small.val) for i in range(len(PAIRS))]
    assert all(new > old + 10 for new, old in zip(after, before, strict=True))
    assert value == pytest.approx(sum(after) / len(after))
    assert [epoch for epoch, *_ in reports] == [1, 2]
    assert reports[-1][1] == value
    assert not elastic.training


def test_a_stopped_training_goes_on_to_the_same_weights(elastic, built, small, tmp_path):
    finetune(elastic, small, RECIPE, TrialContext(seed=1))
    stopped, calls = copy.deepcopy(built), []
    context = TrialContext(
        seed=1, state=tmp_path / "state", should_stop=lambda: calls.append(0) or len(calls) > 5
    )
    with pytest.raises(TrainingStopped):
        finetune(stopped, small, RECIPE, context)
    again = copy.deepcopy(built)
    finetune(again, small, RECIPE, replace(context, should_stop=lambda: False))
    assert torch.equal(weights(again), weights(elastic))


def test_a_state_of_other_levels_is_not_gone_on_with(built, small, tmp_path):
    calls = []
    context = TrialContext(
        seed=1, state=tmp_path / "state", should_stop=lambda: calls.append(0) or len(calls) > 5
    )
    with pytest.raises(TrainingStopped):
        finetune(copy.deepcopy(built), small, RECIPE, context)
    other = copy.deepcopy(built)
    first, *rest = other.levels[1].blocks
    blocks = (replace(first, hidden_dim=first.hidden_dim - 1), *rest)
    changed = replace(other.levels[1], blocks=blocks)
    other.levels = (other.levels[0], changed, *other.levels[2:])
    with pytest.raises(InputError, match="levels"):
        finetune(other, small, RECIPE, replace(context, should_stop=lambda: False))


def test_the_automatic_rate_is_the_mean_of_the_levels_own(elastic, small, dense):
    chosen = {}
    recipe = replace(RECIPE, epochs=1, lr="auto", ema=0.9, drop_path=0.1)
    finetune(elastic, small, recipe, TrialContext(record=chosen.update), teacher=dense)
    assert chosen["is_trained"]
    assert 0 < chosen["lr"] <= 1e-3
    assert set(chosen) == {"lr", "is_trained"}


def test_trainings_that_levels_cannot_have_are_refused(elastic, small):
    for data, recipe, ranks, message in (
        (small, replace(RECIPE, layer_decay=0.9), None, "layer_decay=1"),
        (small, RECIPE, Ranks(0, 2, model_device(elastic)), "one process"),
        (replace(small, task="features"), RECIPE, None, "features"),
    ):
        with pytest.raises(InputError, match=message):
            finetune(elastic, data, recipe, ranks=ranks)
