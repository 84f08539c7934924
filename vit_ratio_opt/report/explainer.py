"""Keep the notes and figures of a running study up to date in optuna-dashboard."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial

from vit_ratio_opt._compat import PLOT_KEY, note_keys, read_note
from vit_ratio_opt.records.answer import answer_of
from vit_ratio_opt.records.loading import baseline_of, fixed_studies
from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.report.figures.accuracy import accuracy_figure
from vit_ratio_opt.report.figures.frontier import frontier_figure
from vit_ratio_opt.report.figures.path import path_figure
from vit_ratio_opt.report.figures.widths import widths_figure
from vit_ratio_opt.report.notes import study_note, trial_note
from vit_ratio_opt.utils.failures import is_storage_error, reason

__all__ = ["TIME_SHARE", "Explainer", "save_trial_note", "write_text"]

TIME_SHARE = 0.005
"""Share of a search's time that its note and figures may take, beside the notes of its trials."""

# Characters in one attribute: MySQL takes 64 KiB, after Optuna has escaped the text.
_PART = 40_000
_OWN_NOTES = "*What is written below this line is kept.*"
_CARD = 430  # height of a figure in the dashboard, in pixels
_logger = logging.getLogger(f"optuna.{__name__}")


class Explainer:
    """Callback of ``study.optimize`` that updates the notes and figures of the dashboard.

    Each trial gets its note at once. The study's note and figures take longer the more trials
    there are: they are written again when 200 times the time has passed that writing them took
    last, and by :meth:`refresh`. Several workers may write them, since they write the same. What
    people write below the line in the study's note is kept.

    An error here is a warning and never stops the search.

    Args:
        n_trials: Number of trained trials at the end of the search; None if unknown.
        clock: Function that returns the time in seconds.
    """

    def __init__(
        self, n_trials: int | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.n_trials = n_trials
        self._clock = clock
        self._due = 0.0
        self._fixed: list[Study] | None = None

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Write the note of a trial, and those of the study if they are due."""
        try:
            save_trial_note(study, trial)
        except Exception as error:
            _warn(error)
        if self._clock() >= self._due:
            self.refresh(study)

    def refresh(self, study: Study) -> None:
        """Write the study's note and figures."""
        started = self._clock()
        try:
            self._write(study)
        except Exception as error:
            _warn(error)
        ended = self._clock()
        self._due = ended + (ended - started) / TIME_SHARE

    def _write(self, study: Study) -> None:
        if self._fixed is None:
            self._fixed = fixed_studies(study._storage)
        study = snapshot(study)
        known = study._storage.get_study_system_attrs(study._study_id)
        note = study_note(study, self._fixed, n_trials=self.n_trials)
        _save_study_note(study, note, known)
        if answer_of(study) is None:
            return
        baseline = baseline_of(study, self._fixed)
        both = [study] if baseline is None else [study, baseline]
        record = record_of(study)
        first = (
            ("frontier", frontier_figure(both, height=_CARD))
            if record.has_frontier
            else (f"accuracy-against-{record.cost.constraint}", accuracy_figure(both))
        )
        for name, figure in (
            first,
            ("path-of-the-search", path_figure(study, height=_CARD)),
            ("blocks-of-the-best-model", widths_figure([study])),
        ):
            if figure.data:
                write_text(study, f"{PLOT_KEY}{name}:", str(figure.to_json()), known)


def save_trial_note(study: Study, trial: FrozenTrial) -> None:
    """Write the note of a trial.

    The dashboard's ``save_note`` reads all notes of the study twice to find the one before.
    """
    version, text = note_keys(trial._trial_id)
    study._storage.set_study_system_attr(study._study_id, version, 1)
    write_text(study, text, trial_note(study, trial), {})


def _save_study_note(study: Study, note: str, known: Mapping[str, Any]) -> None:
    """Write the note of a study above what people have written below it, or instead of it."""
    number, before = read_note(known)
    _, _, kept = before.partition(_OWN_NOTES)
    if _OWN_NOTES not in before:
        kept = before
    whole = f"{note}\n\n---\n\n{_OWN_NOTES}\n\n{kept.strip()}\n"
    if whole != before:
        version, text = note_keys()
        study._storage.set_study_system_attr(study._study_id, version, number + 1)
        write_text(study, text, whole, known)


def write_text(study: Study, key: str, text: str, known: Mapping[str, Any]) -> None:
    """Write a text under a key of the dashboard's, in as few parts as possible.

    The dashboard's own functions write parts of 2,045 characters. The parts of two workers that
    write at the same time get mixed, and a figure that is no JSON breaks its page. A text that
    the storage has already is not written again.

    Args:
        study: The study.
        key: The key, to which the number of each part is appended.
        text: The text.
        known: The study's system attributes, which may have the text already, or more parts than
            the text needs.
    """
    parts = [text[start : start + _PART] for start in range(0, max(1, len(text)), _PART)]
    parts += [""] * (sum(name.startswith(key) for name in known) - len(parts))
    if all(known.get(f"{key}{number}") == part for number, part in enumerate(parts)):
        return
    for number, part in enumerate(parts):
        study._storage.set_study_system_attr(study._study_id, f"{key}{number}", part)


def _warn(error: Exception) -> None:
    if not is_storage_error(error):  # the search itself will report that
        _logger.warning(f"The dashboard's notes were not written: {reason(error)}")
