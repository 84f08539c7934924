"""The attributes of a trial: their names, their types, how they are read and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from optuna.trial import BaseTrial, FrozenTrial

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.typed import check_type, field_types, without_none
from vit_ratio_opt.space.metric import ACCURACY, Metric

__all__ = ["DAMAGED", "TrialRecord", "attribute", "shown_attribute", "write_trial"]

DAMAGED = "damaged"
"""Word that tables show for an attribute of another type than this package writes."""

_TOO_LARGE = 1e18  # for a number of this package; NaN is not below it either

_Sizes = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """Attributes of a trial. A field is None where the trial lacks it or has another type.

    A field is a user attribute of the same name, but for the accuracies where the metric of the
    study is another one, see :func:`write_trial`. Ratios and costs are shares of the dense
    model's. Accuracies are in per cent and their differences in percentage points, or in the unit
    of the other metric.

    Args:
        macs_ratio: MACs that are left.
        macs: MACs of the pruned model.
        cost_ratio: Cost that is left, where the cost is not MACs.
        planned_cost_ratio: Cost that the search knew before the model was pruned, where the model
            came out smaller.
        params: Parameters of the pruned model.
        accuracy_pruned: Validation accuracy before fine-tuning.
        accuracy: Validation accuracy after fine-tuning.
        accuracy_drop: By how much ``accuracy`` is worse than the dense model's.
        parent_trial: Number of the trial whose model was pruned further, or ``"dense"``.
        epochs: Epochs of the trial.
        total_epochs: Epochs of the trial and of its parents.
        seconds: Duration of the trial.
        seed: Random seed of the training.
        device: Name of the device.
        checkpoint: File name of the pruned model.
        weights: Hash of the weights in that file.
        worker: Name of the process that runs the trial.
        chosen: What the training chose by itself, such as its learning rate, by name.
        failure: Reason why the trial failed.
        blocks: Heads, dimensions of a head and hidden neurons of each block.
        tokens: After a cascade: queries, keys and FFN tokens of each block.
        losses: Training loss of each epoch.
        reports: Metric after each epoch in a study of several objectives, for which Optuna keeps
            no reports.
        timing: Seconds of each part of the trial.
        resumed_from: Trial and epoch from which the training was resumed.
        training_state: Artifact and epoch of the saved training state.
        state_not_kept: Reason why the training state was not saved.
    """

    macs_ratio: float | None = None
    macs: int | None = None
    cost_ratio: float | None = None
    planned_cost_ratio: float | None = None
    params: int | None = None
    accuracy_pruned: float | None = None
    accuracy: float | None = None
    accuracy_drop: float | None = None
    parent_trial: Literal["dense"] | int | None = None
    epochs: int | None = None
    total_epochs: int | None = None
    seconds: float | None = None
    seed: int | None = None
    device: str | None = None
    checkpoint: str | None = None
    weights: str | None = None
    worker: str | None = None
    chosen: dict[str, Any] | None = None
    failure: str | None = None
    blocks: _Sizes | None = None
    tokens: _Sizes | None = None
    losses: tuple[float, ...] | None = None
    reports: dict[str, float] | None = None
    timing: dict[str, float] | None = None
    resumed_from: dict[str, int] | None = None
    training_state: dict[str, Any] | None = None
    state_not_kept: str | None = None

    @classmethod
    def read(cls, trial: FrozenTrial | BaseTrial) -> TrialRecord:
        """Return the record of a trial."""
        attributes = trial.user_attrs  # a running trial reads its storage at each access
        return cls(**{name: _read(attributes, name) for name in _HINTS})


# The names under which a study of another metric than the accuracy stores these fields.
_OF_OTHER_METRICS = {
    "accuracy": "metric",
    "accuracy_pruned": "metric_pruned",
    "accuracy_drop": "metric_loss",
}
_HINTS = {
    name: without_none(hint)
    for name, hint in field_types(TrialRecord).items()
    if name in {field.name for field in fields(TrialRecord)}
}


def attribute(trial: FrozenTrial | BaseTrial, name: str) -> Any:
    """Return one field of :class:`TrialRecord`, for loops over thousands of trials."""
    return _read(trial.user_attrs, name)


def _read(attributes: Mapping[str, Any], name: str) -> Any:
    hint, value = _HINTS[name], _stored(attributes, name)
    if value is None:
        return None
    if hint in (int, float, str):  # in a table of thousands of trials, `typed` takes long
        is_right = type(value) is hint or (hint is float and type(value) is int)
        return value if is_right and (hint is str or abs(value) < _TOO_LARGE) else None
    try:
        return check_type(name, value, hint)
    except InputError:
        return None


def _stored(attributes: Mapping[str, Any], name: str) -> Any:
    value = attributes.get(name)
    if value is None and name in _OF_OTHER_METRICS:
        return attributes.get(_OF_OTHER_METRICS[name])
    return value


def shown_attribute(trial: FrozenTrial, name: str) -> Any:
    """Return one field of :class:`TrialRecord` for a table; :data:`DAMAGED` for another type."""
    value = attribute(trial, name)
    is_damaged = value is None and _stored(trial.user_attrs, name) is not None
    return DAMAGED if is_damaged else value


def write_trial(trial: BaseTrial, *, metric: Metric = ACCURACY, **values: Any) -> None:
    """Write fields of :class:`TrialRecord` into a trial.

    Args:
        trial: The trial.
        metric: Metric of the study. The accuracies of another one are stored as ``metric``,
            ``metric_pruned`` and ``metric_loss``.
        **values: The fields.

    Raises:
        TypeError: :class:`TrialRecord` has no such field.
    """
    TrialRecord(**values)
    names = {} if metric.name == ACCURACY.name else _OF_OTHER_METRICS
    for name, value in values.items():
        trial.set_user_attr(names.get(name, name), value)
