"""The protocol of a search whose study is created, resumed and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from optuna.samplers import BaseSampler

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.settings import StudySettings
from vit_ratio_opt.records.study import StudyRecord, settings_of
from vit_ratio_opt.search.direction import Direction
from vit_ratio_opt.search.plan import Pair
from vit_ratio_opt.utils.versions import installed_versions

__all__ = ["StudyTask", "check_settings", "screened_best"]

# Packages whose modules may have other attributes in another version.
_MODULE_PACKAGES = ("torch", "timm")


class StudyTask(Protocol):
    """A search whose study is created: :class:`vit_ratio_opt.Search` is one."""

    @property
    def directions(self) -> list[Direction]:
        """Return the direction of each objective of the study."""

    @property
    def value_names(self) -> list[str]:
        """Return the name of each value of a trial, for optuna-dashboard."""

    def check(self) -> None:
        """Raise an InputError if trials cannot be run or kept here."""

    def settings_for(self, stored: StudySettings) -> StudySettings:
        """Return the settings that this search has in a study with stored ones."""

    def new_attributes(self) -> dict[str, Any]:
        """Compute all attributes that a new study stores, in the order of writing."""

    def missing_attributes(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Compute the attributes that an earlier version of this package did not store."""

    def adopt(self, record: StudyRecord) -> None:
        """Adopt the measurements of a study, because another machine measures other values."""

    def sampler(self, attributes: Mapping[str, Any]) -> BaseSampler:
        """Return the sampler of a study with these attributes."""


def check_settings(task: StudyTask, study_name: str, attributes: Mapping[str, Any]) -> str | None:
    """Refuse a study with other settings than the search's.

    Returns:
        A warning, where modules differ that another version of timm or torch has made.

    Raises:
        InputError: With the settings that differ; or it stores none.
    """
    if "settings" not in attributes:
        raise InputError(
            f"The storage has a study {study_name!r} not created by vit_ratio_opt: use another "
            "name."
        )
    try:
        stored = settings_of(attributes)
    except InputError as error:
        raise InputError(f"Study {study_name!r}: {error} Use another study name.") from None
    differences = stored.differences(task.settings_for(stored))
    if [text.split()[0] for text in differences] == ["architecture.modules"]:
        versions, before = installed_versions(*_MODULE_PACKAGES), attributes.get("versions")
        if isinstance(before, Mapping) and not versions.items() <= before.items():
            return (
                f"Study {study_name!r} was created with other versions of torch or timm. The "
                "dense model has the same weights and properties, but its modules may differ."
            )
    if differences:
        fix = "Use another study name, or the settings of the study."
        if any(text.startswith("training_precision ") for text in differences):
            fix = (
                "The study has timed its precisions: give none (no --precision), or use another "
                "study name."
            )
        raise InputError(
            f"Study {study_name!r} exists with other settings: {'; '.join(differences)}. {fix}"
        )
    return None


def screened_best(attributes: Mapping[str, Any]) -> Pair | None:
    """Return the best pair of the screen among a study's attributes, the first of equal ones."""
    seen, metric = attributes.get("screened", []), attributes.get("metric", {})
    sign = 1 if metric.get("larger_is_better", True) else -1
    best = max(seen, key=lambda row: sign * row[2], default=None)
    return None if best is None else (best[0], best[1])
