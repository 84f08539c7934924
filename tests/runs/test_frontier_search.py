"""A frontier in a search that trains: resumed, by several workers, and of one fixed ratio."""

from __future__ import annotations

import itertools

import pytest

import vit_ratio_opt as vro
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.trials import pair_of
from vit_ratio_opt.runs.suggest import suggest_pair


@pytest.fixture
def make(few_digits, dense, tmp_path):
    def make_one(limit=None, **options):
        search = vro.Search(
            dense,
            few_digits,
            limit or vro.Frontier(levels=3),
            training=vro.Recipe(epochs=1, batch_size=128),
            options=vro.SearchOptions(
                screen=False, calibration=vro.CalibrationOptions(images=64), **options
            ),
            run=vro.RunOptions(checkpoints=tmp_path / "models", progress=False),
        )
        search.journal.attach = None  # drawing a training takes longer than the training
        return search

    return make_one


def run(search, study, n_trials):
    search.run(study, n_trials, say=lambda line: None, explain=False)


def test_a_resumed_frontier_has_the_trials_of_an_uninterrupted_one(make, memory, url):
    straight = make().create_study("straight", storage=memory)
    run(make(), straight, 4)
    for n_trials in (1, 2, 4):  # a new process has nothing but the storage
        search = make()
        study = search.create_study("resumed", storage=url)
        run(search, study, n_trials)
    assert [pair_of(trial) for trial in study.trials] == list(map(pair_of, straight.trials))
    assert [trial.values for trial in study.trials] == [trial.values for trial in straight.trials]
    answer = search.answer(study)
    assert answer.front == search.answer(study).at(budget=0.9).front
    least = answer.front[0]
    model = answer.at(budget=least.cost_ratio).load_model()
    assert vro.shape_of(model).macs == least.trial.user_attrs["macs"]


def test_the_pairs_of_a_frontier_become_levels_of_one_model(make, memory):
    search = make()
    study = search.create_study("s", storage=memory)
    with pytest.raises(InputError, match="has no frontier"):
        search.elastic(study)
    run(search, study, 4)
    elastic = search.elastic(study)
    front = {candidate.pair: candidate.cost_ratio for candidate in search.answer(study).front}
    assert len(elastic.levels) > 1
    for level in elastic.levels:
        assert level.macs_ratio <= front[level.pair] + 1e-9
    smallest = elastic.at(elastic.levels[-1].macs_ratio)
    assert vro.shape_of(smallest).blocks == elastic.levels[-1].blocks
    search.pruner.pruning = vro.Structural(allocation="uniform")
    with pytest.raises(InputError, match="without an allocation"):
        search.elastic(study)


def test_four_workers_take_different_pairs_of_a_frontier(make, memory):
    search = make(vro.Frontier(levels=8))
    study = search.create_study("s", storage=memory)
    trials = [study.ask() for _ in range(4)]
    pairs = [suggest_pair(trial, search.space, search.limit).pair for trial in trials]
    assert len(set(pairs)) == 4
    for trial, pair in zip(trials, pairs, strict=True):
        study.tell(trial, (80.0 - 10 * sum(pair), search.space.cost_ratio(*pair)))
    again = [suggest_pair(study.ask(), search.space, search.limit).pair for _ in range(4)]
    assert len({*pairs, *again}) == 8


@pytest.mark.parametrize("limit", [vro.Frontier(levels=12), vro.Frontier(budgets=(0.9, 0.7))])
def test_a_frontier_of_one_ratio_tries_no_other_pair(make, memory, limit):
    search = make(limit, fixed_ratio=True)
    study = search.create_study("s", storage=memory)
    run(search, study, 2)
    pairs = list(map(pair_of, study.trials))
    assert all(first == second for first, second in pairs)
    costs = [trial.values[1] for trial in study.trials]
    assert all(less < more for more, less in itertools.pairwise(costs))
    assert all(first == second for first, second in search.plan(study.user_attrs).pairs)
