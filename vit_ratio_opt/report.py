"""A study as rows: the dense model, the fixed ratio, the searched pair. Never imports torch."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE
from rich.table import Table

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.files import replacing
from vit_ratio_opt.search import BudgetSearch, Pair
from vit_ratio_opt.study import finished_trials

__all__ = [
    "best_trial",
    "build_report",
    "load_studies",
    "results_table",
    "timing_split",
    "trials_table",
    "write_json",
]

# What a trial cannot do without; the rest of its time is the price of searching and pruning.
_WORK = ("train", "evaluate", "data")


def load_studies(storage: BaseStorage, names: Sequence[str] = ()) -> list[Study]:
    """The named studies of a storage, or all that this package made, searched ones last.

    Raises:
        InputError: A name is not there, or is not one of this package's studies.
    """
    summaries = {s.study_name: s for s in optuna.get_all_study_summaries(storage)}
    for name in names:
        if name not in summaries:
            known = ", ".join(sorted(summaries)) or "none"
            raise InputError(f"The storage has no study {name!r}; it has: {known}.")
        if "dense" not in summaries[name].user_attrs:
            raise InputError(f"Study {name!r} was not made by vit_ratio_opt.")
    ours = names or [name for name, s in summaries.items() if "dense" in s.user_attrs]
    if not ours:
        raise InputError("The storage has no study made by vit_ratio_opt.")
    studies = [optuna.load_study(study_name=name, storage=storage) for name in ours]
    return sorted(studies, key=lambda s: s.user_attrs["settings"]["strategy"] == "searched")


def best_trial(study: Study) -> FrozenTrial | None:
    """The first trial of the best pair within the limit, or None so far.

    A pair that was trained several times counts with its mean. Within a budget the best pair is
    the search's answer, see :class:`~vit_ratio_opt.search.plan.BudgetSearch`: where neighbours are
    within the noise, not the luckiest of them. With a tolerance it is the cheapest that keeps it.
    """
    trainings = _trainings(study)
    if study.direction == StudyDirection.MAXIMIZE:
        plan = study.user_attrs.get("plan")
        if plan is not None:
            curve = [(mhsa_ratio, ffn_ratio) for mhsa_ratio, ffn_ratio in plan["curve"]]
            observed = {p: [t.values[0] for t in trials] for p, trials in trainings.items()}
            answer = BudgetSearch(curve, noise=plan["noise"]).winner(observed)
            # Pairs off the curve were enqueued by hand: no neighbours speak for or against them.
            trainings = {p: t for p, t in trainings.items() if p == answer or p not in curve}

        def merit(trials: list[FrozenTrial]) -> float:
            return fmean(trial.values[0] for trial in trials)
    else:

        def merit(trials: list[FrozenTrial]) -> float:
            within = fmean(trial.constraints["accuracy_drop"] for trial in trials) <= 0
            return -trials[0].user_attrs["macs_ratio"] if within else -math.inf

    # The first of equals: a later pair has to be better, not lucky enough to tie.
    best = max(
        trainings.values(), key=lambda trials: (merit(trials), -trials[0].number), default=None
    )
    if best is None or merit(best) == -math.inf:
        return None
    # Over the tolerance in one seed but not on the mean: a complete one is what can be taken away.
    complete = [trial for trial in best if trial.state == TrialState.COMPLETE]
    return complete[0] if complete else best[0]


def _trainings(study: Study) -> dict[Pair, list[FrozenTrial]]:
    """Trials that were trained to the end within the budget, by pair."""
    by_pair: defaultdict[Pair, list[FrozenTrial]] = defaultdict(list)
    for trial in finished_trials(study):
        to_the_end = trial.state == TrialState.COMPLETE or "accuracy_drop" in trial.user_attrs
        if to_the_end and trial.constraints.get("flops", 0.0) <= 0:
            by_pair[_pair_of(trial)].append(trial)
    return dict(by_pair)


def _pair_of(trial: FrozenTrial) -> Pair:
    return trial.params["mhsa_ratio"], trial.params["ffn_ratio"]


def build_report(studies: Sequence[Study]) -> dict[str, Any]:
    """``{model, dataset, seed, epochs, device, versions, rows}`` of studies of one dense model.

    Beside them ``budget`` and ``tolerance``, one of which is None. A row is ``{name, strategy,
    mhsa_ratio, ffn_ratio, macs, macs_ratio, params, val_accuracy, test_accuracy, trials,
    seconds}``; accuracies in per cent, ``val_accuracy`` the mean over a pair's trainings,
    ``test_accuracy`` of the first of them and None until it was tested, ``seconds`` over all
    trials, ``name`` one of dense, fixed, searched.

    Raises:
        InputError: The studies are of different dense models or data.
    """
    first = studies[0].user_attrs
    settings = first["settings"]
    for key in ("weights", "dataset", "validation"):
        values = {study.user_attrs["settings"][key] for study in studies}
        if len(values) > 1:
            raise InputError(
                f"Studies in one report must be of one model and data set, but differ in {key}: "
                f"{', '.join(sorted(values))}. Name the studies."
            )
    dense = first["dense"]
    rows = [
        {
            "name": "dense",
            "strategy": "none",
            "mhsa_ratio": 0.0,
            "ffn_ratio": 0.0,
            "macs": dense["macs"],
            "macs_ratio": 1.0,
            "params": dense["params"],
            "val_accuracy": dense["val_accuracy"],
            "test_accuracy": next(
                (s.user_attrs["tested"]["dense"] for s in studies if "tested" in s.user_attrs),
                None,
            ),
            "trials": 0,
            "seconds": 0.0,
        }
    ]
    rows += [row for row in map(_study_row, studies) if row is not None]
    report = {
        "model": settings["model"],
        "dataset": settings["dataset"],
        "seed": settings["seed"],
        "epochs": settings["recipe"]["epochs"],
        "device": first["device"],
        "versions": first["versions"],
        "budget": settings["budget"],
        "tolerance": settings["tolerance"],
        "rows": rows,
    }
    # Where validation took half of the test split: the dense model on both halves together.
    for study in studies:
        if "dense_full_test_accuracy" in study.user_attrs:
            report["dense_full_test_accuracy"] = study.user_attrs["dense_full_test_accuracy"]
    return report


def _study_row(study: Study) -> dict[str, Any] | None:
    best = best_trial(study)
    if best is None:
        return None
    finished = finished_trials(study)
    pair = _pair_of(best)
    tested = study.user_attrs.get("tested", {})
    return {
        "name": study.user_attrs["settings"]["strategy"],
        "strategy": study.user_attrs["settings"].get("pruned", "structural"),
        "mhsa_ratio": pair[0],
        "ffn_ratio": pair[1],
        "macs": best.user_attrs["macs"],
        "macs_ratio": best.user_attrs["macs_ratio"],
        "params": best.user_attrs["params"],
        "val_accuracy": fmean(t.user_attrs["accuracy"] for t in _trainings(study)[pair]),
        # A search that went on has a new best, which has not been tested yet.
        "test_accuracy": tested.get("accuracy") if tested.get("trial") == best.number else None,
        "trials": len(finished),
        "seconds": round(sum(t.user_attrs.get("seconds", 0.0) for t in finished), 1),
    }


def results_table(report: dict[str, Any]) -> Table:
    """The rows of :func:`build_report` for a terminal, narrow enough for 80 columns."""
    title = f"{report['model']} on {report['dataset']}, FLOPs as a share of dense"
    table = _table(title, "", "MHSA", "FFN", "FLOPs", "params", "val %", "test %", "trials", "sec")
    for row in report["rows"]:
        table.add_row(
            row["name"],
            f"{row['mhsa_ratio']:.3f}",
            f"{row['ffn_ratio']:.3f}",
            f"{row['macs_ratio']:.4f}",
            f"{row['params']:,}",
            f"{row['val_accuracy']:.2f}",
            _number(row["test_accuracy"], 2),
            str(row["trials"]),
            f"{row['seconds']:,.1f}",
        )
    return table


def trials_table(study: Study) -> Table:
    """One line a trial, in the order of the search."""
    table = _table(
        f"study {study.study_name!r}", "trial", "state", "MHSA", "FFN", "FLOPs", "pruned %",
        "val %", "drop", "sec",
    )  # fmt: skip
    best = best_trial(study)
    for trial in study.get_trials(deepcopy=False):
        attributes, params = trial.user_attrs, trial.params
        table.add_row(
            str(trial.number),
            trial.state.name,
            _number(params.get("mhsa_ratio"), 3),
            _number(params.get("ffn_ratio"), 3),
            _number(attributes.get("macs_ratio"), 4),
            _number(attributes.get("accuracy_pruned"), 2),
            _number(attributes.get("accuracy"), 2),
            _number(attributes.get("accuracy_drop"), 2),
            _number(attributes.get("seconds"), 1),
            style="bold" if best is not None and trial.number == best.number else "",
        )
    return table


def timing_split(study: Study) -> dict[str, float]:
    """Shares of the complete trials' time: training, evaluation, data, and everything else.

    The whole is from a trial's creation to its end in the storage, so "other" holds the sampler,
    the storage, importance, surgery and checkpoints. Empty without a complete trial.
    """
    trials = [t for t in finished_trials(study) if "timing" in t.user_attrs]
    whole = sum(t.duration.total_seconds() for t in trials if t.duration is not None)
    if not whole:
        return {}
    shares = {name: sum(t.user_attrs["timing"].get(name, 0.0) for t in trials) for name in _WORK}
    shares = {name: seconds / whole for name, seconds in shares.items()}
    return {**shares, "other": 1 - sum(shares.values())}


def write_json(report: dict[str, Any], path: str | Path) -> None:
    """Write a report; a file that was there is replaced whole or not at all."""
    path = Path(path)
    try:
        with replacing(path) as partial:
            partial.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from None


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
