"""Load the studies of a storage, and find the baseline of one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study

from vit_ratio_opt._compat import study_names
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.study import StudyRecord, is_ours, record_of
from vit_ratio_opt.utils.text import shorten

__all__ = ["baseline_of", "fixed_studies", "load_studies"]

_MOST_NAMES = 20

_logger = logging.getLogger(f"optuna.{__name__}")


def load_studies(storage: BaseStorage, names: Sequence[str] = ()) -> list[Study]:
    """Load the named studies, or every study that this package created; searched ones come last.

    Without names, damaged and unfinished studies are left out with a warning, unless there are no
    others.

    Args:
        storage: The storage of the studies.
        names: The names of the studies; empty for all.

    Raises:
        InputError: A named study does not exist, was not created by this package or is damaged,
            or the storage has no study created by this package.
    """
    attributes = _attributes_of_all(storage)
    records: dict[str, StudyRecord] = {}
    for name in names:
        if name not in attributes:
            known = ", ".join(map(shorten, sorted(attributes)[:_MOST_NAMES])) or "none"
            known += ", …" if len(attributes) > _MOST_NAMES else ""
            raise InputError(f"The storage has no study {shorten(name)!r}; it has: {known}.")
        records[name] = _read(name, attributes[name])
    damaged: list[InputError] = []
    for name, stored in () if names else attributes.items():
        try:
            if stored is None or is_ours(stored):
                records[name] = _read(name, stored)
        except InputError as error:
            damaged.append(error)
    if not records:
        raise (damaged or [InputError("The storage has no study created by vit_ratio_opt.")])[0]
    for reason in damaged:
        _logger.warning(f"{reason} It is left out.")
    ours = sorted(records.values(), key=lambda record: not record.is_fixed)
    return [optuna.load_study(study_name=record.name, storage=storage) for record in ours]


def fixed_studies(storage: BaseStorage) -> list[Study]:
    """Return the studies of one fixed ratio in a storage, but for damaged ones."""
    names = []
    for name, stored in _attributes_of_all(storage).items():
        with contextlib.suppress(InputError):  # damaged, or not of this package
            names += [name] if _read(name, stored).is_fixed else []
    return [optuna.load_study(study_name=name, storage=storage) for name in names]


def _attributes_of_all(storage: BaseStorage) -> dict[str, Mapping[str, Any] | None]:
    """Return the attributes of all studies by name; None where one of them is no JSON."""
    with contextlib.suppress(ValueError):
        # Not Optuna's summaries: these read every trial of every study.
        return {study.study_name: study.user_attrs for study in storage.get_all_studies()}
    found: dict[str, Mapping[str, Any] | None] = {}
    for name in study_names(storage):
        try:
            found[name] = storage.get_study_user_attrs(storage.get_study_id_from_name(name))
        except ValueError:
            found[name] = None
    return found


def _read(name: str, attributes: Mapping[str, Any] | None) -> StudyRecord:
    if attributes is None:
        raise InputError(
            f"Study {shorten(name)!r} is damaged: an attribute is no JSON. Restore the database, "
            "or use another study name."
        )
    return StudyRecord.read(name, attributes)


def baseline_of(study: Study, studies: Sequence[Study]) -> Study | None:
    """Return the study of one fixed ratio that a searched study is compared with, or None.

    Args:
        study: The searched study.
        studies: Studies to choose from. A baseline has the dense model, data and limit of
            ``study``, or other levels of the frontier; one with its recipe and seed too is
            preferred.
    """
    settings = record_of(study).optional_settings

    def is_same(other: Study, *names: str) -> bool:
        its = record_of(other).optional_settings
        return all(getattr(settings, name) == getattr(its, name) for name in names)

    if settings is None or settings.strategy == "fixed":
        return None
    alike = (
        *("weights", "dataset", "validation", "trainer", "pruned"),
        *("budget", "tolerance", "cost", "latency_batch", "latency_engine"),
    )
    has_frontier = record_of(study).has_frontier
    found = [
        other
        for other in studies
        if record_of(other).is_fixed
        and record_of(other).has_frontier == has_frontier
        and is_same(other, *alike)
    ]
    return max(found, key=lambda other: is_same(other, "recipe", "seed"), default=None)
