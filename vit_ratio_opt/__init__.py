"""Finds how much of a Vision Transformer's attention and feed-forward modules can be pruned.

Names are loaded when they are used, so that what needs no torch does not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_ratio_opt.composer import Search
    from vit_ratio_opt.data.cifar10 import load_cifar10
    from vit_ratio_opt.data.csv_images import load_csv_images
    from vit_ratio_opt.data.datasets import load_datasets
    from vit_ratio_opt.data.digits import load_digits
    from vit_ratio_opt.data.image_data import ImageData
    from vit_ratio_opt.data.image_folder import load_image_folder
    from vit_ratio_opt.data.image_folder import load_image_folder as image_folder
    from vit_ratio_opt.data.load import load_images
    from vit_ratio_opt.data.options import LoadOptions
    from vit_ratio_opt.data.preprocessing import Preprocessing, preprocess_of
    from vit_ratio_opt.errors import InputError, UnsupportedModelError
    from vit_ratio_opt.model_files.elastic import load_elastic, save_elastic
    from vit_ratio_opt.model_files.export import export_model
    from vit_ratio_opt.model_files.load import load_demo_model, load_dense, load_pruned
    from vit_ratio_opt.model_files.save import save_dense, save_pruned
    from vit_ratio_opt.models.adapters import merge_adapters
    from vit_ratio_opt.models.convert import to_timm
    from vit_ratio_opt.models.create import create_model
    from vit_ratio_opt.models.elastic import ElasticLevel, ElasticViT
    from vit_ratio_opt.models.families import FAMILIES
    from vit_ratio_opt.models.family import AttentionKind, Branch, Family
    from vit_ratio_opt.models.larger import replace_encoder
    from vit_ratio_opt.models.precision import faster_precision
    from vit_ratio_opt.models.shape import shape_of
    from vit_ratio_opt.models.to_hugging_face import to_huggingface
    from vit_ratio_opt.pruning.calibration import Calibration, calibrate
    from vit_ratio_opt.pruning.elastic import build_elastic
    from vit_ratio_opt.pruning.importance import (
        Importance,
        magnitude_importance,
        taylor_importance,
    )
    from vit_ratio_opt.pruning.options import Both, CalibrationOptions, Structural, Tokens
    from vit_ratio_opt.pruning.prune import prune
    from vit_ratio_opt.pruning.reconstruct import repair
    from vit_ratio_opt.records.answer import Answer, answer_of
    from vit_ratio_opt.restore import load_search
    from vit_ratio_opt.runs.journal import Journal
    from vit_ratio_opt.runs.objective import PruningObjective
    from vit_ratio_opt.runs.options import Places, RunOptions, SearchOptions
    from vit_ratio_opt.runs.pruner import Pruner
    from vit_ratio_opt.search.binary_search import BinarySearchSampler
    from vit_ratio_opt.search.limits import Budget, Frontier, Tolerance
    from vit_ratio_opt.space.cost_table import CostTable
    from vit_ratio_opt.space.costs import MACS, PARAMS, Cost, Latency
    from vit_ratio_opt.space.curve import budget_curve
    from vit_ratio_opt.space.metric import ACCURACY, Metric
    from vit_ratio_opt.space.pairs import RatioPair
    from vit_ratio_opt.space.structural import StructuralSpace
    from vit_ratio_opt.space.tokens import CP_VIT, LATE, CascadeRule
    from vit_ratio_opt.training.callbacks import hf_callback, lightning_callback
    from vit_ratio_opt.training.context import (
        Trainer,
        TrainingDiverged,
        TrainingStopped,
        TrialContext,
    )
    from vit_ratio_opt.training.distill import distill
    from vit_ratio_opt.training.evaluate import evaluate
    from vit_ratio_opt.training.features import FeatureTrainer
    from vit_ratio_opt.training.finetune import finetune
    from vit_ratio_opt.training.metrics import MEASURES, Measure
    from vit_ratio_opt.training.probes import Probe, probe
    from vit_ratio_opt.training.recipe import Recipe
    from vit_ratio_opt.training.trainer import ImageTrainer
    from vit_ratio_opt.worker import WorkerOptions, run_worker

_HOMES = {
    "space.structural": ("StructuralSpace",),
    "models.families": ("FAMILIES",),
    "models.family": (
        "Family",
        "AttentionKind",
        "Branch",
    ),
    "composer": ("Search",),
    "data.cifar10": ("load_cifar10",),
    "data.csv_images": ("load_csv_images",),
    "data.datasets": ("load_datasets",),
    "data.digits": ("load_digits",),
    "data.image_data": ("ImageData",),
    "data.image_folder": ("load_image_folder",),
    "data.load": ("load_images",),
    "data.options": ("LoadOptions",),
    "data.preprocessing": (
        "Preprocessing",
        "preprocess_of",
    ),
    "errors": (
        "InputError",
        "UnsupportedModelError",
    ),
    "restore": ("load_search",),
    "model_files.elastic": (
        "load_elastic",
        "save_elastic",
    ),
    "model_files.export": ("export_model",),
    "model_files.load": (
        "load_demo_model",
        "load_demo_model",
        "load_dense",
        "load_pruned",
    ),
    "model_files.save": (
        "save_dense",
        "save_pruned",
    ),
    "models.adapters": ("merge_adapters",),
    "models.convert": ("to_timm",),
    "models.create": ("create_model",),
    "models.elastic": (
        "ElasticLevel",
        "ElasticViT",
    ),
    "models.larger": ("replace_encoder",),
    "models.precision": ("faster_precision",),
    "models.shape": ("shape_of",),
    "models.to_hugging_face": ("to_huggingface",),
    "pruning.calibration": (
        "Calibration",
        "calibrate",
    ),
    "pruning.importance": (
        "Importance",
        "magnitude_importance",
        "taylor_importance",
    ),
    "pruning.elastic": ("build_elastic",),
    "pruning.options": (
        "Both",
        "CalibrationOptions",
        "Structural",
        "Tokens",
    ),
    "pruning.prune": ("prune",),
    "pruning.reconstruct": ("repair",),
    "records.answer": (
        "Answer",
        "answer_of",
    ),
    "runs.journal": ("Journal",),
    "runs.objective": ("PruningObjective",),
    "runs.options": (
        "Places",
        "RunOptions",
        "SearchOptions",
    ),
    "runs.pruner": ("Pruner",),
    "search.binary_search": ("BinarySearchSampler",),
    "search.limits": (
        "Budget",
        "Frontier",
        "Tolerance",
    ),
    "space.cost_table": ("CostTable",),
    "space.costs": (
        "Cost",
        "Latency",
        "MACS",
        "PARAMS",
    ),
    "space.curve": ("budget_curve",),
    "space.pairs": ("RatioPair",),
    "space.tokens": (
        "CP_VIT",
        "CascadeRule",
        "LATE",
    ),
    "training.callbacks": (
        "hf_callback",
        "lightning_callback",
    ),
    "space.metric": (
        "ACCURACY",
        "Metric",
    ),
    "training.context": (
        "Trainer",
        "TrainingDiverged",
        "TrainingStopped",
        "TrialContext",
    ),
    "training.distill": ("distill",),
    "training.evaluate": ("evaluate",),
    "training.features": ("FeatureTrainer",),
    "training.finetune": ("finetune",),
    "training.metrics": (
        "MEASURES",
        "Measure",
    ),
    "training.probes": (
        "Probe",
        "probe",
    ),
    "training.recipe": ("Recipe",),
    "training.trainer": ("ImageTrainer",),
    "worker": (
        "WorkerOptions",
        "run_worker",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
# A name for the most usual source, as in ``vro.image_folder("cifar10")``.
_OTHER_NAMES = {"image_folder": "load_image_folder"}

__all__ = [
    "ACCURACY",
    "Answer",
    "AttentionKind",
    "BinarySearchSampler",
    "Both",
    "Branch",
    "Budget",
    "CP_VIT",
    "Calibration",
    "CalibrationOptions",
    "CascadeRule",
    "Cost",
    "CostTable",
    "ElasticLevel",
    "ElasticViT",
    "FAMILIES",
    "Family",
    "FeatureTrainer",
    "Frontier",
    "ImageData",
    "ImageTrainer",
    "Importance",
    "InputError",
    "Journal",
    "LATE",
    "Latency",
    "LoadOptions",
    "MACS",
    "MEASURES",
    "Measure",
    "Metric",
    "PARAMS",
    "Places",
    "Preprocessing",
    "Probe",
    "Pruner",
    "PruningObjective",
    "RatioPair",
    "Recipe",
    "RunOptions",
    "Search",
    "SearchOptions",
    "Structural",
    "StructuralSpace",
    "Tokens",
    "Tolerance",
    "Trainer",
    "TrainingDiverged",
    "TrainingStopped",
    "TrialContext",
    "UnsupportedModelError",
    "WorkerOptions",
    "answer_of",
    "budget_curve",
    "build_elastic",
    "calibrate",
    "create_model",
    "distill",
    "evaluate",
    "export_model",
    "faster_precision",
    "finetune",
    "hf_callback",
    "image_folder",
    "lightning_callback",
    "load_cifar10",
    "load_csv_images",
    "load_datasets",
    "load_demo_model",
    "load_dense",
    "load_digits",
    "load_elastic",
    "load_image_folder",
    "load_images",
    "load_pruned",
    "load_search",
    "magnitude_importance",
    "merge_adapters",
    "preprocess_of",
    "probe",
    "prune",
    "repair",
    "replace_encoder",
    "run_worker",
    "save_dense",
    "save_elastic",
    "save_pruned",
    "shape_of",
    "taylor_importance",
    "to_huggingface",
    "to_timm",
]


def __getattr__(name: str) -> Any:
    defined = _OTHER_NAMES.get(name, name)
    if defined not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module(f"{__name__}.utils.versions").check_versions()
    return getattr(import_module(f"{__name__}.{_HOME_OF[defined]}"), defined)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
