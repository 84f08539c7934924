import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.splits import Split, split_in_memory
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.space.metric import Metric
from vit_ratio_opt.training.context import TrialContext
from vit_ratio_opt.training.losses import TaskLoss
from vit_ratio_opt.training.metrics import (
    MEASURES,
    Measure,
    as_measure,
    measure_of,
    standard_error,
)
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.training.trainer import ImageTrainer

CPU = torch.device("cpu")
OUTPUTS = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(4, (200,), generator=torch.Generator().manual_seed(1))
SEVERAL = (OUTPUTS + torch.randn(200, 4, generator=torch.Generator().manual_seed(2)) > 0).float()
TARGETS = OUTPUTS + 0.1 * torch.randn(200, 4, generator=torch.Generator().manual_seed(3))


def make_data(task: str = "single-label", labels: torch.Tensor = LABELS) -> ImageData:
    """Images whose mean brightness tells their labels."""
    images = torch.randint(256, (len(labels), 1, 4, 4), generator=torch.Generator().manual_seed(4))
    whole = split_in_memory(images.to(torch.uint8), LABELS)
    split = Split(whole.dataset, whole.indices, labels)
    names = ("a", "b", "c", "d")
    return ImageData("made", split, split, split, names, (0.5,), (0.25,), task=task)


def numpy_f1(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    found = []
    for label in range(4):
        predicted, true = outputs.argmax(1) == label, labels == label
        hits = float((predicted & true).sum())
        found.append(2 * hits / float(predicted.sum() + true.sum()))
    return 100 * float(np.mean(found))


def rank_auroc(scores: torch.Tensor, is_one: torch.Tensor) -> float:
    ones, zeros = scores[is_one], scores[~is_one]
    return float((ones[:, None] > zeros[None]).double().mean())


@pytest.mark.parametrize(
    ("name", "targets", "value"),
    [
        ("accuracy", LABELS, 100 * float((OUTPUTS.argmax(1) == LABELS).double().mean())),
        ("top5", LABELS, 100.0),
        (
            "balanced_accuracy",
            LABELS,
            100 * np.mean([float((OUTPUTS.argmax(1) == k)[k == LABELS].double().mean())
                           for k in range(4)]),
        ),
        ("macro_f1", LABELS, numpy_f1(OUTPUTS, LABELS)),
        (
            "auroc",
            SEVERAL,
            100 * np.mean([rank_auroc(OUTPUTS[:, k], SEVERAL[:, k] == 1) for k in range(4)]),
        ),
        ("mae", TARGETS, float((OUTPUTS - TARGETS).abs().double().mean())),
        (
            "r2",
            TARGETS,
            float(np.mean(1 - ((OUTPUTS - TARGETS) ** 2).sum(0).double().numpy()
                          / ((TARGETS - TARGETS.mean(0)) ** 2).sum(0).double().numpy())),
        ),
        ("loss", LABELS, float(F.cross_entropy(OUTPUTS, LABELS))),
    ],
)  # fmt: skip
def test_a_built_in_metric_is_what_its_name_says(name, targets, value):
    assert MEASURES[name](OUTPUTS, targets) == pytest.approx(value, rel=1e-5)


def test_mean_average_precision_of_perfect_and_of_reversed_scores():
    measure = MEASURES["map"]
    assert measure(SEVERAL, SEVERAL) == 100
    assert measure(-SEVERAL, SEVERAL) < 70


def test_the_standard_error_of_a_mean_is_exact_and_the_bootstrap_agrees():
    measure = MEASURES["accuracy"]
    share = measure(OUTPUTS, LABELS) / 100
    exact = 100 * math.sqrt(share * (1 - share) / len(LABELS))
    assert standard_error(measure, OUTPUTS, LABELS) == pytest.approx(exact)
    drawn = Measure(measure.metric, measure)
    assert standard_error(drawn, OUTPUTS, LABELS) == pytest.approx(exact, rel=0.2)


def test_an_object_of_torchmetrics_is_a_metric_with_its_direction():
    torchmetrics = pytest.importorskip("torchmetrics")
    f1 = as_measure(torchmetrics.classification.MulticlassF1Score(4))
    assert (f1.metric.name, f1.metric.larger_is_better) == ("MulticlassF1Score", True)
    assert 100 * f1(OUTPUTS, LABELS) == pytest.approx(numpy_f1(OUTPUTS, LABELS), rel=1e-5)
    error = as_measure(torchmetrics.MeanAbsoluteError())
    assert not error.metric.larger_is_better
    assert error(OUTPUTS, TARGETS) == pytest.approx(MEASURES["mae"](OUTPUTS, TARGETS))
    precision = as_measure(torchmetrics.classification.MultilabelAveragePrecision(4))
    found = 100 * precision(OUTPUTS, SEVERAL)
    assert found == pytest.approx(MEASURES["map"](OUTPUTS, SEVERAL), rel=1e-4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("acuracy", "must be one of 'accuracy', .*, but got 'acuracy'"),
        (len, "put a function into `Measure"),
        (Measure(Metric("nan"), lambda o, t: math.nan), "'nan' is nan for 200 images"),
        (
            Measure(Metric("broken"), lambda o, t: o[999]),
            "'broken' cannot be .* IndexErr",
        ),
        (Measure(Metric("none"), lambda o, t: None), "'none' cannot be computed .* TypeError"),
        ("map", "'mean average precision' does not fit the task of made, single-label: use 'acc"),
    ],
)
def test_a_metric_that_cannot_be_used_is_refused(given, said):
    with pytest.raises(InputError, match=said):
        measure_of(given, make_data())(OUTPUTS, LABELS)


