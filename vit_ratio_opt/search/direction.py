"""Refuse studies in which the worst pair would be the best."""

from __future__ import annotations

from typing import Literal

from optuna.study import Study

from vit_ratio_opt.errors import InputError

__all__ = ["Direction", "check_direction"]

Direction = Literal["maximize", "minimize"]


def check_direction(study: Study, wanted: Direction) -> None:
    """Refuse a study whose direction would make the worst pair the best.

    Args:
        study: The study.
        wanted: Direction of the search.

    Raises:
        InputError: The study has another direction, or several.
    """
    directions = [direction.name.lower() for direction in study.directions]
    if directions == [wanted]:
        return
    fix = f"create it with `direction={wanted!r}`, or with `Search.create_study`"
    if wanted == "maximize":
        fix += "; if a smaller value is better, give sampler or `suggest` a `Metric` that says so"
    what = "a metric of which more is better" if wanted == "maximize" else "a value to be small"
    raise InputError(
        f"Study {study.study_name!r} has direction {', '.join(directions)!r}, but its value is "
        f"{what}: {fix}."
    )
