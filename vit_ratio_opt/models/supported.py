"""What can be pruned, and refusals by name of all else, before anything is measured or trained.

Weights are sliced by what is known of timm's modules. A module that computes something else than
its class says, or a weight that counts twice or not at all, would give a model that runs and is
wrong. So whatever can change what a model computes is refused: the message names the module and
says what to do. :func:`check_supported` looks at the modules alone, also without any memory on the
device "meta"; :func:`check_weights` reads the numbers.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator
from itertools import pairwise
from types import FunctionType
from typing import Any

import torch
from timm.layers import AttentionPoolLatent, DropPath, LayerScale, PatchDropout, PatchEmbed
from timm.utils.model_ema import ModelEma, ModelEmaV2, ModelEmaV3
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from vit_ratio_opt.errors import InputError, UnsupportedModelError
from vit_ratio_opt.models.blocks import (
    ATTENTIONS,
    BLOCKS,
    FFNS,
    MODELS,
    Branch,
    ViT,
    branches,
    input_layers,
)
from vit_ratio_opt.models.separate import SEPARATED

__all__ = [
    "check_precision",
    "check_supported",
    "check_untouched",
    "check_weights",
    "copy_model",
    "copy_for_training",
    "unwrap_model",
]

_WHAT_WORKS = (
    "Supported are timm's VisionTransformer and VisionTransformerDistilled (ViT, DeiT, DeiT-3, "
    "CLIP, SigLIP, DINOv2 ...), Eva (EVA-02, DINOv3, PE ...), Beit and Cait, with standard "
    "attention and an MLP or SwiGLU."
)
_LINEARS = ("qkv", "proj", "fc1", "fc1_g", "fc1_x", "fc2")
_LARGER = ("proj_l", "proj_w", "relative_position_bias_table")  # other matrices of attentions
_DROPS = (nn.Dropout, nn.Identity, DropPath, PatchDropout)
_SCALES = (nn.Identity, LayerScale)
# Parts beside the blocks whose matrices are counted.
_COUNTED = ("patch_embed.proj.", "head.", "head_dist.", "attn_pool.", "blocks_token_only.")

_logger = logging.getLogger(f"optuna.{__name__}")


def check_supported(model: Any) -> ViT:
    """Return ``model`` if it can be pruned exactly, and refuse it by name otherwise.

    Nothing is changed. Types are compared exactly: a subclass may change the forward pass, and
    weights sliced on a wrong guess give a model that runs and is wrong.

    Returns:
        The model itself; the one inside of ``torch.compile``, ``DataParallel``,
        ``DistributedDataParallel``, timm's ``ModelEma`` and torch's ``AveragedModel``.

    Raises:
        UnsupportedModelError: With the name of the offending module.
    """
    model = unwrap_model(model)
    if type(model) not in MODELS:
        raise UnsupportedModelError(_other_class(model))
    check_untouched(model)
    if not len(model.blocks):
        raise UnsupportedModelError("A model without blocks has nothing to prune.")
    if type(model.patch_embed) is not PatchEmbed:
        _refuse("patch_embed", f"an embedding of class {_class(model.patch_embed)}")
    _require("patch_embed.proj", model.patch_embed.proj, nn.Conv2d)
    pool = getattr(model, "attn_pool", None)
    if type(pool) not in (type(None), AttentionPoolLatent):
        _refuse("attn_pool", f"attention pooling of class {_class(pool)}")
    if getattr(model, "rel_pos_bias", None) is not None:
        _refuse("rel_pos_bias", "a position bias that the heads of all blocks share")
    if getattr(model, "rope_mixed", False):
        _refuse("rope", "a rotary embedding for each head (rope_type='mixed')")
    own = type(model.blocks).__module__.startswith("vit_ratio_opt.")  # a cascade
    if not own and type(model.blocks) not in (nn.Sequential, nn.ModuleList):
        _refuse("blocks", f"a container of class {_class(model.blocks)}")
    for index, block in enumerate(model.blocks):
        if type(block) in SEPARATED or type(getattr(block, "attn", None)) in SEPARATED:
            raise UnsupportedModelError(
                f"`blocks.{index}` is one of timm's that cannot be cut: make the model with "
                "`vit_ratio_opt.create_model`, which puts its weights into layers that can."
            )
        if type(block) not in BLOCKS:
            _refuse(f"blocks.{index}", f"block class {_class(block)}")
    for attention, ffn in branches(model):
        _check_branches(model, attention, ffn)
    for name, module in model.named_modules():
        place = name.rpartition(".")[2]
        if "drop" in place and not name.startswith(("head.", "head_dist.")):
            _require(name, module, *_DROPS)
        elif place in ("ls", "ls1", "ls2"):
            _require(name, module, *_SCALES)
    _check_matrices(model)
    _check_not_shared(model)
    return model


def unwrap_model(model: Any) -> Any:
    """Return the model inside the wrappers that :func:`check_supported` knows."""
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


def _other_class(model: Any) -> str:
    kind = _class(model)
    if "FSDP" in kind or "FullyShardedDataParallel" in kind:
        return f"A model in shards ({kind}) cannot be pruned: pass the whole model, loaded again."
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    inside = next((name for name, module in modules if type(module) in MODELS), None)
    if inside is not None:
        return (
            f"A {kind} around a model cannot be pruned, since what it adds would be lost: pass "
            f"the model itself, `.{inside}`."
        )
    return f"Models of class {kind} cannot be pruned. {_WHAT_WORKS}"


def check_untouched(model: nn.Module) -> None:
    """Refuse modules that may compute something else than their class says.

    Raises:
        UnsupportedModelError: With the name of a module that has a function of its own instead of
            its class's, a hook, or parametrised weights.
    """
    for name, module in model.named_modules():
        kind, own = type(module), vars(module)
        if "_orig_mod" in own["_modules"]:
            raise UnsupportedModelError(
                f"`{name}` is compiled: put back `{_code(name)}._orig_mod`, and compile what "
                "pruning gives."
            )
        replaced = next((key for key in own if callable(getattr(kind, key, None))), None)
        if replaced is not None:
            raise UnsupportedModelError(
                f"`{_path(name, replaced)}` was replaced by another function, so the model may "
                f"compute something else than its class says: `del {_code(name)}.{replaced}` puts "
                "the class's own back."
            )
        if "parametrizations" in own["_modules"]:
            raise UnsupportedModelError(
                f"`{name}` has parametrised weights: call `torch.nn.utils.parametrize."
                f"remove_parametrizations({_code(name)}, 'weight')` first."
            )
        hooks = (hook for key in own if key.endswith("_hooks") for hook in own[key].values())
        hook = next((hook for hook in hooks if not _renames_only(hook)), None)
        if hook is not None:
            raise UnsupportedModelError(_hooked(name, hook))
        for key, parameter in own["_parameters"].items():
            if parameter is not None and (
                parameter._backward_hooks
                or getattr(parameter, "_post_accumulate_grad_hooks", None)
            ):
                raise UnsupportedModelError(
                    f"`{_path(name, key)}` has a hook on its gradient, which a pruned copy would "
                    "lose: remove it (`handle.remove()`)."
                )
    for kind in {type(module) for module in model.modules()}:
        for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
            if not base.__module__.startswith(("timm.", "torch.nn.", "vit_ratio_opt.")):
                continue  # of the user, such as a classifier
            for key, method in vars(base).items():
                if not key.startswith("forward") or not isinstance(method, FunctionType):
                    continue
                if method.__globals__.get("__name__") != base.__module__:
                    raise UnsupportedModelError(
                        f"`{base.__name__}.{key}` of {base.__module__.partition('.')[0]} was "
                        "replaced by a function of "
                        f"{method.__globals__.get('__name__')}, so what the model computes is "
                        "unknown: do not replace it in the process that prunes."
                    )


def _renames_only(hook: Any) -> bool:
    """Whether it is what torch's `weight_norm` leaves behind when it is removed.

    It renames tensors of old state dicts as they are loaded, and has no handle.
    """
    name = getattr(hook, "__qualname__", "")
    return name == "weight_norm.<locals>._weight_norm_compat_hook"


def _hooked(name: str, hook: Any) -> str:
    kind, where, module = type(hook), f"`{name}`" if name else "The model", _code(name)
    if kind.__module__ == "torch.nn.utils.prune":
        remedy = f"call `torch.nn.utils.prune.remove({module}, {hook._tensor_name!r})` first"
        return f"{where} has a mask of torch.nn.utils.prune: {remedy}."
    if kind.__module__ in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"):
        remedy = f"call `torch.nn.utils.remove_{kind.__module__.rpartition('.')[2]}({module})`"
        return f"{where} computes its weight from others in a hook: {remedy} first."
    return (
        f"{where} has a hook ({getattr(hook, '__qualname__', kind.__name__):.80}), which may "
        "change what the model computes, and which copies and files lose: remove it "
        "(`handle.remove()`)."
    )


def _check_branches(model: ViT, attention: Branch, ffn: Branch) -> None:
    where, attn, mlp = attention.name, attention.module, ffn.module
    if type(attn) not in ATTENTIONS:
        _refuse(where, f"attention class {_class(attn)}")
    if type(mlp) not in FFNS:
        _refuse(ffn.name, f"feed-forward class {_class(mlp)}")
    _require_identity(f"{where}.norm", attn.norm, "a norm over heads (scale_norm)")
    _require_identity(f"{ffn.name}.norm", mlp.norm, "a norm over neurons (scale_norm)")
    if getattr(attn, "gate", None) is not None:
        _refuse(f"{where}.gate", "gated attention (gated)")
    if attn.qkv is None:
        _refuse(where, "queries, keys and values in layers of their own (num_kv_heads)")
    for owner, module in ((where, attn), (ffn.name, mlp)):
        for name, linear in module.named_children():
            if name in _LINEARS:
                _require(f"{owner}.{name}", linear, nn.Linear)
    dims, width, hidden = attn.num_heads * attn.head_dim, model.embed_dim, mlp.fc2.in_features
    layers = [
        (f"{where}.qkv", attn.qkv, 3 * dims, width),
        (f"{where}.proj", attn.proj, width, dims),
        *((f"{ffn.name}.fc1", layer, rows * hidden, width) for layer, rows in input_layers(mlp)),
        (f"{ffn.name}.fc2", mlp.fc2, width, hidden),
    ]
    for name, layer, rows, columns in layers:
        if not isinstance(layer.weight, nn.Parameter):
            _refuse(name, "a weight that is computed from others")
        if tuple(layer.weight.shape) != (rows, columns):
            raise UnsupportedModelError(
                f"`{name}` must have a weight of shape {(rows, columns)}, as its block's heads "
                f"and neurons say, but has {tuple(layer.weight.shape)}: load the model again."
            )
    _check_activation(f"{ffn.name}.act", mlp.act, mlp.fc2.weight)


def _check_activation(name: str, act: nn.Module, like: torch.Tensor) -> None:
    """Each neuron's activation has to be its own, or removing others would change it."""
    values = torch.linspace(-3, 3, like.shape[1], dtype=like.dtype, device=like.device)[None]
    try:
        with torch.no_grad():
            act = copy.deepcopy(act).eval()
            whole, part = act(values), act(values[:, 1:])
    except RuntimeError:  # of shapes
        whole = part = values[:0]
    if whole.shape != values.shape or not (whole.is_meta or torch.allclose(whole[:, 1:], part)):
        _refuse(name, f"an activation of class {_class(act)}, in which neurons mix or differ")


