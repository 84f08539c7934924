"""Tests of the losses that are predicted before any training, and of searches that use them."""

import json
import math

import numpy as np
import pytest
from spaces import try_pairs, whole_head_space

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.forecast import Forecast
from vit_ratio_opt.search.forecasting import forecast_of, worst_loss
from vit_ratio_opt.search.front import frontier_answer
from vit_ratio_opt.search.limits import Budget, Frontier, Tolerance
from vit_ratio_opt.search.margins import tolerance_answer
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.space.curve import smallest_cost_ratio
from vit_ratio_opt.space.metric import Metric

SPACE = whole_head_space(hidden_dim=128, blocks=4)
DENSE = 80.0
NOISE = Noise(0.3, is_known=False)


def nats(pair):
    return 0.4 * pair[0] ** 2 + 1.2 * pair[1] ** 4


def accuracy(pair):
    """Return what a training gives: predicted up to a factor and an interaction of both ratios."""
    return DENSE * (1 - 0.2 * nats(pair)) - 2 * pair[0] * pair[1]


FORECAST = forecast_of(SPACE, nats, DENSE)


def guided(limit, forecast=FORECAST):
    plan = limit.plan(SPACE, noise=NOISE, dense=DENSE)
    plan.use_forecast(forecast)
    return plan


def run(plan, trials, value=accuracy):
    return try_pairs(plan, trials, value)


def test_the_losses_of_both_modules_add_up_and_never_exceed_the_worst():
    pairs = np.array([(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5), SPACE.max_pair])
    none, first, second, both, most = FORECAST.losses(pairs)
    share = -np.log1p(-np.array([first, second, both]) / DENSE)
    assert none == 0
    assert share[0] + share[1] == pytest.approx(share[2])
    assert both < most < DENSE
    assert np.diff(FORECAST.losses(np.linspace((0, 0), SPACE.max_pair, 20))).min() > 0


def test_an_unknown_loss_of_any_pair_is_no_forecast():
    assert forecast_of(SPACE, lambda pair: None, DENSE) is None
    assert forecast_of(SPACE, lambda pair: math.nan if pair[1] > 0.9 else 1.0, DENSE) is None


def test_a_forecast_is_the_same_after_it_was_stored():
    stored = json.loads(json.dumps({"forecast": FORECAST.to_json()}))
    assert Forecast.of_plan(stored) == FORECAST
    assert Forecast.of_plan({}) is None
    assert len(json.dumps(stored)) < 2048  # what any database keeps of one attribute


@pytest.mark.parametrize(
    "damaged",
    [
        [],
        "x",
        3,
        {},
        {"mhsa": []},
        {"mhsa": [[0, "0.5"]]},
        {"worst": "97"},
        {"mhsa": [0]},
        {"mhsa": [[0, 0, 0]]},
        {"mhsa": None},
        {"mhsa": [[0, True]]},
        {"ffn": [[0, 10**400]]},
        {"mhsa": [[math.nan, 0]]},
        {"mhsa": [[0, 0], [5, 1]]},
    ],
)
def test_a_damaged_forecast_of_a_study_is_one_sentence(damaged):
    whole = {"mhsa": [[0, 0]], "ffn": [[0, 0]], "worst": 1}
    assert Forecast.of_plan({"forecast": whole}) is not None
    stored = {**whole, **damaged} if damaged and isinstance(damaged, dict) else damaged
    with pytest.raises(InputError, match=r"`forecast` of the plan must have|by rising ratios"):
        Forecast.of_plan({"forecast": stored})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mhsa": ()}, "`mhsa` must be losses in nats by rising ratios"),
        ({"ffn": ((0.0, 0.0), (0.0, 1.0))}, "`ffn` must be losses in nats by rising ratios"),
        ({"ffn": ((0.0, -1.0),)}, "`ffn` must be"),
        ({"mhsa": ((0.0, math.inf),)}, "`mhsa` must be"),
        ({"worst": 0.0}, "`worst` must be above 0, but got 0.0"),
    ],
)
def test_a_forecast_of_wrong_numbers_is_refused(changes, message):
    known = {"mhsa": ((0.0, 0.0),), "ffn": ((0.0, 0.0),), "worst": 1.0}
    with pytest.raises(InputError, match=message):
        Forecast(**{**known, **changes})


def test_the_worst_loss_is_all_of_a_metric_that_is_0_for_nothing():
    assert worst_loss(80.0, Metric("accuracy", "%")) == 80.0
    error = Metric("error", "g", larger_is_better=False)
    assert worst_loss(900.0, error) == 100 * error.point(900.0)


def test_a_frontier_with_a_forecast_is_better_after_four_trials_and_tries_one_level_first():
    def lost(observed):
        marks = np.linspace(smallest_cost_ratio(SPACE), 1, 200)
        points = [(SPACE.cost_ratio(*pair), DENSE - accuracy(pair)) for pair in observed]
        return np.mean([min((o for c, o in points if c <= m), default=DENSE) for m in marks])

    search = guided(Frontier(levels=8))
    found = run(search, 4)
    first, second, *_ = found
    assert first == search.levels[0]
    assert second not in search.levels
    assert lost(found) < 0.7 * lost(run(guided(Frontier(levels=8), None), 4))
    # Workers that begin at once take different levels.
    assert search.propose({}, [search.levels[0]]).pair == search.levels[1]
    given = guided(Frontier(budgets=(0.8, 0.5)))
    assert set(run(given, 2)) == set(given.levels)


@pytest.mark.parametrize("limit", [Budget(0.6), Tolerance(3.0), Frontier(levels=6)])
def test_the_answer_from_what_was_stored_is_that_of_the_search(limit):
    plan = guided(limit)
    is_margin = isinstance(limit, Tolerance)
    below = DENSE - 3.0 if is_margin else 0.0
    observed = run(plan, 8, lambda pair: accuracy(pair) - below)
    stored = json.loads(json.dumps(plan.to_json()))
    if isinstance(limit, Budget):
        found = BudgetSearch.from_json(stored).answer(observed)
    elif is_margin:
        found, _ = tolerance_answer(stored, observed, SPACE.cost_ratio)
    else:
        front = frontier_answer(stored, observed, SPACE.cost_ratio).front
        assert front == plan.front(observed)
        found = next(one for one in front if one.pair == plan.answer(observed).pair)
    assert found == plan.answer(observed)
    plain = guided(limit, None).answer(observed)
    assert plain.mean != found.mean  # the forecast counts


def test_values_correct_a_forecast_whose_scale_is_wrong():
    tenfold = Forecast(
        tuple((r, 10 * n) for r, n in FORECAST.mhsa),
        tuple((r, 10 * n) for r, n in FORECAST.ffn),
        DENSE,
    )
    wrong = guided(Frontier(levels=6), tenfold)
    for one in wrong.front(run(wrong, 12)):
        assert one.mean == pytest.approx(accuracy(one.pair), abs=1.0)


def test_a_forecast_alone_never_ends_a_search():
    hopeless = Forecast(((0.0, 5.0), (0.9, 9.0)), ((0.0, 5.0), (0.9, 9.0)), DENSE)
    plan = guided(Tolerance(0.01, 0.99), hopeless)
    assert plan.propose({}).pair is not None
