"""Create a study, or open it again, so that any number of processes may try at once.

All that a study stores is computed first. Then its unique name is the claim, its settings are
written first and a mark last. A process that comes second waits for the mark, compares the
settings and takes over what is stored. A creation without mark was interrupted: it is deleted and
made again.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.study import COMPLETE, StudyRecord, is_complete, settings_of
from vit_ratio_opt.runs.processes import is_dead, process_name
from vit_ratio_opt.runs.storage import DEFAULT_STORAGE, open_storage
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.plan import Pair
from vit_ratio_opt.search.sampler import PlanSampler
from vit_ratio_opt.search.tolerance import ToleranceSearch
from vit_ratio_opt.space.curve import cost_saved
from vit_ratio_opt.training.progress import show_waiting

if TYPE_CHECKING:
    from vit_ratio_opt.runs.objective import PruningObjective

__all__ = ["check_settings", "check_study", "create_study", "screened_best"]

_PACKAGES = ("vit_ratio_opt", "torch", "timm", "optuna")
# Packages whose modules may have other attributes in another version.
_MODULE_PACKAGES = ("torch", "timm")
# A creation that writes nothing for so long was interrupted.
_PATIENCE_SECONDS, _LOOK_SECONDS = 10.0, 0.05
_MOST_CLAIMS = 20
_PLACEHOLDER = re.compile(r"placeholder of (.+) [0-9a-f-]{36}")

_logger = optuna.logging.get_logger(f"optuna.{__name__}")


def check_study(objective: PruningObjective, study_name: str, storage: BaseStorage) -> None:
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
        check_settings(objective, study_name, attributes)


def create_study(
    objective: PruningObjective,
    *,
    study_name: str,
    storage: str | BaseStorage = DEFAULT_STORAGE,
    pruner: optuna.pruners.BasePruner | None = None,
    screen: bool = True,
) -> Study:
    """Create the study, or resume it when the storage has one of this name and these settings.

    The study remembers the objective's settings, on which the numbers of its trials depend, and
    the dense model's figures, and always comes with the sampler that fits them. Any number of
    processes may create it at once; one that is killed leaves it to the next.

    Args:
        objective: What the study optimises.
        study_name: Its name in the storage.
        storage: A SQLAlchemy URL or an Optuna storage.
        pruner: An Optuna pruner for the reports after each epoch; none by default.
        screen: Whether a new study begins with the best pair of
            :meth:`~vit_ratio_opt.PruningObjective.screen`, or with a tolerance on
            :attr:`~vit_ratio_opt.PruningObjective.path`, which the study remembers too.

    Raises:
        InputError: The storage cannot be used, the study exists with other settings, or the folder
            of the objective's checkpoints cannot be written.
    """
    backend = open_storage(storage)
    check_study(objective, study_name, backend)
    _remove_placeholders(backend)
    new: dict[str, Any] | None = None
    for _ in range(_MOST_CLAIMS):
        study_id = _find(backend, study_name)
        is_there = study_id is not None and _wait_for_mark(backend, study_id)
        if not is_there:
            if new is None:
                objective.prepare()
                new = _new_attributes(objective, screen)
            if _find(backend, study_name) != study_id:  # another process was faster
                continue
            if study_id is None:
                is_there = _create(objective, study_name, backend, new)
            else:
                is_there = _create_again(objective, study_name, backend, new, study_id)
        study = _load(study_name, backend, pruner) if is_there else None
        if study is not None:
            _take_over(objective, study, screen)
            return study
    raise InputError(
        f"Study {study_name!r} could not be created: other processes deleted it {_MOST_CLAIMS} "
        "times. Use another study name."
    )


def screened_best(attributes: Mapping[str, Any]) -> Pair | None:
    """Return the best pair of the screen among a study's attributes, the first of equal ones."""
    seen = attributes.get("screened", [])
    best = max(seen, key=lambda row: row[2], default=None)
    return None if best is None else (best[0], best[1])


# What is looked up


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
    """Whether nothing is stored in the study, as after an interrupted creation."""
    try:
        notes = set(storage.get_study_system_attrs(study_id)) - {"study:metric_names"}
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


def check_settings(
    objective: PruningObjective, study_name: str, attributes: Mapping[str, Any]
) -> str | None:
    """Refuse a study with other settings than the objective's.

    Returns:
        A warning, where modules differ that another version of timm or torch has made.

    Raises:
        InputError: With the settings that differ; or it stores none.
    """
    if "settings" not in attributes:
        raise InputError(
            f"The storage has a study {study_name!r} not made by vit_ratio_opt: use another name."
        )
    try:
        stored = settings_of(attributes)
    except InputError as error:
        raise InputError(f"Study {study_name!r}: {error} Use another study name.") from None
    differences = stored.differences(objective.settings_for(stored))
    if [text.split()[0] for text in differences] == ["architecture.modules"]:
        versions, before = _versions(*_MODULE_PACKAGES), attributes.get("versions")
        if isinstance(before, Mapping) and not versions.items() <= before.items():
            return (
                f"Study {study_name!r} was created with other versions of torch or timm. The "
                "dense model has the same weights and properties, but its modules may differ."
            )
    if differences:
        raise InputError(
            f"Study {study_name!r} exists with other settings: {'; '.join(differences)}. "
            "Use another study name, or the settings it was made with."
        )
    return None


