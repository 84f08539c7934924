"""Studies in Optuna's own style: a sampler over a space and a limit, and the user's objective."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)
from optuna.trial import FrozenTrial, Trial, TrialState
from spaces import whole_head_space

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.search.binary_search import BinarySearchSampler
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.claims import refuse_surplus
from vit_ratio_opt.search.limits import Budget, Frontier, Limit, Tolerance, directions_of
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.search.plan import Plan
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.search.space import ratio_distributions
from vit_ratio_opt.space.structural import StructuralSpace

SPACE = whole_head_space(hidden_dim=64, blocks=3)
BUDGET, TOLERANCE = Budget(0.65), Tolerance(2.0)
FRONTIER = Frontier(levels=4)
LIMITS = [BUDGET, TOLERANCE, FRONTIER]
DENSE = 90.0


def lost(first: float, second: float) -> float:
    return 4 * first**2 + 5 * second**3 + first * second


def objective(limit: Limit) -> Callable[[Trial], float | tuple[float, float]]:
    def run(trial: Trial) -> float | tuple[float, float]:
        trial.suggest_float("lr", 1e-5, 1e-3, log=True)
        first, second = (
            trial.suggest_float(name, d.low, d.high)
            for name, d in ratio_distributions(SPACE).items()
        )
        refuse_surplus(trial)
        trial.set_user_attr("macs_ratio", SPACE.macs_ratio(first, second))
        drop = lost(first, second)
        if directions_of(limit) == ["maximize"]:
            return DENSE - drop
        if isinstance(limit, Frontier):
            return DENSE - drop, SPACE.cost_ratio(first, second)
        trial.set_constraint("accuracy_drop", drop - limit.points)
        return SPACE.cost_ratio(first, second)

    return run


def create(limit: Limit, storage: object = None, **options: object) -> Study:
    options = {"dense": DENSE, **options} if isinstance(limit, Frontier) else options
    sampler = BinarySearchSampler(SPACE, limit, seed=0, **options)
    return optuna.create_study(
        directions=directions_of(limit),
        sampler=sampler,
        storage=storage,
        study_name="s",
        load_if_exists=True,
    )


def pair_of(trial: FrozenTrial) -> tuple[float, ...]:
    return tuple(trial.params[name] for name in ratio_distributions(SPACE))


def trained(study: Study) -> list[tuple[float, ...]]:
    trials = study.get_trials(deepcopy=False)
    return [pair_of(trial) for trial in trials if trial.user_attrs]


class TestOptunaKitOfASpace(
    BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: BinarySearchSampler(SPACE, BUDGET)


@pytest.mark.parametrize("limit", LIMITS)
def test_search_is_that_of_the_limits_plan(limit: Limit) -> None:
    ours = create(limit)
    guess = None if isinstance(limit, Tolerance) else Noise(0.5, is_known=False)
    dense = DENSE if isinstance(limit, Frontier) else None
    plan = limit.plan(SPACE, confirmations=1, noise=guess, dense=dense)
    theirs = optuna.create_study(
        directions=directions_of(limit),
        sampler=PlanSampler(ratio_distributions(SPACE), plan, seed=0),
    )
    for study in (ours, theirs):
        study.optimize(objective(limit), n_trials=12)
    assert [trial.params for trial in ours.trials] == [trial.params for trial in theirs.trials]


@pytest.mark.parametrize("limit", LIMITS)
def test_study_says_what_a_reader_needs_without_settings(limit: Limit) -> None:
    study = create(limit)
    study.optimize(objective(limit), n_trials=12)
    attributes = study.user_attrs
    assert attributes["limit"] == {**limit.to_json(), "cost": "macs", "macs": SPACE.macs}
    assert attributes["plan"] == study.sampler.plan.to_json()
    assert attributes["versions"]["optuna"] == optuna.__version__
    assert attributes["saved"].keys() == ratio_distributions(SPACE).keys()
    answer = answer_of(study)
    assert answer is not None
    assert answer.found is not None
    assert answer.found.pair == study.sampler.answer(study)


def test_a_frontier_has_answers_for_any_limit_and_needs_the_dense_models_value() -> None:
    study = create(FRONTIER)
    study.optimize(objective(FRONTIER), n_trials=12)
    answer = answer_of(study)
    assert answer is not None
    assert answer.dense_accuracy == DENSE  # as the sampler knows it
    within, keeps = answer.at(budget=0.5).found, answer.at(tolerance=4.0).found
    assert within is not None
    assert keeps is not None
    assert within.cost_ratio <= 0.5
    assert lost(*within.pair) < min(
        lost(*pair) for pair in trained(study) if SPACE.cost_ratio(*pair) < within.cost_ratio
    )
    assert lost(*keeps.pair) < 4.0
    for dense in (None, float("nan")):
        with pytest.raises(InputError, match=r"give its metric as `dense`, a number"):
            create(FRONTIER, dense=dense)


def test_a_frontier_in_fractions_has_half_a_point_of_noise() -> None:
    assert create(FRONTIER, dense=0.9).sampler.plan.to_json()["noise"] == 0.005
    assert create(FRONTIER).sampler.plan.to_json()["noise"] == 0.5


def test_a_frontier_needs_two_objectives() -> None:
    sampler = BinarySearchSampler(SPACE, FRONTIER, dense=DENSE)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    with pytest.raises(ValueError, match=r"with `directions=\['maximize', 'minimize'\]`\.$"):
        study.optimize(objective(FRONTIER), n_trials=1)
    assert study.user_attrs == {}


def test_answer_with_a_tolerance_keeps_the_one_of_the_study() -> None:
    study = create(TOLERANCE)
    study.set_user_attr("dense", {"val_accuracy": DENSE})
    study.optimize(objective(TOLERANCE), n_trials=12)
    answer = answer_of(study)
    assert answer is not None
    assert answer.found is not None
    drop = lost(*answer.found.pair)
    assert drop <= TOLERANCE.points
    assert answer.found.own_accuracies == pytest.approx([DENSE - drop] * answer.found.trained)


@pytest.mark.parametrize("limit", LIMITS)
def test_resumed_study_of_a_space_gives_the_same_trials(limit: Limit, tmp_path: Path) -> None:
    whole = create(limit, n_trials=8)
    whole.optimize(objective(limit), n_trials=8)
    storage = f"sqlite:///{tmp_path / 's.db'}"
    for _ in whole.trials:  # a new sampler for each trial
        study = create(limit, storage, n_trials=8)
        study.optimize(objective(limit), n_trials=1)
    assert trained(study) == trained(whole)


def test_studies_write_their_attributes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    study = create(BUDGET)
    written = []
    monkeypatch.setattr(study, "set_user_attr", lambda key, value: written.append(key))
    study.ask().suggest_float("mhsa_ratio", 0, SPACE.max_pair.mhsa_ratio)
    assert written == ["limit", "versions", "saved", "plan"]
    monkeypatch.undo()
    study.optimize(objective(BUDGET), n_trials=2)
    monkeypatch.setattr(study, "set_user_attr", lambda key, value: written.append(key))
    create(BUDGET, study._storage).optimize(objective(BUDGET), n_trials=2)
    assert len(written) == 4


def test_plan_that_a_study_has_is_left_alone() -> None:
    study = create(BUDGET)
    study.set_user_attr("plan", {"curve": []})
    study.optimize(objective(BUDGET), n_trials=1)
    assert study.user_attrs == {"plan": {"curve": []}}


def test_a_study_that_was_deleted_and_made_again_is_described_again() -> None:
    storage = optuna.storages.InMemoryStorage()
    sampler = BinarySearchSampler(SPACE, BUDGET)
    for _ in range(2):
        study = optuna.create_study(
            direction="maximize", sampler=sampler, storage=storage, study_name="s"
        )
        study.optimize(objective(BUDGET), n_trials=2)
        assert "plan" in study.user_attrs
        optuna.delete_study(study_name="s", storage=storage)


def test_another_limit_of_a_study_is_refused_in_one_sentence() -> None:
    study = create(BUDGET)
    study.optimize(objective(BUDGET), n_trials=2)
    before = study.user_attrs
    other = create(Budget(0.5), study._storage)
    with pytest.raises(InputError, match=r"has the limit .*0\.65.* use another study name"):
        other.optimize(objective(Budget(0.5)), n_trials=1)
    assert other.user_attrs == before


def test_a_study_of_the_wrong_direction_is_refused() -> None:
    study = optuna.create_study(
        sampler=BinarySearchSampler(SPACE, TOLERANCE), direction="maximize"
    )
    with pytest.raises(InputError, match="create it with `direction='minimize'`"):
        study.optimize(objective(TOLERANCE), n_trials=1)
    assert study.user_attrs == {}


def work(url: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    create(BUDGET, url).optimize(objective(BUDGET), n_trials=3)


def test_processes_may_begin_a_study_at_once(
    start: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    create(BUDGET, url)
    workers = [start(work, url) for _ in range(2)]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    study = create(BUDGET, url)
    assert len(trained(study)) == len(set(trained(study)))
    assert study.user_attrs["plan"] == study.sampler.plan.to_json()


def test_threads_may_begin_a_study_at_once() -> None:
    study = create(BUDGET)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: study.optimize(objective(BUDGET), n_trials=1), range(4)))
    assert len(set(trained(study))) == 4
    assert study.user_attrs["plan"] == study.sampler.plan.to_json()


def test_a_limit_of_ones_own_makes_the_plan() -> None:
    class Every:
        """All pairs of the curve are equally good."""

        direction = "maximize"

        def plan(self, space: StructuralSpace, **options: object) -> Plan:
            return BudgetSearch([(0.0, space.ffn_ratios[1]), (space.mhsa_ratios[1], 0.0)])

    study = create(Every())
    study.optimize(objective(Every()), n_trials=10)
    assert len(set(trained(study))) == 2
    assert study.user_attrs["limit"]["other"] == "Every"


def test_a_ready_plan_is_taken_as_it_is() -> None:
    plan = BUDGET.plan(SPACE, noise=0.3)
    sampler = BinarySearchSampler(SPACE, plan, noise=5.0)
    assert sampler.plan is plan
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective(BUDGET), n_trials=1)
    assert study.user_attrs["plan"] == plan.to_json()


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copied_sampler_of_a_space_goes_on(copy_of: Callable[[object], BaseSampler]) -> None:
    study, alone = create(TOLERANCE), create(TOLERANCE)
    alone.optimize(objective(TOLERANCE), n_trials=6)
    study.optimize(objective(TOLERANCE), n_trials=3)
    study.sampler = copy_of(study.sampler)
    study.optimize(objective(TOLERANCE), n_trials=3)
    assert trained(study) == trained(alone)


def test_pair_over_the_budget_that_was_enqueued_is_not_of_the_search() -> None:
    study = create(BUDGET)
    study.enqueue_trial({"mhsa_ratio": 0.0, "ffn_ratio": 0.0})
    study.optimize(objective(BUDGET), n_trials=4)
    assert study.trials[0].state == TrialState.COMPLETE
    assert study.sampler.answer(study) != (0.0, 0.0)
