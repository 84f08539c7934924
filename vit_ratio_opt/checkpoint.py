"""Weights on disk: safetensors with the model's description as JSON in the header. No pickles."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.geometry import BlockShape, BlockTokens
from vit_ratio_opt.pruning.blocks import ViT
from vit_ratio_opt.pruning.cascade import CascadeBlocks, cascade
from vit_ratio_opt.pruning.separate import separate, separate_names
from vit_ratio_opt.pruning.supported import check_supported, check_weights
from vit_ratio_opt.pruning.surgery import shape_of, shrink_to
from vit_ratio_opt.utils.files import replacing

__all__ = [
    "check_fits",
    "create_model",
    "load_again",
    "load_dense",
    "load_model",
    "load_pruned",
    "load_tensors",
    "normalisation_of",
    "save_dense",
    "save_pruned",
    "source_of",
    "weights_hash",
]

# A file may not choose where weights come from, only what the model looks like.
_MODEL_ARGS = {
    *("img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth"),
    *("num_heads", "mlp_ratio", "qkv_bias", "proj_bias", "init_values", "class_token"),
    *("no_embed_class", "reg_tokens", "pre_norm", "final_norm", "fc_norm", "dynamic_img_size"),
    *("act_layer", "norm_layer", "norm_eps", "qk_norm", "scale_attn_norm", "scale_mlp_norm"),
    *("attn_layer", "use_abs_pos_emb", "use_rel_pos_bias", "use_fc_norm", "swiglu_mlp"),  # BEiT
    *("scale_mlp", "num_reg_tokens", "num_kv_heads", "use_rot_pos_emb", "use_post_norm"),  # EVA
    *("rope_type", "rope_temperature", "rope_grid_offset", "rope_grid_indexing"),
    "rope_rotate_half",
    *("ref_feat_shape", "depth_token_only"),  # CaiT
}
_FORMAT = "vit_ratio_opt/1"
# Said in a pruned model's file.
_PACKAGES = ("vit_ratio_opt", "torch", "timm")
# Attribute of a model: how to load it again elsewhere, of JSON values.
_SOURCE = "vit_ratio_opt_source"
# Attribute of a model, which its pruned copies keep: timm's name and arguments.
_ARCHITECTURE = "vit_ratio_opt_architecture"


def create_model(name: str, *, pretrained: bool = False, **arguments: Any) -> ViT:
    """``timm.create_model`` that refuses, in one sentence, what this package cannot prune.

    Args:
        name: A timm model name, or ``hf-hub:owner/model``.
        pretrained: Fetch timm's weights (needs a network the first time).
        **arguments: Passed on, such as ``img_size`` or ``num_classes``. Only ``norm_eps`` is not
            timm's: the epsilon of all layer norms, which JSON cannot say in timm's way.

    Raises:
        InputError: The name is unknown, an argument does not fit, or the weights cannot be had.
        UnsupportedModelError: The model exists but cannot be pruned.
    """
    if ":" not in name and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise InputError(f"timm has no model named {name!r:.200}.{hint}")
    if pretrained:  # say what cannot be pruned before anything is fetched
        create_model(name, **arguments)
    for_timm = dict(arguments)
    norm_eps = for_timm.pop("norm_eps", 1e-6)
    if not isinstance(norm_eps, (int, float)) or not 0 < norm_eps < 1:
        raise InputError(f"`norm_eps` must be a number between 0 and 1, but is {norm_eps!r}.")
    try:
        model = timm.create_model(name, pretrained=pretrained, **for_timm)
    except Exception as error:  # timm raises whatever the model's constructor or the hub raises
        what = (
            "its pretrained weights cannot be loaded" if pretrained else "its arguments do not fit"
        )
        raise InputError(
            f"timm model {name!r:.200} cannot be made, {what}: {_first_line(error)}"
        ) from None
    separate(model)
    check_supported(model)
    model.eval()
    if "norm_eps" in arguments:
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = norm_eps
    if ":" not in name and set(arguments) <= _MODEL_ARGS:
        with contextlib.suppress(TypeError):  # classes as arguments: no file can say which
            kept = json.loads(json.dumps(arguments))
            setattr(model, _ARCHITECTURE, {"timm_name": name, "timm_kwargs": kept})
    if pretrained:
        setattr(model, _SOURCE, {"model": name, "arguments": arguments})
    return model


def save_dense(
    model: ViT,
    path: str | Path,
    *,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Write a dense model so that :func:`load_dense` needs nothing but the file.

    Args:
        model: The model.
        path: The file.
        name: timm's name of it; known of models that this package has made.
        arguments: timm's arguments; likewise.

    Raises:
        InputError: The file cannot be written, or the name has to be given.
    """
    model = check_supported(model)
    check_weights(model)
    if name is None:
        known = getattr(model, _ARCHITECTURE, None)
        if known is None:
            raise InputError("Nothing says which timm model this is: give its name.")
        name, arguments = known["timm_name"], {**known["timm_kwargs"], **(arguments or {})}
    _save(model, Path(path), {"timm_name": name, "timm_kwargs": json.dumps(dict(arguments or {}))})
    setattr(model, _SOURCE, {"checkpoint": str(Path(path).resolve()), "arguments": {}})


