"""Describe studies in rows, sentences and tables: dense, fixed ratio, searched pair."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.answer import Answer, Candidate, answer_of, answer_trial
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.trials import (
    DAMAGED,
    accuracy_of,
    attribute,
    baseline_of,
    cost_of,
    cost_word,
    finished_trials,
    is_ratio,
    limit_of,
    shown_attribute,
    tested_accuracy,
)
from vit_ratio_opt.space.costs import cost_label
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.utils.text import plain, short

__all__ = [
    "TRIAL_COLUMNS",
    "answer_sentences",
    "build_report",
    "expected",
    "group_studies",
    "results_table",
    "summary",
    "timing_split",
    "trial_rows",
    "trials_table",
    "val_text",
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

# Columns that are no attributes of a trial.
_COMPUTED = ("study", "trial", "state", "best", "mhsa_ratio", "ffn_ratio")
# What a trial cannot do without; the rest of its time is the price of searching and pruning.
_WORK = ("train", "evaluate", "data")
# Settings that the studies of one table have in common.
_SHARED = ("weights", "dataset", "validation")
# Settings in which a study of the fixed ratio may differ from a search that trains the same model.
_OF_THE_SEARCH = ("schema_version", "strategy", "noise", "confirmations", "confidence")
# Accuracies of single trainings that a sentence lists.
_MOST_VALUES = 4


def summary(study: Study, studies: Sequence[Study] = ()) -> list[str]:
    """Return the study in sentences: what is looked for, the answer, what that saves.

    Args:
        study: The study.
        studies: Studies among which there may be one of the fixed ratio, for a study that has not
            trained the fixed ratio itself.
    """
    study = snapshot(study)
    settings, dense = study.user_attrs["settings"], study.user_attrs["dense"]
    latency = study.user_attrs.get("latency")
    takes = "" if latency is None else f", and takes {_conditions(latency)}"
    fixed = settings["strategy"] == "fixed"
    ratios = "one fixed ratio of" if fixed else "how much each of"
    looked_for = (
        f"This study looks for {ratios} attention (MHSA) and feed-forward (FFN) to prune from "
        f"{short(settings['model'])} on {short(settings['dataset'])}, with {limit_of(study)}; "
        f"the dense model has {dense['val_accuracy']:.2f} % on validation images and "
        f"needs {dense['macs']:,} FLOPs an image (1 FLOP is 1 multiply-add){takes}."
    )
    answer = answer_of(study)
    sentence, *why = answer_sentences(study)
    if answer is None:
        return [looked_for, sentence]
    return [
        looked_for,
        sentence,
        *_comparison(study, answer, studies),
        *_measurements(study, answer),
        *why,
    ]


def answer_sentences(study: Study) -> list[str]:
    """Return the answer in a sentence, and in another one why Optuna's best trial differs."""
    study = snapshot(study)
    answer, done = answer_of(study), len(finished_trials(study))
    if answer is None and not done:
        return ["There is no answer yet: no trial was trained."]
    if answer is None:
        return [
            f"There is no answer yet: none of {done} trained trials is complete and within the "
            "limit."
        ]
    why = [] if answer.why_not_best is None else [answer.why_not_best]
    found = answer.found
    if found is None:
        return [
            f"The answer is the dense model: after {done} trained trials, no pair keeps the "
            f"tolerance with a probability of {answer.confidence:g} yet.",
            *why,
        ]
    pair = f"MHSA ratio {found.pair[0]:.3f} and FFN ratio {found.pair[1]:.3f}"
    reason = ""
    if study.user_attrs["settings"]["strategy"] == "fixed":
        pair = f"the fixed ratio {found.pair[0]:.3f}"
    if answer.is_baseline:
        pair = f"the fixed ratio {found.pair[0]:.3f}"
        reason = f": {_why_the_baseline(answer)}"
    elif answer.confidence is not None:
        reason = (
            f": the cheapest pair that keeps the tolerance with a probability of "
            f"{answer.confidence:g} or more, its own being {found.probability:.2f}"
        )
    name = cost_word(study)
    return [
        f"The answer is trial {found.trial.number}, {pair}{reason}. It has "
        f"{100 * found.cost_ratio:.1f} % of the {name}, and {expected(found)} validation accuracy "
        f"is expected; {_trainings(found)}.",
        *why,
    ]


def expected(found: Candidate) -> str:
    """Return the posterior mean and its standard error, such as ``95.31 ± 0.42 %``."""
    return f"{_with_error(found.accuracy, found.error)} %"


