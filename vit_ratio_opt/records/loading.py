"""Load the studies of a storage, and find the baseline of one."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.study import StudyRecord, is_ours, record_of
from vit_ratio_opt.utils.text import short

__all__ = ["baseline_of", "load_studies"]

_MOST_NAMES = 20

_logger = logging.getLogger(f"optuna.{__name__}")


def load_studies(storage: BaseStorage, names: Sequence[str] = ()) -> list[Study]:
    """Load the named studies, or every study that this package created; searched ones come last.

    Of all studies, damaged and unfinished ones are left out, with a warning each, unless no other
    is left.

    Args:
        storage: The storage of the studies.
        names: The names of the studies; empty for all.

    Raises:
        InputError: A named study does not exist, was not created by this package or is damaged,
            or the storage has no study created by this package.
    """
    # Not Optuna's summaries: these read every trial of every study.
    summaries = {s.study_name: s for s in storage.get_all_studies()}
    records: dict[str, StudyRecord] = {}
    for name in names:
        if name not in summaries:
            known = ", ".join(map(short, sorted(summaries)[:_MOST_NAMES])) or "none"
            known += ", …" if len(summaries) > _MOST_NAMES else ""
            raise InputError(f"The storage has no study {short(name)!r}; it has: {known}.")
        records[name] = StudyRecord.read(name, summaries[name].user_attrs)
    damaged: list[InputError] = []
    for name, summary in () if names else summaries.items():
        if is_ours(summary.user_attrs):
            try:
                records[name] = StudyRecord.read(name, summary.user_attrs)
            except InputError as error:
                damaged.append(error)
    if not records:
        raise (damaged or [InputError("The storage has no study made by vit_ratio_opt.")])[0]
    for reason in damaged:
        _logger.warning(f"{reason} It is left out.")
    ours = sorted(records.values(), key=lambda record: not record.is_fixed)
    return [optuna.load_study(study_name=record.name, storage=storage) for record in ours]


def baseline_of(study: Study, studies: Sequence[Study]) -> Study | None:
    """Return the study of one fixed ratio that a searched study is compared with, or None.

    Args:
        study: The searched study.
        studies: Studies to choose from. A baseline has the dense model, data and limit of
            ``study``; one with its recipe and seed too is preferred.
    """
    settings = record_of(study).optional_settings

    def is_same(other: Study, *names: str) -> bool:
        its = record_of(other).optional_settings
        return all(getattr(settings, name) == getattr(its, name) for name in names)

    if settings is None or settings.strategy == "fixed":
        return None
    alike = (
        *("weights", "dataset", "validation", "trainer", "pruned"),
        *("budget", "tolerance", "cost", "latency_batch"),
    )
    found = [other for other in studies if record_of(other).is_fixed and is_same(other, *alike)]
    return max(found, key=lambda other: is_same(other, "recipe", "seed"), default=None)
