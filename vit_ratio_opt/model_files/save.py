"""Save models as safetensors, with the model's description as JSON in the header; no pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from vit_ratio_opt.data.preprocessing import Preprocessing, preprocess_of
from vit_ratio_opt.errors import CannotWriteError, InputError
from vit_ratio_opt.model_files.described import describe
from vit_ratio_opt.model_files.manifest import PRUNED_FORMAT
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.create import ARCHITECTURE, SOURCE
from vit_ratio_opt.models.preprocess import fit_preprocessing
from vit_ratio_opt.models.shape import read_shape
from vit_ratio_opt.models.state_dicts import checksum
from vit_ratio_opt.models.supported import check_supported
from vit_ratio_opt.models.weights import check_weights
from vit_ratio_opt.pruning.cascade import CascadeBlocks
from vit_ratio_opt.utils.files import replacing, why_not

__all__ = [
    "describe_pruned",
    "save_dense",
    "save_pruned",
    "write_tensors",
]

# Packages whose versions a pruned model's file holds.
_PACKAGES = ("vit_ratio_opt", "torch", "timm")


def save_dense(
    model: ViT,
    path: str | Path,
    *,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Save a dense model so that ``load_dense`` needs nothing but the file.

    The file describes the model as it is now, for example with another classifier or image size
    than it was made with.

    Args:
        model: The model.
        path: The file to write.
        name: timm's name of the model. It may be left out for models that this package has made.
        arguments: timm's arguments of the model. They may be left out for models that this package
            has made.
        preprocessing: How the model's images are prepared; by default ``preprocess_of(model)``.

    Raises:
        InputError: The file cannot be written, the name has to be given, or the model is not what
            timm makes of name and arguments.
    """
    model = check_supported(model)
    check_weights(model)
    given = dict(arguments or {})
    known: dict[str, Any] = {"timm_name": name, "timm_kwargs": {}}
    if name is None:
        known = getattr(model, ARCHITECTURE, None) or {}
        if not known:
            raise InputError("The timm model is unknown: give its `name`.")
    name, arguments = describe(model, known, given, is_pruned=False)
    metadata = {"timm_name": name, "timm_kwargs": json.dumps(arguments)}
    preprocessing = fit_preprocessing("The model", model, preprocessing or preprocess_of(model))
    if preprocessing is not None:
        metadata["preprocessing"] = json.dumps(preprocessing.to_json())
    write_tensors(model.state_dict(), Path(path), metadata)
    setattr(model, SOURCE, {"checkpoint": str(Path(path).resolve()), "arguments": {}})


def save_pruned(model: ViT, path: str | Path, manifest: Mapping[str, Any]) -> None:
    """Save a pruned model with its block shapes in the file's header.

    For models that ``create_model`` or ``load_dense`` made, timm's name and arguments of the model
    as it is now are saved too, so that ``load_pruned`` needs nothing but the file.

    Args:
        model: The model.
        path: The file to write.
        manifest: JSON values that are saved beside the block shapes.

    Raises:
        InputError: The file cannot be written, or the model was changed so that no file could
            hold it (see :func:`~vit_ratio_opt.model_files.described.check_saveable`).
    """
    model = check_supported(model)
    text = json.dumps({**describe_pruned(model), **manifest})
    digest = checksum(model.state_dict(), text)
    metadata = {"format": PRUNED_FORMAT, "manifest": text, "checksum": digest}
    write_tensors(model.state_dict(), Path(path), metadata)


def describe_pruned(model: ViT) -> dict[str, Any]:
    """Return what the manifest of a pruned model's file says of a supported model.

    Raises:
        InputError: The model was changed so that no file could hold it.
    """
    check_weights(model)
    own: dict[str, Any] = {
        "blocks": read_shape(model).block_sizes,
        "versions": {package: version(package) for package in _PACKAGES},
    }
    known = getattr(model, ARCHITECTURE, None)
    if known is not None:
        name, arguments = describe(model, known, {}, is_pruned=True)
        own["architecture"] = {"timm_name": name, "timm_kwargs": arguments}
    preprocessing = fit_preprocessing("The model", model, preprocess_of(model))
    if preprocessing is not None:
        own["model_preprocessing"] = preprocessing.to_json()
    if isinstance(model.blocks, CascadeBlocks):
        own["cascade"] = {"tokens": model.blocks.block_tokens, "scores": model.blocks.scores}
    return own


def write_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str]
) -> None:
    """Write a safetensors file whole or not at all.

    Raises:
        CannotWriteError: The file cannot be written.
    """
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            save_file(state, partial, metadata)
    except (OSError, SafetensorError) as error:
        raise CannotWriteError(f"{path} cannot be written: {why_not(error)}") from None