def _with_error(accuracy: float, error: float) -> str:
    return f"{accuracy:.2f} ± {error:.2f}"


def _why_the_baseline(answer: Answer) -> str:
    contender = answer.contender
    if contender is None:
        return "no other pair was trained yet"
    trial = contender.trial.number
    if contender.probability <= 0.5:
        return (
            "no other pair is better with a probability above one half (the likeliest, of trial "
            f"{trial}, with {contender.probability:.2f})"
        )
    return (
        f"the likeliest other pair, of trial {trial}, is better with a probability of "
        f"{contender.probability:.2f}, which is a tie, and was trained less often"
    )


def _trainings(found: Candidate) -> str:
    values = [f"{accuracy:.2f}" for accuracy in found.own_accuracies]
    stopped = len(values) - found.trained
    if stopped:
        whole = "once" if found.trained == 1 else f"{found.trained} times"
        return (
            f"the pair was trained {whole} to the end, and {stopped} of its trainings were "
            f"stopped early ({', '.join(values)} %)"
        )
    if len(values) == 1:
        return f"the pair was trained once, with {values[0]} %, so it is not confirmed"
    if len(values) > _MOST_VALUES:
        return (
            f"the pair was trained {len(values)} times, with {found.own_accuracy:.2f} % on average"
        )
    listed = f"{', '.join(values[:-1])} and {values[-1]} %"
    return f"the pair was trained {len(values)} times, with {listed}"


def _comparison(study: Study, answer: Answer, studies: Sequence[Study]) -> list[str]:
    """Return what the answer saves against the fixed ratio, in a sentence."""
    found, baseline = answer.found, answer.baseline
    if study.user_attrs["settings"]["strategy"] == "fixed":
        return ["It is the baseline that a search of both ratios has to beat."]
    if answer.is_baseline:
        return []
    if baseline is not None and baseline.trained == 0:
        return [
            f"The training of the fixed ratio {baseline.pair[0]:.3f} (trial "
            f"{baseline.trial.number}) was stopped early, so there is nothing to compare with."
        ]
    if baseline is not None and found is not None:
        # Of the figures beside it, as a reader would subtract them.
        gain = round(found.accuracy, 2) - round(baseline.accuracy, 2)
        return [
            f"Against the fixed ratio {baseline.pair[0]:.3f} of the same study (trial "
            f"{baseline.trial.number}, {expected(baseline)} expected) that is {gain:+.2f} points, "
            f"and the answer is better with a probability of {found.probability:.2f}."
        ]
    other = baseline_of(study, studies)
    compared = None if other is None else answer_of(other)
    if answer.has_baseline and compared is None:
        return ["The fixed ratio of this study was not trained yet."]
    if other is None or compared is None:
        return ["There is no study of one fixed ratio with this limit to compare with yet."]
    fixed, word = compared.found, cost_word(study)
    if fixed is None:
        share = answer.found.cost_ratio if answer.found is not None else 1.0
        return [
            f"The study of one fixed ratio, {short(other.study_name)}, has the dense model as its "
            f"answer: the answer here needs {share:.3f} times its {word}."
        ]
    share = (1.0 if found is None else found.cost_ratio) / fixed.cost_ratio
    against = (
        f"Against one fixed ratio of {fixed.pair[0]:.3f} (study {short(other.study_name)}, trial "
        f"{fixed.trial.number}, {expected(fixed)} expected)"
    )
    if study.user_attrs["settings"]["tolerance"] is not None:
        return [f"{against} the answer needs {share:.3f} times the {word}."]
    gain = answer.accuracy - compared.accuracy
    return [f"{against} that is {gain:+.2f} points, for {share:.3f} times the {word}."]


def _measurements(study: Study, answer: Answer) -> list[str]:
    """Return what was measured once on test images and of the latency, in sentences."""
    row, sentences = _answer_row(study, answer), []
    dense = tested_accuracy(study, None)
    if answer.found is not None and row["test_accuracy"] is not None:
        others = [] if dense is None else [f"the dense model {dense:.2f} %"]
        if answer.baseline is not None and not answer.is_baseline:
            fixed = tested_accuracy(study, answer.baseline.trial)
            others += [] if fixed is None else [f"the fixed ratio {fixed:.2f} %"]
        against = f", {' and '.join(others)}" if others else ""
        sentences.append(
            f"On test images the model of trial {row['trial']} has "
            f"{row['test_accuracy']:.2f} %{against}."
        )
    if "latency_ms" in row and answer.found is not None:
        sentences.append(
            f"Its latency is predicted to be {row['latency_ms']:.2f} ms, "
            f"{100 * row['cost_ratio']:.1f} % of the dense model's."
        )
    if "measured_ms" in row:
        share = 100 * row["measured_ms"] / row["dense_ms"]
        sentences.append(
            f"Measured on {row['measured_on']}, its model takes {row['measured_ms']:.2f} ms and "
            f"the dense model {row['dense_ms']:.2f} ms, {share:.1f} %."
        )
    return sentences


