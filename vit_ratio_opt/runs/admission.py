"""Whether an objective fits a study: asked before each trial costs anything."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import optuna
from optuna.study import Study
from optuna.trial import BaseTrial

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.study import StudyRecord, is_ours
from vit_ratio_opt.runs.creation import check_settings

if TYPE_CHECKING:
    from vit_ratio_opt.runs.objective import PruningObjective

__all__ = ["check_enqueued", "check_study_of"]


def check_study_of(objective: PruningObjective, study: Study) -> None:
    """Refuse a study of another direction or other settings; adopt what it has measured.

    A study that ``optuna.create_study`` made stores no settings, and none are compared.

    Raises:
        InputError: The direction or a setting differs, or the study is damaged.
    """
    directions = [direction.name.lower() for direction in study.directions]
    if directions != [objective.direction]:
        wanted = objective.direction
        what = "the accuracy within a budget" if wanted == "maximize" else "the cost that is left"
        raise InputError(
            f"Study {study.study_name!r} has direction {', '.join(directions)!r}, but {what} is "
            f"to be {wanted}d: create it with `direction={wanted!r}`, or with "
            "`vit_ratio_opt.create_study`."
        )
    attributes = study.user_attrs
    if is_ours(attributes):
        check_settings(objective, study.study_name, attributes)
        objective.adopt(StudyRecord.read(study.study_name, attributes))


def check_enqueued(trial: BaseTrial, names: Iterable[str]) -> None:
    """End a trial that somebody has enqueued with a ratio that is no number.

    Raises:
        TrialPruned: With the ratio.
    """
    if not isinstance(trial, optuna.Trial):
        return
    attributes = trial.storage.get_trial(trial._trial_id).system_attrs
    for name, value in attributes.get("fixed_params", {}).items():
        if name in names and not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise optuna.TrialPruned(
                f"`{name}` must be a number, but {value!r:.100} was enqueued."
            )
