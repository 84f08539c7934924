"""The attributes of a study, read once and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.settings import StudySettings
from vit_ratio_opt.records.typed import shorten, typed
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.space.pairs import RatioPair

__all__ = ["COMPLETE", "StudyRecord", "is_complete", "is_ours", "settings_of"]

COMPLETE = "complete"
"""The attribute that the creation of a study writes last."""

_Pairs = tuple[tuple[float, float], ...]
# Attributes that are dictionaries, with the types of the entries that are read. An entry that may
# be None may be missing.
_ENTRIES: dict[str, dict[str, Any]] = {
    "dense": {
        "macs": int,
        "params": int,
        "val_accuracy": float,
        "blocks": tuple[tuple[int, int, int], ...] | None,
        "tokens": int | None,
    },
    "origin": {
        "model": dict[str, Any] | None,
        "data": dict[str, Any] | None,
        "checkpoints": str | None,
        "artifacts": str | None,
    },
    "plan": {
        "curve": _Pairs | None,
        "baseline": tuple[float, float] | None,
        "start": tuple[float, float] | None,
        "noise": float,
        "noise_is_known": bool | None,
        "confirmations": int | None,
        "dense": float | None,
        "tolerance": float | None,
        "scale": tuple[float, float] | None,
        "confidence": float | None,
    },
    "latency": {
        "rest": float,
        "mhsa": _Pairs,
        "ffn": _Pairs,
        "error": float,
        "device": str,
        "batch": int,
        "threads": int,
    },
    "tested": {
        "trial": int | None,
        "accuracy": float | None,
        "accuracies": dict[str, float] | None,
        "dense": float | None,
        "baseline": dict[str, Any] | None,
        "dense_ms": float | None,
        "pruned_ms": float | None,
        "device": str | None,
    },
}
_OTHERS: dict[str, Any] = {
    "versions": dict[str, str],
    "device": str,
    "screened": tuple[tuple[float, float, float], ...],
    "path": _Pairs,
    "saved": dict[str, _Pairs] | None,
    "dense_full_test_accuracy": float,
}
_REQUIRED = ("dense", "versions", "device")


def is_ours(attributes: Mapping[str, Any]) -> bool:
    """Whether the study of these attributes was created by this package."""
    return bool({"settings", "dense", COMPLETE} & attributes.keys())


def is_complete(attributes: Mapping[str, Any]) -> bool:
    """Whether the creation of the study of these attributes was finished.

    Studies of version 0.1.0 have no mark, but ``dense``.
    """
    settings = attributes.get("settings")
    is_old = isinstance(settings, Mapping) and "schema_version" not in settings
    return COMPLETE in attributes or (is_old and "dense" in attributes)


def settings_of(attributes: Mapping[str, Any]) -> StudySettings:
    """Return the settings among the attributes of a study.

    Raises:
        InputError: There are none, or a field is missing or of another type.
    """
    settings, origin = _attribute(attributes, "settings"), attributes.get("origin")
    is_old = isinstance(settings, Mapping) and "schema_version" not in settings
    if is_old and isinstance(origin, Mapping):  # version 0.1.0 had them there
        known = {name: origin.get(name) for name in ("noise", "confirmations")}
        settings = {**known, **settings}
    return StudySettings.from_json(settings)


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """What a study has stored.

    Args:
        name: The name of the study.
        settings: Everything on which the numbers of its trials depend.
        dense: Size and accuracy of the dense model.
        versions: Version of each package that created the study.
        device: Name of the device that created it.
        origin: Where the dense model, the images and the folders are.
        latency: What pairs take, where the cost is the latency.
    """

    name: str
    settings: StudySettings
    dense: dict[str, Any]
    versions: dict[str, str]
    device: str
    origin: dict[str, Any]
    latency: dict[str, Any] | None

    @classmethod
    def read(cls, name: str, attributes: Mapping[str, Any]) -> StudyRecord:
        """Return the record of a study, after a check of everything that is read anywhere.

        Args:
            name: The name of the study.
            attributes: Its user attributes.

        Raises:
            InputError: The study was not created by this package, its creation was not finished,
                or an attribute is missing or of another type.
        """
        if not is_ours(attributes):
            raise InputError(f"Study {name!r} was not made by vit_ratio_opt.")
        stored = attributes.get("settings")
        is_new = isinstance(stored, Mapping) and "schema_version" in stored
        if is_new and not is_complete(attributes):
            raise InputError(
                f"The creation of study {name!r} was not finished: run the command that creates "
                "it again."
            )
        try:
            settings = settings_of(attributes)
            required = {*_REQUIRED, *(("latency",) if settings.cost == "latency" else ())}
            if is_new:
                required.add("plan")
            for key in required | (attributes.keys() & (_ENTRIES.keys() | _OTHERS.keys())):
                _check(key, _attribute(attributes, key))
            _check_meaning(attributes, settings)
            if is_new:
                _check_plan(attributes["plan"], settings)
            elif "plan" in attributes:
                _check_old_plan(attributes["plan"], settings)
        except InputError as error:
            raise InputError(
                f"Study {name!r} is damaged: {error} Restore the database, or use another study "
                "name."
            ) from None
        return cls(
            name=name,
            settings=settings,
            dense=attributes["dense"],
            versions=attributes["versions"],
            device=attributes["device"],
            origin=attributes.get("origin", {}),
            latency=attributes.get("latency"),
        )


def _attribute(attributes: Mapping[str, Any], key: str) -> Any:
    if key not in attributes:
        raise InputError(f"It has no attribute `{key}`.")
    return attributes[key]


def _check(key: str, value: Any) -> None:
    if key in _OTHERS:
        typed(f"The attribute `{key}`", value, _OTHERS[key])
        return
    if not isinstance(value, Mapping):
        raise InputError(f"The attribute `{key}` must be a JSON object, but is {shorten(value)}.")
    for name, hint in _ENTRIES[key].items():
        typed(f"`{name}` of the attribute `{key}`", value.get(name), hint)


def _check_meaning(attributes: Mapping[str, Any], settings: StudySettings) -> None:
    """Refuse values of the right types that mean nothing.

    Raises:
        InputError: With the first of them.
    """
    if (settings.budget is None) == (settings.tolerance is None):
        raise InputError("The settings must have either `budget` or `tolerance`.")
    saved = attributes.get("saved")
    if saved is not None and not all(saved.get(name) for name in RatioPair._fields):
        raise InputError("The attribute `saved` has no pairs for one of the ratios.")
    for name, values in (("dense", ("macs", "params")), ("latency", ("mhsa", "ffn"))):
        for value in values if name in attributes else ():
            if not attributes[name][value]:
                raise InputError(f"`{value}` of the attribute `{name}` is empty or 0.")


def _check_old_plan(plan: Mapping[str, Any], settings: StudySettings) -> None:
    """Refuse a plan of version 0.1.0 of which the answer cannot be made.

    Raises:
        InputError: An entry is missing or None.
    """
    entries = ["tolerance", "scale", "noise_is_known", "confidence"]
    entries = entries if settings.budget is None else ["curve"]
    entries += ["confirmations"] if "confirmations" in plan else []
    missing = [name for name in ("noise", *entries) if plan.get(name) is None]
    if missing:
        raise InputError(f"The attribute `plan` has no `{missing[0]}`.")
    if settings.budget is not None:
        BudgetSearch.from_json(plan)


def _check_plan(plan: Mapping[str, Any], settings: StudySettings) -> None:
    """Refuse a plan of which the answer cannot be made.

    Raises:
        InputError: An entry is missing, or is not that of the settings.
    """
    is_budget = settings.tolerance is None
    entries = ["noise", "noise_is_known"]
    entries += ["curve", "baseline", "start", "confirmations", "dense"] if is_budget else []
    entries += [] if is_budget else ["tolerance", "scale", "confidence"]
    missing = [name for name in entries if name not in plan]
    if missing:
        raise InputError(f"The attribute `plan` has no `{missing[0]}`.")
    for name in ("confirmations",) if is_budget else ("tolerance", "confidence"):
        if plan[name] != getattr(settings, name):
            raise InputError(
                f"`{name}` of the attribute `plan` is {shorten(plan[name])}, but that of the "
                f"settings {shorten(getattr(settings, name))}."
            )
    if is_budget:
        BudgetSearch.from_json(plan)
    elif plan["scale"] is None or not min(plan["scale"]) > 0:
        raise InputError(
            f"`scale` of the attribute `plan` must be two numbers above 0, but is "
            f"{shorten(plan['scale'])}."
        )
    Noise(plan["noise"])
