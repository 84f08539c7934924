"""How many trained trials does each sampler need?

Question: at a budget, how far below the best pair's accuracy is the answer after n trained trials?
With a tolerance, how far above the cheapest pair's cost is it, and does it really keep the
tolerance? With one worker and with many.

Method: the searches run through Optuna's ask and tell on the recorded surfaces (``surfaces/``,
means over seeds, bilinear between the grid's pairs); every trained trial returns the surface's
value plus Gaussian noise of the spread recorded at such a loss. Regret is judged on the surface
itself, without the noise. Workers are simulated: each asks, is busy for a random time (log-normal,
spread 0.3), tells, and asks again.

The peers know the MACs too. At a budget, ``curve`` peers search the MHSA ratio alone and take the
FFN ratio that uses up the budget, as ours does; ``pairs`` peers propose both ratios, and a pair
over the budget is PRUNED at once and costs nothing (GP learns nothing from a PRUNED trial and
would propose it for ever, so it is there on the curve only). With a tolerance, all propose pairs;
TPE, GP and NSGA-II are told the constraint, the others a value that puts every pair within the
tolerance before every other one (Deb 2000). OptunaHub's AutoSampler hands a numerical search of
less than 250 trials with one objective to GPSampler after its first trial: GP's row is its row.

``ours screened`` goes on from the fixed ratio to the best pair of a screen without training (see
``screen.py``), or with a tolerance begins on the path of the best pairs without training, which
costs a second or two a pair and is not counted; ``ours`` goes on to where the curve crosses the
diagonal, or knows nothing.

Ours is told what a study knows: the accuracy of the dense model, the fixed ratio's pair, where a
budget's search begins, the number of trials, an eighth of which is kept to confirm the answer, and
a guess of the noise from the number of images, not the recorded one.

Answers: of ours, the pair of the plan's answer (the dense model where there is none); of a peer,
the best pair it saw, by its mean.

- budget: regret in points; ``reached`` is the first trained trial from which on the median regret
  stays at 0.2 or below.
- tolerance: gap between the answer's and the cheapest pair's fraction of MACs, to either side; an
  answer that loses more than the tolerance plus one standard deviation of the noise is ``broken``,
  and its gap that of the dense model.

    python benchmarks/samplers.py [--jobs 2] [--surface NAME] [--workers 1]
    python benchmarks/samplers.py --figures

Output: ``results/samplers.json``, a row for each surface, mode, level, sampler and number of
workers; it goes on where it stopped. ``--figures`` draws ``figures/samplers-*.png`` from it.
Runtime: about an hour on two cores, most of it GP's.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Optional

import matplotlib as mpl
import numpy as np
import optuna
import typer
from command_line import run_command
from matplotlib import pyplot as plt
from optuna.trial import Trial, TrialState

from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.claims import SURPLUS
from vit_ratio_opt.search.forecast import Forecast
from vit_ratio_opt.search.noise import Noise, accuracy_noise
from vit_ratio_opt.search.plan import Pair, run_plan
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.search.space import ratio_distributions
from vit_ratio_opt.search.tolerance import ToleranceSearch
from vit_ratio_opt.space.curve import (
    budget_curve,
    fixed_ratio_pair,
    pair_columns,
    smallest_cost_ratio,
)
from vit_ratio_opt.space.shape import BlockShape, ViTShape
from vit_ratio_opt.space.structural import StructuralSpace
from vit_ratio_opt.utils.files import write_json

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "samplers.json"
FIGURES = HERE / "figures"

BUDGETS = (0.4, 0.5, 0.6, 0.7, 0.8)
TOLERANCES = (0.5, 1.0, 2.0, 3.0)
WORKERS = (1, 4, 8, 16, 64)
SEEDS = 20
# Trained trials: as many as tell the samplers apart, and a few rounds of the workers.
TRIALS = {1: 24, 4: 24, 8: 32, 16: 48, 64: 128}
CHECKPOINTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128)
FREE_PROPOSALS = 2000
REGRET, GAP = 0.2, 0.005

PEERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "TPE": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "GP": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "NSGA-II": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "CMA-ES": lambda seed: optuna.samplers.CmaEsSampler(seed=seed),
    "QMC": lambda seed: optuna.samplers.QMCSampler(seed=seed),
    "Random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
# CMA-ES needs two parameters. With many workers: the strongest peers that answer in reasonable
# time (GP takes seconds a search, and hours with 64 workers).
ON_THE_CURVE = ("TPE", "GP", "NSGA-II", "QMC", "Random", "Grid")
AS_PAIRS = ("TPE", "NSGA-II", "CMA-ES", "QMC", "Random", "Grid")
WITH_TOLERANCE = ("TPE", "GP", "NSGA-II", "CMA-ES", "QMC", "Random", "Grid")
WITH_WORKERS = ("TPE curve", "TPE", "QMC curve", "NSGA-II")
# Points lost, within which the noise is taken to be the same: it grows with what is lost.
LOSS_BANDS = (-math.inf, 2.0, 5.0, 10.0, 20.0, math.inf)
GRID = 12  # values of either ratio that the grid search has


class Surface:
    """Recorded accuracies as a function of any pair, after fine-tuning or after pruning alone."""

    def __init__(self, path: Path, key: str = "accuracy") -> None:
        data = json.loads(path.read_text())
        self.epochs = int(data["recipe"]["epochs"])
        shape = {
            **data["shape"],
            "blocks": tuple(BlockShape(**b) for b in data["shape"]["blocks"]),
        }
        rows = data["rows"]
        self.forecast: Forecast | None = None
        if "mhsa_unit" in shape:  # whole heads
            unit = shape.pop("mhsa_unit")
            self.space = StructuralSpace(ViTShape(**shape), unit)
            self.dense = float(data["dense_accuracy"])
        else:
            shape["block_tokens"] = tuple(shape["block_tokens"])
            self.space = StructuralSpace(ViTShape(**shape))
            self.dense = float(rows[0]["dense_accuracy"])
            key = key if self.epochs else "accuracy_pruned"
            nats = {
                (row["mhsa_ratio"], row["ffn_ratio"]): row["expected_loss"]
                for row in rows if not row["seed"]
            }  # fmt: skip
            self.forecast = Forecast(
                tuple((first, nats[first, second]) for first, second in nats if not second),
                tuple((second, nats[first, second]) for first, second in nats if not first),
                self.dense,
            )
        # What a study expects, knowing nothing of the spread that was recorded.
        self.noise = accuracy_noise(self.dense, data["eval_images"])
        seen: dict[Pair, list[float]] = {}
        for row in rows:
            seen.setdefault((row["mhsa_ratio"], row["ffn_ratio"]), []).append(row[key])
        self.pairs = list(seen)
        self.grid = tuple(np.array(sorted(set(ratios))) for ratios in zip(*seen, strict=True))
        mhsa, ffn = self.grid
        self._mean = np.array([[np.mean(seen[m, f]) for f in ffn] for m in mhsa])
        again = [values for values in seen.values() if len(values) > 1]
        self.spreads: list[float] = []
        for low, high in itertools.pairwise(LOSS_BANDS):
            band = [v for v in again if low <= self.dense - statistics.fmean(v) < high]
            squares = math.fsum(statistics.variance(v) * (len(v) - 1) for v in band)
            free = sum(len(v) - 1 for v in band)
            # A band that was not trained again anywhere is as noisy as the one above it.
            above = self.spreads[-1] if self.spreads else math.nan
            self.spreads.append(math.sqrt(squares / free) if free else above)

    def draw(self, pair: Pair, rng: np.random.Generator) -> float:
        """Accuracy in one training."""
        accuracy = self.accuracy(pair)
        band = bisect.bisect_right(LOSS_BANDS[1:-1], self.dense - accuracy)
        return accuracy + self.spreads[band] * float(rng.standard_normal())

    def accuracy(self, pair: Pair) -> float:
        """Between the four pairs around this one."""
        i, a = self._place(self.grid[0], pair[0])
        j, b = self._place(self.grid[1], pair[1])
        corners = self._mean[i : i + 2, j : j + 2]
        return float(np.array([1 - a, a]) @ corners @ np.array([1 - b, b]))

    @staticmethod
    def _place(ratios: np.ndarray, ratio: float) -> tuple[int, float]:
        index = int(np.clip(np.searchsorted(ratios, ratio, side="right") - 1, 0, len(ratios) - 2))
        return index, float((ratio - ratios[index]) / (ratios[index + 1] - ratios[index]))

    @cached_property
    def columns(self) -> tuple[tuple[float, tuple[float, ...]], ...]:
        """All pairs."""
        return pair_columns(self.space)

    @lru_cache  # noqa: B019  a handful of surfaces live as long as the process
    def cheapest(self, tolerance: float) -> float:
        """Cost of the best pair within the tolerance."""
        least = self.dense - tolerance
        costs = [1.0]
        for first, seconds in self.columns:
            kept = (s for s in reversed(seconds) if self.accuracy((first, s)) >= least)
            costs += [self.space.macs_ratio(first, second) for second in itertools.islice(kept, 1)]
        return min(costs)


@dataclass(frozen=True)
class Contest:
    """One row: what is searched, by whom, with how many workers."""

    surface: str
    mode: str
    level: float
    sampler: str
    workers: int


@lru_cache
def surface_of(name: str, key: str = "accuracy") -> Surface:
    """A recorded surface."""
    return Surface(HERE / "surfaces" / f"{name}.json", key)


@lru_cache
def screened_best(name: str, curve: tuple[Pair, ...]) -> Pair:
    """Return the pair where the screen of a search would begin."""
    seen = run_plan(BudgetSearch(curve), surface_of(name, "accuracy_pruned").accuracy)
    return max(seen, key=lambda pair: seen[pair][0])


@lru_cache
def screened_path(name: str) -> tuple[Pair, ...]:
    """Return about the path that a search with a tolerance would begin along."""
    space, pruned = surface_of(name).space, surface_of(name, "accuracy_pruned").accuracy
    levels = np.linspace(1.0, smallest_cost_ratio(space), 64)
    best = [max(budget_curve(space, float(level)), key=pruned) for level in levels]
    return tuple(dict.fromkeys((first, second) for first, second in best))


def _contests(surfaces: list[str], workers: tuple[int, ...]) -> list[Contest]:
    contests = []
    for count, surface in itertools.product(workers, surfaces):
        lowest = smallest_cost_ratio(surface_of(surface).space)
        ours = ["ours", "ours screened"] if surface_of(surface).epochs else ["ours"]
        budget = [*ours, *(f"{p} curve" for p in ON_THE_CURVE), *AS_PAIRS]
        for mode, levels, samplers in (
            ("budget", [b for b in BUDGETS if b >= lowest], budget),
            ("tolerance", TOLERANCES, [*ours[: 1 if count > 1 else None], *WITH_TOLERANCE]),
        ):
            for level, sampler in itertools.product(levels, samplers):
                strong = sampler in WITH_WORKERS and count != 8
                if count == 1 or sampler.startswith("ours") or strong:
                    contests.append(Contest(surface, mode, level, sampler, count))
    # The slow ones last.
    return sorted(contests, key=lambda contest: contest.sampler.startswith("GP"))


def _study(contest: Contest, seed: int) -> tuple[optuna.Study, Callable[[Trial], Pair]]:
    """A study and what suggests its pairs."""
    surface, name = surface_of(contest.surface), contest.sampler
    space = ratio_distributions(surface.space)
    curve = budget_curve(surface.space, contest.level) if contest.mode == "budget" else ()

    def pair(trial: Trial) -> Pair:
        first, second = (trial.suggest_float(n, d.low, d.high) for n, d in space.items())
        return first, second

    def on_the_curve(trial: Trial) -> Pair:
        return curve[trial.suggest_int("position", 0, len(curve) - 1)]

    if name.startswith("ours"):
        known: dict[str, Any] = {
            "noise": Noise(surface.noise, is_known=False),
            "confirmations": 1,
        }
        screened = name == "ours screened"
        plan: Any
        if contest.mode == "budget":
            start = screened_best(contest.surface, curve) if screened else None
            fixed = fixed_ratio_pair(surface.space, contest.level)
            plan = BudgetSearch(curve, baseline=fixed, start=start, dense=surface.dense, **known)
        else:
            known["path"] = screened_path(contest.surface) if screened else ()
            costs = surface.space.macs_ratio
            plan = ToleranceSearch(surface.columns, costs, contest.level, **known)
        trials = TRIALS[contest.workers]
        sampler: Any = PlanSampler(space, plan, seed=seed, n_trials=trials)
    elif name == "Grid curve":
        sampler = optuna.samplers.GridSampler({"position": list(range(len(curve)))}, seed=seed)
    elif name == "Grid":
        values = {n: np.linspace(0, d.high, GRID).tolist() for n, d in space.items()}
        sampler = optuna.samplers.GridSampler(values, seed=seed)
    else:
        sampler = PEERS[name.removesuffix(" curve")](seed)
    direction: Any = "maximize" if contest.mode == "budget" else "minimize"
    study = optuna.create_study(direction=direction, sampler=sampler)
    return study, on_the_curve if name.endswith(" curve") else pair


def _search(contest: Contest, seed: int) -> tuple[list[tuple[float, Pair | None]], int]:
    """Time and answer after each trained trial, and how often a pair was trained again."""
    surface = surface_of(contest.surface)
    rng = np.random.default_rng([seed, contest.workers])
    study, suggest = _study(contest, seed)
    limit = TRIALS[contest.workers]
    seen: dict[Pair, list[float]] = {}
    busy: list[tuple[float, int, Trial, Pair]] = []
    answers: list[tuple[float, Pair | None]] = []
    now, started, repeats, idle, free = 0.0, 0, 0, contest.workers, 0

    def margin(pair: Pair) -> float:
        value = surface.draw(pair, rng)
        return value if contest.mode == "budget" else value - surface.dense + contest.level

    while started < limit or busy:
        while idle and started < limit:
            trial = study.ask()
            pair = suggest(trial)
            if SURPLUS in study._storage.get_trial(trial._trial_id).system_attrs:
                study.tell(trial, state=TrialState.PRUNED)
                break  # nothing to learn until a result comes in
            if contest.mode == "budget" and surface.space.macs_ratio(*pair) > contest.level:
                trial.set_constraint("flops", surface.space.macs_ratio(*pair) - contest.level)
                study.tell(trial, state=TrialState.PRUNED)
                free += 1
                if free > FREE_PROPOSALS:
                    started = limit
                continue
            running = [other for *_, other in busy]
            repeats += contest.sampler.startswith("ours") and pair in running
            heapq.heappush(busy, (now + rng.lognormal(0, 0.3), started, trial, pair))
            started, idle = started + 1, idle - 1
        if not busy:
            break
        now, _, trial, pair = heapq.heappop(busy)
        idle += 1
        value = margin(pair)
        seen.setdefault(pair, []).append(value)
        try:
            if contest.mode == "budget":
                study.tell(trial, value)
            else:
                _tell_tolerance(
                    study, trial, value, surface.space.macs_ratio(*pair), contest.sampler
                )
        except RuntimeError:  # a grid that was tried through asks its loop to stop
            started = limit
        answers.append((now, _answer(contest, study, seen)))
    return answers, repeats


def _tell_tolerance(
    study: optuna.Study, trial: Trial, margin: float, cost: float, sampler: str
) -> None:
    if sampler.startswith("ours") or sampler in ("TPE", "GP", "NSGA-II"):
        trial.set_constraint("accuracy_drop", -margin)
        study.tell(trial, cost)
    else:
        study.tell(trial, cost if margin >= 0 else 1 - margin)


def _answer(contest: Contest, study: optuna.Study, seen: dict[Pair, list[float]]) -> Pair | None:
    if contest.sampler.startswith("ours"):
        assert isinstance(study.sampler, PlanSampler)
        return study.sampler.answer(study)
    means = {pair: statistics.fmean(values) for pair, values in seen.items()}
    if contest.mode == "budget":
        return max(means, key=means.__getitem__)
    surface = surface_of(contest.surface)
    kept = [pair for pair, mean in means.items() if mean >= 0]
    return min(kept, key=lambda pair: surface.space.macs_ratio(*pair), default=None)


def _judge(contest: Contest, pair: Pair | None) -> tuple[float, bool]:
    """Regret or gap, and whether the answer breaks the tolerance."""
    surface = surface_of(contest.surface)
    if contest.mode == "budget":
        assert pair is not None
        return _best(contest) - surface.accuracy(pair), False
    cheapest = surface.cheapest(contest.level)
    if pair is None:
        return 1 - cheapest, False
    if surface.dense - surface.accuracy(pair) > contest.level + surface.noise:
        return 1 - cheapest, True
    return abs(surface.space.macs_ratio(*pair) - cheapest), False


@lru_cache
def _best(contest: Contest) -> float:
    surface = surface_of(contest.surface)
    return max(surface.accuracy(pair) for pair in budget_curve(surface.space, contest.level))


def _run(contest: Contest) -> dict[str, Any]:
    """All seeds of one row."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    limit, target = TRIALS[contest.workers], REGRET if contest.mode == "budget" else GAP
    began = time.perf_counter()
    curves, times, broken, trained, repeats = [], [], [], [], 0
    for seed in range(SEEDS):
        answers, again = _search(contest, seed)
        judged = [_judge(contest, pair) for _, pair in answers]
        regrets = [regret for regret, _ in judged]
        repeats += again
        trained.append(len(answers))
        broken.append([judged[min(n, len(judged)) - 1][1] for n in CHECKPOINTS if n <= limit])
        # A search that ended by itself keeps its answer.
        curves.append(regrets + [regrets[-1]] * (limit - len(regrets)))
        settled = next(
            (i for i in range(len(regrets)) if max(regrets[i:]) <= target), len(regrets) - 1
        )
        reached = max(regrets[settled:]) <= target
        times.append(answers[settled][0] if reached else None)
    array = np.array(curves)
    median = np.median(array, axis=0)
    above = np.nonzero(median > target)[0]
    at = [n for n in CHECKPOINTS if n <= limit]
    return {
        **contest.__dict__,
        "seeds": SEEDS,
        "trials": at,
        "median": [round(float(median[n - 1]), 4) for n in at],
        "mean": [round(float(array[:, n - 1].mean()), 4) for n in at],
        "broken": [round(float(share), 3) for share in np.mean(broken, axis=0)],
        # From this trained trial on the median stays within the target; None if it never does.
        "reached": None
        if len(above) and above[-1] == limit - 1
        else int(above.max(initial=-1)) + 2,
        "time_to_target": [None if t is None else round(float(t), 2) for t in times],
        "trained": round(statistics.fmean(trained), 1),
        "running_twice": repeats,
        "seconds": round(time.perf_counter() - began, 1),
    }


