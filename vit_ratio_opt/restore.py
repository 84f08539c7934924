"""Restore the search of a study on any machine, from the JSON values that the study stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from optuna.storages import BaseStorage

from vit_ratio_opt.composer import Search
from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.load import load_again as load_images_again
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_again as load_model_again
from vit_ratio_opt.models.architecture import architecture_of
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.copies import freeze_parts
from vit_ratio_opt.models.device import Precision
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.pruning.options import (
    CalibrationOptions,
    Pruning,
    Structural,
    Tokens,
    pruning_options,
)
from vit_ratio_opt.records.loading import load_studies
from vit_ratio_opt.records.settings import StudySettings
from vit_ratio_opt.records.study import StudyRecord
from vit_ratio_opt.runs.options import Places, RunOptions, SearchOptions
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.search.limits import Budget, Frontier, Tolerance
from vit_ratio_opt.space.costs import Cost, Engine, Latency, cost_named
from vit_ratio_opt.space.tokens import CP_VIT, CascadeRule
from vit_ratio_opt.training.recipe import CUSTOM, Recipe
from vit_ratio_opt.utils.text import shorten
from vit_ratio_opt.utils.untrusted import check_marked, is_marked

__all__ = ["load_search"]


def load_search(
    study_name: str,
    storage: str | BaseStorage,
    places: Places | None = None,
    run: RunOptions | None = None,
) -> Search:
    """Return the search of a study, with the options of its creator.

    The dense weights and the validation split must have the hashes that the study stores; their
    places may differ from machine to machine. An Optuna pruner is not part of the search.

    Every writer of the storage can change the study. So the folders that it names for models and
    artifacts are used only if this package has used them on this machine; give all other folders,
    and buckets, in ``places``.

    Args:
        study_name: Name of the study.
        storage: The storage, or its URL.
        places: Places of models and images on this machine; by default those in the study.
        run: Device, precision, progress and ranks of the search; its folders are not used, see
            ``places``.

    Raises:
        InputError: The storage has no such study, the study has custom images or a custom trainer,
            the model or the images are missing or differ from those of the study, or the study
            names a folder that was not used on this machine.
    """
    places, run = places or Places(), run or RunOptions()
    (study,) = load_studies(open_storage(storage, must_exist=True), [study_name])
    record = StudyRecord.read(study_name, study.user_attrs)
    settings = record.settings
    # Before any work.
    _check_no_custom_parts(record)
    checkpoints, artifacts = _folders(record, places)
    is_precision_given = run.precision is not None
    run = replace(
        run,
        checkpoints=checkpoints,
        artifacts=artifacts,
        precision=run.precision or cast(Precision, settings.precision),
    )
    search = _compose(record, places, run)
    if not is_precision_given:
        search.use_precisions(settings)
    return search


def _compose(record: StudyRecord, places: Places, run: RunOptions) -> Search:
    """Return the search that the settings of a study describe."""
    settings = record.settings
    dense = _dense_model(record, places)
    data = _images(record, places)
    try:
        return Search(
            dense,
            data,
            _limit(settings),
            cost=_cost(record),
            pruning=_pruning(settings),
            training=Recipe(**(settings.recipe or {})),
            options=_options(settings),
            run=run,
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"Study {record.name!r} was created by another version of vit_ratio_opt "
            f"({record.versions.get('vit_ratio_opt')}): {error} does not fit."
        ) from None


def _check_no_custom_parts(record: StudyRecord) -> None:
    """Refuse a study with parts that only the script that created it has.

    Raises:
        InputError: The study has a custom trainer, custom images, a custom metric or another
            teacher than its dense model.
    """
    if record.settings.trainer is not None:
        part = "a custom trainer"
    elif not record.origin.get("data"):
        part = "custom images"
    elif str((record.settings.recipe or {}).get("metric", "")).startswith(CUSTOM):
        part = "a custom metric"
    elif record.settings.teacher is not None:
        part = "a teacher other than its dense model"
    else:
        return
    raise InputError(f"Study {record.name!r} has {part}: run the script that created it.")


def _folders(record: StudyRecord, places: Places) -> tuple[Any, Any]:
    """Return the folders of models and artifacts that may be used here."""
    name, origin = record.name, record.origin
    checkpoints = places.checkpoints or check_marked(
        origin.get("checkpoints"), name, "--checkpoints"
    )
    if places.artifacts is not None:
        return checkpoints, places.artifacts
    artifacts = origin.get("artifacts")
    if not is_marked(str(artifacts)) and places.checkpoints is not None:
        moved = Path(places.checkpoints) / "artifacts"  # where they are by default
        if moved.is_dir():
            return checkpoints, moved
    return checkpoints, check_marked(artifacts, name, "--artifacts")


def _dense_model(record: StudyRecord, places: Places) -> ViT:
    """Load the dense model of a study.

    Raises:
        InputError: The model is not at the place in the study, or it is another model.
    """
    name, settings, source = record.name, record.settings, record.origin.get("model")
    if source is None and places.checkpoint is None:
        raise InputError(
            f"Study {name!r} does not store the place of its dense model: give --checkpoint."
        )
    model = load_model_again(
        source or {"arguments": {}}, checkpoint=places.checkpoint, start=places.start
    )
    given = places.checkpoint
    if weights_hash(model) != settings.weights:
        raise InputError(
            f"The dense model here has other weights ({weights_hash(model)}) than study "
            f"{name!r} was created with ({settings.weights}): {_give('--checkpoint', given)}."
        )
    found, recorded = architecture_of(model), settings.architecture or {}
    other = sorted(key for key in found.keys() & recorded.keys() if found[key] != recorded[key])
    if other:
        raise InputError(
            f"The dense model here has the weights of study {name!r}, but computes something "
            f"else ({', '.join(other)}): {_give('--checkpoint', given)}."
        )
    freeze_parts(model, settings.frozen or ())
    return model


def _give(option: str, given: str | Path | None) -> str:
    """Return how the right files of a study are named, which differ from those found."""
    if given is None:
        return f"give {option}"
    return f"{option} is {shorten(given, 200)}; give what the study was created with"


def _images(record: StudyRecord, places: Places) -> ImageData:
    """Load the images of a study.

    Raises:
        InputError: The images are not at the place in the study, or they are other images.
    """
    name, source = record.name, record.origin["data"]
    _check_root(source, name, places.data)
    images = load_images_again(source, root=places.data)
    validation = record.settings.validation
    if validation is None or not images.has_fingerprint(validation):
        raise InputError(
            f"The images here give another validation split ({images.fingerprint}) than study "
            f"{name!r} was created with ({validation}): {_give('--data', places.data)}."
        )
    return images


def _check_root(source: Mapping[str, Any], study_name: str, data: str | Path | None) -> None:
    """Refuse a folder of images that is not here: a loader might download into it."""
    root = source.get("root")
    if data is not None or "root" not in source:
        return
    if not isinstance(root, str) or not root or "\0" in root or not Path(root).is_dir():
        raise InputError(
            f"Study {shorten(study_name)!r} has its images in {shorten(root)!r}, which is no "
            "folder here: give --data."
        )


# Options of a search from its stored settings.


def _limit(settings: StudySettings) -> Budget | Tolerance | Frontier:
    if settings.budget is not None:
        return Budget(settings.budget)
    if isinstance(settings.frontier, int):
        return Frontier(settings.frontier)
    if settings.frontier is not None:
        return Frontier(budgets=settings.frontier)
    assert settings.tolerance is not None  # StudyRecord.read checks it
    if settings.confidence is None:  # version 0.1.0 did not store it
        return Tolerance(settings.tolerance)
    return Tolerance(settings.tolerance, settings.confidence)


def _cost(record: StudyRecord) -> Cost:
    settings = record.settings
    cost = cost_named(
        settings.cost,
        latency_batch=settings.latency_batch,
        latency_engine=cast(Engine, settings.latency_engine),
    )
    return replace(cost, curves=record.latency) if isinstance(cost, Latency) else cost


def _pruning(settings: StudySettings) -> Pruning:
    if settings.criterion is not None:
        raise InputError(
            f"The study has the custom criterion {settings.criterion!r}: run the script that "
            "created it."
        )
    rule = None if settings.rule is None else CascadeRule(**settings.rule)
    if settings.pruned == "cascade":  # the other options are not for it, whatever is stored
        return Tokens(rule=rule or CP_VIT, ranges=settings.ranges)
    pruning = pruning_options(
        settings.pruned,
        rule=rule,
        unit=cast(Any, settings.mhsa_unit),
        repair=settings.repair,
        allocation=cast(Any, settings.allocation),
        round_to=settings.round_to,
        by_cascade=settings.by_cascade,
        bounds=settings.bounds or {},
    )
    if settings.ranges is None or isinstance(pruning, Structural):
        return pruning
    return replace(pruning, ranges=settings.ranges)


def _options(settings: StudySettings) -> SearchOptions:
    is_default = settings.calibration_task == StudySettings.calibration_task
    options = SearchOptions(
        fixed_ratio=settings.strategy == "fixed",
        noise=settings.noise,
        iterative=settings.iterative,
        seed=settings.seed,
        calibration=CalibrationOptions(
            images=settings.calibration_images,
            task=None if is_default else cast(Any, settings.calibration_task),
            precision=cast(Any, settings.calibration_precision or "float32"),
        ),
    )
    if settings.confirmations is None:  # version 0.1.0 did not store it
        return options
    return replace(options, confirmations=settings.confirmations)
