"""Options of a search, a run and a worker are checked where they are given."""

from __future__ import annotations

import numpy as np
import pytest

import vit_ratio_opt as vro
from vit_ratio_opt.errors import InputError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -3}, "`seed` must be at least 0 and at most 4294967295, but got -3"),
        ({"seed": 2**70}, "`seed` must be at least 0 and at most 4294967295"),
        ({"confirmations": 1.5}, "`confirmations` must be at least 0, but got 1.5: give an int"),
        ({"confirmations": -1}, "`confirmations` must be at least 0, but got -1"),
        ({"noise": -1}, "`noise` must be at least 0, in the unit of the metric, but got -1"),
        (
            {"noise": float("nan")},
            "`noise` must be at least 0, in the unit of the metric, but got nan",
        ),
        (
            {"noise": float("inf")},
            "`noise` must be at least 0, in the unit of the metric, but got inf",
        ),
        ({"noise": "low"}, "`noise` must be at least 0, in the unit of the metric, but got 'low'"),
        ({"screen": "no"}, "`screen` must be True or False, but got 'no'"),
        ({"iterative": 1}, "`iterative` must be True or False, but got 1"),
        ({"fixed_ratio": None}, "`fixed_ratio` must be True or False, but got None"),
        ({"calibration": 512}, "`calibration` must be a CalibrationOptions, but got 512"),
    ],
)
def test_options_of_a_search_are_checked(options, message):
    with pytest.raises(InputError) as error:
        vro.SearchOptions(**options)
    assert message in str(error.value)


def test_numbers_of_numpy_become_json_values():
    options = vro.SearchOptions(seed=np.int64(3), confirmations=np.int64(2), noise=np.float64(0.5))
    kinds = [type(value) for value in (options.seed, options.confirmations, options.noise)]
    assert kinds == [int, int, float]
    assert type(vro.Structural(round_to=np.int64(4)).round_to) is int


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vro.RunOptions(checkpoints=5), "`checkpoints` must be a path, but got 5"),
        (lambda: vro.RunOptions(artifacts=5), "`artifacts` must be a path, but got 5"),
        (lambda: vro.RunOptions(progress="yes"), "`progress` must be True or False"),
        (lambda: vro.RunOptions(ranks=2), "`ranks` must be a Ranks, but got 2"),
        (lambda: vro.CalibrationOptions(images=1.5), "`calibration_images` must be at least 1"),
        (lambda: vro.CalibrationOptions(cache=5), "`cache` must be a path, but got 5"),
        (lambda: vro.Places(data=5), "`data` must be a path, but got 5"),
        (lambda: _worker(study_name=5), "`study_name` must be a text, but got 5"),
        (lambda: _worker(n_trials=0), "`n_trials` must be at least 1, but got 0"),
        (lambda: _worker(grace=1), "`grace` must be at least 2, but got 1"),
        (lambda: _worker(wait=None), "`wait` must be True or False, but got None"),
        (lambda: _worker(places="data"), "`places` must be a Places, but got 'data'"),
        (lambda: _worker(callbacks=[5]), "`callbacks` must be functions"),
    ],
)
def test_options_of_runs_and_workers_are_checked(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value)


def _worker(**options):
    return vro.WorkerOptions(**{"study_name": "s", "storage": "sqlite:///s.db", **options})
