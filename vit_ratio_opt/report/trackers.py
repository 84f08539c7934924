"""Callbacks that tell others of each trial: a log of JSON lines, TensorBoard.

Those of optuna-integration, such as its MLflowCallback, may be given to
:func:`~vit_ratio_opt.run_study` in the same way.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from optuna.study import Study
from optuna.trial import FrozenTrial

from vit_ratio_opt.errors import CannotWriteError, InputError
from vit_ratio_opt.utils.files import (
    check_writable,
    check_writable_folder,
    file_name,
    is_plain,
    why_not,
)

__all__ = ["JsonLog", "TensorBoardLog"]


class JsonLog:
    """A callback that appends one line of JSON for each trial, for whatever reads such logs.

    A line is ``{study, trial, state, begun, ended, values, params, constraints, user_attrs}``, the
    times in ISO 8601. Several processes may append to one file.

    Args:
        path: Of the file; it is made if it is not there.

    Raises:
        InputError: The file could not be written.
    """

    def __init__(self, path: str | Path) -> None:
        check_writable(path)
        self.path = Path(path)
        self._pipe: TextIO | None = None

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """After each trial.

        Raises:
            CannotWriteError: The file cannot be written.
        """
        begun, ended = trial.datetime_start, trial.datetime_complete
        line = {
            "study": study.study_name,
            "trial": trial.number,
            "state": trial.state.name,
            "begun": None if begun is None else begun.isoformat(),
            "ended": None if ended is None else ended.isoformat(),
            "values": trial.values,
            "params": trial.params,
            "constraints": trial.constraints,
            "user_attrs": trial.user_attrs,
        }
        try:
            with self._opened() as file:
                file.write(f"{json.dumps(line)}\n")
                file.flush()
        except OSError as error:
            raise CannotWriteError(f"{self.path} cannot be written: {why_not(error)}") from None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[TextIO]:
        """A file is opened for each line; a pipe stays open, or its reader would see its end."""
        if is_plain(self.path):
            with self.path.open("a", encoding="utf-8") as file:
                yield file
            return
        if self._pipe is None:
            self._pipe = self.path.open("a", encoding="utf-8")
        yield self._pipe


class TensorBoardLog:
    """A callback that writes each trial as a run of TensorBoard, through torch's SummaryWriter.

    A run has the accuracy (per cent) and the loss by epoch, and the two ratios as hyper-parameters
    with what came of them.

    Args:
        folder: Of the runs; each study has its own in it.

    Raises:
        InputError: TensorBoard is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "TensorBoard is not installed: pip install 'vit_ratio_opt[tensorboard]'."
            ) from None
        check_writable_folder(folder)
        self.folder = Path(folder)
        self._writer = SummaryWriter

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """After each trial.

        Raises:
            CannotWriteError: A file cannot be written.
        """
        try:
            self._write(study, trial)
        except OSError as error:
            raise CannotWriteError(f"{self.folder} cannot be written: {why_not(error)}") from None

    def _write(self, study: Study, trial: FrozenTrial) -> None:
        attributes = trial.user_attrs
        run = self.folder / file_name(study.study_name) / f"trial-{trial.number:04d}"
        dense = study.user_attrs["dense"]["val_accuracy"]
        drops = study.user_attrs["settings"]["tolerance"] is not None
        with self._writer(str(run)) as writer:
            for epoch, value in trial.intermediate_values.items():
                writer.add_scalar("accuracy", dense - value if drops else value, epoch)
            for epoch, loss in enumerate(attributes.get("losses", []), start=1):
                writer.add_scalar("loss", loss, epoch)
            names = (
                "macs_ratio", "cost_ratio", "params", "accuracy_pruned", "accuracy",
                "accuracy_drop",
            )  # fmt: skip
            results = {f"result/{n}": attributes[n] for n in names if n in attributes}
            writer.add_hparams({**trial.params, "state": trial.state.name}, results, run_name=".")
