"""What rank 0 tells the other ranks is what these need to train the same model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from optuna.storages import InMemoryStorage
from support import new_study

import vit_ratio_opt as vro
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.runs.jobs import adopt_job, job_of
from vit_ratio_opt.runs.ranks import join_trainings


class Group:
    """Stands for both ranks: what rank 0 broadcasts is what rank 1 receives."""

    def __init__(self, rank, jobs):
        self.rank, self.jobs = rank, jobs

    def broadcast(self, job=None):
        if self.rank:
            return self.jobs.pop(0) if self.jobs else None
        self.jobs.append(job)
        return job


class Recorder:
    """A trainer that trains nothing and records what it was given."""

    metric, epochs, precision = vro.Metric("accuracy", "%"), 1, "float32"
    device = torch.device("cpu")

    def __init__(self, ranks, precision="float32"):
        self.ranks, self.precision, self.given = ranks, precision, []

    def identity(self):
        return {"name": "recorder"}

    def evaluate(self, model):
        return 50.0

    def train(self, model, context):
        sizes = vro.shape_of(model).block_sizes
        self.given.append((context.seed, dict(context.identity), sizes, self.precision))
        return 50.0


def test_another_rank_trains_the_same_model_in_the_precision_of_rank_0(dense):
    jobs: list[object] = []
    images = [torch.randn(8, 1, 8, 8)]
    first, second = (
        vro.Search(dense, images, vro.Budget(0.6), training=Recorder(Group(rank, jobs), precision))
        for rank, precision in enumerate(("bfloat16", "float32"))
    )
    first.trainer.training_precision = "float16"
    study = new_study(first, "s", storage=InMemoryStorage(), screen=False)
    study.optimize(first.objective, n_trials=2)
    join_trainings(second.objective)
    assert len(second.trainer.given) == 2
    assert second.trainer.given == first.trainer.given
    assert second.trainer.precision == "bfloat16"
    assert second.trainer.training_precision == "float16"
    assert weights_hash(second.dense) == weights_hash(first.dense)
    with pytest.raises(InputError, match="Rank 0 runs the study"):
        join_trainings(first.objective)


def test_another_rank_trains_at_the_learning_rate_of_rank_0(dense):
    shape = vro.shape_of(dense)
    first, second = (
        SimpleNamespace(precision=None, recipe=vro.Recipe(epochs=2, lr=lr))
        for lr in (5e-4, "auto")
    )
    job = job_of(first, vro.RatioPair(0.5, 0.5), vro.TrialContext(), shape=shape, artifact=None)
    adopt_job(second, job)
    assert second.recipe == first.recipe
