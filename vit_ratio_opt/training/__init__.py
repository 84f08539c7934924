from vit_ratio_opt.device import best_device
from vit_ratio_opt.training.data import (
    ImageData,
    Split,
    load_cifar10,
    load_csv_images,
    load_datasets,
    load_digits,
    load_image_folder,
    load_images,
)
from vit_ratio_opt.training.distributed import Ranks
from vit_ratio_opt.training.evaluate import evaluate
from vit_ratio_opt.training.finetune import (
    Mix,
    Recipe,
    Stopwatch,
    TrainingDiverged,
    TrainingStopped,
    finetune,
)

__all__ = [
    "ImageData",
    "Mix",
    "Ranks",
    "Recipe",
    "Split",
    "Stopwatch",
    "TrainingDiverged",
    "TrainingStopped",
    "best_device",
    "evaluate",
    "finetune",
    "load_cifar10",
    "load_csv_images",
    "load_datasets",
    "load_digits",
    "load_image_folder",
    "load_images",
]
