"""Create a study, or open it again, so that any number of processes may try at once.

All that a study stores is computed first. Its unique name is the claim; settings are written first
and a mark last. A second process waits for the mark, compares the settings and adopts
what is stored. A creation without a mark was interrupted: it is deleted and made again.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection

from vit_ratio_opt._compat import METRIC_NAMES
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.study import COMPLETE, StudyRecord, is_complete
from vit_ratio_opt.runs.processes import is_dead, process_name
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.runs.storage_url import DEFAULT_STORAGE
from vit_ratio_opt.runs.task import StudyTask, check_settings

__all__ = ["check_study", "create_study"]

# A creation that writes nothing for this time was interrupted.
_PATIENCE_SECONDS, _LOOK_SECONDS = 10.0, 0.05
_MOST_CLAIMS = 20
_PLACEHOLDER = re.compile(r"placeholder of (.+) [0-9a-f-]{36}")

_logger = optuna.logging.get_logger(f"optuna.{__name__}")


def check_study(task: StudyTask, study_name: str, storage: BaseStorage) -> None:
    """Refuse a name that the storage has with other settings. Nothing is written.

    Raises:
        InputError: With the settings that differ.
    """
    if not study_name:
        raise InputError("The study name must not be empty.")
    study_id = _find(storage, study_name)
    if study_id is None or _is_empty(storage, study_id):
        return
    # Read after that look: what was not empty then has its settings by now, if it gets any.
    attributes = _attributes(storage, study_id)
    if attributes is not None:
        check_settings(task, study_name, attributes)


def create_study(
    task: StudyTask,
    *,
    study_name: str,
    storage: str | BaseStorage = DEFAULT_STORAGE,
    pruner: optuna.pruners.BasePruner | None = None,
) -> Study:
    """Create a study, or resume it if the storage has one of this name and these settings.

    The study stores the settings on which the numbers of its trials depend and the figures of the
    dense model, and always comes with the sampler that fits them. Any number of processes may
    create it at the same time; a creation that was killed is finished by the next process.

    Args:
        task: The search of the study.
        study_name: Name of the study in the storage.
        storage: SQLAlchemy URL, or a storage of Optuna.
        pruner: Optuna pruner for the reports after each epoch; none by default.

    Raises:
        InputError: The storage cannot be used, the study exists with other settings, or models
            cannot be kept.
    """
    backend = open_storage(storage)
    check_study(task, study_name, backend)
    _remove_placeholders(backend)
    new: dict[str, Any] | None = None
    for _ in range(_MOST_CLAIMS):
        study_id = _find(backend, study_name)
        is_there = study_id is not None and _wait_for_mark(backend, study_id)
        if not is_there:
            if new is None:
                task.check()
                new = _stored_attributes(task)
            if _find(backend, study_name) != study_id:  # another process was faster
                continue
            if study_id is None:
                is_there = _create(task, study_name, backend, new)
            else:
                is_there = _create_again(task, study_name, backend, new, study_id)
        study = _load(study_name, backend, pruner) if is_there else None
        if study is not None:
            _adopt(task, study)
            return study
    raise InputError(
        f"Study {study_name!r} could not be created: other processes deleted it {_MOST_CLAIMS} "
        "times. Use another study name."
    )


# Reading


def _find(storage: BaseStorage, study_name: str) -> int | None:
    try:
        return storage.get_study_id_from_name(study_name)
    except KeyError:
        return None


def _attributes(storage: BaseStorage, study_id: int) -> dict[str, Any] | None:
    """Return the attributes of a study; None where it was deleted."""
    try:
        return dict(storage.get_study_user_attrs(study_id))
    except KeyError:
        return None


def _is_empty(storage: BaseStorage, study_id: int) -> bool:
    """Return whether nothing is stored in the study, as after an interrupted creation."""
    try:
        notes = set(storage.get_study_system_attrs(study_id)) - {METRIC_NAMES}
        return not (
            notes or storage.get_study_user_attrs(study_id) or storage.get_n_trials(study_id)
        )
    except KeyError:  # deleted
        return True


def _wait_for_mark(storage: BaseStorage, study_id: int) -> bool:
    """Wait until the creation of a study is finished; False where nothing is written any more."""
    written, deadline = -1, 0.0
    while (attributes := _attributes(storage, study_id)) is not None:
        if is_complete(attributes):
            return True
        if len(attributes) > written:
            written, deadline = len(attributes), time.monotonic() + _PATIENCE_SECONDS
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return False


# Writing


def _stored_attributes(task: StudyTask) -> dict[str, Any]:
    """Return what a new study stores, as JSON gives it back."""
    stored: dict[str, Any] = json.loads(json.dumps({**task.new_attributes(), COMPLETE: True}))
    return stored


def _create(
    task: StudyTask, study_name: str, storage: BaseStorage, new: Mapping[str, Any]
) -> bool:
    """Claim the name and write everything; False where another process has the name."""
    try:
        study = optuna.create_study(
            study_name=study_name, storage=storage, directions=task.directions
        )
    except DuplicatedStudyError:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(task.value_names)
        for key, value in new.items():
            study.set_user_attr(key, value)
        return _attributes(storage, study._study_id) == dict(new)
    except KeyError:  # it took too long, and another process has deleted the study
        return False


def _create_again(
    task: StudyTask,
    study_name: str,
    storage: BaseStorage,
    new: Mapping[str, Any],
    interrupted: int,
) -> bool:
    """Delete a study whose creation was interrupted, and create it.

    SQLite gives the number of the last study again after its deletion, and a process that is late
    would write into, or delete, the wrong one. A placeholder keeps the numbers growing.

    Raises:
        InputError: The study has other settings, or is not of this package.
    """
    is_empty, attributes = _is_empty(storage, interrupted), _attributes(storage, interrupted)
    if attributes is None or is_complete(attributes):
        return False
    if not is_empty:
        check_settings(task, study_name, attributes)
        if storage.get_n_trials(interrupted):
            raise InputError(
                f"Study {study_name!r} has trials, but its creation was not finished: use another "
                "name."
            )
    placeholder = storage.create_new_study(
        [StudyDirection.MAXIMIZE], f"placeholder of {process_name()} {uuid.uuid4()}"
    )
    try:
        storage.delete_study(interrupted)
        return _create(task, study_name, storage, new)
    except KeyError:  # another process has deleted it
        return False
    finally:
        with contextlib.suppress(KeyError):
            storage.delete_study(placeholder)


def _remove_placeholders(storage: BaseStorage) -> None:
    """Delete those of this process, and of processes of this machine that were killed."""
    for name in optuna.get_all_study_names(storage):
        found = _PLACEHOLDER.fullmatch(name)
        if found is not None and (found[1] == process_name() or is_dead(found[1])):
            with contextlib.suppress(KeyError):  # another process was faster
                storage.delete_study(storage.get_study_id_from_name(name))


# Adopting


def _load(
    study_name: str, storage: BaseStorage, pruner: optuna.pruners.BasePruner | None
) -> Study | None:
    """Load the study; None where it was deleted."""
    try:
        return optuna.load_study(
            study_name=study_name, storage=storage, pruner=pruner or optuna.pruners.NopPruner()
        )
    except KeyError:
        return None


def _adopt(task: StudyTask, study: Study) -> None:
    """Adopt in the search what a complete study stores, and set the study's sampler.

    Raises:
        InputError: The study has other settings, or is damaged.
    """
    warning = check_settings(task, study.study_name, study.user_attrs)
    if warning is not None:
        _logger.warning(warning)
    record = StudyRecord.read(study.study_name, study.user_attrs)
    task.adopt(record)
    if record.settings.unknown:
        _logger.warning(
            f"Study {study.study_name!r} was created by version 0.1.0, which did not record "
            f"{', '.join(record.settings.unknown)}: these are not compared."
        )
        for key, value in task.missing_attributes(study.user_attrs).items():
            study.set_user_attr(key, value)
    study.sampler = task.sampler(study.user_attrs)
