"""Times ``ask`` in long studies.

Question: how long does a worker wait for its next pair when the study has up to 10,000 finished
trials, and how much of that is ours?

Method: a study in a SQLite file is filled with finished trials of random pairs (in tolerance mode
a third of them within the tolerance) and 1, 4 or 16 running trials with pairs of their own, as
other workers' would be. Then it is asked ``--asks`` times in one process: ``study.ask()`` and the
first ``suggest_float``, which is where Optuna 5 calls the sampler; each trial asked for is told
at once, so that the next ask finds one more that is finished. ``ours`` is the part inside the
sampler's ``sample_relative`` (``ours_cpu``: its CPU time, which other programs on the machine and
the disk disturb less), and ``random`` the whole with Optuna's RandomSampler on the same
study, alternately. The first ask of a process, which reads all trials, is reported as ``first``.

    OMP_NUM_THREADS=1 python benchmarks/ask_latency.py

Output: ``benchmarks/results/ask_latency.json``, milliseconds. Runtime on 2 cores: about 3 minutes.
"""

from __future__ import annotations

import os
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import optuna
import sqlalchemy
import typer
from command_line import run_command
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.search.plan import Pair, Plan
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.search.space import ratio_distributions
from vit_ratio_opt.search.tolerance import ToleranceSearch
from vit_ratio_opt.space.curve import budget_curve, pair_columns
from vit_ratio_opt.space.shape import BlockShape, ViTShape
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.utils.files import write_json

RESULTS = Path(__file__).parent / "results" / "ask_latency.json"
# DeiT-S for 224 pixels: 72 heads, 18,432 neurons.
SPACE = StructuralSpace(
    ViTShape(
        patches=196,
        prefix_tokens=1,
        patch_dim=768,
        embed_dim=384,
        num_classes=1000,
        blocks=(BlockShape(num_heads=6, head_dim=64, hidden_dim=1536),) * 12,
        fixed_params=0,
    ),
    unit="head",
)
SUGGESTED: dict[str, Any] = ratio_distributions(SPACE)
BUDGET, TOLERANCE = 0.6, 2.0
FINISHED, RUNNING = (10, 100, 1_000, 10_000), (1, 4, 16)


def main(
    asks: Annotated[int, typer.Option(min=1, help="Timed asks of each case.")] = 100,
    output: Annotated[Path, typer.Option(help="JSON.")] = RESULTS,
) -> None:
    """Time every case."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    rows = []
    for mode in ("budget", "tolerance"):
        with tempfile.TemporaryDirectory() as folder:
            full = Path(folder) / "full.db"
            fill = filler(full, mode)
            for finished in FINISHED:
                fill(finished)
                for running in RUNNING:
                    copy = shutil.copy(full, Path(folder) / "copy.db")
                    row = measure(f"sqlite:///{copy}", mode, finished, running, asks)
                    rows.append(row)
                    print(row, flush=True)
        write_json(
            {
                "machine": {
                    "cpus": os.cpu_count(),
                    "system": platform.system(),
                    "load": os.getloadavg(),
                },
                "versions": {name: version(name) for name in ("optuna", "sqlalchemy", "numpy")},
                "asks": asks,
                "rows": rows,
            },
            output,
        )


def filler(file: Path, mode: str) -> Callable[[int], None]:
    """Fills a study up to so many finished trials; without waiting for the disk."""
    storage = RDBStorage(f"sqlite:///{file}")
    sqlalchemy.event.listen(
        storage.engine, "connect", lambda dbapi, _: dbapi.execute("PRAGMA synchronous = OFF")
    )
    storage.engine.dispose()
    direction: Any = "maximize" if mode == "budget" else "minimize"
    study = optuna.create_study(storage=storage, study_name="s", direction=direction)
    dice = random.Random(0)
    added = 0

    def fill(finished: int) -> None:
        nonlocal added
        study.add_trials([finished_trial(mode, dice) for _ in range(finished - added)])
        added = finished

    return fill


class Timed(PlanSampler):
    """Notes how long each pair took."""

    seconds: list[float]
    cpu_seconds: list[float]

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next pair."""
        started = time.perf_counter(), time.process_time()
        params = super().sample_relative(study, trial, search_space)
        self.seconds.append(time.perf_counter() - started[0])
        self.cpu_seconds.append(time.process_time() - started[1])
        return params


def measure(url: str, mode: str, finished: int, running: int, asks: int) -> dict[str, Any]:
    """One case."""
    dice = random.Random(finished)
    study = optuna.load_study(storage=RDBStorage(url), study_name="s")
    for _ in range(running):
        study.add_trial(
            optuna.create_trial(
                state=TrialState.RUNNING,
                params=dict(zip(SUGGESTED, pair(mode, dice), strict=True)),
                distributions=SUGGESTED,
            )
        )
    ours = Timed(SUGGESTED, plan(mode))
    ours.seconds, ours.cpu_seconds = [], []
    samplers: dict[str, BaseSampler] = {"ask": ours, "random": RandomSampler(seed=0)}
    times: dict[str, list[float]] = {name: [] for name in samplers}
    # A worker's own connection and cache.
    storage = RDBStorage(url)
    studies = {
        name: optuna.load_study(study_name="s", storage=storage, sampler=sampler)
        for name, sampler in samplers.items()
    }
    for _ in range(asks + 1):
        for name, study in studies.items():
            started = time.perf_counter()
            trial = study.ask()
            for key, dist in SUGGESTED.items():
                trial.suggest_float(key, dist.low, dist.high)
            times[name].append(time.perf_counter() - started)
            # Straight into the storage: telling is not what is timed.
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    measured = {**times, "ours": ours.seconds, "ours_cpu": ours.cpu_seconds}
    return {
        "mode": mode,
        "finished": finished,
        "running": running,
        "first": round(1000 * times["ask"][0], 2),
        **{
            f"{name}_p{q}": round(1000 * float(np.percentile(values[1:], q)), 2)
            for name, values in measured.items()
            for q in (50, 95)
        },
    }


def plan(mode: str) -> Plan:
    noise = Noise(0.3, is_known=False)
    if mode == "budget":
        return BudgetSearch(budget_curve(SPACE, BUDGET), noise=noise, confirmations=1)
    return ToleranceSearch(
        pair_columns(SPACE),
        SPACE.macs_ratio,
        TOLERANCE,
        noise=noise,
        confirmations=1,
        resolution=0.0,
    )


def pair(mode: str, dice: random.Random) -> Pair:
    if mode == "budget":
        return dice.choice(budget_curve(SPACE, BUDGET))
    heads, neurons = SPACE.removed(SPACE.max_pair)
    return dice.randint(0, heads) / SPACE.mhsa_units, dice.randint(0, neurons) / SPACE.neurons


def finished_trial(mode: str, dice: random.Random) -> FrozenTrial:
    chosen = pair(mode, dice)
    trial = optuna.create_trial(
        value=80 - 10 * sum(chosen) if mode == "budget" else SPACE.macs_ratio(*chosen),
        params=dict(zip(SUGGESTED, chosen, strict=True)),
        distributions=SUGGESTED,
    )
    if mode == "tolerance":
        loss = 6 * (chosen[0] ** 2 + chosen[1] ** 2) + dice.gauss(0, 0.3)
        trial.set_constraint("accuracy_drop", loss - TOLERANCE)
    return trial


if __name__ == "__main__":
    run_command(main)
