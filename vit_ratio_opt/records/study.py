"""The attributes of a study: their names, their types, how they are read and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from optuna.study import Study, StudyDirection

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.checks import attribute_of, check_attributes, check_types
from vit_ratio_opt.records.labels import CHANGE, MACS, CostRecord, LimitRecord, metric_from_json
from vit_ratio_opt.records.settings import StudySettings
from vit_ratio_opt.records.snapshot import StudySnapshot
from vit_ratio_opt.records.trial import attribute
from vit_ratio_opt.space.metric import ACCURACY, Metric

__all__ = [
    "COMPLETE",
    "DenseRecord",
    "StudyRecord",
    "artifacts_of",
    "is_complete",
    "has_custom_objective",
    "is_ours",
    "record_of",
    "settings_of",
    "write_study",
]

COMPLETE = "complete"
"""The attribute that the creation of a study writes last."""

_Sizes = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class DenseRecord:
    """Size and accuracy of the dense model. What was not recorded is None.

    Args:
        macs: MACs of one image.
        params: Number of parameters.
        val_accuracy: Validation accuracy in per cent, or another metric.
        blocks: Heads, dimensions of a head and hidden neurons of each block.
        tokens: Number of tokens of an image.
    """

    macs: int | None = None
    params: int | None = None
    val_accuracy: float | None = None
    blocks: _Sizes | None = None
    tokens: int | None = None

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> DenseRecord:
        """Return the record of the attribute ``dense``."""
        return cls(**{one.name: stored.get(one.name) for one in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """Attributes of a study.

    A study of :class:`~vit_ratio_opt.Search` stores everything. A study of a custom objective with
    :class:`~vit_ratio_opt.BinarySearchSampler` has no settings, and of the rest what was recorded.

    Args:
        name: Name of the study.
        limit: Budget or tolerance; None where nothing about it is stored.
        cost: Cost that the budget limits, or that is minimised within a tolerance.
        metric: Metric of the trials.
        optional_settings: Everything on which the numbers of its trials depend; None for a
            custom objective.
        dense: Size and accuracy of the dense model.
        versions: Version of each package that created the study.
        device: Name of the device that created the study.
        origin: Places of the dense model, the images and the folders.
        bfloat16_speedup: How many times as fast as in float32 the dense model was in bfloat16, in
            ``evaluation`` and ``training``, where the study chose the precision by timing it.
        round_to: Number of which sizes are multiples, in a study of a custom objective; the
            settings have it otherwise.
        latency: Curves of the predicted latency, where the cost is the latency.
        plan: The search as JSON values, of which the answer is computed.
        saved: Cost that each ratio saves.
        screened: Pairs that were evaluated before any training, with their accuracies.
        path: Pairs with which a search with a tolerance begins.
        tested: Results on the test split.
        per_class: Numbers of images of each class, and how many of them the dense model and the
            model of the answer's trial classify correctly, on the validation split.
        probes: Accuracies of probes of the features of the dense model and of the answer's
            trial's, on the test split.
        config: Options of the command line as TOML.
        dense_full_test_accuracy: Accuracy of the dense model on both halves of the test split,
            where validation took one half of it.
    """

    name: str
    limit: LimitRecord | None
    cost: CostRecord
    metric: Metric
    optional_settings: StudySettings | None = None
    dense: DenseRecord = DenseRecord()
    versions: dict[str, str] = field(default_factory=dict)
    device: str | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    bfloat16_speedup: dict[str, float] = field(default_factory=dict)
    round_to: int | None = None
    latency: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    saved: dict[str, Any] | None = None
    screened: tuple[Any, ...] = ()
    path: tuple[Any, ...] = ()
    tested: dict[str, Any] = field(default_factory=dict)
    per_class: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)
    config: str | None = None
    dense_full_test_accuracy: float | None = None

    @classmethod
    def read(cls, name: str, attributes: Mapping[str, Any]) -> StudyRecord:
        """Return the record of a study, after a check of everything that is read anywhere.

        Args:
            name: Name of the study.
            attributes: User attributes of the study.

        Raises:
            InputError: The study was not created by this package, its creation was not finished,
                or an attribute is missing or of another type.
        """
        if not is_ours(attributes):
            raise InputError(f"Study {name!r} was not created by vit_ratio_opt.")
        stored = attributes.get("settings")
        is_new = isinstance(stored, Mapping) and "schema_version" in stored
        if is_new and not is_complete(attributes):
            raise InputError(
                f"The creation of study {name!r} was not finished: run the command that creates "
                "it again."
            )
        try:
            settings = None if has_custom_objective(attributes) else settings_of(attributes)
            check_attributes(attributes, settings, is_old=settings is not None and not is_new)
        except InputError as error:
            raise _damaged(name, error) from None
        return _record(name, attributes, settings)

    @property
    def settings(self) -> StudySettings:
        """Return everything on which the numbers of the study's trials depend.

        Raises:
            InputError: The study has a custom objective.
        """
        if self.optional_settings is None:
            raise InputError(
                f"Study {self.name!r} has a custom objective and stores no settings: run the "
                "script that created it."
            )
        return self.optional_settings

    @property
    def constraint(self) -> str:
        """Return the name of the constraint of its trials, where it has a tolerance."""
        return ACCURACY.constraint if self.metric == CHANGE else self.metric.constraint

    @property
    def is_fixed(self) -> bool:
        """Return whether the study searches one fixed ratio for both modules."""
        return self.optional_settings is not None and self.optional_settings.strategy == "fixed"

    @property
    def model(self) -> str | None:
        """Return timm's name of the dense model."""
        return None if self.optional_settings is None else self.optional_settings.model

    @property
    def dataset(self) -> str | None:
        """Return the name of the data set."""
        return None if self.optional_settings is None else self.optional_settings.dataset

    @property
    def compares_with_dense(self) -> bool:
        """Return whether the metric compares a model's outputs with the dense model's."""
        settings = self.optional_settings
        recipe = {} if settings is None else settings.recipe or {}
        return recipe.get("metric") in ("cosine", "agreement", "kl")

    @property
    def pruned(self) -> str:
        """Return what is pruned: ``"structural"``, ``"cascade"`` or ``"both"``."""
        return "structural" if self.optional_settings is None else self.optional_settings.pruned

    @property
    def limit_text(self) -> str:
        """Return the limit in words, such as ``at most 60 % of the FLOPs``."""
        return "no limit" if self.limit is None else self.limit.text(self.cost.word, self.metric)

    @property
    def has_frontier(self) -> bool:
        """Return whether the study searches the frontier of metric and cost."""
        return self.limit is not None and self.limit.frontier is not None

    @property
    def has_tolerance(self) -> bool:
        """Return whether the study minimises the cost within a tolerance."""
        if self.limit is not None and self.limit.other is not None:
            return "tolerance" in (self.plan or {})
        return self.limit is not None and self.limit.tolerance is not None


