"""Refuse studies in which the worst pair would be the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from optuna.study import Study, StudyDirection

from vit_ratio_opt.errors import InputError

__all__ = ["Direction", "check_directions", "sign_of"]

Direction = Literal["maximize", "minimize"]


def sign_of(study: Study) -> float:
    """Return 1.0 where the first objective of a study is maximised, -1.0 where minimised."""
    return 1.0 if study.directions[0] == StudyDirection.MAXIMIZE else -1.0


def check_directions(study: Study, wanted: Sequence[Direction]) -> None:
    """Refuse a study whose directions would make the worst pair the best.

    Args:
        study: The study.
        wanted: Direction of each objective of the search.

    Raises:
        InputError: The study has other directions.
    """
    directions = [direction.name.lower() for direction in study.directions]
    if directions == list(wanted):
        return
    found = f"Study {study.study_name!r} has direction {', '.join(directions)!r}, but "
    if len(wanted) > 1:
        raise InputError(
            f"{found}a search of the frontier has two objectives, the metric and the cost: create "
            f"it with `directions={list(wanted)!r}`, or with `Search.create_study`."
        )
    fix = f"create it with `direction={wanted[0]!r}`, or with `Search.create_study`"
    if wanted[0] == "maximize":
        fix += "; if a smaller value is better, give sampler or `suggest` a `Metric` that says so"
    is_larger = wanted[0] == "maximize"
    what = "a metric of which more is better" if is_larger else "a value to be small"
    raise InputError(f"{found}its value is {what}: {fix}.")
