"""Files that are attached to a trained trial: training curve and sizes of blocks."""

from __future__ import annotations

from optuna.study import Study
from optuna.trial import FrozenTrial

from vit_ratio_opt.records.snapshot import snapshot
from vit_ratio_opt.records.study import record_of
from vit_ratio_opt.records.trials import block_rows, has_tolerance, reports_of
from vit_ratio_opt.report.figures.training_curve import training_curve
from vit_ratio_opt.utils.text import csv_text

__all__ = ["trial_files"]


def trial_files(study: Study, trial: FrozenTrial) -> dict[str, bytes]:
    """Return the files of a trial by name: the curve of its training, the table of its blocks.

    A file is left out where the study or the trial has not recorded what it shows.
    """
    study = snapshot(study)
    record, files = record_of(study), {}
    if record.dense.val_accuracy is not None and reports_of(trial):
        files["training-curve.png"] = training_curve(
            trial,
            record.dense.val_accuracy,
            drops=has_tolerance(study),
            metric=record.metric,
        )
    rows = block_rows(record.dense, trial)
    if rows:
        files["blocks.csv"] = csv_text(rows).encode()
    return files