def _conditions(latency: Mapping[str, Any]) -> str:
    """Return the dense model's predicted latency and the error of the prediction."""
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
    """Return ``{model, dataset, seed, epochs, device, versions, rows}`` of one dense model.

    Beside them ``budget`` and ``tolerance``, one of which is None, and ``cost``. Rows:

    - ``dense``: the dense model.
    - ``fixed``: the fixed ratio's pair in a search within a budget, or the answer of a study of
      one fixed ratio. A study whose pair and settings are those of a search is not listed again.
    - ``searched``: the answer of a search. Where it is the dense model, ``trial`` is None,
      ``trained`` is 0 and the ratios are 0.

    A row is ``{name, study, strategy, mhsa_ratio, ffn_ratio, macs, macs_ratio, params, trial,
    val_accuracy, val_error, own_accuracy, trained, probability, test_accuracy, trials, seconds}``.
    Accuracies are in per cent:

    - ``val_accuracy`` and ``val_error``: posterior mean of the pair's validation accuracy, and its
      standard error in percentage points; ``own_accuracy``: mean of the pair's own trainings.
    - ``trial``: the number of the trial whose model is taken; ``trained``: trainings of the pair.
    - ``probability``: within a budget, that the pair is better than the fixed ratio's of the same
      study, else None; with a tolerance, that it keeps the tolerance.
    - ``test_accuracy``: of the model of ``trial``, None until it was tested.
    - ``trials`` and ``seconds``: of all trials of the study, in the row of a fixed ratio that a
      search has trained those of its own trainings.

    Of another cost than MACs there is also ``cost_ratio``; of latency ``latency_ms``, predicted,
    and once it was tested ``measured_ms``, ``dense_ms`` and ``measured_on``.

    Raises:
        InputError: The studies are of different dense models or data.
    """
    studies = [snapshot(study) for study in studies]
    first = studies[0].user_attrs
    settings = first["settings"]
    for key in _SHARED:
        values = {study.user_attrs["settings"][key] for study in studies}
        if len(values) > 1:
            raise InputError(
                f"Studies in one report must be of one model and data set, but differ in {key}: "
                f"{', '.join(map(short, sorted(values)))}. Name the studies."
            )
    tested = (tested_accuracy(study, None) for study in studies)
    rows = [
        {
            "name": "dense",
            "study": None,
            "strategy": "none",
            **_dense_figures(studies[0]),
            "test_accuracy": next((value for value in tested if value is not None), None),
            "trials": 0,
            "seconds": 0.0,
        }
    ]
    if any(cost_of(study) != "macs" for study in studies):
        rows[0]["cost_ratio"] = 1.0
    answers = {study.study_name: answer_of(study) for study in studies}
    searches = [(study, answers[study.study_name]) for study in studies]
    for study, answer in searches:
        if answer is None or _is_listed_elsewhere(study, answer, searches):
            continue
        if answer.baseline is not None:
            rows.append(_baseline_row(study, answer.baseline))
        rows.append(_answer_row(study, answer))
    report = {
        "model": settings["model"],
        "dataset": settings["dataset"],
        "seed": settings["seed"],
        "epochs": settings["recipe"].get("epochs"),
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


def _is_listed_elsewhere(
    study: Study, answer: Answer, searches: Sequence[tuple[Study, Answer | None]]
) -> bool:
    """Whether a search has trained the same fixed ratio with the same settings."""

    def shared(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in settings.items() if key not in _OF_THE_SEARCH}

    settings = study.user_attrs["settings"]
    if settings["strategy"] != "fixed" or answer.found is None:
        return False
    return any(
        other is not None
        and other.baseline is not None
        and other.baseline.pair == answer.found.pair
        and shared(search.user_attrs["settings"]) == shared(settings)
        for search, other in searches
    )


def _dense_figures(study: Study) -> dict[str, Any]:
    dense = study.user_attrs["dense"]
    return {
        "mhsa_ratio": 0.0,
        "ffn_ratio": 0.0,
        "macs": dense["macs"],
        "macs_ratio": 1.0,
        "params": dense["params"],
        "trial": None,
        "val_accuracy": dense["val_accuracy"],
        "val_error": 0.0,
        "own_accuracy": dense["val_accuracy"],
        "trained": 0,
        "probability": None,
    }


def _figures(found: Candidate, probability: float | None) -> dict[str, Any]:
    return {
        "mhsa_ratio": found.pair[0],
        "ffn_ratio": found.pair[1],
        **{name: attribute(found.trial, name) for name in ("macs", "macs_ratio", "params")},
        "trial": found.trial.number,
        "val_accuracy": found.accuracy,
        "val_error": found.error,
        "own_accuracy": found.own_accuracy,
        "trained": found.trained,
        "probability": probability,
    }


def _answer_row(study: Study, answer: Answer) -> dict[str, Any]:
    """Return the row of a study's answer."""
    found, finished = answer.found, finished_trials(study)
    if found is None:
        figures, trial = _dense_figures(study), None
    else:
        is_compared = answer.confidence is not None or (
            answer.baseline is not None and not answer.is_baseline
        )
        figures, trial = _figures(found, found.probability if is_compared else None), found.trial
    tested = study.user_attrs.get("tested", {})
    measured = {}
    # A search that went on has another answer, whose latency is not measured yet.
    if tested.get("pruned_ms") is not None and trial and tested.get("trial") == trial.number:
        measured = {"measured_ms": tested["pruned_ms"], "dense_ms": tested["dense_ms"]}
        measured["measured_on"] = tested["device"]
    return {
        "name": study.user_attrs["settings"]["strategy"],
        "study": study.study_name,
        "strategy": study.user_attrs["settings"].get("pruned", "structural"),
        **figures,
        "test_accuracy": tested_accuracy(study, trial),
        "trials": len(finished),
        "seconds": _seconds(finished),
        **_cost(study, 1.0 if found is None else found.cost_ratio),
        **measured,
    }


def _baseline_row(study: Study, baseline: Candidate) -> dict[str, Any]:
    """Return the row of the fixed ratio's pair that a search has trained."""
    return {
        "name": "fixed",
        "study": study.study_name,
        "strategy": study.user_attrs["settings"].get("pruned", "structural"),
        **_figures(baseline, None),
        "test_accuracy": tested_accuracy(study, baseline.trial),
        "trials": baseline.trained,
        "seconds": _seconds(baseline.trials),
        **_cost(study, baseline.cost_ratio),
    }


def _cost(study: Study, cost_ratio: float) -> dict[str, Any]:
    cost: dict[str, Any] = {} if cost_of(study) == "macs" else {"cost_ratio": cost_ratio}
    if "latency" in study.user_attrs:
        dense_ms = _dense_ms(study.user_attrs["latency"])
        cost["latency_ms"] = round(cost_ratio * dense_ms, 4)
    return cost


def _seconds(trials: Sequence[FrozenTrial]) -> float:
    return round(sum(float(attribute(trial, "seconds") or 0) for trial in trials), 1)


def results_table(report: dict[str, Any]) -> Table:
    """Return the rows of :func:`build_report` for a terminal, narrow enough for 80 columns."""
    priced = any("cost_ratio" in row for row in report["rows"])
    shares = f"FLOPs and {cost_label(report['cost']).word}" if priced else "FLOPs"
    about = f"{short(report['model'])} on {short(report['dataset'])}"
    title = f"{about}, {shares} as a share of dense"
    names = ["", "trial", "MHSA", "FFN", "FLOPs", "params", "val %", "test %", "sec"]
    table = _table(title, *_with_cost(names, "cost", priced, at=5))
    for row in report["rows"]:
        cells = [
            row["name"],
            "dense" if row["trial"] is None and row["study"] is not None else _cell(row["trial"]),
            f"{row['mhsa_ratio']:.3f}",
            f"{row['ffn_ratio']:.3f}",
            _number(row["macs_ratio"], 4),
            "-" if row["params"] is None else f"{row['params']:,}",
            val_text(row),
            _number(row["test_accuracy"], 2),
            f"{row['seconds']:,.0f}",
        ]
        table.add_row(*_with_cost(cells, _number(row.get("cost_ratio"), 4), priced, at=5))
    return table


def val_text(row: Mapping[str, Any]) -> str:
    """Return the validation accuracy of a row, with its error where it is of a pair."""
    if row["trial"] is None:
        return f"{row['val_accuracy']:.2f}"
    return _with_error(row["val_accuracy"], row["val_error"])


def trial_rows(study: Study) -> list[dict[str, Any]]:
    """Return all trials in their order, each with :data:`TRIAL_COLUMNS`; None where unknown.

    ``best`` marks the trial of the study's answer. An attribute of another type than this package
    writes is the word ``damaged``.
    """
    study = snapshot(study)
    best = answer_trial(study)
    rows = []
    for trial in study.get_trials(deepcopy=False):
        known = {
            name: shown_attribute(trial, name) for name in TRIAL_COLUMNS if name not in _COMPUTED
        }
        known |= {
            "study": study.study_name,
            "trial": trial.number,
            "state": trial.state.name,
            "best": best is not None and trial.number == best.number,
            **{name: _ratio(trial, name) for name in RatioPair._fields},
        }
        if known["accuracy"] != DAMAGED:
            known["accuracy"] = accuracy_of(trial, study)
        rows.append({name: known[name] for name in TRIAL_COLUMNS})
    return rows


def _ratio(trial: FrozenTrial, name: str) -> float | str | None:
    ratio = trial.params.get(name)
    return ratio if ratio is None or is_ratio(ratio) else DAMAGED


def trials_table(study: Study) -> Text:
    """Return a table with one line for each trial, in the order of the search."""
    study = snapshot(study)
    cost = cost_of(study)
    priced, word = cost != "macs", cost_label(cost).word
    names = ["trial", "state", "MHSA", "FFN", "FLOPs", "pruned %", "val %", "drop", "sec"]
    rows = trial_rows(study)
    table = [_with_cost(names, word, priced, at=5)]
    for row in rows:
        cells = [
            f"{row['trial']} *" if row["best"] else str(row["trial"]),
            row["state"],
            _number(row["mhsa_ratio"], 3),
            _number(row["ffn_ratio"], 3),
            _number(row["macs_ratio"], 4),
            _number(row["accuracy_pruned"], 2),
            _number(row["accuracy"], 2),
            _number(row["accuracy_drop"], 2),
            _number(row["seconds"], 1),
        ]
        table.append(_with_cost(cells, _number(row["cost_ratio"], 4), priced, at=5))
    # A table of rich takes minutes for some thousand trials.
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        " ".join(
            [cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]  # as numbers are
        )
        for cells in table
    ]
    text = Text(no_wrap=True, overflow="ellipsis", end="")
    text.append(f"study {short(study.study_name)!r} (*: the answer)\n", style="italic")
    text.append(f"{lines[0]}\n", style="bold")
    text.append(f"{'-' * len(lines[0])}\n")
    for line, row in zip(lines[1:], rows, strict=True):
        text.append(f"{line}\n", style="bold" if row["best"] else "")
    return text