def is_ours(attributes: Mapping[str, Any]) -> bool:
    """Return whether the study of these attributes was created by this package."""
    return bool({"settings", "dense", COMPLETE} & attributes.keys()) or has_custom_objective(
        attributes
    )


def has_custom_objective(attributes: Mapping[str, Any]) -> bool:
    """Return whether a sampler of this package searches a custom objective."""
    return {"plan", "limit"} <= attributes.keys() and "settings" not in attributes


def is_complete(attributes: Mapping[str, Any]) -> bool:
    """Return whether the creation of the study of these attributes was finished.

    Studies of version 0.1.0 have no mark, but ``dense``.
    """
    settings = attributes.get("settings")
    is_old = isinstance(settings, Mapping) and "schema_version" not in settings
    return COMPLETE in attributes or (is_old and "dense" in attributes)


def artifacts_of(attributes: Mapping[str, Any]) -> str | None:
    """Return the location of the artifacts of any study, damaged ones included."""
    origin = attributes.get("origin")
    location = origin.get("artifacts") if isinstance(origin, Mapping) else None
    return location if isinstance(location, str) else None


def settings_of(attributes: Mapping[str, Any]) -> StudySettings:
    """Return the settings among the attributes of a study.

    Raises:
        InputError: There are none, or a field is missing or of another type.
    """
    settings, origin = attribute_of(attributes, "settings"), attributes.get("origin")
    is_old = isinstance(settings, Mapping) and "schema_version" not in settings
    if is_old and isinstance(origin, Mapping):  # version 0.1.0 stored them in `origin`
        known = {name: origin.get(name) for name in ("noise", "confirmations")}
        settings = {**known, **settings}
    return StudySettings.from_json(settings)