def main(
    surface: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Only these surfaces; may be repeated.", show_default=False),
    ] = None,
    workers: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(help="Only these numbers of workers.", show_default=False),
    ] = None,
    sampler: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Only these samplers.", show_default=False),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    figures: Annotated[
        bool, typer.Option("--figures", help="Only draw, and print the README's tables.")
    ] = False,
) -> None:
    """Run what is missing from the results, or draw them."""
    rows: list[dict[str, Any]] = []
    if RESULTS.exists():
        rows = json.loads(RESULTS.read_text())["rows"]
    if figures:
        _draw(rows)
        _tables(rows)
        return
    names = surface or sorted(path.stem for path in (HERE / "surfaces").glob("*.json"))
    done = {tuple(row[key] for key in Contest.__dataclass_fields__) for row in rows}
    todo = [
        contest
        for contest in _contests(names, tuple(workers or WORKERS))
        if tuple(contest.__dict__.values()) not in done
        and (not sampler or contest.sampler in sampler)
    ]
    header = {
        "versions": {package: version(package) for package in ("optuna", "vit_ratio_opt")},
        "spread_by_loss": {
            path.stem: [round(spread, 3) for spread in surface_of(path.stem).spreads]
            for path in sorted((HERE / "surfaces").glob("*.json"))
        },
        "targets": {"budget": REGRET, "tolerance": GAP},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(_run, contest) for contest in todo]):
            row = future.result()
            rows.append(row)
            write_json({**header, "rows": rows}, RESULTS)
            shown = {n: row["median"][row["trials"].index(n)] for n in (8, 10, 16)}
            print(
                f"{len(rows)}  {row['surface']:20s} {row['mode']:9s} {row['level']}  "
                f"{row['sampler']:13s} x{row['workers']:<2d} {shown}  reached {row['reached']}  "
                f"broken {row['broken'][-1]}  {row['seconds']} s",
                flush=True,
            )


