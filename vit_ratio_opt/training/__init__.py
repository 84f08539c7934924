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
from vit_ratio_opt.training.evaluate import best_device, evaluate
from vit_ratio_opt.training.finetune import Mix, Recipe, Stopwatch, finetune

__all__ = [
    "ImageData",
    "Mix",
    "Recipe",
    "Split",
    "Stopwatch",
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
