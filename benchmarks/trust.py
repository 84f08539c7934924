"""Can the answer of a search be trusted?

Question: how often does the answer of a search with a tolerance truly keep it, how good is the
answer within a budget, also beside one fixed ratio, and how far is the accuracy that is reported
from the true one?

Method: searches of 10 trials on the recorded surfaces (``surfaces/``, as in ``samplers.py``), one
worker, for each tolerance and budget. Each trial returns the surface's value plus Gaussian noise
of the spread that was recorded at such a loss; the truth is the surface itself. As a study does, a
search knows the accuracy of the dense model and guesses the noise from the number of images. Where
a surface has the losses that the calibration predicts, there are rows with that forecast and
without. Else a search begins on the path, or at the best pair, of the models before any training
where these were recorded. The last trial is kept to confirm the answer.

A row has, over all seeds:

- tolerance: ``kept``, the share of the answers that truly lose no more (the dense model, which is
  the answer where no pair is, keeps it, at a cost of 1); ``cost``, mean share of the MACs;
- budget: ``regret``, mean points below the best pair of the curve; ``below_fixed``, share of the
  answers that are truly more than 0.1 points below the fixed ratio; ``believed_below``, share of
  those that the search itself believes to be below it;
- both: ``bias``, mean of the reported accuracy less the true one, in points; ``own_bias``, the
  same of the mean of the pair's own trainings; ``covered``, share of the 90 % intervals (1.645
  standard errors to either side) that hold the truth; ``trained``, trainings of the answer.

    python benchmarks/trust.py [--surface ranks/digits] [--seeds 200] [--processes 2]

The rows of version 0.1.0 (``results/trust-0.1.0.json``) were made at commit ced7cf8, where an
answer had no standard error and began at no baseline.

Output: ``results/trust.json``. Runtime: some minutes on two cores.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Optional

import numpy as np
import typer
from command_line import run_command
from recording import ProcessesOption, Results, share_work
from samplers import BUDGETS, TOLERANCES, screened_best, screened_path, surface_of

from vit_ratio_opt.runs.screening import forecast_path
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.search.plan import Pair
from vit_ratio_opt.search.tolerance import ToleranceSearch
from vit_ratio_opt.space.curve import budget_curve, fixed_ratio_pair, smallest_cost_ratio

RESULTS = Results(
    Path(__file__).parent / "results" / "trust.json",
    ("surface", "mode", "level", "forecast"),
    ("numpy",),
)
SURFACES = ("cifar10-d64-pruned", "cifar10-d64-short", "digits", "ranks/digits", "ranks/d64")
TRIALS = 10
INTERVAL = 1.645


class Line(NamedTuple):
    """One row: what is searched, within which limit, and whether losses are predicted."""

    surface: str
    mode: str
    level: float
    forecast: bool = False


class Outcome(NamedTuple):
    """One search: true cost, loss and values, what was reported, and how often it was trained."""

    cost: float
    accuracy: float
    reported: float
    error: float
    own: float
    trained: int
    believed_gain: float


def lines(surfaces: Sequence[str] = SURFACES) -> list[Line]:
    """All lines of some surfaces."""
    found = []
    for name in surfaces:
        surface = surface_of(name)
        lowest = smallest_cost_ratio(surface.space)
        levels = [("tolerance", level) for level in TOLERANCES]
        levels += [("budget", level) for level in BUDGETS if level >= lowest]
        for forecast in (False,) if surface.forecast is None else (False, True):
            found += [Line(name, mode, level, forecast) for mode, level in levels]
    return found


def search(line: Line, seed: int) -> Outcome:
    """One search of a line, and what is true of its answer."""
    surface, space = surface_of(line.surface), surface_of(line.surface).space
    screened = surface.epochs > 0  # a surface of models that were never trained is its own screen
    plan: Any
    noise = Noise(surface.noise, is_known=False)
    fixed: Pair = (0.0, 0.0)
    least = 0.0  # accuracies are searched within a budget, margins with a tolerance
    if line.mode == "budget":
        curve = budget_curve(space, line.level)
        start = screened_best(line.surface, curve) if screened else None
        fixed = fixed_ratio_pair(space, line.level)
        plan = BudgetSearch(
            curve, baseline=fixed, start=start, noise=noise, confirmations=1, dense=surface.dense
        )
    else:
        least = surface.dense - line.level
        path: Sequence[Pair] = screened_path(line.surface) if screened else ()
        if line.forecast:
            assert surface.forecast is not None
            path = forecast_path(space, surface.forecast)
        plan = ToleranceSearch(
            surface.columns, space.macs_ratio, line.level, noise=noise, confirmations=1, path=path
        )
    plan.use_forecast(surface.forecast if line.forecast else None)
    rng = np.random.default_rng([seed, 1])
    observed: dict[Pair, tuple[float, ...]] = {}
    for trial in range(TRIALS):
        pair = plan.propose(observed, confirm=TRIALS - trial <= TRIALS // 8).pair
        if pair is None:
            break
        observed[pair] = (*observed.get(pair, ()), surface.draw(pair, rng) - least)
    estimate = plan.answer(observed)
    if estimate is None:  # the dense model
        return Outcome(1.0, surface.dense, surface.dense, math.nan, surface.dense, 0, 0.0)
    pair, mean, error, own, trained, _ = estimate
    gain = 0.0
    if line.mode == "budget":
        gain = mean - plan.estimates(observed)[fixed].mean
    accuracy = surface.accuracy(pair)
    cost = space.macs_ratio(*pair)
    return Outcome(cost, accuracy, mean + least, error, own + least, trained, gain)


def row(line: Line, seeds: int) -> dict[str, Any]:
    """All seeds of a line."""
    surface = surface_of(line.surface)
    outcomes = [search(line, seed) for seed in range(seeds)]
    pruned = [outcome for outcome in outcomes if outcome.trained]
    found: dict[str, Any] = {**line._asdict(), "seeds": seeds, "trials": TRIALS}
    if line.mode == "budget":
        curve = budget_curve(surface.space, line.level)
        best = max(surface.accuracy(pair) for pair in curve)
        fixed = surface.accuracy(fixed_ratio_pair(surface.space, line.level))
        found |= {
            "regret": _mean(best - o.accuracy for o in outcomes),
            "below_fixed": _mean(o.accuracy < fixed - 0.1 for o in outcomes),
            "believed_below": _mean(o.believed_gain < 0 for o in outcomes),
        }
    else:
        least = surface.dense - line.level
        found |= {
            "cost": _mean(o.cost for o in outcomes),
            "cheapest": round(surface.cheapest(line.level), 4),
            "kept": _mean(o.accuracy >= least - 1e-9 for o in outcomes),
            "dense": _mean(not o.trained for o in outcomes),
        }
    return found | {
        "bias": _mean(o.reported - o.accuracy for o in pruned),
        "own_bias": _mean(o.own - o.accuracy for o in pruned),
        "error": _mean(o.error for o in pruned),
        "covered": _mean(
            abs(o.reported - o.accuracy) <= INTERVAL * o.error + 1e-9 for o in pruned
        ),
        "trained": _mean(o.trained for o in pruned),
    }


def _mean(values: Any) -> float:
    return round(statistics.fmean(map(float, values)), 4)


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Searches of each line.")] = 200,
    surface: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Only these surfaces; may be repeated.", show_default="all"),
    ] = None,
    processes: ProcessesOption = 2,
) -> None:
    """Simulate searches on recorded surfaces, and judge their answers."""

    def measure(line: Line) -> None:
        if RESULTS.has(**line._asdict(), seeds=seeds):
            return
        started = time.perf_counter()
        found = row(line, seeds)
        RESULTS.add(found, seconds=time.perf_counter() - started)
        print(found, flush=True)

    share_work(lines(surface or SURFACES), measure, processes)


if __name__ == "__main__":
    run_command(main)
