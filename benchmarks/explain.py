"""What it costs that a study explains itself.

Question: how much longer is a trial for the notes, figures and artifacts in optuna-dashboard, does
that grow with the number of trials, and how long does the report's page take?

Method: a study of a ViT of DeiT-S size in a SQLite file is filled with finished trials (their
accuracies are made up: nothing is trained). Timed are, median of ``--repeats``: what each trial
adds, its note and its two artifacts; and the study's own note and figures, which are made again
when 200 times the time has passed that they took. ``share`` is all of that for one trial of
CIFAR-10, the seconds of which are those of ``studies/results/cifar10_searched.json``. The page is
``vit-ratio-opt report --html``, without the start of Python.

    OMP_NUM_THREADS=1 python benchmarks/explain.py

Output: ``benchmarks/results/explain.json``. Runtime on 2 cores: about a minute.
"""

from __future__ import annotations

import json
import math
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import optuna
import typer
from ask_latency import SPACE as DEIT_S
from command_line import run_command
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.records.trials import block_rows
from vit_ratio_opt.report import explainer
from vit_ratio_opt.report.explainer import Explainer
from vit_ratio_opt.report.figures.training_curve import training_curve
from vit_ratio_opt.report.html import html_page
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.search.space import ratio_distributions
from vit_ratio_opt.search.tolerance import ToleranceSearch
from vit_ratio_opt.space.costs import PARAMS
from vit_ratio_opt.space.curve import budget_curve, cost_saved, fixed_ratio_pair, pair_columns
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.utils.files import write_json
from vit_ratio_opt.utils.text import csv_text

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "explain.json"
CIFAR10 = HERE.parent / "studies" / "results" / "cifar10_searched.json"
SPACE = replace(DEIT_S, unit="rank")
TRIALS = (10, 100, 500, 1_000)
BUDGET, TOLERANCE, DENSE = 0.6, 2.0, 80.0


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Times that each is timed.")] = 5,
) -> None:
    """Time notes, figures, artifacts and the page, and print a table."""
    row = json.loads(CIFAR10.read_text())["rows"][-1]
    trial_seconds = row["seconds"] / row["trials"]
    rows = []
    print(f"a trial of CIFAR-10: {trial_seconds:.0f} s")
    for mode in ("budget", "tolerance"):
        for trials in TRIALS:
            with tempfile.TemporaryDirectory() as folder:
                study = _filled(f"sqlite:///{folder}/study.db", mode, trials)
                timed = _timed(study, repeats)
            each = timed["trial_note"] + timed["artifacts"]
            often = min(timed["study"], explainer.TIME_SHARE * trial_seconds)
            share = (each + often) / trial_seconds
            rows.append({"mode": mode, "trials": trials, **timed, "share": round(share, 5)})
            print(
                f"{mode:9s} {trials:5d} trials: note {1000 * timed['trial_note']:5.1f} ms, "
                f"artifacts {1000 * timed['artifacts']:5.0f} ms, study "
                f"{1000 * timed['study']:5.0f} ms, together {100 * share:.2f} % of a trial; "
                f"page {timed['page']:.2f} s, {timed['page_mb']:.2f} MB",
                flush=True,
            )
    result = {
        "benchmark": "explain",
        "repeats": repeats,
        "trial_seconds": trial_seconds,
        "bound": explainer.TIME_SHARE,
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("optuna", "optuna-dashboard", "plotly")},
        "rows": rows,
    }
    write_json(result, RESULTS)


def _timed(study: Study, repeats: int) -> dict[str, float]:
    """Seconds of each part."""
    trials = study.get_trials(deepcopy=False)
    dense = record_of(study).dense
    explain, page = Explainer(), ""

    def artifacts() -> None:
        training_curve(trials[-1], DENSE, drops=False)
        csv_text(block_rows(dense, trials[-1]))

    def make_page() -> None:
        nonlocal page
        page = html_page([study])

    parts: dict[str, Callable[[], None]] = {
        "trial_note": lambda: explainer.save_trial_note(study, trials[-1]),
        "artifacts": artifacts,
        "study": lambda: explain.refresh(study),
        "page": make_page,
    }
    # As after a search that has explained each of its trials.
    for trial in trials:
        explainer.save_trial_note(study, trial)
    seconds = {}
    for name, part in parts.items():
        part()
        seconds[name] = round(median(_seconds(part) for _ in range(repeats)), 5)
    return {**seconds, "page_mb": round(len(page.encode()) / 1e6, 3)}