def _draw(rows: list[dict[str, Any]]) -> None:
    """One figure a mode: regret against trained trials, a panel for each surface and level."""
    mpl.use("Agg")
    FIGURES.mkdir(exist_ok=True)
    for mode, target, label in (
        ("budget", REGRET, "points below the best pair"),
        ("tolerance", GAP, "FLOPs from the cheapest pair"),
    ):
        here = [row for row in rows if row["mode"] == mode and row["workers"] == 1]
        surfaces = sorted({row["surface"] for row in here})
        levels = sorted({row["level"] for row in here})
        figure, axes = plt.subplots(
            len(surfaces), len(levels), sharex=True, sharey="row", squeeze=False,
            figsize=(3.1 * len(levels), 2.6 * len(surfaces)), layout="constrained",
        )  # fmt: skip
        names = sorted(
            {row["sampler"] for row in here}, key=lambda name: (not name.startswith("ours"), name)
        )
        for (i, surface), (j, level) in itertools.product(enumerate(surfaces), enumerate(levels)):
            axis = axes[i][j]
            for row in here:
                if (row["surface"], row["level"]) == (surface, level):
                    index = names.index(row["sampler"])
                    ours = row["sampler"].startswith("ours")
                    style: dict[str, Any] = {"linewidth": 1.0}
                    if ours:
                        style = {"color": "black", "linewidth": 2.2, "linestyle": "-"}
                        if row["sampler"] != "ours":
                            style["linestyle"] = ":"
                    if not ours:
                        style |= {
                            "color": plt.get_cmap("tab20")(index % 20),
                            "linestyle": "-" if row["sampler"].endswith("curve") else "--",
                        }
                    floor = target / 20  # a regret of 0 on a logarithmic axis
                    values = [max(value, floor) for value in row["median"]]
                    axis.plot(
                        row["trials"], values, label=row["sampler"], zorder=2 + ours, **style
                    )
            axis.axhline(target, color="grey", linewidth=0.8, linestyle=":")
            axis.set_yscale("log")
            axis.set_title(f"{surface}\n{mode} {level}", fontsize=8)
            axis.tick_params(labelsize=7)
            if j == 0:
                axis.set_ylabel(label, fontsize=8)
            if i == len(surfaces) - 1:
                axis.set_xlabel("trained trials", fontsize=8)
        handles, labels = axes[0][0].get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda k: names.index(labels[k]))
        figure.legend(
            [handles[k] for k in order], [labels[k] for k in order],
            loc="outside right center", fontsize=8,
        )  # fmt: skip
        path = FIGURES / f"samplers-{mode}.png"
        figure.savefig(path, dpi=90)
        plt.close(figure)
        print(f"{path.name} drawn from {len(here)} rows")