def test_a_trainer_measures_the_metric_of_its_recipe():
    data, torch_seed = make_data(), 0
    torch.manual_seed(torch_seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    outputs = model(data.normalise(data.val.dataset.tensors[0]))
    trainer = ImageTrainer(data, Recipe(metric="macro_f1"), progress=False)
    assert trainer.metric == Metric("macro F1", "%")
    assert trainer.evaluate(model) == pytest.approx(numpy_f1(outputs, LABELS), rel=1e-6)
    assert trainer.standard_error(model) > 0
    assert trainer.identity()["recipe"]["metric"] == "macro_f1"
    custom = Recipe(metric=Measure(Metric("mine"), lambda o, t: 1.0)).to_json()
    assert custom["metric"] == "custom: mine"
    assert "metric" not in Recipe().to_json()


def test_several_labels_are_learned():
    data = make_data("multi-label", SEVERAL)
    images = data.train.dataset.tensors[0]
    bright = (images.float().mean(dim=(1, 2, 3)) > 127).float()
    data = make_data("multi-label", torch.stack([bright, 1 - bright, bright, bright], dim=1))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    recipe = Recipe(epochs=20, lr=0.05, class_weights="balanced", label_smoothing=0.1)
    trainer = ImageTrainer(data, recipe, progress=False)
    assert trainer.metric == Metric("mean average precision", "%")
    before = trainer.evaluate(model)
    after = trainer.train(model, TrialContext())
    assert after > max(95, before)


def test_a_regression_is_learned_and_distilled():
    images = make_data().train.dataset.tensors[0]
    brightness = 1000 * images.float().mean(dim=(1, 2, 3), keepdim=False)[:, None]
    data = make_data("regression", brightness)
    data = ImageData("made", data.train, data.val, data.test, ("brightness",), (0.5,), (0.25,),
                     task="regression")  # fmt: skip
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    nn.init.constant_(model[1].bias, 127_000)
    trainer = ImageTrainer(data, Recipe(epochs=5, lr=30.0, weight_decay=0), progress=False)
    assert (trainer.metric.name, trainer.metric.larger_is_better) == ("mean absolute error", False)
    before = trainer.evaluate(model)
    assert trainer.train(model, TrialContext(teacher=model)) < before


def test_weights_and_smoothing_are_those_of_cross_entropy():
    data = make_data()
    counts = LABELS.bincount().float()
    loss = TaskLoss(data, Recipe(class_weights="balanced", label_smoothing=0.2), CPU)
    expected = F.cross_entropy(OUTPUTS, LABELS, 200 / (4 * counts), label_smoothing=0.2)
    torch.testing.assert_close(loss(OUTPUTS, LABELS, None), expected)
    loss = TaskLoss(data, Recipe(class_weights=(1, 2, 3, 4)), CPU)
    expected = F.cross_entropy(OUTPUTS, LABELS, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(loss(OUTPUTS, LABELS, None), expected)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="a weight for each of 4 classes of made, but has 2"):
        TaskLoss(make_data(), Recipe(class_weights=(1, 2)), CPU)
    with pytest.raises(InputError, match="must be above 0"):
        Recipe(class_weights=(1.0, -2.0))
    with pytest.raises(InputError, match="are for labels, but the task is a regression"):
        TaskLoss(make_data("regression", TARGETS), Recipe(class_weights="balanced"), CPU)


def test_a_class_without_an_image_does_not_lower_the_mean_average_precision():
    outputs, targets = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[1.0, 0.0]] * 2)
    assert MEASURES["map"](outputs, targets) == 100
    with pytest.raises(InputError, match="needs an image of some class"):
        MEASURES["map"](outputs, torch.zeros(2, 2))
