import json
import math
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.margins import (
    NOTHING,
    add_values,
    believe,
    failed_pairs,
    tolerance_answer,
)
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.search.plan import Pair, Plan
from vit_ratio_opt.search.tolerance import ToleranceSearch

ESTIMATED = Noise(0.3, is_known=False)

HEADS, NEURONS, DENSE_COST = 28, 60, 1.0
COLUMNS = [(h / 32, [n / 64 for n in range(NEURONS + 1)]) for h in range(HEADS + 1)]
PAIRS = [(first, second) for first, seconds in COLUMNS for second in seconds]


def cost(first: float, second: float) -> float:
    return DENSE_COST - 0.55 * first - 0.4 * second


def loss(first: float, second: float, steep: tuple[float, float] = (3.0, 4.0)) -> float:
    return math.expm1(steep[0] * first) + 0.4 * math.expm1(steep[1] * second)


def tolerance_plan(tolerance: float = 2.0, **settings: object) -> ToleranceSearch:
    return ToleranceSearch(COLUMNS, cost, tolerance, **settings)


def run(plan: Plan, margin: Callable[[Pair], float], trials: int = 200) -> dict[Pair, list[float]]:
    observed: dict[Pair, list[float]] = {}
    for _ in range(trials):
        pair = plan.propose(observed).pair
        if pair is None:
            return observed
        observed.setdefault(pair, []).append(margin(pair))
    pytest.fail("the search does not end")


@settings(deadline=None, max_examples=15)
@example(tolerance=2.96875, steep=(1.90625, 3.0))  # open only between the thinned candidates
@given(
    tolerance=st.floats(0.3, 10),
    steep=st.tuples(st.floats(0.5, 5), st.floats(0.5, 5)),
)
def test_without_noise_the_cheapest_pair_within_the_tolerance_is_found(
    tolerance: float, steep: tuple[float, float]
) -> None:
    def margin(pair: Pair) -> float:
        return tolerance - loss(*pair, steep)

    plan = tolerance_plan(tolerance, resolution=0.0)
    observed = run(plan, margin)
    cheapest = min(cost(*pair) for pair in PAIRS if margin(pair) >= 0)
    answer = plan.answer(observed)
    assert (DENSE_COST if answer is None else cost(*answer.pair)) == pytest.approx(cheapest)
    assert all(len(values) == 1 for values in observed.values())


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.0, 4.0])
def test_ten_trials_come_within_a_hundredth_of_the_cheapest_pair(tolerance: float) -> None:
    def margin(pair: Pair) -> float:
        return tolerance - loss(*pair)

    plan, observed = tolerance_plan(tolerance), {}
    for _ in range(10):
        pair = plan.propose(observed).pair
        if pair is not None:
            observed[pair] = [margin(pair)]
    cheapest = min(cost(*pair) for pair in PAIRS if margin(pair) >= 0)
    answer = plan.answer(observed)
    assert answer is not None
    assert cost(*answer.pair) <= cheapest + 0.01


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.0, 4.0])
def test_a_search_goes_along_its_path_before_it_leaves_it(tolerance: float) -> None:
    path = [PAIRS[index] for index in range(len(PAIRS)) if PAIRS[index][0] == 2 * PAIRS[index][1]]
    assert len(path) > 5
    plan, observed, left = tolerance_plan(tolerance, path=path), {}, 0
    for trial in range(12):
        pair = plan.propose(observed).pair
        if pair is None:
            break
        if pair in path:
            assert not left, "back on the path"
        else:
            left = left or trial
        observed[pair] = [tolerance - loss(*pair)]
    assert 0 < left <= 6
    cheapest = min(cost(*pair) for pair in PAIRS if tolerance - loss(*pair) >= 0)
    answer = plan.answer(observed)
    assert answer is not None
    assert cost(*answer.pair) <= cheapest + 0.01


