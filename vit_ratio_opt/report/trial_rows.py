"""Rows of trials, as dictionaries that all tables show, and how their time is spent."""

from __future__ import annotations

from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial

from vit_ratio_opt.records.answer import answer_trial
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.trial import DAMAGED, attribute, shown_attribute
from vit_ratio_opt.records.trials import accuracy_of, finished_trials, is_ratio
from vit_ratio_opt.space.pairs import RatioPair

__all__ = ["TRIAL_COLUMNS", "timing_split", "trial_rows"]

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
"""The keys of :func:`trial_rows`, in the order in which they are shown everywhere."""

# Columns that are no attributes of a trial.
_COMPUTED = ("study", "trial", "state", "best", "mhsa_ratio", "ffn_ratio")
# Parts of a trial's time that any training needs; the rest is the price of searching and pruning.
_WORK = ("train", "evaluate", "data")


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


def timing_split(study: Study) -> dict[str, float]:
    """Return shares of the complete trials' time: training, evaluation, data, everything else.

    The whole is from a trial's creation to its end in the storage, so "other" has the sampler, the
    storage, importance, surgery and checkpoints. Empty without a complete trial.
    """
    trials = [(trial, attribute(trial, "timing")) for trial in finished_trials(study)]
    timed = [(trial.duration, timing) for trial, timing in trials if timing is not None]
    whole = sum(duration.total_seconds() for duration, _ in timed if duration is not None)
    if whole <= 0:
        return {}
    shares = {name: sum(timing.get(name, 0.0) for _, timing in timed) for name in _WORK}
    shares = {name: seconds / whole for name, seconds in shares.items()}
    return {**shares, "other": 1 - sum(shares.values())}
