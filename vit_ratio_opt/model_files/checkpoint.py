"""Weights on disk: safetensors with the model's description as JSON in the header. No pickles."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from vit_ratio_opt.data.preprocessing import Preprocessing, preprocess_of
from vit_ratio_opt.errors import CannotWriteError, InputError
from vit_ratio_opt.model_files.described import check_saveable, described, misfit
from vit_ratio_opt.model_files.folders import (
    folder_preprocessing,
    read_config,
    read_folder,
)
from vit_ratio_opt.model_files.hashes import checksum, weights_hash
from vit_ratio_opt.model_files.weights import read_metadata, read_tensors
from vit_ratio_opt.models.arguments import (
    TRAINING_ARGUMENTS,
    accepted_arguments,
    accepted_name,
    resampled,
    told_arguments,
)
from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.models.create import ARCHITECTURE, SOURCE, create_model
from vit_ratio_opt.models.preprocess import (
    configured_preprocessing,
    fitting_preprocessing,
    remember,
    stored_preprocessing,
)
from vit_ratio_opt.models.separate import separate_names
from vit_ratio_opt.models.supported import check_supported, check_weights
from vit_ratio_opt.models.surgery import shape_of, shrink_to
from vit_ratio_opt.pruning.cascade import CascadeBlocks, prune_tokens
from vit_ratio_opt.space.geometry import BlockShape, BlockTokens
from vit_ratio_opt.utils.files import replacing, why_not

__all__ = [
    "check_fits",
    "check_saveable",
    "create_model",
    "load_again",
    "load_dense",
    "load_model",
    "load_pruned",
    "save_dense",
    "save_pruned",
    "source_of",
    "weights_hash",
]

_FORMAT = "vit_ratio_opt/1"
# Said in a pruned model's file.
_PACKAGES = ("vit_ratio_opt", "torch", "timm")
# What non-persistent buffers, such as the angles of rotations, may take beside a file's tensors.
_MOST_BUFFER_BYTES = 1 << 28


def save_dense(
    model: ViT,
    path: str | Path,
    *,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Write a dense model so that :func:`load_dense` needs nothing but the file.

    The file describes the model as it is now, with another classifier or image size than it was
    made with.

    Args:
        model: The model.
        path: The file.
        name: timm's name of it; known of models that this package has made.
        arguments: timm's arguments; likewise.
        preprocessing: Of its images; that of ``preprocess_of(model)`` by default.

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
            raise InputError("Nothing says which timm model this is: give its name.")
    name, arguments = described(model, known, given, is_pruned=False)
    metadata = {"timm_name": name, "timm_kwargs": json.dumps(arguments)}
    preprocessing = fitting_preprocessing(
        "The model", model, preprocessing or preprocess_of(model)
    )
    if preprocessing is not None:
        metadata["preprocessing"] = json.dumps(preprocessing.to_json())
    _save(model, Path(path), metadata)
    setattr(model, SOURCE, {"checkpoint": str(Path(path).resolve()), "arguments": {}})


def load_dense(
    path: str | Path, *, name: str | None = None, weights: str | None = None, **arguments: Any
) -> ViT:
    """The dense model of a checkpoint, whatever its suffix, read without unpickling.

    safetensors, state dicts and training checkpoints (timm's, DeiT's, MAE's, Lightning's ...);
    folders of Hugging Face's libraries and of timm, also with shards. Sizes and the number of
    classes come from the tensors. Hugging Face's and torchvision's models are converted: see
    :mod:`vit_ratio_opt.model_files.convert`. The preprocessing of its images is remembered, see
    :func:`~vit_ratio_opt.data.preprocessing.preprocess_of`.

    Args:
        path: The file, or a folder with ``config.json``.
        name: timm's model name; the one that the file gives by default. For torchvision's
            weights ``torchvision/vit_b_16`` or another of theirs.
        weights: ``"ema"`` or ``"raw"``, where the file holds averaged weights beside the trained.
        **arguments: timm's arguments, beside those that file and tensors give. Positions are
            interpolated for another ``img_size``.

    Raises:
        InputError: The file is missing, damaged, no checkpoint, of another model, or ambiguous.
        UnsupportedModelError: The model cannot be pruned.
    """
    path = Path(path)
    if str(name).startswith("torchvision/"):
        model = _convert(path, name, weights, arguments)
    elif path.is_dir():
        if name is not None:
            raise InputError(f"The folder {path} says which model it has: leave {name!r} out.")
        is_timm = isinstance(read_config(path).get("architecture"), str)
        load = _load_timm_folder if is_timm else _load_hugging_face_folder
        model = load(path, weights, arguments)
    else:
        model = _load_file(path, name, weights, arguments)
    source: dict[str, Any] = {"checkpoint": str(path.resolve()), "name": name}
    source["arguments"] = arguments
    if weights is not None:
        source["weights"] = weights
    with contextlib.suppress(TypeError):  # classes as arguments: no study can say which
        json.dumps(source)
        setattr(model, SOURCE, source)
    return model


def _load_file(
    path: Path, name: str | None, weights: str | None, arguments: Mapping[str, Any]
) -> ViT:
    state, metadata = read_tensors(path, weights)
    if _is_pruned(metadata):
        raise InputError(
            f"{path} holds a pruned model: read it with `load_pruned`, or give it as --start "
            "beside the --checkpoint of its dense model."
        )
    stored, arch = metadata.get("timm_name"), metadata.get("arch")
    if stored is not None and name in (None, stored):
        stored = accepted_name(path, stored)
        given = {**_stored_arguments(path, metadata), **arguments}
        model = _filled(path, state, stored, given, to_size="img_size" in arguments)
        known = _json_of(path, metadata, "preprocessing")
        if known is not None:
            remember(path, model, stored_preprocessing(path, known))
        return model
    if name is None and arch is not None and ":" not in arch and timm.is_model(arch):
        name = arch  # of timm's training script
    if name is None:
        raise InputError(
            f"{path} does not say which timm model it is: name the model, with `name=` or --model."
        )
    trained = _json_of(path, metadata, "args") if name == arch else None
    given = {**_trained_arguments(path, trained or {}), **arguments}
    given |= _told(path, state, name, given)
    model = _filled(path, state, name, given, to_size="img_size" in arguments)
    origin = f"timm's {name}" + (", which the checkpoint was trained as" if trained else "")
    is_assumed = trained is None
    config = {**getattr(model, "pretrained_cfg", {}), **(trained or {})}
    remember(
        path, model, configured_preprocessing(config, model, origin=origin, is_assumed=is_assumed)
    )
    return model


def _trained_arguments(path: Path, trained: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's arguments among those of timm's training script."""
    arguments = trained.get("model_kwargs", {})
    if isinstance(arguments, Mapping):
        arguments = {key: arguments[key] for key in arguments if key not in TRAINING_ARGUMENTS}
    arguments = accepted_arguments(path, arguments)
    if "gp" in trained:
        arguments = accepted_arguments(path, {**arguments, "global_pool": trained["gp"]})
    return arguments