def load_dense(path: str | Path, *, name: str | None = None, **arguments: Any) -> ViT:
    """The dense model of a safetensors file, or of a ``.pth`` state dict read without pickle code.

    Hugging Face's and torchvision's are converted: see :mod:`vit_ratio_opt.convert`.

    Args:
        path: The file, or a Hugging Face folder with ``config.json`` and ``model.safetensors``.
        name: timm's model name; the one in the file's metadata by default. For torchvision's
            weights ``torchvision/vit_b_16`` or another of theirs.
        **arguments: timm's arguments; added to those in the metadata when that names this model.

    Raises:
        InputError: The file is missing, truncated, no checkpoint, or of another shape.
        UnsupportedModelError: The model cannot be pruned.
    """
    path = Path(path)
    if path.is_dir() or str(name).startswith("torchvision/"):
        from vit_ratio_opt.convert import load_converted  # which is made of this module

        model = load_converted(path, name=name, **arguments)
    else:
        state, metadata = _load(path)
        stored_name = metadata.get("timm_name")
        if name is None and stored_name is None:
            raise InputError(f"{path} does not say which timm model it is: name the model.")
        if name is None:
            _check_stored_name(path, stored_name)
        if name in (None, stored_name):
            arguments = {**_stored_arguments(path, metadata), **arguments}
        model = _filled(path, state, str(name or stored_name), arguments)
    source = {"checkpoint": str(path.resolve()), "name": name, "arguments": arguments}
    setattr(model, _SOURCE, source)
    return model


def save_pruned(model: ViT, path: str | Path, manifest: Mapping[str, Any]) -> None:
    """Write a pruned model with its block shapes and ``manifest`` (JSON) in the metadata.

    Of models that :func:`create_model` or :func:`load_dense` made, timm's name and arguments are
    kept too, so that :func:`load_pruned` needs nothing but the file.
    """
    model = check_supported(model)
    check_weights(model)
    own: dict[str, Any] = {
        "blocks": shape_of(model).block_sizes,
        "versions": {package: version(package) for package in _PACKAGES},
    }
    architecture = getattr(model, _ARCHITECTURE, None)
    if architecture is not None:
        own["architecture"] = architecture
    if isinstance(model.blocks, CascadeBlocks):
        own["cascade"] = {"tokens": model.blocks.block_tokens, "scores": model.blocks.scores}
    text = json.dumps({**own, **manifest})
    checksum = _checksum(model.state_dict(), text)
    metadata = {"format": _FORMAT, "manifest": text, "checksum": checksum}
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
    state, metadata = _load(path)
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
    if stored is not None and stored != _checksum(state, metadata["manifest"]):
        raise InputError(f"{path} is damaged: what it holds is not what was written.")

    def cut(whole: ViT) -> ViT:
        smaller = shrink_to(whole, blocks)
        return smaller if chosen is None else cascade(smaller, tokens, scores=scores)

    if dense is None:
        model = _filled(path, state, *_architecture(path, manifest), cut)
    else:
        model = cut(dense)
        check_fits(model, state, path)
        model.load_state_dict(state)
    model.eval()
    if dense is None or source_of(dense) is not None:
        source = None if dense is None else source_of(dense)
        setattr(model, _SOURCE, {"pruned": str(path.resolve()), "dense": source})
    return model, manifest


def load_model(path: str | Path) -> tuple[ViT, dict[str, Any]]:
    """The model of a file, pruned or dense, in evaluation mode, and the manifest of a pruned one.

    Raises:
        InputError: As :func:`load_pruned` and :func:`load_dense`.
    """
    path = Path(path)
    if not path.is_dir() and "format" in _load(path, tensors=False)[1]:
        return load_pruned(path)
    return load_dense(path), {}


def normalisation_of(path: str | Path) -> dict[str, tuple[float, ...]]:
    """``mean`` and ``std`` that a Hugging Face folder gives; none where it does not say.

    Raises:
        InputError: Its ``preprocessor_config.json`` is damaged.
    """
    config = Path(path) / "preprocessor_config.json"
    if not config.is_file():
        return {}
    try:
        stored = json.loads(config.read_text(encoding="utf-8"))
        if not stored.get("do_normalize", True):
            return {}
        return {
            key: tuple(float(value) for value in stored[f"image_{key}"]) for key in ("mean", "std")
        }
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError):
        raise InputError(f"{config} is damaged: it gives no image_mean and image_std.") from None


