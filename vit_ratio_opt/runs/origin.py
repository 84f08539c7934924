"""What a study and its models store so that any machine can have objective and images again.

JSON, no pickles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from optuna.storages import BaseStorage

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.data.load import load_again as load_images_again
from vit_ratio_opt.data.load import load_images
from vit_ratio_opt.data.options import LoadOptions
from vit_ratio_opt.data.preprocessing import Preprocessing
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.load import load_again as load_model_again
from vit_ratio_opt.models.architecture import architecture_of
from vit_ratio_opt.models.device import Precision
from vit_ratio_opt.models.state_dicts import weights_hash
from vit_ratio_opt.pruning.options import Allocation
from vit_ratio_opt.records.loading import load_studies
from vit_ratio_opt.records.study import StudyRecord
from vit_ratio_opt.runs.objective import PruningObjective
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.space.tokens import CascadeRule, Strategy
from vit_ratio_opt.space.units import MhsaUnit
from vit_ratio_opt.training.distributed import Ranks
from vit_ratio_opt.training.recipe import Recipe
from vit_ratio_opt.utils.failures import reason
from vit_ratio_opt.utils.text import short
from vit_ratio_opt.utils.untrusted import check_marked, is_marked

__all__ = ["load_objective", "study_images"]


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
    """The objective of a study, as its creator had it.

    The dense weights and the validation split must be the same, which hashes tell; where they are
    may differ from machine to machine. An Optuna pruner is not part of it.

    A writer of the storage chooses what the study says. So the folders that it names for
    models and artifacts are used only where this package has used them on this machine; others,
    and buckets, have to be given.

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
            or these are others; or it names a folder that was not used on this machine.
    """
    (study,) = load_studies(open_storage(storage, must_exist=True), [study_name])
    record = StudyRecord.read(study_name, study.user_attrs)
    settings, origin = record.settings, record.origin
    # Before any work.
    models = checkpoints or check_marked(origin.get("checkpoints"), study_name, "--checkpoints")
    store = artifacts or origin.get("artifacts")
    if artifacts is None and not is_marked(str(store)) and checkpoints is not None:
        moved = Path(checkpoints) / "artifacts"  # where they are by default
        store = moved if moved.is_dir() else store
    if artifacts is None and isinstance(store, str):
        store = check_marked(store, study_name, "--artifacts")
    if origin.get("model") is None and checkpoint is None:
        raise InputError(
            f"Study {study_name!r} does not say where its dense model is: give --checkpoint."
        )
    model = load_model_again(
        origin.get("model") or {"arguments": {}}, checkpoint=checkpoint, start=start
    )
    if weights_hash(model) != settings.weights:
        raise InputError(
            f"The dense model here has other weights ({weights_hash(model)}) than study "
            f"{study_name!r} was made with ({settings.weights}): give --checkpoint."
        )
    found, recorded = architecture_of(model), settings.architecture or {}
    other = sorted(key for key in found.keys() & recorded.keys() if found[key] != recorded[key])
    if other:
        raise InputError(
            f"The dense model here has the weights of study {study_name!r}, but computes "
            f"something else ({', '.join(other)}): give --checkpoint."
        )
    if not origin.get("data"):
        raise InputError(
            f"Study {study_name!r} has images of the user's own: run the script that made it."
        )
    _check_root(origin["data"], study_name, data)
    images = load_images_again(origin["data"], root=data)
    if not images.has_fingerprint(settings.validation or ""):
        raise InputError(
            f"The images here give another validation split ({images.fingerprint}) than study "
            f"{study_name!r} was made with ({settings.validation}): give --data."
        )
    known = {name: getattr(settings, name) for name in ("confirmations", "confidence")}
    recorded = {name: value for name, value in known.items() if value is not None}
    try:
        objective = PruningObjective(
            model,
            images,
            budget=settings.budget,
            tolerance=settings.tolerance,
            recipe=Recipe(**(settings.recipe or {})),
            fixed_ratio=settings.strategy == "fixed",
            strategy=cast(Strategy, settings.pruned),
            rule=None if settings.rule is None else CascadeRule(**settings.rule),
            noise=settings.noise,
            mhsa_unit=cast(MhsaUnit, settings.mhsa_unit),
            repair=settings.repair,
            allocation=cast(Allocation, settings.allocation),
            round_to=settings.round_to,
            ranges=settings.ranges,
            cost=settings.cost,
            latency_batch=settings.latency_batch,
            latency=record.latency,
            checkpoints=models,
            iterative=settings.iterative,
            artifact_store=store,
            calibration_images=settings.calibration_images,
            seed=settings.seed,
            precision=cast(Precision, settings.precision),
            **recorded,
            device=device,
            progress=progress,
            ranks=ranks,
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"Study {study_name!r} was made by another version of vit_ratio_opt "
            f"({record.versions.get('vit_ratio_opt')}): {error} does not fit."
        ) from None
    return objective


def _check_root(source: Mapping[str, Any], study_name: str, data: str | Path | None) -> None:
    """Refuse a folder of images that is not here: a loader might fetch into it."""
    root = source.get("root")
    if data is not None or "root" not in source:
        return
    if not isinstance(root, str) or not root or "\0" in root or not Path(root).is_dir():
        raise InputError(
            f"Study {short(study_name)!r} has its images in {short(root)!r}, which is no folder "
            "here: give --data."
        )


def study_images(
    manifest: Mapping[str, Any],
    root: str | Path | None = None,
    *,
    image_size: int | None = None,
    preprocess: Preprocessing | None = None,
) -> ImageData:
    """The images that a pruned model's study was about, in its splits.

    The test split is thus what the study reported on. Where the manifest is of no study, all test
    images are.

    Args:
        manifest: Of ``load_pruned``; empty for a dense model.
        root: The folder of the images, see :func:`vit_ratio_opt.load_images`; none for the digits.
        image_size: Pixels of a side, where the manifest does not say how the images were loaded.
        preprocess: The model's preprocessing, likewise.

    Raises:
        InputError: There is no ``root`` but the study was not about the digits, the folder cannot
            be read, or it gives another validation split or other classes than the study had.
    """
    source, fingerprint = manifest.get("images"), manifest.get("validation")
    try:
        is_digits = (source["loader"] if source else manifest.get("dataset")) == "digits"
        if root is None and not is_digits:
            raise InputError("Accuracy is measured, not assumed: give --data, the images' folder.")
        for load in _loads(manifest, root, image_size, preprocess):
            data = load()
            if fingerprint is None or data.has_fingerprint(fingerprint):
                break
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"The model has a damaged manifest: {reason(error)}.") from None
    if fingerprint is not None and not data.has_fingerprint(fingerprint):
        raise InputError(
            f"The images here give another validation split ({data.fingerprint}) than the model's "
            f"study had ({fingerprint}), so its test images are not known: give its own images."
        )
    if manifest.get("classes") not in (None, list(data.classes)):
        raise InputError(f"The classes of {data.name} are not those that the model was made for.")
    return data


def _loads(
    manifest: Mapping[str, Any],
    root: str | Path | None,
    image_size: int | None,
    preprocess: Preprocessing | None,
) -> list[Callable[[], ImageData]]:
    """Ways to load the images of a manifest, one of which is right."""
    source, seed = manifest.get("images"), manifest.get("seed", 0)
    if source:
        return [lambda: load_images_again(source, root=root)]
    if root is None:
        return [lambda: load_images_again({"loader": "digits", "seed": seed})]
    options: dict[str, Any] = {"seed": seed, "preprocess": preprocess}
    if not (Path(root) / "cifar-10-batches-py").is_dir():  # which has its own
        options["image_size"] = image_size
        options["options"] = LoadOptions(mean=manifest.get("mean"), std=manifest.get("std"))
    loads = [lambda: load_images(root, validation="train", **options)]
    if "validation" in manifest:  # the hash of a split, by an earlier version
        loads.append(lambda: load_images(root, validation="test", **options))
    return loads
