"""Write trials: heartbeats, failures, models, training states and attached files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import optuna
from optuna.artifacts import upload_artifact
from optuna.study import Study
from optuna.trial import BaseTrial, FrozenTrial

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.records.trial import write_trial
from vit_ratio_opt.runs.artifacts import artifact_location, check_store, open_artifacts
from vit_ratio_opt.runs.heartbeats import record_heartbeats
from vit_ratio_opt.runs.lineage import keep_state, remove_states, state_artifacts
from vit_ratio_opt.runs.processes import process_name
from vit_ratio_opt.runs.state_files import is_saved
from vit_ratio_opt.runs.trial_models import check_has_model, keep_model, read_model
from vit_ratio_opt.runs.turns import take_turn
from vit_ratio_opt.search.claims import requeue
from vit_ratio_opt.utils.failures import is_storage_error, reason
from vit_ratio_opt.utils.files import check_place, check_writable_folder
from vit_ratio_opt.utils.untrusted import mark_folder

if TYPE_CHECKING:
    from vit_ratio_opt._compat import ArtifactStore

__all__ = ["Journal"]

# Errors of the user, the machine or the disk, which say nothing about a pair.
_NO_FAILURE_OF_A_PAIR = (InputError, KeyboardInterrupt, OSError)

_logger = optuna.logging.get_logger(f"optuna.{__name__}")

Attach = Callable[[Study, FrozenTrial], Mapping[str, bytes]]
"""Return the files to attach to a trained trial, by name."""


class Journal:
    """Write trials: heartbeats, failures, models, training states and attached files.

    With ``checkpoints``, the training state is saved in the artifact store after each epoch, and
    in the middle of one when the training is asked to stop. A later trial of the same pair and
    seed resumes from it on any machine.

    Args:
        checkpoints: Folder of the pruned models; None saves no models.
        artifacts: Store of models and training states: a folder, ``s3://bucket``, or a store of
            Optuna's. By default the folder ``artifacts`` of ``checkpoints``.

    Attributes:
        artifacts: Location of the store; None without a store or for one given as an object.
        store: The artifact store; None without one.
        attach: Function that returns files to attach to a trained trial; None for no files.
        beat_seconds: Seconds between the heartbeats of a running trial; by default those of the
            storage.

    Raises:
        InputError: ``artifacts`` is given without ``checkpoints``, or a place cannot be used.
    """

    def __init__(
        self,
        checkpoints: str | Path | None = None,
        artifacts: ArtifactStore | str | Path | None = None,
    ) -> None:
        self.beat_seconds: float | None = None
        self.attach: Attach | None = None
        self._spent_states: list[str] = []
        self.keep_in(checkpoints, artifacts)

    def keep_in(
        self,
        checkpoints: str | Path | None,
        artifacts: ArtifactStore | str | Path | None = None,
    ) -> None:
        """Keep models and states in other places than before; see the class for the arguments."""
        self.checkpoints = None if checkpoints is None else Path(checkpoints)
        if self.checkpoints is not None:
            check_place(self.checkpoints)
            artifacts = self.checkpoints / "artifacts" if artifacts is None else artifacts
        elif artifacts is not None:
            raise InputError("`iterative` and `artifacts` need `checkpoints`: name a folder.")
        self.artifacts: str | None = None
        if isinstance(artifacts, (str, Path)):
            self.artifacts = artifact_location(artifacts)
            if not self._is_remote:
                check_place(self.artifacts)
            artifacts = open_artifacts(self.artifacts)
        self.store: ArtifactStore | None = artifacts
        self._store_is_checked = False

    @property
    def _is_remote(self) -> bool:
        return self.artifacts is not None and self.artifacts.startswith("s3://")

    def check_writable(self) -> None:
        """Check, before any work, that models and states can be kept.

        Raises:
            CannotWriteError: The folder or the store cannot be written.
        """
        if self.checkpoints is not None:
            check_writable_folder(self.checkpoints)
        if self.artifacts is not None and not self._is_remote:
            check_writable_folder(self.artifacts)
        elif self.store is not None and not self._store_is_checked:
            check_store(self.store)  # once, as it may cost seconds and money
            self._store_is_checked = True

    def mark_folders(self) -> None:
        """Create the folders of models and artifacts, and mark them as this package's.

        Raises:
            InputError: A folder cannot be written.
        """
        for folder in (self.checkpoints, self.artifacts):
            if folder is not None and "://" not in str(folder):
                mark_folder(folder)

    @contextlib.contextmanager
    def trial(self, trial: BaseTrial) -> Iterator[None]:
        """Record heartbeats while a trial runs, and why it failed.

        Raises:
            InputError: The operating system failed; the pair is requeued.
        """
        write_trial(trial, worker=process_name())
        alive: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if isinstance(trial, optuna.Trial):
            alive = record_heartbeats(trial._trial_id, trial.storage, every=self.beat_seconds)
        with alive, take_turn(trial), self._recording_failures(trial):
            self.discard_spent_states()
            yield

    @contextlib.contextmanager
    def _recording_failures(self, trial: BaseTrial) -> Iterator[None]:
        try:
            yield
        except optuna.TrialPruned:
            raise
        except (Exception, KeyboardInterrupt) as error:
            is_stored = not is_storage_error(error)
            with contextlib.suppress(Exception):  # the storage may be what failed
                self.fail(trial, error)
                is_no_failure = not is_stored or isinstance(error, _NO_FAILURE_OF_A_PAIR)
                if is_no_failure and isinstance(trial, optuna.Trial):
                    requeue(trial)
            if is_stored and isinstance(error, OSError):
                raise InputError(
                    f"Trial {trial.number} cannot continue here, so its pair is requeued: "
                    f"{reason(error)}"
                ) from error
            raise

    def fail(self, trial: BaseTrial, error: BaseException) -> None:
        """Record why a trial failed."""
        write_trial(trial, failure=f"{type(error).__name__}: {reason(error)}")

    def keep_model(self, trial: BaseTrial, model: ViT, manifest: Mapping[str, Any]) -> None:
        """Write the model of a trial, upload it, and attach files to the trial.

        Raises:
            CannotWriteError: The folder or the store cannot be written.
        """
        if self.checkpoints is None:
            write_trial(trial, checkpoint=None)
            return
        is_in_study = isinstance(trial, optuna.Trial)
        study_name = trial.study.study_name if isinstance(trial, optuna.Trial) else None
        lineage = {
            "study": study_name,
            "trial": trial.number,
            "parent_trial": trial.user_attrs["parent_trial"],
            "total_epochs": trial.user_attrs.get("total_epochs"),
        }
        store = self.store if is_in_study else None
        name = keep_model(model, self.checkpoints, {**manifest, "lineage": lineage}, trial, store)
        write_trial(trial, checkpoint=name, weights=weights_hash(model))

    def attach_files(self, trial: BaseTrial) -> None:
        """Attach files to the trial; a failure costs a warning only."""
        if self.attach is None or self.store is None or not isinstance(trial, optuna.Trial):
            return
        frozen = trial.storage.get_trial(trial._trial_id)
        try:
            files = self.attach(trial.study, frozen)
            with TemporaryDirectory() as folder:
                for name, content in files.items():
                    path = Path(folder, name)
                    path.write_bytes(content)
                    upload_artifact(
                        artifact_store=self.store, file_path=str(path), study_or_trial=trial
                    )
        except Exception as error:  # a store raises whatever its client does
            if is_storage_error(error):
                raise
            _logger.warning(f"Trial {trial.number} has no attached files: {reason(error)}")

    def model_of(self, trial: FrozenTrial, study: Study, dense: ViT) -> ViT:
        """Return the pruned model of a trial, from this machine's folder or from the store.

        Raises:
            InputError: The trial kept no model, neither place has it, or there are no
                ``checkpoints``.
        """
        check_has_model(trial, study.study_name)
        if self.checkpoints is None:
            raise InputError(
                f"The model of trial {trial.number} of study {study.study_name!r} is in a folder: "
                "name it with `checkpoints`."
            )
        return read_model(
            trial,
            study.study_name,
            study._storage,
            dense,
            folder=self.checkpoints,
            store=self.store,
        )

    def save_state(self, trial: BaseTrial, path: Path | None, *, epoch: int) -> None:
        """Upload the training state of a trial, a file or a folder, if the trainer saved one.

        A failure costs a warning only.
        """
        if path is None or self.store is None or not isinstance(trial, optuna.Trial):
            return
        if not is_saved(path):
            return
        try:
            keep_state(trial, path, self.store, epoch=epoch)
        except Exception as error:  # a store raises whatever its client does
            if is_storage_error(error):
                raise
            text = f"{type(error).__name__}: {reason(error)}"
            write_trial(trial, state_not_kept=text)
            _logger.warning(f"The training state of trial {trial.number} was not saved: {text}")

    def spend_states(self, *trials: BaseTrial | FrozenTrial) -> None:
        """Mark training states for removal once the results of their trials are stored."""
        for trial in trials:
            self._spent_states += state_artifacts(trial)

    def discard_spent_states(self) -> None:
        """Remove the states of trainings that have ended."""
        if self.store is not None:
            remove_states(self._spent_states, self.store)
        self._spent_states = []
