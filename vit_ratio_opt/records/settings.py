"""Everything on which the numbers of a study's trials depend, as one value that is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.typed import check_type, field_types, shorten_repr, without_none

__all__ = ["SCHEMA_VERSION", "StudySettings"]

SCHEMA_VERSION = 2
"""Version of the stored settings. Version 1, of vit_ratio_opt 0.1.0, has no such key."""

# Fields that version 1 did not record: there None means "unknown".
_NEW_IN_2 = (
    *("architecture", "preprocessing", "image_shape", "classes", "mean", "std", "flip"),
    *("training", "test", "noise", "confirmations", "confidence", "precision"),
)
# Stored only where they differ from their default.
_SPARSE = (
    *("cost", "latency_batch", "latency_engine", "pruned", "rule", "ranges"),
    *("by_cascade", "criterion"),
    *("trainer", "bounds", "frozen", "calibration_task", "calibration_precision"),
    *("training_precision", "teacher", "frontier"),
)
# Its flag became an engine before any version was released with it.
_COMPILED = "`latency_compiled` of the settings"
# Fields of this package's own training: None where `trainer` is given.
_OF_IMAGES = ("dataset", "validation", "recipe")


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Settings that must be equal for two trials to be comparable. A study stores one such value.

    Args:
        schema_version: Version of the stored form.
        strategy: ``"fixed"``, one ratio for both modules, or ``"searched"``.
        budget: Largest share of the dense model's cost.
        tolerance: Largest loss of the metric, in its unit.
        frontier: Number of levels of the frontier, or its budgets.
        cost: Name of the cost that the budget limits.
        latency_batch: Images in a batch whose latency counts.
        latency_engine: What runs the models whose latency counts: ``"eager"``, ``"compiled"`` or
            ``"onnxruntime"``.
        pruned: ``"structural"``, ``"cascade"`` or ``"both"``.
        rule: Rule by which a cascade leaves out tokens.
        ranges: Attention range of each block, for a rule that depends on it.
        by_cascade: Share of the saving that leaving out tokens has to bring.
        criterion: Name of the criterion by which units are scored; None for the built-in one.
        trainer: Identity of a custom trainer; None for this package's training, which
            the fields from ``dataset`` to ``recipe`` and ``precision`` describe.
        model: timm's name of the dense model.
        weights: Hash of the weights of the dense model.
        architecture: Structure of the dense model without its weights, see
            :func:`vit_ratio_opt.models.architecture.architecture_of`.
        dataset: Name of the data set.
        training: Hash of the training split.
        validation: Hash of the validation split.
        test: Hash of the test split.
        image_shape: Channels, height and width of an image.
        preprocessing: Options with which images were decoded, beside their size.
        classes: Class names in the order of their labels.
        mean: Mean of the normalisation, one value for each channel.
        std: Standard deviation of the normalisation, one value for each channel.
        flip: Whether augmentation mirrors images.
        recipe: Fine-tuning of each trial.
        teacher: Hash of the weights of a teacher that is not the dense model; None where the
            dense model teaches.
        iterative: Whether trials start from pruned models.
        mhsa_unit: Unit that is removed from the attention: ``"rank"`` or ``"head"``.
        repair: Whether linear layers are refitted after pruning.
        allocation: Rule by which each ratio is allocated across blocks.
        round_to: Number of which ranks and neurons are multiples.
        bounds: Smallest and largest share of the units of a part of the model that a pair removes,
            by the part's name; None where no part has bounds.
        frozen: Names of the parts of the dense model that are not trained; None where all are.
        calibration_images: Training images for importance, factors and repair.
        calibration_task: Task by which errors of the outputs were weighed in the calibration.
        calibration_precision: Precision of the passes of calibration and repair; None for float32.
        seed: Random seed of calibration images and fine-tuning.
        noise: Standard deviation of the metric over seeds, in its unit; None where it
            is estimated from the size of the validation split.
        confirmations: Times that the best pair is trained again.
        confidence: Probability with which the answer has to keep the limit.
        precision: Number format in which models are evaluated, such as ``"bfloat16"``.
        training_precision: Number format in which models are trained; None where it is that of
            evaluation.
    """

    schema_version: int = SCHEMA_VERSION
    strategy: Literal["fixed", "searched"]
    budget: float | None
    tolerance: float | None
    frontier: int | tuple[float, ...] | None = None
    cost: str = "macs"
    latency_batch: int = 1
    latency_engine: str = "eager"
    pruned: str = "structural"
    rule: dict[str, Any] | None = None
    ranges: tuple[float, ...] | None = None
    by_cascade: float | None = None
    criterion: str | None = None
    trainer: dict[str, Any] | None = None
    model: str
    weights: str
    architecture: dict[str, Any] | None
    dataset: str | None = None
    training: str | None = None
    validation: str | None = None
    test: str | None = None
    image_shape: tuple[int, ...] | None = None
    preprocessing: dict[str, Any] | None = None
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    flip: bool | None = None
    recipe: dict[str, Any] | None = None
    teacher: str | None = None
    iterative: bool
    mhsa_unit: str
    repair: bool
    allocation: str
    round_to: int
    bounds: dict[str, tuple[float, float]] | None = None
    frozen: tuple[str, ...] | None = None
    calibration_images: int
    calibration_task: str = "single-label"
    calibration_precision: str | None = None
    seed: int
    noise: float | None
    confirmations: int | None
    confidence: float | None
    precision: str | None = None
    training_precision: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        values = {name: _as_json(value) for name, value in asdict(self).items()}
        for name in _SPARSE:
            if values[name] == _DEFAULTS[name]:
                del values[name]
        return values

    @classmethod
    def from_json(cls, stored: object) -> StudySettings:
        """Return what :meth:`to_json` gave, of this version or an earlier one.

        Raises:
            InputError: A field is missing, unknown or of another type, or the version is newer.
        """
        if not isinstance(stored, Mapping):
            raise InputError(f"Settings must be a JSON object, but are {shorten_repr(stored)}.")
        values = {"schema_version": 1, **stored}
        version = check_type("`schema_version` of the settings", values["schema_version"], int)
        if version > SCHEMA_VERSION:
            raise InputError(
                f"Settings of schema version {version} are of a newer vit_ratio_opt, and this one "
                f"reads up to {SCHEMA_VERSION}: upgrade with `pip install -U vit_ratio_opt`."
            )
        if check_type(_COMPILED, values.pop("latency_compiled", False), bool):
            values["latency_engine"] = "compiled"
        if version == 1:
            values = dict.fromkeys(_NEW_IN_2) | values
        values = _DEFAULTS | values
        hints = field_types(cls)
        unknown, missing = sorted(set(values) - set(hints)), sorted(set(hints) - set(values))
        if unknown:
            raise InputError(f"Settings have an unknown field `{unknown[0]}`.")
        if missing:
            raise InputError(f"Settings have no field `{missing[0]}`.")
        if values["trainer"] is None:
            hints = {**hints, **{name: without_none(hints[name]) for name in _OF_IMAGES}}
        return cls(
            **{
                name: check_type(f"`{name}` of the settings", values[name], hint)
                for name, hint in hints.items()
            }
        )

    @property
    def unknown(self) -> tuple[str, ...]:
        """Return the fields that the version which stored the settings did not record."""
        if self.schema_version >= SCHEMA_VERSION:
            return ()
        return tuple(name for name in _NEW_IN_2 if getattr(self, name) is None)

    def differences(self, other: StudySettings) -> list[str]:
        """Return one clause for each field of ``other`` that differs, without unknown fields."""
        skipped = {"schema_version", *self.unknown, *other.unknown}
        return [
            clause
            for field in fields(self)
            if field.name not in skipped
            for clause in _differences(
                field.name, _effective(self, field.name), _effective(other, field.name)
            )
        ]