def _seconds(part: Callable[[], None]) -> float:
    started = time.perf_counter()
    part()
    return time.perf_counter() - started


def _filled(url: str, mode: str, trials: int) -> Study:
    curve = budget_curve(SPACE, BUDGET)
    budget, tolerance = (BUDGET, None) if mode == "budget" else (None, TOLERANCE)
    study = optuna.create_study(
        study_name=mode, storage=url, direction="maximize" if budget else "minimize"
    )
    attributes: dict[str, Any] = {
        "settings": {
            "strategy": "searched", "budget": budget, "tolerance": tolerance, "model": "deit_s",
            "weights": "", "dataset": "made up", "validation": "", "recipe": {"epochs": 3},
            "seed": 0, "iterative": False, "mhsa_unit": "rank", "repair": True,
            "allocation": "global", "round_to": 1, "calibration_images": 512,
        },
        "versions": {},
        "device": "none",
        "dense": {
            "macs": SPACE.macs, "params": SPACE.shape.params, "val_accuracy": DENSE,
            "blocks": [[b.num_heads, b.head_dim, b.hidden_dim] for b in SPACE.shape.blocks],
            "tokens": SPACE.shape.tokens,
        },
        "saved": cost_saved(SPACE),
        "origin": {"artifacts": None},
    }  # fmt: skip
    noise = Noise(0.2, is_known=False)
    plan: BudgetSearch | ToleranceSearch
    if budget:
        fixed = fixed_ratio_pair(SPACE, budget)
        plan = BudgetSearch(curve, baseline=fixed, noise=noise, dense=DENSE)
    else:
        plan = ToleranceSearch(pair_columns(SPACE), SPACE.macs_ratio, TOLERANCE, noise=noise)
    attributes["plan"] = plan.to_json()
    for name, value in attributes.items():
        study.set_user_attr(name, value)
    study.sampler = PlanSampler(ratio_distributions(SPACE), plan)
    for number in range(trials):
        pair = curve[(37 * number) % len(curve)]
        if tolerance:
            share = (number + 1) / (trials + 1)
            pair = RatioPair(share * SPACE.max_pair[0], share * SPACE.max_pair[1])
        study.add_trial(_trial(pair, tolerance, number))
    return study


def _trial(pair: RatioPair, tolerance: float | None, number: int) -> FrozenTrial:
    macs_ratio = SPACE.macs_ratio(*pair)
    drop = 5 * (1 - macs_ratio) ** 2 + 2 * (pair.mhsa_ratio - 0.5) ** 2 + 0.2 * math.sin(number)
    over = tolerance is not None and drop > tolerance
    value = DENSE - drop if tolerance is None else macs_ratio
    reported = [drop + 2, drop + 1, drop]
    if tolerance is None:
        reported = [DENSE - one for one in reported]
    limit = {"flops": macs_ratio - BUDGET}
    if tolerance is not None:
        limit = {"accuracy_drop": drop - tolerance}
    return optuna.trial.create_trial(
        state=TrialState.PRUNED if over else TrialState.COMPLETE,
        value=None if over else value,
        params=pair._asdict(),
        distributions=dict(ratio_distributions(SPACE)),
        user_attrs={
            "macs_ratio": macs_ratio,
            "macs": SPACE.pruned_macs(pair),
            "params": replace(SPACE, cost=PARAMS).pruned_cost(pair),
            "accuracy_pruned": DENSE - drop - 5,
            "accuracy": DENSE - drop,
            "accuracy_drop": drop,
            "parent_trial": "dense",
            "epochs": 3,
            "seconds": 60.0,
            "seed": 0,
            "blocks": [[6, 32, 700]] * 12,
            "losses": [1.5, 1.2, 1.1],
        },
        intermediate_values=dict(enumerate(reported, start=1)),
        constraints=limit,
    )


if __name__ == "__main__":
    run_command(main)
