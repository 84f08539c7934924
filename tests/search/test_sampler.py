import logging
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler
from optuna.study import Study
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)
from optuna.trial import FrozenTrial, Trial, TrialState
from spaces import whole_head_space

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.claims import is_surplus, value_of
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.search.plan import Proposal
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.space.curve import budget_curve, fixed_ratio_pair
from vit_ratio_opt.space.pairs import RatioPair

SPACE = {name: FloatDistribution(0, 1) for name in RatioPair._fields}
PAIRS = whole_head_space(hidden_dim=128, blocks=4)
CURVE = budget_curve(PAIRS, 0.65)
POSITIONS = {pair: position for position, pair in enumerate(CURVE)}
PEAK = 5
FAR_TOO_MANY = 3 * len(CURVE)  # a search that does not stop fails instead of hanging

Pair = tuple[float, float]


def suggest(trial: Trial, names: Sequence[str] = tuple(SPACE)) -> Pair:
    first, second = (trial.suggest_float(name, 0, 1) for name in names)
    return first, second


def accuracy(pair: Pair) -> float:
    return 0.9 - 0.01 * abs(POSITIONS[pair] - PEAK)


def objective(trial: Trial) -> float:
    return accuracy(suggest(trial))


def create(**settings: object) -> Study:
    settings = {
        "direction": "maximize",
        "sampler": PlanSampler(SPACE, BudgetSearch(CURVE)),
    } | settings
    return optuna.create_study(**settings)


def positions(study: Study, *states: TrialState) -> list[int | None]:
    """Where the study's trials are on the curve."""
    trials = study.get_trials(deepcopy=False, states=states or None)
    return [POSITIONS.get(tuple(trial.params.get(name) for name in SPACE)) for trial in trials]


def completed(study: Study) -> list[int | None]:
    return positions(study, TrialState.COMPLETE)


def uninterrupted() -> list[int | None]:
    study = create()
    study.optimize(objective, n_trials=FAR_TOO_MANY)
    return positions(study)