def test_a_pair_that_prunes_more_than_one_that_failed_is_never_tried() -> None:
    failed: list[Pair] = []

    def margin(pair: Pair) -> float:
        assert not any(pair[0] >= f[0] and pair[1] >= f[1] for f in failed)
        value = 1.0 - loss(*pair)
        if value < 0:
            failed.append(pair)
        return value

    run(tolerance_plan(1.0), margin)
    assert failed


def test_a_pair_that_costs_more_than_the_winner_is_never_tried() -> None:
    cheapest = [math.inf]

    def margin(pair: Pair) -> float:
        assert cost(*pair) < cheapest[0]
        value = 1.0 - loss(*pair)
        if value >= 0:
            cheapest[0] = cost(*pair)
        return value

    run(tolerance_plan(1.0), margin)


def test_idle_workers_get_different_pairs() -> None:
    plan, pending = tolerance_plan(), []
    for _ in range(64):
        pair = plan.propose({(0.25, 0.25): [0.1]}, pending).pair
        assert pair is not None
        assert pair not in pending
        pending.append(pair)


def test_search_ends_at_once_when_nothing_is_within_the_tolerance() -> None:
    plan = ToleranceSearch([(0.5, [0.5])], cost, 1.0)
    assert plan.propose({(0.5, 0.5): [-3.0]}) == (
        None,
        "no pair can be expected to keep the accuracy within the tolerance",
    )


@pytest.mark.parametrize("noise", [0.0, 0.3, ESTIMATED])
@pytest.mark.parametrize("value", [-40.0, 2.0, 300.0])
def test_constant_margins_come_to_an_end(value: float, noise: float | Noise) -> None:
    plan = tolerance_plan(2.0, noise=noise, confirmations=1)
    observed = run(plan, lambda pair: value)
    answer, estimates = tolerance_answer(plan.to_json(), observed, cost)
    assert answer == plan.answer(observed)
    if value >= 0:
        assert answer.pair == (HEADS / 32, NEURONS / 64)
    else:
        assert answer is None
    for estimate in estimates.values():
        assert 0 <= estimate.probability <= 1
        assert estimate.error >= 0
        assert math.isfinite(estimate.mean)


def test_margins_of_exactly_0_come_to_an_end() -> None:
    plan = tolerance_plan(2.0, confirmations=1)
    assert plan.answer(run(plan, lambda pair: 0.0)).pair == (HEADS / 32, NEURONS / 64)
    columns = [(first / 5, [second / 5 for second in range(5)]) for first in range(5)]
    for noise in (0.3, ESTIMATED):
        noisy_plan = ToleranceSearch(columns, cost, 2.0, noise=noise)
        observed = run(noisy_plan, lambda pair: 0.0)
        assert max(map(len, observed.values())) <= 3
        answer = noisy_plan.answer(observed)
        assert answer is None or answer.probability >= 0.8


@pytest.mark.parametrize("noise", [0.3, ESTIMATED])
def test_a_noisy_search_ends_with_a_confirmed_answer(noise: float | Noise) -> None:
    for seed in range(5):
        plan, observed = noisy(seed, noise, trials=200)
        assert sum(map(len, observed.values())) <= 40
        answer = plan.answer(observed)
        assert answer is not None
        assert answer.trained >= 2


def test_margins_that_are_not_monotone_come_to_an_end() -> None:
    rng = random.Random(0)
    run(tolerance_plan(2.0, noise=0.3, confirmations=1), lambda pair: rng.uniform(-3, 2))


def test_fixed_ratio_is_a_bisection_of_the_diagonal() -> None:
    steps = [i / 512 for i in range(448)]
    plan = ToleranceSearch([(step, [step]) for step in steps], cost, 2.0, resolution=0.0)
    observed = run(plan, lambda pair: 2.0 - loss(*pair))
    best = max(step for step in steps if loss(step, step) <= 2.0)
    assert plan.answer(observed).pair == (best, best)
    assert len(observed) <= math.log2(len(steps)) + 2