def _load_timm_folder(path: Path, weights: str | None, arguments: Mapping[str, Any]) -> ViT:
    """The model of a folder of ``timm.models.save_for_hf``, or fetched from timm's hub."""
    config = read_config(path)
    name = accepted_name(path, config["architecture"])
    stored = config.get("model_args") or {}
    if isinstance(stored, Mapping):
        stored = {key: value for key, value in stored.items() if key not in TRAINING_ARGUMENTS}
    given = accepted_arguments(path, stored)
    given |= {key: config[key] for key in ("num_classes", "global_pool") if config.get(key)}
    given = {**accepted_arguments(path, given), **arguments}
    state = read_folder(path, weights)
    given |= _told(path, state, name, given)
    model = _filled(path, state, name, given, to_size="img_size" in arguments)
    stored = config.get("pretrained_cfg", config)
    known = configured_preprocessing(stored, model, origin=str(path / "config.json"))
    remember(path, model, known)
    return model


def _load_hugging_face_folder(
    path: Path, weights: str | None, arguments: Mapping[str, Any]
) -> ViT:
    model = _convert(path, None, weights, arguments)
    known = folder_preprocessing(path, tuple(model.patch_embed.img_size))
    remember(path, model, known)
    return model


def _convert(
    path: Path, name: str | None, weights: str | None, arguments: Mapping[str, Any]
) -> ViT:
    from vit_ratio_opt.model_files.convert import load_converted

    return load_converted(path, name=name, weights=weights, **arguments)