def record_of(study: Study) -> StudyRecord:
    """Return the record of any study; attributes may be missing, unlike :meth:`StudyRecord.read`.

    The record of a study that another program created has few fields that are not None.

    Raises:
        InputError: The study is of this package, and an attribute has another type.
    """
    computed = study.computed if isinstance(study, StudySnapshot) else {}
    if "record" not in computed:
        attributes = study.user_attrs
        settings = _checked_settings(study.study_name, attributes)
        record = _record(study.study_name, attributes, settings)
        if settings is None and "metric" not in attributes:
            metric = _guessed_metric(study, record)
            record = _record(study.study_name, attributes, settings, metric=metric)
        computed["record"] = record
    found: StudyRecord = computed["record"]
    return found


def write_study(study: Study, **values: Any) -> None:
    """Write attributes of :class:`StudyRecord`, or ``settings``, into a study.

    Raises:
        TypeError: :class:`StudyRecord` has no such field.
    """
    known = {one.name for one in fields(StudyRecord)} - {"name", "optional_settings"}
    for name, value in values.items():
        if name not in known | {"settings", COMPLETE}:
            raise TypeError(f"StudyRecord has no field {name!r}.")
        study.set_user_attr(name, value)


def _checked_settings(name: str, attributes: Mapping[str, Any]) -> StudySettings | None:
    """Return the settings of a study; refuse attributes of which no record can be made."""
    if not is_ours(attributes):
        return None
    try:
        if has_custom_objective(attributes):
            check_attributes(attributes, None)
            return None
        check_types(attributes, is_partial=True)
        return settings_of(attributes) if "settings" in attributes else None
    except InputError as error:
        raise _damaged(name, error) from None


def _damaged(name: str, error: InputError) -> InputError:
    return InputError(
        f"Study {name!r} is damaged: {error} Restore the database, or use another study name."
    )


def _record(
    name: str,
    attributes: Mapping[str, Any],
    settings: StudySettings | None,
    *,
    metric: Metric = ACCURACY,
) -> StudyRecord:
    limit = None
    if settings is not None:
        limit = LimitRecord(
            budget=settings.budget,
            tolerance=settings.tolerance,
            frontier=settings.frontier,
            confidence=settings.confidence,
            cost=settings.cost,
        )
    elif "limit" in attributes:
        limit = LimitRecord.from_json(attributes["limit"])
    cost = MACS if limit is None or limit.cost is None else CostRecord.named(limit.cost)
    if "cost" in attributes:
        cost = CostRecord.from_json(attributes["cost"])
    dense = DenseRecord.from_json(attributes.get("dense", {}))
    if dense.macs is None and limit is not None:
        dense = replace(dense, macs=limit.macs)
    if "metric" in attributes:
        metric = metric_from_json(attributes["metric"])
    names = (
        *("versions", "device", "origin", "latency", "plan", "saved", "tested", "per_class"),
        *("probes", "config", "bfloat16_speedup", "round_to"),
    )
    return StudyRecord(
        name=name,
        limit=limit,
        cost=cost,
        metric=metric,
        optional_settings=settings,
        dense=dense,
        screened=tuple(attributes.get("screened", ())),
        path=tuple(attributes.get("path", ())),
        dense_full_test_accuracy=attributes.get("dense_full_test_accuracy"),
        **{key: attributes[key] for key in names if key in attributes},
    )


def _guessed_metric(study: Study, record: StudyRecord) -> Metric:
    """Return the metric of a study that does not store it."""
    trials = study.get_trials(deepcopy=False)
    has_accuracy = any(attribute(trial, "accuracy") is not None for trial in trials)
    if record.limit is None or record.dense.val_accuracy is not None or has_accuracy:
        return ACCURACY
    if record.has_tolerance:
        return CHANGE
    names = study.metric_names
    is_larger = study.directions[0] == StudyDirection.MAXIMIZE
    return Metric("value" if names is None else names[0], "", is_larger)
