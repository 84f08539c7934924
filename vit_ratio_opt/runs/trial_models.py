"""The models of trials, in a folder and in the artifact store.

Any number of studies, workers and databases may share a folder: no name is given twice, and what
is read is compared with the trial.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.artifacts import upload_artifact
from optuna.storages import BaseStorage
from optuna.trial import BaseTrial, FrozenTrial, TrialState

from vit_ratio_opt.errors import CannotWriteError, InputError
from vit_ratio_opt.model_files.load import load_pruned
from vit_ratio_opt.model_files.save import save_pruned
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.records.trial import attribute
from vit_ratio_opt.runs.lineage import fetch_checkpoint
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.utils.failures import is_storage_error, reason
from vit_ratio_opt.utils.untrusted import check_checkpoint_name

if TYPE_CHECKING:
    from vit_ratio_opt._compat import ArtifactStore

__all__ = ["check_has_model", "keep_model", "read_artifact", "read_model"]


def keep_model(
    model: ViT,
    folder: Path,
    manifest: Mapping[str, Any],
    trial: BaseTrial,
    store: ArtifactStore | None,
) -> str:
    """Write the model of a trial and upload it; remove the file if the upload fails.

    Returns:
        The name of the file: ``trial-0003.safetensors``, or a longer one where another study's
        trial has that.

    Raises:
        CannotWriteError: The folder or the store cannot be written.
    """
    path = folder / f"trial-{trial.number:04d}-{uuid.uuid4().hex[:12]}.safetensors"
    try:
        save_pruned(model, path, manifest)
        path = _shorten(path, f"trial-{trial.number:04d}.safetensors")
        if store is not None and isinstance(trial, optuna.Trial):
            _upload(path, trial, store)
    except BaseException as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        if isinstance(error, (InputError, OSError)) and not is_storage_error(error):
            raise CannotWriteError(
                f"The model of trial {trial.number} was not saved, so its pair is requeued: "
                f"{reason(error)}"
            ) from error
        raise
    return path.name


def _shorten(path: Path, name: str) -> Path:
    """Rename a file unless the name is taken; that is found out and done in one step."""
    with contextlib.suppress(OSError):  # taken, or the file system has no links
        os.link(path, path.with_name(name))
        path.unlink()
        return path.with_name(name)
    return path


def _upload(path: Path, trial: optuna.Trial, store: ArtifactStore) -> None:
    try:
        upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)
    except Exception as error:  # a store raises whatever its client does
        if is_storage_error(error):
            raise
        raise InputError(f"The artifact store cannot be written: {reason(error)}.") from error


def check_has_model(trial: FrozenTrial, study_name: str) -> None:
    """Refuse a trial that kept no model.

    Raises:
        InputError: With the reason.
    """
    attributes, why = trial.user_attrs, None
    if not trial.state.is_finished():
        why = "it has not ended"
    elif trial.state == TrialState.FAIL:
        why = f"it failed ({attributes.get('failure', 'its worker died')})"
    elif attribute(trial, "accuracy") is None:
        why = "it was not trained to its end"
    elif attributes.get("checkpoint") is None:
        why = "its worker kept none: `checkpoints` names the folder of a study's models"
    if why is not None:
        raise InputError(
            f"Trial {trial.number} of study {study_name!r} kept no model: {why:.300}."
        )


def read_model(
    trial: FrozenTrial,
    study_name: str,
    storage: BaseStorage,
    dense: ViT,
    *,
    folder: Path,
    store: ArtifactStore | None,
) -> ViT:
    """Return the model of a trial from the folder, else from the store.

    Raises:
        InputError: The trial kept no model, or neither place has it.
    """
    check_has_model(trial, study_name)
    path = folder / check_checkpoint_name(trial.user_attrs["checkpoint"])
    try:
        return _read(path, str(path), trial, study_name, dense)
    except InputError as error:
        if store is None:
            raise
        here = error
    try:
        return read_artifact(trial, study_name, storage, dense, store)
    except Exception as error:  # a store raises whatever its client does
        if is_storage_error(error):
            raise
        raise InputError(f"{here} It is not in the artifact store either: {error}") from None


def read_artifact(
    trial: FrozenTrial, study_name: str, storage: BaseStorage, dense: ViT, store: ArtifactStore
) -> ViT:
    """Return the model of a trial from the store.

    Raises:
        ArtifactNotFound: The trial has no model in the store.
        InputError: The artifact is damaged, or it is the model of another trial.
    """
    name = trial.user_attrs["checkpoint"]
    with fetch_checkpoint(trial, storage, store) as path:
        return _read(path, f"The artifact {name}", trial, study_name, dense)


def _read(path: Path, shown: str, trial: FrozenTrial, study_name: str, dense: ViT) -> ViT:
    """Return the model in a file, if it is the trial's.

    Its weights, sizes and ratios decide. A trial of version 0.1.0 has no hash of its weights: then
    the file has to say that it is of this study and trial.

    Raises:
        InputError: The file cannot be read, or it holds another model.
    """
    try:
        model, manifest = load_pruned(path, dense)
    except InputError as error:
        raise InputError(str(error).replace(str(path), shown)) from None
    attributes, shape = trial.user_attrs, shape_of(model)
    lineage = manifest.get("lineage") or {}
    claims: dict[str, tuple[Any, Any]] = {
        "study": (lineage.get("study"), study_name),
        "trial": (lineage.get("trial"), trial.number),
    }
    facts = {name: (manifest.get(name), trial.params[name]) for name in RatioPair._fields}
    sizes = {"blocks": shape.block_sizes, "tokens": [list(n) for n in shape.block_tokens]}
    facts |= {name: (sizes[name], attributes[name]) for name in sizes if name in attributes}
    if "weights" in attributes:
        facts["weights"] = (weights_hash(model), attributes["weights"])
    checked = {**claims, **facts}
    if "weights" in attributes and all(found == wanted for found, wanted in facts.values()):
        checked = {}  # a study may have been copied, under another name
    for name, (found, wanted) in checked.items():
        if found != wanted:
            raise InputError(
                f"{shown} is not the model of trial {trial.number} of study {study_name!r}: its "
                f"{name} is {found!r:.100}, not {wanted!r:.100}. Name the folder with "
                "`checkpoints`."
            )
    return model