def _versions(*packages: str) -> dict[str, str]:
    return {name: version(name) for name in packages}


# What is written


def _new_attributes(objective: PruningObjective, screen: bool) -> dict[str, Any]:
    """Compute everything that a new study stores, in the order in which it is written."""
    shown = None if objective.progress is None else bool(objective.progress)
    shape = objective.shape
    with show_waiting("looking at pairs before any training", enabled=shown):
        dense_accuracy = objective.dense_accuracy
        screened = objective.screen() if screen else {}
        path = objective.path if screen else ()
    attributes = {
        "settings": objective.settings.to_json(),
        "versions": _versions(*_PACKAGES),
        "device": objective.device_name,
        "saved": cost_saved(objective.space),
        "origin": objective.origin,
        "screened": [[*pair, value] for pair, value in screened.items()],
        "path": path,
        "dense": {
            "macs": shape.macs,
            "params": shape.params,
            "val_accuracy": dense_accuracy,
            "blocks": shape.block_sizes,
            "tokens": shape.tokens,
        },
    }
    if objective.latency is not None:
        attributes["latency"] = objective.latency
    attributes["plan"] = _plan_attribute(objective, attributes)
    stored: dict[str, Any] = json.loads(json.dumps({**attributes, COMPLETE: True}))
    return stored


def _plan_attribute(objective: PruningObjective, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a reader without the model needs to find the answer."""
    return _plan(objective, attributes).to_json()


def _plan(
    objective: PruningObjective, attributes: Mapping[str, Any]
) -> BudgetSearch | ToleranceSearch:
    path = [(first, second) for first, second in attributes.get("path", ())]
    return objective.plan(screened_best(attributes), path)


def _create(
    objective: PruningObjective, study_name: str, storage: BaseStorage, new: Mapping[str, Any]
) -> bool:
    """Claim the name and write everything; False where another process has the name."""
    try:
        study = optuna.create_study(
            study_name=study_name, storage=storage, direction=objective.direction
        )
    except DuplicatedStudyError:
        return False
    is_budget = objective.tolerance is None
    metric = "accuracy" if is_budget else f"{objective.cost.word} of dense"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([metric])
        for key, value in new.items():
            study.set_user_attr(key, value)
        return _attributes(storage, study._study_id) == dict(new)
    except KeyError:  # it took too long, and another process has deleted the study
        return False


def _create_again(
    objective: PruningObjective,
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
        check_settings(objective, study_name, attributes)
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
        return _create(objective, study_name, storage, new)
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


# What is taken over


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


def _take_over(objective: PruningObjective, study: Study, screen: bool) -> None:
    """Have the objective adopt what a complete study stores, and give the study its sampler.

    Raises:
        InputError: The study has other settings, or is damaged.
    """
    study_name, attributes = study.study_name, study.user_attrs
    warning = check_settings(objective, study_name, attributes)
    if warning is not None:
        _logger.warning(warning)
    record = StudyRecord.read(study_name, attributes)
    objective.adopt(record)
    objective.mark_folders()
    if record.settings.unknown:
        _logger.warning(
            f"Study {study_name!r} was created by version 0.1.0, which did not record "
            f"{', '.join(record.settings.unknown)}: these are not compared."
        )
        _fill_in(objective, study, attributes, screen)
    plan = _plan(objective, study.user_attrs)
    study.sampler = PlanSampler(objective.search_space, plan, seed=objective.seed)


def _fill_in(
    objective: PruningObjective, study: Study, attributes: Mapping[str, Any], screen: bool
) -> None:
    """Write what version 0.1.0 had not come to when it was killed."""
    if "origin" not in attributes:
        study.set_user_attr("origin", objective.origin)
    shown = None if objective.progress is None else bool(objective.progress)
    with show_waiting("looking at pairs before any training", enabled=shown):
        if "screened" not in attributes:
            seen = objective.screen() if screen else {}
            study.set_user_attr("screened", [[*pair, value] for pair, value in seen.items()])
        if "path" not in attributes:
            study.set_user_attr("path", objective.path if screen else ())
    # Version 0.1.0 stored a curve at the most, and its answer was another one than the sampler's.
    if "noise_is_known" not in attributes.get("plan", {}):
        study.set_user_attr("plan", _plan_attribute(objective, study.user_attrs))
