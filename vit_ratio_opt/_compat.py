"""Private names of Optuna and optuna-dashboard that this package uses, each in a small function.

Not here: ``study._storage``, ``study._study_id`` and ``trial._trial_id``, without which no sampler
can write into a trial; Optuna's own packages use them everywhere. ``runs/database.py`` and
``runs/grpc_client.py`` also override private methods of Optuna's storages. No private name of timm
is used.

Nothing guesses: a release that has renamed something causes an error, never other behaviour.
``tests/test_compat.py`` checks each name against the installed release. Names of the dashboard are
used by its observers only, which never stop a search.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import optuna
from optuna.artifacts import Backoff
from optuna.samplers import BaseSampler, PartialFixedSampler
from optuna.storages import BaseStorage, RDBStorage

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore as ArtifactStore

__all__ = [
    "METRIC_NAMES",
    "PLOT_KEY",
    "behind_backoff",
    "enqueued_params",
    "fixed_params",
    "grpc_client",
    "grpc_server",
    "is_refused_tell",
    "note_keys",
    "optimize_logger",
    "rdb_of",
    "read_note",
    "study_names",
    "tables",
]

# Optuna

METRIC_NAMES = "study:metric_names"
"""System attribute of a study that ``set_metric_names`` writes."""


def enqueued_params(system_attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that a trial was enqueued with, if it was.

    Args:
        system_attributes: System attributes of the trial.
    """
    return dict(system_attributes.get("fixed_params", {}))


def fixed_params(sampler: BaseSampler) -> dict[str, Any]:
    """Return what a ``PartialFixedSampler`` fixes; nothing for other samplers."""
    return dict(sampler._fixed_params) if isinstance(sampler, PartialFixedSampler) else {}


def optimize_logger() -> logging.Logger:
    """Return the logger by which ``study.optimize`` warns of a trial that has failed."""
    return logging.getLogger("optuna.study._optimize")


def is_refused_tell(error: BaseException) -> bool:
    """Return whether ``study.tell`` refused a trial because it has already ended.

    Optuna has no exception for that, but a ValueError. In ``optimize`` an assertion ("Should not
    reach.") replaces it if the objective itself succeeded.
    """
    if isinstance(error, AssertionError) and error.__context__ is not None:
        error = error.__context__
    return isinstance(error, ValueError) and str(error).startswith("Cannot tell a")


def rdb_of(storage: BaseStorage) -> RDBStorage | None:
    """Return the database behind Optuna's cache; None behind a proxy or without a database."""
    if isinstance(storage, optuna.storages._CachedStorage):
        return storage._backend
    return storage if isinstance(storage, RDBStorage) else None


def study_names(storage: BaseStorage) -> list[str]:
    """Return the names of all studies without reading their attributes; none of other storages.

    Optuna's listing fails if one attribute of one study is no JSON.
    """
    database = rdb_of(storage)
    if database is None:
        return []
    names, number = tables().StudyModel.study_name, tables().StudyModel.study_id
    with database.scoped_session() as session:
        return [name for (name,) in session.query(names).order_by(number)]


def tables() -> Any:
    """Return the module of Optuna's tables in a database."""
    module: Any = optuna.storages._rdb.storage  # which is imported with `RDBStorage`
    return module.models


def behind_backoff(store: ArtifactStore) -> ArtifactStore:
    """Return the artifact store that Optuna's ``Backoff`` retries; other stores as they are."""
    return store._backend if isinstance(store, Backoff) else store


def grpc_client(channel: Any) -> tuple[Any, Any]:
    """Return stub and cache of a client of Optuna's proxy."""
    client: Any = optuna.storages._grpc.client
    stub = client.api_pb2_grpc.StorageServiceStub(channel)
    return stub, client.GrpcClientCache(stub)


def grpc_server(storage: BaseStorage, host: str, port: int, threads: int) -> Any:
    """Return a server of Optuna's proxy that is not started yet; the public function starts it."""
    server: Any = optuna.storages._grpc.server
    return server.make_server(storage, host, port, ThreadPoolExecutor(threads))


# optuna-dashboard: how it stores notes and figures among a study's system attributes. Since it
# reads what its earlier releases have stored, this lasts longer than the names of its functions.

PLOT_KEY = "dashboard:plot_data:"
"""Start of the key of a figure; its title, a colon and the number of the part follow."""


def note_keys(trial_id: int | None = None) -> tuple[str, str]:
    """Return the key of a note's version, and the start of the keys of its numbered parts.

    Args:
        trial_id: Id of the trial with the note; None for the study's own note.
    """
    owner = "dashboard" if trial_id is None else f"dashboard:{trial_id}"
    return f"{owner}:note_ver", f"{owner}:note_str:"


def read_note(attributes: Mapping[str, Any]) -> tuple[int, str]:
    """Return version and text of the study's note; 0 and nothing without one.

    Args:
        attributes: System attributes of the study.
    """
    version, text = note_keys()
    parts = sum(name.startswith(text) for name in attributes)
    return int(attributes.get(version, 0)), "".join(
        attributes[f"{text}{number}"] for number in range(parts)
    )
