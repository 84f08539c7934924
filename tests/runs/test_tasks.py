"""Searches of images with other labels than one class each."""

from dataclasses import replace

import timm
import torch
from optuna.storages import InMemoryStorage

import vit_ratio_opt as vro
from vit_ratio_opt.data.splits import Split


def test_a_regression_is_searched_in_the_unit_of_its_targets(few_digits):
    def as_numbers(split: Split) -> Split:
        return replace(split, labels=split.labels.float()[:, None])

    splits = {name: as_numbers(getattr(few_digits, name)) for name in ("train", "val", "test")}
    data = replace(few_digits, **splits, classes=("digit",), task="regression", source={})
    torch.manual_seed(0)
    dense = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=2,
        num_heads=4, mlp_ratio=2.0, num_classes=1,
    )  # fmt: skip
    search = vro.Search(
        dense,
        data,
        vro.Tolerance(0.5),
        training=vro.Recipe(epochs=0),
        run=vro.RunOptions(progress=False),
    )
    study = search.create_study("s", storage=InMemoryStorage())
    assert study.user_attrs["path"] == []  # outputs are no logits whose divergence counts
    search.run(study, 2, say=lambda line: None, explain=False)
    for trial in study.trials:
        risen = trial.user_attrs["metric"] - search.dense_accuracy
        assert trial.constraints["mean_absolute_error_rise"] == risen - 0.5
    assert search.answer(study) is not None
