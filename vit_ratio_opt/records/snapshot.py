"""A study as it was at one moment, read once from its storage."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

__all__ = ["StudySnapshot", "snapshot"]


class StudySnapshot(Study):
    """A study of which attributes and trials are read once, for reports.

    Optuna reads both from the storage, and copies the attributes, at each access.

    Args:
        study: The study.
    """

    def __init__(self, study: Study) -> None:
        vars(self).update(vars(study))
        self._attributes = study.user_attrs
        self._trials = study.get_trials(deepcopy=False)
        self.computed: dict[str, Any] = {}

    @property
    def user_attrs(self) -> dict[str, Any]:
        """Return the user attributes, which must not be changed."""
        return self._attributes

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials, which must not be changed."""
        return [trial for trial in self._trials if states is None or trial.state in states]


def snapshot(study: Study) -> StudySnapshot:
    """Return the study as it is now, or as it was if it is a snapshot."""
    return study if isinstance(study, StudySnapshot) else StudySnapshot(study)
