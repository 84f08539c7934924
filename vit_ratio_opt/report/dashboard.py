"""Serve optuna-dashboard with the artifacts of all studies."""

from __future__ import annotations

import copy
import logging
import os
import sys
import webbrowser
from collections.abc import Callable
from threading import Timer
from typing import TYPE_CHECKING, Any, BinaryIO

from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage, get_storage
from optuna.trial import FrozenTrial

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.loading import load_studies
from vit_ratio_opt.records.study import artifacts_of
from vit_ratio_opt.report.trial_rows import TRIAL_COLUMNS
from vit_ratio_opt.utils.untrusted import check_artifact_id, is_marked

if TYPE_CHECKING:
    from vit_ratio_opt._compat import ArtifactStore

__all__ = ["AllArtifacts", "serve_dashboard", "shown_trial"]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_logger = logging.getLogger(f"optuna.{__name__}")


def serve_dashboard(
    storage: BaseStorage,
    host: str,
    port: int,
    *,
    open_artifacts: Callable[[str], ArtifactStore],
    study_name: str | None = None,
    browse: bool = False,
) -> None:
    """Run optuna-dashboard, with the artifacts of all studies, until the process ends.

    Args:
        storage: The storage of the studies.
        host: Host name or address on which the server listens.
        port: Port on which the server listens.
        open_artifacts: Function that returns the artifact store at a location: a folder or
            ``s3://bucket``.
        study_name: Name of the study that the printed address opens; by default that of the list
            of studies.
        browse: Whether to open a browser, where this machine has a graphical one.
    """
    from optuna_dashboard import run_server  # a search does not need the dashboard

    backend = get_storage(storage)  # with a cache
    address = f"http://{host}:{port}/dashboard"
    if study_name is not None:
        load_studies(backend, [study_name])
        address += f"/studies/{backend.get_study_id_from_name(study_name)}"
    all_trials = backend.get_all_trials

    def get_all_trials(study_id: int, *arguments: Any, **options: Any) -> list[FrozenTrial]:
        return [shown_trial(trial) for trial in all_trials(study_id, *arguments, **options)]

    # Only of this object, which the dashboard reads.
    setattr(backend, "get_all_trials", get_all_trials)  # noqa: B010
    print(f"optuna-dashboard at {address} (Ctrl-C stops it)", flush=True)
    if host not in _LOOPBACK:
        print(
            "It has no passwords: anyone who reaches this address can change and delete studies."
        )
    if browse and _has_windows():
        opening = Timer(1.0, webbrowser.open, [address])  # when the server answers
        opening.daemon = True
        opening.start()
    run_server(backend, host=host, port=port, artifact_store=AllArtifacts(backend, open_artifacts))


class AllArtifacts:
    """The artifact stores of all studies of a storage as one; new files go into the first.

    Only folders that this package has marked are written: every writer of the storage can name
    folders in it.

    Args:
        storage: The storage of the studies.
        open_artifacts: Function that returns the artifact store at a location.
    """

    def __init__(
        self, storage: BaseStorage, open_artifacts: Callable[[str], ArtifactStore]
    ) -> None:
        self._storage = storage
        self._open = open_artifacts
        self._stores: dict[str, ArtifactStore] = {}

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an artifact in the first store that has it.

        Raises:
            ArtifactNotFound: No store has it.
        """
        check_artifact_id(artifact_id)
        for store in self._all():
            try:
                return store.open_reader(artifact_id)
            except Exception:
                continue
        raise ArtifactNotFound(f"{artifact_id} is in none of the studies' artifact stores.")

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write an artifact into the first folder that this package has marked.

        Raises:
            InputError: No study has such a folder.
        """
        for store in self._all(writable=True):
            store.write(artifact_id, content_body)
            return
        raise InputError("No study of this storage has a folder of artifacts made here.")

    def remove(self, artifact_id: str) -> None:
        """Remove an artifact from the first marked folder that has it."""
        for store in self._all(writable=True):
            try:
                store.remove(artifact_id)
                return
            except Exception:
                continue

    def _all(self, *, writable: bool = False) -> list[ArtifactStore]:
        """Return the stores, with those of studies that were created in the meantime."""
        for study in self._storage.get_all_studies():
            location = artifacts_of(study.user_attrs)
            if location is not None and location not in self._stores:
                try:
                    self._stores[location] = self._open(location)
                except InputError as error:
                    _logger.warning(str(error))
        return [
            store
            for location, store in self._stores.items()
            if not writable or is_marked(location)
        ]


def shown_trial(trial: FrozenTrial) -> FrozenTrial:
    """Return a copy of a trial as the dashboard needs it.

    Its attributes are in the order of :data:`TRIAL_COLUMNS`, since databases return them in any
    order. Its constraints are also in the list of Optuna 4: optuna-dashboard 0.21 does not read
    those of Optuna 5, so that every trial would look feasible.
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
    """Return whether this machine has a graphical browser, not one inside the terminal."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
