"""Load dense timm models from one file or one folder; no pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.build import build_model, infer_from_tensors
from vit_ratio_opt.model_files.folders import (
    read_config,
    read_folder,
)
from vit_ratio_opt.model_files.manifest import is_pruned, reader_of
from vit_ratio_opt.model_files.official import rename_official
from vit_ratio_opt.model_files.weights import read_tensors
from vit_ratio_opt.models.arguments import TRAINING_ARGUMENTS, accept_arguments, accept_name
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.preprocess import (
    parse_preprocessing,
    parse_timm_config,
    remember,
)

__all__ = ["load_timm_file", "load_timm_folder"]


def load_timm_file(
    path: Path, name: str | None, weights: str | None, arguments: Mapping[str, Any]
) -> ViT:
    """Load the timm model of a file, which names it or whose tensors fit ``name``.

    Args:
        path: A file of tensors.
        name: timm's name of the model; by default the name that the file gives.
        weights: ``"ema"`` or ``"raw"``, where the file holds averaged weights beside the trained.
        arguments: timm's arguments that replace those of the file.

    Raises:
        InputError: The file is unreadable, holds a pruned model, or does not fit.
    """
    state, metadata = read_tensors(path, weights)
    if is_pruned(metadata):
        raise InputError(
            f"{path} holds a pruned model: read it with `{reader_of(metadata)}`, or give it as "
            "--start beside the --checkpoint of its dense model."
        )
    state = _without_classifier(rename_official(state), arguments)
    stored, arch = metadata.get("timm_name"), metadata.get("arch")
    if stored is not None and name in (None, stored):
        stored = accept_name(path, stored)
        given = {**_stored_arguments(path, metadata), **arguments}
        model = build_model(path, state, stored, given, to_size="img_size" in arguments)
        known = _parse_json(path, metadata, "preprocessing")
        if known is not None:
            remember(path, model, parse_preprocessing(path, known))
        return model
    if name is None and arch is not None and ":" not in arch and timm.is_model(arch):
        name = arch  # as timm's training script stores it
    if name is None:
        raise InputError(
            f"{path} does not say which timm model it is: name the model, with `name=` or --model."
        )
    trained = _parse_json(path, metadata, "args") if name == arch else None
    given = {**_trained_arguments(path, trained or {}), **arguments}
    given |= infer_from_tensors(path, state, name, given)
    model = build_model(path, state, name, given, to_size="img_size" in arguments)
    origin = f"timm's {name}" + (", which the checkpoint was trained as" if trained else "")
    is_assumed = trained is None
    config = {**getattr(model, "pretrained_cfg", {}), **(trained or {})}
    remember(path, model, parse_timm_config(config, model, origin=origin, is_assumed=is_assumed))
    return model


def _trained_arguments(path: Path, trained: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's arguments among those of timm's training script."""
    arguments = trained.get("model_kwargs", {})
    if isinstance(arguments, Mapping):
        arguments = {key: arguments[key] for key in arguments if key not in TRAINING_ARGUMENTS}
    arguments = accept_arguments(path, arguments)
    if "gp" in trained:
        arguments = accept_arguments(path, {**arguments, "global_pool": trained["gp"]})
    return arguments


def load_timm_folder(path: Path, weights: str | None, arguments: Mapping[str, Any]) -> ViT:
    """Load the timm model of a folder that ``timm.models.save_for_hf`` wrote or its hub gave.

    Args:
        path: A folder with ``config.json`` and weights.
        weights: ``"ema"`` or ``"raw"``, where a file holds averaged weights beside the trained.
        arguments: timm's arguments that replace those of the folder.

    Raises:
        InputError: A file is unreadable, or the weights do not fit.
    """
    config = read_config(path)
    name = accept_name(path, config["architecture"])
    stored = config.get("model_args") or {}
    if isinstance(stored, Mapping):
        stored = {key: value for key, value in stored.items() if key not in TRAINING_ARGUMENTS}
    given = accept_arguments(path, stored)
    given |= {key: config[key] for key in ("num_classes", "global_pool") if key in config}
    given = {**accept_arguments(path, given), **arguments}
    state = _without_classifier(read_folder(path, weights), arguments)
    given |= infer_from_tensors(path, state, name, given)
    model = build_model(path, state, name, given, to_size="img_size" in arguments)
    stored = config.get("pretrained_cfg", config)
    known = parse_timm_config(stored, model, origin=str(path / "config.json"))
    remember(path, model, known)
    return model


def _without_classifier(
    state: dict[str, torch.Tensor], arguments: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Return the tensors of the encoder alone where no classes are asked for."""
    if arguments.get("num_classes") != 0:
        return state
    return {key: state[key] for key in state if not key.startswith(("head.", "head_dist."))}


def _stored_arguments(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    arguments = _parse_json(path, metadata, "timm_kwargs")
    return {} if "timm_kwargs" not in metadata else accept_arguments(path, arguments)


def _parse_json(path: Path, metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata.get(key, "null"))
    except (RecursionError, ValueError):
        what = {"timm_kwargs": "model arguments"}.get(key, key)
        raise InputError(f"{path} has damaged {what} in its metadata.") from None
