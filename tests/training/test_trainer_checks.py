from __future__ import annotations

import numpy as np
import optuna
import pytest
import torch

import vit_ratio_opt as vro
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.training.context import TrainingDiverged
from vit_ratio_opt.training.trainer_checks import (
    check_layers,
    check_trainer,
    layers_of,
    metric_value,
    warn_if_constant,
    warn_if_reversed,
)


class Mine:
    metric = vro.Metric("mIoU")

    def identity(self):
        return {}

    def evaluate(self, model):
        return 0.5

    def train(self, model, context):
        return 0.5


@pytest.mark.parametrize(
    "value", [1, 1.0, np.float32(1), np.int64(1), np.ones(1), torch.tensor(1), torch.ones(1, 1)]
)
def test_one_number_is_a_metric(value):
    found = metric_value(value, Mine(), "train")
    assert type(found) is float
    assert found == 1.0


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "gave None"),
        ("97 %", "gave '97 %'"),
        (True, "gave True"),
        ((0.5, 0.6), r"gave \(0.5, 0.6\)"),
        (torch.ones(3, 2), r"gave a Tensor of shape \(3, 2\)"),
        (torch.ones(0), r"gave a Tensor of shape \(0,\)"),
    ],
)
def test_everything_else_is_refused_in_one_sentence(value, shown):
    with pytest.raises(InputError, match=f"^`train` of Mine must .* as one number, but {shown}.$"):
        metric_value(value, Mine(), "train")


def test_nan_is_a_training_that_diverged_or_a_metric_that_is_wrong():
    with pytest.raises(TrainingDiverged, match="`train` of Mine gave nan as the mIoU"):
        metric_value(torch.tensor(torch.nan), Mine(), "train")
    with pytest.raises(InputError, match="`evaluate` of Mine gave inf as the mIoU"):
        metric_value(torch.inf, Mine(), "evaluate")


@pytest.mark.parametrize(
    ("trainer", "match"),
    [
        (lambda model: 0.5, "but function lacks `metric`, `identity`, `evaluate`, `train`"),
        (Mine, "but Mine is a class"),
    ],
)
def test_what_is_no_trainer_is_refused(trainer, match):
    check_trainer(Mine())
    with pytest.raises(InputError, match=match):
        check_trainer(trainer)


class Wrapped(torch.nn.Linear):
    pass


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: setattr(m[0], "extra", torch.nn.ReLU()), "the layer 0.extra was added"),
        (lambda m: m.pop(1), "the layer 1 was removed"),
        (lambda m: m.__setitem__(0, Wrapped(2, 3)), "the layer 0 was a Linear and is a Wrapped"),
        (lambda m: m.__setitem__(0, torch.nn.Linear(2, 4)), "the layer 0 has other parameters"),
    ],
)
def test_a_model_with_other_layers_is_refused(change, match):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
    before = layers_of(model)
    check_layers(before, model.half(), Mine())
    change(model)
    with pytest.raises(InputError, match=f"`train` of Mine changed the model: {match}"):
        check_layers(before, model, Mine())


def test_a_metric_that_never_changes_is_warned_about_once(caplog):
    optuna.logging.enable_propagation()
    for count in range(1, 6):
        warn_if_constant(Mine.metric, 0.5, [0.5] * count)
        warn_if_constant(Mine.metric, 0.5, [0.5] * (count - 1) + [0.6])
    optuna.logging.disable_propagation()
    (said,) = {record.message for record in caplog.records}
    assert said.startswith("The mIoU is 0.5 for the dense model and for each of 3")


@pytest.mark.parametrize(
    ("metric", "dense", "right", "wrong"),
    [
        (vro.Metric("accuracy", "%"), 77.0, [78.0, 60.0, 81.9], [83.0, 90.0, 82.1]),
        (vro.Metric("error"), 0.0, [-0.1, 0.3, 0.2], [0.1, 0.3, 0.2]),
        (vro.Metric("loss", larger_is_better=False), 0.5, [0.49, 0.7, 0.1], [0.4, 0.3, 0.2]),
    ],
)
def test_a_metric_that_pruning_improves_is_warned_about_once(caplog, metric, dense, right, wrong):
    optuna.logging.enable_propagation()
    warn_if_reversed(metric, dense, right)
    warn_if_reversed(metric, dense, [None, *wrong[1:]])
    assert caplog.text == ""
    for count in range(1, 5):
        warn_if_reversed(metric, dense, [*wrong, *wrong][:count])
    optuna.logging.disable_propagation()
    (said,) = {record.message for record in caplog.records}
    assert said.startswith(f"Each of 3 pruned models has a better {metric.name} before")
