"""Check the attributes of a study before they are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.labels import CostRecord, LimitRecord, metric_from_json
from vit_ratio_opt.records.settings import StudySettings
from vit_ratio_opt.records.typed import check_type, shorten_repr
from vit_ratio_opt.search.budget import BudgetSearch
from vit_ratio_opt.search.forecast import Forecast
from vit_ratio_opt.search.noise import Noise
from vit_ratio_opt.space.pairs import RatioPair

__all__ = ["attribute_of", "check_attributes", "check_types"]

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
        "noise_point": float | None,
        "may_be_fractions": bool | None,
        "larger_is_better": bool | None,
        "confirmations": int | None,
        "dense": float | None,
        "tolerance": float | None,
        "scale": tuple[float, float] | None,
        "confidence": float | None,
        "worst": float | None,
        "marks": tuple[float, ...] | None,
        "levels": _Pairs | None,
    },
    "latency": {
        "rest": float,
        "mhsa": _Pairs,
        "ffn": _Pairs,
        "error": float,
        "device": str,
        "batch": int,
        "threads": int,
        "run_as": tuple[str, ...] | None,
        "provider": str | None,
    },
    "bfloat16_speedup": {"evaluation": float | None, "training": float | None},
    "per_class": {
        "trial": int,
        "images": tuple[int, ...],
        "dense": tuple[int, ...],
        "pruned": tuple[int, ...],
    },
    "probes": {
        "trial": int,
        "images": int,
        "bank": int,
        "dense": dict[str, float],
        "pruned": dict[str, float],
        "errors": dict[str, float],
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
    "config": str,
    "round_to": int,
}
_REQUIRED = ("dense", "versions", "device")


def check_attributes(
    attributes: Mapping[str, Any], settings: StudySettings | None, *, is_old: bool = False
) -> None:
    """Refuse attributes of which a report or the answer cannot be made.

    Args:
        attributes: The user attributes of the study.
        settings: The settings among them; None in a study of a custom objective,
            which stores ``plan`` and ``limit`` and any part of the rest.
        is_old: Whether the study is one of version 0.1.0, whose plans are smaller.

    Raises:
        InputError: An attribute is missing, of another type, or contradicts the settings.
    """
    required = {"plan"}
    if settings is not None:
        required = {*_REQUIRED, *(() if is_old else ("plan",))}
        required |= {"latency"} if settings.cost == "latency" else set()
    for key in required:
        attribute_of(attributes, key)
    check_types(attributes, is_partial=settings is None)
    _check_meaning(attributes)
    if settings is None:
        _check_plan(attributes["plan"], LimitRecord.from_json(attributes.get("limit")))
        return
    if [settings.budget, settings.tolerance, settings.frontier].count(None) != 2:
        raise InputError("The settings must have one of `budget`, `tolerance` and `frontier`.")
    limit = LimitRecord(
        budget=settings.budget,
        tolerance=settings.tolerance,
        frontier=settings.frontier,
        confidence=settings.confidence,
    )
    if not is_old:
        _check_plan(attributes["plan"], limit, confirmations=settings.confirmations)
    elif "plan" in attributes:
        _check_old_plan(attributes["plan"], is_budget=settings.budget is not None)


def check_types(attributes: Mapping[str, Any], *, is_partial: bool) -> None:
    """Refuse attributes of other types than this package writes.

    Args:
        attributes: The user attributes of the study.
        is_partial: Whether entries of ``dense`` and ``plan`` may be missing.

    Raises:
        InputError: An attribute, or an entry of one, has another type.
    """
    for key in attributes.keys() & (_ENTRIES.keys() | _OTHERS.keys()):
        _check(key, attributes[key], is_partial=is_partial)
    if "metric" in attributes:
        metric_from_json(attributes["metric"])
    if "cost" in attributes:
        CostRecord.from_json(attributes["cost"])


def attribute_of(attributes: Mapping[str, Any], key: str) -> Any:
    """Return an attribute of a study.

    Raises:
        InputError: The study does not have it.
    """
    if key not in attributes:
        raise InputError(f"It has no attribute `{key}`.")
    return attributes[key]


def _check(key: str, value: Any, *, is_partial: bool) -> None:
    if key in _OTHERS:
        check_type(f"The attribute `{key}`", value, _OTHERS[key])
        return
    if not isinstance(value, Mapping):
        raise InputError(
            f"The attribute `{key}` must be a JSON object, but is {shorten_repr(value)}."
        )
    for name, hint in _ENTRIES[key].items():
        if name in value or not is_partial or key not in ("dense", "plan"):
            check_type(f"`{name}` of the attribute `{key}`", value.get(name), hint)


def _check_meaning(attributes: Mapping[str, Any]) -> None:
    """Refuse values of the right types that are empty or 0.

    Raises:
        InputError: A value is empty or 0.
    """
    saved = attributes.get("saved")
    if saved is not None and not all(saved.get(name) for name in RatioPair._fields):
        raise InputError("The attribute `saved` has no pairs for one of the ratios.")
    for name, values in (("dense", ("macs", "params")), ("latency", ("mhsa", "ffn"))):
        for value in values if name in attributes else ():
            if value in attributes[name] and not attributes[name][value]:
                raise InputError(f"`{value}` of the attribute `{name}` is empty or 0.")


def _check_old_plan(plan: Mapping[str, Any], *, is_budget: bool) -> None:
    """Refuse a plan of version 0.1.0 of which the answer cannot be made.

    Raises:
        InputError: An entry is missing or None.
    """
    entries = ["curve"] if is_budget else ["tolerance", "scale", "noise_is_known", "confidence"]
    entries += ["confirmations"] if "confirmations" in plan else []
    missing = [name for name in ("noise", *entries) if plan.get(name) is None]
    if missing:
        raise InputError(f"The attribute `plan` has no `{missing[0]}`.")
    if is_budget:
        BudgetSearch.from_json(plan)


def _check_plan(
    plan: Mapping[str, Any], limit: LimitRecord, *, confirmations: int | None = None
) -> None:
    """Refuse a plan of which the answer cannot be made.

    Args:
        plan: The attribute ``plan``.
        limit: The limit of the study.
        confirmations: The settings' number of confirmations; None where there are no settings.

    Raises:
        InputError: An entry is missing, or contradicts limit or settings.
    """
    if limit.other is not None and not {"curve", "tolerance"} & plan.keys():
        return  # a custom search
    is_frontier = limit.frontier is not None
    is_budget = limit.tolerance is None and not is_frontier
    if limit.other is not None:
        is_budget = "curve" in plan
    entries = ["noise", "noise_is_known"]
    wanted: dict[str, Any] = {"confirmations": confirmations}
    if is_budget:
        entries += ["curve", "baseline", "start", "confirmations", "dense"]
    elif is_frontier:
        entries += ["levels", "marks", "scale", "confirmations", "dense", "worst"]
    else:
        entries += ["tolerance", "scale", "confidence"]
        wanted = {"tolerance": limit.tolerance, "confidence": limit.confidence}
    missing = [name for name in entries if name not in plan]
    if missing:
        raise InputError(f"The attribute `plan` has no `{missing[0]}`.")
    for name, value in wanted.items():
        if plan[name] != value and value is not None:
            raise InputError(
                f"`{name}` of the attribute `plan` is {shorten_repr(plan[name])}, but that of the "
                f"settings {shorten_repr(value)}."
            )
    if is_budget:
        BudgetSearch.from_json(plan)
    elif plan["scale"] is None or not min(plan["scale"]) > 0:
        raise InputError(
            f"`scale` of the attribute `plan` must be two numbers above 0, but is "
            f"{shorten_repr(plan['scale'])}."
        )
    if is_frontier and (plan["dense"] is None or not (plan["worst"] or 0) > 0):
        raise InputError(
            "The attribute `plan` of a frontier needs `dense`, and `worst` above 0, but has "
            f"{shorten_repr((plan['dense'], plan['worst']))}."
        )
    Noise.from_json(plan)
    Forecast.of_plan(plan)