class TestOptunaKit(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: PlanSampler(SPACE, BudgetSearch(CURVE))


# The search


def test_optimize_stops_when_the_neighbours_of_the_best_pair_are_tried() -> None:
    study = create()
    study.optimize(objective, n_trials=FAR_TOO_MANY)
    assert {PEAK - 1, PEAK, PEAK + 1} <= set(positions(study))
    assert len(positions(study)) == len(set(positions(study))) < len(CURVE)
    assert study.sampler.answer(study) == CURVE[PEAK]
    assert "lies between its neighbours" in study.sampler.nothing_left(study)


def test_sampler_says_why_it_stops(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("optuna.vit_ratio_opt.search.sampler")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level("INFO", logger.name):
            create().optimize(objective, n_trials=FAR_TOO_MANY)
    finally:
        logger.removeHandler(caplog.handler)
    assert "Nothing is left to learn: the best of the" in caplog.text


@pytest.mark.parametrize("budget", [0.35, 0.5, 0.6, 0.65, 0.8, 0.95, 1])
def test_first_trial_is_at_least_the_fixed_ratio(budget: float) -> None:
    curve = budget_curve(PAIRS, budget)
    study = create(sampler=PlanSampler(SPACE, BudgetSearch(curve)))
    mhsa_ratio, ffn_ratio = suggest(study.ask())
    fixed = fixed_ratio_pair(PAIRS, budget)
    heads, neurons = PAIRS.removed(RatioPair(mhsa_ratio, ffn_ratio))
    fixed_heads, fixed_neurons = PAIRS.removed(fixed)
    assert heads == fixed_heads
    assert neurons <= fixed_neurons


def test_first_trial_is_where_the_curve_crosses_the_diagonal() -> None:
    curve = [(0.1, 0.8), (0.3, 0.6), (0.5, 0.4), (0.7, 0.2)]
    assert suggest(create(sampler=PlanSampler(SPACE, BudgetSearch(curve))).ask()) == (
        0.5,
        0.4,
    )
    never = [(0.1, 0.8), (0.3, 0.6)]
    assert suggest(create(sampler=PlanSampler(SPACE, BudgetSearch(never))).ask()) == (
        0.3,
        0.6,
    )


def test_minimize_is_maximize_of_the_negative() -> None:
    study = create(direction="minimize")
    study.optimize(lambda trial: -objective(trial), n_trials=FAR_TOO_MANY)
    assert positions(study) == uninterrupted()


def test_exhausted_study_repeats_the_best_pair() -> None:
    study = create()
    study.optimize(objective, n_trials=FAR_TOO_MANY)
    assert POSITIONS[suggest(study.ask())] == PEAK


def test_ask_and_tell_goes_on_past_the_end() -> None:
    study, until_done = create(), uninterrupted()
    for _ in range(len(until_done) + 2):
        trial = study.ask()
        study.tell(trial, objective(trial))
    assert positions(study) == [*until_done, PEAK, PEAK]


def test_other_names_are_searched_alike() -> None:
    names = ("heads_cut", "neurons_cut")
    space = {name: FloatDistribution(0, 1) for name in names}
    study = create(sampler=PlanSampler(space, BudgetSearch(CURVE)))
    study.optimize(lambda trial: accuracy(suggest(trial, names)), n_trials=FAR_TOO_MANY)
    tried = [POSITIONS[tuple(t.params[name] for name in names)] for t in study.trials]
    assert tried == uninterrupted()


# Noise, and the last trials


NOISE = Noise(0.01, is_known=False)
FIXED = CURVE[PEAK + 2]


def noisy_study(n_trials: int | None, **settings: object) -> Study:
    plan = BudgetSearch(CURVE, baseline=FIXED, noise=NOISE, dense=0.9)
    return create(sampler=PlanSampler(SPACE, plan, n_trials=n_trials), **settings)


def proposals(study: Study, count: int) -> list[str]:
    """Why each of the trials is tried; each is told its true value."""
    found = []
    for _ in range(count):
        found.append(study.sampler.next_proposal(study).why)
        trial = study.ask()
        study.tell(trial, objective(trial))
    return found


def test_first_trial_is_the_baseline() -> None:
    study = noisy_study(8)
    assert "fixed ratio" in study.sampler.next_proposal(study).why
    assert suggest(study.ask()) == FIXED


@pytest.mark.parametrize(
    ("n_trials", "last"), [(None, 0), (7, 0), (8, 1), (10, 1), (15, 1), (16, 2), (24, 3)]
)
def test_an_eighth_of_the_trials_is_kept_to_confirm(
    monkeypatch: pytest.MonkeyPatch, n_trials: int | None, last: int
) -> None:
    asked: list[bool] = []
    propose = BudgetSearch.propose

    def noted(plan: BudgetSearch, *known: object, confirm: bool = False) -> Proposal:
        asked.append(confirm)
        return propose(plan, *known, confirm=confirm)

    study = noisy_study(n_trials)
    monkeypatch.setattr(BudgetSearch, "propose", noted)
    confirmed = []
    for number in range(n_trials or 12):
        study.add_trial(
            optuna.create_trial(
                params=CURVE[number % len(CURVE)]._asdict(), distributions=SPACE, value=0.5
            )
        )
        study.sampler.next_proposal(study)
        confirmed.append(asked[-1])
    # The proposal after n trials is that of trial n + 1; the last one is beyond the end.
    assert confirmed[:-1].count(True) == last
    assert confirmed == sorted(confirmed)


def test_last_trial_trains_the_answer_again() -> None:
    study = noisy_study(8)
    for position, value in [(PEAK + 2, 0.5), (0, 0.5), (PEAK, 0.9), (PEAK + 5, 0.5)]:
        study.add_trial(
            optuna.create_trial(params=CURVE[position]._asdict(), distributions=SPACE, value=value)
        )
    assert study.sampler.answer(study) == CURVE[PEAK]
    assert "confirms the answer" not in study.sampler.next_proposal(study).why
    # Three more are running, which count: the eighth trial is the last.
    running = [suggest(study.ask()) for _ in range(3)]
    assert CURVE[PEAK] not in running
    assert "confirms the answer" in study.sampler.next_proposal(study).why
    assert suggest(study.ask()) == CURVE[PEAK]


def test_winner_is_the_pair_of_the_plan_s_answer() -> None:
    study = noisy_study(None)
    assert study.sampler.answer(study) is None
    proposals(study, 6)
    observed = {
        CURVE[position]: [accuracy(CURVE[position])] * completed(study).count(position)
        for position in completed(study)
    }
    estimate = study.sampler.plan.answer(observed)
    assert estimate is not None
    assert study.sampler.answer(study) == estimate.pair


@pytest.mark.parametrize("n_trials", [None, 8])
def test_a_pair_that_was_not_trained_is_not_tried_again(n_trials: int | None) -> None:
    def left_out(trial: Trial) -> float:
        trial.set_user_attr("chosen", {"lr": 1e-3, "is_trained": False})
        return objective(trial)

    plan = BudgetSearch(CURVE, baseline=FIXED, noise=NOISE, dense=0.9, confirmations=2)
    repeated = {}
    for name, run in {"trained": objective, "left out": left_out}.items():
        study = create(sampler=PlanSampler(SPACE, plan, n_trials=n_trials))
        study.optimize(run, n_trials=n_trials or FAR_TOO_MANY)
        found = completed(study)
        repeated[name] = len(found) - len(set(found))
    assert repeated["trained"] > 0
    assert repeated["left out"] == 0  # equal values would have made the noise look small


def test_a_pickled_sampler_keeps_its_number_of_trials() -> None:
    study = noisy_study(8)
    copy = pickle.loads(pickle.dumps(study.sampler))
    assert copy.n_trials == 8
    assert copy.next_proposal(study) == study.sampler.next_proposal(study)


def frozen(**settings: object) -> FrozenTrial:
    return optuna.create_trial(params=CURVE[0]._asdict(), distributions=SPACE, **settings)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_value_of_a_trial(sign: float) -> None:
    complete = frozen(value=0.7)
    assert value_of(complete, TrialState.COMPLETE, [0.7], None, sign) == sign * 0.7
    pruned = frozen(state=TrialState.PRUNED, intermediate_values={0: 0.2, 3: 0.4})
    assert value_of(pruned, TrialState.PRUNED, None, None, sign) == sign * 0.4
    nan = frozen(state=TrialState.PRUNED, intermediate_values={0: 0.2, 3: float("nan")})
    assert value_of(nan, TrialState.PRUNED, None, None, sign) is None
    at_once = frozen(state=TrialState.PRUNED)
    assert value_of(at_once, TrialState.PRUNED, None, None, sign) is None


def test_value_of_a_trial_with_a_constraint_is_the_margin_whatever_the_direction() -> None:
    for trial in (frozen(value=0.7), frozen(state=TrialState.PRUNED)):
        assert value_of(trial, trial.state, trial.values, "drop", 1.0) is None
        trial.set_constraint("drop", 0.3)
        for sign in (1.0, -1.0):
            assert value_of(trial, trial.state, trial.values, "drop", sign) == -0.3


def test_surplus_is_a_trial_that_had_nothing_left_to_learn() -> None:
    study = create()
    study.optimize(objective, n_trials=FAR_TOO_MANY)
    trial = study.ask()
    suggest(trial)
    assert is_surplus(study.get_trials(deepcopy=False)[trial.number])
    assert not any(map(is_surplus, study.get_trials(deepcopy=False)[: trial.number]))


# State is in the storage


def test_resumed_study_gives_same_trials(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    for _ in uninterrupted():  # a new connection and a new sampler at every trial boundary
        study = create(storage=storage, study_name="s", load_if_exists=True)
        assert not study.sampler.nothing_left(study)
        study.optimize(objective, n_trials=1)
    assert positions(study) == uninterrupted()
    assert study.sampler.nothing_left(study)


def test_pickled_sampler_goes_on() -> None:
    study = create()
    study.optimize(objective, n_trials=4)
    study.sampler = pickle.loads(pickle.dumps(study.sampler))
    study.optimize(objective, n_trials=FAR_TOO_MANY)
    assert positions(study) == uninterrupted()


# Trials that do not end well


@pytest.mark.parametrize("failing", range(6))
def test_failed_trial_does_not_move_bracket(failing: int) -> None:
    def fails_once(trial: Trial) -> float:
        value = objective(trial)
        if trial.number == failing:
            raise RuntimeError("out of memory")
        return value

    study = create()
    study.optimize(fails_once, n_trials=FAR_TOO_MANY, catch=RuntimeError)
    assert completed(study) == uninterrupted()
    assert positions(study)[failing] == positions(study)[failing + 1]


def test_nan_is_a_failure() -> None:
    study = create()
    study.optimize(
        lambda trial: objective(trial) if trial.number else float("nan"), n_trials=FAR_TOO_MANY
    )
    assert study.trials[0].state == TrialState.FAIL
    assert completed(study) == uninterrupted()


def test_pair_that_failed_three_times_is_skipped() -> None:
    def never_at_the_start(trial: Trial) -> float:
        value = objective(trial)
        return float("nan") if POSITIONS[suggest(trial)] == start else value

    start = uninterrupted()[0]
    study = create()
    study.optimize(never_at_the_start, n_trials=FAR_TOO_MANY)
    assert positions(study, TrialState.FAIL) == [start] * 3
    assert start not in completed(study)
    assert study.sampler.answer(study) == CURVE[PEAK]


def test_optimize_stops_when_the_last_pair_keeps_failing() -> None:
    last = uninterrupted()[-1]
    study = create()
    study.optimize(
        lambda trial: objective(trial) if POSITIONS[suggest(trial)] != last else float("nan"),
        n_trials=FAR_TOO_MANY,
    )
    assert positions(study) == [*uninterrupted()[:-1], last, last, last]


def test_optimize_stops_when_every_pair_keeps_failing() -> None:
    study = create(sampler=PlanSampler(SPACE, BudgetSearch(CURVE[:2])))
    study.optimize(lambda trial: 0 * objective(trial) + float("nan"), n_trials=FAR_TOO_MANY)
    assert sorted(positions(study)) == [0, 0, 0, 1, 1, 1]


def test_trial_that_failed_before_its_second_ratio_counts_as_a_failure() -> None:
    def fails_early(trial: Trial) -> float:
        trial.suggest_float("mhsa_ratio", 0, 1)
        raise RuntimeError("the process died")

    study = create()
    study.optimize(fails_early, n_trials=3, catch=RuntimeError)
    start = uninterrupted()[0]
    assert [trial.params["mhsa_ratio"] for trial in study.trials] == [CURVE[start][0]] * 3
    assert POSITIONS[suggest(study.ask())] != start


def test_running_pairs_are_not_proposed_again() -> None:
    study = create()
    asked = [POSITIONS[suggest(study.ask())] for _ in CURVE]
    assert sorted(asked) == list(range(len(CURVE)))


def test_running_trial_with_one_of_its_ratios_keeps_its_pair() -> None:
    study = create()
    mhsa_ratio = study.ask().suggest_float("mhsa_ratio", 0, 1)  # and on its way to the second
    assert suggest(study.ask())[0] != mhsa_ratio


def test_optimize_stops_while_another_process_has_the_last_pair() -> None:
    study = create()
    suggest(study.ask())  # runs on, or its process died
    study.optimize(objective, n_trials=FAR_TOO_MANY)
    assert len(positions(study)) == len(set(positions(study))) < FAR_TOO_MANY
    assert study.sampler.answer(study) == CURVE[PEAK]


@pytest.mark.parametrize("reports", [{0: 0.5, 1: 0.95}, {1: 0.95, 0: 0.5}, {0: 0.5, 1: 0.1}])
@pytest.mark.parametrize("stored", [False, True])
def test_pruned_trial_counts_with_its_last_step(
    tmp_path: Path, reports: dict[int, float], stored: bool
) -> None:
    def tell_second(study: Study, **outcome: object) -> int:
        # The third proposal depends on whether the second trial beat the first.
        first = study.ask()
        study.tell(first, 0 * objective(first) + 0.7)
        second = study.ask()
        suggest(second)
        if "state" in outcome:
            for step, value in reports.items():
                second.report(value, step)
        study.tell(second, **outcome)
        return POSITIONS[suggest(study.ask())]

    storage = f"sqlite:///{tmp_path / 'study.db'}" if stored else None
    as_pruned = tell_second(create(storage=storage), state=TrialState.PRUNED)
    assert as_pruned == tell_second(create(), values=reports[1])
    assert as_pruned != tell_second(create(), values=0.8 if reports[1] < 0.7 else 0.6)


@pytest.mark.parametrize("report", [None, float("nan")])
def test_trial_pruned_without_a_value_is_not_repeated(report: float | None) -> None:
    def pruned_at_once(trial: Trial) -> float:
        suggest(trial)
        if report is not None:
            trial.report(report, 0)
        raise optuna.TrialPruned

    study = create()
    study.optimize(pruned_at_once, n_trials=FAR_TOO_MANY)
    assert sorted(positions(study)) == list(range(len(CURVE)))


# Trials that others brought in


def test_enqueued_pair_off_the_curve_is_ignored_by_the_plan() -> None:
    study = create()
    study.enqueue_trial({"mhsa_ratio": 0.123, "ffn_ratio": 0.1})
    study.optimize(
        lambda trial: objective(trial) if suggest(trial)[0] != 0.123 else 1.0,
        n_trials=FAR_TOO_MANY,
    )
    assert positions(study) == [None, *uninterrupted()]


def test_enqueued_pair_on_the_curve_is_not_repeated() -> None:
    study = create()
    study.enqueue_trial(CURVE[PEAK]._asdict())
    assert POSITIONS[suggest(study.ask())] == PEAK
    study.optimize(objective, n_trials=FAR_TOO_MANY)
    assert positions(study).count(PEAK) == 1


def test_repeated_pair_counts_with_its_mean() -> None:
    def third_proposal(*values_at_start: float) -> int:
        study = create()
        start, second = uninterrupted()[:2]
        for position, value in [*((start, v) for v in values_at_start), (second, 0.5)]:
            params = CURVE[position]._asdict()
            study.add_trial(optuna.create_trial(params=params, distributions=SPACE, value=value))
        return POSITIONS[suggest(study.ask())]

    assert third_proposal(0.9, 0.3) == third_proposal(0.6) != third_proposal(0.4)


# Other parameters


def learning_rates(**settings: object) -> list[float]:
    def with_lr(trial: Trial) -> float:
        trial.suggest_float("lr", 1e-5, 1e-1, log=True)
        return objective(trial)

    study = create(sampler=PlanSampler(SPACE, BudgetSearch(CURVE), **settings))
    study.optimize(with_lr, n_trials=FAR_TOO_MANY)
    assert positions(study) == uninterrupted()  # whatever the learning rate
    return [trial.params["lr"] for trial in study.trials]


def test_other_parameters_are_seeded() -> None:
    first = learning_rates(seed=7)
    assert len(set(first)) == len(uninterrupted())
    assert learning_rates(seed=7) == first
    assert learning_rates(seed=8) != first


def test_other_parameters_come_from_the_independent_sampler() -> None:
    assert learning_rates(independent_sampler=RandomSampler(seed=7)) == learning_rates(seed=7)


def test_independent_sampler_sees_every_trial() -> None:
    calls = []

    class Recorder(RandomSampler):
        def reseed_rng(self) -> None:
            calls.append("reseed")

        def before_trial(self, study: Study, trial: FrozenTrial) -> None:
            calls.append(("before", trial.number))

        def after_trial(
            self, study: Study, trial: FrozenTrial, state: TrialState, values: object
        ) -> None:
            calls.append(("after", trial.number, state))

    study = create(sampler=PlanSampler(SPACE, BudgetSearch(CURVE), independent_sampler=Recorder()))
    study.optimize(objective, n_trials=1)
    study.sampler.reseed_rng()
    assert calls == [("before", 0), ("after", 0, TrialState.COMPLETE), "reseed"]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("axis", [0, 1])
def test_with_one_ratio_fixed_the_other_is_what_just_meets_the_budget(axis: int) -> None:
    fixed = CURVE[PEAK][axis] + 0.001
    sampler = PartialFixedSampler(
        {list(SPACE)[axis]: fixed}, PlanSampler(SPACE, BudgetSearch(CURVE))
    )
    study = create(sampler=sampler)
    pair = suggest(study.ask())
    assert pair[axis] == fixed
    assert pair[1 - axis] == CURVE[PEAK][1 - axis]
    assert PAIRS.pruned_macs(RatioPair(*pair)) <= PAIRS.pruned_macs(CURVE[PEAK])


# Refusals


@pytest.mark.parametrize(
    ("space", "curve", "message"),
    [
        ({"x": FloatDistribution(0, 1)}, CURVE, r"two parameters of a pair, but has \['x'\]"),
        (SPACE | {"x": FloatDistribution(0, 1)}, CURVE, "two parameters"),
        (SPACE, [], "at least one pair"),
        (SPACE, [(0.1, 1.5), (0.2, 0.5)], r"`ffn_ratio` must be in \[0.*, 1.*\].* 1\.5"),
        (SPACE, [(-0.1, 0.5)], r"`mhsa_ratio` must be in .* -0\.1"),
        (SPACE, [(float("nan"), 0.5)], "must be numbers"),
        (SPACE, [(0.2, 0.5), (0.1, 0.6)], "must rise"),
        (SPACE, [(0.2, 0.5), (0.2, 0.4)], "must rise"),
        (SPACE, [(0.1, 0.5), (0.2, 0.6)], "second must not"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(space: dict, curve: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PlanSampler(space, BudgetSearch(curve))
