"""Describe a family of Vision Transformers: where its branches are, and how they can be cut.

A family is one :class:`Family` object in :data:`~vit_ratio_opt.models.families.FAMILIES`, found by
the exact class of a model. Everything else in this package works on that description.

A model must have these attributes of timm's ``VisionTransformer``: ``blocks`` (a ``Sequential`` or
``ModuleList``), ``patch_embed`` (timm's ``PatchEmbed``), ``embed_dim``, ``num_prefix_tokens``,
``global_pool``, ``head`` and ``forward_features``. Inside a block only these names are fixed:

- an attention has ``num_heads``, ``head_dim``, ``scale``, and the linear layers ``qkv``, whose
  rows are the queries of all heads, then all keys, then all values, and ``proj``;
- an FFN has the activation ``act`` and the linear layer ``fc2``, whose inputs are the neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from timm.layers import GluMlp, LayerScale, Mlp, SwiGLU
from torch import nn

__all__ = [
    "STANDARD_FFNS",
    "AttentionKind",
    "Branch",
    "BranchKind",
    "Family",
    "layer_scale",
    "linear_macs",
    "two_stages",
]

BranchKind = Literal["attention", "ffn"]


@dataclass(frozen=True)
class Branch:
    """A residual branch of one block: it adds ``after(module(before(stream)))`` to the stream.

    Args:
        kind: Kind of the module: attention or FFN.
        owner: The module that holds the attention or FFN.
        attribute: Name of the attention or FFN in ``owner``.
        before: Module that the stream passes through first, such as a norm.
        after: Module that the output passes through before it is added, such as LayerScale.
        name: Path of the attention or FFN in the block; ``attribute`` by default.
        index: Number of the branch among those of its kind in the model; set by
            :func:`~vit_ratio_opt.models.blocks.stages`.
    """

    kind: BranchKind
    owner: nn.Module
    attribute: str
    before: nn.Module = field(default_factory=nn.Identity)
    after: nn.Module = field(default_factory=nn.Identity)
    name: str = ""
    index: int = 0

    @property
    def module(self) -> Any:
        """Return the attention or the FFN."""
        return getattr(self.owner, self.attribute)

    def replace(self, module: nn.Module) -> None:
        """Put another attention or FFN in the place of this one."""
        setattr(self.owner, self.attribute, module)

    @property
    def last_name(self) -> str:
        """Return the name of the module's last linear layer, whose inputs are heads or neurons."""
        return "proj" if self.kind == "attention" else "fc2"

    @property
    def last(self) -> nn.Linear:
        """Return the module's last linear layer, whose inputs are heads or neurons."""
        layer: nn.Linear = getattr(self.module, self.last_name)
        return layer

    @property
    def entry(self) -> nn.Module:
        """Return the module that is given the stream itself."""
        module: nn.Module = self.module
        return module if isinstance(self.before, nn.Identity) else self.before


BlockKind = Callable[[Any], list[list[Branch]]]
"""Return the branches of a block, stage by stage: branches of one stage read the same stream, and
the next stage reads the stream to which they have all been added."""


@dataclass(frozen=True)
class AttentionKind:
    """Description of a class of attention: how its heads can be cut.

    Heads are ``softmax(scale * q k' + bias) v`` unless ``whole_heads`` is set: then a head may
    compute anything from its own queries, keys and values.

    Args:
        whole_heads: Whether a head keeps all its dimensions or goes, because something stands
            between ``qkv`` and the product of queries and keys, such as a rotation. Norms named
            ``q_norm`` and ``k_norm`` are seen without it.
        per_head: Parameters and buffers that have entries for each head: name to the dimension
            that counts heads.
        mixers: Names of two linear layers from heads to heads, before and after the softmax. No
            head can be removed then.
        bias: Function that returns the term added to the logits, ``(1, heads, tokens, tokens)``,
            or None.
    """

    whole_heads: bool = False
    per_head: Mapping[str, int] = field(default_factory=dict)
    mixers: tuple[str, str] | None = None
    bias: Callable[[Any], torch.Tensor | None] | None = None


