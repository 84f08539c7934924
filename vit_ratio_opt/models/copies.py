"""Unwrap models and copy them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

import torch
from timm.utils.model_ema import ModelEma, ModelEmaV2, ModelEmaV3
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.weights import check_full_precision, check_weights
from vit_ratio_opt.utils.failures import reason

__all__ = [
    "copy_for_training",
    "copy_model",
    "freeze_parts",
    "frozen_parts",
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
    """Return a copy to measure and to train: in float32 and evaluation mode.

    Parts that are frozen (``requires_grad`` is False) stay frozen, so that fine-tuning leaves them
    as pruning made them. In a model that is frozen as a whole, as for inference, nothing is frozen
    in the copy. A warning is logged in both cases, and where the precision differs.

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
    copied = copied.float().eval()
    frozen = frozen_parts(model)
    if frozen:
        shown = ", ".join(f"`{name}`" for name in frozen[:3]) + (", ..." if frozen[3:] else "")
        _logger.warning(
            f"Frozen parts of the model ({shown}) stay frozen in fine-tuning: call "
            "`model.requires_grad_(True)` to train all of it."
        )
        return copied
    if not all(parameter.requires_grad for parameter in parameters):
        _logger.warning(
            "All parameters of the model are frozen (requires_grad is False): after pruning all "
            "of them are trained."
        )
    return copied.requires_grad_(True)


def frozen_parts(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the largest parts that are frozen: modules and single parameters.

    None of them is the model itself: a model that is frozen as a whole was made ready for
    inference, which says nothing about its parts.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return ()
    found: list[str] = []
    _add_frozen(model, "", found)
    return tuple(found)


def _add_frozen(module: nn.Module, prefix: str, found: list[str]) -> None:
    for name, parameter in module.named_parameters(prefix, recurse=False):
        if not parameter.requires_grad:
            found.append(name)
    for key, child in module.named_children():
        name = f"{prefix}.{key}" if prefix else key
        flags = [parameter.requires_grad for parameter in child.parameters()]
        if flags and not any(flags):
            found.append(name)
        elif not all(flags):
            _add_frozen(child, name, found)


def freeze_parts(model: nn.Module, names: Iterable[str]) -> None:
    """Freeze the parts of a model that :func:`frozen_parts` named.

    Raises:
        InputError: The model has no such part.
    """
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    for name in names:
        part = modules.get(name, parameters.get(name))
        if part is None:
            raise InputError(f"The model has no part {name!r:.80} that could be frozen.")
        part.requires_grad_(False)
