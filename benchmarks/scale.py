"""Many workers on one study: what is the limit, and why?

Question: how many trials a second do 1 to 64 worker processes get through on PostgreSQL, directly
and through Optuna's gRPC proxy (``vit-ratio-opt serve``), how long do they wait for a pair, and
what does our sampler cost against Optuna's RandomSampler? And with 1,000 trials running at once?

Method: trials that cost nothing, so that all time is the search's. Each worker asks, suggests two
ratios and tells, for ``--seconds``, on a curve of 4,000 pairs of which none can be ruled out.
``workers`` are processes, each with a connection of its own. With ``--simulated`` 1,000 of them, 8
processes hold 125 running trials each and always tell the oldest: what 1,000 machines with a
trial each look like to the database, but for their connections. The processes share 2 cores with
PostgreSQL and the proxy, so the figures are for such a machine.

``ask_ms`` is from ``study.ask()`` to the second ratio; ``transactions`` are PostgreSQL's commits a
trial (``pg_stat_database``), ``round_trips`` SQL statements, or calls of the proxy, a trial and
process. ``ours_ms`` is the part of an ask inside our sampler's plan, and ``cpu`` of how many cores
were at work, the database's and the proxy's share included.

    OMP_NUM_THREADS=1 python benchmarks/scale.py
    python benchmarks/scale.py --show

Rows are written as they come: run it again and it goes on.

Output: ``benchmarks/results/scale.json``. Runtime on 2 cores: about 7 minutes.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import socket
import subprocess
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from importlib.metadata import version
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import optuna
import psutil
import sqlalchemy
import typer
from command_line import run_command
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from workers import postgresql, quiet

from vit_ratio_opt._compat import rdb_of
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.claims import CLAIM
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.utils.files import write_json

RESULTS = Path(__file__).parent / "results" / "scale.json"
CURVE = [(place / 4000, 1 - place / 4000) for place in range(4000)]
SPACE = {name: FloatDistribution(0, 1) for name in ("mhsa_ratio", "ffn_ratio")}
SIMULATING_PROCESSES = 8
_LONGEST_SECONDS = 180  # until all processes are there, or have ended


def main(
    workers: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(help="Processes; may be repeated.", show_default="1 4 16 64"),
    ] = None,
    simulated: Annotated[int, typer.Option(min=0, help="Trials running at once; 0: none.")] = 1000,
    seconds: Annotated[float, typer.Option(min=1)] = 10,
    output: Annotated[Path, typer.Option(help="JSON.")] = RESULTS,
    show: Annotated[bool, typer.Option("--show", help="Only print what was recorded.")] = False,
) -> None:
    """Measure every case."""
    if show:
        _show(json.loads(output.read_text()))
        return
    quiet()
    cases = [(count, 1) for count in workers or [1, 4, 16, 64]]
    if simulated:
        cases.append((SIMULATING_PROCESSES, simulated // SIMULATING_PROCESSES))
    head = {
        "machine": {"cpus": os.cpu_count(), "system": platform.system()},
        "versions": {n: version(n) for n in ("optuna", "sqlalchemy", "psycopg", "grpcio")},
        "seconds": seconds,
    }
    rows = json.loads(output.read_text())["rows"] if output.exists() else []
    keys = ("storage", "sampler", "workers", "running")
    done = {tuple(row[key] for key in keys) for row in rows}
    with postgresql(connections=300) as url, serving(url) as proxy:
        for processes, held in cases:
            for kind, address in (("postgresql", url), ("proxy", proxy)):
                for sampler in ("ours", "random"):
                    if (kind, sampler, processes, processes * held) in done:
                        continue
                    row = measure(url, address, sampler, processes, held, seconds)
                    rows.append({"storage": kind, "sampler": sampler, **row})
                    print(rows[-1], flush=True)
                    write_json({**head, "rows": rows}, output)
    _show({"rows": rows})


@contextlib.contextmanager
def serving(url: str) -> Iterator[str]:
    """The proxy, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "vit_ratio_opt", "serve", "--storage", url, "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        server.stdout.readline()
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def sampler_named(name: str) -> BaseSampler:
    if name == "random":
        return RandomSampler()
    plan = BudgetSearch(CURVE, noise=1e6, confirmations=0)
    return PlanSampler(SPACE, plan)