def _check_matrices(model: ViT) -> None:
    """Refuse matrices that are in no known place: nothing says what they cost."""
    pairs = branches(model)
    known = {f"{a.name}.{place}" for a, _ in pairs for place in (*_LINEARS[:2], *_LARGER)}
    known |= {f"{f.name}.{place}" for _, f in pairs for place in _LINEARS[2:]}
    for name, parameter in model.named_parameters():
        is_matrix = sum(size > 1 for size in parameter.shape) > 1
        if not is_matrix or "." not in name or name.startswith(_COUNTED):
            continue
        if not known & {name, name.rpartition(".")[0]}:
            raise UnsupportedModelError(
                f"`{name}` is a matrix {tuple(parameter.shape)} in no part of a known model, so "
                "nothing says what it costs: remove it, or merge it into the layers around it."
            )


def _check_not_shared(model: nn.Module) -> None:
    """Refuse weights that are one: cutting one of them would part them, and files refuse both."""
    spans = []
    named: dict[int, str] = {}
    for name, tensor in _weights(model):
        first = named.setdefault(id(tensor), name)
        if first != name:
            raise UnsupportedModelError(_shared(first, name))
        if type(tensor) in _PLAIN and tensor.layout == torch.strided and not tensor.is_meta:
            sizes = zip(tensor.shape, tensor.stride(), strict=True)
            length = 1 + sum((size - 1) * stride for size, stride in sizes)
            start = tensor.data_ptr()
            if tensor.numel():
                end = start + length * tensor.element_size()
                spans.append((str(tensor.device), start, end, name))
    for (device, _, end, first), (other, start, _, name) in pairwise(sorted(spans)):
        if device == other and start < end:
            raise UnsupportedModelError(_shared(first, name))


