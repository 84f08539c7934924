"""Find the residual branches of a model, and the layers of its heads and neurons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeAlias

from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_ratio_opt.models.families import FAMILIES
from vit_ratio_opt.models.family import AttentionKind, Branch, Family

__all__ = [
    "ViT",
    "attention_kind",
    "branches",
    "input_layers",
    "keeps_heads",
    "keeps_ranks",
    "stages",
]

ViT: TypeAlias = VisionTransformer | Beit | Cait | Eva
"""timm's models with a family; models of other families have the same attributes."""


def stages(model: Any) -> Iterator[list[Branch]]:
    """Yield the residual branches of all blocks in the order in which they run, stage by stage.

    Branches of one stage read the same stream; the next stage reads the stream to which they have
    all been added. Each branch knows its path in the model and its index among those of its kind.

    Args:
        model: A model with a family, whose blocks are of known classes.
    """
    family: Family = FAMILIES[type(model)]
    counts = {"attention": 0, "ffn": 0}
    for number, block in enumerate(model.blocks.children()):
        for stage in family.blocks[type(block)](block):
            found = []
            for branch in stage:
                name = f"blocks.{number}.{branch.name or branch.attribute}"
                found.append(replace(branch, name=name, index=counts[branch.kind]))
                counts[branch.kind] += 1
            yield found


def branches(model: Any) -> list[tuple[Branch, Branch]]:
    """Return the i-th attention and the i-th FFN of the model, for every i.

    They are the blocks of a :class:`~vit_ratio_opt.space.shape.ViTShape`: a block with several
    attentions in parallel counts as several.
    """
    by_kind: dict[str, list[Branch]] = {"attention": [], "ffn": []}
    for stage in stages(model):
        for branch in stage:
            by_kind[branch.kind].append(branch)
    return list(zip(by_kind["attention"], by_kind["ffn"], strict=True))


def attention_kind(attn: nn.Module) -> AttentionKind:
    """Return how the heads of an attention can be cut, by its class."""
    return next(
        family.attentions[type(attn)]
        for family in FAMILIES.values()
        if type(attn) in family.attentions
    )


def input_layers(ffn: nn.Module) -> list[tuple[nn.Linear, int]]:
    """Return the layers that hidden neurons are made of, and how many rows a neuron has in each.

    The rows of a gated FFN's ``fc1`` are those of the gate, then those of what it gates.
    """
    layers = next(
        family.ffns[type(ffn)] for family in FAMILIES.values() if type(ffn) in family.ffns
    )
    return [(getattr(ffn, name), rows) for name, rows in layers.items()]


def keeps_ranks(attn: Any) -> bool:
    """Return whether heads keep all dimensions or go, as queries or keys are changed after qkv."""
    norms = (getattr(attn, name, None) for name in ("q_norm", "k_norm"))
    has_norms = any(not isinstance(norm, (nn.Identity, type(None))) for norm in norms)
    return has_norms or attention_kind(attn).whole_heads


def keeps_heads(attn: nn.Module) -> bool:
    """Return whether no head can be removed, as the heads are mixed."""
    return attention_kind(attn).mixers is not None
