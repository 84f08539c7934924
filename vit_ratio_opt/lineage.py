"""What an iterative trial may start from, and where its weights are. Never imports torch.

A trial's model is an Optuna artifact of the trial: whoever has the study's storage and the
artifact store can go on from it, on any machine.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

from optuna.artifacts import (
    FileSystemArtifactStore,
    download_artifact,
    get_all_artifact_meta,
)
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from vit_ratio_opt.geometry import RatioPair, RatioSpace

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

__all__ = ["ArtifactFolder", "fetched_checkpoint", "nearest_parents"]


def nearest_parents(
    space: RatioSpace, pair: RatioPair, finished: Mapping[int, RatioPair]
) -> list[int]:
    """The trials that pruned neither module more than ``pair``, nearest in MACs first.

    Of equally near ones the earliest comes first. When ``pair`` itself is among the finished ones,
    only trials before its first are given: a repeat starts where the first one could have started,
    so that the two differ by noise and not by how long they were trained.

    Args:
        space: What the ratios mean.
        pair: What is to be pruned next.
        finished: Trial number to the pair that it pruned.
    """
    heads, neurons = space.removed(pair)
    removed = {number: space.removed(other) for number, other in finished.items()}
    repeated = [number for number, counts in removed.items() if counts == (heads, neurons)]
    candidates = [
        number
        for number, counts in removed.items()
        if counts[0] <= heads
        and counts[1] <= neurons
        and all(number < repeat for repeat in repeated)
    ]
    return sorted(candidates, key=lambda number: (space.pruned_macs(finished[number]), number))


class ArtifactFolder(FileSystemArtifactStore):
    """A folder of artifacts that, on the same file system, are second names of the uploaded files.

    So a checkpoint that is also an artifact takes its space once.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Called by ``upload_artifact``."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            os.link(content_body.name, self._folder / artifact_id)
        except OSError:  # not every file system has links
            super().write(artifact_id, content_body)


@contextlib.contextmanager
def fetched_checkpoint(
    trial: FrozenTrial, storage: BaseStorage, store: ArtifactStore
) -> Iterator[Path]:
    """A trial's checkpoint out of the artifact store, as a file for as long as the context lasts.

    Raises:
        ArtifactNotFound: The trial has none, or only its entry: that is written before the bytes.
    """
    # By name, because users may attach artifacts of their own to a trial in the dashboard.
    name = trial.user_attrs.get("checkpoint")
    metas = [m for m in get_all_artifact_meta(trial, storage=storage) if m.filename == name]
    if not metas:
        raise ArtifactNotFound(f"Trial {trial.number} has no artifact named {name!r}.")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        download_artifact(
            artifact_store=store, file_path=str(path), artifact_id=metas[-1].artifact_id
        )
        yield path