_PLAIN = (torch.Tensor, nn.Parameter)


def _shared(first: str, second: str) -> str:
    return (
        f"`{first}` and `{second}` share their memory: give each its own "
        "(`copy.deepcopy` of one module), so that each can be cut."
    )


def _weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a file of the model holds, by name; names of one tensor all of them."""
    yield from model.named_parameters(remove_duplicate=False)
    for name, module in model.named_modules(remove_duplicate=False):
        for key, buffer in module._buffers.items():
            if buffer is not None and key not in module._non_persistent_buffers_set:
                yield _path(name, key), buffer


def check_weights(model: nn.Module, *, finite: str = "") -> None:
    """Refuse weights that are not there, are no plain numbers, or are not finite.

    Args:
        model: Any.
        finite: How the names of weights begin whose values are looked at.

    Raises:
        InputError: With the name of the first of them.
    """
    sums, first = [], None
    for name, tensor in _weights(model):
        if tensor.is_meta:
            raise InputError(
                f"`{name}` is on the device 'meta' and has no values: load the weights first."
            )
        if type(tensor) not in _PLAIN or tensor.layout != torch.strided or tensor.is_quantized:
            kind = type(tensor).__name__ if type(tensor) not in _PLAIN else str(tensor.layout)
            raise InputError(
                f"`{name}` is a tensor of another kind ({kind}): pass the model with plain "
                "weights, and quantise or shard the pruned one."
            )
        if tensor.is_complex():
            raise InputError(f"`{name}` is complex, but weights must be real numbers.")
        first = first or (name, tensor)
        if tensor.device != first[1].device:
            raise InputError(
                f"`{name}` is on {tensor.device}, but `{first[0]}` on {first[1].device}: move the "
                "model to one device, such as `model.to('cpu')`."
            )
        if tensor.is_floating_point() and name.startswith(finite):
            sums.append((name, tensor, tensor.detach().float().sum()))
    # One look at the device for all of them; a sum may overflow where no value does.
    if sums and not bool(torch.stack([total for _, _, total in sums]).isfinite().all()):
        for name, tensor, _ in sums:
            if not bool(tensor.detach().isfinite().all()):
                raise InputError(
                    f"`{name}` has values that are NaN or infinite: its training has diverged or "
                    "its file is damaged. Load other weights."
                )


def check_precision(model: nn.Module) -> None:
    """Refuse a model in which no activations and gradients can be measured as they should be.

    Raises:
        InputError: Its weights are not all in float32 (or all in float64), or inference mode is
            on or was on when they were made.
    """
    if torch.is_inference_mode_enabled():
        raise InputError("Gradients are needed: call this outside of `torch.inference_mode()`.")
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise InputError(
            "The model was made in `torch.inference_mode()`, so it has no gradients: pass "
            "`copy.deepcopy(model)`."
        )
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if len(types) > 1 or not types <= {torch.float32, torch.float64}:
        found = " and ".join(sorted(str(t).removeprefix("torch.") for t in types))
        raise InputError(f"The model must be in float32, but is in {found}: call `model.float()`.")


def copy_model(model: ViT) -> ViT:
    """Return a deep copy.

    Raises:
        InputError: The model has an attribute that cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except (NotImplementedError, RuntimeError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"The model has an attribute that cannot be copied, remove it: {reason:.200}"
        ) from None