@pytest.mark.parametrize("axis", [0, 1])
def test_along_a_fixed_ratio_the_other_is_bisected(axis: int) -> None:
    plan = tolerance_plan(2.0, resolution=0.0).fix_ratio(axis, 0.25)
    observed = run(plan, lambda pair: 2.0 - loss(*pair))
    assert {pair[axis] for pair in observed} == {0.25}
    line = [pair for pair in PAIRS if pair[axis] == 0.25 and loss(*pair) <= 2.0]
    assert plan.answer(observed).pair == min(line, key=lambda pair: cost(*pair))


# With noise


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("noise", [0.3, ESTIMATED])
def test_answer_is_the_cheapest_pair_with_the_confidence(
    noise: float | Noise, confidence: float
) -> None:
    for seed in range(3):
        plan, observed = noisy(seed, noise, confidence=confidence)
        answer, estimates = tolerance_answer(plan.to_json(), observed, cost)
        assert answer == plan.answer(observed)
        keeping = [
            pair
            for pair, estimate in estimates.items()
            if estimate.probability >= confidence and max(observed[pair]) >= 0
        ]
        if answer is None:
            assert not keeping
        else:
            assert answer.pair == min(keeping, key=lambda pair: (cost(*pair), pair))


def noisy(
    seed: int, noise: float | Noise = ESTIMATED, trials: int = 10, **settings: object
) -> tuple[ToleranceSearch, dict[Pair, tuple[float, ...]]]:
    """A search with noise of 0.3, the first ``trials`` of it."""
    rng = random.Random(seed)
    plan = tolerance_plan(2.0, noise=noise, confirmations=1, **settings)
    observed: dict[Pair, tuple[float, ...]] = {}
    for trial in range(trials):
        pair = plan.propose(observed, confirm=trials - trial <= trials // 8).pair
        if pair is None:
            break
        value = 2.0 - loss(*pair) + rng.gauss(0, 0.3)
        observed[pair] = (*observed.get(pair, ()), value)
    return plan, observed


def test_answer_keeps_the_tolerance_about_as_often_as_it_is_asked_to() -> None:
    kept, covered, bias, pruned, seeds = 0, 0, 0.0, 0, 40
    for seed in range(seeds):
        plan, observed = noisy(seed)
        answer = plan.answer(observed)
        if answer is None:
            kept += 1
            continue
        truth = 2.0 - loss(*answer.pair)
        pruned += 1
        kept += truth >= 0
        covered += abs(answer.mean - truth) <= 1.645 * answer.error
        bias += answer.mean - truth
    assert pruned > 0.8 * seeds
    assert kept >= 0.75 * seeds
    assert covered >= 0.8 * pruned
    assert abs(bias / pruned) < 0.15


def test_the_dense_model_is_the_answer_when_no_pair_will_do() -> None:
    plan = tolerance_plan(2.0, noise=0.3)
    assert plan.answer({}) is None
    assert plan.answer({(0.5, 0.5): [-3.0]}) is None
    assert plan.answer({(0.25, 0.25): [0.01]}) is None  # not with the confidence
    assert plan.answer({(0.25, 0.25): [1.5]}) is not None
    assert tolerance_plan(2.0).answer({(0.25, 0.25): [0.0]}) is not None


def test_a_pair_that_never_kept_the_tolerance_is_not_the_answer() -> None:
    observed = {(0.25, 0.25): [-0.01] * 2, (0.5, 0.25): [0.9] * 3, (0.125, 0.125): [1.5] * 3}
    plan = tolerance_plan(2.0, noise=0.3)
    estimates = tolerance_answer(plan.to_json(), observed, cost)[1]
    assert estimates[0.25, 0.25].probability < 0.99
    assert plan.answer(observed).pair == (0.5, 0.25)
    del observed[0.5, 0.25]
    assert plan.answer(observed).pair == (0.125, 0.125)


@pytest.mark.parametrize("noise", [0.0, 0.3, ESTIMATED])
def test_confirm_trains_an_answer_that_was_trained_once(noise: float | Noise) -> None:
    plan = tolerance_plan(2.0, noise=noise)
    observed = {(0.5, 0.25): [-1.5], (0.25, 0.25): [1.0]}
    assert plan.answer(observed).pair == (0.25, 0.25)
    proposal = plan.propose(observed, confirm=True)
    assert proposal == ((0.25, 0.25), "confirms the answer, which was trained once")
    assert plan.propose(observed).pair != (0.25, 0.25) or noise
    pending = plan.propose(observed, [(0.25, 0.25)], confirm=True)
    assert pending.pair not in (None, (0.25, 0.25))
    observed[0.25, 0.25].append(1.0)
    assert plan.propose(observed, confirm=True) == plan.propose(observed)
    assert plan.propose({}, confirm=True) == plan.propose({})


def test_a_lucky_pair_is_not_the_answer_any_more_once_it_is_trained_again() -> None:
    plan = tolerance_plan(2.0, noise=0.3, confirmations=1)
    around = {(0.5, 0.25): [-1.5], (0.375, 0.25): [-0.6], (0.4375, 0.1875): [-0.8]}
    observed = {**around, (0.40625, 0.25): [1.5]}
    alone = tolerance_plan(2.0, noise=0.3).answer({(0.40625, 0.25): [1.5]})
    _, estimates = tolerance_answer(plan.to_json(), observed, cost)
    # The pairs around it say that it was lucky.
    assert estimates[0.40625, 0.25].mean < min(alone.mean, 1.5)
    observed[0.40625, 0.25].append(-0.9)
    assert plan.answer(observed) is None


def test_a_pair_that_may_pass_the_confidence_is_trained_again() -> None:
    plan = tolerance_plan(2.0, noise=0.3)
    seen_again = 0
    for seed in range(10):
        _, observed = noisy(seed, 0.3, trials=16)
        seen_again += any(len(values) > 1 for values in observed.values())
    assert seen_again >= 5
    assert plan.propose({(0.25, 0.25): [0.1]}, pending=[(0.25, 0.25)]).pair != (0.25, 0.25)


def test_a_failure_within_the_noise_excludes_nothing() -> None:
    def failed(noise: float | Noise) -> int:
        plan = tolerance_plan(noise=noise)
        return len(failed_pairs(add_values(NOTHING, {(0.25, 0.25): (-0.2,)}, cost), plan.rule))

    assert failed(0.3) == failed(ESTIMATED) == 0
    assert failed(0.05) == failed(0.0) == 1


@pytest.mark.parametrize("noise", [0.0, 0.3, ESTIMATED])
def test_workers_with_margins_that_are_not_monotone_come_to_an_end(noise: float | Noise) -> None:
    rng = random.Random(0)
    plan = tolerance_plan(2.0, noise=noise, confirmations=1, resolution=2e-3)
    observed: dict[Pair, tuple[float, ...]] = {}
    pending: list[Pair] = []
    for _ in range(400):
        pair = plan.propose(observed, pending).pair
        if pair is not None:
            assert pair not in pending
            pending.append(pair)
        elif not pending:
            return
        if pair is None or len(pending) == 5:
            done = pending.pop(rng.randrange(len(pending)))
            observed[done] = (*observed.get(done, ()), rng.uniform(-3, 2))
    pytest.fail("the search does not end")


# Whatever was observed


margins = st.lists(st.sampled_from([-300.0, -1.0, -0.1, 0.0, 0.1, 1.0, 300.0]), min_size=1)
few = st.dictionaries(st.sampled_from(PAIRS[::40]), margins, max_size=8)
noises = st.sampled_from([0.0, 0.3, ESTIMATED])


@settings(deadline=None, max_examples=20)
@given(observed=few, noise=noises, confirm=st.booleans(), dice=st.randoms(use_true_random=False))
def test_answer_and_proposal_do_not_depend_on_the_order_of_what_was_observed(
    observed: dict[Pair, list[float]], noise: float | Noise, confirm: bool, dice: random.Random
) -> None:
    items = [(pair, tuple(dice.sample(each, len(each)))) for pair, each in observed.items()]
    dice.shuffle(items)
    one, other = (tolerance_plan(noise=noise, confirmations=1) for _ in range(2))
    for seen in range(len(items)):  # one pair after the other
        other.answer(dict(items[:seen]))
    assert other.answer(dict(items)) == one.answer(observed)
    assert other.propose(dict(items), confirm=confirm) == one.propose(observed, confirm=confirm)


@settings(deadline=None, max_examples=20)
@given(observed=few, noise=noises)
def test_a_stored_plan_gives_the_same_answer(
    observed: dict[Pair, list[float]], noise: float | Noise
) -> None:
    plan = tolerance_plan(noise=noise, confidence=0.7)
    stored = json.loads(json.dumps(plan.to_json()))
    answer, estimates = tolerance_answer(stored, observed, cost)
    assert answer == plan.answer(observed)
    assert set(estimates) == set(observed)
    for pair, estimate in estimates.items():
        assert estimate.pair == pair
        assert estimate.trained == len(observed[pair])
        assert 0 <= estimate.probability <= 1
        assert estimate.error >= 0
    if answer is not None:
        assert answer.probability >= 0.7
        assert max(observed[answer.pair]) >= 0


@pytest.mark.parametrize("noise", [0.0, 0.3, ESTIMATED])
@pytest.mark.parametrize("same", [None, 0.0, 1.0, -1.0])
def test_thousands_of_observations_do_not_slow_the_belief_down(
    noise: float | Noise, same: float | None
) -> None:
    rng = random.Random(0)
    observed = {
        (rng.random() * 0.8, rng.random() * 0.8): [rng.uniform(-9, 2) if same is None else same]
        for _ in range(2000)
    }
    plan = tolerance_plan(noise=noise)
    assert len(plan.propose(observed)) == 2
    answer, estimates = tolerance_answer(plan.to_json(), observed, cost)
    assert answer == plan.answer(observed)
    assert len(estimates) == 2000
    assert all(0 <= estimate.probability <= 1 for estimate in estimates.values())
    if noise == 0 and same != -1.0:
        kept = [pair for pair, values in observed.items() if values[0] >= 0]
        assert answer.pair == min(kept, key=lambda pair: cost(*pair))
    if same == -1.0:
        assert answer is None


def test_the_belief_is_made_from_the_pairs_next_to_the_limit() -> None:

    rng = random.Random(0)
    observed = {pair: (rng.uniform(-9, 2),) for pair in PAIRS[::2]}
    plan = tolerance_plan(noise=0.3)
    seen = add_values(NOTHING, observed, cost)
    chosen = believe(seen, plan.rule).chosen
    nearest = sorted(observed, key=lambda pair: (abs(observed[pair][0]), pair))[:48]
    assert [tuple(seen.pairs[place]) for place in chosen] == nearest


@pytest.mark.parametrize("kind", [list, tuple])
def test_what_was_seen_before_does_not_matter(kind: type) -> None:
    rng = random.Random(0)
    plan, observed = tolerance_plan(noise=ESTIMATED), {}
    for step in range(150):
        pair, margin = rng.choice(PAIRS[::40]), rng.uniform(-3, 2)
        if step % 50 == 49:
            del observed[pair := rng.choice(list(observed))]  # as in another study
            observed[rng.choice(PAIRS[1::40])] = ()
        elif kind is list:
            observed[pair] = [*observed.get(pair, ()), margin]
        else:
            observed[pair] = (*observed.get(pair, ()), margin)
        if step % 50 == 25:
            observed[pair] = kind()
        if rng.random() < 0.3:
            fresh = tolerance_plan(noise=ESTIMATED)
            assert plan.answer(observed) == fresh.answer(observed)
            if step % 10 == 0:
                assert plan.propose(observed) == fresh.propose(observed)


def test_threads_with_different_studies_share_a_plan() -> None:
    plan = tolerance_plan(noise=ESTIMATED)
    studies = [noisy(seed, trials=7)[1] for seed in range(4)]
    expected = [tolerance_plan(noise=ESTIMATED).answer(observed) for observed in studies]

    def ask(number: int) -> bool:
        observed = studies[number % 4]
        prefix = dict(list(observed.items())[: 1 + number % len(observed)])
        plan.answer(prefix)
        return plan.answer(observed) == expected[number % 4]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(80)))