STANDARD_FFNS: Mapping[type[nn.Module], Mapping[str, int]] = {
    Mlp: {"fc1": 1},
    GluMlp: {"fc1": 2},  # rows of the gate, then rows of what it gates
    SwiGLU: {"fc1_g": 1, "fc1_x": 1},
}
"""timm's FFNs: for each class the layers that neurons are made of, and the rows of a neuron."""


def _no_refusals(model: Any) -> Iterable[tuple[str, str]]:
    return ()


def _prefix_tokens(model: Any) -> int:
    return int(model.num_prefix_tokens)


def _no_macs(model: Any, tokens: int) -> int:
    return 0


@dataclass(frozen=True, kw_only=True)
class Family:
    """Description of the models of one class. Classes are compared exactly.

    Args:
        blocks: Classes of blocks, each with the function that finds its branches.
        attentions: Classes of attention, each with how its heads can be cut.
        ffns: Classes of FFN, each with the linear layers that neurons are made of and how many
            rows of the layer a neuron has; several rows are in different equal parts of the layer.
        separate: Classes of blocks or attention that cannot be cut, each with a function that
            makes the replacement, which has the same weights in separate layers. It returns None
            for a module that cannot be replaced.
        classifiers: Names of the model's classifiers.
        prefix_tokens: Function that returns the number of tokens before the patches in the blocks.
        late_tokens: Number of tokens that join after the blocks.
        other_macs: Function that returns the MACs of parts that this family has beside the
            embedding, the blocks and the classifiers, given the model and the number of tokens in
            the blocks.
        counted: Prefixes of the names of the parameters that ``other_macs`` counts.
        refusals: Function that yields the place and the description of each part that cannot be
            pruned.
        arguments: timm's arguments that describe these models, beside those that
            families share. Files may give them.
    """

    blocks: Mapping[type[nn.Module], BlockKind]
    attentions: Mapping[type[nn.Module], AttentionKind]
    ffns: Mapping[type[nn.Module], Mapping[str, int]] = field(
        default_factory=lambda: STANDARD_FFNS
    )
    separate: Mapping[type[nn.Module], Callable[[Any], nn.Module | None]] = field(
        default_factory=dict
    )
    classifiers: tuple[str, ...] = ("head",)
    prefix_tokens: Callable[[Any], int] = _prefix_tokens
    late_tokens: int = 0
    other_macs: Callable[[Any, int], int] = _no_macs
    counted: tuple[str, ...] = ()
    refusals: Callable[[Any], Iterable[tuple[str, str]]] = _no_refusals
    arguments: frozenset[str] = frozenset()


def two_stages(
    block: nn.Module, attention: tuple[nn.Module, nn.Module], ffn: tuple[nn.Module, nn.Module]
) -> list[list[Branch]]:
    """Return the stages of a block that runs ``attn``, then ``mlp``.

    Args:
        block: The block.
        attention: Modules before and after ``attn``.
        ffn: Modules before and after ``mlp``.
    """
    return [
        [Branch("attention", block, "attn", *attention)],
        [Branch("ffn", block, "mlp", *ffn)],
    ]


def layer_scale(gamma: nn.Parameter | None) -> nn.Module:
    """Return timm's LayerScale with a block's own parameter; an identity without one."""
    if gamma is None:
        return nn.Identity()
    scale: nn.Module = LayerScale(1)
    scale.gamma = gamma
    return scale


def linear_macs(module: nn.Module, rows: Mapping[nn.Module, int], others: int) -> int:
    """Return the MACs of all linear layers of a module.

    Args:
        module: The module.
        rows: Layers, each with the number of rows that it is applied to.
        others: Number of rows that all other layers are applied to.
    """
    return sum(
        layer.weight.numel() * rows.get(layer, others)
        for layer in module.modules()
        if isinstance(layer, nn.Linear)
    )
