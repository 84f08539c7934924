"""What the studies of image folders share: the search itself, once the images have been named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from vit_ratio_opt.checkpoint import create_model, load_dense, load_pruned
from vit_ratio_opt.cli import check_output, checkpoint_folder, make_folder, print_report
from vit_ratio_opt.geometry import check_budget, fixed_ratio_pair
from vit_ratio_opt.objective import PruningObjective
from vit_ratio_opt.pruning import shape_of
from vit_ratio_opt.study import check_storage_url, create_study, open_storage, run_study
from vit_ratio_opt.training import ImageData


def search(
    prefix: str,
    images: Callable[..., ImageData],
    *,
    checkpoint: Path | None,
    model: str | None,
    start: Path | None,
    budget: float,
    tolerance: float | None,
    n_trials: int,
    folder: Path,
    storage: str | None,
    study_name: str | None,
    output: Path | None,
    **settings: Any,
) -> None:
    """Run one study from the dense model to the printed table.

    Args:
        prefix: Of the study's name.
        images: Gives the images, once all arguments have been checked; called with ``mean`` and
            ``std`` where the model's weights say how images are normalised.
        checkpoint: The dense model; timm's own weights of ``model`` without it.
        model: A timm name; the checkpoint's by default.
        start: A pruned model of an earlier study of this dense model, to be pruned further: it is
            then what limits refer to and what is distilled from.
        budget: Used without a tolerance.
        tolerance: In its place.
        n_trials: Trained trials in all.
        folder: Of models and the study.
        storage: A database URL; a SQLite file in ``folder`` by default.
        study_name: From limit and strategy by default.
        output: Where the rows go as JSON.
        **settings: Of the objective.
    """
    normalisation: dict[str, Any] = {}
    if checkpoint is not None:
        dense = load_dense(checkpoint, name=model)
    elif model is not None:
        dense = create_model(model, pretrained=True)
        normalisation = {key: dense.pretrained_cfg[key] for key in ("mean", "std")}
    else:
        raise typer.BadParameter("give --checkpoint, --model or both")
    if start is not None:
        dense, _ = load_pruned(start, dense)
    fixed_ratio, strategy = settings["fixed_ratio"], settings["strategy"]
    if tolerance is None and strategy == "structural":  # the others see the images first
        shape = replace(
            shape_of(dense), mhsa_unit=settings["mhsa_unit"], round_to=settings["round_to"]
        )
        check_budget(shape, budget)
        if fixed_ratio:
            fixed_ratio_pair(shape, budget)
    check_output(output)
    if storage is not None:
        check_storage_url(storage)
    data = images(**normalisation)

    limit = f"{budget}" if tolerance is None else f"drop{tolerance}"
    kind = "" if strategy == "structural" else f"-{strategy}"
    name = study_name or f"{prefix}-{limit}{kind}{'-fixed' if fixed_ratio else ''}"
    objective = PruningObjective(
        dense,
        data,
        budget=budget if tolerance is None else None,
        tolerance=tolerance,
        checkpoints=checkpoint_folder(folder, name),
        **settings,
    )
    if storage is None:
        make_folder(folder)
    backend = open_storage(storage or f"sqlite:///{folder / 'study.db'}")
    study = create_study(objective, study_name=name, storage=backend)
    if tolerance is None:
        print(f"study {name!r}: {len(objective.curve)} pair(s) meet the budget {budget}")
    else:
        print(f"study {name!r}: the fewest FLOPs that lose at most {tolerance} points")
    run_study(study, objective, n_trials=n_trials)
    objective.test(study)
    print_report([study], output)
