"""What Optuna and its dashboard do not promise to keep, each in one small function.

Not here are ``study._storage``, ``study._study_id`` and ``trial._trial_id``: there is no other way
for a sampler to write into a trial, and Optuna's own packages use them everywhere.

Nothing guesses: with a release that has renamed something there is an error, never another
behaviour. ``tests/test_compat.py`` holds each function against the release that is installed.
"""

from __future__ import annotations

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
    "PLOT_KEY",
    "behind_backoff",
    "fixed_params",
    "grpc_client",
    "grpc_server",
    "note_keys",
    "rdb_of",
    "read_note",
    "tables",
]

# How the dashboard stores notes and figures among a study's system attributes. It has to read what
# its earlier releases have stored, so this lasts longer than the names of its functions.

PLOT_KEY = "dashboard:plot_data:"
"""Of a figure; its title, a colon and the number of the part follow."""


def note_keys(trial_id: int | None = None) -> tuple[str, str]:
    """Of the version of a note, and of its text, which the part's number follows.

    Args:
        trial_id: Whose note; None for the study's own.
    """
    owner = "dashboard" if trial_id is None else f"dashboard:{trial_id}"
    return f"{owner}:note_ver", f"{owner}:note_str:"


def read_note(attributes: Mapping[str, Any]) -> tuple[int, str]:
    """Version and text of the study's note; 0 and nothing where there is none.

    Args:
        attributes: The study's system attributes.
    """
    version, text = note_keys()
    parts = sum(name.startswith(text) for name in attributes)
    return int(attributes.get(version, 0)), "".join(
        attributes[f"{text}{number}"] for number in range(parts)
    )


def rdb_of(storage: BaseStorage) -> RDBStorage | None:
    """The database behind Optuna's cache; None behind a proxy, or where there is none."""
    if isinstance(storage, optuna.storages._CachedStorage):
        return storage._backend
    return storage if isinstance(storage, RDBStorage) else None


def behind_backoff(store: ArtifactStore) -> ArtifactStore:
    """The store that is asked again and again when it fails; others as they are."""
    return store._backend if isinstance(store, Backoff) else store


def fixed_params(sampler: BaseSampler) -> dict[str, Any]:
    """What a ``PartialFixedSampler`` fixes; nothing for others."""
    return dict(sampler._fixed_params) if isinstance(sampler, PartialFixedSampler) else {}


def tables() -> Any:
    """The module of Optuna's tables in a database."""
    module: Any = optuna.storages._rdb.storage  # which is imported with `RDBStorage`
    return module.models


def grpc_client(channel: Any) -> tuple[Any, Any]:
    """Stub and cache of a client of Optuna's proxy."""
    client: Any = optuna.storages._grpc.client
    stub = client.api_pb2_grpc.StorageServiceStub(channel)
    return stub, client.GrpcClientCache(stub)


def grpc_server(storage: BaseStorage, host: str, port: int, threads: int) -> Any:
    """A server of Optuna's proxy that has not started yet; the public function starts one."""
    server: Any = optuna.storages._grpc.server
    return server.make_server(storage, host, port, ThreadPoolExecutor(threads))
