"""Callbacks that write each trial into a log of JSON lines or into TensorBoard.

Callbacks of optuna-integration, such as its MLflowCallback, can be given to
:meth:`vit_ratio_opt.Search.run` in the same way.
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
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.records.trial import TrialRecord
from vit_ratio_opt.records.trials import has_tolerance, reports_of
from vit_ratio_opt.utils.files import (
    check_writable,
    check_writable_folder,
    is_plain,
    named_folder,
    why_not,
)

__all__ = ["JsonLog", "TensorBoardLog"]

# Results of a trial in TensorBoard.
_RESULTS = (
    *("macs_ratio", "cost_ratio", "params", "accuracy_pruned", "accuracy", "accuracy_drop"),
)


class JsonLog:
    """Callback that appends one line of JSON for each trial to a file.

    A line is ``{study, trial, state, begun, ended, values, params, constraints, user_attrs}``, the
    times in ISO 8601. Several processes may append to one file.

    Args:
        path: The file, which is created if it does not exist.

    Raises:
        InputError: The file could not be written.
    """

    def __init__(self, path: str | Path) -> None:
        check_writable(path)
        self.path = Path(path)
        self._pipe: TextIO | None = None

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Append the line of a trial.

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
        """Open a file for each line; keep a pipe open, or its reader would see its end."""
        if is_plain(self.path):
            with self.path.open("a", encoding="utf-8") as file:
                yield file
            return
        if self._pipe is None:
            self._pipe = self.path.open("a", encoding="utf-8")
        yield self._pipe


class TensorBoardLog:
    """Callback that writes each trial as a run of TensorBoard, with torch's SummaryWriter.

    A run has the metric and the training loss by epoch, and the parameters of the trial as
    hyper-parameters with its results.

    Args:
        folder: The folder of the runs, in which each study has a folder.

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
        """Write the run of a trial.

        Raises:
            CannotWriteError: A file cannot be written.
        """
        try:
            self._write(study, trial)
        except OSError as error:
            raise CannotWriteError(f"{self.folder} cannot be written: {why_not(error)}") from None

    def _write(self, study: Study, trial: FrozenTrial) -> None:
        known, record = TrialRecord.read(trial), record_of(study)
        metric, dense = record.metric, record.dense.val_accuracy
        drops = has_tolerance(study) and dense is not None
        run = named_folder(self.folder, study.study_name) / f"trial-{trial.number:04d}"
        with self._writer(str(run)) as writer:
            for epoch, value in reports_of(trial).items():
                if drops:
                    value = metric.after_loss(dense or 0, value)
                writer.add_scalar(metric.name, value, epoch)
            for epoch, loss in enumerate(known.losses or (), start=1):
                writer.add_scalar("loss", loss, epoch)
            values = {f"result/{name}": getattr(known, name) for name in _RESULTS}
            results = {name: value for name, value in values.items() if value is not None}
            writer.add_hparams({**trial.params, "state": trial.state.name}, results, run_name=".")
