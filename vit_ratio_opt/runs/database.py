"""Optuna's storage in a database, with faster reads, this package's heartbeats, and retries.

This is the only module that reads Optuna's tables and overrides private methods of ``RDBStorage``.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import optuna
import sqlalchemy
from optuna.distributions import json_to_distribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from vit_ratio_opt._compat import tables
from vit_ratio_opt.errors import InputError

__all__ = ["REPEATABLE", "RDBStorage"]

models = tables()
_VALUE = models.TrialValueModel

# Ids in one statement: older SQLite allows 999 variables.
_MOST_IDS = 500
REPEATABLE = (
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "get_trial",
    "get_n_trials",
    "get_trial_id_from_study_id_trial_number",
    "_get_best_trial_id",
    "_get_stale_trial_ids",
    "_set_trial_param",
    "set_study_user_attr",
    "set_study_system_attr",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "set_trial_intermediate_value",
)
"""Methods that may be called twice. Not ``create_new_trial``: Optuna repeats it itself, and a
trial that was created without a reply is left to the heartbeat."""

_distribution = functools.lru_cache(maxsize=256)(json_to_distribution)


def _is_lost(error: StorageInternalError) -> bool:
    """Return whether the connection broke, so that another one may be opened."""
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and cause.connection_invalidated


def _repeat_if_lost(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that is called once more if its connection breaks."""

    @functools.wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return method(*arguments, **options)
        except StorageInternalError as error:
            if not _is_lost(error):
                raise
        return method(*arguments, **options)

    return call


class RDBStorage(optuna.storages.RDBStorage):
    """Optuna's storage, with three differences.

    - A call whose connection breaks is repeated on another one, so no training is lost.
    - Trials are read without SQLAlchemy's objects, four times as fast.
    - While :meth:`heartbeats` is active for a trial, nothing else records its heartbeats.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._watched: set[int] = set()
        super().__init__(*arguments, **options)

    @contextlib.contextmanager
    def heartbeats(self, trial_id: int) -> Iterator[Callable[[], None]]:
        """Yield a function that alone records heartbeats of a trial.

        Otherwise a thread of ``study.optimize`` records them, whatever the trial does, until a
        write fails.
        """
        self._watched.add(trial_id)
        try:
            yield functools.partial(super().record_heartbeat, trial_id)
        finally:
            self._watched.discard(trial_id)

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a heartbeat, unless :meth:`heartbeats` is active for the trial."""
        if trial_id not in self._watched:
            super().record_heartbeat(trial_id)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Set the state; if the connection breaks, find out whether it was set."""
        try:
            return super().set_trial_state_values(trial_id, state, values)
        except StorageInternalError as error:
            if not _is_lost(error):
                raise
        try:
            return super().set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            trial = self.get_trial(trial_id)
            if (trial.state, trial.values) != (state, None if values is None else list(values)):
                raise
            return True

    @_repeat_if_lost
    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        table = models.TrialModel
        included = {number for number in included_trial_ids if number <= trial_id_greater_than}
        chosen = [table.study_id == study_id]
        # The last known one is read, too, to check that it still exists.
        last = {trial_id_greater_than} if trial_id_greater_than > -1 and states is None else set()
        if len(included) > _MOST_IDS:
            chosen.append(table.trial_id >= min(included))
        elif trial_id_greater_than > -1:
            is_known = table.trial_id.in_(included | last)
            chosen.append((table.trial_id > trial_id_greater_than) | is_known)
        if states is not None:
            assert isinstance(states, Iterable)
            chosen.append(table.state.in_(states))
        with self._session() as session:
            models.StudyModel.find_or_raise_by_id(study_id, session)
            trials = session.query(table).filter(*chosen).order_by(table.trial_id).all()
            if last and not included | last <= {trial.trial_id for trial in trials}:
                raise InputError(
                    "Trials that were read before are not in the database any more: it was "
                    "restored from a backup, or somebody has deleted them. Start again."
                )
            trials = [trial for trial in trials if trial.trial_id not in last - included]
            # Attributes after states: those of a finished trial are complete.
            return _frozen_trials(session, trials, chosen)

    @contextlib.contextmanager
    def _session(self) -> Iterator[Session]:
        """Open a transaction for reading that raises the same errors as Optuna's."""
        session = self.scoped_session()
        try:
            yield session
            session.commit()
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise StorageInternalError("The trials could not be read.") from error
        finally:
            session.close()  # rolls back anything that was not committed


for _name in REPEATABLE:
    setattr(RDBStorage, _name, _repeat_if_lost(getattr(optuna.storages.RDBStorage, _name)))


class _Parts(NamedTuple):
    """What trials consist of beside their own row, by their ids."""

    params: Mapping[int, list[Any]]
    values: Mapping[int, list[Any]]
    reports: Mapping[int, list[Any]]
    user_attributes: Mapping[int, list[Any]]
    system_attributes: Mapping[int, list[Any]]


def _frozen_trials(
    session: Session,
    trials: Sequence[Any],
    chosen: Sequence[sqlalchemy.ColumnElement[bool]],
) -> list[FrozenTrial]:
    """Return Optuna's objects for rows of its table of trials.

    Args:
        session: Session that reads parameters, values and attributes.
        trials: Rows of the table of trials.
        chosen: Conditions that chose the rows.
    """

    def rows(*columns: Any, by: Any = None) -> dict[int, list[Any]]:
        of_trial = columns[0].class_.trial_id
        found: defaultdict[int, list[Any]] = defaultdict(list)
        query = session.query(of_trial, *columns).order_by(by)
        if len(trials) > _MOST_IDS:
            query = query.join(models.TrialModel, models.TrialModel.trial_id == of_trial)
            query = query.filter(*chosen)
        else:
            query = query.filter(of_trial.in_([trial.trial_id for trial in trials]))
        for trial_id, *row in query:
            found[trial_id].append(row)
        return found

    if not trials:
        return []
    param, step = models.TrialParamModel, models.TrialIntermediateValueModel
    users, system = models.TrialUserAttributeModel, models.TrialSystemAttributeModel
    parts = _Parts(
        params=rows(
            param.param_name, param.param_value, param.distribution_json, by=param.param_id
        ),
        values=rows(_VALUE.value, _VALUE.value_type, by=_VALUE.objective),
        reports=rows(step.step, step.intermediate_value, step.intermediate_value_type),
        user_attributes=rows(users.key, users.value_json),
        system_attributes=rows(system.key, system.value_json),
    )
    return [_frozen_trial(trial, parts) for trial in trials]


def _frozen_trial(trial: Any, parts: _Parts) -> FrozenTrial:
    """Return Optuna's object for a row of its table of trials."""
    key = trial.trial_id
    distributions = {name: _distribution(text) for name, _, text in parts.params[key]}
    as_report = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
    return FrozenTrial(
        number=trial.number,
        state=trial.state,
        value=None,
        values=[_VALUE.stored_repr_to_value(*row) for row in parts.values[key]] or None,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params={
            name: distributions[name].to_external_repr(number)
            for name, number, _ in parts.params[key]
        },
        distributions=distributions,
        user_attrs={name: json.loads(text) for name, text in parts.user_attributes[key]},
        system_attrs={name: json.loads(text) for name, text in parts.system_attributes[key]},
        intermediate_values={step: as_report(*row) for step, *row in parts.reports[key]},
        trial_id=key,
    )
