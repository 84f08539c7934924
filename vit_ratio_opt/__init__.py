"""Finds how much of a Vision Transformer's attention and feed-forward modules can be pruned.

Names are loaded when they are used, so that what needs no torch does not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_ratio_opt.checkpoint import create_model, load_dense, load_pruned
    from vit_ratio_opt.convert import to_timm
    from vit_ratio_opt.errors import InputError
    from vit_ratio_opt.export import export_model
    from vit_ratio_opt.geometry import RatioPair, budget_curve
    from vit_ratio_opt.objective import PruningObjective
    from vit_ratio_opt.origin import load_objective
    from vit_ratio_opt.preprocessing import Preprocessing, preprocess_of
    from vit_ratio_opt.pruning import (
        Calibration,
        UnsupportedModelError,
        calibrate,
        magnitude_importance,
        prune,
        repair,
        shape_of,
        taylor_importance,
    )
    from vit_ratio_opt.records.answer import answer_of
    from vit_ratio_opt.search import BinarySearchSampler
    from vit_ratio_opt.study import create_study, run_study
    from vit_ratio_opt.training import (
        Recipe,
        evaluate,
        finetune,
        load_cifar10,
        load_csv_images,
        load_datasets,
        load_digits,
        load_image_folder,
        load_images,
    )

_HOMES = {
    "checkpoint": ("create_model", "load_dense", "load_pruned"),
    "convert": ("to_timm",),
    "errors": ("InputError",),
    "export": ("export_model",),
    "geometry": ("RatioPair", "budget_curve"),
    "objective": ("PruningObjective",),
    "origin": ("load_objective",),
    "preprocessing": ("Preprocessing", "preprocess_of"),
    "pruning": (
        "Calibration",
        "UnsupportedModelError",
        "calibrate",
        "magnitude_importance",
        "prune",
        "repair",
        "shape_of",
        "taylor_importance",
    ),
    "records.answer": ("answer_of",),
    "search": ("BinarySearchSampler",),
    "study": ("create_study", "run_study"),
    "training": (
        "Recipe",
        "evaluate",
        "finetune",
        "load_cifar10",
        "load_csv_images",
        "load_datasets",
        "load_digits",
        "load_image_folder",
        "load_images",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BinarySearchSampler",
    "Calibration",
    "InputError",
    "Preprocessing",
    "PruningObjective",
    "RatioPair",
    "Recipe",
    "UnsupportedModelError",
    "answer_of",
    "budget_curve",
    "calibrate",
    "create_model",
    "create_study",
    "evaluate",
    "export_model",
    "finetune",
    "load_cifar10",
    "load_csv_images",
    "load_datasets",
    "load_dense",
    "load_digits",
    "load_image_folder",
    "load_images",
    "load_objective",
    "load_pruned",
    "magnitude_importance",
    "preprocess_of",
    "prune",
    "repair",
    "run_study",
    "shape_of",
    "taylor_importance",
    "to_timm",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module(f"{__name__}.versions").check_versions()
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
