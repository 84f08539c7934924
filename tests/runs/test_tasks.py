"""Searches of images with other labels than one class each."""

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from optuna.storages import InMemoryStorage

import vit_ratio_opt as vro
from vit_ratio_opt.data.splits import Split
from vit_ratio_opt.runs.screening import _agreement
from vit_ratio_opt.space.pairs import RatioPair


def _of_task(few_digits, task, labels_of, classes):
    def changed(split: Split) -> Split:
        return replace(split, labels=labels_of(split.labels).float())

    splits = {name: changed(getattr(few_digits, name)) for name in ("train", "val", "test")}
    return replace(few_digits, **splits, classes=classes, task=task, source={})


def _dense(classes):
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, mlp_ratio=2.0, num_classes=classes,
    )  # fmt: skip
    with torch.no_grad():
        model.head.weight *= 3000  # else all images have nearly the same logits
    return model


@pytest.fixture
def numbers(few_digits):
    return _of_task(few_digits, "regression", lambda labels: labels[:, None], ("digit",))


@pytest.fixture
def several(few_digits):
    def is_in(labels):
        return torch.stack([labels % 2 == 0, labels > 4, labels % 3 == 0], dim=1)

    return _of_task(few_digits, "multi-label", is_in, ("even", "large", "threes"))


def _search(data, **options):
    return vro.Search(
        _dense(len(data.classes)),
        data,
        vro.Tolerance(0.5),
        training=vro.Recipe(epochs=0),
        run=vro.RunOptions(progress=False),
        **options,
    )


def test_a_regression_is_searched_in_the_unit_of_its_targets(numbers):
    search = _search(numbers)
    study = search.create_study("s", storage=InMemoryStorage())
    assert study.user_attrs["path"] == []  # outputs are no logits whose divergence counts
    assert study.user_attrs["settings"]["calibration_task"] == "regression"
    search.run(study, 2, say=lambda line: None, explain=False)
    for trial in study.trials:
        risen = trial.user_attrs["metric"] - search.dense_accuracy
        assert trial.constraints["mean_absolute_error_rise"] == risen - 0.5
    assert search.answer(study) is not None


def test_several_labels_begin_on_the_path_of_the_least_sum_of_their_divergences(several):
    search = _search(several)
    study = search.create_study("s", storage=InMemoryStorage())
    assert len(study.user_attrs["path"]) > 2
    assert study.user_attrs["settings"]["calibration_task"] == "multi-label"

    images, pair = torch.randn(6, 1, 8, 8), RatioPair(0.5, 0.5)
    agreement = _agreement(search.pruner, [images[:4], images[4:]], "float32", "multi-label")
    with torch.no_grad():
        dense, pruned = search.dense(images), search.pruner.prune(pair)(images)
    shares = dense.sigmoid()
    crossed = F.binary_cross_entropy_with_logits(pruned, shares, reduction="sum")
    own = F.binary_cross_entropy_with_logits(dense, shares, reduction="sum")
    assert agreement(pair) == pytest.approx(-float(crossed - own) / 6, rel=1e-2)


def test_the_calibration_has_the_task_of_the_data(several):
    options = vro.SearchOptions(calibration=vro.CalibrationOptions(task="single-label"))
    with pytest.raises(vro.InputError, match="is 'multi-label', but that of the calibration"):
        _search(several, options=options)


def test_batches_without_a_data_set_are_calibrated_by_the_given_task():
    batch = torch.randn(8, 1, 8, 8)
    options = vro.CalibrationOptions(task="multi-label")
    pruner = vro.Pruner(_dense(3), [batch], calibration=options)
    known = vro.calibrate(_dense(3), [batch], task="multi-label")
    other = vro.calibrate(_dense(3), [batch])
    found = pruner.calibration.blocks[0].neuron_losses
    assert torch.equal(found, known.blocks[0].neuron_losses)
    assert not torch.equal(found, other.blocks[0].neuron_losses)


def test_an_error_rate_is_searched_as_its_accuracy_is(few_digits):
    """The range and the point of a metric of which less is better are measured."""
    error = vro.Measure(
        vro.Metric("error rate", larger_is_better=False),
        lambda outputs, labels: (outputs.argmax(1) != labels).double().mean(),
    )

    def study_of(metric, limit):
        search = vro.Search(
            vro.load_demo_model(),
            few_digits,
            limit,
            training=vro.Recipe(epochs=0, metric=metric),
            options=vro.SearchOptions(calibration=vro.CalibrationOptions(images=64)),
            run=vro.RunOptions(progress=False),
        )
        study = search.create_study("s", storage=InMemoryStorage())
        search.run(study, 4, say=lambda line: None, explain=False)
        return search, study

    (_, accurate), (search, wrong) = (
        study_of(metric, vro.Frontier(levels=4)) for metric in ("accuracy", error)
    )
    plans = [study.user_attrs["plan"] for study in (accurate, wrong)]
    assert 0.7 < plans[1]["worst"] < 1.0
    assert plans[1]["worst"] == plans[1]["forecast"]["worst"]
    assert plans[1]["noise_point"] == plans[1]["worst"] / 100
    assert plans[1]["noise"] == pytest.approx(plans[0]["noise"] / 100, rel=0.2)
    pairs = [[trial.params for trial in study.trials] for study in (accurate, wrong)]
    assert pairs[0] == pairs[1]
    # Resumed, a study keeps what it has measured.
    search.__dict__.pop("_worst", None)
    search._worst = 123.0
    again = search.create_study("s", storage=wrong._storage)
    assert again.sampler.plan.to_json() == plans[1]