def _told(
    path: Path, state: Mapping[str, torch.Tensor], name: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the tensors tell of a model beside ``given``; nothing is allocated."""
    _check_depth(path, state, given)
    probe = dict(given)
    if "embed_dim" not in given:
        probe.pop("num_heads", None)  # which need not divide the usual width
    with torch.device("meta"):
        model = create_model(name, **probe)
        usual = create_model(name).embed_dim if "embed_dim" in given else model.embed_dim
    return told_arguments(path, name, separate_names(state), model, given, usual)


def save_pruned(model: ViT, path: str | Path, manifest: Mapping[str, Any]) -> None:
    """Write a pruned model with its block shapes and ``manifest`` (JSON) in the metadata.

    Of models that :func:`create_model` or :func:`load_dense` made, timm's name and arguments are
    kept too, for the model as it is now, so that :func:`load_pruned` needs nothing but the file.

    Raises:
        InputError: The file cannot be written, or see :func:`check_saveable`.
    """
    model = check_supported(model)
    check_weights(model)
    own: dict[str, Any] = {
        "blocks": shape_of(model).block_sizes,
        "versions": {package: version(package) for package in _PACKAGES},
    }
    known = getattr(model, ARCHITECTURE, None)
    if known is not None:
        name, arguments = described(model, known, {}, is_pruned=True)
        own["architecture"] = {"timm_name": name, "timm_kwargs": arguments}
    preprocessing = fitting_preprocessing("The model", model, preprocess_of(model))
    if preprocessing is not None:
        own["model_preprocessing"] = preprocessing.to_json()
    if isinstance(model.blocks, CascadeBlocks):
        own["cascade"] = {"tokens": model.blocks.block_tokens, "scores": model.blocks.scores}
    text = json.dumps({**own, **manifest})
    digest = checksum(model.state_dict(), text)
    metadata = {"format": _FORMAT, "manifest": text, "checksum": digest}
    _save(model, Path(path), metadata)


def load_pruned(path: str | Path, dense: ViT | None = None) -> tuple[ViT, dict[str, Any]]:
    """A pruned model, ready to use, and its manifest.

    Args:
        path: A file of :func:`save_pruned`.
        dense: The model it was pruned from; gives the architecture, and is not changed. Not needed
            where the file says what that is.

    Raises:
        InputError: The file is missing, damaged, of another format, does not fit ``dense``, or
            does not say what it was pruned from.
    """
    path = Path(path)
    state, metadata = read_tensors(path)
    _check_format(path, metadata.get("format"))
    try:
        manifest = json.loads(metadata["manifest"])
        blocks = [BlockShape(*(int(n) for n in block)) for block in manifest["blocks"]]
        chosen = manifest.get("cascade")
        if chosen is not None:
            tokens = [BlockTokens(*(int(n) for n in counts)) for counts in chosen["tokens"]]
            scores = chosen["scores"]
        stored = metadata.get("checksum")
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError):
        raise InputError(f"{path} has a damaged manifest.") from None
    if stored is not None and stored != checksum(state, metadata["manifest"]):
        raise InputError(f"{path} is damaged: what it holds is not what was written.")

    def cut(whole: ViT) -> ViT:
        smaller = shrink_to(whole, blocks)
        return smaller if chosen is None else prune_tokens(smaller, tokens, scores=scores)

    if dense is None:
        model = _filled(path, state, *_architecture(path, manifest), cut)
    else:
        model = cut(dense)
        check_fits(model, state, path)
        model.load_state_dict(state)
    model.eval()
    known = manifest.get("model_preprocessing")
    if known is not None:
        remember(path, model, stored_preprocessing(path, known))
    if dense is None or source_of(dense) is not None:
        source = None if dense is None else source_of(dense)
        setattr(model, SOURCE, {"pruned": str(path.resolve()), "dense": source})
    return model, manifest


def load_model(path: str | Path) -> tuple[ViT, dict[str, Any]]:
    """The model of a file, pruned or dense, in evaluation mode, and the manifest of a pruned one.

    Raises:
        InputError: As :func:`load_pruned` and :func:`load_dense`.
    """
    path = Path(path)
    if not path.is_dir() and _is_pruned(read_metadata(path)):
        return load_pruned(path)
    return load_dense(path), {}


def source_of(model: ViT) -> dict[str, Any] | None:
    """How :func:`load_again` finds the model, of JSON values; None where that is not known.

    It is known of models that this module has read or written, in their first weights.
    """
    source: dict[str, Any] | None = getattr(model, SOURCE, None)
    return source


def load_again(
    source: Mapping[str, Any],
    *,
    checkpoint: str | Path | None = None,
    start: str | Path | None = None,
) -> ViT:
    """The model of :func:`source_of`, perhaps from other files.

    Args:
        source: See there.
        checkpoint: Where the dense model is here; where it was by default.
        start: Where the pruned model is that ``source`` begins with.

    Raises:
        InputError: A file is missing or unreadable, ``start`` has no place in ``source``, or it
            is no source.
    """
    try:
        if "pruned" in source:
            dense = None
            if source["dense"] is not None:
                dense = load_again(source["dense"], checkpoint=checkpoint)
            return load_pruned(start or source["pruned"], dense)[0]
        if start is not None:
            raise InputError("The study begins with the dense model: leave --start out.")
        arguments = accepted_arguments("The study", source["arguments"], TRAINING_ARGUMENTS)
        name, weights = source.get("name", source.get("model")), source.get("weights")
        if "checkpoint" in source or checkpoint is not None:
            path = Path(checkpoint or source["checkpoint"])
            if isinstance(name, str) and ":" in name:  # of a hub; the file here says what it is
                name = None
            return load_dense(path, name=name, weights=weights, **arguments)
        if not isinstance(name, str) or ":" in name:
            raise InputError(
                f"The study has its dense model from {name!r:.200}, and a study may have nothing "
                "fetched but timm's own weights: give the file or folder with --checkpoint."
            )
        return create_model(name, pretrained=True, **arguments)
    except (AttributeError, KeyError, TypeError) as error:  # of another version
        raise InputError(f"The dense model cannot be loaded as the study says: {error}.") from None


def _save(model: ViT, path: Path, metadata: dict[str, str]) -> None:
    """A file that exists is complete."""
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            save_file(state, partial, metadata)
    except (OSError, SafetensorError) as error:
        raise CannotWriteError(f"{path} cannot be written: {why_not(error)}") from None


def _is_pruned(metadata: Mapping[str, str]) -> bool:
    return metadata.get("format", "").split("/")[0] == _FORMAT.split("/")[0]


def _check_format(path: Path, found: str | None) -> None:
    if found == _FORMAT:
        return
    name, _, number = str(found).partition("/")
    if name == _FORMAT.split("/")[0] and number.isdecimal():
        raise InputError(
            f"{path} was written by a newer version of vit_ratio_opt (format {found!r}), and this "
            f"one reads {_FORMAT!r}: upgrade with `pip install -U vit_ratio_opt`."
        )
    raise InputError(
        f"{path} must have format {_FORMAT!r}, but has {found!r:.80}: it holds no pruned model. "
        "`load_dense` reads dense ones."
    )


def _architecture(path: Path, manifest: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and arguments, timm's, of the dense model that a manifest names."""
    stored = manifest.get("architecture")
    if not isinstance(stored, dict):
        raise InputError(f"{path} does not say what it was pruned from: give the dense model.")
    name = accepted_name(path, stored.get("timm_name"))
    return name, accepted_arguments(path, stored.get("timm_kwargs", {}))


def _filled(
    path: Path,
    state: Mapping[str, torch.Tensor],
    name: str,
    arguments: Mapping[str, Any],
    cut: Callable[[ViT], ViT] = lambda model: model,
    *,
    to_size: bool = False,
) -> ViT:
    """The model of a file, or a smaller one made of it, with the file's tensors.

    Nothing is allocated, and no more blocks are made than there are tensors, before all fits. With
    ``to_size`` positions may be of images of another size.
    """
    _check_depth(path, state, arguments)
    with torch.device("meta"):
        model = cut(create_model(name, **arguments))
    state = separate_names(state)
    if to_size:
        state = dict(resampled(path, state, model))
    check_fits(model, state, path)
    buffers = sum(x.numel() * x.element_size() for x in model.buffers())
    if buffers > _MOST_BUFFER_BYTES + sum(x.numel() * x.element_size() for x in state.values()):
        raise InputError(f"{path} asks for {buffers:,} bytes that no tensor of it needs.")
    own = model.state_dict()
    model.load_state_dict(
        {key: tensor.to(own[key].dtype) for key, tensor in state.items()}, assign=True
    )
    for module in model.modules():  # what no file has, such as the frequencies of rotations
        if hasattr(module, "init_non_persistent_buffers"):
            for key, buffer in module.named_buffers(recurse=False):
                if buffer.is_meta:
                    module.register_buffer(key, torch.empty_like(buffer, device="cpu"), False)
            module.init_non_persistent_buffers()
    return model


def _check_depth(path: Path, state: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    depth = arguments.get("depth", 0)
    if isinstance(depth, int) and depth > len(state):
        raise InputError(f"{path} does not fit the model: it has {len(state)} tensors only.")


def _stored_arguments(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    arguments = _json_of(path, metadata, "timm_kwargs")
    return {} if "timm_kwargs" not in metadata else accepted_arguments(path, arguments)


def _json_of(path: Path, metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata.get(key, "null"))
    except (RecursionError, ValueError):
        what = {"timm_kwargs": "model arguments"}.get(key, key)
        raise InputError(f"{path} has damaged {what} in its metadata.") from None


def check_fits(model: ViT, state: Mapping[str, torch.Tensor], where: str | Path) -> None:
    """Refuse a state dict that has other tensors than the model, or of other shapes.

    Raises:
        InputError: With the first of them, and ``where`` they are.
    """
    difference = misfit(model, state)
    if difference is not None:
        hint = " It may be of another model than the named one." if "missing" in difference else ""
        raise InputError(f"{where} does not fit the model: {difference}.{hint}")