@pytest.mark.parametrize("noise", [0.0, 0.3, ESTIMATED])
def test_a_pickled_plan_goes_on(noise: float | Noise) -> None:
    path = [(first, second) for first, second in PAIRS if first == 2 * second]
    plan = ToleranceSearch(COLUMNS, linear, 2.0, noise=noise, confirmations=1, path=path)
    observed: dict[Pair, list[float]] = {}
    for _ in range(6):
        copy = pickle.loads(pickle.dumps(plan))
        proposal = plan.propose(observed)
        assert copy.propose(observed) == proposal
        assert copy.answer(observed) == plan.answer(observed)
        if proposal.pair is not None:
            observed.setdefault(proposal.pair, []).append(2.0 - loss(*proposal.pair))


def linear(first: float, second: float) -> float:
    return cost(first, second)


@pytest.mark.parametrize("noise", [0.0, 0.3, ESTIMATED])
def test_one_pair_alone(noise: float | Noise) -> None:
    plan = ToleranceSearch([(0.5, [0.5])], cost, 1.0, noise=noise, confirmations=1)
    assert plan.propose({}).pair == (0.5, 0.5)
    assert plan.propose({}, pending=[(0.5, 0.5)]).pair is None
    assert plan.propose({}, blocked=[(0.5, 0.5)]).pair is None
    observed = run(plan, lambda pair: 0.9)
    assert 2 <= len(observed[0.5, 0.5]) <= 3


