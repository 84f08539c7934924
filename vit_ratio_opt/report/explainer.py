"""Keep the notes and figures of a running study up to date in optuna-dashboard."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial

from vit_ratio_opt._compat import PLOT_KEY, note_keys, read_note
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.study import StudyRecord
from vit_ratio_opt.records.trials import (
    baseline_of,
    cost_of,
)
from vit_ratio_opt.report.figures.accuracy import accuracy_figure
from vit_ratio_opt.report.figures.path import path_figure
from vit_ratio_opt.report.figures.widths import widths_figure
from vit_ratio_opt.report.notes import study_note, trial_note
from vit_ratio_opt.space.costs import cost_label
from vit_ratio_opt.utils.failures import is_storage_error, reason

__all__ = ["TIME_SHARE", "Explainer", "save_trial_note"]

# Of the time of a search, what its note and figures may take; what each trial shows comes on top.
TIME_SHARE = 0.005
# Of a note or a figure in one attribute: MySQL takes 64 KiB, after Optuna has escaped it.
_PART = 40_000  # characters
_OWN_NOTES = "*What is written below this line is kept.*"
_CARD = 430  # pixels that a figure has in the dashboard
_logger = logging.getLogger(f"optuna.{__name__}")


class Explainer:
    """A callback of ``study.optimize`` that keeps the dashboard's notes and figures up to date.

    Each trial gets its note at once. The study's own note and figures grow dearer with the number
    of trials, so they are made again when two hundred times the time has passed that the last
    time took, and by :meth:`refresh`. Several workers may do so: they write the same. What people
    write into the study's note, below ours, is kept.

    Nothing that goes wrong here disturbs the search.

    Args:
        n_trials: Trained trials that the search is to have; None if it has no such number.
    """

    def __init__(self, n_trials: int | None = None) -> None:
        self.n_trials = n_trials
        self._due = 0.0
        self._others: list[Study] | None = None

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """After each trial."""
        try:
            save_trial_note(study, trial)
        except Exception as error:
            _complain(error)
        if time.monotonic() >= self._due:
            self.refresh(study)

    def refresh(self, study: Study) -> None:
        """Make the study's note and figures anew."""
        started = time.monotonic()
        try:
            if self._others is None:
                self._others = _fixed_studies(study)
            study = snapshot(study)
            known = study._storage.get_study_system_attrs(study._study_id)
            note = study_note(study, self._others, n_trials=self.n_trials)
            _save_study_note(study, note, known)
            if answer_of(study) is not None:
                baseline = baseline_of(study, self._others)
                both = [study] if baseline is None else [study, baseline]
                cost = cost_label(cost_of(study)).constraint
                for name, figure in (
                    (f"accuracy-against-{cost}", accuracy_figure(both)),
                    ("path-of-the-search", path_figure(study, height=_CARD)),
                    ("blocks-of-the-best-model", widths_figure([study])),
                ):
                    key = f"{PLOT_KEY}{name}:"
                    _write(study, key, str(figure.to_json()), known)
        except Exception as error:
            _complain(error)
        ended = time.monotonic()
        self._due = ended + (ended - started) / TIME_SHARE


def save_trial_note(study: Study, trial: FrozenTrial) -> None:
    """As ``save_note``, which reads all notes of the study, twice, to find the one before."""
    version, text = note_keys(trial._trial_id)
    study._storage.set_study_system_attr(study._study_id, version, 1)
    _write(study, text, trial_note(study, trial), {})


def _save_study_note(study: Study, note: str, known: Mapping[str, Any]) -> None:
    """The note, with what somebody has written below the one before, or instead of it."""
    number, before = read_note(known)
    _, _, kept = before.partition(_OWN_NOTES)
    if _OWN_NOTES not in before:
        kept = before
    whole = f"{note}\n\n---\n\n{_OWN_NOTES}\n\n{kept.strip()}\n"
    if whole != before:
        version, text = note_keys()
        study._storage.set_study_system_attr(study._study_id, version, number + 1)
        _write(study, text, whole, known)


def _write(study: Study, key: str, text: str, known: Mapping[str, Any]) -> None:
    """A text under a key of the dashboard's, in as few parts as may be.

    The dashboard's own functions make parts of 2,045 characters. Those of two workers that write
    at the same time get mixed, and a figure that is no JSON takes its page down.

    Args:
        study: The study.
        key: What the parts' numbers are appended to.
        text: All of it.
        known: The study's system attributes, among which there may be more parts than now.
    """
    parts = [text[start : start + _PART] for start in range(0, max(1, len(text)), _PART)]
    parts += [""] * (sum(name.startswith(key) for name in known) - len(parts))
    for number, part in enumerate(parts):
        study._storage.set_study_system_attr(study._study_id, f"{key}{number}", part)


def _fixed_studies(study: Study) -> list[Study]:
    """Studies of one fixed ratio beside this one."""
    storage = study._storage
    names = []
    for other in storage.get_all_studies():
        with contextlib.suppress(InputError):  # a damaged one, or not ours
            record = StudyRecord.read(other.study_name, other.user_attrs)
            names += [record.name] if record.settings.strategy == "fixed" else []
    return [optuna.load_study(study_name=name, storage=storage) for name in names]


def _complain(error: Exception) -> None:
    if not is_storage_error(error):  # the search itself will notice that
        _logger.warning(f"The dashboard's notes were not written: {reason(error)}")