def timing_split(study: Study) -> dict[str, float]:
    """Shares of the complete trials' time: training, evaluation, data, and everything else.

    The whole is from a trial's creation to its end in the storage, so "other" holds the sampler,
    the storage, importance, surgery and checkpoints. Empty without a complete trial.
    """
    trials = [(trial, attribute(trial, "timing")) for trial in finished_trials(study)]
    timed = [(trial.duration, timing) for trial, timing in trials if timing is not None]
    whole = sum(duration.total_seconds() for duration, _ in timed if duration is not None)
    if whole <= 0:
        return {}
    shares = {name: sum(timing.get(name, 0.0) for _, timing in timed) for name in _WORK}
    shares = {name: seconds / whole for name, seconds in shares.items()}
    return {**shares, "other": 1 - sum(shares.values())}


def _table(title: str, *columns: str) -> Table:
    look: dict[str, Any] = {"box": SIMPLE, "padding": (0, 1, 0, 0), "show_edge": False}
    table = Table(title=Text(plain(title)), title_justify="left", **look)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _with_cost(cells: list[str], cost: str, priced: bool, at: int = 4) -> list[str]:
    """Cells of a row with that of the cost after the FLOPs, where it is another."""
    return [*cells[:at], cost, *cells[at:]] if priced else cells


def _cell(value: int | None) -> str:
    return "-" if value is None else str(value)


def _number(value: object, digits: int) -> str:
    """Return a number as text, a dash for none, and a word as it is."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else str(value)
