"""Serve optuna-dashboard with the artifacts of all studies."""

from __future__ import annotations

import copy
import logging
import os
import sys
import webbrowser
from collections.abc import Mapping
from threading import Timer
from typing import TYPE_CHECKING, Any, BinaryIO

from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage, get_storage
from optuna.trial import FrozenTrial

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.trials import (
    load_studies,
)
from vit_ratio_opt.report.rows import (
    TRIAL_COLUMNS,
)
from vit_ratio_opt.runs.lineage import open_artifacts
from vit_ratio_opt.utils.untrusted import check_artifact_id, is_marked

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

__all__ = ["serve_dashboard"]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_logger = logging.getLogger(f"optuna.{__name__}")


def serve_dashboard(
    storage: BaseStorage, host: str, port: int, *, study_name: str | None, browse: bool
) -> None:
    """Run optuna-dashboard, with the artifacts of all studies, until the process ends.

    Args:
        storage: Of the studies.
        host: Where to listen.
        port: Where to listen.
        study_name: Which study to open; the list of them by default.
        browse: Whether to open a browser, if this machine has one with windows.
    """
    from optuna_dashboard import run_server  # a search needs none of it

    backend = get_storage(storage)  # with a cache
    address = f"http://{host}:{port}/dashboard"
    if study_name is not None:
        load_studies(backend, [study_name])
        address += f"/studies/{backend.get_study_id_from_name(study_name)}"
    all_trials = backend.get_all_trials

    def get_all_trials(study_id: int, *arguments: Any, **options: Any) -> list[FrozenTrial]:
        return [_as_shown(trial) for trial in all_trials(study_id, *arguments, **options)]

    # Of this one object only: the trials that the dashboard gets to see.
    setattr(backend, "get_all_trials", get_all_trials)  # noqa: B010
    print(f"optuna-dashboard at {address} (Ctrl-C stops it)", flush=True)
    if host not in _LOOPBACK:
        print("It has no passwords: whoever reaches this address can change and delete studies.")
    if browse and _has_windows():
        opening = Timer(1.0, webbrowser.open, [address])  # when the server answers
        opening.daemon = True
        opening.start()
    run_server(backend, host=host, port=port, artifact_store=_AllArtifacts(backend))


class _AllArtifacts:
    """The artifact stores of all studies of a storage as one; new files go into the first.

    Only what this package has marked is written: whoever can write the storage names the folders.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage
        self._stores: dict[str, ArtifactStore] = {}

    def open_reader(self, artifact_id: str) -> BinaryIO:
        check_artifact_id(artifact_id)
        for store in self._all():
            try:
                return store.open_reader(artifact_id)
            except Exception:
                continue
        raise ArtifactNotFound(f"{artifact_id} is in none of the studies' artifact stores.")

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        for store in self._all(writable=True):
            store.write(artifact_id, content_body)
            return
        raise InputError("No study of this storage has a folder of artifacts made here.")

    def remove(self, artifact_id: str) -> None:
        for store in self._all(writable=True):
            try:
                store.remove(artifact_id)
                return
            except Exception:
                continue

    def _all(self, *, writable: bool = False) -> list[ArtifactStore]:
        """Return those of studies that were made in the meantime, too."""
        for study in self._storage.get_all_studies():
            origin = study.user_attrs.get("origin")
            location = origin.get("artifacts") if isinstance(origin, Mapping) else None
            if isinstance(location, str) and location not in self._stores:
                try:
                    self._stores[location] = open_artifacts(location)
                except InputError as error:
                    _logger.warning(str(error))
        return [
            store
            for location, store in self._stores.items()
            if not writable or is_marked(location)
        ]


def _as_shown(trial: FrozenTrial) -> FrozenTrial:
    """A trial for the dashboard: attributes in our order, constraints where it looks for them.

    Databases give attributes in any order. The dashboard's 0.21 does not know the constraints of
    Optuna 5, and every trial would look feasible. The list of Optuna 4 is known to all releases.
    """
    shown = copy.copy(trial)
    attributes = trial.user_attrs
    order = [name for name in TRIAL_COLUMNS if name in attributes]
    shown.user_attrs = {name: attributes[name] for name in [*order, *attributes]}
    if trial.constraints:
        shown.system_attrs = {
            **{k: v for k, v in trial.system_attrs.items() if not k.startswith("constraints:")},
            "constraints": list(trial.constraints.values()),
        }
    return shown


def _has_windows() -> bool:
    """Whether a browser that opens is one beside this terminal, not in it."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
