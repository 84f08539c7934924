"""Check that a dense model and a data set fit together, before any computation."""

from __future__ import annotations

import torch

from vit_ratio_opt.data.image_data import ImageData
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.classifier import classes_of, gives_classes
from vit_ratio_opt.models.device import evaluating, is_out_of_memory, model_device
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.training.evaluate import check_shape
from vit_ratio_opt.utils.failures import reason

__all__ = ["check_fit", "check_outputs"]


def check_fit(model: ViT, data: ImageData) -> None:
    """Refuse images or classes that the model does not take.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: Channels, size or number of classes differ.
    """
    model = check_supported(model)
    channels, *size = data.image_shape
    wanted = model.patch_embed.proj.in_channels
    if channels != wanted:
        raise InputError(
            f"The model takes {wanted} channels, but {data.name} has images of {channels}."
        )
    if tuple(model.patch_embed.img_size) != tuple(size):  # FLOPs are those of this size
        hint = (
            " Call `model.set_input_size` first."
            if getattr(model, "dynamic_img_size", False)
            else " Load them with `preprocess=preprocess_of(model)`, or with the model's "
            "`image_size`."
        )
        raise InputError(
            f"The model takes images of {tuple(model.patch_embed.img_size)} pixels, but "
            f"{data.name} has {tuple(size)}.{hint}"
        )
    if data.task == "features":
        gives_classes(model)  # refuses a classifier that does not fit
        return
    try:
        classes = classes_of(model)
    except InputError as error:
        raise InputError(
            f"{error} To prune by its features, load the images with `task='features'`."
        ) from None
    if classes != len(data.classes):
        raise InputError(
            f"The model has {classes} classes, but {data.name} has {len(data.classes)}."
        )


def check_outputs(model: ViT, data: ImageData) -> None:
    """Refuse a model that gives no finite outputs for two images of the training split.

    Raises:
        InputError: The model raises an error, or a logit or feature is NaN or infinite.
    """
    two = data.train.subset(torch.arange(min(2, len(data.train))))
    images, _ = next(data.batches(two, 2, model_device(model)))
    try:
        with torch.inference_mode(), evaluating(model):
            outputs = model(images)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"The model cannot process images of {data.name}: {reason(error)}"
        ) from None
    if data.task != "features":
        check_shape(outputs, len(images), data)
    if not bool(outputs.isfinite().all()):
        raise InputError(
            f"The model gives NaN or infinite outputs for images of {data.name}: look at its "
            "weights and at the normalisation of the images."
        )
