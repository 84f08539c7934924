"""Finds how much of a Vision Transformer's attention and feed-forward modules can be pruned.

Names are loaded when they are used, so that what needs no torch does not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_ratio_opt.data.cifar10 import load_cifar10
    from vit_ratio_opt.data.csv_images import load_csv_images
    from vit_ratio_opt.data.datasets import load_datasets
    from vit_ratio_opt.data.digits import load_digits
    from vit_ratio_opt.data.image_folder import load_image_folder
    from vit_ratio_opt.data.load import load_images
    from vit_ratio_opt.data.options import LoadOptions
    from vit_ratio_opt.data.preprocessing import Preprocessing, preprocess_of
    from vit_ratio_opt.errors import InputError, UnsupportedModelError
    from vit_ratio_opt.model_files.export import export_model
    from vit_ratio_opt.model_files.load import load_dense, load_pruned
    from vit_ratio_opt.models.convert import to_timm
    from vit_ratio_opt.models.create import create_model
    from vit_ratio_opt.models.surgery import shape_of
    from vit_ratio_opt.pruning.calibration import Calibration, calibrate
    from vit_ratio_opt.pruning.importance import magnitude_importance, taylor_importance
    from vit_ratio_opt.pruning.prune import prune
    from vit_ratio_opt.pruning.reconstruct import repair
    from vit_ratio_opt.records.answer import answer_of
    from vit_ratio_opt.runs.creation import create_study
    from vit_ratio_opt.runs.objective import PruningObjective
    from vit_ratio_opt.runs.origin import load_objective
    from vit_ratio_opt.runs.study import run_study
    from vit_ratio_opt.search.binary_search import BinarySearchSampler
    from vit_ratio_opt.space.curve import budget_curve
    from vit_ratio_opt.space.pairs import RatioPair
    from vit_ratio_opt.training.evaluate import evaluate
    from vit_ratio_opt.training.finetune import finetune
    from vit_ratio_opt.training.recipe import Recipe

_HOMES = {
    "data.cifar10": ("load_cifar10",),
    "data.csv_images": ("load_csv_images",),
    "data.datasets": ("load_datasets",),
    "data.digits": ("load_digits",),
    "data.image_folder": ("load_image_folder",),
    "data.load": ("load_images",),
    "data.options": ("LoadOptions",),
    "data.preprocessing": ("Preprocessing", "preprocess_of"),
    "errors": ("InputError", "UnsupportedModelError"),
    "model_files.load": ("load_dense", "load_pruned"),
    "model_files.export": ("export_model",),
    "models.convert": ("to_timm",),
    "models.create": ("create_model",),
    "models.surgery": ("shape_of",),
    "pruning.calibration": ("Calibration", "calibrate"),
    "pruning.importance": ("magnitude_importance", "taylor_importance"),
    "pruning.prune": ("prune",),
    "pruning.reconstruct": ("repair",),
    "records.answer": ("answer_of",),
    "runs.creation": ("create_study",),
    "runs.objective": ("PruningObjective",),
    "runs.origin": ("load_objective",),
    "runs.study": ("run_study",),
    "search.binary_search": ("BinarySearchSampler",),
    "space.curve": ("budget_curve",),
    "space.pairs": ("RatioPair",),
    "training.evaluate": ("evaluate",),
    "training.finetune": ("finetune",),
    "training.recipe": ("Recipe",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BinarySearchSampler",
    "Calibration",
    "InputError",
    "LoadOptions",
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
    import_module(f"{__name__}.utils.versions").check_versions()
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
