"""Describe studies in rows, sentences and tables: dense, fixed ratio, searched pair."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from optuna.study import Study
from rich.box import SIMPLE
from rich.table import Table

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.geometry import COST_WORDS
from vit_ratio_opt.records.answer import answer_trial
from vit_ratio_opt.records.trials import (
    accuracy_of,
    baseline_of,
    cost_of,
    cost_ratio_of,
    finished_trials,
    limit_of,
    pair_of,
)
from vit_ratio_opt.utils.text import short

__all__ = [
    "TRIAL_COLUMNS",
    "build_report",
    "group_studies",
    "results_table",
    "summary",
    "timing_split",
    "trial_rows",
    "trials_table",
]

TRIAL_COLUMNS = (
    "study",
    "trial",
    "state",
    "best",
    "mhsa_ratio",
    "ffn_ratio",
    "macs_ratio",
    "macs",
    "cost_ratio",
    "params",
    "accuracy_pruned",
    "accuracy",
    "accuracy_drop",
    "parent_trial",
    "epochs",
    "seconds",
    "seed",
    "device",
    "checkpoint",
    "failure",
)
"""What :func:`trial_rows` gives, in the order in which it is shown everywhere."""

# What a trial cannot do without; the rest of its time is the price of searching and pruning.
_WORK = ("train", "evaluate", "data")
# Settings that the studies of one table have in common.
_SHARED = ("weights", "dataset", "validation")


def summary(study: Study, studies: Sequence[Study] = ()) -> list[str]:
    """The study in three sentences: what is looked for, what was found, what that saves.

    Args:
        study: The study.
        studies: Among which there may be the fixed ratio to compare it with.
    """
    settings, dense = study.user_attrs["settings"], study.user_attrs["dense"]
    word, latency = COST_WORDS[cost_of(study)], study.user_attrs.get("latency")
    takes = "" if latency is None else f", and takes {_conditions(latency)}"
    fixed = settings["strategy"] == "fixed"
    ratios = "one fixed ratio of" if fixed else "how much each of"
    sentences = [
        f"This study looks for {ratios} attention (MHSA) and feed-forward (FFN) to prune from "
        f"{short(settings['model'])} on {short(settings['dataset'])}, with {limit_of(study)}; "
        f"the dense model has {dense['val_accuracy']:.2f} % on validation images and "
        f"needs {dense['macs']:,} FLOPs an image (1 FLOP is 1 multiply-add){takes}."
    ]
    row, best = _study_row(study), answer_trial(study)
    done = len(finished_trials(study))
    if row is None or best is None:
        return [*sentences, f"Of {done} trained trials none keeps within that yet."]
    time = (
        ""
        if latency is None
        else f", and {100 * row['cost_ratio']:.1f} % of the latency is foretold, "
        f"{row['latency_ms']:.2f} ms"
    )
    test = f", {row['test_accuracy']:.2f} % on test images" if row["test_accuracy"] else ""
    sentences.append(
        f"Trial {best.number} is the best of {done} trained: without "
        f"{100 * row['mhsa_ratio']:.1f} % of the MHSA and {100 * row['ffn_ratio']:.1f} % of the "
        f"FFN, {100 * row['macs_ratio']:.1f} % of the FLOPs and "
        f"{100 * row['params'] / dense['params']:.1f} % of the parameters are left{time}, with "
        f"{row['val_accuracy']:.2f} % on validation images "
        f"({row['val_accuracy'] - dense['val_accuracy']:+.2f} points){test}."
    )
    if "measured_ms" in row:
        share = 100 * row["measured_ms"] / row["dense_ms"]
        sentences.append(
            f"Measured on {row['measured_on']}, its model takes {row['measured_ms']:.2f} ms and "
            f"the dense model {row['dense_ms']:.2f} ms, {share:.1f} %."
        )
    if fixed:
        return [*sentences, "It is the baseline that a search of both ratios has to beat."]
    baseline = baseline_of(study, studies)
    other = None if baseline is None else _study_row(baseline)
    if baseline is None or other is None:
        return [*sentences, "There is no study of one fixed ratio with this limit to compare yet."]
    name = "cost_ratio" if "cost_ratio" in row else "macs_ratio"
    share = row[name] / other[name]
    if settings["tolerance"] is None:
        gain = row["val_accuracy"] - other["val_accuracy"]
        against = f"has {gain:+.2f} points for {share:.3f} times"
    else:
        against = f"needs {share:.3f} times"
    return [
        *sentences,
        f"Against one fixed ratio of {other['mhsa_ratio']:.3f} (study "
        f"{short(baseline.study_name)}, {other['val_accuracy']:.2f} % with "
        f"{100 * other[name]:.1f} % of the {word}) it {against} the {word}.",
    ]


def _conditions(latency: Mapping[str, Any]) -> str:
    """What the dense model is foretold to take, and how well."""
    device = short(latency["device"])
    if device == "cpu":
        device += f" with {latency['threads']} thread(s)"
    return (
        f"{_dense_ms(latency):.2f} ms for a batch of {latency['batch']} on {device}"
        f", by a table whose median error is {100 * latency['error']:.1f} %"
    )


def _dense_ms(latency: Mapping[str, Any]) -> float:
    nanoseconds = latency["rest"] + latency["mhsa"][0][1] + latency["ffn"][0][1]
    return float(nanoseconds / 1e6)


def group_studies(studies: Sequence[Study]) -> list[list[Study]]:
    """Studies of the same dense model and images, which one table can hold, together."""
    groups: defaultdict[tuple[str, ...], list[Study]] = defaultdict(list)
    for study in studies:
        settings = study.user_attrs["settings"]
        groups[tuple(settings[key] for key in _SHARED)].append(study)
    return list(groups.values())


def build_report(studies: Sequence[Study]) -> dict[str, Any]:
    """``{model, dataset, seed, epochs, device, versions, rows}`` of studies of one dense model.

    Beside them ``budget`` and ``tolerance``, one of which is None, and ``cost``. A row is ``{name,
    study, strategy, mhsa_ratio, ffn_ratio, macs, macs_ratio, params, val_accuracy, test_accuracy,
    trials, seconds}``; accuracies in per cent, ``val_accuracy`` the mean over a pair's trainings,
    ``test_accuracy`` of the first of them and None until it was tested, ``seconds`` over all
    trials, ``name`` one of dense, fixed, searched. Of another cost than MACs there is also
    ``cost_ratio``; of latency ``latency_ms``, foretold, and once it was tested ``measured_ms``,
    ``dense_ms`` and ``measured_on``.

    Raises:
        InputError: The studies are of different dense models or data.
    """
    first = studies[0].user_attrs
    settings = first["settings"]
    for key in _SHARED:
        values = {study.user_attrs["settings"][key] for study in studies}
        if len(values) > 1:
            raise InputError(
                f"Studies in one report must be of one model and data set, but differ in {key}: "
                f"{', '.join(sorted(values))}. Name the studies."
            )
    dense = first["dense"]
    rows: list[dict[str, Any]] = [
        {
            "name": "dense",
            "study": None,
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
    if any(cost_of(study) != "macs" for study in studies):
        rows[0]["cost_ratio"] = 1.0
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
        "cost": cost_of(studies[0]),
        "rows": rows,
    }
    # Where validation took half of the test split: the dense model on both halves together.
    for study in studies:
        if "dense_full_test_accuracy" in study.user_attrs:
            report["dense_full_test_accuracy"] = study.user_attrs["dense_full_test_accuracy"]
    return report


def _study_row(study: Study) -> dict[str, Any] | None:
    best = answer_trial(study)
    if best is None:
        return None
    finished = finished_trials(study)
    pair = pair_of(best)
    tested = study.user_attrs.get("tested", {})
    # A search that went on has a new best, which has not been tested yet.
    if tested.get("trial") != best.number:
        tested = {}
    cost: dict[str, Any] = {}
    if cost_of(study) != "macs":
        cost["cost_ratio"] = cost_ratio_of(best)
    if "latency" in study.user_attrs:
        dense_ms = _dense_ms(study.user_attrs["latency"])
        cost["latency_ms"] = round(cost["cost_ratio"] * dense_ms, 4)
    if "pruned_ms" in tested:
        cost |= {"measured_ms": tested["pruned_ms"], "dense_ms": tested["dense_ms"]}
        cost["measured_on"] = tested["device"]
    return {
        "name": study.user_attrs["settings"]["strategy"],
        "study": study.study_name,
        "strategy": study.user_attrs["settings"].get("pruned", "structural"),
        "mhsa_ratio": pair[0],
        "ffn_ratio": pair[1],
        "macs": best.user_attrs["macs"],
        "macs_ratio": best.user_attrs["macs_ratio"],
        "params": best.user_attrs["params"],
        "val_accuracy": best.user_attrs["accuracy"],
        "test_accuracy": tested.get("accuracy"),
        "trials": len(finished),
        "seconds": round(sum(t.user_attrs.get("seconds", 0.0) for t in finished), 1),
        **cost,
    }


def results_table(report: dict[str, Any]) -> Table:
    """The rows of :func:`build_report` for a terminal, narrow enough for 80 columns."""
    priced = any("cost_ratio" in row for row in report["rows"])
    shares = f"FLOPs and {COST_WORDS[report['cost']]}" if priced else "FLOPs"
    title = f"{report['model']} on {report['dataset']}, {shares} as a share of dense"
    names = ["", "MHSA", "FFN", "FLOPs", "params", "val %", "test %", "trials", "sec"]
    table = _table(title, *_with_cost(names, "cost", priced))
    for row in report["rows"]:
        cells = [
            row["name"],
            f"{row['mhsa_ratio']:.3f}",
            f"{row['ffn_ratio']:.3f}",
            f"{row['macs_ratio']:.4f}",
            f"{row['params']:,}",
            f"{row['val_accuracy']:.2f}",
            _number(row["test_accuracy"], 2),
            str(row["trials"]),
            f"{row['seconds']:,.1f}",
        ]
        table.add_row(*_with_cost(cells, _number(row.get("cost_ratio"), 4), priced))
    return table


def trial_rows(study: Study) -> list[dict[str, Any]]:
    """All trials in the order of the search, each with :data:`TRIAL_COLUMNS`; None if unknown."""
    best = answer_trial(study)
    rows = []
    for trial in study.get_trials(deepcopy=False):
        known = {**trial.user_attrs, **trial.params, "accuracy": accuracy_of(trial, study)}
        rows.append(
            {name: known.get(name) for name in TRIAL_COLUMNS}
            | {
                "study": study.study_name,
                "trial": trial.number,
                "state": trial.state.name,
                "best": best is not None and trial.number == best.number,
            }
        )
    return rows


def trials_table(study: Study) -> Table:
    """One line a trial, in the order of the search."""
    names = ["trial", "state", "MHSA", "FFN", "FLOPs", "pruned %", "val %", "drop", "sec"]
    cost = cost_of(study)
    priced, word = cost != "macs", COST_WORDS[cost]
    table = _table(f"study {study.study_name!r}", *_with_cost(names, word, priced, at=5))
    for row in trial_rows(study):
        cells = [
            str(row["trial"]),
            row["state"],
            _number(row["mhsa_ratio"], 3),
            _number(row["ffn_ratio"], 3),
            _number(row["macs_ratio"], 4),
            _number(row["accuracy_pruned"], 2),
            _number(row["accuracy"], 2),
            _number(row["accuracy_drop"], 2),
            _number(row["seconds"], 1),
        ]
        cells = _with_cost(cells, _number(row["cost_ratio"], 4), priced, at=5)
        table.add_row(*cells, style="bold" if row["best"] else "")
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


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _with_cost(cells: list[str], cost: str, priced: bool, at: int = 4) -> list[str]:
    """Cells of a row with that of the cost after the FLOPs, where it is another."""
    return [*cells[:at], cost, *cells[at:]] if priced else cells


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