def measure(
    database: str, address: str, sampler: str, processes: int, held: int, seconds: float
) -> dict[str, Any]:
    """One case: a fresh study, all processes at once."""
    name = f"{sampler}-{processes}-{held}-{address[:4]}"
    study = optuna.create_study(
        study_name=name, storage=open_storage(database), direction="maximize"
    )
    study.add_trials(running_trial(place, processes) for place in range(processes * (held - 1)))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["optuna", "sqlalchemy", "psycopg", "grpc", "scale"])
    ready = context.Barrier(processes + 1, timeout=_LONGEST_SECONDS)
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    started = [
        context.Process(target=work, args=(address, name, sampler, index, seconds, ready, sender))
        for index, (_, sender) in enumerate(pipes)
    ]
    for process in started:
        process.start()
    ready.wait()
    commits, busy, since = commits_of(database), busy_seconds(), time.perf_counter()
    ready.wait()  # all have told their last trial
    elapsed = time.perf_counter() - since
    commits, busy = commits_of(database) - commits, busy_seconds() - busy
    answers = [receiver.recv() for receiver, _ in pipes]
    for process in started:
        process.join()
    asks = np.concatenate([answer["asks"] for answer in answers])
    plans = np.concatenate([answer["plans"] for answer in answers])
    trials = len(asks)
    row = {
        "workers": processes,
        "running": processes * held,
        "trials": trials,
        "trials_per_second": round(trials / elapsed, 1),
        "ask_ms": {str(q): round(1000 * float(np.percentile(asks, q)), 1) for q in (50, 95)},
        "ours_ms": round(1000 * float(plans.sum()) / trials, 1) if sampler == "ours" else 0.0,
        "transactions": round(commits / trials, 1),
        "round_trips": round(sum(answer["round_trips"] for answer in answers) / trials, 1),
        "cpu": round(busy / elapsed, 2),
    }
    optuna.delete_study(study_name=name, storage=open_storage(database))
    return row


def running_trial(place: int, processes: int) -> FrozenTrial:
    """One that was asked for before, with a pair of its own."""
    pair = CURVE[place]
    return optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params=dict(zip(SPACE, pair, strict=True)),
        distributions=dict(SPACE),
        user_attrs={"process": place % processes},
        system_attrs={CLAIM: list(pair)},
    )


def commits_of(url: str) -> int:
    """Of the whole server so far. Its statistics lag by up to a second."""
    time.sleep(1.1)
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        query = "SELECT sum(xact_commit) FROM pg_stat_database"
        return int(connection.execute(sqlalchemy.text(query)).scalar() or 0)


def busy_seconds() -> float:
    """Of all cores of the machine so far."""
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)


def work(
    address: str,
    name: str,
    sampler_name: str,
    index: int,
    seconds: float,
    ready: Barrier,
    answer: Any,
) -> None:
    """One process: of its running trials the oldest is told and replaced, for a while."""
    quiet()
    storage = open_storage(address)
    sampler = sampler_named(sampler_name)
    study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    plans: list[float] = []
    if isinstance(sampler, PlanSampler):
        propose = sampler._plan.propose

        def timed(*arguments: Any, **settings: Any) -> Any:
            begun = time.perf_counter()
            proposal = propose(*arguments, **settings)
            plans.append(time.perf_counter() - begun)
            return proposal

        sampler._plan.propose = timed  # type: ignore[method-assign]
    running = deque(
        Trial(study, trial._trial_id)
        for trial in study.get_trials(deepcopy=False)
        if trial.user_attrs["process"] == index
    )
    round_trips = counting(storage)
    ready.wait()
    plans.clear()
    before, end, asks = round_trips[0], time.perf_counter() + seconds, []
    while time.perf_counter() < end:
        begun = time.perf_counter()
        running.append(ask(study))
        asks.append(time.perf_counter() - begun)
        trial = running.popleft()
        study.tell(trial, -abs(trial.params["mhsa_ratio"] - 0.3))
    trips = round_trips[0] - before
    ready.wait()
    answer.send({"asks": asks, "plans": plans or [0.0], "round_trips": trips})


def ask(study: Study) -> Trial:
    trial = study.ask()
    for key, distribution in SPACE.items():
        trial.suggest_float(key, distribution.low, distribution.high)
    return trial


def counting(storage: Any) -> list[int]:
    """A number that grows with every SQL statement, or call of the proxy."""
    count = [0]

    def one_more(*_: Any) -> None:
        count[0] += 1

    database = rdb_of(storage)
    if database is not None:
        sqlalchemy.event.listen(database.engine, "before_cursor_execute", one_more)
        sqlalchemy.event.listen(database.engine, "commit", one_more)
        return count

    class Counting:
        def __init__(self, stub: Any) -> None:
            self.stub = stub

        def __getattr__(self, method: str) -> Any:
            one_more()
            return getattr(self.stub, method)

    storage._stub = storage._cache.grpc_client = Counting(storage._stub)
    return count


def _show(results: dict[str, Any]) -> None:
    """A line for each case, ours and random side by side."""
    print(
        "| storage | workers | running | trials/s | random | ask ms, median (95 %) | random "
        "| of which plan | round trips a trial | random |\n"
        f"|{' --- |' * 10}"
    )
    by_case: defaultdict[tuple[Any, ...], dict[str, Any]] = defaultdict(dict)
    for row in results["rows"]:
        by_case[row["running"], row["storage"]][row["sampler"]] = row
    for ours, other in ((case["ours"], case["random"]) for _, case in sorted(by_case.items())):
        asks = [f"{r['ask_ms']['50']} ({r['ask_ms']['95']})" for r in (ours, other)]
        cells = [
            *(ours["storage"], ours["workers"], ours["running"]),
            *(ours["trials_per_second"], other["trials_per_second"], *asks, ours["ours_ms"]),
            *(ours["round_trips"], other["round_trips"]),
        ]
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    run_command(main)