def _tables(rows: list[dict[str, Any]]) -> None:
    """The README's: ours and the best peer of each line, and what more workers save."""
    for mode, at in (("budget", 8), ("tolerance", 10)):
        print(f"\n| surface | {mode} | ours | best peer |\n| --- | --- | --- | --- |")
        here = [row for row in rows if row["mode"] == mode and row["workers"] == 1]
        for surface, level in sorted({(row["surface"], row["level"]) for row in here}):
            line = [r for r in here if (r["surface"], r["level"]) == (surface, level)]
            ours = [row for row in line if row["sampler"].startswith("ours")]
            peers = [row for row in line if row not in ours]
            peer = min(peers, key=lambda row: row["median"][row["trials"].index(at)])
            ours.sort(key=lambda row: -len(row["sampler"]))  # screened first
            mine = ", ".join(_cell(row, at) for row in ours)
            print(f"| {surface} | {level} | {mine} | {peer['sampler']} {_cell(peer, at)} |")
    print("\n| workers | time to the target, share of one worker's | running twice |")
    print("| --- | --- | --- |")
    ours = [row for row in rows if row["sampler"] == "ours"]
    alone = {_line(row): row for row in ours if row["workers"] == 1}
    for count in sorted({row["workers"] for row in ours}):
        these = [row for row in ours if row["workers"] == count and _line(row) in alone]
        # Only seeds that reach the target both alone and together can be compared.
        shares = [
            statistics.fmean(t for _, t in both) / statistics.fmean(t for t, _ in both)
            for row in these
            if (
                both := [
                    (one, many)
                    for one, many in zip(
                        alone[_line(row)]["time_to_target"], row["time_to_target"], strict=True
                    )
                    if one is not None and many is not None
                ]
            )
        ]
        twice = sum(row["running_twice"] for row in these)
        print(f"| {count} | {statistics.median(shares):.2f} (median of {len(shares)}) | {twice} |")


def _line(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["surface"], row["mode"], row["level"]


def _cell(row: dict[str, Any], at: int) -> str:
    """Median regret after so many trials, and from which trial on it is within the target."""
    median, broken = (row[key][row["trials"].index(at)] for key in ("median", "broken"))
    reached = "never" if row["reached"] is None else str(row["reached"])
    if row["mode"] == "budget":
        return f"{median:.2f} ({reached})"
    return f"{median:.4f} ({reached}), broken {100 * broken:.0f} %"


if __name__ == "__main__":
    run_command(main)