@pytest.mark.parametrize("confirm", [False, True])
def test_an_answer_that_has_no_other_value_is_not_confirmed(confirm: bool) -> None:
    plan = ToleranceSearch([(0.5, [0.5])], cost, 1.0, noise=0.3, confirmations=1)
    observed = {(0.5, 0.5): [0.9]}
    assert plan.propose(observed, confirm=confirm).pair == (0.5, 0.5)
    assert plan.propose(observed, blocked=[(0.5, 0.5)], confirm=confirm).pair is None


def test_nothing_is_proposed_while_everything_runs() -> None:
    columns = [(i / 4, [0.0, 0.25, 0.5]) for i in range(3)]
    pairs = [(first, second) for first, seconds in columns for second in seconds]
    for noise in (0.0, 0.3, ESTIMATED):
        plan = ToleranceSearch(columns, cost, 2.0, noise=noise, confirmations=1)
        assert plan.propose({}, pairs).pair is None
        assert plan.propose({(0.25, 0.25): [1.0]}, pairs, confirm=True).pair is None


# Refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tolerance_plan(0.0), "`tolerance` must be above 0, but got 0.0"),
        (lambda: tolerance_plan(float("nan")), "`tolerance` must be above 0"),
        (lambda: tolerance_plan(1.0, noise=float("inf")), "`noise` must be"),
        (lambda: tolerance_plan(1.0, confidence=0.4), "`confidence` must be in"),
        (lambda: tolerance_plan(1.0, confidence=1.0), "`confidence` must be in"),
        (lambda: tolerance_plan(1.0, confirmations=-1), "`confirmations` must be"),
        (lambda: ToleranceSearch([], cost, 1.0), "at least one pair"),
        (lambda: ToleranceSearch([(0.1, [])], cost, 1.0), "at least one pair"),
        (lambda: ToleranceSearch([(0.1, [0.2])], cost, 1.0, path=[(0.1, 0.3)]), "`path` must be"),
        (lambda: ToleranceSearch([(0.1, [0.2]), (0.1, [0.2])], cost, 1.0), "must rise"),
        (lambda: ToleranceSearch([(0.1, [0.2, 0.1])], cost, 1.0), "must rise"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make: Callable[[], Plan], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_an_enqueued_pair_out_of_range_stops_no_search() -> None:
    plan = tolerance_plan()
    assert plan.propose({}, pending=[(0.99, 0.99), (-1.0, 0.5)]) == plan.propose({})
