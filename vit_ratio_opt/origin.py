"""What a study stores so that a worker on any machine can make its objective. JSON, no pickles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from optuna.storages import BaseStorage

from vit_ratio_opt.checkpoint import load_again as load_model_again
from vit_ratio_opt.checkpoint import weights_hash
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.objective import PruningObjective
from vit_ratio_opt.report import load_studies
from vit_ratio_opt.storage import open_storage
from vit_ratio_opt.strategies import CascadeRule
from vit_ratio_opt.training import Ranks, Recipe
from vit_ratio_opt.training.data import load_again as load_images_again

__all__ = ["load_objective"]


def load_objective(
    study_name: str,
    storage: str | BaseStorage,
    *,
    checkpoint: str | Path | None = None,
    start: str | Path | None = None,
    data: str | Path | None = None,
    artifacts: str | Path | None = None,
    checkpoints: str | Path | None = None,
    device: torch.device | str | None = None,
    ranks: Ranks | None = None,
    progress: bool | None = None,
) -> PruningObjective:
    """The objective of a study, as whoever created it had it.

    The dense weights and the validation split must be the same, which hashes tell; where they are
    may differ from machine to machine. An Optuna pruner is not part of it.

    Args:
        study_name: The study.
        storage: Where it is, or its URL.
        checkpoint: The dense model here; where the study says by default.
        start: The pruned model that the study begins with, if it does; likewise.
        data: The folder of the images; likewise.
        artifacts: Where checkpoints and states of trainings are shared; likewise.
        checkpoints: Folder for the models of this worker; likewise.
        device: See :class:`~vit_ratio_opt.PruningObjective`.
        ranks: See there.
        progress: See there.

    Raises:
        InputError: The study is not there, does not say where its model or its images come from,
            or these are others.
    """
    (study,) = load_studies(open_storage(storage, must_exist=True), [study_name])
    settings: dict[str, Any] = study.user_attrs["settings"]
    origin: dict[str, Any] = study.user_attrs.get("origin", {})
    if origin.get("model") is None and checkpoint is None:
        raise InputError(
            f"Study {study_name!r} does not say where its dense model is: give --checkpoint."
        )
    model = load_model_again(
        origin.get("model") or {"arguments": {}}, checkpoint=checkpoint, start=start
    )
    if weights_hash(model) != settings["weights"]:
        raise InputError(
            f"The dense model here has other weights ({weights_hash(model)}) than study "
            f"{study_name!r} was made with ({settings['weights']}): give --checkpoint."
        )
    if not origin.get("data"):
        raise InputError(
            f"Study {study_name!r} has images of the user's own: run the script that made it."
        )
    images = load_images_again(origin["data"], root=data)
    if images.fingerprint != settings["validation"]:
        raise InputError(
            f"The images here give another validation split ({images.fingerprint}) than study "
            f"{study_name!r} was made with ({settings['validation']}): give --data."
        )
    try:
        objective = PruningObjective(
            model,
            images,
            budget=settings["budget"],
            tolerance=settings["tolerance"],
            recipe=Recipe(**settings["recipe"]),
            fixed_ratio=settings["strategy"] == "fixed",
            strategy=settings.get("pruned", "structural"),
            rule=CascadeRule(**settings["rule"]) if "rule" in settings else None,
            noise=origin["noise"],
            confirmations=origin["confirmations"],
            mhsa_unit=settings["mhsa_unit"],
            repair=settings["repair"],
            allocation=settings["allocation"],
            round_to=settings["round_to"],
            ranges=settings.get("ranges"),
            checkpoints=checkpoints or origin["checkpoints"],
            iterative=settings["iterative"],
            artifact_store=artifacts or origin["artifacts"],
            calibration_images=settings["calibration_images"],
            seed=settings["seed"],
            device=device,
            progress=progress,
            ranks=ranks,
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"Study {study_name!r} was made by another version of vit_ratio_opt "
            f"({study.user_attrs.get('versions', {}).get('vit_ratio_opt')}): {error} does not fit."
        ) from None
    return objective
