"""Unwrap models and copy them."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from timm.utils.model_ema import ModelEma, ModelEmaV2, ModelEmaV3
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.weights import check_full_precision, check_weights
from vit_ratio_opt.utils.failures import reason

__all__ = [
    "copy_for_training",
    "copy_model",
    "unwrap_model",
]

_logger = logging.getLogger(f"optuna.{__name__}")


def unwrap_model(model: Any) -> Any:
    """Return the model inside of ``torch.compile``, parallel wrappers and moving averages."""
    while True:
        inner = getattr(model, "_orig_mod", None)  # torch.compile's; its class is slow to import
        averaged = (ModelEmaV2, ModelEmaV3, AveragedModel)
        if isinstance(model, (DataParallel, DistributedDataParallel, *averaged)):
            inner = model.module
        elif isinstance(model, ModelEma):
            inner = model.ema
        if inner is None:
            return model
        model = inner


def copy_model(model: ViT) -> ViT:
    """Return a deep copy.

    Raises:
        InputError: The model has an attribute that cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise InputError(
            f"The model has an attribute that cannot be copied, remove it: {reason(error):.200}"
        ) from None


def copy_for_training(model: ViT) -> ViT:
    """Return a copy to measure and to train: in float32 and evaluation mode, nothing frozen.

    Which weights are frozen is no part of a study, and all that is left after pruning has to be
    trained. A warning is logged where frozen weights or the precision of ``model`` differ.

    Args:
        model: A supported model.

    Raises:
        UnsupportedModelError: The model gives two outputs, in distilled training.
        InputError: The model cannot be copied, or a weight is refused by
            :func:`~vit_ratio_opt.models.weights.check_weights`.
    """
    if torch.is_inference_mode_enabled():
        check_full_precision(model)
    check_weights(model)
    if getattr(model, "distilled_training", False):
        raise UnsupportedModelError(
            "In distilled training the model gives two outputs, one of each classifier: call "
            "`model.set_distilled_training(False)`."
        )
    copied = copy_model(model)
    parameters = list(model.parameters())
    types = {str(p.dtype).removeprefix("torch.") for p in parameters} - {"float32"}
    if types:
        _logger.warning(
            f"The model is in {' and '.join(sorted(types))}: its copy is converted to float32. "
            "What it computes in is chosen with `precision`."
        )
    frozen = sum(not parameter.requires_grad for parameter in parameters)
    if frozen:
        _logger.warning(
            f"{frozen} of {len(parameters)} parameters of the model are frozen (requires_grad is "
            "False): after pruning all of them are trained."
        )
    return copied.float().eval().requires_grad_(True)
