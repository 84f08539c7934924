"""Find and fetch the model or the training state that a trial may start from. Never imports torch.

That is either the model of a finished trial (iterative pruning), an Optuna artifact of that trial,
or the training state of an interrupted trial of the same pair. Any machine with access to the
study's storage and the artifact store can use both.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from optuna.artifacts import (
    download_artifact,
    get_all_artifact_meta,
)
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage
from optuna.trial import BaseTrial, FrozenTrial, Trial, TrialState

from vit_ratio_opt._compat import behind_backoff
from vit_ratio_opt.runs.state_files import pack, unpack
from vit_ratio_opt.space.pairs import PairSpace, RatioPair
from vit_ratio_opt.utils.failures import reason
from vit_ratio_opt.utils.untrusted import check_artifact_id, is_state_id

if TYPE_CHECKING:
    from vit_ratio_opt._compat import ArtifactStore

__all__ = [
    "fetch_state",
    "fetch_checkpoint",
    "interrupted_trials",
    "keep_state",
    "nearest_parents",
    "remove_states",
    "state_artifact",
    "state_artifacts",
]

_STATE = "training_state"
"""User attribute of a trial: the artifact with its training state, the state's epoch, and the
artifact that the next state will be."""

_logger = logging.getLogger(f"optuna.{__name__}")


def nearest_parents(
    space: PairSpace, pair: RatioPair, finished: Mapping[int, RatioPair]
) -> list[int]:
    """Return the trials that pruned neither module more than ``pair``, nearest in MACs first.

    Of equally near ones the earliest comes first. If ``pair`` itself is among the finished ones,
    only trials before its first training are returned: a repetition starts where the first one
    could have started, so that the two differ by noise and not by their total training.

    Args:
        space: Space of the dense model.
        pair: Pair to be pruned next.
        finished: Pair of each finished trial, by its number.
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


@contextlib.contextmanager
def fetch_checkpoint(
    trial: FrozenTrial, storage: BaseStorage, store: ArtifactStore
) -> Iterator[Path]:
    """Fetch a trial's checkpoint from the artifact store into a file that the context removes.

    Raises:
        ArtifactNotFound: The trial has no checkpoint, or only its entry, which is written first.
    """
    # By name, because users may attach artifacts of their own to a trial in the dashboard.
    name = trial.user_attrs.get("checkpoint")
    metas = [m for m in get_all_artifact_meta(trial, storage=storage) if m.filename == name]
    if not metas:
        raise ArtifactNotFound(f"Trial {trial.number} has no artifact named {name!r}.")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        artifact = check_artifact_id(metas[-1].artifact_id)
        download_artifact(artifact_store=store, file_path=str(path), artifact_id=artifact)
        yield path


def keep_state(trial: Trial, path: Path, store: ArtifactStore, *, epoch: int) -> None:
    """Save the state of the trial's training in the store, and remove the earlier one.

    The state is a file or a folder. It is no Optuna artifact of the trial, since these cannot be
    removed. At every moment the trial names a complete state and everything in the store that is
    its own: two names take turns, so that a killed process leaves nothing that nobody knows.
    """
    known = trial.user_attrs.get(_STATE, {})
    if not is_state_id(known.get("next")):
        known = {**known, "next": _new_id()}
        trial.set_user_attr(_STATE, known)
    earlier, artifact = state_artifact(trial), known["next"]
    with pack(path) as packed, packed.open("rb") as content:
        store.write(artifact, content)
    following = earlier or _new_id()
    trial.set_user_attr(_STATE, {"artifact": artifact, "epoch": epoch, "next": following})
    if earlier is not None:
        remove_states([earlier], store)


def _new_id() -> str:
    return f"training-state-{uuid.uuid4()}"


def interrupted_trials(
    trials: Iterable[FrozenTrial], pair: RatioPair, seed: int
) -> list[FrozenTrial]:
    """Return trials of the same pair and seed that were interrupted, the latest epoch first."""
    found = [
        trial
        for trial in trials
        if trial.state == TrialState.FAIL
        and state_artifact(trial) is not None
        and isinstance(trial.user_attrs[_STATE].get("epoch"), int)
        and trial.user_attrs.get("seed") == seed
        and "blocks" in trial.user_attrs
        and tuple(trial.params.get(name) for name in RatioPair._fields) == pair
    ]
    return sorted(found, key=lambda trial: (-trial.user_attrs[_STATE]["epoch"], -trial.number))


def fetch_state(artifact: str, store: ArtifactStore, path: Path) -> bool:
    """Write a training state to ``path``; log a warning and return False if it cannot be read.

    It becomes a file or a folder, as it was saved.
    """
    try:
        with store.open_reader(artifact) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
        unpack(path)
    except Exception as error:  # a store raises whatever its client does
        _logger.warning(
            f"The training state {artifact} cannot be read, so the training begins again: "
            f"{type(error).__name__}: {reason(error)}"
        )
        return False
    return True


def state_artifact(trial: BaseTrial | FrozenTrial) -> str | None:
    """Return the artifact id of the trial's training state; None without one."""
    state = trial.user_attrs.get(_STATE)
    artifact = state.get("artifact") if isinstance(state, Mapping) else None
    return str(artifact) if is_state_id(artifact) else None


def state_artifacts(trial: BaseTrial | FrozenTrial) -> list[str]:
    """Return the ids of all artifacts that may hold a training state of the trial."""
    state = trial.user_attrs.get(_STATE)
    names = state.values() if isinstance(state, Mapping) else ()
    return [str(name) for name in names if is_state_id(name)]


def remove_states(artifacts: Iterable[str], store: ArtifactStore) -> None:
    """Remove training states that still exist; other artifacts are ignored."""
    store = behind_backoff(store)  # Optuna 5.0 would retry the removal for a minute
    for artifact in filter(is_state_id, artifacts):
        with contextlib.suppress(Exception):  # a store raises whatever its client does
            store.remove(artifact)