def copy_for_training(model: ViT) -> ViT:
    """Return a copy to measure and to train: in float32 and evaluation mode, nothing frozen.

    Which weights are frozen is no part of a study, and what is left after pruning has to be
    trained, so all weights of the copy are. A warning says where this or the precision differs
    from ``model``, which stays as it is.

    Args:
        model: Supported.

    Raises:
        InputError: It cannot be copied, or as :func:`check_weights`.
    """
    if torch.is_inference_mode_enabled():
        check_precision(model)
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


def _path(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _code(module: str) -> str:
    """A module as Python has it: ``model.blocks[0].attn``."""
    return "model" + re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", f".{module}" if module else "")


def _class(module: object) -> str:
    """Name of a class, with its module where another class of that name is meant."""
    kind = type(module)
    own = kind.__module__.startswith(("timm.", "torch.nn.modules.", "vit_ratio_opt."))
    if own or all(kind.__name__ != known.__name__ for known in _KNOWN):
        return kind.__name__
    return f"{kind.__module__}.{kind.__name__}"


_KNOWN = (
    *MODELS,
    *BLOCKS,
    *ATTENTIONS,
    *FFNS,
    *_DROPS,
    *_SCALES,
    PatchEmbed,
    nn.Linear,
    nn.Conv2d,
)


def _require(where: str, module: nn.Module, *kinds: type[nn.Module]) -> None:
    if type(module) in kinds:
        return
    if "quantized" in type(module).__module__:
        raise UnsupportedModelError(
            f"`{where}` is quantised ({_class(module)}): prune the model first and quantise the "
            "pruned one."
        )
    _refuse(where, f"layer class {_class(module)}")


def _require_identity(where: str, module: nn.Module, what: str) -> None:
    if not isinstance(module, nn.Identity):
        _refuse(where, what)


def _refuse(where: str, what: str) -> None:
    raise UnsupportedModelError(
        f"`{where}` has {what}, which cannot be pruned: merge it into the model's own weights "
        f"if it was added. {_WHAT_WORKS}"
    )