_DEFAULTS = {field.name: field.default for field in fields(StudySettings) if field.name in _SPARSE}


def _effective(settings: StudySettings, name: str) -> Any:
    """Return a setting without the parts that change nothing."""
    value = getattr(settings, name)
    if name == "recipe" and isinstance(value, Mapping) and value.get("epochs") == 0:
        # Nothing is trained, at whatever learning rate, but models are evaluated.
        return {key: value[key] for key in ("epochs", "metric") if key in value}
    return value


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_json(part) for key, part in value.items()}
    return [_as_json(part) for part in value] if isinstance(value, (tuple, list)) else value


def _differences(name: str, ours: Any, theirs: Any) -> list[str]:
    """Return what differs, down to the entry of a dictionary or the first one of a sequence."""
    ours, theirs = _as_json(ours), _as_json(theirs)
    if ours == theirs:
        return []
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            clause
            for key in sorted({*ours, *theirs})
            for clause in _differences(f"{name}.{key}", ours.get(key), theirs.get(key))
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        index, (first, second) = next((i, p) for i, p in pairs if p[0] != p[1])
        return _differences(f"{name}[{index}]", first, second)
    return [f"{name} is {_shown(ours)}, not {_shown(theirs)}"]


def _shown(value: Any) -> str:
    return "unset" if value is None else shorten_repr(value)
