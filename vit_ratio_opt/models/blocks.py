"""Where the parts of a block are: the one place that knows timm's kinds of blocks and FFNs.

Whatever its block looks like, a residual branch adds ``after(module(before(stream)))`` to the
stream, and its module ends in a linear layer whose inputs are its units: the dimensions of heads
(``proj``) or the hidden neurons (``fc2``). Branches of one *stage* read the same stream; the next
stage reads what they have added up to.

===================== ============================== ===================================
block                 stages                         before, after
===================== ============================== ===================================
Block                 attention, then FFN            norm, LayerScale
ResPostBlock          attention, then FFN            nothing, norm
ParallelThingsBlock   several attentions, then       norm, LayerScale
                      as many FFNs
ParallelBlock         attention and FFN              one norm, one LayerScale for both
BEiT's, EVA's, CaiT's attention, then FFN            norm, LayerScale
EvaBlockPostNorm      attention, then FFN            nothing, norm
===================== ============================== ===================================
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from timm.layers import Attention, AttentionRope, GluMlp, LayerScale, Mlp, SwiGLU
from timm.models import beit
from timm.models.cait import Cait, LayerScaleBlock
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import (
    Block,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import nn

from vit_ratio_opt.models.separate import BiasedAttention, ParallelBlock, TalkingHeads

__all__ = [
    "ATTENTIONS",
    "BLOCKS",
    "FFNS",
    "MODELS",
    "Branch",
    "ViT",
    "branches",
    "head_table",
    "input_layers",
    "keeps_heads",
    "keeps_ranks",
    "stages",
]

ViT: TypeAlias = VisionTransformer | beit.Beit | Cait | Eva
"""What is called a ViT here."""

MODELS = (VisionTransformer, VisionTransformerDistilled, beit.Beit, Cait, Eva)
"""Models that can be pruned. These and all below are compared exactly: a subclass may compute
something else."""

ATTENTIONS = (Attention, AttentionRope, BiasedAttention, TalkingHeads)
"""Attentions that can be pruned."""


@dataclass(frozen=True)
class Branch:
    """A residual branch of one block.

    Args:
        name: Of the module in the model, for messages.
        owner: The module that holds it.
        attribute: Under this name.
        before: What the stream passes through first.
        after: What the module's output passes through before it is added.
    """

    name: str
    owner: nn.Module
    attribute: str
    before: nn.Module
    after: nn.Module

    @property
    def module(self) -> Any:
        """The attention or the FFN."""
        return getattr(self.owner, self.attribute)

    def replace(self, module: nn.Module) -> None:
        """Put another module in its place."""
        setattr(self.owner, self.attribute, module)

    @property
    def last_name(self) -> str:
        """What the module calls the linear layer that it ends in."""
        return "proj" if hasattr(self.module, "proj") else "fc2"

    @property
    def last(self) -> nn.Linear:
        """That layer."""
        layer: nn.Linear = getattr(self.module, self.last_name)
        return layer

    @property
    def entry(self) -> nn.Module:
        """What is given the stream."""
        module: nn.Module = self.module
        return module if isinstance(self.before, nn.Identity) else self.before


BLOCKS = (
    *(Block, ResPostBlock, ParallelThingsBlock, ParallelBlock),
    *(beit.Block, EvaBlock, EvaBlockPostNorm, LayerScaleBlock),
)
"""Blocks that can be pruned."""

FFNS = (Mlp, GluMlp, SwiGLU)
"""FFNs that can be pruned."""


def stages(model: ViT) -> Iterator[list[tuple[int, str, Branch]]]:
    """The residual branches of all blocks in the order in which they run, stage by stage.

    Yields:
        Of each branch its index among those of its kind, ``"attention"`` or ``"ffn"``, and itself.
    """
    index = 0
    for number, block in enumerate(model.blocks):
        where = f"blocks.{number}"
        if isinstance(block, ParallelThingsBlock):
            for kind, part, name in (("attention", "attns", "attn"), ("ffn", "ffns", "mlp")):
                yield [
                    (
                        index + i,
                        kind,
                        Branch(f"{where}.{part}.{i}.{name}", own, name, own.norm, own.ls),
                    )
                    for i, own in enumerate(getattr(block, part))
                ]
            index += len(block.attns)
            continue
        if isinstance(block, ParallelBlock):
            around = [(block.norm, block.ls)] * 2
        elif isinstance(block, (ResPostBlock, EvaBlockPostNorm)):
            around = [(nn.Identity(), block.norm1), (nn.Identity(), block.norm2)]
        elif isinstance(block, (beit.Block, EvaBlock, LayerScaleBlock)):
            around = [(block.norm1, _scale(block.gamma_1)), (block.norm2, _scale(block.gamma_2))]
        else:
            around = [(block.norm1, block.ls1), (block.norm2, block.ls2)]
        attention, ffn = (
            (index, kind, Branch(f"{where}.{name}", block, name, *norms))
            for (kind, name), norms in zip(
                (("attention", "attn"), ("ffn", "mlp")), around, strict=True
            )
        )
        if isinstance(block, ParallelBlock):
            yield [attention, ffn]
        else:
            yield [attention]
            yield [ffn]
        index += 1


def branches(model: ViT) -> list[tuple[Branch, Branch]]:
    """The i-th attention and the i-th FFN of the model, for every i.

    They are the blocks of a :class:`~vit_ratio_opt.space.shape.ViTShape`: a block that has
    several in parallel counts as so many.
    """
    by_kind: dict[str, list[Branch]] = {"attention": [], "ffn": []}
    for stage in stages(model):
        for _, kind, branch in stage:
            by_kind[kind].append(branch)
    return list(zip(by_kind["attention"], by_kind["ffn"], strict=True))


def input_layers(ffn: nn.Module) -> list[tuple[nn.Linear, int]]:
    """The layers that hidden neurons are made of, and how many rows a neuron has in each.

    The rows of a gated FFN's ``fc1`` are those of the gate and of what it gates, one after the
    other.
    """
    if isinstance(ffn, SwiGLU):
        return [(ffn.fc1_g, 1), (ffn.fc1_x, 1)]
    assert isinstance(ffn, (Mlp, GluMlp))
    return [(ffn.fc1, 2 if isinstance(ffn, GluMlp) else 1)]


def keeps_ranks(attn: Any) -> bool:
    """Whether heads must keep their rank: queries or keys pass through a norm or a rotation."""
    plain = isinstance(attn.q_norm, nn.Identity) and isinstance(attn.k_norm, nn.Identity)
    return not plain or isinstance(attn, AttentionRope)


def keeps_heads(attn: Any) -> bool:
    """Whether no head can go, as others are made of it."""
    return isinstance(attn, TalkingHeads)


def head_table(attn: Any) -> nn.Parameter | None:
    """BEiT's position biases ``(distances, heads)``: what heads have besides their dimensions."""
    table: nn.Parameter | None = getattr(attn, "relative_position_bias_table", None)
    return table


def _scale(gamma: nn.Parameter | None) -> nn.Module:
    """A block's own parameter as timm's LayerScale."""
    if gamma is None:
        return nn.Identity()
    scale: nn.Module = LayerScale(1)
    scale.gamma = gamma
    return scale
