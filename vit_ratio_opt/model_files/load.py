"""Load dense and pruned models: the one place that tells the formats of files apart."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.model_files.build import build_model
from vit_ratio_opt.model_files.convert import load_hugging_face_folder, load_torchvision_file
from vit_ratio_opt.model_files.folders import read_config
from vit_ratio_opt.model_files.manifest import (
    PRUNED_FORMAT,
    Manifest,
    is_pruned,
    read_manifest,
)
from vit_ratio_opt.model_files.timm_files import load_timm_file, load_timm_folder
from vit_ratio_opt.model_files.weights import read_metadata, read_tensors
from vit_ratio_opt.models.arguments import TRAINING_ARGUMENTS, accept_arguments
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.create import SOURCE, create_model, source_of
from vit_ratio_opt.models.preprocess import parse_preprocessing, remember
from vit_ratio_opt.models.state_dicts import check_fits, checksum
from vit_ratio_opt.models.surgery import shrink_to
from vit_ratio_opt.pruning.cascade import prune_tokens

__all__ = [
    "DEMO_MODEL",
    "load_again",
    "load_demo_model",
    "load_dense",
    "load_model",
    "load_pruned",
    "read_pruned",
    "rebuild_pruned",
]

DEMO_MODEL = Path(__file__).with_name("demo_dense.safetensors")
"""A small ViT for scikit-learn's digits, trained on the images of ``load_digits(seed=0)``."""


def load_dense(
    path: str | Path, *, name: str | None = None, weights: str | None = None, **arguments: Any
) -> ViT:
    """Load the dense model of a checkpoint of any suffix, without unpickling.

    Read are safetensors, state dicts and training checkpoints (timm's, DeiT's, MAE's, Lightning's
    ...), and folders of Hugging Face's libraries and of timm, also with shards. Sizes and the
    number of classes come from the tensors. Hugging Face's and torchvision's models are converted,
    see :mod:`vit_ratio_opt.models.convert`. The preprocessing of the images is remembered, see
    :func:`~vit_ratio_opt.data.preprocessing.preprocess_of`.

    Args:
        path: The file, or a folder with ``config.json``.
        name: timm's model name; by default the name that the file gives. For torchvision's weights
            ``torchvision/vit_b_16`` or another of torchvision's names.
        weights: ``"ema"`` for the averaged or ``"raw"`` for the trained weights of a file that
            holds both.
        **arguments: timm's arguments, beside those that the file and its tensors give. Positions
            are interpolated for another ``img_size``.

    Raises:
        InputError: The file is missing, damaged, no checkpoint, of another model, or ambiguous.
        UnsupportedModelError: The model cannot be pruned.
    """
    path = Path(path)
    if name is not None and str(name).startswith("torchvision/"):
        model: ViT = load_torchvision_file(path, name, weights, arguments)
    elif path.is_dir():
        if name is not None:
            raise InputError(f"The folder {path} says which model it has: leave {name!r} out.")
        is_timm = isinstance(read_config(path).get("architecture"), str)
        load = load_timm_folder if is_timm else load_hugging_face_folder
        model = load(path, weights, arguments)
    else:
        model = load_timm_file(path, name, weights, arguments)
    source: dict[str, Any] = {"checkpoint": str(path.resolve()), "name": name}
    source["arguments"] = arguments
    if weights is not None:
        source["weights"] = weights
    with contextlib.suppress(TypeError):  # a class among the arguments cannot be stored
        json.dumps(source)
        setattr(model, SOURCE, source)
    return model


def load_pruned(path: str | Path, dense: ViT | None = None) -> tuple[ViT, dict[str, Any]]:
    """Load a pruned model, in evaluation mode, and its manifest.

    Args:
        path: A file of :func:`~vit_ratio_opt.model_files.save.save_pruned`.
        dense: The model that it was pruned from, which gives the architecture and is not changed.
            It may be left out where the file names it.

    Raises:
        InputError: The file is missing, damaged, of another format, does not fit ``dense``, or
            does not name its dense model.
    """
    path = Path(path)
    state, manifest = read_pruned(path)
    model = rebuild_pruned(path, state, manifest, dense)
    if dense is None or source_of(dense) is not None:
        source = None if dense is None else source_of(dense)
        setattr(model, SOURCE, {"pruned": str(path.resolve()), "dense": source})
    return model, manifest.content


