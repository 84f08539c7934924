"""What an iterative trial starts from: the parent's model, or the dense one where it is better."""

import optuna
import pytest
from torch import nn

from vit_ratio_opt.runs import parents
from vit_ratio_opt.runs.parents import best_start
from vit_ratio_opt.space.metric import ACCURACY, Metric
from vit_ratio_opt.space.pairs import RatioPair

PAIR = RatioPair(0.5, 0.5)
ERROR = Metric("error", larger_is_better=False)


class Pruner:
    """Returns one model for the dense start and one for any parent."""

    def __init__(self):
        self.from_dense, self.from_parent = nn.Identity(), nn.Identity()

    def prune(self, pair, parent=None):
        return self.from_dense if parent is None else self.from_parent


@pytest.mark.parametrize(
    ("metric", "dense", "parent", "starts_from_parent"),
    [
        (ACCURACY, 90.0, 91.0, True),
        (ACCURACY, 90.0, 90.0, True),
        (ACCURACY, 90.0, 89.9, False),
        (ERROR, 2.0, 1.9, True),
        (ERROR, 2.0, 2.1, False),
    ],
)
def test_a_trial_starts_from_the_model_that_is_better_before_training(
    monkeypatch, metric, dense, parent, starts_from_parent
):
    trial = optuna.create_study().ask()
    pruner, found = Pruner(), object()
    monkeypatch.setattr(parents, "_find_parent", lambda *args: (found, nn.Identity()))
    values = {pruner.from_dense: dense, pruner.from_parent: parent}
    start = best_start(
        trial, PAIR, pruner, None, evaluate=values.__getitem__, metric=metric
    )  # fmt: skip
    if starts_from_parent:
        assert start == (pruner.from_parent, parent, found)
    else:
        assert start == (pruner.from_dense, dense, None)


def test_a_trial_without_a_store_starts_from_the_dense_model():
    pruner = Pruner()
    trial = optuna.create_study().ask()
    start = best_start(trial, PAIR, pruner, None, evaluate=lambda model: 90.0, metric=ACCURACY)
    assert start == (pruner.from_dense, 90.0, None)
