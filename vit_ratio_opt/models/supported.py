"""Refuse, by name, every model that cannot be pruned exactly, before anything is measured.

Weights are sliced by what the family of a model says about its modules. A module that computes
something else than its class says, or a weight that counts twice or not at all, would give a model
that runs and is wrong. So everything that can change what a model computes is refused: the message
names the module and the remedy. :func:`check_supported` looks at the modules alone, also on the
device "meta"; :func:`~vit_ratio_opt.models.weights.check_weights` reads the numbers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import AttentionPoolLatent, DropPath, LayerScale, PatchDropout, PatchEmbed
from torch import nn

from vit_ratio_opt.errors import UnsupportedModelError
from vit_ratio_opt.models.adapters import check_no_adapters
from vit_ratio_opt.models.blocks import ViT, attention_kind, branches, input_layers
from vit_ratio_opt.models.copies import unwrap_model
from vit_ratio_opt.models.families import FAMILIES, family_of
from vit_ratio_opt.models.family import Branch, Family
from vit_ratio_opt.models.untouched import check_untouched
from vit_ratio_opt.models.weights import check_not_shared

__all__ = ["check_supported"]

_WHAT_WORKS = (
    "Supported are timm's VisionTransformer and VisionTransformerDistilled (ViT, DeiT, DeiT-3, "
    "CLIP, SigLIP, DINOv2 ...), Eva (EVA-02, DINOv3, PE ...), Beit and Cait, with standard "
    "attention and an MLP or SwiGLU."
)
_DROPS = (nn.Dropout, nn.Identity, DropPath, PatchDropout)
_SCALES = (nn.Identity, LayerScale)
_ELEMENTWISE = (nn.GELU, nn.ReLU, nn.SiLU)
# Parts beside the blocks and the classifiers whose matrices are counted.
_COUNTED = ("patch_embed.proj.", "attn_pool.")


def check_supported(model: Any) -> ViT:
    """Return ``model`` if it can be pruned exactly, and refuse it by name otherwise.

    Nothing is changed. Types are compared exactly: a subclass may change the forward pass, and
    weights sliced on a wrong guess give a model that runs and is wrong.

    Returns:
        The model itself; for ``torch.compile``, ``DataParallel``, ``DistributedDataParallel``,
        timm's ``ModelEma`` and torch's ``AveragedModel`` the model inside.

    Raises:
        UnsupportedModelError: With the name of the offending module.
    """
    model = unwrap_model(model)
    check_no_adapters(model)
    family = family_of(model)
    if family is None:
        raise UnsupportedModelError(_other_class(model))
    check_untouched(model)
    _check_parts(model, family)
    _check_blocks(model, family)
    for attention, ffn in branches(model):
        _check_attention(model, attention, family)
        _check_ffn(model, ffn, family)
    classifiers = tuple(f"{name}." for name in family.classifiers)
    for name, module in model.named_modules():
        place = name.rpartition(".")[2]
        if "drop" in place and not name.startswith(classifiers):
            _require(name, module, *_DROPS)
        elif place in ("ls", "ls1", "ls2"):
            _require(name, module, *_SCALES)
    _check_matrices(model, (*_COUNTED, *classifiers, *family.counted))
    check_not_shared(model)
    found: ViT = model
    return found


def _check_parts(model: Any, family: Family) -> None:
    """Check the parts outside of the blocks."""
    if not len(model.blocks):
        raise UnsupportedModelError("A model without blocks has nothing to prune.")
    if type(model.patch_embed) is not PatchEmbed:
        _refuse("patch_embed", f"an embedding of class {_class_name(model.patch_embed)}")
    _require("patch_embed.proj", model.patch_embed.proj, nn.Conv2d)
    pool = getattr(model, "attn_pool", None)
    if type(pool) not in (type(None), AttentionPoolLatent):
        _refuse("attn_pool", f"attention pooling of class {_class_name(pool)}")
    for where, what in family.refusals(model):
        _refuse(where, what)
    own = type(model.blocks).__module__.startswith("vit_ratio_opt.")  # a cascade
    if not own and type(model.blocks) not in (nn.Sequential, nn.ModuleList):
        _refuse("blocks", f"a container of class {_class_name(model.blocks)}")


def _check_blocks(model: Any, family: Family) -> None:
    for index, block in enumerate(model.blocks.children()):
        kinds = {type(block), type(getattr(block, "attn", None))}
        known = {*family.blocks, *family.attentions}
        if not kinds.isdisjoint(family.separate.keys() - known):
            raise UnsupportedModelError(
                f"`blocks.{index}` is one of timm's that cannot be cut: make the model with "
                "`vit_ratio_opt.create_model`, which puts its weights into layers that can."
            )
        if type(block) not in family.blocks:
            _refuse(f"blocks.{index}", f"block class {_class_name(block)}")


def _check_attention(model: Any, branch: Branch, family: Family) -> None:
    where, attn = branch.name, branch.module
    if type(attn) not in family.attentions:
        _refuse(where, f"attention class {_class_name(attn)}")
    _require_identity(f"{where}.norm", attn, "a norm over heads (scale_norm)")
    if getattr(attn, "gate", None) is not None:
        _refuse(f"{where}.gate", "gated attention (gated)")
    if attn.qkv is None:
        _refuse(where, "queries, keys and values in layers of their own (num_kv_heads)")
    dims, width = attn.num_heads * attn.head_dim, model.embed_dim
    _check_linear(f"{where}.qkv", attn.qkv, 3 * dims, width)
    _check_linear(f"{where}.proj", attn.proj, width, dims)


def _check_ffn(model: Any, branch: Branch, family: Family) -> None:
    where, mlp = branch.name, branch.module
    if type(mlp) not in family.ffns:
        _refuse(where, f"feed-forward class {_class_name(mlp)}")
    _require_identity(f"{where}.norm", mlp, "a norm over neurons (scale_norm)")
    _require(f"{where}.fc2", mlp.fc2, nn.Linear)
    width, hidden = model.embed_dim, mlp.fc2.in_features
    names = family.ffns[type(mlp)]
    for name, (layer, rows) in zip(names, input_layers(mlp), strict=True):
        _check_linear(f"{where}.{name}", layer, rows * hidden, width)
    _check_linear(f"{where}.fc2", mlp.fc2, width, hidden)
    _check_activation(f"{where}.act", mlp.act, mlp.fc2.weight)


def _check_linear(name: str, layer: nn.Linear, rows: int, columns: int) -> None:
    _require(name, layer, nn.Linear)
    if not isinstance(layer.weight, nn.Parameter):
        _refuse(name, "a weight that is computed from others")
    if tuple(layer.weight.shape) != (rows, columns):
        raise UnsupportedModelError(
            f"`{name}` must have a weight of shape {(rows, columns)}, as its block's heads "
            f"and neurons say, but has {tuple(layer.weight.shape)}: load the model again."
        )


def _check_activation(name: str, act: nn.Module, like: torch.Tensor) -> None:
    """Refuse an activation in which neurons mix: removing some would change the others."""
    if type(act) in _ELEMENTWISE:
        return
    values = torch.linspace(-3, 3, like.shape[1], dtype=like.dtype, device=like.device)[None]
    try:
        with torch.no_grad():
            act = copy.deepcopy(act).eval()
            whole, part = act(values), act(values[:, 1:])
    except RuntimeError:  # of shapes
        whole = part = values[:0]
    if whole.shape != values.shape or not (whole.is_meta or torch.allclose(whole[:, 1:], part)):
        _refuse(name, f"an activation of class {_class_name(act)}, in which neurons mix or differ")


def _check_matrices(model: Any, counted: tuple[str, ...]) -> None:
    """Refuse matrices in unknown places, whose cost is unknown."""
    known: set[str] = set()
    for attention, ffn in branches(model):
        kind = attention_kind(attention.module)
        known |= {
            f"{attention.name}.{place}"
            for place in ("qkv", "proj", *(kind.mixers or ()), *kind.per_head)
        }
        layers = {id(layer) for layer, _ in input_layers(ffn.module)} | {id(ffn.last)}
        known |= {
            f"{ffn.name}.{name}"
            for name, layer in ffn.module.named_children()
            if id(layer) in layers
        }
    for name, parameter in model.named_parameters():
        is_matrix = sum(size > 1 for size in parameter.shape) > 1
        if not is_matrix or "." not in name or name.startswith(counted):
            continue
        if not known & {name, name.rpartition(".")[0]}:
            raise UnsupportedModelError(
                f"`{name}` is a matrix {tuple(parameter.shape)} in no part of a known model, so "
                "nothing says what it costs: remove it, or merge it into the layers around it."
            )


def _other_class(model: Any) -> str:
    kind = _class_name(model)
    if "FSDP" in kind or "FullyShardedDataParallel" in kind:
        return f"A model in shards ({kind}) cannot be pruned: pass the whole model, loaded again."
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    if kind == "ElasticViT":
        return "An ElasticViT has several models: pass that of a level, such as `elastic.at(0.5)`."
    inside = next((name for name, module in modules if type(module) in FAMILIES), None)
    if inside is not None:
        return (
            f"A {kind} around a model cannot be pruned, since what it adds would be lost: pass "
            f"the model itself, `.{inside}`. `vit_ratio_opt.replace_encoder` puts what pruning "
            "gives in its place."
        )
    return f"Models of class {kind} cannot be pruned. {_WHAT_WORKS}"


def _class_name(module: object) -> str:
    """Return the name of a class, with its module where a known class has that name."""
    kind = type(module)
    own = kind.__module__.startswith(("timm.", "torch.nn.modules.", "vit_ratio_opt."))
    if own or kind.__name__ not in _known_names():
        return kind.__name__
    return f"{kind.__module__}.{kind.__name__}"


def _known_names() -> set[str]:
    kinds = {*_DROPS, *_SCALES, PatchEmbed, nn.Linear, nn.Conv2d, *FAMILIES}
    for family in FAMILIES.values():
        kinds |= {*family.blocks, *family.attentions, *family.ffns}
    return {kind.__name__ for kind in kinds}


def _require(where: str, module: nn.Module, *kinds: type[nn.Module]) -> None:
    if type(module) in kinds:
        return
    if "quantized" in type(module).__module__:
        raise UnsupportedModelError(
            f"`{where}` is quantised ({_class_name(module)}): prune the model first and quantise "
            "the pruned one."
        )
    _refuse(where, f"layer class {_class_name(module)}")


def _require_identity(where: str, owner: nn.Module, what: str) -> None:
    if not isinstance(getattr(owner, "norm", None), (nn.Identity, type(None))):
        _refuse(where, what)


def _refuse(where: str, what: str) -> None:
    raise UnsupportedModelError(
        f"`{where}` has {what}, which cannot be pruned: merge it into the model's own weights "
        f"if it was added. {_WHAT_WORKS}"
    )