def read_pruned(
    path: Path, file_format: str = PRUNED_FORMAT
) -> tuple[dict[str, torch.Tensor], Manifest]:
    """Return the tensors and the manifest of a file, as they were written.

    Args:
        path: The file.
        file_format: The format that it has to have.

    Raises:
        InputError: The file is missing, damaged or of another format.
    """
    state, metadata = read_tensors(path)
    manifest = read_manifest(path, metadata, file_format)
    stored = metadata.get("checksum")
    if stored is not None and stored != checksum(state, metadata["manifest"]):
        raise InputError(f"{path} is damaged: its content differs from what was written.")
    return state, manifest


def rebuild_pruned(
    path: Path, state: Mapping[str, torch.Tensor], manifest: Manifest, dense: ViT | None
) -> ViT:
    """Return the pruned model of a file, in evaluation mode.

    Args:
        path: The file, for messages.
        state: The tensors of the model.
        manifest: The manifest of the file.
        dense: The model that it was pruned from; None where the manifest names it.

    Raises:
        InputError: The tensors do not fit the model, or the manifest does not name it.
    """

    def cut(whole: ViT) -> ViT:
        smaller = shrink_to(whole, manifest.blocks)
        if manifest.tokens is None:
            return smaller
        return prune_tokens(smaller, manifest.tokens, scores=manifest.scores)

    if dense is None:
        model = build_model(path, state, *manifest.architecture(path), cut)
    else:
        model = cut(dense)
        check_fits(model, state, path)
        model.load_state_dict(state)
    model.eval()
    known = manifest.content.get("model_preprocessing")
    if known is not None:
        remember(path, model, parse_preprocessing(path, known))
    return model


def load_model(path: str | Path) -> tuple[ViT, dict[str, Any]]:
    """Load the pruned or dense model of a file, in evaluation mode.

    Returns:
        The model, and the manifest of a pruned model; of a dense one an empty dict.

    Raises:
        InputError: The file cannot be read, see :func:`load_pruned` and :func:`load_dense`.
    """
    path = Path(path)
    if not path.is_dir() and is_pruned(read_metadata(path)):
        return load_pruned(path)
    return load_dense(path), {}


def load_again(
    source: Mapping[str, Any],
    *,
    checkpoint: str | Path | None = None,
    start: str | Path | None = None,
) -> ViT:
    """Load a model again, perhaps from files that have been moved.

    Args:
        source: JSON values that :func:`~vit_ratio_opt.models.create.source_of` returned for the
            model.
        checkpoint: The file or folder of the dense model; by default the one in ``source``.
        start: The file of the pruned model that ``source`` begins with; by default the one in
            ``source``.

    Raises:
        InputError: A file is missing or unreadable, ``start`` has no place in ``source``, or
            ``source`` is damaged.
    """
    try:
        if "pruned" in source:
            dense = None
            if source["dense"] is not None:
                dense = load_again(source["dense"], checkpoint=checkpoint)
            return load_pruned(start or source["pruned"], dense)[0]
        if start is not None:
            raise InputError("The study begins with the dense model: leave --start out.")
        arguments = accept_arguments("The study", source["arguments"], TRAINING_ARGUMENTS)
        name, weights = source.get("name", source.get("model")), source.get("weights")
        if "checkpoint" in source or checkpoint is not None:
            path = Path(checkpoint or source["checkpoint"])
            if isinstance(name, str) and ":" in name:  # a hub's name; the file here has its own
                name = None
            return load_dense(path, name=name, weights=weights, **arguments)
        if not isinstance(name, str) or ":" in name:
            raise InputError(
                f"The study has its dense model from {name!r:.200}, and a study may have nothing "
                "fetched but timm's own weights: give the file or folder with --checkpoint."
            )
        return create_model(name, pretrained=True, **arguments)
    except (AttributeError, KeyError, TypeError) as error:  # written by another version
        raise InputError(
            f"The dense model cannot be loaded from its place in the study: {error}."
        ) from None


def load_demo_model() -> ViT:
    """Return a small dense ViT for ``load_digits()``, which the package carries."""
    return load_dense(DEMO_MODEL)
