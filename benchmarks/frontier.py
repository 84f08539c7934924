"""How many trained trials does each sampler need for the whole frontier of accuracy and FLOPs?

Question: how much of the area under the frontier is still missing after n trained trials?

Method: the searches run through Optuna's ask and tell, with two objectives, on the recorded
surfaces (``surfaces/``, see ``samplers.py``); each trial returns the surface's accuracy plus
Gaussian noise of the spread recorded at such a loss. Judged are all pairs that were tried, on the
surface itself without noise: the *hypervolume*, in units of all points that can be lost times all
FLOPs, from the point where all is lost at no saving. *Missing* is what the frontier of all pairs
has more, in hundredths.

``ours`` is what a study does: the losses that the calibration predicts are its prior mean, and
tell where it begins. ``ours begun`` only begins there, ``ours blind`` knows nothing of them. The
peers know the FLOPs too, which are their exact second objective. ``pairs`` peers propose both
ratios. ``curve`` peers propose one of 32 budgets and a place on its curve, so that no trial prunes
more than its FLOPs need. GP is Optuna's GPSampler, with the logarithm of the expected hypervolume
improvement. Seeds are paired: the n-th trial of each sampler has the same noise in units of its
spread. ``best`` is what the best possible choice of as many pairs misses, known by hindsight.

``--rounds`` asks instead how many rounds 8 workers need. In each round all of them propose a pair,
each knowing those that are being trained, and then all get their values. Counted are the rounds
until the search misses no more than one worker of the same seed does after 16 and after 32 trials,
which are its rounds.

    python benchmarks/frontier.py [--surface ranks/NAME] [--seeds 20] [--rounds]
    python benchmarks/frontier.py --show

Output: ``results/frontier.json``, a row for each surface and sampler with an interval of 95 % by
the bootstrap over seeds; it goes on where it stopped. Runtime: 15 minutes on one core, most of it
GP's. With ``--rounds``: ``results/frontier-rounds.json``, 5 minutes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import optuna
import typer
from command_line import run_command
from optuna.trial import Trial
from recording import Results
from samplers import Surface, surface_of

from vit_ratio_opt.runs.screening import forecast_path
from vit_ratio_opt.search.limits import Frontier
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.search.plan import Pair
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.search.space import ratio_distributions
from vit_ratio_opt.space.curve import budget_curve, smallest_cost_ratio

RESULTS, ROUNDS_RESULTS = (
    Results(
        Path(__file__).parent / "results" / f"{name}.json",
        ("surface", "sampler"),
        ("optuna", "numpy", "torch"),
    )
    for name in ("frontier", "frontier-rounds")
)
SURFACES = ("ranks/digits", "ranks/d64")
TRIALS, CHECKPOINTS = 32, (8, 16, 24, 32)
BUDGETS = 32  # of the peers on the curves
FRONT = 700  # pairs of the frontier of which the best are chosen
WORKERS, ALONE, MOST_ROUNDS = 8, (16, 32), 32
RESAMPLES = 10_000

PEERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "GP": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "TPE": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "NSGA-II": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=8),
    "QMC": lambda seed: optuna.samplers.QMCSampler(seed=seed),
    "Random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def main(
    surface: Annotated[Optional[str], typer.Option(help="One surface only.")] = None,  # noqa: UP045
    seeds: Annotated[int, typer.Option(min=2, help="Seeds 0, 1, ...")] = 20,
    rounds: Annotated[bool, typer.Option("--rounds", help="Rounds of 8 workers.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Only print what was recorded.")] = False,
) -> None:
    """Compare the samplers."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    results = ROUNDS_RESULTS if rounds else RESULTS
    for name in () if show else (surface,) if surface else SURFACES:
        for sampler in samplers_for():
            is_known = results.has(surface=name, sampler=sampler, seeds=seeds)
            if is_known or (rounds and sampler != "ours"):
                continue
            started = time.perf_counter()
            row = (measure_rounds if rounds else measure)(name, sampler, seeds)
            results.add(row, seconds=time.perf_counter() - started)
    (print_rounds if rounds else print_table)()