def source_of(model: ViT) -> dict[str, Any] | None:
    """How :func:`load_again` finds the model, of JSON values; None where that is not known.

    It is known of models that this module has read or written, in their first weights.
    """
    source: dict[str, Any] | None = getattr(model, _SOURCE, None)
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
        if "checkpoint" in source or checkpoint is not None:
            path = checkpoint or source["checkpoint"]
            name = source.get("name", source.get("model"))
            return load_dense(path, name=name, **source["arguments"])
        return create_model(source["model"], pretrained=True, **source["arguments"])
    except (KeyError, TypeError) as error:  # of another version
        raise InputError(f"The dense model cannot be loaded as the study says: {error}.") from None


def weights_hash(model: torch.nn.Module) -> str:
    """Hash of names, shapes and values of all weights."""
    return _tensors_hash(model.state_dict())[:16]


def _save(model: ViT, path: Path, metadata: dict[str, str]) -> None:
    """A file that exists is complete."""
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            save_file(state, partial, metadata)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be written: {_first_line(error)}") from None


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file or a ``.pth`` state dict, whatever they belong to.

    Raises:
        InputError: The file is missing, truncated or no checkpoint.
    """
    return _load(path)[0]


def _load(path: Path, *, tensors: bool = True) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata, or of a safetensors file the metadata alone."""
    if not path.is_file():
        raise InputError(f"There is no checkpoint {path}.")
    try:
        if path.suffix in (".pt", ".pth", ".bin"):
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = dict(state.get("state_dict", state.get("model", state)))
            if not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
                raise TypeError("it holds other things than tensors")
            return state, {}
        with safe_open(path, framework="pt") as file:
            names = file.keys() if tensors else ()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise InputError(
            f"{path} is no readable checkpoint (truncated?): {_first_line(error)}"
        ) from None


def _check_format(path: Path, found: str | None) -> None:
    if found == _FORMAT:
        return
    name, _, number = str(found).partition("/")
    if name == _FORMAT.split("/")[0] and number.isdecimal():
        raise InputError(
            f"{path} was written by a newer version of vit_ratio_opt (format {found!r}), and this "
            f"one reads {_FORMAT!r}: upgrade with `pip install -U vit_ratio_opt`."
        )
    raise InputError(f"{path} must have format {_FORMAT!r}, but has {found!r}.")


def _check_stored_name(path: Path, name: object) -> None:
    """A file may not have anything fetched."""
    if not isinstance(name, str) or ":" in name:
        raise InputError(f"{path} names the model {name!r:.200}, which is no timm model.")


def _architecture(path: Path, manifest: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and arguments, timm's, of the dense model that a manifest names."""
    stored = manifest.get("architecture")
    if not isinstance(stored, dict):
        raise InputError(f"{path} does not say what it was pruned from: give the dense model.")
    name = stored.get("timm_name")
    _check_stored_name(path, name)
    return str(name), _accepted(path, stored.get("timm_kwargs", {}))


def _filled(
    path: Path,
    state: Mapping[str, torch.Tensor],
    name: str,
    arguments: Mapping[str, Any],
    cut: Callable[[ViT], ViT] = lambda model: model,
) -> ViT:
    """The model of a file, or a smaller one made of it, with the file's tensors.

    Nothing is allocated, and no more blocks are made than there are tensors, before all fits.
    """
    depth = arguments.get("depth", 0)
    if isinstance(depth, int) and depth > len(state):
        raise InputError(f"{path} does not fit the model: it has {len(state)} tensors only.")
    with torch.device("meta"):
        model = cut(create_model(name, **arguments))
    state = separate_names(state)
    check_fits(model, state, path)
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


def _stored_arguments(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        arguments = json.loads(metadata.get("timm_kwargs", "{}"))
    except (RecursionError, ValueError):
        raise InputError(f"{path} has damaged model arguments in its metadata.") from None
    return _accepted(path, arguments)


def _accepted(path: Path, arguments: Any) -> dict[str, Any]:
    """The arguments, if they only say what a model looks like."""
    if not isinstance(arguments, dict):
        raise InputError(f"{path} has model arguments that are not accepted: no JSON object.")
    unknown = sorted(set(arguments) - _MODEL_ARGS)
    if unknown:
        raise InputError(f"{path} has model arguments that are not accepted: {unknown}.")
    return arguments


def check_fits(model: ViT, state: Mapping[str, torch.Tensor], where: str | Path) -> None:
    """Refuse a state dict that has other tensors than the model, or of other shapes.

    Raises:
        InputError: With the first of them, and ``where`` they are.
    """
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or extra:
        raise InputError(
            f"{where} does not fit the model: {len(missing)} tensors are missing {missing[:3]}, "
            f"{len(extra)} are not the model's {extra[:3]}."
        )
    for key, tensor in own.items():
        if state[key].shape != tensor.shape:
            raise InputError(
                f"{where} does not fit the model: `{key}` has shape {tuple(state[key].shape)}, "
                f"but the model's has {tuple(tensor.shape)}."
            )


def _checksum(state: Mapping[str, torch.Tensor], manifest: str) -> str:
    """Of all that a file of a pruned model holds; against damage, not against malice."""
    return hashlib.sha256(f"{_tensors_hash(state)} {manifest}".encode()).hexdigest()


def _tensors_hash(state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
