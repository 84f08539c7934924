"""Check that a study fits an objective, before the work of each trial."""

from __future__ import annotations

from optuna.study import Study

from vit_ratio_opt.errors import InputError

__all__ = ["check_direction"]


def check_direction(study: Study, wanted: str) -> None:
    """Refuse a study whose direction would make the worst pair the best.

    Args:
        study: The study.
        wanted: ``"maximize"`` or ``"minimize"``.

    Raises:
        InputError: The study has another direction, or several.
    """
    directions = [direction.name.lower() for direction in study.directions]
    if directions != [wanted]:
        what = "the accuracy within a budget" if wanted == "maximize" else "the cost that is left"
        raise InputError(
            f"Study {study.study_name!r} has direction {', '.join(directions)!r}, but {what} is "
            f"to be {wanted}d: create it with `direction={wanted!r}`, or with "
            "`Search.create_study`."
        )