def samplers_for() -> list[str]:
    """Return the names of the samplers."""
    ours = ["ours", "ours begun", "ours blind"]
    return [*ours, *(f"{peer} {kind}" for kind in ("curve", "pairs") for peer in PEERS), "best"]


def measure(name: str, sampler: str, seeds: int) -> dict[str, Any]:
    """Return the row of a sampler on a surface."""
    chosen = np.array(CHECKPOINTS) - 1
    if sampler == "best":
        runs = [best_choices(name)]
    else:
        runs = [search(name, sampler, seed, TRIALS) for seed in range(seeds)]
    missing = np.array(runs)[:, chosen]
    low, high = interval(missing)
    return {
        "surface": name,
        "sampler": sampler,
        "seeds": seeds,
        "trials": list(CHECKPOINTS),
        "missing": np.round(missing.mean(axis=0), 3).tolist(),
        "low": np.round(low, 3).tolist(),
        "high": np.round(high, 3).tolist(),
        "by_seed": np.round(missing, 3).tolist(),
    }


def measure_rounds(name: str, sampler: str, seeds: int) -> dict[str, Any]:
    """Return the row of the rounds that 8 workers need for what one has after some trials."""
    rounds = np.zeros((seeds, len(ALONE)))
    missing = []
    for seed in range(seeds):
        alone = search(name, sampler, seed, ALONE[-1])
        together = search(name, sampler, seed, MOST_ROUNDS, WORKERS, until=alone[-1])
        missing.append(np.round(together, 3).tolist())
        for place, trials in enumerate(ALONE):
            least = [number for number, one in enumerate(together, 1) if one <= alone[trials - 1]]
            rounds[seed, place] = least[0] if least else MOST_ROUNDS
    shares = rounds / ALONE
    low, high = interval(shares)
    return {
        "surface": name,
        "sampler": sampler,
        "seeds": seeds,
        "workers": WORKERS,
        "trials": list(ALONE),
        "rounds": rounds.mean(axis=0).tolist(),
        "share": np.round(shares.mean(axis=0), 3).tolist(),
        "low": np.round(low, 3).tolist(),
        "high": np.round(high, 3).tolist(),
        "by_seed": rounds.astype(int).tolist(),
        "missing_by_round": missing,
    }


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval of the mean over seeds, ``(seeds, n)`` to two ``(n,)``."""
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975), axis=0)
    return low, high


def search(
    name: str, sampler: str, seed: int, rounds: int, workers: int = 1, *, until: float = -1.0
) -> list[float]:
    """Return the missing hypervolume of one search after each round, in hundredths.

    Args:
        name: Name of the surface.
        sampler: Name of the sampler.
        seed: Seed of the sampler and of the noise.
        rounds: Most rounds, in each of which every worker trains one pair.
        workers: Number of workers.
        until: Missing hypervolume at which the search ends.
    """
    surface, rng = surface_of(name), np.random.default_rng([seed, 1])
    study, suggest = study_of(name, sampler, seed)
    seen: list[Pair] = []
    missing: list[float] = []
    while len(missing) < rounds and (not missing or missing[-1] > until):
        trials = [study.ask() for _ in range(workers)]
        pairs = [suggest(trial) for trial in trials]
        for trial, pair in zip(trials, pairs, strict=True):
            study.tell(trial, (surface.draw(pair, rng), surface.space.macs_ratio(*pair)))
        seen += pairs
        missing.append(100 * (best_volume(name) - volume(surface, seen)))
    return missing


def study_of(name: str, sampler: str, seed: int) -> tuple[optuna.Study, Callable[[Trial], Pair]]:
    """Return a study and what suggests its pairs."""
    surface = surface_of(name)
    space = ratio_distributions(surface.space)

    def pair(trial: Trial) -> Pair:
        first, second = (trial.suggest_float(n, d.low, d.high) for n, d in space.items())
        return first, second

    def on_a_curve(trial: Trial) -> Pair:
        curve = curves_of(name)[trial.suggest_int("budget", 0, BUDGETS - 1)]
        return curve[round(trial.suggest_float("place", 0, 1) * (len(curve) - 1))]

    chosen: Any
    if sampler.startswith("ours"):
        assert surface.forecast is not None
        begins = () if sampler == "ours blind" else forecast_path(surface.space, surface.forecast)
        plan = Frontier().plan(
            surface.space,
            noise=Noise(surface.noise, is_known=False),
            dense=surface.dense,
            path=begins,
        )
        plan.use_forecast(surface.forecast if sampler == "ours" else None)
        chosen = PlanSampler(space, plan, seed=seed)
    else:
        chosen = PEERS[sampler.split()[0]](seed)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=chosen)
    return study, on_a_curve if sampler.endswith(" curve") else pair


@lru_cache
def curves_of(name: str) -> list[Sequence[Pair]]:
    """Return the pairs that use up each of some budgets, evenly spaced."""
    space = surface_of(name).space
    budgets = np.linspace(1.0, smallest_cost_ratio(space), BUDGETS + 1)[1:]
    return [budget_curve(space, float(budget)) for budget in budgets]


@lru_cache
def best_volume(name: str) -> float:
    """Return the hypervolume of the frontier of all pairs."""
    surface = surface_of(name)
    return volume(surface, [(m, f) for m, column in surface.columns for f in column])


def best_choices(name: str) -> list[float]:
    """Return what the best n pairs miss, for each n up to the number of trials, in hundredths.

    The frontier of all pairs is thinned to some hundred; the area above the best n of these that
    end with one pair follows from those of n - 1 pairs.
    """
    surface = surface_of(name)
    every = sorted(
        (surface.space.macs_ratio(m, f), max(surface.dense - surface.accuracy((m, f)), 0.0))
        for m, column in surface.columns for f in column
    )  # fmt: skip
    falling = np.minimum.accumulate([loss for _, loss in every])
    front = [
        place for place in range(len(every)) if not place or falling[place] < falling[place - 1]
    ]
    kept = [front[i] for i in np.linspace(0, len(front) - 1, min(FRONT, len(front))).astype(int)]
    costs, losses = np.array([every[place] for place in kept]).T
    areas, missing = surface.dense * costs, []
    for _ in range(TRIALS):
        covered = 1 - (areas + losses * (1 - costs)).min() / surface.dense
        missing.append(100 * (best_volume(name) - covered))
        steps = areas[:, None] + losses[:, None] * (costs[None] - costs[:, None])
        steps[np.tril_indices(len(costs))] = np.inf
        areas = steps.min(axis=0)
    return missing


def volume(surface: Surface, pairs: Sequence[Pair]) -> float:
    """Return the share of all points times all FLOPs that the frontier of the pairs covers."""
    points = sorted(
        (surface.space.macs_ratio(*pair), surface.dense - surface.accuracy(pair)) for pair in pairs
    )
    area, cost, least = 0.0, 0.0, surface.dense
    for at, loss in [*points, (1.0, 0.0)]:
        area, cost = area + (at - cost) * least, at
        least = min(least, max(loss, 0.0))
    return 1 - area / surface.dense


def print_table() -> None:
    """Print the missing hypervolume of each sampler after each checkpoint."""
    rows = RESULTS.rows
    for name in dict.fromkeys(row["surface"] for row in rows):
        print(f"{name}: missing hypervolume in hundredths after {CHECKPOINTS} trials")
        own = [row for row in rows if row["surface"] == name]
        for row in sorted(own, key=lambda row: row["missing"][1]):
            parts = zip(row["missing"], row["low"], row["high"], strict=True)
            shown = "  ".join(f"{mean:6.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in parts)
            print(f"  {row['sampler']:14s} {shown}")


def print_rounds() -> None:
    """Print the rounds that 8 workers need, as shares of one worker's."""
    for row in ROUNDS_RESULTS.rows:
        parts = zip(
            row["trials"], row["rounds"], row["share"], row["low"], row["high"], strict=True
        )
        shown = "  ".join(
            f"{alone}: {rounds:.2f} rounds, {share:.3f} [{low:.3f}, {high:.3f}]"
            for alone, rounds, share, low, high in parts
        )
        print(f"{row['surface']:20s} {row['sampler']:14s} {shown}")


if __name__ == "__main__":
    run_command(main)
